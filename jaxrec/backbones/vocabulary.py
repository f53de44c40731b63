"""New rows in a trained token table: what tokens of semantic IDs begin as.

A trained table is a cloud far from the origin; a row drawn around 0 would be read as nothing the
network knows, and would win or lose every softmax. New rows are drawn where the old ones are:
around their mean, with the spread of every number (Hewitt 2021, "Initializing new word embeddings
for pretrained language models"). With vectors of the codes, rows also lie to each other as the
codes do (MME-SID, arXiv:2509.02017): a random rotation carries the vectors over.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

STARTS = ("mean", "spread", "codebook")


def new_rows(
    key: Array,
    table: Float[Array, "v d"],
    count: int,
    *,
    start: str = "spread",
    vectors: Float[Array, "c e"] | None = None,
) -> Float[Array, "c d"]:
    """Rows for new tokens of a trained table.

    Args:
        key: of the draw.
        table: the rows that were trained.
        count: rows to make.
        start: `mean`, the mean of the table and a hundredth of its spread, so that the new tokens
            begin alike; `spread`, the mean and the whole spread; `codebook`, the mean and the given
            vectors, rotated and scaled to the spread.
        vectors: of the codes, one a new row, for `codebook`.

    Returns:
        float32.

    Raises:
        ValueError: an unknown start, or no vectors for `codebook`, or not one a row.
    """
    if start not in STARTS:
        raise ValueError(f"start={start!r} is unknown; choose one of {', '.join(STARTS)}.")
    table = table.astype(jnp.float32)
    mean, spread = jnp.mean(table, axis=0), jnp.std(table, axis=0)
    if start != "codebook":
        share = 0.01 if start == "mean" else 1.0
        return mean + share * spread * jax.random.normal(key, (count, table.shape[1]))
    if vectors is None or vectors.shape[0] != count:
        given = "none" if vectors is None else f"{vectors.shape[0]}"
        raise ValueError(f"start='codebook' needs the vectors of {count} codes, got {given}.")
    vectors = vectors.astype(jnp.float32)
    centred = vectors - jnp.mean(vectors, axis=0)
    carried = centred @ _rotation(key, vectors.shape[1], table.shape[1])
    size = jnp.sqrt(jnp.mean(jnp.sum(jnp.square(carried), axis=1)))
    return mean + carried * (jnp.sqrt(jnp.sum(jnp.square(spread))) / jnp.maximum(size, 1e-12))


def _rotation(key: Array, width: int, wanted: int) -> Float[Array, "e d"]:
    """Orthonormal rows where there is room, orthonormal columns otherwise."""
    draw = jax.random.normal(key, (max(width, wanted), min(width, wanted)))
    basis = jnp.linalg.qr(draw)[0]
    return basis if width >= wanted else basis.T
