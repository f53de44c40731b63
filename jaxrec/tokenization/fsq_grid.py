"""The grid of finite scalar quantization: which numbers a scalar may have, and codes as digits.

    y = bound(z);   digit = round(y) + n // 2, in 0 .. n - 1;   code = sum_i digit_i prod_{j<i} n_j

Mentzer, Minnen, Agustsson, Tschannen (arXiv:2309.15505).
"""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from jaxrec.tokenization.gradient_modes import straight_through

_EPSILON = 1e-3
"""By how much the bound exceeds the outermost grid values, so that they can be reached."""
MOST_VALUES = 256
"""Of a scalar; beyond 1 / epsilon the bound would reach one value too many."""


def bound(latents: Float[Array, "*b s"], grid: tuple[int, ...]) -> Float[Array, "*b s"]:
    """Squeezes scalars to where `grid[i]` integers lie, symmetrically if their number is odd.

        y = tanh(z + atanh(o / h)) h - o,   h = (n - 1)(1 + 1e-3) / 2,   o = 1/2 if n is even else 0

    0 stays 0. Of n = 8 the integers are -4 .. 3, of n = 5 they are -2 .. 2.

    Args:
        latents: any numbers; the last axis has one scalar for each entry of `grid`.
        grid: values of each scalar.
    """
    values = np.asarray(grid, np.float64)
    half = (values - 1) * (1 + _EPSILON) / 2
    offset = np.where(values % 2 == 0, 0.5, 0.0)
    shift = np.arctanh(offset / half)
    single = partial(jnp.asarray, dtype=jnp.float32)
    return jnp.tanh(latents + single(shift)) * single(half) - single(offset)


def fsq_round(bounded: Float[Array, "*b s"]) -> Float[Array, "*b s"]:
    """The nearest integers, the lower one of two; the gradient passes unchanged.

    >>> fsq_round(jnp.array([-1.4, 0.5, 1.5, 1.6])).tolist()
    [-1.0, 0.0, 1.0, 2.0]
    """
    # Adding 0 makes a minus zero a zero: equal codes, equal bits.
    return straight_through(bounded, jnp.ceil(bounded - 0.5) + 0.0)


def grid_values(digits: Int[Array, "*b s"], grid: tuple[int, ...]) -> Float[Array, "*b s"]:
    """What the decoder reads for digits 0 .. n - 1: (digit - n // 2) / (n // 2), in -1 .. 1.

    >>> grid_values(jnp.array([[0, 0], [4, 2], [7, 4]]), (8, 5)).tolist()
    [[-1.0, -1.0], [0.0, 0.0], [0.75, 1.0]]
    """
    half = jnp.asarray(grid, jnp.int32) // 2
    return (digits - half).astype(jnp.float32) / half


def codes_of_digits(digits: Int[Array, "*b s"], grid: tuple[int, ...]) -> Int32[Array, "*b"]:
    """One number for the digits of a token, sum_i digit_i prod_{j<i} n_j: the first counts units.

    >>> codes_of_digits(jnp.array([[1, 0], [0, 1], [7, 4]]), (8, 5)).tolist()
    [1, 8, 39]
    """
    return jnp.sum(digits * jnp.asarray(_place_values(grid)), -1, dtype=jnp.int32)


def digits_of_codes(codes: Int[Array, "*b"], grid: tuple[int, ...]) -> Int32[Array, "*b s"]:
    """The inverse of `codes_of_digits`, for codes 0 .. prod(grid) - 1.

    >>> digits_of_codes(jnp.array([1, 8, 39]), (8, 5)).tolist()
    [[1, 0], [0, 1], [7, 4]]
    """
    digits = codes[..., None] // jnp.asarray(_place_values(grid)) % jnp.asarray(grid, jnp.int32)
    return digits.astype(jnp.int32)


def _place_values(grid: tuple[int, ...]) -> np.ndarray:
    return np.cumprod((1, *grid[:-1])).astype(np.int32)
