"""RosePO: DPO whose smoothing an oracle gives for every row (METHODS O14).

    L = -(1 - e) log sigma(x) - e log sigma(-x)

with `x` the logit of a pair and `e` the probability, as a preference oracle sees it, that the
preference is the wrong way round (Liao et al., arXiv:2410.12519). That the factor stands so is
inferred from the abstract and unverified. How rejected items are sampled is no part of the loss.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.objectives.dpo import dpo_losses
from jaxrec.objectives.preference_pairs import (
    Metrics,
    ScoredPairs,
    counted,
    pair_logits,
    pair_metrics,
    require_positive_beta,
    sum_over_pairs,
)


def rose_po_loss(pairs: ScoredPairs, beta: float) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of the losses of all pairs, and their number. No slope reaches the oracle.

    Raises:
        ValueError: the pairs have no smoothing.
    """
    counts = counted(pairs)
    losses = dpo_losses(pair_logits(pairs, beta), _smoothing(pairs)[:, None])
    return sum_over_pairs(losses, counts)


@dataclasses.dataclass(frozen=True)
class RosePO:
    """Chosen over rejected, each row as far as its preference is believed.

    Reads `pairs.smoothing`: 0 is DPO, and at .5 a row prefers nothing.

    Raises:
        ValueError: a beta that is not positive.
    """

    beta: float = 0.1
    """How dearly the policy leaves the reference; the paper's is unverified."""

    def __post_init__(self) -> None:
        require_positive_beta("RosePO", self.beta)

    def __call__(self, pairs: ScoredPairs) -> tuple[Array, Array, Metrics]:
        """Sum, number of pairs, and the metrics of `pair_metrics` with `smoothing`, the mean over
        rows with a pair."""
        total, weight = rose_po_loss(pairs, self.beta)
        rows = jnp.any(counted(pairs), axis=1)
        smoothing = jnp.sum(_smoothing(pairs)), jnp.sum(rows).astype(jnp.float32)
        return total, weight, {**pair_metrics(pairs, self.beta), "smoothing": smoothing}


def _smoothing(pairs: ScoredPairs) -> Float[Array, " b"]:
    """Of each row; 0 where no pair counts, for it may be no number there."""
    if pairs.smoothing is None:
        raise ValueError(
            "RosePO reads pairs.smoothing, the probability that a row's preference is wrong; these "
            "pairs have none. Ask a preference oracle, or use DPO(label_smoothing=...)."
        )
    rows = jnp.any(counted(pairs), axis=1)
    return jax.lax.stop_gradient(jnp.where(rows, pairs.smoothing, 0.0))
