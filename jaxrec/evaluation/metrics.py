"""Ranking metrics as pure functions of ranks and lists (METHODS E1, E2, E6).

A rank is 1 for the best place and 0 when the target was not found. With one target a case,
HR@K and Recall@K are the same number; it is called recall here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

CUTOFFS = (1, 5, 10, 50)
"""List lengths that every report prints."""

DENOMINATORS = ("targets", "capped")
"""What multi-target recall is divided by: |T|, or min(K, |T|)."""


def per_case_metrics(
    ranks: Int[np.ndarray, "c"], cutoffs: Sequence[int] = CUTOFFS
) -> dict[str, Float[np.ndarray, "c"]]:
    """Recall@K, NDCG@K and MRR@K of every case, for bootstraps and paired comparisons.

    Recall@K = 1[rank <= K]; NDCG@K = 1[rank <= K] / log2(rank + 1); MRR@K = 1[rank <= K] / rank.

    Raises:
        ValueError: a negative rank or a cutoff below 1.

    >>> per_case_metrics(np.array([1, 3, 0]), cutoffs=(2,))["recall@2"].tolist()
    [1.0, 0.0, 0.0]
    """
    _check_cutoffs(cutoffs)
    if len(ranks) and ranks.min() < 0:
        raise ValueError(f"Ranks are 1 for the best place and 0 for not found, got {ranks.min()}.")
    place = np.maximum(ranks, 1).astype(np.float64)
    metrics = {}
    for cutoff in cutoffs:
        hit = ((ranks > 0) & (ranks <= cutoff)).astype(np.float64)
        metrics[f"recall@{cutoff}"] = hit
        metrics[f"ndcg@{cutoff}"] = hit / np.log2(place + 1)
        metrics[f"mrr@{cutoff}"] = hit / place
    return metrics


def rank_metrics(ranks: Int[np.ndarray, "c"], cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """Means over cases of `per_case_metrics`.

    Raises:
        ValueError: no case, a negative rank, or a cutoff below 1.

    >>> metrics = rank_metrics(np.array([1, 3, 0, 11]), cutoffs=(10,))
    >>> {name: round(value, 4) for name, value in metrics.items()}
    {'recall@10': 0.5, 'ndcg@10': 0.375, 'mrr@10': 0.3333}
    """
    if not len(ranks):
        raise ValueError("There is no case to average over; give at least one rank.")
    return {name: float(v.mean()) for name, v in per_case_metrics(ranks, cutoffs).items()}


def per_user_means(
    values: Float[np.ndarray, "c"], users: Int[np.ndarray, "c"]
) -> Float[np.ndarray, "u"]:
    """Mean of each user's cases, users in ascending order of their number.

    The mean of the result is the mean over users, where a user with many cases counts once.

    >>> per_user_means(np.array([1.0, 0.0, 1.0]), np.array([5, 5, 9])).tolist()
    [0.5, 1.0]
    """
    _, user = np.unique(users, return_inverse=True)
    return np.bincount(user, values) / np.bincount(user)


def collision_aware_metrics(
    first: Int[np.ndarray, "c"], group: Int[np.ndarray, "c"], cutoff: int
) -> tuple[Float[np.ndarray, "c"], Float[np.ndarray, "c"]]:
    """Expected item-level (hit, NDCG)@K where the target shares its semantic ID (METHODS E2).

    Items of one semantic ID cannot be told apart, so the target is equally likely at each place of
    its group: with m = min(g, max(0, K - p + 1)) places inside the list, hit = m / g and
    NDCG = (1/g) sum_{e=1..m} 1 / log2(p + e). From arXiv 2605.25330.

    Args:
        first: p, the place of the group's first item (1 + items of the groups before); 0 where the
            group was not found.
        group: g, items that share the target's semantic ID, the target included.
        cutoff: K.

    Raises:
        ValueError: a group below 1 or a cutoff below 1.

    >>> hit, ndcg = collision_aware_metrics(np.array([1, 3]), np.array([1, 4]), cutoff=5)
    >>> hit.tolist(), ndcg.round(4).tolist()
    ([1.0, 0.75], [1.0, 0.3294])
    """
    _check_cutoffs((cutoff,))
    if len(group) and group.min() < 1:
        raise ValueError(f"A group holds the target itself, so at least 1 item; got {group.min()}.")
    inside = np.minimum(group, np.maximum(0, cutoff - first + 1))
    inside = np.where(first > 0, inside, 0)
    # gains[i] is the summed discount of the first i places of a list.
    gains = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, cutoff + 2)))])
    begin = np.clip(first - 1, 0, cutoff)
    return inside / group, (gains[np.minimum(begin + inside, cutoff)] - gains[begin]) / group


def multi_target_recall(
    relevant: Bool[np.ndarray, "c k"],
    num_targets: Int[np.ndarray, "c"],
    cutoff: int,
    denominator: str,
) -> Float[np.ndarray, "c"]:
    """Recall@K of cases with several targets.

    Args:
        relevant: whether the item at each place of the list is one of the case's targets.
        num_targets: |T| of each case.
        cutoff: K; lists shorter than K count as they are.
        denominator: "targets" divides the hits by |T| (the common definition), "capped" by
            min(K, |T|) (GRID), so that a full list of hits gives 1.

    Raises:
        ValueError: an unknown denominator, or a case without a target.

    >>> relevant = np.array([[True, True]])
    >>> [multi_target_recall(relevant, np.array([4]), 2, d).item() for d in DENOMINATORS]
    [0.5, 1.0]
    """
    _check_cutoffs((cutoff,))
    if denominator not in DENOMINATORS:
        raise ValueError(
            f"Unknown denominator {denominator!r}; choose 'targets' (|T|) or 'capped' (min(K,|T|))."
        )
    if len(num_targets) and num_targets.min() < 1:
        raise ValueError("Every case needs at least one target; drop the cases without one.")
    hits = relevant[:, :cutoff].sum(axis=1)
    return hits / (num_targets if denominator == "targets" else np.minimum(num_targets, cutoff))


def exposure(
    items: Int[np.ndarray, "c k"], valid: Bool[np.ndarray, "c k"], num_items: int, cutoff: int
) -> Int[np.ndarray, "n"]:
    """How often each item of the catalogue stands in the first `cutoff` places of a list."""
    _check_cutoffs((cutoff,))
    return np.bincount(items[:, :cutoff][valid[:, :cutoff]], minlength=num_items)


def gini(counts: Int[np.ndarray, "n"] | Float[np.ndarray, "n"]) -> float:
    """Gini coefficient of non-negative counts, zeros included: 0 is equal, near 1 is one takes all.

    With counts sorted ascending and C their running sum, G = (n + 1)/n - 2 sum(C) / (n C_n). Leave
    the zeros out before the call to measure only what was used at all: that is a different number.

    Raises:
        ValueError: nothing to measure (no count above 0), or a negative count.

    >>> gini(np.array([1, 2, 3, 4])), gini(np.array([0, 0, 0, 4])), gini(np.array([4]))
    (0.25, 0.75, 0.0)
    """
    if not len(counts) or counts.min() < 0 or counts.sum() <= 0:
        raise ValueError("Gini needs counts that are not negative and not all zero.")
    running = np.cumsum(np.sort(counts).astype(np.float64))
    n = len(counts)
    return float((n + 1) / n - 2 * running.sum() / (n * running[-1]))


def novelty(
    items: Int[np.ndarray, "c k"],
    valid: Bool[np.ndarray, "c k"],
    popularity: Int[np.ndarray, "n"],
    cutoff: int,
) -> float:
    """Mean over cases of the list's mean self-information -log2 p(item), in bits.

    p = (count + 1) / (events + n): one is added to every count so that an item that training never
    saw has a finite surprise. Cases with an empty list are left out; no list at all gives 0.

    >>> novelty(np.array([[0], [1]]), np.ones((2, 1), bool), np.array([3, 3]), cutoff=1)
    1.0
    """
    _check_cutoffs((cutoff,))
    inside = valid[:, :cutoff]
    bits = -np.log2((popularity + 1) / (popularity.sum() + len(popularity)))
    total = np.where(inside, bits[np.where(inside, items[:, :cutoff], 0)], 0).sum(axis=1)
    length = inside.sum(axis=1)
    return float((total[length > 0] / length[length > 0]).mean()) if length.any() else 0.0


def list_metrics(
    items: Int[np.ndarray, "c k"],
    valid: Bool[np.ndarray, "c k"],
    popularity: Int[np.ndarray, "n"],
    cutoffs: Sequence[int] = (10,),
) -> dict[str, float]:
    """What the lists look like, whether or not they hit (METHODS E6).

    `coverage@K`: share of the catalogue that stands in at least one list; `gini@K`: inequality of
    exposure over the whole catalogue, never-shown items included; `novelty@K`: see `novelty`.

    Args:
        items: recommended catalogue rows, best first; any value where `valid` is False.
        valid: which places of a list are filled.
        popularity: training events of each item.
        cutoffs: list lengths K.

    >>> lists = np.array([[0, 1], [0, 2]])
    >>> metrics = list_metrics(lists, np.ones((2, 2), bool), np.array([5, 1, 1, 1]), cutoffs=(2,))
    >>> metrics["coverage@2"]
    0.75
    """
    metrics = {}
    for cutoff in cutoffs:
        shown = exposure(items, valid, len(popularity), cutoff)
        metrics[f"coverage@{cutoff}"] = float((shown > 0).mean())
        metrics[f"gini@{cutoff}"] = gini(shown) if shown.any() else 0.0
        metrics[f"novelty@{cutoff}"] = novelty(items, valid, popularity, cutoff)
    return metrics


def _check_cutoffs(cutoffs: Sequence[int]) -> None:
    if not cutoffs or min(cutoffs) < 1:
        raise ValueError(f"Cutoffs are list lengths of at least 1, got {tuple(cutoffs)}.")
