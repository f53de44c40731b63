"""Stretches of histories whose newest events are asked about, laid out and drawn as batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int32

from jaxrec.data.histories import Histories
from jaxrec.data.packing import FlatEvents, Windows, lay_events, one_a_row
from jaxrec.data.pages import history_ends
from jaxrec.data.pipeline import BatchStream, Take, rows_of_host, stream
from jaxrec.data.splits import Split, ranges
from jaxrec.types import Events, Leaf


class Labelled(NamedTuple):
    """A batch of histories with candidates and what is known of each."""

    events: Events
    """One stretch of a history a row, from the first column on."""
    candidates: Int32[Leaf, "b c"]
    """Catalogue rows; -1 where a row has fewer."""
    place: Int32[Leaf, "b c"]
    """Column of the row at which each candidate stands; it sees the events before it."""
    labels: Float[Leaf, "b c k"]
    """1 where the user did it, 0 where not; of each task."""
    weight: Float[Leaf, "b c k"]
    """0 where there is no candidate, or its label is not known; else 1."""


Label = Callable[[Windows, int, np.random.Generator], Labelled]
"""(windows, rows, random) -> their batch; rows without a window are padding of weight 0."""


def question_windows(
    histories: Histories,
    split: Split,
    *,
    length: int,
    questions: int,
    min_history: int = 0,
    since: int | None = None,
) -> Windows:
    """Cuts the training events of every user into stretches whose newest events are asked about.

    Every training event that has `min_history` events before it, and is not older than `since`, is
    asked about in exactly one window, after as many events as the row has room for.

    Args:
        histories: the histories.
        split: what trains.
        length: events of a window at most.
        questions: events of a window that are asked about, at most.
        min_history: events before the first that is asked about.
        since: time of the oldest that is; None asks about all.

    Returns:
        Windows whose `context` counts the events in front of those asked about.
    """
    starts = histories.offsets[:-1]
    first = starts + min_history
    if since is not None:
        users = np.arange(histories.num_users, dtype=np.int32)
        times = np.full(histories.num_users, since, np.int64)
        first = np.maximum(first, history_ends(histories, users, times))
    windows = -(-np.maximum(split.train_end - first, 0) // questions)
    user = np.repeat(np.arange(histories.num_users), windows)
    asked = first[user] + ranges(np.zeros_like(windows), windows) * questions
    end = np.minimum(asked + questions, split.train_end[user])
    begin = np.maximum(starts[user], end - length)
    return Windows(begin, end - begin, asked - begin, user)


def lay_questions(
    flat: FlatEvents, windows: Windows, *, rows: int, length: int, questions: int
) -> tuple[Events, Int32[np.ndarray, "b q"], Bool[np.ndarray, "b q"]]:
    """Lays windows out, one a row, and says where the events that are asked about stand.

    Args:
        flat: the events.
        windows: as many as there are rows, or fewer: the last rows are padding then.
        rows: rows of the batch.
        length: events of a row.
        questions: events of a row that are asked about, at most.

    Returns:
        The rows, the columns of those events (0 where a row has fewer), and which exist.
    """
    count = len(windows.size)
    events = lay_events(flat, windows, one_a_row(count), rows=rows, width=length)
    context, asked = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    context[:count], asked[:count] = windows.context, windows.size - windows.context
    number = np.arange(questions)
    exists = number < asked[:, None]
    return events, np.where(exists, context[:, None] + number, 0).astype(np.int32), exists


def endless(rows: int, windows: Windows, label: Label, fingerprint: dict[str, Any]) -> BatchStream:
    """Batches of windows in an endless shuffled order; draws follow from the place in the order.

    Args:
        rows: rows of a batch over all hosts.
        windows: of all hosts.
        label: makes a batch of windows.
        fingerprint: from `fingerprint_of`.
    """
    seed, host, hosts = (fingerprint[name] for name in ("seed", "host", "hosts"))
    here = rows_of_host(rows, seed, host, hosts)

    def draw(take: Take, first: int) -> tuple[Labelled, int]:
        random = np.random.default_rng((seed, host, first))
        return label(windows.take(take(first, here)), here, random), here

    return stream(draw, len(windows.size), fingerprint)


def once(rows: int, windows: Windows, label: Label, seed: int, most: int) -> Iterator[Labelled]:
    """Every window once, in order, or `most` drawn ones; the last batch is filled up."""
    chosen = np.arange(len(windows.size))
    if 0 < most < len(chosen):
        chosen = np.sort(np.random.default_rng(seed).permutation(chosen)[:most])
    for first in range(0, len(chosen), rows):
        random = np.random.default_rng((seed, first))
        yield label(windows.take(chosen[first : first + rows]), rows, random)
