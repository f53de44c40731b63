"""Cases: what is asked of a recommender, and what it may look at.

A *case* is one flat position of an event log: the event there is the target, the events of the
same user before it are the history. Histories stay ranges of the flat log, so a million cases cost
two numbers each.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int


@dataclasses.dataclass(frozen=True, eq=False)
class CaseHistories:
    """The history of every case: events `start[c] .. end[c]` (end excluded) of the flat log.

    Raises:
        ValueError: a range that is not inside the log.
    """

    start: Int[np.ndarray, "c"]
    end: Int[np.ndarray, "c"]
    item: Int[np.ndarray, "e"]
    """Catalogue row of every event of the log, users one after another, oldest first."""

    def __post_init__(self) -> None:
        wrong = (self.start < 0) | (self.end < self.start) | (self.end > len(self.item))
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"History {first} is events {self.start[first]} to {self.end[first]}, but the log "
                f"has {len(self.item)} events; give 0 <= start <= end <= {len(self.item)}."
            )

    @property
    def num_cases(self) -> int:
        """Number of cases."""
        return len(self.start)

    def rows(self, first: int, last: int) -> CaseHistories:
        """Cases `first .. last` (last excluded); the log is shared, not copied."""
        return CaseHistories(self.start[first:last], self.end[first:last], self.item)

    def last_items(self, back: int = 0) -> Int[np.ndarray, "c"]:
        """Most recent item of each history, or the one `back` events before it; -1 if too short."""
        full = self.end - self.start > back
        last = np.full(self.num_cases, -1, np.int64)
        last[full] = self.item[self.end[full] - 1 - back]
        return last

    def pairs(self) -> tuple[Int[np.ndarray, "p"], Int[np.ndarray, "p"]]:
        """Every event of every history as a pair (case, item), repeats included."""
        case, position = expand_ranges(self.start, self.end)
        return case, self.item[position].astype(np.int64)


def case_histories(
    offsets: Int[np.ndarray, "offsets"], item: Int[np.ndarray, "e"], positions: Int[np.ndarray, "c"]
) -> CaseHistories:
    """Histories of the cases at flat `positions`: everything of the same user before them.

    Args:
        offsets: events of user u are flat positions `offsets[u] .. offsets[u + 1]`.
        item: catalogue row of every event.
        positions: one flat position a case.

    Raises:
        ValueError: a position outside the log.

    >>> log = np.array([7, 8, 9, 4, 5])
    >>> histories = case_histories(np.array([0, 3, 5]), log, np.array([2, 4]))
    >>> histories.start.tolist(), histories.end.tolist()
    ([0, 3], [2, 4])
    """
    if len(positions) and not 0 <= positions.min() <= positions.max() < len(item):
        raise ValueError(
            f"Cases lie at positions {positions.min()} to {positions.max()}, but the log has "
            f"{len(item)} events; positions count events of the flat log from 0."
        )
    user = np.searchsorted(offsets, positions, side="right") - 1
    return CaseHistories(offsets[user], positions, item)


def expand_ranges(
    start: Int[np.ndarray, "c"], end: Int[np.ndarray, "c"]
) -> tuple[Int[np.ndarray, "p"], Int[np.ndarray, "p"]]:
    """Writes ranges out: for every position of every range, (index of the range, position).

    >>> row, position = expand_ranges(np.array([4, 9]), np.array([6, 10]))
    >>> row.tolist(), position.tolist()
    ([0, 0, 1], [4, 5, 9])
    """
    length = (end - start).astype(np.int64)
    row = np.repeat(np.arange(len(length)), length)
    before = np.cumsum(length) - length
    return row, np.arange(len(row)) - np.repeat(before - start, length)
