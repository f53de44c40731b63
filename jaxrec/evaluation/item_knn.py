"""Item-kNN: what users of the history's items also took (Deshpande and Karypis 2004).

An untrained baseline that knows which items go together and nothing of their order. With N(i, j)
the users who have both i and j among the counted events, however often,

    similarity(i, j) = N(i, j) / (sqrt(N(i, i) N(j, j)) + shrinkage)

is the cosine of the columns of the binary user-item matrix when `shrinkage` is 0. Every item keeps
its `neighbours` most similar other items, equal similarities by popularity and then the lower item.
The score of a candidate is the sum of its similarities to the distinct items of the history, over
those history items that keep it as a neighbour. Equal scores, and all items without one, go by
popularity and then the lower item.

Similarities are whole multiples of `UNIT`, about the precision of single floats. Their sums are
exact, so two items with the same terms tie whatever the order of the terms.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxrec.evaluation.baselines import count_popularity, counted_events
from jaxrec.evaluation.cases import CaseHistories
from jaxrec.evaluation.ranking import TopItems, item_priority
from jaxrec.evaluation.untrained import (
    Candidates,
    best_of_each_case,
    candidate_lists,
    candidate_ranks,
    candidate_scores,
)

UNIT = 2.0**-24
"""What the whole numbers of `similarity` and of `scores` count."""
PAIRS = 2**24
"""Pairs of items counted at once; bounds the memory, not the results."""


@dataclasses.dataclass(frozen=True, eq=False)
class ItemNeighbours:
    """The most similar items of every item, and popularity behind them.

    Made by `count_neighbours`; an `UntrainedRanker`, which says what the methods return. The
    neighbours of item a are entries `offsets[a] .. offsets[a + 1]` of `neighbour` and `similarity`,
    the most similar first.
    """

    popularity: Int[np.ndarray, "n"]
    offsets: Int[np.ndarray, "n_plus_1"]
    neighbour: Int[np.ndarray, "z"]
    similarity: Int[np.ndarray, "z"]
    """In `UNIT`s: 2^24 is a cosine of 1."""

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return len(self.popularity)

    def candidates(self, histories: CaseHistories) -> Candidates:
        """Neighbours of the history's items; the strength is the sum of similarities in `UNIT`s."""
        from scipy import sparse

        shape = histories.num_cases, self.num_items
        case, item = _distinct(*histories.pairs(), self.num_items)
        history = sparse.csr_array((np.ones(len(case), np.int64), (case, item)), shape=shape)
        total = history @ self._similarities
        rows = np.repeat(np.arange(histories.num_cases), np.diff(total.indptr))
        return Candidates(rows, total.indices.astype(np.int64), total.data)

    def scores(self, histories: CaseHistories) -> Float[np.ndarray, "c n"]:
        """Summed similarity in `UNIT`s + popularity / (largest + 1)."""
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

    @functools.cached_property
    def _similarities(self) -> Any:
        """A scipy CSR array int64[n, n]: row a holds the neighbours of a."""
        from scipy import sparse

        shape = self.num_items, self.num_items
        return sparse.csr_array((self.similarity, self.neighbour, self.offsets), shape=shape)


def count_neighbours(
    offsets: Int[np.ndarray, "offsets"],
    count_end: Int[np.ndarray, "u"],
    item: Int[np.ndarray, "e"],
    num_items: int,
    *,
    neighbours: int = 100,
    shrinkage: float = 0.0,
) -> ItemNeighbours:
    """Finds the neighbours of every item in each user's events before `count_end`.

    The time goes with the sum of squared history lengths.

    Args:
        offsets, count_end, item, num_items: as `count_popularity`.
        neighbours: most similar items that each item keeps.
        shrinkage: added to the denominator; pulls down items that few users have. In users.

    Raises:
        ValueError: no neighbour to keep, a shrinkage that is negative or not finite, or a
            `count_end` outside its user's events.

    >>> log, offsets = np.array([0, 1, 0, 1, 2]), np.array([0, 2, 5])
    >>> counter = count_neighbours(offsets, offsets[1:], log, num_items=3, neighbours=1)
    >>> counter.neighbour.tolist(), (counter.similarity * UNIT).round(3).tolist()
    ([1, 0, 0], [1.0, 1.0, 0.707])
    """
    if neighbours < 1:
        raise ValueError(f"An item keeps at least one neighbour, got neighbours={neighbours}.")
    if not 0 <= shrinkage < math.inf:
        raise ValueError(f"shrinkage={shrinkage}; give a finite number of users, 0 for none.")
    popularity = count_popularity(offsets, count_end, item, num_items)
    priority = item_priority(popularity)
    incidence = _incidence(offsets, count_end, item, num_items)
    users = np.bincount(incidence.indices, minlength=num_items)
    row_ends, found, strength = [0], [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for first, together in _common_users(incidence):
        near = _similarities(together, first, users, shrinkage)
        best, _ = best_of_each_case(near, priority, neighbours, together.shape[0])
        kept = np.bincount(best.case, minlength=together.shape[0])
        row_ends += (row_ends[-1] + np.cumsum(kept)).tolist()
        found.append(best.item.astype(np.int32))
        strength.append(best.strength)
    return ItemNeighbours(
        popularity, np.array(row_ends), np.concatenate(found), np.concatenate(strength)
    )


def _incidence(offsets, count_end, item, num_items: int) -> Any:
    """Who has what: a binary scipy CSR array, int32[users, n]."""
    from scipy import sparse

    counted = counted_events(offsets, count_end)
    user = np.repeat(np.arange(len(count_end)), np.diff(offsets))[counted]
    user, column = _distinct(user, item[: len(counted)][counted].astype(np.int64), num_items)
    ones = np.ones(len(user), np.int32)
    return sparse.csr_array((ones, (user, column)), shape=(len(count_end), num_items))


def _common_users(incidence: Any) -> Iterator[tuple[int, Any]]:
    """Blocks of rows of N, CSR arrays int32[rows, n], each with the number of its first row."""
    users_of = incidence.T.tocsr()
    # Row i of N is a sum over the users of i of everything they have.
    cost = np.cumsum(users_of @ np.diff(incidence.indptr).astype(np.int64))
    first = 0
    while first < len(cost):
        spent = cost[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(cost, spent + PAIRS, side="right")))
        yield first, users_of[first:last] @ incidence
        first = last


def _similarities(
    together: Any, first: int, users: Int[np.ndarray, "n"], shrinkage: float
) -> Candidates:
    """Similarities of items `first`, `first + 1`, ... to all others, rows counted from 0."""
    row = np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
    other = together.indices.astype(np.int64)
    norm = np.sqrt((users[first + row] * users[other]).astype(np.float64))
    similarity = np.rint(together.data / (norm + shrinkage) / UNIT).astype(np.int64)
    return Candidates(row, other, similarity).part((other != first + row) & (similarity > 0))


def _distinct(
    row: Int[np.ndarray, "p"], item: Int[np.ndarray, "p"], num_items: int
) -> tuple[Int[np.ndarray, "q"], Int[np.ndarray, "q"]]:
    """Each pair (row, item) once, ascending."""
    return np.divmod(np.unique(row * num_items + item), max(num_items, 1))
