"""The children of beams where prefixes differ much in how many they have: all of them, no more.

Popular prefixes have hundreds of children, most have one. A row of places as wide as the widest
node for every beam would then be nearly empty. But beams are different nodes, so all beams of a row
have together no more children than the widest nodes of the level have, which is known when the
catalogue is built (`TrieShape.crowd`). Their codes are read in blocks of 32 that stand beside each
other in memory, block by block and beam by beam.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from jaxrec.decoding.catalogue import BLOCK, Catalogue, code_offset
from jaxrec.decoding.children import Chosen, child_range, look_up
from jaxrec.decoding.filters import Nodes, PreparedFilters, mark
from jaxrec.decoding.ranking import LOWEST, take, top_k_of_blocks

SMALL = 1024
"""Places of a row up to which it is not worth the while."""


class Crowd(NamedTuple):
    """Children of the beams of a row, in blocks of one beam each."""

    exists: Bool[Array, "b t c"]
    """Whether there is a child that has an item to give."""
    code: Int32[Array, "b t c"]
    """Its last code."""
    beam: Int32[Array, "b t"]
    """The beam that the children of each block belong to."""
    first: Int32[Array, "b t"]
    """Node at the start of each block."""

    def pick(self, values: Float[Array, "b w k"]) -> Float[Array, "b t c"]:
        """Values by code at the places."""
        flat = self.beam[..., None] * values.shape[-1] + self.code
        found = take(values.reshape(flat.shape[0], -1), flat.reshape(flat.shape[0], -1))
        return found.reshape(flat.shape)

    def log_mass(self, logits: Float[Array, "b w k"]) -> Float[Array, "b w"]:
        """Log of the mass of the children of each beam."""
        scores = jnp.where(self.exists, self.pick(logits), -jnp.inf)
        empty = jnp.full(logits.shape[:2], LOWEST, scores.dtype)
        top = jax.vmap(lambda row, beam, block: row.at[beam].max(block))(
            empty, self.beam, scores.max(axis=-1)
        )
        shares = jnp.exp(scores - take(top, self.beam)[..., None]).sum(axis=-1)
        mass = jax.vmap(lambda row, beam, share: row.at[beam].add(share))(
            jnp.zeros_like(top), self.beam, shares
        )
        return jnp.maximum(top + jnp.log(mass), LOWEST)

    def best(
        self,
        catalogue: Catalogue,
        level: int,
        node: Int32[Array, "b w"],
        logits: Float[Array, "b w k"],
        shift: Float[Array, "b w"],
        k: int,
    ) -> Chosen:
        """The k children of largest `logit + shift` of all beams of a row."""
        del catalogue, level, node  # a block says of itself where it stands
        total = jnp.maximum(self.pick(logits) + take(shift, self.beam)[..., None], LOWEST)
        total = jnp.where(self.exists, total, -jnp.inf)
        rows, blocks, size = total.shape
        score, index = top_k_of_blocks(total, min(k, blocks * size))
        block = index // size
        child = take(self.first, block) + index % size
        return Chosen(
            score, take(self.beam, block), child, take(self.code.reshape(rows, -1), index)
        )


def crowd_pays(catalogue: Catalogue, level: int, beams: int) -> bool:
    """Whether the children of beams are looked up faster as a crowd than in rows of places."""
    if catalogue.shape.kinds[level] != "slots":
        return False
    places = beams * catalogue.shape.fanout[level]
    return places > SMALL and 2 * _blocks(catalogue, level, beams) * BLOCK <= 3 * places


def _blocks(catalogue: Catalogue, level: int, beams: int) -> int:
    """A bound on the blocks that the children of beams stand in: two more a beam than are full."""
    children = catalogue.shape.most_children(level, beams)
    every = catalogue.shape.nodes[level + 1] // BLOCK + beams + 1
    return min(children // BLOCK + 2 * beams, every)


def live_crowd(
    catalogue: Catalogue, filters: PreparedFilters, node: Int32[Array, "b w"], level: int
) -> Crowd:
    """Children of nodes of depth `level`, laid out as `slots`, that have an item to give.

    Args:
        node: different nodes in each row; -1 has no children.
    """
    beams = node.shape[1]
    first, last = child_range(catalogue, level, jnp.maximum(node, 0))
    last = jnp.where(node >= 0, last, first)
    start = first // BLOCK
    count = jnp.where(last > first, (last - 1) // BLOCK - start + 1, 0)
    ends = jnp.cumsum(count, axis=1)
    place = jnp.arange(_blocks(catalogue, level, beams), dtype=jnp.int32)
    beam = jnp.minimum(_places_below(ends, place), beams - 1)
    block = take(start - (ends - count), beam) + place
    block = jnp.clip(block, 0, (catalogue.shape.nodes[level + 1] - 1) // BLOCK)
    child = block[..., None] * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)
    # Blocks behind the last beam's are read again for it, and have nothing.
    inside = (place < ends[:, -1:])[..., None]
    exists = (
        inside & (child >= take(first, beam)[..., None]) & (child < take(last, beam)[..., None])
    )
    if filters.open is not None:
        is_open = filters.open[level]
        assert is_open is not None
        exists &= filters.of_mask(is_open, jnp.where(exists, child, 0))
    if filters.listed is not None:
        inside = _mark(
            jnp.zeros_like(exists), filters.listed[level], True, node, start, ends - count
        )
        exists &= inside
    elif filters.dead is not None:
        exists = _mark(exists, filters.dead[level], False, node, start, ends - count)
    offset = code_offset(catalogue, level + 1) // BLOCK
    codes = catalogue.code.reshape(-1, BLOCK)
    code = look_up(codes.at[offset + block].get(mode="promise_in_bounds").astype(jnp.int32))
    return Crowd(exists, code, beam, block * BLOCK)


def _places_below(ends: Int32[Array, "b w"], place: Int32[Array, " t"]) -> Int32[Array, "b t"]:
    """How many of the rising ends of each row are not above each place, by halving."""
    count = ends.shape[1]
    found = jnp.zeros((ends.shape[0], place.shape[0]), jnp.int32)
    step = 1 << (count.bit_length() - 1)
    while step:
        further = found + step
        inside = (further <= count) & (take(ends, jnp.minimum(further, count) - 1) <= place)
        found = jnp.where(inside, further, found)
        step //= 2
    return found


def _mark(
    flags: Bool[Array, "b t c"],
    some: Nodes | None,
    value: bool,
    node: Int32[Array, "b w"],
    start: Int32[Array, "b w"],
    before: Int32[Array, "b w"],
) -> Bool[Array, "b t c"]:
    """Flags of places with those of some children set.

    Args:
        node: of the beams.
        start: block of the catalogue that the children of each beam start in.
        before: blocks of the beams before it.
    """
    assert some is not None
    matches = node[:, :, None] == some.parent[:, None, :]
    beam = jnp.argmax(matches, axis=1).astype(jnp.int32)
    block = take(before, beam) + some.child // BLOCK - take(start, beam)
    index = block * BLOCK + some.child % BLOCK
    index = jnp.where(matches.any(axis=1), index, flags[0].size)
    return mark(flags.reshape(flags.shape[0], -1), index, value).reshape(flags.shape)
