"""Direct preference optimisation, with its smoothed, squared and hinge forms (METHODS O12).

With `x` the logit of a pair (`jaxrec.objectives.preference_pairs`) and `e` the smoothing:

    sigmoid  -(1 - e) log sigma(x) - e log sigma(-x)   DPO (arXiv:2305.18290) at e = 0, else cDPO
    ipo      (x / beta - 1 / (2 beta))^2               IPO (Azar et al., arXiv:2310.12036)
    hinge    max(0, 1 - x)                             RSO (arXiv:2309.06657), the SVM of DPO; after
                                                       SLiC (arXiv:2305.10425)

cDPO is a note by Eric Mitchell (2023): labels are the wrong way round with probability `e`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.objectives.preference_pairs import (
    Metrics,
    ScoredPairs,
    counted,
    pair_logits,
    pair_metrics,
    require_positive_beta,
    sum_over_pairs,
)

LOSSES = ("sigmoid", "ipo", "hinge")


def dpo_losses(
    logits: Float[Array, "*n"], smoothing: float | Float[Array, "*#n"] = 0.0
) -> Float[Array, "*n"]:
    """Loss of each pair in nats, `softplus(-x) + e x`.

    The two logarithms of the definition differ by `x`, so one is enough.

    Args:
        logits: of the pairs; any size is safe.
        smoothing: `e`, one number or one a pair.

    Example:
        >>> import jax.numpy as jnp
        >>> dpo_losses(jnp.array([0.0, -1e4, 1e4])).round(4).tolist()  # log 2 first
        [0.6930999755859375, 10000.0, 0.0]
    """
    return jax.nn.softplus(-logits) + smoothing * logits


def ipo_losses(logits: Float[Array, "*n"], beta: float) -> Float[Array, "*n"]:
    """Squared distance of the log-ratio from `1 / (2 beta)`: it is drawn there, and no further.

    For the sum over an item's codes, as in the paper. Some libraries take the mean over tokens,
    which is another beta where all items have as many codes.

    >>> import jax.numpy as jnp
    >>> ipo_losses(jnp.array([0.0, 0.5]), beta=0.5).tolist()
    [1.0, 0.0]
    """
    return jnp.square((logits - 0.5) / beta)


def hinge_losses(logits: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """How far each logit is below 1.

    >>> import jax.numpy as jnp
    >>> hinge_losses(jnp.array([0.0, 2.0])).tolist()
    [1.0, 0.0]
    """
    return jax.nn.relu(1.0 - logits)


def dpo_loss(
    pairs: ScoredPairs, beta: float, *, label_smoothing: float = 0.0, loss: str = "sigmoid"
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of the losses of all pairs, and their number: with several rejected items a row, every
    pair counts once (the paper has one).

    Args:
        pairs: see `ScoredPairs`.
        beta: how dearly the policy leaves the reference: a large one keeps it near.
        label_smoothing: `e`, of the sigmoid only.
        loss: see the module.

    Example:
        A policy that has not moved:

        >>> import jax.numpy as jnp
        >>> zero = jnp.zeros(1), jnp.zeros((1, 2))
        >>> total, weight = dpo_loss(ScoredPairs(*zero, *zero, jnp.ones((1, 2), bool)), beta=0.1)
        >>> round(float(total / weight), 4), float(weight)
        (0.6931, 2.0)
    """
    logits = pair_logits(pairs, beta)
    if loss == "ipo":
        losses = ipo_losses(logits, beta)
    elif loss == "hinge":
        losses = hinge_losses(logits)
    else:
        losses = dpo_losses(logits, label_smoothing)
    return sum_over_pairs(losses, counted(pairs))


@dataclasses.dataclass(frozen=True)
class DPO:
    """Chosen over rejected, one pair at a time.

    Raises:
        ValueError: a beta that is not positive, an unknown loss, smoothing outside [0, .5], or
            smoothing of a loss that has none.
    """

    beta: float = 0.1
    """How dearly the policy leaves the reference; .1 is usual for language models."""
    label_smoothing: float = 0.0
    """Probability that a preference is the wrong way round; at .5 nothing is preferred."""
    loss: str = "sigmoid"
    """`sigmoid`, `ipo` or `hinge`."""

    def __post_init__(self) -> None:
        require_positive_beta("DPO", self.beta)
        if self.loss not in LOSSES:
            raise ValueError(f"loss={self.loss!r} is unknown; choose one of {', '.join(LOSSES)}.")
        if not 0.0 <= self.label_smoothing <= 0.5:
            raise ValueError(
                f"label_smoothing={self.label_smoothing} must lie in [0, .5]; above, swap the two "
                "sides."
            )
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(
                f"label_smoothing={self.label_smoothing} belongs to loss='sigmoid', not to "
                f"{self.loss!r}; set it to 0."
            )

    def __call__(self, pairs: ScoredPairs) -> tuple[Array, Array, Metrics]:
        """Sum, number of pairs, and the metrics of `pair_metrics`."""
        total, weight = dpo_loss(
            pairs, self.beta, label_smoothing=self.label_smoothing, loss=self.loss
        )
        return total, weight, pair_metrics(pairs, self.beta)
