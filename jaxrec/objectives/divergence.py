"""How far the policy has moved from a reference, estimated from what was drawn (METHODS O18).

With `d = log p_ref(o) - log p(o)` of a drawn `o`, Schulman's three estimators of KL(p || p_ref)
("Approximating KL divergence", 2020):

    k1 = -d              unbiased, of either sign, much variance
    k2 = d^2 / 2         biased, never negative; close to the divergence where it is small
    k3 = exp(d) - d - 1  unbiased, never negative, little variance; in GRPO (arXiv:2402.03300)

All this is said of their *values*, and of draws from `p` itself. A term of a loss acts through its
slope, which is another matter, because the draw is not differentiated: averaged over draws from
`p`, the slope of k1 is zero (it regularises nothing), that of k2 is the slope of KL(p || p_ref),
and that of k3 is the slope of KL(p_ref || p).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

Estimator = Literal["k1", "k2", "k3"]

_SMALL = 1e-2
"""Below, exp(d) - d - 1 loses most of its digits in float32 and its series does not."""
_LARGEST = 40.0
"""Beyond, exp goes on as a straight line: far away is not infinite, and still has a slope."""


def kl_terms(
    log_probs: Float[Array, "*n"], reference: Float[Array, "*n"], estimator: Estimator = "k3"
) -> Float[Array, "*n"]:
    """Estimate of KL(policy || reference) at every draw, in nats.

    Args:
        log_probs: of what was drawn, under the policy.
        reference: of the same, under the reference.
        estimator: see the module.

    Raises:
        ValueError: unknown estimator.

    Example:
        >>> import jax.numpy as jnp
        >>> ours, theirs = jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25]))
        >>> [round(float(kl_terms(ours, theirs, k)[0]), 4) for k in ("k1", "k2", "k3")]
        [0.6931, 0.2402, 0.1931]
    """
    check_estimator(estimator)
    d = reference - log_probs
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return jnp.square(d) / 2
    small = jnp.abs(d) < _SMALL
    near = jnp.where(small, d, 0.0)
    far = jnp.where(small, 0.0, d)
    series = jnp.square(near) / 2 * (1 + near / 3 * (1 + near / 4))
    cut = jnp.minimum(far, _LARGEST)
    beyond = jnp.maximum(far - _LARGEST, 0.0) * math.expm1(_LARGEST)
    return jnp.where(small, series, jnp.expm1(cut) - cut + beyond)


def check_estimator(estimator: str) -> None:
    """Raises ValueError unless there is such an estimator."""
    if estimator not in get_args(Estimator):
        raise ValueError(
            f"kl_estimator={estimator!r} is unknown; choose one of "
            f"{', '.join(get_args(Estimator))}."
        )
