"""Top-k that keeps a sharded batch where it is."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float, Int32

from jaxrec.parallel import partition_spec


def top_k(values: Float[Array, "b c"], k: int) -> tuple[Float[Array, "b k"], Int32[Array, "b k"]]:
    """The k largest values of each row, falling, and their places; ties to the lower place.

    XLA gathers all rows on every device before a top-k, even when only the rows are sharded. Under
    a mesh (`jax.set_mesh`) each device therefore ranks its own rows.
    """

    def rank(rows: Array) -> tuple[Array, Array]:
        best, place = jax.lax.top_k(rows, k)
        return best, place

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return rank(values)
    spec = partition_spec(("batch", None), values.shape, mesh)
    return jax.shard_map(rank, in_specs=spec, out_specs=(spec, spec))(values)
