"""What a run leaves for people to watch: metric rows on disk, and progress on the terminal.

`JsonLines` is always written; TensorBoard and Weights & Biases are extras that are imported only
when asked for. A row is `{name: number}` at a step. Names that start with `seconds` or `rate`
measure time and differ between equal runs; all others are deterministic.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from tqdm import tqdm

from jaxrec.files import write_bytes


@runtime_checkable
class MetricWriter(Protocol):
    """Where metric rows go."""

    def write(self, step: int, row: dict[str, Any]) -> None:
        """Records the numbers of one step."""
        ...

    def rewind(self, step: int, rows: int | None = None) -> None:
        """Forgets, as far as possible, what was written for later steps: a run resumes here.

        Args:
            step: the last step to keep.
            rows: how many rows the run had written by then, where that is known.
        """
        ...

    def close(self) -> None:
        """Writes what is still held back."""
        ...


class JsonLines:
    """One JSON object per row, appended and flushed to the disk before `write` returns.

    A non-finite number becomes `null`, so that every line is strict JSON. Several runs may share a
    file, one after another, when each has its own labels: each reads and rewinds only its rows.
    """

    def __init__(self, path: Path | str, **labels: str | int) -> None:
        """
        Args:
            path: the file; made, with its folder, at the first row.
            labels: fields that every row of this writer gets, for example `stage=0`.
        """
        self.path, self.labels = Path(path), labels

    def write(self, step: int, row: dict[str, Any]) -> None:
        """Appends a row: `step` first, then the labels, then the numbers."""
        numbers = {name: _plain(value) for name, value in row.items()}
        line = json.dumps({"step": int(step), **self.labels, **numbers})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """All whole rows with these labels. A last line that a kill cut short is left out.

        Raises:
            ValueError: a line in the middle is not JSON.
        """
        return [row for row in self._all() if self._mine(row)]

    def rewind(self, step: int, rows: int | None = None) -> None:
        """Drops the rows beyond a step, and a last line that a kill cut short. Atomic.

        Args:
            step: the last step to keep.
            rows: keep at most so many rows from the start, for a caller who knows how many there
                were (one step may have a training row and a validation row).
        """
        if not self.path.is_file():
            return
        kept, mine = [], 0
        for row in self._all():
            if self._mine(row):
                if row["step"] > step or mine == rows:
                    continue
                mine += 1
            kept.append(json.dumps(row) + "\n")
        content = "".join(kept).encode("utf-8")
        if content != self.path.read_bytes():
            write_bytes(self.path, content)

    def close(self) -> None:
        """Does nothing: every row is on the disk already."""

    def _all(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        # What follows the last newline was never finished, even if it happens to parse.
        return [self._parse(number, line) for number, line in enumerate(lines[:-1], 1)]

    def _mine(self, row: dict[str, Any]) -> bool:
        return all(row.get(name) == value for name, value in self.labels.items())

    def _parse(self, number: int, line: str) -> dict[str, Any]:
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("no JSON object")
            return row
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"line {number} of {self.path} is not JSON ({error}). The file is damaged; delete "
                "it to go on without its history."
            ) from None


class TensorBoard:
    """Writes scalars for TensorBoard through `tensorboardX` (extra `tensorboard`)."""

    def __init__(self, folder: Path | str) -> None:
        """
        Args:
            folder: where the event files go.

        Raises:
            ValueError: tensorboardX is not installed.
        """
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise ValueError(
                "TensorBoard needs tensorboardX, which is not installed: pip install "
                "'jaxrec[tensorboard]'."
            ) from None
        self._make = SummaryWriter
        self._folder = str(folder)
        self._writer = SummaryWriter(self._folder)

    def write(self, step: int, row: dict[str, Any]) -> None:
        """Adds one scalar per name."""
        for name, value in row.items():
            self._writer.add_scalar(name, float(value), int(step))

    def rewind(self, step: int, rows: int | None = None) -> None:
        """Starts a new event file that hides the points beyond a step."""
        self._writer.close()
        # The name of an event file has only its second in it; the suffix keeps the old one.
        suffix = f".from-{int(step) + 1}"
        self._writer = self._make(self._folder, purge_step=int(step) + 1, filename_suffix=suffix)

    def close(self) -> None:
        """Flushes the event file."""
        self._writer.close()


class WandB:
    """Sends rows to Weights & Biases (extra `wandb`)."""

    def __init__(self, project: str, name: str, **options: Any) -> None:
        """
        Args:
            project: the project there.
            name: the run's name, and its identity when it resumes.
            options: passed on to `wandb.init`.

        Raises:
            ValueError: wandb is not installed.
        """
        try:
            import wandb  # ty: ignore[import-not-found]
        except ImportError:
            raise ValueError(
                "Weights & Biases needs wandb, which is not installed: pip install 'jaxrec[wandb]'."
            ) from None
        settings = {"project": project, "name": name, "id": name, "resume": "allow", **options}
        self._run = wandb.init(**settings)

    def write(self, step: int, row: dict[str, Any]) -> None:
        """Logs one row."""
        self._run.log({name: float(value) for name, value in row.items()}, step=int(step))

    def rewind(self, step: int, rows: int | None = None) -> None:
        """Does nothing: the service itself refuses steps that it has seen."""

    def close(self) -> None:
        """Finishes the run there."""
        self._run.finish()


class Several:
    """Writes every row to several writers, in their order."""

    def __init__(self, writers: Sequence[MetricWriter]) -> None:
        """
        Args:
            writers: where the rows go.
        """
        self.writers = tuple(writers)

    def write(self, step: int, row: dict[str, Any]) -> None:
        """Writes to each."""
        for writer in self.writers:
            writer.write(step, row)

    def rewind(self, step: int, rows: int | None = None) -> None:
        """Rewinds each."""
        for writer in self.writers:
            writer.rewind(step, rows)

    def close(self) -> None:
        """Closes each."""
        for writer in self.writers:
            writer.close()


class Progress:
    """Progress of work that may take a while: rate, time left, and named numbers, on stderr.

    On a terminal it is a bar. Elsewhere (a log file, a pod) it is one line after two seconds, one
    about every ten seconds from then on, and one at the end; work that is over before says nothing.
    `JAXREC_PROGRESS=0` in the environment silences it.

    Used as a context manager:

        with Progress(len(rows), "encode", unit="rows") as progress:
            for row in rows:
                ...
                progress.update(1, loss=loss)
    """

    first_line = 2.0
    """Seconds before the first line where there is no terminal."""
    later_lines = 10.0
    """Seconds between lines from then on."""

    def __init__(
        self,
        total: int | None,
        description: str = "",
        *,
        unit: str = "it",
        initial: int = 0,
        stream: Any = None,
    ) -> None:
        """
        Args:
            total: amount of work; None when unknown.
            description: what is going on, in a word or two.
            unit: what is counted.
            initial: work done by an earlier run; it does not count for the rate.
            stream: a text stream to print to; stderr by default.
        """
        self._total, self._description, self._unit = total, description, unit
        self._initial = self._done = initial
        self._fields: dict[str, Any] = {}
        self._stream = stream or sys.stderr
        self._start = time.monotonic()
        self._next_line = self._start + self.first_line
        self._printed = False
        self._quiet = os.environ.get("JAXREC_PROGRESS", "1") == "0"
        self._bar = None
        if not self._quiet and _is_terminal(self._stream):
            self._bar = _Bar(
                total=total,
                desc=description,
                unit=unit,
                initial=initial,
                file=self._stream,
                dynamic_ncols=True,
            )

    def update(self, amount: int = 1, **fields: Any) -> None:
        """Reports work done.

        Args:
            amount: how much since the last call; 0 only changes the fields.
            fields: numbers or words to show from now on; floats are shortened.
        """
        self._done += amount
        self._fields.update({name: _short(value) for name, value in fields.items()})
        if self._bar is not None:
            if fields:
                self._bar.set_postfix(self._fields, refresh=False)
            self._bar.update(amount)
        elif not self._quiet and time.monotonic() >= self._next_line:
            self._line()

    def close(self) -> None:
        """Ends the bar, or prints the last line if any was printed before."""
        if self._bar is not None:
            self._bar.close()
        elif self._printed:
            self._line()
        self._quiet, self._bar, self._printed = True, None, False

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _line(self) -> None:
        now = time.monotonic()
        text = tqdm.format_meter(
            n=self._done,
            total=self._total,
            elapsed=now - self._start,
            prefix=self._description,
            unit=self._unit,
            postfix=", ".join(f"{name}={value}" for name, value in self._fields.items()),
            initial=self._initial,
            ncols=0,
        )
        print(text, file=self._stream, flush=True)
        self._printed = True
        self._next_line = now + self.later_lines


def track[Item](
    items: Iterable[Item], description: str = "", *, total: int | None = None, unit: str = "it"
) -> Iterator[Item]:
    """Yields the items and shows progress over them.

    Args:
        items: what to go through.
        description: what is going on.
        total: how many there are; asked of `items` when it has a length.
        unit: what is counted.

    >>> list(track([1, 2, 3]))
    [1, 2, 3]
    """
    if total is None:
        size = getattr(items, "__len__", None)
        total = size() if size is not None else None
    with Progress(total, description, unit=unit) as progress:
        for item in items:
            yield item
            progress.update()


class _Bar(tqdm):
    # No thread that watches slow bars: updates come often enough, and threads outlive tests.
    monitor_interval = 0


def _is_terminal(stream: Any) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


def _plain(value: Any) -> float | int | None:
    if isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
