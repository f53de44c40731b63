"""Which items may be returned: a mask shared by the batch, and a deny-list per request.

Neither rebuilds the trie, and no beam ever runs into a dead end: a node is entered only when an
item below it lives. From the filters follow

- `open` and `bits`: which nodes the shared mask leaves an item below. A node is open when one of
  its children is, and children are ranges, so a depth is one prefix sum: O(n) once per mask;
- `dead`: per request and depth, the nodes that the deny-list empties. Only ancestors of denied rows
  can be emptied, so there are at most m of them, whatever the size of the catalogue. A node is
  emptied when as many of its children are emptied as are open.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, UInt32

from jaxrec.decoding.catalogue import (
    BITS,
    Catalogue,
    code_of,
    first_child,
    first_row,
    leaf_of,
    parent_of,
)


@no_type_check  # tree operations put shapes and shardings where the arrays were
@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class Filters:
    """What may be returned. Both parts are optional and combine; arguments of `jit`.

    An item is returned only when `allowed` is True for it and the request does not deny it.
    """

    allowed: Bool[Array, " n"] | None = None
    """One flag per item, shared by all requests (stock, region, language)."""
    denied: Int32[Array, "b m"] | None = None
    """Items that each request must not get (seen items), padded with -1. Order and repetitions do
    not matter; numbers that are no item are ignored."""


class Dead(NamedTuple):
    """Nodes of one depth that a request's deny-list empties, ascending, each once."""

    child: Int32[Array, "b m"]
    """The nodes; padded with the number of nodes of their depth."""
    parent: Int32[Array, "b m"]
    """Their parents; padded with the number of nodes of that depth."""


class PreparedFilters(NamedTuple):
    """Filters laid over one catalogue, by `prepare_filters`. Decoders take either.

    Worth keeping between calls where a mask stays: its tables cost O(n), all else is small. Tables
    stand by level, None where the layout of the level does not read them.
    """

    before: Int32[Array, " n1"] | None = None
    """Allowed rows before each row (n + 1 numbers); None without a shared mask."""
    open: tuple[Bool[Array, " nodes"] | None, ...] | None = None
    """Below `slots`: whether the shared mask allows an item below each child."""
    bits: tuple[UInt32[Array, "nodes words"] | None, ...] | None = None
    """Below `dense` and `full`: which codes lead to an item that the shared mask allows."""
    open_leaf: Bool[Array, " leaves"] | None = None
    """Whether the shared mask allows an item of each leaf."""
    denied: Int32[Array, "b m"] | None = None
    """Rows that are allowed and denied, ascending, each once; padded with n."""
    dead: tuple[Dead | None, ...] | None = None
    """Children that the deny-list empties, chains left out."""
    dead_leaf: Int32[Array, "b m"] | None = None
    """Leaves that the deny-list empties; padded with the number of leaves."""


def prepare_filters(
    catalogue: Catalogue, filters: Filters | PreparedFilters | None, batch: int
) -> PreparedFilters:
    """Lays filters over a catalogue. Pure, usable in or out of `jit`; prepared ones pass through.

    Args:
        batch: rows of the batch, which a deny-list must have.

    Raises:
        ValueError: the mask or the deny-list does not fit the catalogue or the batch.
    """
    if isinstance(filters, PreparedFilters):
        return filters
    if filters is None:
        return PreparedFilters()
    _check(catalogue, filters, batch)
    prepared, counts = PreparedFilters(), [None] * catalogue.levels
    if filters.allowed is not None:
        prepared, counts = _lay_mask(catalogue, filters.allowed)
    if filters.denied is None or filters.denied.shape[1] == 0:
        return prepared
    prepared = prepared._replace(denied=_denied_rows(catalogue, filters))
    leaf, dead = _dead(catalogue, prepared, counts)
    return prepared._replace(dead=dead, dead_leaf=leaf)


def live_before(filters: PreparedFilters, row: Int32[Array, "b q"]) -> Int32[Array, "b q"]:
    """Rows before each given row (0 .. n) whose items may be returned."""
    count = row if filters.before is None else filters.before[row]
    if filters.denied is not None:
        count = count - _count_below(filters.denied, row)
    return count


def live_leaves(
    catalogue: Catalogue, filters: PreparedFilters, batch: int
) -> Bool[Array, "b leaves"]:
    """Whether each leaf has an item to give, per request."""
    leaf = jnp.arange(catalogue.leaves, dtype=jnp.int32)
    live = first_row(catalogue, leaf + 1) > first_row(catalogue, leaf)
    if filters.open_leaf is not None:
        live &= filters.open_leaf
    live = jnp.broadcast_to(live, (batch, catalogue.leaves))
    if filters.dead_leaf is None:
        return live
    return jax.vmap(lambda row, dead: row.at[dead].set(False, mode="drop"))(live, filters.dead_leaf)


