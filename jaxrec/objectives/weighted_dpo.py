"""Preferences that count by how much better the chosen item is (METHODS O17).

With `x` the logit of a pair (`jaxrec.objectives.preference_pairs`) and `g` its gap, the reward of
the chosen item minus that of the rejected one, a pair has the factor

    none            1
    gap             g                  the clearer the preference, the more it counts
    inverse_gap     1 / g              OneSug (arXiv:2506.06913): close calls count most
    softened        1 + g^-1.5         released code of OneSearch (arXiv:2509.03236)
    margin          max(0, g - m)      OneSearch's max(0, r_w - r_l - delta) with the log's rewards

and it stands before the loss of the pair, or before its logit:

    WeightedDPO               L = -f log sigma(x)
    ListDPO, softmax          L = -log sigma( -log sum_j exp(-f_j x_j) )
    ListDPO, clipped          L = -log sigma( log sum_j exp(f_j max(0, x_j - m)) )

The papers were read in notes that disagree: which rewards the margin compares, the log's or the
policy's own (`x`), and on which side of the logit OneSug's list clips, are unverified. Softmax is
what OneSearch's authors released (benchen4395/onesearch-family), without a margin. Clipped is
equation 11 of OneSearch as noted, and with one rejected item OneSug's pair-wise loss. Both papers
add the likelihood of the chosen item (OneSug's published settings: beta .5, margin .5, likelihood
.4, 4 rejected items).

The trap of `max(0, .)`: what violates the margin has no slope, so nothing is learnt from the pairs
that need it most. Hence the metric `pairs_below_margin`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrec.objectives.dpo import dpo_losses
from jaxrec.objectives.preference_pairs import (
    Metrics,
    ScoredPairs,
    counted,
    pair_logits,
    pair_metrics,
    require_positive_beta,
    sum_over_pairs,
    sum_over_rows,
)
from jaxrec.objectives.s_dpo import softmax_dpo_losses

FACTORS = ("none", "gap", "inverse_gap", "softened")
FORMS = ("softmax", "clipped")

_SMALLEST_GAP = 1e-3
"""Inverse factors grow no further below; the papers name no bound."""


def gap_factors(
    gap: Float[Array, "b n"], weighting: str, *, margin: float = 0.0
) -> Float[Array, "b n"]:
    """Factor of each pair, see the module; gaps are positive.

    Args:
        gap: reward of the chosen item minus that of the rejected one.
        weighting: see the module; not `none`. In the released code of `softened` the reward of the
            chosen item is raised to 1 at least: raise it before the gap is taken.
        margin: `m`, in units of the reward; of `margin` only.

    Example:
        >>> import jax.numpy as jnp
        >>> gap = jnp.array([[0.25, 1.0]])
        >>> gap_factors(gap, "inverse_gap").tolist()
        [[4.0, 1.0]]
        >>> gap_factors(gap, "margin", margin=0.5).tolist()
        [[0.0, 0.5]]
    """
    if weighting == "gap":
        return gap
    if weighting == "margin":
        return jax.nn.relu(gap - margin)
    held = jnp.maximum(gap, _SMALLEST_GAP)
    return 1.0 / held if weighting == "inverse_gap" else 1.0 + held**-1.5


def clipped_list_losses(
    logits: Float[Array, "*b n"],
    factors: Float[Array, "*b n"],
    counts: Bool[Array, "*b n"],
    margin: float,
) -> Float[Array, "*b"]:
    """`softplus(-log sum_j exp(f_j max(0, x_j - m)))` of each row; 0 where no pair counts.

    The easiest rejected item dominates, and at `x_j <= m` there is no slope: over `n` such items
    the loss rests at `log(1 + 1/n)`.

    Args:
        logits: of the pairs; any size is safe.
        factors: of the pairs.
        counts: which of them count.
        margin: `m`, in units of the logit.

    >>> import jax.numpy as jnp
    >>> pair = jnp.array([[-3.0]]), jnp.ones((1, 1)), jnp.ones((1, 1), bool)
    >>> round(float(clipped_list_losses(*pair, 0.0)[0]), 4)  # log 2, and no way out
    0.6931
    """
    terms = jnp.where(counts, factors * jax.nn.relu(logits - margin), -jnp.inf)
    some = jnp.any(counts, axis=-1)
    won = jax.nn.logsumexp(terms, axis=-1)
    return jnp.where(some, jax.nn.softplus(-won), 0.0)


@dataclasses.dataclass(frozen=True)
class WeightedDPO:
    """DPO whose pairs count by the gap of their rewards.

    The loss of a pair is multiplied, and the sum divided by the number of pairs and not of factors:
    small factors are a small step. A pair whose gap is not positive is no preference and left out.

    Raises:
        ValueError: a beta that is not positive, an unknown weighting, a negative margin, or a
            margin that the weighting does not read.
    """

    beta: float = 0.1
    """How dearly the policy leaves the reference."""
    weighting: str = "inverse_gap"
    """Factor of a pair: `none` (DPO), `gap`, `inverse_gap`, `softened` or `margin`."""
    margin: float = 0.0
    """Of the gap of rewards, for `margin`: pairs that do not exceed it learn nothing."""

    def __post_init__(self) -> None:
        require_positive_beta("WeightedDPO", self.beta)
        _check("weighting", self.weighting, (*FACTORS, "margin"))
        _check_margin(self.margin, "weighting", self.weighting, "margin")

    def __call__(self, pairs: ScoredPairs) -> tuple[Array, Array, Metrics]:
        """Sum, number of pairs, and the metrics of `pair_metrics` with `factor`, the mean over
        pairs; `pairs_unordered`, the share left out for its gap; and for `margin`
        `pairs_below_margin`, the share of pairs that learn nothing.

        Raises:
            ValueError: the pairs have no gap, and the weighting needs one.
        """
        pairs, factors, metrics = _weighed(pairs, self.weighting, self.margin)
        counts = counted(pairs)
        losses = factors * dpo_losses(pair_logits(pairs, self.beta))
        total, weight = sum_over_pairs(losses, counts)
        if self.weighting == "margin":
            below = jnp.sum(counts & (factors == 0)).astype(jnp.float32)
            metrics["pairs_below_margin"] = below, weight
        return total, weight, {**pair_metrics(pairs, self.beta), **metrics}


@dataclasses.dataclass(frozen=True)
class ListDPO:
    """List-wise DPO over the rejected items of a row, their logits weighted by the gap.

    Without weights `softmax` is S-DPO. A pair whose gap is not positive is no preference and left
    out.

    Raises:
        ValueError: a beta that is not positive, an unknown weighting or form, a negative margin, or
            a margin that the form does not read.
    """

    beta: float = 0.5
    """How dearly the policy leaves the reference."""
    weighting: str = "inverse_gap"
    """Factor of a logit: `none`, `gap`, `inverse_gap` or `softened`."""
    form: str = "softmax"
    """`softmax`: the hardest rejected item counts most; `clipped`: as printed, the easiest."""
    margin: float = 0.0
    """Of the logit, for `clipped`: pairs that do not exceed it learn nothing."""

    def __post_init__(self) -> None:
        require_positive_beta("ListDPO", self.beta)
        _check("weighting", self.weighting, FACTORS)
        _check("form", self.form, FORMS)
        _check_margin(self.margin, "form", self.form, "clipped")

    def __call__(self, pairs: ScoredPairs) -> tuple[Array, Array, Metrics]:
        """Sum, number of rows, and the metrics of `pair_metrics` with `factor` and
        `pairs_unordered` as `WeightedDPO`; and for `clipped` `pairs_below_margin`, the share of
        pairs without a slope.

        Raises:
            ValueError: the pairs have no gap, and the weighting needs one.
        """
        pairs, factors, metrics = _weighed(pairs, self.weighting, 0.0)
        counts, logits = counted(pairs), pair_logits(pairs, self.beta)
        if self.form == "softmax":
            losses = softmax_dpo_losses(factors * logits, counts)
        else:
            losses = clipped_list_losses(logits, factors, counts, self.margin)
            below = counts & (jax.lax.stop_gradient(logits) <= self.margin)
            number = jnp.sum(counts).astype(jnp.float32)
            metrics["pairs_below_margin"] = jnp.sum(below).astype(jnp.float32), number
        return *sum_over_rows(losses, counts), {**pair_metrics(pairs, self.beta), **metrics}


def _weighed(
    pairs: ScoredPairs, weighting: str, margin: float
) -> tuple[ScoredPairs, Float[Array, "b n"], Metrics]:
    """The pairs that are preferences at all, the factor of each, and what to report of both."""
    before = counted(pairs)
    if weighting == "none":
        factors = before.astype(jnp.float32)
    else:
        gap = _gap(pairs, weighting)
        # Pairs of one item with itself have no gap either; they stay, to be told as such.
        pairs = pairs._replace(valid=pairs.valid & ((gap > 0) | ~before))
        factors = gap_factors(gap, weighting, margin=margin)
        # A gap that does not count may be no number.
        factors = jnp.where(counted(pairs), factors, 0.0)
    was, number = (jnp.sum(each).astype(jnp.float32) for each in (before, counted(pairs)))
    metrics = {"factor": (jnp.sum(factors), number), "pairs_unordered": (was - number, was)}
    return pairs, factors, metrics


def _gap(pairs: ScoredPairs, weighting: str) -> Float[Array, "b n"]:
    """The gap of every pair; no slope reaches the reward."""
    if pairs.gap is None:
        raise ValueError(
            f"weighting={weighting!r} reads pairs.gap, the reward of the chosen item minus that of "
            "the rejected one; these pairs have none. Score both, or use weighting='none'."
        )
    return jax.lax.stop_gradient(pairs.gap)


def _check(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{field}={value!r} is unknown; choose one of {', '.join(known)}.")


def _check_margin(margin: float, field: str, value: str, reads_margin: str) -> None:
    if margin < 0:
        raise ValueError(f"margin={margin} must not be negative.")
    if margin and value != reads_margin:
        raise ValueError(
            f"margin={margin} is read by {field}={reads_margin!r} only, not by {value!r}; set it "
            "to 0."
        )
