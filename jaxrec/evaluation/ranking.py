"""From scores or lists to ranks, with every tie decided by a rule that is written down.

Ties go to the item with the smaller `priority`; without one, to the lower item. A list of
recommendations that a decoder returned and a full matrix of scores give the same ranks when the
list is long enough; tests check it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxrec.evaluation.cases import CaseHistories

Scores = Float[np.ndarray, "c n"]


class TopItems(NamedTuple):
    """The best items of every case, best first: `Ranked` in numpy.

    Where `valid` is False there was no item left: then `items` is -1 and `scores` is -inf.
    """

    items: np.ndarray
    """int32 [c, k]: catalogue rows."""
    scores: np.ndarray
    """float [c, k]."""
    valid: np.ndarray
    """bool [c, k]."""


def item_priority(popularity: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """Who wins a tie: 0 for the most popular item, and among equally popular ones the lower first.

    >>> item_priority(np.array([5, 9, 5])).tolist()
    [1, 0, 2]
    """
    priority = np.empty(len(popularity), np.int64)
    priority[np.argsort(-popularity, kind="stable")] = np.arange(len(popularity))
    return priority


def ranks_from_scores(
    scores: Scores,
    targets: Int[np.ndarray, "c"],
    *,
    priority: Int[np.ndarray, "n"] | None = None,
    seen: CaseHistories | None = None,
    block: int = 256,
) -> Int[np.ndarray, "c"]:
    """Rank of each target among the whole catalogue.

    rank = 1 + items with a higher score + items of equal score and smaller priority.

    Args:
        scores: one score an item; -inf marks an item that cannot be recommended.
        targets: catalogue row of each case's target.
        priority: who wins ties (`item_priority`); None: the lower item.
        seen: histories to mask. Their items are not candidates; a target that is masked itself is
            not found (rank 0), as is a target with score -inf.
        block: cases worked on at once; bounds the memory, not the result.

    Raises:
        ValueError: a NaN score (it would silently win), or a target outside the catalogue.

    >>> ranks_from_scores(np.array([[0.1, 0.7, 0.7]]), np.array([2])).tolist()
    [2]
    """
    _check_scores(scores, targets)
    priority = np.arange(scores.shape[1]) if priority is None else priority
    ranks = np.zeros(len(targets), np.int64)
    for first in range(0, len(targets), block):
        last = min(first + block, len(targets))
        rows, target = np.arange(last - first), targets[first:last]
        score = scores[first:last]
        goal = score[rows, target][:, None]
        ahead = (score > goal) | ((score == goal) & (priority < priority[target][:, None]))
        possible = goal[:, 0] > -np.inf
        if seen is not None:
            case, item = seen.rows(first, last).pairs()
            ahead[case, item] = False
            possible[case[item == target[case]]] = False
        ranks[first:last] = np.where(possible, 1 + ahead.sum(axis=1), 0)
    return ranks


def top_from_scores(
    scores: Scores,
    k: int,
    *,
    priority: Int[np.ndarray, "n"] | None = None,
    seen: CaseHistories | None = None,
    block: int = 256,
) -> TopItems:
    """The `k` best items of every case under the same tie rule as `ranks_from_scores`.

    Args: as `ranks_from_scores`. Lists are `k` long also where the catalogue is smaller; the places
    left over are not valid.

    Raises:
        ValueError: a NaN score, or k below 1.
    """
    _check_scores(scores, np.zeros(0, np.int64))
    if k < 1:
        raise ValueError(f"A list needs at least one place, got k={k}.")
    num_cases, num_items = scores.shape
    order = np.arange(num_items) if priority is None else np.argsort(priority)
    top = TopItems(
        np.full((num_cases, k), -1, np.int32),
        np.full((num_cases, k), -np.inf, scores.dtype),
        np.zeros((num_cases, k), bool),
    )
    width = min(k, num_items)
    for first in range(0, num_cases, block):
        last = min(first + block, num_cases)
        score = scores[first:last]
        if seen is not None:
            score = score.copy()
            score[seen.rows(first, last).pairs()] = -np.inf
        place = _first_of_order(score[:, order], width)
        best = np.take_along_axis(score, order[place], axis=1)
        valid = best > -np.inf
        top.items[first:last, :width] = np.where(valid, order[place], -1)
        top.scores[first:last, :width] = best
        top.valid[first:last, :width] = valid
    return top


def _first_of_order(score: Scores, k: int) -> Int[np.ndarray, "c k"]:
    """Columns of the k largest scores of each row, largest first, ties to the lower column."""
    least = -np.partition(-score, k - 1, axis=1)[:, k - 1 : k]
    above, equal = score > least, score == least
    room = k - above.sum(axis=1, keepdims=True)
    chosen = above | (equal & (np.cumsum(equal, axis=1) <= room))
    column = np.nonzero(chosen)[1].reshape(len(score), k)
    by_score = np.argsort(-np.take_along_axis(score, column, axis=1), axis=1, kind="stable")
    return np.take_along_axis(column, by_score, axis=1)


def ranks_in_lists(
    items: Int[np.ndarray, "c k"], valid: Bool[np.ndarray, "c k"], targets: Int[np.ndarray, "c"]
) -> Int[np.ndarray, "c"]:
    """Place of each target in its list, counted over the valid entries; 0 where it is missing.

    >>> lists, valid = np.array([[4, 9, 7]]), np.array([[True, False, True]])
    >>> ranks_in_lists(lists, valid, np.array([7])).tolist()
    [2]
    """
    return _first_match(valid & (items == targets[:, None]), np.cumsum(valid, axis=1))


def without_seen(
    items: Int[np.ndarray, "c k"], valid: Bool[np.ndarray, "c k"], seen: CaseHistories
) -> Bool[np.ndarray, "c k"]:
    """`valid` with the items of each case's history struck out.

    The list becomes shorter: to fill K places afterwards, decode K + length of the history.
    """
    if not valid.any():
        return valid.copy()
    size = int(items[valid].max()) + 1
    case, item = seen.pairs()
    known = item < size
    keys = np.unique(case[known] * size + item[known])
    row = np.arange(len(items))[:, None]
    return valid & ~np.isin(row * size + np.where(valid, items, 0), keys)


def semantic_groups(
    codes: Int[np.ndarray, "n l"], semantic_levels: int
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "g"]]:
    """Items that share their semantic codes: (group of each item, items of each group).

    Args:
        codes: codes of every item, the extra digit last when there is one.
        semantic_levels: leading levels that come from the quantizer; the rest is not looked at.

    Raises:
        ValueError: semantic_levels outside 1 .. l.
    """
    if not 1 <= semantic_levels <= codes.shape[1]:
        raise ValueError(
            f"semantic_levels={semantic_levels} does not fit codes of {codes.shape[1]} levels; "
            f"give 1 to {codes.shape[1]}."
        )
    _, group, size = np.unique(
        codes[:, :semantic_levels], axis=0, return_inverse=True, return_counts=True
    )
    return group.reshape(-1), size


def sid_ranks(
    items: Int[np.ndarray, "c k"],
    valid: Bool[np.ndarray, "c k"],
    targets: Int[np.ndarray, "c"],
    codes: Int[np.ndarray, "n l"],
    semantic_levels: int,
) -> Int[np.ndarray, "c"]:
    """SID-level rank: place of the target's semantic codes among the *distinct* ones of the list.

    This is what evaluators that compare code strings report (LETTER, DiffGRM). It is never worse
    than the item-level rank and hides collisions, so it is printed beside that, never instead.

    Args:
        items, valid: the list of every case.
        targets: catalogue row of each target.
        codes: codes of every item.
        semantic_levels: levels that come from the quantizer (`TokenSpace.semantic_levels`).
    """
    group, _ = semantic_groups(codes, semantic_levels)
    listed = np.where(valid, group[np.where(valid, items, 0)], -1)
    fresh = _first_occurrences(listed) & valid
    return _first_match(fresh & (listed == group[targets][:, None]), np.cumsum(fresh, axis=1))


def collision_ranks(
    items: Int[np.ndarray, "c k"],
    valid: Bool[np.ndarray, "c k"],
    targets: Int[np.ndarray, "c"],
    codes: Int[np.ndarray, "n l"],
    semantic_levels: int,
) -> tuple[Int[np.ndarray, "c"], Int[np.ndarray, "c"]]:
    """What `collision_aware_metrics` needs, for a list that names one item a semantic ID.

    Every semantic ID of the list stands for all items of the catalogue that share it.

    Returns:
        (p, g): place of the first item of the target's group, 0 where the group is not listed; and
        how many items the group holds.
    """
    group, size = semantic_groups(codes, semantic_levels)
    listed = np.where(valid, group[np.where(valid, items, 0)], -1)
    fresh = _first_occurrences(listed) & valid
    length = np.where(fresh, size[listed], 0)
    place = 1 + np.cumsum(length, axis=1) - length
    return _first_match(fresh & (listed == group[targets][:, None]), place), size[group[targets]]


def _first_occurrences(values: Int[np.ndarray, "c k"]) -> Bool[np.ndarray, "c k"]:
    """Where a row shows a value for the first time."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    new = np.ones(values.shape, bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    fresh = np.empty(values.shape, bool)
    np.put_along_axis(fresh, order, new, axis=1)
    return fresh


def _first_match(
    match: Bool[np.ndarray, "c k"], place: Int[np.ndarray, "c k"]
) -> Int[np.ndarray, "c"]:
    """`place` at the first True of each row, 0 in rows without one."""
    if not match.shape[1]:
        return np.zeros(len(match), np.int64)
    first = match.argmax(axis=1)
    rows = np.arange(len(match))
    return np.where(match[rows, first], place[rows, first], 0).astype(np.int64)


def _check_scores(scores: Scores, targets: Int[np.ndarray, "t"]) -> None:
    if np.isnan(scores).any():
        raise ValueError("A score is NaN; a rank cannot be given. Look at the model's outputs.")
    if len(targets) and not 0 <= targets.min() <= targets.max() < scores.shape[1]:
        raise ValueError(
            f"Targets are catalogue rows 0 to {scores.shape[1] - 1}, got {targets.min()} to "
            f"{targets.max()}."
        )
