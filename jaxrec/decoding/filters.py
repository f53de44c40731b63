"""Which items may be returned: a mask shared by the batch, deny- and allow-lists per request.

Neither rebuilds the trie, and no beam ever runs into a dead end: a node is entered only when an
item below it lives. From the filters follow

- `open` and `bits`: which nodes the shared mask leaves an item below. A node is open when one of
  its children is, and children are ranges, so a depth is one prefix sum: O(n) once per mask;
- `dead`: per request and depth, the nodes that the deny-list empties. Only ancestors of denied rows
  can be emptied, so there are at most m of them, whatever the size of the catalogue. A node is
  emptied when as many of its children are emptied as are open;
- `listed`: per request and depth, the ancestors of what its allow-list leaves. Such a list is a
  trie of its own with at most m nodes a depth, so the tables above are not needed.

All of it takes time with the lists and, once a mask, with the catalogue. A mask of its own for
every request would cost O(n) a request and is not offered: give the shorter of the two lists.
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
from jaxrec.decoding.interface import Rows


@no_type_check  # tree operations put shapes and shardings where the arrays were
@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class Filters:
    """What may be returned. All parts are optional and combine; arguments of `jit`.

    An item is returned only when `allowed` is True for it, the request does not deny it, and the
    request's list, if there are lists, has it.
    """

    allowed: Bool[Array, " n"] | None = None
    """One flag per item, shared by all requests (stock, region, language)."""
    denied: Int32[Array, "b m"] | None = None
    """Items that each request must not get (seen items), padded with -1. Order and repetitions do
    not matter; numbers that are no item are ignored."""
    listed: Int32[Array, "b m"] | None = None
    """The only items that each request may get (a shop's, a page's), padded with -1. An empty list
    allows nothing."""


class Nodes(NamedTuple):
    """Some nodes of one depth per request, ascending, each once."""

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
    dead: tuple[Nodes | None, ...] | None = None
    """Children that the deny-list empties, chains left out."""
    dead_leaf: Int32[Array, "b m"] | None = None
    """Leaves that the deny-list empties; padded with the number of leaves."""
    rows: Int32[Array, "b m"] | None = None
    """Rows that the allow-list leaves, ascending, each once; padded with n. Where it stands,
    nothing else does."""
    listed: tuple[Nodes | None, ...] | None = None
    """Children that lead to them, chains left out."""
    listed_leaf: Int32[Array, "b m"] | None = None
    """Their leaves; padded with the number of leaves."""

    @property
    def nothing(self) -> bool:
        """Whether nothing is filtered."""
        return all(part is None for part in self)


def prepare_filters(
    catalogue: Catalogue, filters: Filters | PreparedFilters | None, batch: Rows
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
    if filters.listed is not None:
        return _lay_list(catalogue, filters)
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
    if filters.rows is not None:
        return _count_below(filters.rows, row)
    count = row if filters.before is None else filters.before[row]
    if filters.denied is not None:
        count = count - _count_below(filters.denied, row)
    return count


def live_leaves(
    catalogue: Catalogue, filters: PreparedFilters, batch: Rows
) -> Bool[Array, "b leaves"]:
    """Whether each leaf has an item to give, per request."""
    if filters.listed_leaf is not None:
        nothing = jnp.zeros((batch, catalogue.leaves), bool)
        return mark(nothing, filters.listed_leaf, True)
    leaf = jnp.arange(catalogue.leaves, dtype=jnp.int32)
    live = first_row(catalogue, leaf + 1) > first_row(catalogue, leaf)
    if filters.open_leaf is not None:
        live &= filters.open_leaf
    live = jnp.broadcast_to(live, (batch, catalogue.leaves))
    if filters.dead_leaf is None:
        return live
    return mark(live, filters.dead_leaf, False)


def mark(flags: Bool[Array, "b n"], places: Int32[Array, "b m"], value: bool) -> Bool[Array, "b n"]:
    """Flags with those at some places of each row set; places beyond the end are ignored."""
    return jax.vmap(lambda row, at: row.at[at].set(value, mode="drop"))(flags, places)


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
    assert filters.denied is not None
    rows = _rows_of(catalogue, filters.denied, filters.allowed)
    return _each_once(rows, catalogue.items)


def _rows_of(
    catalogue: Catalogue, items: Int32[Array, "b m"], allowed: Bool[Array, " n"] | None
) -> Int32[Array, "b m"]:
    """Rows of the items that there are and that a mask allows, n for all others."""
    known = (items >= 0) & (items < catalogue.items)
    item = jnp.where(known, items, 0)
    if allowed is not None:
        known &= allowed[item]
    return jnp.where(known, catalogue.row_of(item), catalogue.items)


def _lay_list(catalogue: Catalogue, filters: Filters) -> PreparedFilters:
    """An allow-list, less what the other filters take from it, as a trie of its own."""
    assert filters.listed is not None
    count, listed = catalogue.items, filters.listed
    rows = _rows_of(catalogue, listed, filters.allowed)
    if filters.denied is not None:
        gone = jax.vmap(lambda items, denied: jnp.isin(items, denied))(listed, filters.denied)
        rows = jnp.where(gone, count, rows)
    rows = _each_once(rows, count)
    leaf = leaf_of(catalogue, jnp.minimum(rows, count - 1))
    leaf = here = _each_once(jnp.where(rows < count, leaf, catalogue.leaves), catalogue.leaves)
    nodes: list[Nodes | None] = [None] * catalogue.levels
    for level in reversed(range(catalogue.levels)):
        if catalogue.shape.kinds[level] == "chain":
            continue
        parent = _parents(catalogue, level, here)
        nodes[level] = Nodes(here, parent)
        here = _each_once(parent, catalogue.shape.nodes[level])
    return PreparedFilters(rows=rows, listed=tuple(nodes), listed_leaf=leaf)


def _parents(catalogue: Catalogue, level: int, child: Int32[Array, "b m"]) -> Int32[Array, "b m"]:
    """Parents of children below a level; of the padding, the number of nodes of the level."""
    above, below = catalogue.shape.nodes[level], catalogue.shape.nodes[level + 1]
    parent = parent_of(catalogue, level + 1, jnp.minimum(child, below - 1))
    return jnp.where(child < below, parent, above)


def _dead(
    catalogue: Catalogue, prepared: PreparedFilters, counts: list[Array | None]
) -> tuple[Int32[Array, "b m"], tuple[Nodes | None, ...]]:
    """Leaves that the denied rows empty, and the children per level."""
    rows, leaves, shape = prepared.denied, catalogue.leaves, catalogue.shape
    assert rows is not None
    leaf = leaf_of(catalogue, jnp.minimum(rows, catalogue.items - 1))
    start, stop = first_row(catalogue, leaf), first_row(catalogue, leaf + 1)
    empty = (live_before(prepared, stop) == live_before(prepared, start)) & (rows < catalogue.items)
    emptied = here = _each_once(jnp.where(empty, leaf, leaves), leaves)
    dead: list[Nodes | None] = [None] * catalogue.levels
    for level in reversed(range(catalogue.levels)):
        if shape.kinds[level] == "chain":
            continue
        above, known = shape.nodes[level], here < shape.nodes[level + 1]
        parents = _parents(catalogue, level, here)
        dead[level] = Nodes(here, parents)
        parent = jnp.minimum(parents, above - 1)
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


def _check(catalogue: Catalogue, filters: Filters, batch: Rows) -> None:
    """Refuses filters of another catalogue or another batch."""
    if filters.allowed is not None and filters.allowed.shape != (catalogue.items,):
        raise ValueError(
            f"filters.allowed has shape {filters.allowed.shape}, but the catalogue has "
            f"{catalogue.items} items; give one flag per item."
        )
    for name in ("denied", "listed"):
        lists = getattr(filters, name)
        if lists is not None and lists.shape[0] != batch:
            raise ValueError(
                f"filters.{name} has {lists.shape[0]} rows, but the batch has {batch}; give one "
                "list per request, padded with -1."
            )
