"""Histories to write for, each with what came next: the batches of alignment."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from jaxrec.data.errors import DataError
from jaxrec.data.histories import Histories
from jaxrec.data.packing import FlatEvents, Windows, flat_events, lay_events, one_a_row
from jaxrec.data.pipeline import BatchStream, Take, fingerprint_of, rows_of_host, stream
from jaxrec.data.splits import Split, training_positions
from jaxrec.types import Events, Leaf


class Context(NamedTuple):
    """A batch of histories, one a row, and the item that came next in each."""

    events: Events
    """From the first column on, `[b t]`; all weights are 0."""
    target: Int32[Leaf, " b"]
    """Catalogue row of the next event."""


@dataclasses.dataclass(frozen=True)
class Contexts:
    """Training events as questions: the events before one of them, and that event as what the user
    did. Held-out events are neither.

    Raises:
        ValueError: a size that is not positive, or a negative `min_history`.
    """

    length: int = 50
    """Events of a history, the newest ones."""
    rows: int = 32
    """Histories of a batch over all hosts; each host makes its equal part."""
    min_history: int = 1
    """Events with fewer before them are not asked about."""

    def __post_init__(self) -> None:
        if self.length < 1 or self.rows < 1 or self.min_history < 0:
            raise ValueError(
                f"Contexts needs length >= 1, rows >= 1 and min_history >= 0, got {self.length}, "
                f"{self.rows} and {self.min_history}."
            )

    @property
    def batch_shape(self) -> tuple[int, int]:
        """Rows and events of a batch over all hosts."""
        return self.rows, self.length

    def positions(self, histories: Histories, split: Split) -> Int64[np.ndarray, " c"]:
        """Flat positions of the events that are asked about.

        Raises:
            DataError: there is none.
        """
        positions = training_positions(histories, split)
        before = positions - histories.offsets[histories.user_of(positions)]
        asked = positions[before >= self.min_history]
        if not len(asked):
            raise DataError(
                f"no training event has {self.min_history} events before it, so there is nothing "
                "to align on; lower feed.min_history, or filter the log less."
            )
        return asked

    def __call__(
        self, histories: Histories, split: Split, *, seed: int, host: int = 0, hosts: int = 1
    ) -> BatchStream:
        """Endless `Context` batches of one host, in an order that follows from the seed.

        Raises:
            DataError: fewer questions than hosts, or a log that spans more than 68 years.
            ValueError: rows that do not divide over the hosts, an impossible seed or host.
        """
        asked, flat = self.positions(histories, split), flat_events(histories)
        rows = rows_of_host(self.rows, seed, host, hosts)

        def draw(take: Take, first: int) -> tuple[Context, int]:
            return lay_contexts(histories, flat, asked[take(first, rows)], self.length), rows

        fingerprint = fingerprint_of(self, histories, split, seed, host, hosts)
        return stream(draw, len(asked), fingerprint)


def lay_contexts(
    histories: Histories, flat: FlatEvents, positions: Int64[np.ndarray, " b"], length: int
) -> Context:
    """The newest events before each position, one history a row, and the item at it.

    Args:
        histories: the log.
        flat: `flat_events(histories)`.
        positions: flat positions of the targets.
        length: events of a row.
    """
    user = histories.user_of(positions)
    begin = np.maximum(histories.offsets[user], positions - length)
    size = positions - begin
    windows = Windows(begin, size, size, user)
    rows = len(positions)
    events = lay_events(flat, windows, one_a_row(rows), rows=rows, width=length)
    return Context(events, np.asarray(histories.item)[positions].astype(np.int32))
