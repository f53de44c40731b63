"""Even assignment by optimal transport: every code gets its share of the rows (METHODS T2).

LC-Rec (arXiv:2311.09049), LETTER and MiniOneRec balance the last level of an RQ-VAE so, after Asano
et al., "Self-labelling via simultaneous clustering and representation learning" (arXiv:1911.05371).
Their epsilon of .003 asks for exp(333): they go to float64, here all is in logarithms.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


def sinkhorn_plan(
    distances: Float[Array, "b k"],
    *,
    epsilon: float = 0.003,
    iterations: int = 50,
    weights: Float[Array, " b"] | None = None,
) -> Float[Array, "b k"]:
    """Logarithm of the entropic transport plan from rows to codes of even shares.

    Distances are brought to -1 .. 1 over the whole batch (LC-Rec), so `epsilon` means the same for
    all vectors. The plan ends with the rows: each sums to its share, columns to 1 / k as far as
    the iterations got. Equal rows get equal plans: an even plan does not separate them.

    Args:
        distances: float32, of every row to every code.
        epsilon: entropy; small is near to a hard assignment and needs more iterations.
        iterations: of both scalings.
        weights: share of each row in the mass, 0 for padding; even by default.
    """
    rows, codes = distances.shape
    weights = jnp.ones(rows, jnp.float32) if weights is None else weights
    live = (weights > 0)[:, None]
    high = jnp.max(jnp.where(live, distances, -jnp.inf))
    low = jnp.min(jnp.where(live, distances, jnp.inf))
    half = jnp.maximum((high - low) / 2, 1e-30)
    score = jnp.where(live, -(distances - (high + low) / 2) / half / epsilon, 0.0)
    row_mass = jnp.log(weights / jnp.sum(weights))[:, None]
    column_mass = -jnp.log(codes)

    def scale(_: Any, potentials: tuple[Array, Array]) -> tuple[Array, Array]:
        by_row, _ = potentials
        by_column = column_mass - jax.nn.logsumexp(score + by_row, axis=0, keepdims=True)
        by_row = row_mass - jax.nn.logsumexp(score + by_column, axis=1, keepdims=True)
        return by_row, by_column

    start = (row_mass, jnp.zeros((1, codes), jnp.float32))
    by_row, by_column = jax.lax.fori_loop(0, iterations, scale, start)
    return score + by_row + by_column


def sinkhorn_codes(
    distances: Float[Array, "b k"],
    *,
    epsilon: float = 0.003,
    iterations: int = 50,
    weights: Float[Array, " b"] | None = None,
) -> Int32[Array, " b"]:
    """The code with the largest part of each row's mass, the lowest among equals."""
    plan = sinkhorn_plan(distances, epsilon=epsilon, iterations=iterations, weights=weights)
    return jnp.argmax(plan, axis=1).astype(jnp.int32)
