"""The children of beams that have something to give: what a decoder may choose next.

For every beam a row of *places*. Where a level is `full` or `dense`, a place is a code; where it is
`slots` or `chain`, places are the children one after another and their codes are looked up. A place
that has no child, or a child below which everything is filtered, does not exist.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Integer

from jaxrec.decoding.catalogue import BITS, Catalogue, code_of, first_child
from jaxrec.decoding.filters import Nodes, PreparedFilters, mark
from jaxrec.decoding.ranking import LOWEST, log_mass, take, top_k_of_blocks

FEW = 1 << 14
"""Numbers that one thread looks up sooner than two."""


class Children(NamedTuple):
    """Places below beams."""

    exists: Bool[Array, "b w c"]
    """Whether there is a child that has an item to give."""
    code: Int32[Array, "b w c"] | None
    """Code of each place; None where the place is the code."""
    first: Int32[Array, "b w"] | None = None
    """Node at the first place, where places are the children one after another."""

    def pick(self, values: Float[Array, "b w k"]) -> Float[Array, "b w c"]:
        """Values by code at the places."""
        if self.code is None:
            return values[..., : self.exists.shape[-1]]
        return jnp.take_along_axis(values, self.code, axis=-1, mode="promise_in_bounds")

    def log_mass(self, logits: Float[Array, "b w k"]) -> Float[Array, "b w"]:
        """Log of the mass of the children of each beam.

        The rows of the children are b, or 1 where all rows of the batch look at the same nodes.
        """
        code = self.code
        if code is not None:
            code = jnp.broadcast_to(code, (*logits.shape[:2], code.shape[-1]))
        scores = self._replace(code=code).pick(logits)
        return log_mass(jnp.where(self.exists, scores, -jnp.inf))

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
        rows, beams, places = self.exists.shape
        total = jnp.maximum(self.pick(logits) + shift[..., None], LOWEST)
        total = jnp.where(self.exists, total, -jnp.inf)
        block = BITS if places % BITS == 0 else places
        score, index = top_k_of_blocks(total.reshape(rows, -1, block), min(k, beams * places))
        parent, place = index // places, index % places
        code = place if self.code is None else take(self.code.reshape(rows, -1), index)
        if self.first is None:
            child = child_at(catalogue, level, take(node, parent), place)
        else:
            child = take(self.first, parent) + place
        return Chosen(score, parent, child, code)


class Chosen(NamedTuple):
    """Children that go on, best first."""

    score: Float[Array, "b k"]
    """-inf where there is no child; what else is said of it means nothing."""
    parent: Int32[Array, "b k"]
    """Beam that each is a child of."""
    child: Int32[Array, "b k"]
    """Its node."""
    code: Int32[Array, "b k"]
    """Its last code."""


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
    first = look_up(first_child(catalogue, level, node))
    if kind != "dense":
        return first + place
    bits = catalogue.bits[level]
    assert bits is not None
    words, word = look_up(bits[node]), jnp.arange(bits.shape[1]) * BITS
    # As many low bits of each word as there are codes before the place.
    before = jnp.clip(place[..., None] - word, 0, BITS)
    ones = jnp.where(before == BITS, jnp.uint32(2**BITS - 1), (1 << before.astype(jnp.uint32)) - 1)
    rank = jnp.sum(jax.lax.population_count(words & ones), axis=-1)
    return first + rank.astype(jnp.int32)


def _slots(
    catalogue: Catalogue, filters: PreparedFilters, node: Int32[Array, "b w"], level: int
) -> Children:
    first, last = child_range(catalogue, level, node)
    child = first[..., None] + jnp.arange(catalogue.shape.fanout[level], dtype=jnp.int32)
    exists = child < last[..., None]
    child = jnp.where(exists, child, 0)
    if filters.open is not None:
        is_open = filters.open[level]
        assert is_open is not None
        exists &= filters.of_mask(is_open, child)
    return Children(exists, look_up(code_of(catalogue, level + 1, child)), first)


def child_range(
    catalogue: Catalogue, level: int, node: Int32[Array, "b w"]
) -> tuple[Int32[Array, "b w"], Int32[Array, "b w"]]:
    """First child of each node, and one past its last."""
    pair = node[..., None] + jnp.arange(2, dtype=jnp.int32)
    bounds = look_up(first_child(catalogue, level, pair))
    return bounds[..., 0], bounds[..., 1]


def look_up(found: Integer[Array, "b *q"]) -> Integer[Array, "b *q"]:
    """What was found in the tables of the catalogue, as an array of its own.

    XLA would look it up again wherever it is used. On CPU it also takes every loop that reads a
    large table for a long one and wakes a second thread to share it, which costs more than all else
    that a step of a few beams does; only a loop that writes into an array that is there already is
    left alone. So a few numbers are written into one, a place wider than need be: what fills an
    array whole is an array of its own again.
    """
    if not isinstance(found.size, int) or found.size > FEW:
        return jax.lax.optimization_barrier(found)
    return jax.lax.platform_dependent(
        found, cpu=_write_in_place, default=jax.lax.optimization_barrier
    )


def _write_in_place(found: Array) -> Array:
    shape = (*found.shape[:-1], found.shape[-1] + 1)
    room, start = jax.lax.optimization_barrier((jnp.zeros(shape, found.dtype), jnp.int32(0)))
    origin = (*(0,) * (found.ndim - 1), start)
    whole = jax.lax.optimization_barrier(jax.lax.dynamic_update_slice(room, found, origin))
    return whole[..., : found.shape[-1]]


def _codes_that_follow(
    catalogue: Catalogue, filters: PreparedFilters, node: Int32[Array, "b w"], level: int
) -> Bool[Array, "b w c"]:
    size = catalogue.space.sizes[level]
    bits = catalogue.bits[level]
    if filters.bits is not None and (masks := filters.bits[level]) is not None:
        words = look_up(filters.of_mask(masks, node))
    elif bits is not None:
        words = look_up(bits[node])
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
