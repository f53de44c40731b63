"""Feedback as labelled candidates: what a reward model learns from (METHODS B23).

A row is a stretch of one history; its newest events are the questions. A candidate stands at the
*place* of such an event and sees the events before it, so it never sees its own answer. `Graded`
asks which feedback the event itself got, `Implicit` tells it from drawn items where a log has no
grades.

Training events only: neither a row, nor a label, nor a drawn item knows of a held-out event.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, Int64

from jaxrec.alignment.questions import (
    Label,
    Labelled,
    endless,
    lay_questions,
    once,
    question_windows,
)
from jaxrec.data.errors import DataError
from jaxrec.data.histories import Histories
from jaxrec.data.packing import Windows, flat_events
from jaxrec.data.pipeline import BatchStream, fingerprint_of
from jaxrec.data.splits import Split, training_counts, training_positions


@runtime_checkable
class Feedback(Protocol):
    """How events become labelled candidates; a frozen dataclass."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the labels, in their order."""
        ...

    def __call__(
        self, histories: Histories, split: Split, *, seed: int, host: int = 0, hosts: int = 1
    ) -> BatchStream:
        """Endless `Labelled` batches of one host."""
        ...

    def once(
        self, histories: Histories, split: Split, *, seed: int, most: int = 0
    ) -> Iterator[Labelled]:
        """Every window once, or as many as `most` drawn ones; the last batch is filled up."""
        ...


@dataclasses.dataclass(frozen=True)
class Graded:
    """Candidates are the history's own events; a label says that the feedback reached a grade.

        label_k = action >= grade_k

    on the ladder `Histories.actions`, weakest first, as in `prepare(dataset, events=grades)` with
    the grades of a canonical data set. What was shown and left alone has to be among the events, or
    there is nothing to tell the weakest grade from.

    Raises:
        ValueError: a size that is not positive, candidates that do not fit the row, no or equal
            tasks.
    """

    tasks: tuple[str, ...] = ("long_view", "like", "follow")
    """Grades that are told apart, each a label."""
    length: int = 64
    """Events of a row: candidates and, in front of them, what they see."""
    candidates: int = 16
    """Consecutive events of a row that are asked about, its newest ones."""
    rows: int = 64
    """Rows of the batch over all hosts; each host makes its equal part."""
    min_history: int = 1
    """Events with fewer before them are not asked about."""
    since: int | None = None
    """Time (as in the log) from which on events are asked about; older ones are only seen. For
    logs whose earlier events were put together from lists, which tell grades by their order."""

    def __post_init__(self) -> None:
        _check("Graded", self.length, self.candidates, self.rows, self.min_history)
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"Graded: tasks={self.tasks} needs at least one grade, each once.")

    def __call__(
        self, histories: Histories, split: Split, *, seed: int, host: int = 0, hosts: int = 1
    ) -> BatchStream:
        """Endless `Labelled` batches of one host, `[rows / hosts, length]` events.

        Raises:
            DataError: a task that is no grade of the histories or that every event reaches, or
                fewer windows than hosts.
            ValueError: rows that do not divide over the hosts, an impossible seed or host.
        """
        label = self._labeller(histories)
        fingerprint = fingerprint_of(self, histories, split, seed, host, hosts)
        fingerprint |= {"actions": list(histories.actions), "labels": _checksum(histories, split)}
        return endless(self.rows, self._windows(histories, split), label, fingerprint)

    def once(
        self, histories: Histories, split: Split, *, seed: int, most: int = 0
    ) -> Iterator[Labelled]:
        """Every window once, or as many as `most` drawn ones; the last batch is filled up."""
        windows, label = self._windows(histories, split), self._labeller(histories)
        return once(self.rows, windows, label, seed, most)

    def _windows(self, histories: Histories, split: Split) -> Windows:
        return question_windows(
            histories,
            split,
            length=self.length,
            questions=self.candidates,
            min_history=self.min_history,
            since=self.since,
        )

    def _labeller(self, histories: Histories) -> Label:
        flat, least = flat_events(histories), grade_numbers(histories.actions, self.tasks)

        def label(windows: Windows, rows: int, random: np.random.Generator) -> Labelled:
            del random
            events, place, exists = lay_questions(
                flat, windows, rows=rows, length=self.length, questions=self.candidates
            )
            there = np.take_along_axis(events.item, place, axis=1)
            action = np.take_along_axis(events.action, place, axis=1)
            known = np.repeat(exists[..., None], len(least), axis=-1)
            labels = (action[..., None] >= least) & known
            return Labelled(
                events,
                np.where(exists, there, -1).astype(np.int32),
                place,
                labels.astype(np.float32),
                known.astype(np.float32),
            )

        return label


