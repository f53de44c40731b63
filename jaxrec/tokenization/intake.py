"""Vectors of any origin to rows on the device that a fit may overwrite.

Arrays of the host, memory-mapped ones among them, come over in pieces: at no time are there two
copies beside the caller's own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrec.tokenization.quantizer import check_vectors

_PIECE = 2**16
"""Rows that are moved at once."""
_MULTIPLE = 2**12
"""Many rows are filled up to a multiple of this, so that blocks of them need no padding."""


def own_rows(
    vectors: Any, weights: Float[Array, " n"]
) -> tuple[Float[Array, "m d"], Float[Array, " m"]]:
    """A copy of the vectors that nobody else holds, and its weights: m >= n, rows added weigh 0.

    Args:
        vectors: Float[n, d], numpy (memory-mapped or not) or jax; sharded rows stay sharded.
        weights: of `check_weights`.

    Raises:
        ValueError: what `check_vectors` raises.
    """
    if not hasattr(vectors, "shape"):
        vectors = np.asarray(vectors, np.float32)
    rows = vectors.shape[0] if vectors.ndim else 0
    more = -rows % _MULTIPLE if rows > _PIECE else 0
    weights = jnp.pad(weights, (0, more))
    if isinstance(vectors, jax.Array) or vectors.ndim != 2 or rows <= _PIECE:
        return _copy(check_vectors(vectors), more=more), weights
    owned = jnp.zeros((rows + more, vectors.shape[1]), jnp.float32)
    for start in range(0, rows, _PIECE):
        owned = _write(owned, check_vectors(vectors[start : start + _PIECE]), start)
    return owned, weights


@partial(jax.jit, static_argnames=("more",))
def _copy(points: Array, *, more: int) -> Array:
    return jnp.pad(points, ((0, more), (0, 0)))


@partial(jax.jit, donate_argnums=0)
def _write(owned: Array, piece: Array, start: int | Array) -> Array:
    return jax.lax.dynamic_update_slice(owned, piece, (start, 0))
