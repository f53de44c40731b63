"""Order-2 transitions: what follows the last two items, in this order.

An untrained baseline that knows a little more than `Transitions`. For a history that ends in
`b, a` it orders items, precisely:

1. by how often they came directly after `b, a` in the counted events, most often first;
2. then by how often they came directly after `a`, whatever stood before;
3. then by popularity, most first, and then by the lower item.

So it backs off to order 1 and then to popularity, as Katz does without his discounts; nothing is
smoothed or mixed. Whatever followed `b, a` also followed `a`: order 2 only reorders the successors
of `a`. A history of one item leaves order 1, an empty one leaves popularity.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from jaxrec.evaluation.baselines import Transitions, count_transitions, followed
from jaxrec.evaluation.cases import CaseHistories, expand_ranges
from jaxrec.evaluation.ranking import TopItems
from jaxrec.evaluation.untrained import (
    Candidates,
    candidate_lists,
    candidate_ranks,
    candidate_scores,
)


@dataclasses.dataclass(frozen=True, eq=False)
class SecondOrderTransitions:
    """Order-2 transition counts with back-off to order 1 and to popularity.

    Made by `count_second_order`; an `UntrainedRanker`, which says what the methods return. What
    follows the pair `pairs[q]` are entries `offsets[q] .. offsets[q + 1]` of `successor`
    (ascending) and `count`.
    """

    first: Transitions
    """Order 1, counted on the same events."""
    pairs: Int[np.ndarray, "q"]
    """Ascending; items b, a in this order are b * num_items + a."""
    offsets: Int[np.ndarray, "q_plus_1"]
    successor: Int[np.ndarray, "z"]
    count: Int[np.ndarray, "z"]

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return self.first.num_items

    @property
    def popularity(self) -> Int[np.ndarray, "n"]:
        """Counted events of each item."""
        return self.first.popularity

    def candidates(self, histories: CaseHistories) -> Candidates:
        """Successors of each case's last item.

        The strength is (order-2 count) * (largest order-1 count + 1) + (order-1 count), the
        lexicographic order as one whole number.
        """
        known = self.first.candidates(histories)
        case, entry = self._entries(histories)
        # Order-1 successors are ascending inside a case, and all order-2 successors are among them.
        keys = known.case * self.num_items + known.item
        place = np.searchsorted(keys, case * self.num_items + self.successor[entry])
        strength = known.strength.copy()
        strength[place] += self.count[entry] * (int(self.first.count.max(initial=0)) + 1)
        return Candidates(known.case, known.item, strength)

    def scores(self, histories: CaseHistories) -> Float[np.ndarray, "c n"]:
        """Strength of `candidates` + popularity / (largest + 1); see `UntrainedRanker.scores`."""
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

    def _entries(
        self, histories: CaseHistories
    ) -> tuple[Int[np.ndarray, "p"], Int[np.ndarray, "p"]]:
        """Pairs (case, entry of `successor`) of each case's last two items."""
        if not len(self.pairs):
            none = np.zeros(0, np.int64)
            return none, none
        before, last = histories.last_items(1), histories.last_items()
        pair = before * self.num_items + last  # negative, so not counted, where one is missing
        row = np.minimum(np.searchsorted(self.pairs, pair), len(self.pairs) - 1)
        known = self.pairs[row] == pair
        return expand_ranges(
            np.where(known, self.offsets[row], 0), np.where(known, self.offsets[row + 1], 0)
        )


def count_second_order(
    offsets: Int[np.ndarray, "offsets"],
    count_end: Int[np.ndarray, "u"],
    item: Int[np.ndarray, "e"],
    num_items: int,
) -> SecondOrderTransitions:
    """Counts what directly follows which two items, among each user's events before `count_end`.

    Arguments and errors are those of `count_popularity`. Repeats count.

    >>> log, offsets = np.array([0, 1, 2, 3, 1, 0, 3, 1, 0]), np.array([0, 3, 6, 9])
    >>> counter = count_second_order(offsets, offsets[1:], log, num_items=4)
    >>> history = CaseHistories(np.array([0]), np.array([2]), log)
    >>> counter.top_items(history, 3, seen_masked=False).items.tolist()
    [[2, 0, 1]]
    """
    follows = followed(offsets, count_end)
    before = np.flatnonzero(follows[:-1] & follows[1:])
    pair, row = np.unique(
        item[before].astype(np.int64) * num_items + item[before + 1], return_inverse=True
    )
    # The number of a pair is below the number of events, so this fits where b, a, i would not.
    entry, count = np.unique(
        row.astype(np.int64) * num_items + item[before + 2], return_counts=True
    )
    source, successor = np.divmod(entry, max(num_items, 1))
    row_end = np.cumsum(np.bincount(source, minlength=len(pair)))
    return SecondOrderTransitions(
        first=count_transitions(offsets, count_end, item, num_items),
        pairs=pair,
        offsets=np.concatenate([[0], row_end]).astype(np.int64),
        successor=successor.astype(np.int32),
        count=count.astype(np.int64),
    )
