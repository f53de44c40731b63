"""Rows that count by weight: their moments, and batches of them for trained quantizers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray


@jax.jit
def weighted_moments(
    points: Float[Array, "n d"], weights: Float[Array, " n"]
) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """Mean and standard deviation of each dimension; the deviation of a constant one is 1."""
    shares = weights[:, None] / jnp.sum(weights)
    live = jnp.where(shares > 0, points, 0.0)
    # In two parts: one fp32 sum of numbers far from 0 is off by more than their last digit.
    first = jnp.sum(live * shares, 0)
    mean = first + jnp.sum((live - first) * shares, 0)
    scale = jnp.sqrt(jnp.sum((live - mean) ** 2 * shares, 0))
    # A constant dimension has a deviation of rounding size; dividing by it makes noise.
    return mean, jnp.where(scale <= 1e-6 * jnp.max(jnp.abs(live), 0), 1.0, scale)


def weight_ends(weights: Float[Array | np.ndarray, " n"]) -> Float[Array, " n"]:
    """Where each row's share of the total weight ends, ascending to 1, for `draw_rows`.

    >>> weight_ends(np.array([1.0, 0.0, 2.0, 1.0])).tolist()
    [0.25, 0.25, 0.75, 1.0]
    """
    ends = np.cumsum(np.asarray(weights, np.float64))
    return jnp.asarray(ends / ends[-1], jnp.float32)


def draw_rows(key: PRNGKeyArray, ends: Float[Array, " n"], count: int) -> Int[Array, " {count}"]:
    """One row from each of `count` equal parts of the weight.

    A batch so drawn spreads over all rows, holds each in proportion to its weight on average, and
    never one without weight.

    Args:
        ends: of `weight_ends`.
    """
    below_one = 1.0 - 2.0**-24
    places = (jnp.arange(count) + jax.random.uniform(key, (count,))) / count
    return jnp.searchsorted(ends, jnp.minimum(places, below_one), side="right")
