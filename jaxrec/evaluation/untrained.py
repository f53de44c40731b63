"""What the untrained rankers share: a few candidates with a whole strength, popularity behind them.

Such a ranker orders the catalogue for a history, precisely:

1. its candidates by strength, a positive whole number (a count, or a similarity in fixed point),
   strongest first;
2. then by popularity, most first: this decides equal strengths *and* orders every item that is no
   candidate, which is the back-off;
3. then by the lower item.

Whole numbers make ties ties: a sum of them does not depend on its order. Candidates are a small
part of the catalogue, so ranks and lists cost what the candidates cost; nothing of cases times
catalogue is built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxrec.evaluation.cases import CaseHistories, expand_ranges
from jaxrec.evaluation.ranking import TopItems, item_priority

BLOCK = 512
"""Cases worked on at once; bounds the memory, not the results."""


class Candidates(NamedTuple):
    """Items that a ranker prefers to popularity: each pair (case, item) once, cases ascending."""

    case: np.ndarray
    """int64 [p]: number of the case, from 0."""
    item: np.ndarray
    """int64 [p]: catalogue row."""
    strength: np.ndarray
    """int64 [p]: at least 1; the stronger comes first."""

    def part(self, kept: Bool[np.ndarray, "p"] | Int[np.ndarray, "q"]) -> Candidates:
        """The candidates marked in `kept`, or those with the numbers in it, in that order."""
        return Candidates(self.case[kept], self.item[kept], self.strength[kept])


@runtime_checkable
class UntrainedRanker(Protocol):
    """A baseline that counts and needs no training: made from a log, asked with histories."""

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        ...

    def candidates(self, histories: CaseHistories) -> Candidates:
        """What the ranker prefers to popularity for each case. Not blocked: ask in parts."""
        ...

    def scores(self, histories: CaseHistories) -> Float[np.ndarray, "c n"]:
        """The whole ordering as one number an item, equal only where the lower item decides.

        Dense, so for a block of cases; `ranks` and `top_items` never build it. Doubles hold it
        exactly while (largest strength + 1) * (largest popularity + 1) stays below 2^53.
        """
        ...

    def ranks(
        self, histories: CaseHistories, targets: Int[np.ndarray, "c"], *, seen_masked: bool
    ) -> Int[np.ndarray, "c"]:
        """Rank of each target among the whole catalogue, from 1.

        With `seen_masked` the items of the history are no candidates, and a target among them is
        not found: rank 0.

        Raises:
            ValueError: a target outside the catalogue.
        """
        ...

    def top_items(self, histories: CaseHistories, k: int, *, seen_masked: bool) -> TopItems:
        """The k best items of every case; the scores are those of `scores`.

        Raises:
            ValueError: k below 1.
        """
        ...


def popularity_scores(popularity: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Popularity as a score in [0, 1): count / (largest count + 1). The same for every case.

    >>> popularity_scores(np.array([1, 3])).tolist()
    [0.25, 0.75]
    """
    return popularity / (popularity.max(initial=0) + 1.0)


def candidate_scores(
    candidates: Candidates, popularity: Int[np.ndarray, "n"], num_cases: int
) -> Float[np.ndarray, "c n"]:
    """strength + popularity / (largest popularity + 1), dense: for a block of cases.

    >>> one = Candidates(np.array([0]), np.array([1]), np.array([7]))
    >>> candidate_scores(one, np.array([1, 3]), num_cases=1).tolist()
    [[0.25, 7.75]]
    """
    scores = np.tile(popularity_scores(popularity), (num_cases, 1))
    scores[candidates.case, candidates.item] += candidates.strength
    return scores


def candidate_ranks(
    candidates_of: Callable[[CaseHistories], Candidates],
    popularity: Int[np.ndarray, "n"],
    histories: CaseHistories,
    targets: Int[np.ndarray, "c"],
    *,
    seen_masked: bool,
) -> Int[np.ndarray, "c"]:
    """`UntrainedRanker.ranks`, block by block.

    Args:
        candidates_of: gives the candidates of a block of cases.
        popularity: orders equal strengths and all that is no candidate.
        histories, targets, seen_masked: as `UntrainedRanker.ranks`.

    Raises:
        ValueError: a target outside the catalogue.
    """
    num_items = len(popularity)
    if len(targets) and not 0 <= targets.min() <= targets.max() < num_items:
        raise ValueError(
            f"Targets are catalogue rows 0 to {num_items - 1}, got {targets.min()} to "
            f"{targets.max()}."
        )
    priority = item_priority(popularity)
    ranks = np.zeros(len(targets), np.int64)
    for first in range(0, len(targets), BLOCK):
        part = slice(first, first + BLOCK)
        block = histories.rows(first, first + BLOCK)
        seen = _seen_keys(block, num_items, seen_masked)
        goal = targets[part].astype(np.int64)
        ranks[part] = _block_ranks(candidates_of(block), goal, seen, priority)
    return ranks


