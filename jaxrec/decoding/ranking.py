"""What all decoders do with scores: take them, add up their mass, keep the largest."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Shaped

from jaxrec.parallel import partition_spec

LOWEST = float(jnp.finfo(jnp.float32).min)
"""Score of an item that the model gives no probability at all: still an item, still above none."""


def take(values: Shaped[Array, "b n"], place: Int32[Array, "b q"]) -> Shaped[Array, "b q"]:
    """Values of each row at places that exist. A place that does not is undefined: check nothing
    twice, in a step that runs for every code of every beam."""
    return jnp.take_along_axis(values, place, axis=1, mode="promise_in_bounds")


def log_mass(logits: Float[Array, "*b k"]) -> Float[Array, "*b"]:
    """Log of the sum of exponentials over the last axis; `LOWEST` where all are -inf."""
    top = jnp.maximum(jnp.max(logits, axis=-1), LOWEST)
    mass = jnp.sum(jnp.exp(logits - top[..., None]), axis=-1)
    return jnp.maximum(top + jnp.log(mass), LOWEST)


def top_k(values: Float[Array, "b c"], k: int) -> tuple[Float[Array, "b k"], Int32[Array, "b k"]]:
    """The k largest values of each row, falling, and their places; ties to the lower place."""
    return top_k_of_blocks(values[:, None], k)


def top_k_of_blocks(
    values: Float[Array, "b t c"], k: int
) -> tuple[Float[Array, "b k"], Int32[Array, "b k"]]:
    """The k largest values of each row, falling, and their places in `t * c`; ties to the lower.

    Where there are many blocks, those with the k largest maxima are found first: the k largest
    values stand in them. A pass over all values is then a maximum, which costs a tenth of a
    selection.

    XLA gathers all rows on every device before a top-k, even when only the rows are sharded. Under
    a mesh (`jax.set_mesh`) each device therefore ranks its own rows.
    """

    def select(rows: Array) -> tuple[Array, Array]:
        # XLA knows a selection from a sort by its form, which a slice of the result would change.
        best, place = jax.lax.optimization_barrier(tuple(jax.lax.top_k(rows, k)))
        return best, place

    def rank(rows: Array) -> tuple[Array, Array]:
        batch, blocks, size = rows.shape
        if not _blocks_pay(blocks, size, k):
            return select(rows.reshape(batch, -1))
        _, block = select(jnp.max(rows, axis=-1))
        block = jnp.sort(block, axis=1)  # in their old order, so that ties go to the lower place
        few = jnp.take_along_axis(rows, block[..., None], axis=1, mode="promise_in_bounds")
        best, place = select(few.reshape(batch, -1))
        return best, take(block, place // size) * size + place % size

    if on_one_device():
        return rank(values)
    mesh = jax.sharding.get_abstract_mesh()
    spec = partition_spec(("batch", None, None), values.shape, mesh)
    best = partition_spec(("batch", None), values.shape[:2], mesh)
    return jax.shard_map(rank, in_specs=spec, out_specs=(best, best))(values)


def on_one_device() -> bool:
    """Whether the rows of a batch are all on one device: no mesh is set, or one of one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


def _blocks_pay(blocks: int, size: int, k: int) -> bool:
    """Whether selecting blocks first leaves much less to select from."""
    return blocks * size >= 4096 and 2 * (blocks + k * size) <= blocks * size
