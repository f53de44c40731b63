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
from jaxrec.evaluation.ranking import TopItems, item_priority

BLOCK = 2048
"""Cases worked on at once; bounds the memory, not the results."""


@dataclasses.dataclass(frozen=True, eq=False)
class Transitions:
    """Order-1 transition counts with popularity back-off, or popularity alone when it has none.

    Made by `count_transitions` or `popularity_baseline`. The successors of item a are entries
    `offsets[a] .. offsets[a + 1]` of `successor` (ascending) and `count`.
    """

    popularity: Int[np.ndarray, "n"]
    offsets: Int[np.ndarray, "n_plus_1"]
    successor: Int[np.ndarray, "z"]
    count: Int[np.ndarray, "z"]

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return len(self.popularity)

    def scores(self, histories: CaseHistories) -> Float[np.ndarray, "c n"]:
        """The ordering as one number an item: transition count + popularity / (largest + 1).

        Dense, so for a block of cases; `ranks` and `top_items` never build it.
        """
        fraction = popularity_scores(self.popularity)
        scores = np.tile(fraction, (histories.num_cases, 1))
        case, entry = self._successors(histories)
        scores[case, self.successor[entry]] += self.count[entry]
        return scores

    def ranks(
        self, histories: CaseHistories, targets: Int[np.ndarray, "c"], *, seen_masked: bool
    ) -> Int[np.ndarray, "c"]:
        """Rank of each target among the whole catalogue, from 1.

        With `seen_masked` the items of the history are no candidates, and a target among them is
        not found: rank 0.

        Raises:
            ValueError: a target outside the catalogue.
        """
        if len(targets) and not 0 <= targets.min() <= targets.max() < self.num_items:
            raise ValueError(
                f"Targets are catalogue rows 0 to {self.num_items - 1}, got {targets.min()} to "
                f"{targets.max()}."
            )
        ranks = np.zeros(len(targets), np.int64)
        for first in range(0, len(targets), BLOCK):
            part = slice(first, first + BLOCK)
            block = histories.rows(first, first + BLOCK)
            ranks[part] = self._block_ranks(block, targets[part].astype(np.int64), seen_masked)
        return ranks

    def top_items(self, histories: CaseHistories, k: int, *, seen_masked: bool) -> TopItems:
        """The k best items of every case; the scores are those of `scores`.

        Raises:
            ValueError: k below 1.
        """
        if k < 1:
            raise ValueError(f"A list needs at least one place, got k={k}.")
        num_cases = histories.num_cases
        top = TopItems(
            np.full((num_cases, k), -1, np.int32),
            np.full((num_cases, k), -np.inf),
            np.zeros((num_cases, k), bool),
        )
        for first in range(0, num_cases, BLOCK):
            block = histories.rows(first, first + BLOCK)
            case, place, item, score = self._block_lists(block, k, seen_masked)
            top.items[first + case, place] = item
            top.scores[first + case, place] = score
            top.valid[first + case, place] = True
        return top

    def _successors(
        self, histories: CaseHistories
    ) -> tuple[Int[np.ndarray, "p"], Int[np.ndarray, "p"]]:
        """Pairs (case, entry of the successor table) of each case's last item."""
        last = histories.last_items()
        known = last >= 0
        begin = np.where(known, self.offsets[last], 0)
        return expand_ranges(begin, np.where(known, self.offsets[last + 1], 0))

    def _keys(self, case: Int[np.ndarray, "p"], item: Int[np.ndarray, "p"]):
        return case * self.num_items + item

    def _block_ranks(
        self, histories: CaseHistories, targets: Int[np.ndarray, "c"], seen_masked: bool
    ) -> Int[np.ndarray, "c"]:
        num_cases = histories.num_cases
        priority = item_priority(self.popularity)
        seen = np.unique(self._keys(*histories.pairs())) if seen_masked else np.zeros(0, np.int64)
        case, entry = self._successors(histories)
        item, count = self.successor[entry].astype(np.int64), self.count[entry]

        is_target = item == targets[case]
        target_count = np.zeros(num_cases, np.int64)
        target_count[case[is_target]] = count[is_target]

        open_to = ~_among(self._keys(case, item), seen)
        sooner = priority[item] < priority[targets[case]]
        tied = count == target_count[case]
        ahead = open_to & ((count > target_count[case]) | (tied & sooner))
        # Items that follow nothing come after, by popularity: all that are more popular than the
        # target, less those already counted as successors and those masked.
        seen_case, seen_item = np.divmod(seen, max(self.num_items, 1))
        seen_sooner = priority[seen_item] < priority[targets[seen_case]]
        backed_off = priority[targets] - _count(seen_case[seen_sooner], num_cases)
        backed_off -= _count(case[open_to & sooner], num_cases)
        ranks = 1 + _count(case[ahead], num_cases) + np.where(target_count > 0, 0, backed_off)
        masked = _among(self._keys(np.arange(num_cases), targets), seen)
        return np.where(masked, 0, ranks)

    def _block_lists(self, histories: CaseHistories, k: int, seen_masked: bool):
        """Filled places of the lists: (case, place, item, score)."""
        num_cases = histories.num_cases
        priority = item_priority(self.popularity)
        order = np.argsort(priority)
        seen = np.unique(self._keys(*histories.pairs())) if seen_masked else np.zeros(0, np.int64)
        case, entry = self._successors(histories)
        item, count = self.successor[entry].astype(np.int64), self.count[entry]
        keys = self._keys(case, item)

        # k popular items survive the removal of r items when k + r are drawn.
        drawn = np.zeros(num_cases, np.int64)
        drawn += k + _count(seen // self.num_items, num_cases) + _count(case, num_cases)
        popular_case, place = expand_ranges(0 * drawn, np.minimum(drawn, self.num_items))
        popular = order[place]
        popular_keys = self._keys(popular_case, popular)
        fresh = ~(_among(popular_keys, seen) | _among(popular_keys, keys))
        open_to = ~_among(keys, seen)

        case = np.concatenate([case[open_to], popular_case[fresh]])
        item = np.concatenate([item[open_to], popular[fresh]])
        count = np.concatenate([count[open_to], np.zeros(int(fresh.sum()), np.int64)])
        by_rank = np.lexsort((priority[item], -count, case))
        case, item, count = case[by_rank], item[by_rank], count[by_rank]
        length = _count(case, num_cases)
        place = np.arange(len(case)) - (np.cumsum(length) - length)[case]
        kept = place < k
        score = count + popularity_scores(self.popularity)[item]
        return case[kept], place[kept], item[kept], score[kept]


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
    return np.bincount(item[_counted(offsets, count_end)], minlength=num_items)


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
    counted = _counted(offsets, count_end)
    # Position p and p + 1 are a transition when both count and belong to one user.
    follows = counted[:-1] & counted[1:]
    starts = offsets[(offsets > 0) & (offsets < len(item))]
    follows[starts - 1] = False
    before = np.flatnonzero(follows)
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


def popularity_scores(popularity: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Popularity as a score in [0, 1): count / (largest count + 1). The same for every case.

    >>> popularity_scores(np.array([1, 3])).tolist()
    [0.25, 0.75]
    """
    return popularity / (popularity.max(initial=0) + 1.0)


def _counted(
    offsets: Int[np.ndarray, "offsets"], count_end: Int[np.ndarray, "u"]
) -> Bool[np.ndarray, "e"]:
    """Which events of the log lie before their user's `count_end`."""
    begin, end = offsets[:-1], offsets[1:]
    wrong = (count_end < begin) | (count_end > end)
    if wrong.any():
        user = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"Counting stops at {count_end[user]} for user {user}, whose events are "
            f"{begin[user]} to {end[user]}; give a position inside them."
        )
    return np.arange(offsets[-1]) < np.repeat(count_end, np.diff(offsets))


def _among(keys: Int[np.ndarray, "p"], known: Int[np.ndarray, "q"]) -> Bool[np.ndarray, "p"]:
    """Which keys are in the ascending `known`; much faster than `np.isin`, which sorts both."""
    if not len(known):
        return np.zeros(len(keys), bool)
    return known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys


def _count(case: Int[np.ndarray, "p"], num_cases: int) -> Int[np.ndarray, "c"]:
    return np.bincount(case, minlength=num_cases)
