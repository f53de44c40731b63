"""What the loop remembers besides the state, and how a run is kept apart from another."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np


class RunMismatch(ValueError):
    """The folder holds a run with other settings; says which."""


class TrainingDiverged(RuntimeError):
    """Loss or gradient stopped being finite. Nothing of it was saved."""

    def __init__(self, first: int, last: int, saved: int | None, folder: object) -> None:
        """
        Args:
            first: the first step that was not finite.
            last: the last step that had been started when it was noticed.
            saved: step of the newest checkpoint, or None.
            folder: the run's folder.
        """
        where = "no checkpoint yet" if saved is None else f"the last good checkpoint: step {saved}"
        super().__init__(
            f"loss or gradient is not finite in step {first} (noticed at step {last}); {where}, in "
            f"{folder}.\nLower the learning rate or clip_norm, or look at the batch of that step, "
            "then start in another folder; the same run would fail again."
        )
        self.first, self.last, self.saved = first, last, saved


@dataclasses.dataclass
class Record:
    """Bookkeeping of a run on the host. Travels in every checkpoint, so that a resumed run logs,
    validates and stops exactly as an undisturbed one."""

    rows: int = 0
    """Metric rows written so far."""
    logged: int = 0
    """Step of the last training row."""
    window: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    """name -> [sum, weight] since then."""
    validated: int = 0
    """Last step that was validated."""
    best_step: int | None = None
    """Step of the best validation."""
    best_value: float | None = None
    """The monitored number there."""
    bad: int = 0
    """Validations since then."""
    seconds: float = 0.0
    """Training time of earlier sessions."""

    def to_json(self) -> dict[str, Any]:
        """All fields, JSON-able; floats survive bit for bit."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Record:
        """The record that `to_json` wrote."""
        return cls(**content)

    def add(self, metrics: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Adds (sum, weight) pairs to the window, in double precision."""
        for name, (total, weight) in metrics.items():
            pair = self.window.setdefault(name, [0.0, 0.0])
            pair[0] += float(total)
            pair[1] += float(weight)

    def close_window(self, step: int) -> dict[str, float]:
        """Means over the window, which starts anew; a name whose weight is zero is left out."""
        means = {
            name: total / weight for name, (total, weight) in self.window.items() if weight != 0
        }
        self.window, self.logged = {}, step
        return means

    def judge(self, step: int, value: float, *, higher_is_better: bool) -> bool:
        """Notes a validation and tells whether it is the best so far. NaN never is; equal is not
        better, so the earliest of equals stays."""
        self.validated = step
        best = self.best_value
        better = value == value and (
            best is None or (value > best if higher_is_better else value < best)
        )
        if better:
            self.best_step, self.best_value, self.bad = step, value, 0
        else:
            self.bad += 1
        return better


def check_manifest(found: dict[str, Any], wanted: dict[str, Any], folder: object) -> None:
    """Compares the settings of a run in a folder with those of the run that wants to go on.

    Raises:
        RunMismatch: they differ; names the first differences.

    >>> check_manifest({"data": {"seed": 1}}, {"data": {"seed": 2}}, "runs/a")
    Traceback (most recent call last):
    jaxrec.training.record.RunMismatch: runs/a holds a run with data.seed = 1, asked for is 2.
    Run with the old settings, or in another folder.
    """
    before, now = _flat(json.loads(json.dumps(found))), _flat(json.loads(json.dumps(wanted)))
    absent = object()
    shown = [
        f"{name} = {_shown(before, name)}, asked for is {_shown(now, name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name, absent) != now.get(name, absent)
    ]
    if shown:
        more = f" (and {len(shown) - 3} more differences)" if len(shown) > 3 else ""
        raise RunMismatch(
            f"{folder} holds a run with {'; '.join(shown[:3])}{more}.\n"
            "Run with the old settings, or in another folder."
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        parts = [_flat(value, f"{prefix}.{name}") for name, value in tree.items()]
        return {name: value for part in parts for name, value in part.items()}
    return {prefix.removeprefix("."): tree}


def _shown(values: dict[str, Any], name: str) -> str:
    text = json.dumps(values[name]) if name in values else "absent"
    return text if len(text) <= 80 else text[:77] + "..."
