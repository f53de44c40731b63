"""The folder of a training run: resuming from it, writing to it, reading its result."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import jax

from jaxrec.checkpoint import Checkpoints
from jaxrec.files import read_json, write_json
from jaxrec.tracking import JsonLines, MetricWriter
from jaxrec.training.record import Record, check_manifest
from jaxrec.training.state import TrainState
from jaxrec.types import PyTree

Stopped = Literal["finished", "early"]
"""How a run ended."""


@runtime_checkable
class Batches(Protocol):
    """Endless batches whose position can be saved. Arrays, once given out, are not written to."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """JSON-able: all that determines the order; a run resumes only where it agrees. Only the
        entry `host` may differ between hosts."""
        ...

    def __iter__(self) -> Any:
        """The batches from the present position on."""
        ...

    def get_state(self) -> dict[str, Any]:
        """The position, JSON-able."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position."""
        ...


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What came of a run."""

    params: PyTree
    """The best parameters by the monitored number; the last ones where nothing was validated."""
    state: TrainState
    """The last state."""
    best_step: int
    """The step of `params`."""
    history: list[dict[str, Any]]
    """All metric rows, as in metrics.jsonl."""
    stopped: Stopped
    """`finished` (all steps done) or `early` (patience ran out)."""
    seconds: float
    """Training time over all sessions, validation included."""


def _read_marker(path: Path) -> dict[str, Any]:
    try:
        marker = read_json(path)
        kinds = {"step": int, "best_step": int, "stopped": str, "seconds": (int, float)}
        if not all(isinstance(marker[name], kind) for name, kind in kinds.items()):
            raise ValueError("a field is of another kind")
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} is damaged: it is truncated or was edited. Delete that file; `jaxrec run` on "
            "the run's recipe.json writes it again."
        ) from None
    return marker


class Book:
    """The run's folder: what is read at the start, written on the way, and sealed at the end.

    Crash consistency of the best parameters: their checkpoint is complete before any checkpoint
    that names its step is published (`after=`), and it is deleted only when no checkpoint on the
    disk or on its way there names it (`referred`). What a killed session saved beyond the newest
    checkpoint is deleted at resumption, since those steps are repeated.
    """

    def __init__(
        self,
        folder: Path,
        abstract: PyTree,
        manifest: dict[str, Any],
        checkpoints: Checkpoints,
        best: Checkpoints,
        writers: tuple[MetricWriter, ...],
    ) -> None:
        self.folder, self.abstract, self.manifest = folder, abstract, manifest
        self.checkpoints, self.best, self.writers = checkpoints, best, writers
        self.lines = JsonLines(folder / "metrics.jsonl")
        self.record = Record()
        self.saved: int | None = None
        # Best steps that a checkpoint on the disk, or on its way there, refers to.
        self.referred: tuple[int | None, int | None] = (None, None)
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Training time so far, over all sessions."""
        return self.record.seconds + time.monotonic() - self.began

    def finished(self) -> FitResult | None:
        """The result, when there is nothing left to do."""
        marker, latest = self.folder / "finished.json", self.checkpoints.latest()
        if latest is None or not marker.is_file():
            return None
        check_manifest(self.checkpoints.manifest(latest), self.manifest, self.folder)
        state = self.checkpoints.restore(latest, self.abstract)[0]
        return self._result(state, _read_marker(marker))

    def resume(self, batches: Batches) -> TrainState | None:
        """The newest state, everything else set back to it; None where there is no checkpoint."""
        latest = self.checkpoints.latest()
        state = None
        if latest is not None:
            check_manifest(self.checkpoints.manifest(latest), self.manifest, self.folder)
            state, data, _ = self.checkpoints.restore(latest, self.abstract)
            batches.set_state(data["batches"])
            self.record = Record.from_json(data["record"])
            self.saved = latest
        if jax.process_index() == 0:
            step = -1 if latest is None else latest
            for writer in (self.lines, *self.writers):
                writer.rewind(step, self.record.rows)
        self.referred = (self.record.best_step, None)
        # Anything else there is of steps that are about to be repeated.
        self._forget_other_bests()
        return state

    def write(self, step: int, row: dict[str, float]) -> None:
        """Writes a metric row everywhere."""
        if jax.process_index() == 0:
            for writer in (self.lines, *self.writers):
                writer.write(step, row)
        self.record.rows += 1

    def save(self, step: int, state: TrainState, batches: Batches) -> None:
        """Starts a checkpoint, unless this step has one."""
        if self.saved == step:
            return
        self.checkpoints.wait()
        self.referred = (self.referred[1] or self.referred[0], self.record.best_step)
        self._forget_other_bests()
        record = {**self.record.to_json(), "seconds": self.seconds}
        self.checkpoints.save(
            step,
            state,
            data={"batches": batches.get_state(), "record": record},
            manifest=self.manifest,
            after=self.best,
        )
        self.saved = step

    def save_best(self, step: int, params: PyTree) -> None:
        """Starts a checkpoint of the best parameters so far."""
        self._forget_other_bests()
        self.best.save(step, {"params": params}, data={}, manifest=self.manifest)

    def finish(self, state: TrainState, stopped: Stopped) -> FitResult:
        """Waits for everything to be on the disk, then marks the run as finished."""
        self.checkpoints.tidy()
        self.best.tidy()
        self.referred = (self.record.best_step, None)
        self._forget_other_bests()
        step = int(state.step)
        marker = {
            "step": step,
            "stopped": stopped,
            "best_step": step if self.record.best_step is None else self.record.best_step,
            "best_value": self.record.best_value,
            "seconds": self.seconds,
        }
        if jax.process_index() == 0:
            write_json(self.folder / "finished.json", marker)
        return self._result(state, marker)

    def _result(self, state: TrainState, marker: dict[str, Any]) -> FitResult:
        params, best_step = state.params, marker["best_step"]
        if best_step != marker["step"]:
            params = self.best.restore_params(best_step, self.abstract.params)
        return FitResult(
            params=params,
            state=state,
            best_step=best_step,
            history=self.lines.rows(),
            stopped=marker["stopped"],
            seconds=marker["seconds"],
        )

    def _forget_other_bests(self) -> None:
        for step in self.best.steps():
            if step not in (*self.referred, self.record.best_step):
                self.best.discard(step)