def _lay_mask(
    catalogue: Catalogue, allowed: Bool[Array, " n"]
) -> tuple[PreparedFilters, list[Array | None]]:
    """A mask over the trie from the leaves up, and how many children are open before each one."""
    levels, shape = catalogue.levels, catalogue.shape
    item = catalogue.item_at(jnp.arange(catalogue.items, dtype=jnp.int32))
    before = _sums(allowed[jnp.maximum(item, 0)] & (item >= 0))
    leaf = jnp.arange(catalogue.leaves + 1, dtype=jnp.int32)
    count = before[first_row(catalogue, leaf)]
    open_leaf = here = count[1:] > count[:-1]
    opened, bits, counts = [None] * levels, [None] * levels, [None] * levels
    for level in reversed(range(levels)):
        if shape.kinds[level] == "chain":
            continue
        below = counts[level] = _sums(here)
        if shape.kinds[level] == "slots":
            opened[level] = here
        else:
            bits[level] = _open_bits(catalogue, here, level)
        node = jnp.arange(shape.nodes[level] + 1, dtype=jnp.int32)
        count = below[first_child(catalogue, level, node)]
        here = count[1:] > count[:-1]
    return PreparedFilters(before, tuple(opened), tuple(bits), open_leaf), counts


def _sums(flags: Bool[Array, " n"]) -> Int32[Array, " n1"]:
    """How many flags are set before each place, and in all."""
    return jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(flags, dtype=jnp.int32)])


def _open_bits(
    catalogue: Catalogue, is_open: Bool[Array, " nodes"], level: int
) -> UInt32[Array, "above words"]:
    """Bits of the codes that lead to open children."""
    above, size = catalogue.shape.nodes[level], catalogue.space.sizes[level]
    child = jnp.arange(is_open.shape[0], dtype=jnp.int32)
    code = code_of(catalogue, level + 1, child)
    flag = jnp.where(is_open, jnp.uint32(1) << (code % BITS).astype(jnp.uint32), jnp.uint32(0))
    empty = jnp.zeros((above, -(-size // BITS)), jnp.uint32)
    # Every bit is added once at most, so adding is setting.
    return empty.at[parent_of(catalogue, level + 1, child), code // BITS].add(flag)


def _denied_rows(catalogue: Catalogue, filters: Filters) -> Int32[Array, "b m"]:
    """Sorted rows of the denied items that the shared mask has not removed, each once, then n.

    An item that is denied and disallowed must not be subtracted twice.
    """
    denied, count = filters.denied, catalogue.items
    assert denied is not None
    known = (denied >= 0) & (denied < count)
    item = jnp.where(known, denied, 0)
    if filters.allowed is not None:
        known &= filters.allowed[item]
    return _each_once(jnp.where(known, catalogue.row_of(item), count), count)


def _dead(
    catalogue: Catalogue, prepared: PreparedFilters, counts: list[Array | None]
) -> tuple[Int32[Array, "b m"], tuple[Dead | None, ...]]:
    """Leaves that the denied rows empty, and the children per level."""
    rows, leaves, shape = prepared.denied, catalogue.leaves, catalogue.shape
    assert rows is not None
    leaf = leaf_of(catalogue, jnp.minimum(rows, catalogue.items - 1))
    start, stop = first_row(catalogue, leaf), first_row(catalogue, leaf + 1)
    empty = (live_before(prepared, stop) == live_before(prepared, start)) & (rows < catalogue.items)
    emptied = here = _each_once(jnp.where(empty, leaf, leaves), leaves)
    dead: list[Dead | None] = [None] * catalogue.levels
    for level in reversed(range(catalogue.levels)):
        if shape.kinds[level] == "chain":
            continue
        above, below = shape.nodes[level], shape.nodes[level + 1]
        parent = parent_of(catalogue, level + 1, jnp.minimum(here, below - 1))
        known = here < below
        dead[level] = Dead(here, jnp.where(known, parent, above))
        low = first_child(catalogue, level, parent)
        high = first_child(catalogue, level, parent + 1)
        gone, count = _count_below(here, high) - _count_below(here, low), counts[level]
        there = high - low if count is None else count[high] - count[low]
        here = _each_once(jnp.where(known & (gone == there), parent, above), above)
    return emptied, tuple(dead)


def _count_below(rising: Int32[Array, "b m"], bound: Int32[Array, "b q"]) -> Int32[Array, "b q"]:
    """How many numbers of each rising row are below each bound."""
    return jax.vmap(jnp.searchsorted)(rising, bound).astype(jnp.int32)


def _each_once(values: Int32[Array, "b m"], last: int) -> Int32[Array, "b m"]:
    """Values ascending, each once, then `last`, which fills up."""
    values = jnp.sort(values, axis=1)
    repeated = jnp.zeros_like(values, bool).at[:, 1:].set(values[:, 1:] == values[:, :-1])
    return jnp.sort(jnp.where(repeated, last, values), axis=1)


def _check(catalogue: Catalogue, filters: Filters, batch: int) -> None:
    """Refuses filters of another catalogue or another batch."""
    if filters.allowed is not None and filters.allowed.shape != (catalogue.items,):
        raise ValueError(
            f"filters.allowed has shape {filters.allowed.shape}, but the catalogue has "
            f"{catalogue.items} items; give one flag per item."
        )
    if filters.denied is not None and filters.denied.shape[0] != batch:
        raise ValueError(
            f"filters.denied has {filters.denied.shape[0]} rows, but the batch has {batch}; give "
            "one list per request, padded with -1."
        )
