"""Platt scaling: two numbers a logit that make probabilities as frequent as they say.

    p = sigmoid(a z + b)

fitted by maximum likelihood on cases that the network was not trained on (J. Platt, "Probabilistic
outputs for support vector machines", 1999; Guo et al., arXiv:1706.04599). It cannot change the
order of the candidates, so AUC stays what it was. Isotonic regression would make ties, and groups
of tied rewards have no advantage.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

_STEPS = 100
_CLOSE = 1e-10


class Scaling(NamedTuple):
    """`a` and `b` of each logit."""

    slope: Float[Array | np.ndarray, " m"]
    offset: Float[Array | np.ndarray, " m"]


def identity(logits: int) -> Scaling:
    """Leaves so many logits as they are."""
    return Scaling(np.ones(logits, np.float32), np.zeros(logits, np.float32))


def calibrated(logits: Float[Array, "*n m"], scaling: Scaling) -> Float[Array, "*n m"]:
    """Probabilities of logits.

    >>> import jax.numpy as jnp
    >>> calibrated(jnp.zeros((1, 2)), identity(2)).tolist()
    [[0.5, 0.5]]
    """
    return jax.nn.sigmoid(logits * scaling.slope + scaling.offset)


def fit_platt(
    logits: Float[np.ndarray, " c"],
    labels: Float[np.ndarray, " c"],
    weight: Float[np.ndarray, " c"],
) -> tuple[float, float]:
    """Slope and offset of one logit.

    Labels are smoothed as Platt does it, to (n_1 + 1) / (n_1 + 2) and 1 / (n_0 + 2) with n_1 and
    n_0 the weights of both kinds: otherwise a few cases that happen to be separable make the slope
    infinite. A slope never turns the order round: where the best one would, it is 0 and all
    candidates get the rate of the cases, which is all that the logit was found to be worth.

    Args:
        logits: finite.
        labels: 0 or 1, or anything between, which counts as that much of each.
        weight: of each case, not negative.

    Returns:
        (slope, offset); (1, 0) where nothing has weight.
    """
    total = weight.sum()
    if not total > 0:
        return 1.0, 0.0
    ones = float((weight * labels).sum())
    high, low = (ones + 1.0) / (ones + 2.0), 1.0 / (total - ones + 2.0)
    target = low + labels.astype(np.float64) * (high - low)
    share = weight.astype(np.float64) / total
    rate = float(share @ target)
    mean = float(share @ logits)
    deviation = float(np.sqrt(share @ (logits - mean) ** 2))
    constant = float(np.log(rate) - np.log1p(-rate))
    if not deviation > 0:
        return 0.0, constant
    slope, offset = _newton((logits - mean) / deviation, target, share, constant)
    if slope <= 0:
        return 0.0, constant
    return slope / deviation, offset - slope * mean / deviation


def _newton(
    z: np.ndarray, target: np.ndarray, share: np.ndarray, start: float
) -> tuple[float, float]:
    """The minimum of the cross-entropy, which is convex; steps that overshoot are halved."""
    inputs = np.stack([z.astype(np.float64), np.ones(len(z))], axis=1)

    def loss(at: np.ndarray) -> float:
        logits = inputs @ at
        return float(share @ (np.logaddexp(0.0, logits) - target * logits))

    at, now = np.array([0.0, start]), loss(np.array([0.0, start]))
    for _ in range(_STEPS):
        # tanh, since an exponential of a large logit would overflow.
        p = 0.5 + 0.5 * np.tanh(0.5 * (inputs @ at))
        gradient = inputs.T @ (share * (p - target))
        if np.abs(gradient).max() < _CLOSE:
            break
        curvature = inputs.T @ (inputs * (share * p * (1.0 - p))[:, None])
        step = np.linalg.solve(curvature + 1e-12 * np.eye(2), gradient)
        while (then := loss(at - step)) > now and np.abs(step).max() > _CLOSE:
            step = step / 2
        at, now = at - step, then
    return float(at[0]), float(at[1])
