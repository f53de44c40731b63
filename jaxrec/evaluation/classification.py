"""How good predicted probabilities of yes-or-no labels are: order and calibration (METHODS O25).

For rewards and click models; what ranks a whole catalogue is measured by `metrics`.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

Bins = Literal["width", "mass"]


def auc(scores: Float[np.ndarray, "c"], labels: Bool[np.ndarray, "c"]) -> float:
    """Probability that a positive scores above a negative, a tie counting half.

    From mean ranks (Mann-Whitney), in the time of a sort.

    Raises:
        ValueError: no positive or no negative, or a score that is not a number.

    >>> auc(np.array([0.1, 0.5, 0.5, 0.9]), np.array([False, True, False, True]))
    0.875
    """
    values, _ = _group_aucs(scores, labels, np.zeros(len(labels), np.int64))
    if not len(values):
        raise ValueError(
            f"AUC needs a positive and a negative, got {int(labels.sum())} positives of "
            f"{len(labels)} cases."
        )
    return float(values[0])


def grouped_auc(
    scores: Float[np.ndarray, "c"], labels: Bool[np.ndarray, "c"], groups: Int[np.ndarray, "c"]
) -> float:
    """Mean over groups (users, requests) of their AUC, weighted by impressions (GAUC).

        sum_g impressions_g AUC_g / sum_g impressions_g

    Groups without a positive or without a negative have no AUC and are left out of both sums, as in
    DIN (arXiv:1706.06978): a model that only knows which user clicks often gets 1/2.

    Args:
        scores: of the impressions.
        labels: whether each was a success.
        groups: whose impression it was, any numbers.

    Raises:
        ValueError: no group has both, or a score that is not a number.

    >>> scores, users = np.array([0.1, 0.9, 0.8, 0.2, 0.3]), np.array([7, 7, 9, 9, 9])
    >>> grouped_auc(scores, np.array([False, True, False, True, True]), users)
    0.4
    """
    values, impressions = _group_aucs(scores, labels, groups)
    if not len(values):
        raise ValueError(
            f"GAUC needs a group with a positive and a negative; none of "
            f"{len(np.unique(groups))} groups has both."
        )
    return float((values * impressions).sum() / impressions.sum())


def calibration_error(
    probabilities: Float[np.ndarray, "c"],
    labels: Bool[np.ndarray, "c"],
    *,
    bins: int = 10,
    kind: Bins = "width",
) -> float:
    """Expected calibration error, `sum_b (n_b / n) |mean p - mean y|` (arXiv:1706.04599).

    Args:
        probabilities: between 0 and 1.
        labels: what happened.
        bins: how many.
        kind: `width` cuts 0 to 1 evenly; `mass` puts as many cases into each bin, equal
            probabilities into the same one, which rare events need: they would share one bin.

    Raises:
        ValueError: no case, a probability outside [0, 1], no bin, or an unknown kind.

    >>> calibration_error(np.array([0.25, 0.25, 0.75]), np.array([False, False, True]))
    0.25
    """
    _check_probabilities(probabilities)
    if bins < 1 or kind not in get_args(Bins):
        raise ValueError(
            f"Calibration needs bins >= 1 and a kind out of {', '.join(get_args(Bins))}, got "
            f"{bins} and {kind!r}."
        )
    if kind == "width":
        place = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    else:
        below = np.searchsorted(np.sort(probabilities), probabilities, side="left")
        place = below * bins // len(probabilities)
    gap = np.bincount(place, probabilities.astype(np.float64) - labels, minlength=bins)
    return float(np.abs(gap).sum() / len(probabilities))


def expected_over_observed(
    probabilities: Float[np.ndarray, "c"], labels: Bool[np.ndarray, "c"]
) -> float:
    """Successes that were predicted over those that came, `sum p / sum y`; 1 is unbiased.

    Raises:
        ValueError: no success, or a probability outside [0, 1].

    >>> expected_over_observed(np.array([0.5, 0.5, 0.5]), np.array([True, False, False]))
    1.5
    """
    _check_probabilities(probabilities)
    if not labels.any():
        raise ValueError("Nothing was observed to compare with; give cases with a success.")
    return float(probabilities.astype(np.float64).sum() / labels.sum())


def _group_aucs(
    scores: Float[np.ndarray, "c"], labels: Bool[np.ndarray, "c"], groups: Int[np.ndarray, "c"]
) -> tuple[Float[np.ndarray, "g"], Int[np.ndarray, "g"]]:
    """AUC and impressions of every group that has both labels."""
    if np.isnan(scores).any():
        raise ValueError("A score is not a number, so nothing can be ordered by it.")
    if not len(scores):
        return np.empty(0), np.empty(0, np.int64)
    order = np.lexsort((scores, groups))
    scores, labels, groups = scores[order], labels[order], groups[order]
    group_starts = _starts(groups[1:] != groups[:-1])
    tie_starts = _starts((groups[1:] != groups[:-1]) | (scores[1:] != scores[:-1]))
    group = np.cumsum(group_starts) - 1
    first = np.flatnonzero(group_starts)
    ties = np.flatnonzero(tie_starts)
    sizes = np.diff([*ties, len(scores)])
    # Mean rank, from 1, of the cases that tie, within their group.
    rank = np.repeat(ties + (sizes + 1) / 2, sizes) - first[group]
    count = np.bincount(group, minlength=len(first))
    positives = np.bincount(group, labels, minlength=len(first))
    above = np.bincount(group, rank * labels, minlength=len(first))
    pairs = positives * (count - positives)
    has_both = pairs > 0
    won = above - positives * (positives + 1) / 2
    return won[has_both] / pairs[has_both], count[has_both]


def _starts(changes: Bool[np.ndarray, "c"]) -> Bool[np.ndarray, "c1"]:
    """Whether each element begins a run, from whether it differs from the one before."""
    return np.concatenate([[True], changes])


def _check_probabilities(probabilities: Float[np.ndarray, "c"]) -> None:
    if not len(probabilities):
        raise ValueError("There is no case to measure; give at least one.")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError(
            "Probabilities lie between 0 and 1; give sigmoid(logits), not the logits themselves."
        )
