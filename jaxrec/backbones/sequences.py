"""Events as sequences of tokens: what the input of a causal decoder is made of.

A decoder reads at every place *what came before*, so the state at an event predicts that event.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from jaxrec.backbones.masks import TokenMetadata


def segment_starts(segment: Int32[Array, "b t"]) -> Bool[Array, "b t"]:
    """True at the first event of each history of a row."""
    before = jnp.pad(segment[:, :-1], ((0, 0), (1, 0)))
    return segment != before


def follow(bos: Array, x: Float[Array, "b t d"], starts: Bool[Array, "b t"]) -> Array:
    """Every token's predecessor: `x` one place to the right, BOS where a history starts."""
    return jnp.where(starts[..., None], bos, jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0))))


def prefix_sums(vectors: Float[Array, "l b t d"]) -> tuple[Array, Array]:
    """Sums over the levels before each level `[l b t d]`, and over all levels `[b t d]`."""
    sums = [jnp.zeros_like(vectors[0])]
    for level in range(vectors.shape[0]):
        sums.append(sums[-1] + vectors[level])
    return jnp.stack(sums[:-1]), sums[-1]


def flatten_levels(vectors: Float[Array, "l b t d"]) -> Float[Array, "b s d"]:
    """Codes in reading order: all codes of an event, then those of the next."""
    levels, rows, time, width = vectors.shape
    return jnp.moveaxis(vectors, 0, 2).reshape(rows, time * levels, width)


def mark_first_code(starts: Bool[Array, "b t"], levels: int) -> Bool[Array, "b s"]:
    """Marks the first code of the marked events."""
    first = jnp.arange(levels) == 0
    return (starts[..., None] & first).reshape(starts.shape[0], -1)


def code_metadata(segment: Array, position: Array, levels: int) -> TokenMetadata:
    """Metadata of codes in reading order."""
    positions = position[..., None] * levels + jnp.arange(levels, dtype=position.dtype)
    return TokenMetadata(
        jnp.repeat(segment, levels, axis=1), positions.reshape(position.shape[0], -1)
    )
