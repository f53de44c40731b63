"""The two baselines that every report carries: popularity, and counting what follows what.

They need no training, run in seconds on a whole test set, and beat some published generators, so a
generator is always printed beside them (METHODS E10).

The transition counter orders items for a history that ends in item `a`, precisely:

1. by how often they came directly after `a` in the counted events, most often first;
2. then by their own number of counted events (popularity), most first: this decides ties of the
   first count *and* orders all items that never followed `a`, which is the back-off;
3. then by the lower item.

Nothing is smoothed or mixed. An empty history, or a last item without successors, leaves
popularity alone. Popularity is counted over the same events as the transitions: a counter that
also counts the validation items takes its popularity from them too (with the training popularity
instead, Recall@10 on Amazon-2014 Beauty is .0753 where the reference numbers say .0757).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxrec.evaluation.cases import CaseHistories, expand_ranges
from jaxrec.evaluation.ranking import TopItems
from jaxrec.evaluation.untrained import (
    Candidates,
    candidate_lists,
    candidate_ranks,
    candidate_scores,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Transitions:
    """Order-1 transition counts with popularity back-off, or popularity alone when it has none.

    Made by `count_transitions` or `popularity_baseline`; an `UntrainedRanker`, which says what the
    methods return. The successors of item a are entries `offsets[a] .. offsets[a + 1]` of
    `successor` (ascending) and `count`.
    """

    popularity: Int[np.ndarray, "n"]
    offsets: Int[np.ndarray, "n_plus_1"]
    successor: Int[np.ndarray, "z"]
    count: Int[np.ndarray, "z"]

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return len(self.popularity)

    def candidates(self, histories: CaseHistories) -> Candidates:
        """Successors of each case's last item, ascending; their strength is the count."""
        last = histories.last_items()
        known = last >= 0
        begin = np.where(known, self.offsets[last], 0)
        case, entry = expand_ranges(begin, np.where(known, self.offsets[last + 1], 0))
        return Candidates(case, self.successor[entry].astype(np.int64), self.count[entry])

    def scores(self, histories: CaseHistories) -> Float[np.ndarray, "c n"]:
        """The ordering as one number an item: transition count + popularity / (largest + 1)."""
        return candidate_scores(self.candidates(histories), self.popularity, histories.num_cases)

    def ranks(
        self, histories: CaseHistories, targets: Int[np.ndarray, "c"], *, seen_masked: bool
    ) -> Int[np.ndarray, "c"]:
        """Rank of each target; see `UntrainedRanker.ranks`."""
        return candidate_ranks(
            self.candidates, self.popularity, histories, targets, seen_masked=seen_masked
        )

    def top_items(self, histories: CaseHistories, k: int, *, seen_masked: bool) -> TopItems:
        """The k best items of every case; see `UntrainedRanker.top_items`."""
        return candidate_lists(
            self.candidates, self.popularity, histories, k, seen_masked=seen_masked
        )


def count_popularity(
    offsets: Int[np.ndarray, "offsets"],
    count_end: Int[np.ndarray, "u"],
    item: Int[np.ndarray, "e"],
    num_items: int,
) -> Int[np.ndarray, "n"]:
    """Events of each item among the events before each user's `count_end`.

    Args:
        offsets: events of user u are flat positions `offsets[u] .. offsets[u + 1]`.
        count_end: the flat position at which counting stops for each user; `Split.train_end` counts
            training events only.
        item: catalogue row of every event.
        num_items: size of the catalogue.

    Raises:
        ValueError: a `count_end` outside its user's events.

    >>> log, offsets = np.array([0, 1, 1, 2, 0]), np.array([0, 3, 5])
    >>> count_popularity(offsets, np.array([2, 5]), log, num_items=3).tolist()
    [2, 1, 1]
    """
    return np.bincount(item[counted_events(offsets, count_end)], minlength=num_items)


def count_transitions(
    offsets: Int[np.ndarray, "offsets"],
    count_end: Int[np.ndarray, "u"],
    item: Int[np.ndarray, "e"],
    num_items: int,
) -> Transitions:
    """Counts which item directly follows which, among each user's events before `count_end`.

    Arguments and errors are those of `count_popularity`. Repeats count (an item may follow itself).

    >>> log, offsets = np.array([0, 1, 0, 1, 2]), np.array([0, 5])
    >>> counter = count_transitions(offsets, np.array([5]), log, num_items=3)
    >>> history = CaseHistories(np.array([0]), np.array([1]), log)
    >>> counter.top_items(history, 3, seen_masked=False).items.tolist()
    [[1, 0, 2]]
    """
    before = np.flatnonzero(followed(offsets, count_end))
    pair = item[before].astype(np.int64) * num_items + item[before + 1]
    pair, count = np.unique(pair, return_counts=True)
    source, successor = np.divmod(pair, max(num_items, 1))
    row_end = np.cumsum(np.bincount(source, minlength=num_items))
    return Transitions(
        popularity=count_popularity(offsets, count_end, item, num_items),
        offsets=np.concatenate([[0], row_end]).astype(np.int64),
        successor=successor.astype(np.int32),
        count=count.astype(np.int64),
    )


def popularity_baseline(popularity: Int[np.ndarray, "n"]) -> Transitions:
    """The popularity ranking: a counter that has seen no transition.

    >>> baseline = popularity_baseline(np.array([1, 5, 1]))
    >>> history = CaseHistories(np.array([0]), np.array([1]), np.array([1]))
    >>> baseline.ranks(history, np.array([2]), seen_masked=True).tolist()
    [2]
    """
    none = np.zeros(0, np.int64)
    return Transitions(popularity, np.zeros(len(popularity) + 1, np.int64), none, none)


def counted_events(
    offsets: Int[np.ndarray, "offsets"], count_end: Int[np.ndarray, "u"]
) -> Bool[np.ndarray, "e"]:
    """Which events of the log lie before their user's `count_end`.

    Raises:
        ValueError: a `count_end` outside its user's events.
    """
    begin, end = offsets[:-1], offsets[1:]
    wrong = (count_end < begin) | (count_end > end)
    if wrong.any():
        user = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"Counting stops at {count_end[user]} for user {user}, whose events are "
            f"{begin[user]} to {end[user]}; give a position inside them."
        )
    return np.arange(offsets[-1]) < np.repeat(count_end, np.diff(offsets))


def followed(
    offsets: Int[np.ndarray, "offsets"], count_end: Int[np.ndarray, "u"]
) -> Bool[np.ndarray, "e"]:
    """Which events have a successor: the next event counts too and belongs to the same user.

    >>> followed(np.array([0, 3, 5]), np.array([2, 5])).tolist()
    [True, False, False, True, False]
    """
    counted = counted_events(offsets, count_end)
    counted[:-1] &= counted[1:]
    counted[offsets[1:][offsets[1:] > 0] - 1] = False
    return counted
