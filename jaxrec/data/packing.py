"""Windows of histories, their packing into rows, and the rows laid out as `Events`.

Everything here is a plain function of arrays; `jaxrec.data.pipeline` strings them together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from jaxrec.data.dataset import DataError
from jaxrec.data.histories import Histories
from jaxrec.data.splits import Split, training_counts
from jaxrec.types import Events


class FlatEvents(NamedTuple):
    """The events that windows point into."""

    item: np.ndarray
    """int32[e], catalogue rows."""
    time: np.ndarray
    """int64[e], seconds."""
    action: np.ndarray
    """int32[e]."""
    origin: int
    """The time that counts as 0 in a batch."""


class Windows(NamedTuple):
    """Pieces of histories: the flat positions `begin .. begin+size-1`, of which the first
    `context` are read again and are no targets."""

    begin: np.ndarray
    """int64[w]."""
    size: np.ndarray
    """int64[w]."""
    context: np.ndarray
    """int64[w]."""
    user: np.ndarray | None = None
    """int64[w], index of the user; None where nobody knows (-1 in a batch)."""

    def take(self, chosen: Int64[np.ndarray, " c"]) -> Windows:
        """The windows of these indices, in this order."""
        user = None if self.user is None else self.user[chosen]
        return Windows(self.begin[chosen], self.size[chosen], self.context[chosen], user)


class Places(NamedTuple):
    """Where windows go: `row[i]`, from column `column[i]` on, as segment `segment[i]`."""

    row: np.ndarray
    """int64[w]."""
    column: np.ndarray
    """int64[w]."""
    segment: np.ndarray
    """int32[w], 1, 2, ... inside a row."""


def flat_events(histories: Histories) -> FlatEvents:
    """The arrays of histories, checked for times that fit a batch.

    Raises:
        DataError: the log spans more than 2**31 - 1 seconds (68 years).
    """
    origin = histories.time_origin
    if histories.num_events and int(histories.time.max()) - origin > np.iinfo(np.int32).max:
        raise DataError(
            f"the log spans {int(histories.time.max()) - origin} seconds, and a batch holds int32 "
            "seconds (68 years). Are the times milliseconds? Divide them by 1000 in the reader; "
            "otherwise drop the events far off."
        )
    return FlatEvents(histories.item, histories.time, histories.action, origin)


def training_windows(histories: Histories, split: Split, *, length: int, context: int) -> Windows:
    """Cuts the training events of every user into windows.

    The first window of a user holds `length` targets; each later one reads the `context` events
    before it again and holds `length - context` new targets. Every training event is the target of
    exactly one window.

    Args:
        histories: the histories.
        split: what trains.
        length: events of a window at most.
        context: events that a later window reads again.
    """
    counts = training_counts(histories, split)
    step = length - context
    later = np.maximum(-(-(counts - length) // step), 0)
    windows = np.where(counts > 0, 1 + later, 0)
    user = np.repeat(np.arange(len(counts)), windows)
    index = np.arange(len(user)) - np.repeat(np.cumsum(windows) - windows, windows)
    first_target = np.where(index == 0, 0, length + (index - 1) * step)
    reread = np.where(index == 0, 0, context)
    end = np.minimum(np.where(index == 0, length, first_target + step), counts[user])
    begin = histories.offsets[:-1][user] + first_target - reread
    return Windows(begin, end - first_target + reread, reread, user)


def pack_prefix(sizes: Int64[np.ndarray, " w"], *, rows: int, length: int) -> Places:
    """Packs as many of the first windows as fit into `rows` rows of `length` events.

    Best-fit decreasing over the longest prefix it succeeds on, among those tried: the prefix
    whose events fit the rows altogether, then shorter ones. Equal sizes, equal packing.

    Args:
        sizes: windows in the order they are drawn, each 1..length.
        rows: rows of the batch.
        length: events of a row.

    Returns:
        The places of the windows that were packed: of the first `len(places.row)` ones.

    >>> pack_prefix(np.array([3, 2, 2, 1, 4]), rows=2, length=4).row
    array([0, 1, 1, 0])
    """
    count = int(np.searchsorted(np.cumsum(sizes), rows * length, side="right"))
    while True:
        places, left_over = _best_fit_decreasing(sizes[:count], rows, length)
        if left_over == 0:
            return places
        count -= max(left_over, 1)


def lay_events(
    flat: FlatEvents,
    windows: Windows,
    places: Places,
    *,
    rows: int,
    width: int,
) -> Events:
    """Copies windows into their places; all else is padding (`segment` 0, everything 0).

    Positions count from 0 in every window. The weight is 1 from `windows.context` on. The user of
    padding, and of windows that name none, is -1.

    Args:
        flat: the events.
        windows: which of them.
        places: where they go.
        rows: rows of the batch.
        width: events of a row.
    """
    size = windows.size
    total = int(size.sum())
    within = np.arange(total) - np.repeat(np.cumsum(size) - size, size)
    source = np.repeat(windows.begin, size) + within
    target = np.repeat(places.row * width + places.column, size) + within

    def spread(values: np.ndarray, dtype: type[np.generic], filler: int = 0) -> np.ndarray:
        array = np.full(rows * width, filler, dtype)
        array[target] = values
        return array.reshape(rows, width)

    user = np.full(len(size), -1) if windows.user is None else windows.user

    return Events(
        item=spread(flat.item[source], np.int32),
        segment=spread(np.repeat(places.segment, size), np.int32),
        position=spread(within, np.int32),
        time=spread(flat.time[source] - flat.origin, np.int32),
        action=spread(flat.action[source], np.int32),
        weight=spread(within >= np.repeat(windows.context, size), np.float32),
        user=spread(np.repeat(user, size), np.int32, -1),
    )


def one_a_row(count: int) -> Places:
    """The places of windows that have a row each, from its first column on."""
    return Places(
        np.arange(count, dtype=np.int64), np.zeros(count, np.int64), np.ones(count, np.int32)
    )


def to_the_right(sizes: Int64[np.ndarray, " w"], width: int) -> Places:
    """The places of windows that have a row each, up to its last column; padding is in front.

    >>> to_the_right(np.array([3, 1]), 4).column
    array([1, 3])
    """
    return one_a_row(len(sizes))._replace(column=width - sizes)


def _best_fit_decreasing(
    sizes: Int64[np.ndarray, " w"], rows: int, length: int
) -> tuple[Places, int]:
    """Places of all windows, and how many found none (then the places are incomplete)."""
    row, column, segment = [0] * len(sizes), [0] * len(sizes), [0] * len(sizes)
    held = [0] * rows
    # with_space[s]: rows that have room for s more events; bit s of `spaces`: there are some.
    with_space: list[list[int]] = [[] for _ in range(length + 1)]
    with_space[length] = list(range(rows - 1, -1, -1))
    spaces = 1 << length
    left_over = 0
    sizes_list = sizes.tolist()
    for window in np.argsort(-sizes, kind="stable").tolist():
        size = sizes_list[window]
        fitting = spaces >> size
        if not fitting:
            left_over += 1
            continue
        space = size + (fitting & -fitting).bit_length() - 1
        place = with_space[space].pop()
        if not with_space[space]:
            spaces ^= 1 << space
        with_space[space - size].append(place)
        spaces |= 1 << (space - size)
        held[place] += 1
        row[window], column[window], segment[window] = place, length - space, held[place]
    return (
        Places(np.array(row, np.int64), np.array(column, np.int64), np.array(segment, np.int32)),
        left_over,
    )
