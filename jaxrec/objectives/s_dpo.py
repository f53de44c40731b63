"""Softmax-DPO: one chosen item against all rejected ones of its row (METHODS O13).

    L = -log sigma( -log sum_j exp(-x_j) ) = log( 1 + sum_j exp(-x_j) )

with `x_j` the logit of the pair (`jaxrec.objectives.preference_pairs`): S-DPO (Chen et al.,
arXiv:2406.09215), the Plackett-Luce form of DPO. The rejected items that the policy likes best
weigh most. With a single one it is DPO.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrec.objectives.preference_pairs import (
    Metrics,
    ScoredPairs,
    counted,
    pair_logits,
    pair_metrics,
    require_positive_beta,
    sum_over_rows,
)


def softmax_dpo_losses(
    logits: Float[Array, "*b n"], counts: Bool[Array, "*b n"]
) -> Float[Array, "*b"]:
    """Loss of each row in nats; 0 where no pair counts.

    Args:
        logits: of the pairs; any size is safe.
        counts: which of them count.

    Example:
        A policy that has not moved, against three items:

        >>> import jax.numpy as jnp
        >>> losses = softmax_dpo_losses(jnp.zeros((1, 4)), jnp.array([[True, True, True, False]]))
        >>> round(float(losses[0]), 4)  # log 4
        1.3863
    """
    terms = jnp.where(counts, -logits, -jnp.inf)
    # The chosen item itself, exp(0): with it the sum is never empty.
    itself = jnp.zeros((*terms.shape[:-1], 1), terms.dtype)
    return jax.nn.logsumexp(jnp.concatenate([itself, terms], axis=-1), axis=-1)


def softmax_dpo_loss(pairs: ScoredPairs, beta: float) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of the losses of all rows, and the number of rows with a pair that counts."""
    counts = counted(pairs)
    return sum_over_rows(softmax_dpo_losses(pair_logits(pairs, beta), counts), counts)


@dataclasses.dataclass(frozen=True)
class SDPO:
    """Chosen over all rejected items at once.

    The paper takes 3 rejected items and beta 1; Align3GR (arXiv:2511.11255) takes 20.

    Raises:
        ValueError: a beta that is not positive.
    """

    beta: float = 1.0
    """How dearly the policy leaves the reference."""

    def __post_init__(self) -> None:
        require_positive_beta("SDPO", self.beta)

    def __call__(self, pairs: ScoredPairs) -> tuple[Array, Array, Metrics]:
        """Sum, number of rows, and the metrics of `pair_metrics`."""
        return *softmax_dpo_loss(pairs, self.beta), pair_metrics(pairs, self.beta)
