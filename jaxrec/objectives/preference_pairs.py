"""Chosen against rejected items, as log-probabilities: what the DPO family reads (METHODS O12-O17).

With `pi` the policy and `ref` the frozen one that it started from, the logit of a pair is

    x = beta [ (log pi - log ref)(chosen) - (log pi - log ref)(rejected) ]

(Rafailov et al., arXiv:2305.18290). Here `n` counts the rejected items of a row.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Metrics = dict[str, tuple[Array, Array]]
"""Every metric as (sum, weight)."""


class ScoredPairs(NamedTuple):
    """One chosen item a row and `n` rejected ones.

    What does not count may hold anything; what counts is finite (an item that neither network can
    write has no log-probability, and is not valid).
    """

    chosen: Float[Array, " b"]
    """Log-probability of the chosen item under the policy, the sum over its codes, in nats."""
    rejected: Float[Array, "b n"]
    """The same of the rejected items."""
    reference_chosen: Float[Array, " b"]
    """Log-probability of the chosen item under the reference, with the same normalisation."""
    reference_rejected: Float[Array, "b n"]
    """The same of the rejected items."""
    valid: Bool[Array, "b n"]
    """Which rejected items exist. A row with none has no weight."""
    equal: Bool[Array, "b n"] | None = None
    """Which rejected items are the chosen one, see `shared_prefix`; None where none can be. Equal
    log-probabilities do not tell: under a uniform policy all items have the same."""
    gap: Float[Array, "b n"] | None = None
    """Reward of the chosen item minus that of the rejected one; for weighted objectives only."""
    smoothing: Float[Array, " b"] | None = None
    """Probability, in [0, .5], that a row's preference is the wrong way round; for RosePO only."""


def counted(pairs: ScoredPairs) -> Bool[Array, "b n"]:
    """Which pairs count: the rejected item exists, and is not the chosen one."""
    return pairs.valid if pairs.equal is None else pairs.valid & ~pairs.equal


def pair_logits(pairs: ScoredPairs, beta: float) -> Float[Array, "b n"]:
    """Logit `x` of every pair; 0, and without a slope, where the pair does not count.

    No slope reaches the reference.

    Example:
        The policy moved 2 nats towards the chosen item, and 1 nat away from the rejected one:

        >>> import jax.numpy as jnp
        >>> pairs = ScoredPairs(
        ...     chosen=jnp.array([-1.0]),
        ...     rejected=jnp.array([[-5.0]]),
        ...     reference_chosen=jnp.array([-3.0]),
        ...     reference_rejected=jnp.array([[-4.0]]),
        ...     valid=jnp.array([[True]]),
        ... )
        >>> round(float(pair_logits(pairs, beta=0.1)[0, 0]), 4)
        0.3
    """
    counts = counted(pairs)
    reference_chosen = jax.lax.stop_gradient(pairs.reference_chosen)
    reference_rejected = jax.lax.stop_gradient(pairs.reference_rejected)
    # Before anything is subtracted, so that neither a value nor a slope can be infinite.
    of_chosen = _kept(counts, pairs.chosen[:, None]) - _kept(counts, reference_chosen[:, None])
    of_rejected = _kept(counts, pairs.rejected) - _kept(counts, reference_rejected)
    return beta * (of_chosen - of_rejected)


def pair_metrics(pairs: ScoredPairs, beta: float) -> Metrics:
    """What to watch while preferences are learnt; no slope passes.

    The margin may grow while the policy unlearns both sides, the rejected items faster: hence both
    log-probabilities (likelihood displacement, Razin et al., arXiv:2410.08847).

    Returns:
        As (sum, weight): `accuracy`, the share of pairs with `x > 0`; `margin`, their mean logit;
        `logp_chosen`, a mean over rows with a pair; `logp_rejected`, over pairs; `pairs_equal`, the
        share of the valid pairs that was left out because both sides are one item.
    """
    pairs = jax.lax.stop_gradient(pairs)
    counts, logits = counted(pairs), pair_logits(pairs, beta)
    rows, number = jnp.any(counts, axis=1), jnp.sum(counts).astype(jnp.float32)
    valid = jnp.sum(pairs.valid).astype(jnp.float32)
    return {
        "accuracy": (jnp.sum(logits > 0).astype(jnp.float32), number),
        "margin": (jnp.sum(logits), number),
        "logp_chosen": (jnp.sum(_kept(rows, pairs.chosen)), jnp.sum(rows).astype(jnp.float32)),
        "logp_rejected": (jnp.sum(_kept(counts, pairs.rejected)), number),
        "pairs_equal": (valid - number, valid),
    }


def sum_over_pairs(
    losses: Float[Array, "b n"], counts: Bool[Array, "b n"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of the losses of the pairs that count, and their number."""
    return jnp.sum(_kept(counts, losses)), jnp.sum(counts).astype(jnp.float32)


def sum_over_rows(
    losses: Float[Array, " b"], counts: Bool[Array, "b n"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of the losses of the rows with a pair that counts, and their number."""
    rows = jnp.any(counts, axis=1)
    return jnp.sum(_kept(rows, losses)), jnp.sum(rows).astype(jnp.float32)


def require_positive_beta(component: str, beta: float) -> None:
    """Refuses a strength that is not positive.

    Raises:
        ValueError: `beta <= 0`.
    """
    if not beta > 0:
        raise ValueError(
            f"{component} needs beta > 0, got {beta}: at 0 nothing is learnt, and below 0 the "
            "rejected items are preferred."
        )


def _kept(counts: Array, values: Array) -> Array:
    """The values in float32 at least, 0 where they do not count."""
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    return jnp.where(counts, values, 0.0)