def candidate_lists(
    candidates_of: Callable[[CaseHistories], Candidates],
    popularity: Int[np.ndarray, "n"],
    histories: CaseHistories,
    k: int,
    *,
    seen_masked: bool,
) -> TopItems:
    """`UntrainedRanker.top_items`, block by block; arguments as `candidate_ranks`.

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
    priority, fraction = item_priority(popularity), popularity_scores(popularity)
    for first in range(0, num_cases, BLOCK):
        block = histories.rows(first, first + BLOCK)
        seen = _seen_keys(block, len(popularity), seen_masked)
        best, place = _block_lists(candidates_of(block), block.num_cases, k, seen, priority)
        at = first + best.case, place
        top.items[at] = best.item
        top.scores[at] = best.strength + fraction[best.item]
        top.valid[at] = True
    return top


def best_of_each_case(
    candidates: Candidates, priority: Int[np.ndarray, "n"], k: int, num_cases: int
) -> tuple[Candidates, Int[np.ndarray, "p"]]:
    """The k strongest candidates of each case, best first, and the place of each from 0.

    Ties go to the smaller priority.

    >>> three = Candidates(np.array([0, 0, 0]), np.array([4, 2, 3]), np.array([1, 5, 1]))
    >>> best, place = best_of_each_case(three, np.arange(5), k=2, num_cases=1)
    >>> best.item.tolist(), place.tolist()
    ([2, 3], [0, 1])
    """
    near = candidates.part(_among_strongest(candidates, np.full(num_cases, k)))
    order = np.lexsort((priority[near.item], -near.strength, near.case))
    case = near.case[order]
    length = _count(case, num_cases)
    place = np.arange(len(case)) - (np.cumsum(length) - length)[case]
    kept = place < k
    return near.part(order[kept]), place[kept]


def _block_ranks(
    candidates: Candidates,
    targets: Int[np.ndarray, "c"],
    seen: Int[np.ndarray, "s"],
    priority: Int[np.ndarray, "n"],
) -> Int[np.ndarray, "c"]:
    num_cases, num_items = len(targets), len(priority)
    case, item, strength = candidates
    is_target = item == targets[case]
    goal = np.zeros(num_cases, np.int64)
    goal[case[is_target]] = strength[is_target]

    sooner = priority[item] < priority[targets[case]]
    beats = (strength > goal[case]) | ((strength == goal[case]) & sooner)
    # A target that is no candidate stands behind all candidates and behind the more popular items;
    # candidates that are more popular would count twice.
    ahead = np.where(goal[case] > 0, beats, ~sooner)
    ahead[ahead] = ~_among(case[ahead] * num_items + item[ahead], seen)
    seen_case, seen_item = np.divmod(seen, max(num_items, 1))
    seen_sooner = priority[seen_item] < priority[targets[seen_case]]
    more_popular = priority[targets] - _count(seen_case[seen_sooner], num_cases)
    ranks = 1 + _count(case[ahead], num_cases) + np.where(goal > 0, 0, more_popular)
    masked = _among(np.arange(num_cases) * num_items + targets, seen)
    return np.where(masked, 0, ranks)


def _block_lists(
    candidates: Candidates,
    num_cases: int,
    k: int,
    seen: Int[np.ndarray, "s"],
    priority: Int[np.ndarray, "n"],
) -> tuple[Candidates, Int[np.ndarray, "p"]]:
    """What stands in the lists, and where; popular items have strength 0."""
    num_items = len(priority)
    # k survive the removal of r items when the k + r strongest are kept.
    room = k + _count(seen // max(num_items, 1), num_cases)
    near = candidates.part(_among_strongest(candidates, room))
    keys = np.sort(near.case * num_items + near.item)
    found = near.part(~_among(near.case * num_items + near.item, seen))

    missing = k - _count(found.case, num_cases)
    drawn = np.where(missing > 0, room + _count(near.case, num_cases), 0)
    popular_case, place = expand_ranges(0 * drawn, np.minimum(drawn, num_items))
    popular = np.argsort(priority)[place]
    popular_keys = popular_case * num_items + popular
    fresh = ~(_among(popular_keys, seen) | _among(popular_keys, keys))
    filled = Candidates(
        np.concatenate([found.case, popular_case[fresh]]),
        np.concatenate([found.item, popular[fresh]]),
        np.concatenate([found.strength, np.zeros(int(fresh.sum()), np.int64)]),
    )
    return best_of_each_case(filled, priority, k, num_cases)


def _among_strongest(candidates: Candidates, room: Int[np.ndarray, "c"]) -> Bool[np.ndarray, "p"]:
    """Which candidates are among the `room` strongest of their case; ties with the last stay.

    One sort of plain numbers, so that only the few that can enter a list are sorted by all rules.
    """
    case, strength = candidates.case, candidates.strength
    limit = int(strength.max(initial=0)) + 1
    length = _count(case, len(room))
    if (length <= room).all() or limit > 2**63 // len(room) - 1:
        return np.ones(len(case), bool)
    weakness = case * limit + (limit - 1 - strength)
    end = np.cumsum(length)
    last = np.minimum(end - length + room, end) - 1
    return weakness <= np.sort(weakness)[last][case]


def _seen_keys(histories: CaseHistories, num_items: int, seen_masked: bool) -> Int[np.ndarray, "s"]:
    """The masked pairs (case, item) as case * num_items + item, ascending, each once."""
    if not seen_masked:
        return np.zeros(0, np.int64)
    case, item = histories.pairs()
    return np.unique(case * num_items + item)


def _among(keys: Int[np.ndarray, "p"], known: Int[np.ndarray, "q"]) -> Bool[np.ndarray, "p"]:
    """Which keys are in the ascending `known`; much faster than `np.isin`, which sorts both."""
    if not len(known):
        return np.zeros(len(keys), bool)
    return known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys


def _count(case: Int[np.ndarray, "p"], num_cases: int) -> Int[np.ndarray, "c"]:
    return np.bincount(case, minlength=num_cases)
