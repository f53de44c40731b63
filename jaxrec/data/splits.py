"""Splits: which events train, and which are held out as cases.

A *case* is one flat position: the event there is the target, and everything of the same user
before it is the history. Training events of user `u` are the flat positions
`offsets[u] .. train_end[u]-1`; a case never lies inside them.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Int32, Int64

from jaxrec.data.dataset import DataError
from jaxrec.data.histories import Histories

_ROUNDING = 1e-9
"""Keeps floor(10 * 0.1) at 1 where the product is 0.99999..."""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """What trains and what is held out, as flat positions of the histories."""

    train_end: Int64[np.ndarray, " u"]
    """One past the last training position of each user."""
    validation: Int64[np.ndarray, " c"]
    """Positions of the validation cases, rising."""
    test: Int64[np.ndarray, " d"]
    """Positions of the test cases, rising."""
    name: str
    """Name with the parameters, for the protocol."""


@dataclasses.dataclass(frozen=True)
class LeaveOneOut:
    """Last event of each user: test; the one before: validation; the rest trains.

    Users with fewer than three events have no case, and train with all they have.
    """

    def __call__(self, histories: Histories) -> Split:
        """Splits the histories."""
        ends = histories.offsets[1:]
        has_cases = histories.lengths >= 3
        last = ends[has_cases] - 1
        return Split(np.where(has_cases, ends - 2, ends), last - 1, last, "leave-one-out")


@dataclasses.dataclass(frozen=True)
class TemporalSplit:
    """Two cuts of global time: what lies before the first trains, between them validates, after
    the second tests. No training event is as late as any case.

    Events at the very time of a cut belong to the later part. Every event after a cut is a case,
    with all earlier events of its user as history, be they training events or not; users without
    a training event have cases too.

    Raises:
        ValueError: a fraction outside 0..1, or nothing left to train.
    """

    validation_fraction: float = 0.1
    """Share of events between the cuts."""
    test_fraction: float = 0.1
    """Share of events after the second cut."""

    def __post_init__(self) -> None:
        _check_fractions("TemporalSplit", self.validation_fraction, self.test_fraction)

    def __call__(self, histories: Histories) -> Split:
        """Splits the histories.

        Raises:
            DataError: the log has no clock, or all its events have one time.
        """
        if histories.time_unit != "s":
            raise DataError(
                "a temporal split needs times, and this log has only an order. Use LeaveOneOut() "
                "or UserRatio()."
            )
        test_cut = _time_cut(histories.time, self.test_fraction)
        validation_cut = _time_cut(histories.time, self.validation_fraction + self.test_fraction)
        trains = histories.time < validation_cut
        if not trains.any():
            raise DataError(
                f"no event is earlier than the cut at time {validation_cut}: too many events "
                "share the earliest time. Use another split."
            )
        rank = np.concatenate([np.zeros(1, np.int64), np.cumsum(trains, dtype=np.int64)])
        train_end = histories.offsets[:-1] + np.diff(rank[histories.offsets])
        tests = histories.time >= test_cut
        return Split(
            train_end,
            np.flatnonzero(~trains & ~tests),
            np.flatnonzero(tests),
            f"temporal({self.validation_fraction}, {self.test_fraction})",
        )


@dataclasses.dataclass(frozen=True)
class UserRatio:
    """The last share of each user's events is held out: first validation, then test.

    Shares are rounded down, but a user with three events or more has at least one case of each
    kind that is asked for, and at least one training event. Others only train.

    Raises:
        ValueError: a fraction outside 0..1, or nothing left to train.
    """

    validation: float = 0.1
    """Share of a user's events that validate."""
    test: float = 0.1
    """Share of a user's events that test."""

    def __post_init__(self) -> None:
        _check_fractions("UserRatio", self.validation, self.test)

    def __call__(self, histories: Histories) -> Split:
        """Splits the histories."""
        validation = _share(histories.lengths, self.validation)
        # A share rounded up to one event must not take the last training event.
        test = np.minimum(
            _share(histories.lengths, self.test),
            np.maximum(histories.lengths - 1 - validation, 0),
        )
        ends = histories.offsets[1:]
        train_end = ends - validation - test
        return Split(
            train_end,
            ranges(train_end, validation),
            ranges(ends - test, test),
            f"user-ratio({self.validation}, {self.test})",
        )


def case_users(histories: Histories, positions: Int64[np.ndarray, " c"]) -> Int32[np.ndarray, " c"]:
    """The user of each case."""
    return histories.user_of(positions)


def training_counts(histories: Histories, split: Split) -> Int64[np.ndarray, " u"]:
    """Number of training events of each user."""
    return split.train_end - histories.offsets[:-1]


def training_positions(histories: Histories, split: Split) -> Int64[np.ndarray, " e"]:
    """Flat positions of all training events, rising."""
    return ranges(histories.offsets[:-1], training_counts(histories, split))


def training_items(histories: Histories, split: Split) -> Bool[np.ndarray, " n"]:
    """Which catalogue rows occur in training; all others are cold."""
    seen = np.zeros(histories.num_items, bool)
    seen[histories.item[training_positions(histories, split)]] = True
    return seen


def ranges(
    starts: Int64[np.ndarray, " u"], counts: Int64[np.ndarray, " u"]
) -> Int64[np.ndarray, " e"]:
    """Runs of consecutive numbers, one after the other.

    >>> ranges(np.array([10, 20]), np.array([2, 3]))
    array([10, 11, 20, 21, 22])
    """
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - counts), counts)


def _share(lengths: Int64[np.ndarray, " u"], fraction: float) -> Int64[np.ndarray, " u"]:
    if fraction == 0:
        return np.zeros_like(lengths)
    share = np.maximum(np.floor(lengths * fraction + _ROUNDING).astype(np.int64), 1)
    return np.where(lengths >= 3, share, 0)


def _time_cut(time: Int64[np.ndarray, " e"], fraction: float) -> int:
    """The time from which on this share of events lies; past the end where the share is 0."""
    held_out = int(np.floor(len(time) * fraction + _ROUNDING))
    if held_out == 0:
        return int(time.max()) + 1
    place = len(time) - held_out
    return int(np.partition(time, place)[place])


def _check_fractions(name: str, validation: float, test: float) -> None:
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise ValueError(
            f"{name}: validation {validation} and test {test} are shares of the events; both lie "
            "in 0..1 and together they leave a rest to train."
        )
