"""The children of beams that have something to give: what a decoder may choose next.

For every beam a row of *places*. Where a level is `full` or `dense`, a place is a code; where it is
`slots` or `chain`, places are the children one after another and their codes are looked up. A place
that has no child, or a child below which everything is filtered, does not exist.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from jaxrec.decoding.catalogue import BITS, Catalogue, code_of, first_child
from jaxrec.decoding.filters import Nodes, PreparedFilters, mark


class Children(NamedTuple):
    """Places below beams."""

    exists: Bool[Array, "b w c"]
    """Whether there is a child that has an item to give."""
    code: Int32[Array, "b w c"] | None
    """Code of each place; None where the place is the code."""

    def pick(self, values: Float[Array, "b w k"]) -> Float[Array, "b w c"]:
        """Values by code at the places."""
        if self.code is None:
            return values[..., : self.exists.shape[-1]]
        return jnp.take_along_axis(values, self.code, axis=-1)


def live_children(
    catalogue: Catalogue,
    filters: PreparedFilters,
    node: Int32[Array, "b w"],
    level: int,
    *,
    distinct: bool = True,
) -> Children:
    """Children of nodes of depth `level` that have an item to give.

    Args:
        node: nodes of beams; -1 has no children.
        distinct: whether no node stands twice in a row of the batch, as in a beam search.
    """
    kind, alive = catalogue.shape.kinds[level], node >= 0
    node = jnp.maximum(node, 0)
    if kind == "chain":
        # What is alive has an item below it, and there is one way to it.
        return Children(alive[..., None], code_of(catalogue, level + 1, node)[..., None])
    if kind == "slots":
        children = _slots(catalogue, filters, node, level)
    else:
        children = Children(_codes_that_follow(catalogue, filters, node, level), None)
    exists = children.exists & alive[..., None]
    if filters.listed is not None:
        inside = jnp.zeros_like(exists)
        exists &= _mark_places(catalogue, inside, node, level, filters.listed[level], True)
    elif filters.dead is not None:
        exists = _mark_places(catalogue, exists, node, level, filters.dead[level], False)
    if not distinct and not filters.nothing:
        # Lists are laid over the first of several beams at one node; the others copy it.
        same = node[:, :, None] == node[:, None, :]
        exists = jnp.take_along_axis(exists, jnp.argmax(same, axis=-1)[..., None], axis=1)
        exists &= alive[..., None]
    return children._replace(exists=exists)


def child_at(
    catalogue: Catalogue, level: int, node: Int32[Array, "b w"], place: Int32[Array, "b w"]
) -> Int32[Array, "b w"]:
    """The child, of depth `level + 1`, at an existing place below each node."""
    kind = catalogue.shape.kinds[level]
    if kind == "chain":
        return node
    first = first_child(catalogue, level, node)
    if kind != "dense":
        return first + place
    bits = catalogue.bits[level]
    assert bits is not None
    words, word = bits[node], jnp.arange(bits.shape[1]) * BITS
    # As many low bits of each word as there are codes before the place.
    before = jnp.clip(place[..., None] - word, 0, BITS)
    ones = jnp.where(before == BITS, jnp.uint32(2**BITS - 1), (1 << before.astype(jnp.uint32)) - 1)
    rank = jnp.sum(jax.lax.population_count(words & ones), axis=-1)
    return first + rank.astype(jnp.int32)


def _slots(
    catalogue: Catalogue, filters: PreparedFilters, node: Int32[Array, "b w"], level: int
) -> Children:
    # Both bounds in one lookup: in small batches it is the number of lookups that takes time.
    bounds = first_child(catalogue, level, node[..., None] + jnp.arange(2, dtype=jnp.int32))
    child = bounds[..., :1] + jnp.arange(catalogue.shape.fanout[level], dtype=jnp.int32)
    exists = child < bounds[..., 1:]
    child = jnp.where(exists, child, 0)
    if filters.open is not None:
        is_open = filters.open[level]
        assert is_open is not None
        exists &= filters.of_mask(is_open, child)
    return Children(exists, code_of(catalogue, level + 1, child))


def _codes_that_follow(
    catalogue: Catalogue, filters: PreparedFilters, node: Int32[Array, "b w"], level: int
) -> Bool[Array, "b w c"]:
    size = catalogue.space.sizes[level]
    bits = catalogue.bits[level]
    if filters.bits is not None and (masks := filters.bits[level]) is not None:
        words = filters.of_mask(masks, node)
    elif bits is not None:
        words = bits[node]
    else:
        return jnp.ones((*node.shape, size), bool)
    spread = words[..., None] >> jnp.arange(BITS, dtype=jnp.uint32)
    return (spread & 1).astype(bool).reshape(*node.shape, -1)[..., :size]


def _mark_places(
    catalogue: Catalogue,
    flags: Bool[Array, "b w c"],
    node: Int32[Array, "b w"],
    level: int,
    some: Nodes | None,
    value: bool,
) -> Bool[Array, "b w c"]:
    """Flags of places with those of some children set."""
    assert some is not None
    matches = node[:, :, None] == some.parent[:, None, :]
    beam = jnp.where(matches.any(axis=1), jnp.argmax(matches, axis=1), node.shape[1])
    child = jnp.minimum(some.child, catalogue.shape.nodes[level + 1] - 1)
    if catalogue.shape.kinds[level] == "slots":
        parent = jnp.minimum(some.parent, catalogue.shape.nodes[level] - 1)
        place = child - first_child(catalogue, level, parent)
    else:
        place = code_of(catalogue, level + 1, child)
    # A beam that is not there sends its place beyond the end.
    places = flags.shape[-1]
    index = jnp.where(beam < node.shape[1], beam * places + place, flags[0].size)
    return mark(flags.reshape(flags.shape[0], -1), index, value).reshape(flags.shape)
