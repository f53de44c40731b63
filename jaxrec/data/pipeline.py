"""Endless training batches in a reproducible order whose position can be saved and restored.

A Grain `MapDataset` gives the numbers of windows (or of training positions) in an endless shuffled
order; each host has its own slice, taken before the shuffle. A Grain `IterDataset` draws batches
from that order by vectorised numpy code. Where a batch begins in the order is the whole state.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable
from typing import Any, ClassVar

import grain
import numpy as np

from jaxrec.data.cases import Cases, case_batches, history_batches
from jaxrec.data.dataset import DataError
from jaxrec.data.histories import Histories
from jaxrec.data.order import BLOCK, ShuffledBlocks, block_of
from jaxrec.data.packing import (
    Windows,
    flat_events,
    lay_events,
    pack_prefix,
    to_the_right,
    training_windows,
)
from jaxrec.data.splits import Split, training_counts
from jaxrec.types import Events

__all__ = [
    "BatchStream",
    "Cases",
    "TargetCentric",
    "UserCentric",
    "case_batches",
    "history_batches",
]

_MAX_SEED = 2**32 - 1
_SAMPLED_EVENTS = 65_536
"""Events whose items enter the fingerprint; reading them all would page in a mapped file."""

Take = Callable[[int, int], np.ndarray]
"""(first, count) -> the numbers at those places of the order."""
Draw = Callable[[Take, int], tuple[Any, int]]
"""(take, first) -> (the batch that begins at that place, how many numbers it used)."""


class BatchStream:
    """An endless iterator of numpy batches, `Events` or `TextBatch`; its position is a small JSON
    value.

    After `set_state(state)` it continues exactly where the stream that gave the state stood.
    """

    def __init__(self, batches: grain.IterDataset, fingerprint: dict[str, Any], numbers: int):
        """Starts at the beginning.

        Args:
            batches: a dataset whose iterator's state is `{"next": int}`.
            fingerprint: what the order of the data depends on, JSON values.
            numbers: windows or positions of one epoch on this host.
        """
        self.fingerprint = fingerprint
        """What the order of the data depends on; two streams of one fingerprint are equal."""
        self.numbers_per_epoch = numbers
        """Windows (or target positions) that this host draws in an epoch."""
        self._iterator = iter(batches)

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> Any:
        return next(self._iterator)

    @property
    def epoch(self) -> float:
        """Epochs drawn so far, with their fraction."""
        return self._iterator.get_state()["next"] / self.numbers_per_epoch

    def get_state(self) -> dict[str, Any]:
        """The position of the next batch, with the fingerprint. JSON-able."""
        return {**self._iterator.get_state(), "fingerprint": dict(self.fingerprint)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a saved position.

        Raises:
            DataError: the state is of other data, another batch shape, seed or host.
        """
        given = state.get("fingerprint", {})
        differing = sorted(
            key
            for key in {*given, *self.fingerprint}
            if given.get(key) != self.fingerprint.get(key)
        )
        if differing or not isinstance(state.get("next"), int):
            said = ", ".join(
                f"{key} was {given.get(key)!r} and is {self.fingerprint.get(key)!r}"
                for key in differing
            )
            raise DataError(
                f"this data position was saved by another pipeline: {said or 'no position in it'}. "
                "Continue with the settings of the run, or start a new run."
            )
        self._iterator.set_state({"next": state["next"]})


@dataclasses.dataclass(frozen=True)
class UserCentric:
    """Packed histories: one causal pass supervises every event.

    Histories longer than a row are cut into windows, each a segment of its own with positions
    from 0. Several windows share a row, told apart by `segment`.

    Raises:
        ValueError: a size that is not positive, or a context as long as the row.
    """

    length: int = 64
    """Events of a row."""
    rows: int = 32
    """Rows of the batch over all hosts; each host makes its equal part."""
    context: int = 0
    """Events before a later window of a long history that it reads again, with weight 0."""

    def __post_init__(self) -> None:
        _check_sizes("UserCentric", self.length, self.rows)
        if not 0 <= self.context < self.length:
            raise ValueError(
                f"UserCentric: context={self.context} must be in 0..{self.length - 1}, shorter "
                "than length, or a window would have no target of its own."
            )

    @property
    def batch_shape(self) -> tuple[int, int]:
        """Rows and events of a batch over all hosts."""
        return self.rows, self.length

    def __call__(
        self, histories: Histories, split: Split, *, seed: int, host: int = 0, hosts: int = 1
    ) -> BatchStream:
        """The stream of batches of one host, `Events` of [rows / hosts, length].

        Raises:
            DataError: fewer windows than hosts, or a log that spans more than 68 years.
            ValueError: rows that do not divide over the hosts, an impossible seed or host.
        """
        flat = flat_events(histories)
        windows = training_windows(histories, split, length=self.length, context=self.context)
        rows = rows_of_host(self.rows, seed, host, hosts)

        def draw(take: Take, first: int) -> tuple[Events, int]:
            drawn, sizes = np.zeros(0, np.int64), np.zeros(0, np.int64)
            while sizes.sum() < rows * self.length:
                more = take(first + len(drawn), 4 * rows)
                drawn = np.concatenate([drawn, more])
                sizes = windows.size[drawn]
            places = pack_prefix(sizes, rows=rows, length=self.length)
            drawn = drawn[: len(places.row)]
            picked = windows.take(drawn)
            return lay_events(flat, picked, places, rows=rows, width=self.length), len(drawn)

        fingerprint = fingerprint_of(self, histories, split, seed, host, hosts)
        return stream(draw, len(windows.size), fingerprint)


