"""Attention with linear biases (Press et al., arXiv:2108.12409): far keys score lower.

    bias_h(q, k) = -m_h |position_q - position_k|,   m_h = 2^(-8 h / heads), h = 1 .. heads

There is nothing to learn, and nothing that ends at the length of training. Numbers of heads that
are no power of two interleave the slopes of the next one, as the paper's code does.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """Slope of every head.

    Raises:
        ValueError: no head.

    >>> alibi_slopes(4)
    (0.25, 0.0625, 0.015625, 0.00390625)
    >>> [round(slope, 4) for slope in alibi_slopes(3)]  # those of 2 heads, then one of 4
    [0.0625, 0.0039, 0.25]
    """
    if heads < 1:
        raise ValueError(f"heads={heads} must be at least 1.")
    power = 2 ** int(math.log2(heads))
    slopes = [2.0 ** (-8 * head / power) for head in range(1, power + 1)]
    finer = [2.0 ** (-4 * head / power) for head in range(1, 2 * power + 1)]
    return tuple(slopes + finer[::2][: heads - power])


def alibi_bias(
    query: Int32[Array, "b q"], key: Int32[Array, "b t"], heads: int
) -> Float[Array, "b h q t"]:
    """The bias that `attention` adds to its scores.

    Args:
        query: positions of the queries.
        key: positions of the keys; any origin, since only differences matter.
        heads: query heads.
    """
    distance = jnp.abs(query[:, None, :, None] - key[:, None, None, :]).astype(jnp.float32)
    return -jnp.asarray(alibi_slopes(heads), jnp.float32)[:, None, None] * distance