@dataclasses.dataclass(frozen=True)
class Implicit:
    """For logs with one kind of event: what came next is told from items that were drawn.

    Each question has `1 + negatives` candidates at one place: the event that came next (label 1),
    then drawn items (label 0). Only items that occur in training are drawn: to draw others, which
    are never a positive, would teach that new items are bad. A drawn item that the user has
    anywhere in training has weight 0. Probabilities are those of this mixture, about one positive
    in `1 + negatives`, not those of the log.

    Raises:
        ValueError: a size that is not positive, questions that do not fit the row, or a negative
            exponent.
    """

    negatives: int = 4
    """Drawn items a question."""
    popularity: float = 0.0
    """Items are drawn with probability ~ (training events)^popularity: 0 draws evenly."""
    length: int = 64
    """Events of a row: those asked about and, in front of them, what candidates see."""
    questions: int = 8
    """Consecutive events of a row that are asked about, its newest ones."""
    rows: int = 64
    """Rows of the batch over all hosts; each host makes its equal part."""
    min_history: int = 1
    """Events with fewer before them are not asked about."""
    since: int | None = None
    """Time (as in the log) from which on events are asked about; older ones are only seen."""

    def __post_init__(self) -> None:
        _check("Implicit", self.length, self.questions, self.rows, self.min_history)
        if self.negatives < 1 or self.popularity < 0:
            raise ValueError(
                f"Implicit: negatives={self.negatives} must be at least 1 and "
                f"popularity={self.popularity} not negative."
            )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The only label."""
        return ("next",)

    def __call__(
        self, histories: Histories, split: Split, *, seed: int, host: int = 0, hosts: int = 1
    ) -> BatchStream:
        """Endless `Labelled` batches of one host; what is drawn follows from seed and position.

        Raises:
            DataError: fewer windows than hosts.
            ValueError: rows that do not divide over the hosts, an impossible seed or host.
        """
        label = self._labeller(histories, split)
        fingerprint = fingerprint_of(self, histories, split, seed, host, hosts)
        return endless(self.rows, self._windows(histories, split), label, fingerprint)

    def once(
        self, histories: Histories, split: Split, *, seed: int, most: int = 0
    ) -> Iterator[Labelled]:
        """Every window once, or as many as `most` drawn ones; the last batch is filled up."""
        windows, label = self._windows(histories, split), self._labeller(histories, split)
        return once(self.rows, windows, label, seed, most)

    def _windows(self, histories: Histories, split: Split) -> Windows:
        return question_windows(
            histories,
            split,
            length=self.length,
            questions=self.questions,
            min_history=self.min_history,
            since=self.since,
        )

    def _labeller(self, histories: Histories, split: Split) -> Label:
        flat, items = flat_events(histories), histories.num_items
        positions = training_positions(histories, split)
        user = histories.user_of(positions).astype(np.int64)
        owned = np.unique(user * items + histories.item[positions])
        count = np.bincount(histories.item[positions], minlength=items)
        pool = np.flatnonzero(count)
        ends = np.cumsum(count[pool].astype(np.float64) ** self.popularity)

        def label(windows: Windows, rows: int, random: np.random.Generator) -> Labelled:
            events, place, exists = lay_questions(
                flat, windows, rows=rows, length=self.length, questions=self.questions
            )
            came = np.take_along_axis(events.item, place, axis=1)
            points = random.random((*came.shape, self.negatives)) * ends[-1]
            at = np.minimum(np.searchsorted(ends, points, side="right"), len(pool) - 1)
            drawn = pool[at]
            # Rows of padding own nothing, and are of no weight.
            key = np.zeros(drawn.shape, np.int64)
            owner = histories.user_of(windows.begin).astype(np.int64)
            key[: len(owner)] = owner[:, None, None] * items + drawn[: len(owner)]
            has = owned[np.minimum(np.searchsorted(owned, key), len(owned) - 1)] == key
            candidates = np.concatenate([came[..., None], drawn], axis=-1)
            known = np.concatenate([exists[..., None], exists[..., None] & ~has], axis=-1)
            candidates = np.where(exists[..., None], candidates, -1)
            labels = np.zeros(candidates.shape, np.float32)
            labels[..., 0] = exists
            flattened = candidates.shape[0], -1
            return Labelled(
                events,
                candidates.reshape(flattened).astype(np.int32),
                np.repeat(place, 1 + self.negatives, axis=1),
                labels.reshape(*flattened, 1),
                known.reshape(*flattened, 1).astype(np.float32),
            )

        return label


class Parts(NamedTuple):
    """The training events of a split, by user: three splits that hold out nothing more."""

    train: Split
    """Most users: the network learns from them."""
    calibration: Split
    """Chooses the checkpoint, and fits the calibration."""
    report: Split
    """Only ever measured."""


def part_users(histories: Histories, split: Split, *, share: float, seed: int) -> Parts:
    """Sets a share of the users with training events aside, half to calibrate and half to report.

    Their held-out events, and everybody else's, are in none of the parts.

    Args:
        histories: the histories.
        split: whose training events are parted.
        share: of the users, in (0, 1).
        seed: equal seeds, equal parts.

    Raises:
        DataError: fewer than three users have training events.
    """
    trained = np.flatnonzero(training_counts(histories, split))
    half = max(1, round(share * len(trained) / 2))
    if len(trained) < 2 * half + 1:
        raise DataError(
            f"{len(trained)} user(s) with training events cannot be parted into those who train, "
            f"calibrate and report at held_out={share}; use more users or a smaller share."
        )
    order = np.random.default_rng(seed).permutation(trained)
    chosen = order[2 * half :], order[:half], order[half : 2 * half]
    return Parts(*(_only(histories, split, *named) for named in zip(chosen, Parts._fields)))


def grade_numbers(actions: tuple[str, ...], tasks: tuple[str, ...]) -> Int32[np.ndarray, " k"]:
    """Index on the ladder of each task's grade.

    Raises:
        DataError: a task that is no grade, or is the weakest, which every event reaches.

    >>> grade_numbers(("exposed", "click", "like"), ("like", "click"))
    array([2, 1], dtype=int32)
    """
    if bad := [task for task in tasks if task not in actions[1:]]:
        raise DataError(
            f"tasks {', '.join(bad)} cannot be told apart on the ladder {' < '.join(actions)}: a "
            "task is any grade but the weakest. Prepare the histories with all grades, "
            "prepare(dataset, events=grades), or change the tasks."
        )
    return np.array([actions.index(task) for task in tasks], np.int32)


def _only(histories: Histories, split: Split, users: Int64[np.ndarray, " m"], part: str) -> Split:
    """The training events of some users, and nothing held out."""
    starts, nothing = histories.offsets[:-1], np.zeros(0, np.int64)
    end = starts.copy()
    end[users] = split.train_end[users]
    return Split(end, nothing, nothing, f"{split.name}, {part} users")


def _checksum(histories: Histories, split: Split) -> str:
    """Of the kinds of the training events, which no other fingerprint reads."""
    kinds = histories.action[training_positions(histories, split)]
    return f"{zlib.crc32(np.ascontiguousarray(kinds)):08x}"


def _check(name: str, length: int, questions: int, rows: int, min_history: int) -> None:
    if rows < 1 or min_history < 0 or not 1 <= questions < length:
        raise ValueError(
            f"{name}: rows={rows} must be positive, min_history={min_history} not negative, and "
            f"the {questions} events that are asked about at least 1 and fewer than the "
            f"length={length} of a row."
        )