@dataclasses.dataclass(frozen=True)
class TargetCentric:
    """Sliding windows: each training event is the target of one row, after its history.

    A row holds up to `length` events of history and then the target, the last event of the row's
    only segment and the only one with weight 1. Rows are right-aligned: the target is always the
    last column, and padding stands in front.

    Without buckets every batch is `length + 1` wide. With them, batches are composed of windows of
    similar length: the windows of the next `lookahead` batches are sorted into buckets and cut into
    batches again, which then come in random order, each as wide as the smallest bucket that holds
    its histories. Every width is a program of its own to compile.

    Raises:
        ValueError: a size that is not positive, or a bucket that is not shorter than `length`.
    """

    length: int = 20
    """Events of history before the target, the newest ones."""
    rows: int = 256
    """Rows of the batch over all hosts; each host makes its equal part."""
    min_history: int = 0
    """Training events with fewer events before them are no targets (TIGER: 1)."""
    buckets: tuple[int, ...] = ()
    """Lengths of history of the narrower batches, for example (4, 8, 12); on one host only."""
    lookahead: int = 16
    """Batches whose windows are sorted together; read only with buckets."""

    targets_last: ClassVar[bool] = True
    """Every row has one target, and it is the last column."""

    def __post_init__(self) -> None:
        _check_sizes("TargetCentric", self.length, self.rows)
        if self.min_history < 0:
            raise ValueError(f"TargetCentric: min_history={self.min_history} must be 0 or more.")
        if any(not 1 <= bucket < self.length for bucket in self.buckets):
            raise ValueError(
                f"TargetCentric: buckets={self.buckets} must lie in 1..{self.length - 1}; longer "
                f"histories are in batches of length={self.length} anyway."
            )
        if self.lookahead < 1:
            raise ValueError(f"TargetCentric: lookahead={self.lookahead} must be at least 1.")

    @property
    def batch_shape(self) -> tuple[int, int]:
        """Rows and events of a batch over all hosts; the widest with buckets."""
        return self.rows, self.length + 1

    def __call__(
        self, histories: Histories, split: Split, *, seed: int, host: int = 0, hosts: int = 1
    ) -> BatchStream:
        """The stream of batches of one host, `Events` of [rows / hosts, length + 1] or narrower.

        Raises:
            DataError: fewer targets than hosts, or a log that spans more than 68 years.
            ValueError: rows that do not divide over the hosts, an impossible seed or host, or
                buckets on several hosts.
        """
        if self.buckets and hosts > 1:
            raise ValueError(
                f"TargetCentric: buckets={self.buckets} on {hosts} hosts would give every host a "
                "width of its own, and hosts run one program together. Set buckets=()."
            )
        flat = flat_events(histories)
        rows = rows_of_host(self.rows, seed, host, hosts)
        counts = np.maximum(training_counts(histories, split) - self.min_history, 0)
        ends = np.cumsum(counts)
        targets = int(ends[-1]) if len(ends) else 0

        def windows_of(drawn: np.ndarray) -> Windows:
            user = np.searchsorted(ends, drawn, side="right")
            start = histories.offsets[user]
            target = start + self.min_history + drawn - (ends[user] - counts[user])
            begin = np.maximum(start, target - self.length)
            return Windows(begin, target - begin + 1, target - begin, user)

        def draw(take: Take, first: int) -> tuple[Events, int]:
            if self.buckets:
                windows = self._similar(windows_of, take, first, targets, seed)
            else:
                windows = windows_of(take(first, rows))
            width = 1 + self._history_width(windows)
            places = to_the_right(windows.size, width)
            return lay_events(flat, windows, places, rows=rows, width=width), rows

        fingerprint = fingerprint_of(self, histories, split, seed, host, hosts)
        return stream(draw, targets, fingerprint)

    def _history_width(self, windows: Windows) -> int:
        if not self.buckets:
            return self.length
        widths = np.array(sorted({*self.buckets, self.length}))
        return int(widths[np.searchsorted(widths, windows.context.max(initial=0))])

    def _similar(
        self,
        windows_of: Callable[[np.ndarray], Windows],
        take: Take,
        first: int,
        targets: int,
        seed: int,
    ) -> Windows:
        """The windows of the batch that begins at `first`: which ones follows from that place."""
        block, batches = block_of(first // self.rows, targets, self.rows, self.lookahead)
        windows = windows_of(take(block * self.rows, batches * self.rows))
        # Sorted by bucket and not by length, so that a batch still mixes the lengths it can hold.
        bucket = np.searchsorted(np.array(sorted(self.buckets)), windows.context)
        order = np.argsort(bucket, kind="stable").reshape(batches, self.rows)
        turn = np.random.default_rng((seed, block)).permutation(batches)
        chosen = order[turn[first // self.rows - block]]
        return windows.take(chosen)


class _Batches(grain.IterDataset):
    """Batches drawn from an endless order of numbers."""

    def __init__(self, order: ShuffledBlocks, draw: Draw):
        super().__init__(order)
        self._order = order
        self._draw = draw

    def __iter__(self) -> _BatchIterator:
        return _BatchIterator(self._order, self._draw)


class _BatchIterator(grain.DatasetIterator):
    def __init__(self, order: ShuffledBlocks, draw: Draw):
        super().__init__()
        self._order = order
        self._draw = draw
        self._next = 0
        # Numbers read ahead; they follow from the position alone, so they are no state.
        self._ahead = np.zeros(0, np.int64)
        self._ahead_from = 0

    def __next__(self) -> Any:
        batch, used = self._draw(self._take, self._next)
        self._next += used
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"next": self._next}

    def set_state(self, state: dict[str, Any]) -> None:
        self._next = state["next"]
        self._ahead, self._ahead_from = np.zeros(0, np.int64), self._next

    def _take(self, first: int, count: int) -> np.ndarray:
        end = self._ahead_from + len(self._ahead)
        # From the batch's own place on, for it may ask for more, or for less than it used; a batch
        # that is composed with others asks for places before its own.
        begin = min(first, self._next)
        if not self._ahead_from <= begin <= first + count <= end:
            self._ahead = self._order.take(begin, first + count - begin + BLOCK)
            self._ahead_from = begin
        skipped = first - self._ahead_from
        return self._ahead[skipped : skipped + count]


def stream(draw: Draw, numbers: int, fingerprint: dict[str, Any]) -> BatchStream:
    """The batches that `draw` makes of an endless shuffled order of so many numbers.

    Raises:
        DataError: fewer numbers than hosts.
    """
    host, hosts = fingerprint["host"], fingerprint["hosts"]
    if numbers < hosts:
        raise DataError(
            f"{numbers} training window(s) cannot be shared by {hosts} host(s). Check the split, "
            "or use fewer hosts."
        )
    order = ShuffledBlocks(numbers, seed=fingerprint["seed"], host=host, hosts=hosts)
    return BatchStream(_Batches(order, draw), fingerprint, order.per_epoch)


def fingerprint_of(
    component: Any,
    histories: Histories,
    split: Split,
    seed: int,
    host: int,
    hosts: int,
) -> dict[str, Any]:
    """What the order and content of batches depend on, as JSON values."""
    step = max(histories.num_events // _SAMPLED_EVENTS, 1)
    checksum = zlib.crc32(np.ascontiguousarray(split.train_end))
    checksum = zlib.crc32(np.ascontiguousarray(histories.offsets), checksum)
    checksum = zlib.crc32(np.ascontiguousarray(histories.item[::step]), checksum)
    return {
        "pipeline": type(component).__name__,
        **json.loads(json.dumps(dataclasses.asdict(component))),  # as a checkpoint gives it back
        "seed": seed,
        "host": host,
        "hosts": hosts,
        "split": split.name,
        "events": int(training_counts(histories, split).sum()),
        "checksum": f"{checksum:08x}",
    }


def rows_of_host(rows: int, seed: int, host: int, hosts: int) -> int:
    """Rows of one host's part of a batch.

    Raises:
        ValueError: an impossible seed or host, or rows that do not divide.
    """
    if not 0 <= host < hosts:
        raise ValueError(f"host {host} is not one of the {hosts} host(s), numbered from 0.")
    if not 0 <= seed <= _MAX_SEED:
        raise ValueError(f"seed {seed} must be in 0..{_MAX_SEED}.")
    if rows % hosts:
        raise ValueError(
            f"{rows} rows do not divide over {hosts} hosts; use a multiple of {hosts} rows."
        )
    return rows // hosts


def _check_sizes(name: str, length: int, rows: int) -> None:
    if length < 1 or rows < 1:
        raise ValueError(f"{name}: length={length} and rows={rows} must both be positive.")
