"""Batches of histories to be answered: evaluation cases, or histories given by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int32, Int64

from jaxrec.data.dataset import DataError
from jaxrec.data.histories import Histories
from jaxrec.data.packing import FlatEvents, Windows, flat_events, lay_events, one_a_row
from jaxrec.types import Events


@dataclasses.dataclass(frozen=True, eq=False)
class Cases:
    """A batch of histories, one a row, with what they are asked for."""

    events: Events
    """The histories, [rows, width]; an empty history is a row of padding. All weights are 0."""
    target: Int32[np.ndarray, " b"]
    """Catalogue row that came next; -1 where nobody knows."""
    user: Int32[np.ndarray, " b"]
    """Index of the user; -1 where there is none."""
    live: Bool[np.ndarray, " b"]
    """False in the rows that only fill the last batch."""
    case: Int64[np.ndarray, " b"]
    """Index into what was asked for, to restore its order; -1 where not live."""


def case_batches(
    histories: Histories,
    positions: Int64[np.ndarray, " c"],
    *,
    length: int,
    rows: int,
    buckets: Sequence[int] = (),
) -> Iterator[Cases]:
    """Batches of cases: the events before each position, and the item at it as the target.

    Args:
        histories: the histories.
        positions: flat position of each case.
        length: events of a history at most, the newest ones.
        rows: rows of a batch; the last batch is filled up with rows that are not live.
        buckets: shorter widths for shorter histories, for example (8, 16, 32). Batches then come
            by width, and `Cases.case` tells which case a row is.

    Raises:
        ValueError: a size that is not positive, or a position outside the log.
    """
    positions = np.asarray(positions, np.int64)
    if len(positions) and (positions.min() < 0 or positions.max() >= histories.num_events):
        raise ValueError(
            f"cases at positions {positions.min()}..{positions.max()}, but the log has "
            f"{histories.num_events} events, numbered from 0."
        )
    user = histories.user_of(positions)
    begin = np.maximum(histories.offsets[user], positions - length)
    target = histories.item[positions]
    widths = _widths(length, rows, buckets)
    return _batches(
        flat_events(histories), begin, positions - begin, target, user, rows=rows, widths=widths
    )


def history_batches(
    items: Sequence[np.ndarray | Sequence[int]],
    *,
    num_items: int,
    length: int,
    rows: int,
    buckets: Sequence[int] = (),
    times: Sequence[np.ndarray | Sequence[int]] | None = None,
    time_origin: int = 0,
    actions: Sequence[np.ndarray | Sequence[int]] | None = None,
) -> Iterator[Cases]:
    """Batches of histories given by hand, oldest event first; an empty one is welcome.

    Args:
        items: catalogue rows of each history.
        num_items: rows of the catalogue.
        length: events of a history at most, the newest ones.
        rows: rows of a batch.
        buckets: as in `case_batches`.
        times: seconds of each event, aligned with `items`; the origin where not given.
        time_origin: `Histories.time_origin` of the training data.
        actions: kind of each event, aligned with `items`; 0 where not given.

    Raises:
        ValueError: an item that is not in the catalogue, or times and actions that do not align.
    """
    sizes = np.array([len(each) for each in items], np.int64)
    item = _concatenate("items", items, sizes)
    if len(item) and (item.min() < 0 or item.max() >= num_items):
        bad = item[(item < 0) | (item >= num_items)][0]
        raise ValueError(
            f"item {bad} is not a row of the catalogue, 0..{num_items - 1}. Leave unknown items "
            "out of the history (`Histories.find_items` gives -1 for them)."
        )
    time = _concatenate("times", times, sizes, time_origin)
    if len(time) and np.abs(time - time_origin).max() > np.iinfo(np.int32).max:
        raise ValueError(
            f"a time lies more than 68 years from time_origin={time_origin}; give Unix seconds, "
            "and the time_origin of the training data."
        )
    flat = FlatEvents(item, time, _concatenate("actions", actions, sizes, 0), time_origin)
    begin = np.cumsum(sizes) - np.minimum(sizes, length)
    nobody = np.full(len(sizes), -1, np.int32)
    widths = _widths(length, rows, buckets)
    size = np.minimum(sizes, length)
    return _batches(flat, begin, size, nobody, nobody, rows=rows, widths=widths)


def _batches(
    flat: FlatEvents,
    begin: np.ndarray,
    size: np.ndarray,
    target: np.ndarray,
    user: np.ndarray,
    *,
    rows: int,
    widths: np.ndarray,
) -> Iterator[Cases]:
    bucket = np.searchsorted(widths, size)
    for index, width in enumerate(widths.tolist()):
        members = np.flatnonzero(bucket == index)
        for first in range(0, len(members), rows):
            case = members[first : first + rows]
            windows = Windows(begin[case], size[case], size[case], user[case])
            events = lay_events(flat, windows, one_a_row(len(case)), rows=rows, width=width)
            yield Cases(
                events=events,
                target=_fill(target[case], rows, -1, np.int32),
                user=_fill(user[case], rows, -1, np.int32),
                live=np.arange(rows) < len(case),
                case=_fill(case, rows, -1, np.int64),
            )


def _widths(length: int, rows: int, buckets: Sequence[int]) -> np.ndarray:
    if length < 1 or rows < 1 or any(width < 1 for width in buckets):
        raise ValueError(
            f"length={length}, rows={rows} and buckets={tuple(buckets)} must all be positive."
        )
    return np.array(sorted({width for width in buckets if width < length} | {length}))


def _fill(values: np.ndarray, rows: int, filler: int, dtype: type[np.generic]) -> np.ndarray:
    filled = np.full(rows, filler, dtype)
    filled[: len(values)] = values
    return filled


def _concatenate(
    name: str,
    parts: Sequence[np.ndarray | Sequence[int]] | None,
    sizes: np.ndarray,
    default: int = 0,
) -> np.ndarray:
    if parts is None:
        return np.full(int(sizes.sum()), default, np.int64)
    if [len(part) for part in parts] != sizes.tolist():
        raise DataError(f"{name} must have one value for each event of each history.")
    return np.concatenate([np.zeros(0, np.int64), *(np.asarray(part, np.int64) for part in parts)])
