"""Which items may be returned: shared masks, deny- and allow-lists per request.

Neither rebuilds the trie, and no beam ever runs into a dead end: a node is entered only when an
item below it lives. From the filters follow

- `open` and `bits`: which nodes a shared mask leaves an item below. A node is open when one of its
  children is, and children are ranges, so a depth is one prefix sum: O(n) once per mask. There may
  be several masks (domains, shops, countries), of which every request names one;
- `dead`: per request and depth, the nodes that the deny-list empties. Only ancestors of denied rows
  can be emptied, so there are at most m of them, whatever the size of the catalogue. A node is
  emptied when its range of rows has as many denied rows as allowed ones;
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
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, Shaped, UInt32

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

    allowed: Bool[Array, " n"] | Bool[Array, "masks n"] | None = None
    """One flag per item, shared by all requests (stock, region, language), or several such masks:
    the tries of several domains in one catalogue."""
    denied: Int32[Array, "b m"] | None = None
    """Items that each request must not get (seen items), padded with -1. Order and repetitions do
    not matter; numbers that are no item are ignored."""
    listed: Int32[Array, "b m"] | None = None
    """The only items that each request may get (a shop's, a page's), padded with -1. An empty list
    allows nothing."""
    domain: Int32[Array, " b"] | None = None
    """The mask that each request goes by, where there are several. A number that is no mask allows
    nothing."""


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

    before: Int32[Array, "masks n1"] | None = None
    """Allowed rows before each row (n + 1 numbers); None without a shared mask."""
    open: tuple[Bool[Array, "masks nodes"] | None, ...] | None = None
    """Below `slots`: whether each shared mask allows an item below each child."""
    bits: tuple[UInt32[Array, "masks nodes words"] | None, ...] | None = None
    """Below `dense` and `full`: which codes lead to an item that each shared mask allows."""
    open_leaf: Bool[Array, "masks leaves"] | None = None
    """Whether each shared mask allows an item of each leaf."""
    domain: Int32[Array, " b"] | None = None
    """The mask that each request goes by; None where there is one for all."""
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

    def of_requests(self, request: Int32[Array, " r"]) -> PreparedFilters:
        """The filters of some requests, which may repeat, as those of a batch of their own."""
        own = ("domain", "denied", "dead", "dead_leaf", "rows", "listed", "listed_leaf")
        parts = {name: getattr(self, name) for name in own}
        return self._replace(**jax.tree.map(lambda part: part[request], parts))

    @property
    def shared(self) -> bool:
        """Whether all requests may get the same items."""
        return self.domain is None and self.denied is None and self.rows is None

    def of_mask(
        self, table: Shaped[Array, "masks n *rest"], index: Int32[Array, "b *q"]
    ) -> Shaped[Array, "b *q *rest"]:
        """Entries of a table of the shared masks, each request's from the mask it goes by."""
        if self.domain is None:
            return table[0][index]
        return table[self.domain.reshape(-1, *(1,) * (index.ndim - 1)), index]


def prepare_filters(
    catalogue: Catalogue, filters: Filters | PreparedFilters | None, batch: Rows
) -> PreparedFilters:
    """Lays filters over a catalogue. Pure, usable in or out of `jit`; prepared ones pass through.

    Args:
        batch: rows of the batch, which a deny-list must have.

    Raises:
        ValueError: the masks or lists do not fit the catalogue or the batch; or, outside `jit`,
            where numbers can be looked at, they leave a request nothing. Inside, such a request
            gets an answer without valid items.
    """
    if isinstance(filters, PreparedFilters):
        return filters
    if filters is None:
        return PreparedFilters()
    prepared = _lay(catalogue, filters, batch)
    _check_something_left(catalogue, prepared, batch)
    return prepared


def _lay(catalogue: Catalogue, filters: Filters, batch: Rows) -> PreparedFilters:
    check_filters(filters, batch, catalogue.items)
    if filters.listed is not None:
        rows = _rows_of(catalogue, filters.listed, filters)
        prepared = _lay_list(catalogue, _each_once(rows, catalogue.items))
    elif filters.allowed is not None:
        prepared = _lay_masks(catalogue, *masks_of(filters))
    else:
        prepared = PreparedFilters()
    if filters.denied is None or filters.denied.shape[1] == 0:
        return prepared
    return deny(catalogue, prepared, filters.denied)


def deny(
    catalogue: Catalogue, filters: PreparedFilters, items: Int32[Array, "b m"]
) -> PreparedFilters:
    """Filters that deny some items more. Costs what is in the lists, not the catalogue.

    Args:
        items: of each request, padded with -1; those that are denied already, filtered or no item
            change nothing.
    """
    count = catalogue.items
    rows = _rows_of(catalogue, items, Filters())
    if filters.rows is not None:
        gone = jax.vmap(jnp.isin)(filters.rows, rows)
        return _lay_list(catalogue, jnp.sort(jnp.where(gone, count, filters.rows), axis=1))
    # An item that the shared mask has removed already must not be subtracted twice.
    live = live_before(filters, jnp.minimum(rows + 1, count)) > live_before(filters, rows)
    rows = jnp.where(live, rows, count)
    if filters.denied is not None:
        rows = jnp.concatenate([filters.denied, rows], axis=1)
    filters = filters._replace(denied=_each_once(rows, count))
    leaf, dead = _dead(catalogue, filters)
    return filters._replace(dead=dead, dead_leaf=leaf)


def live_before(filters: PreparedFilters, row: Int32[Array, "b q"]) -> Int32[Array, "b q"]:
    """Rows before each given row (0 .. n) whose items may be returned."""
    if filters.rows is not None:
        return _count_below(filters.rows, row)
    count = row if filters.before is None else filters.of_mask(filters.before, row)
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
        live = live & filters.open_leaf[0 if filters.domain is None else filters.domain]
    live = jnp.broadcast_to(live, (batch, catalogue.leaves))
    if filters.dead_leaf is None:
        return live
    return mark(live, filters.dead_leaf, False)


def mark(flags: Bool[Array, "b n"], places: Int32[Array, "b m"], value: bool) -> Bool[Array, "b n"]:
    """Flags with those at some places of each row set; places beyond the end are ignored."""
    return jax.vmap(lambda row, at: row.at[at].set(value, mode="drop"))(flags, places)


def masks_of(filters: Filters) -> tuple[Bool[Array, "masks n"], Int32[Array, " b"] | None]:
    """The shared masks, and which of them each request goes by; the last allows nothing."""
    allowed, domain = filters.allowed, filters.domain
    assert allowed is not None
    if domain is None:
        return allowed[None], None
    count = allowed.shape[0]
    allowed = jnp.concatenate([allowed, jnp.zeros_like(allowed[:1])])
    return allowed, jnp.where((domain >= 0) & (domain < count), domain, count)


def _lay_masks(
    catalogue: Catalogue, allowed: Bool[Array, "masks n"], domain: Int32[Array, " b"] | None
) -> PreparedFilters:
    """Masks over the trie from the leaves up."""
    levels, shape = catalogue.levels, catalogue.shape
    item = catalogue.item_at(jnp.arange(catalogue.items, dtype=jnp.int32))
    before = _sums(allowed[:, jnp.maximum(item, 0)] & (item >= 0))
    leaf = jnp.arange(catalogue.leaves + 1, dtype=jnp.int32)
    count = before[:, first_row(catalogue, leaf)]
    open_leaf = here = count[:, 1:] > count[:, :-1]
    opened, bits = [None] * levels, [None] * levels
    for level in reversed(range(levels)):
        if shape.kinds[level] == "chain":
            continue
        if shape.kinds[level] == "slots":
            opened[level] = here
        else:
            bits[level] = jax.vmap(partial(_open_bits, catalogue, level=level))(here)
        node = jnp.arange(shape.nodes[level] + 1, dtype=jnp.int32)
        count = _sums(here)[:, first_child(catalogue, level, node)]
        here = count[:, 1:] > count[:, :-1]
    return PreparedFilters(before, tuple(opened), tuple(bits), open_leaf, domain)


def _sums(flags: Bool[Array, "masks n"]) -> Int32[Array, "masks n1"]:
    """How many flags of a mask are set before each place, and in all."""
    return jnp.pad(jnp.cumsum(flags, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))


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


def _rows_of(
    catalogue: Catalogue, items: Int32[Array, "b m"], filters: Filters
) -> Int32[Array, "b m"]:
    """Rows of the items that there are and that the shared masks allow, n for all others."""
    known = (items >= 0) & (items < catalogue.items)
    item = jnp.where(known, items, 0)
    if filters.allowed is not None:
        allowed, domain = masks_of(filters)
        known &= allowed[0 if domain is None else domain[:, None], item]
    return jnp.where(known, catalogue.row_of(item), catalogue.items)


def _lay_list(catalogue: Catalogue, rows: Int32[Array, "b m"]) -> PreparedFilters:
    """Rows, ascending, each once, as a trie of their own."""
    count = catalogue.items
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
    catalogue: Catalogue, filters: PreparedFilters
) -> tuple[Int32[Array, "b m"], tuple[Nodes | None, ...]]:
    """Leaves that the denied rows empty, and the children per level."""
    rows, levels, shape = filters.denied, catalogue.levels, catalogue.shape
    assert rows is not None

    def emptied(nodes: Array, depth: int) -> Array:
        """Those of some nodes of a depth that nothing lives below."""
        count = shape.nodes[depth]
        start = jnp.minimum(nodes, count - 1)
        stop = start + 1
        for level in range(depth, levels):
            start, stop = (first_child(catalogue, level, each) for each in (start, stop))
        start, stop = first_row(catalogue, start), first_row(catalogue, stop)
        alive = live_before(filters, stop) > live_before(filters, start)
        return _each_once(jnp.where(alive | (nodes >= count), count, nodes), count)

    leaf = leaf_of(catalogue, jnp.minimum(rows, catalogue.items - 1))
    leaf = here = emptied(jnp.where(rows < catalogue.items, leaf, catalogue.leaves), levels)
    dead: list[Nodes | None] = [None] * levels
    for level in reversed(range(levels)):
        if shape.kinds[level] == "chain":
            continue
        parent = _parents(catalogue, level, here)
        dead[level] = Nodes(here, parent)
        here = emptied(parent, level) if level else here
    return leaf, tuple(dead)


def _count_below(rising: Int32[Array, "b m"], bound: Int32[Array, "b q"]) -> Int32[Array, "b q"]:
    """How many numbers of each rising row are below each bound."""
    return jax.vmap(jnp.searchsorted)(rising, bound).astype(jnp.int32)


def _each_once(values: Int32[Array, "b m"], last: int) -> Int32[Array, "b m"]:
    """Values ascending, each once, then `last`, which fills up."""
    values = jnp.sort(values, axis=1)
    repeated = jnp.zeros_like(values, bool).at[:, 1:].set(values[:, 1:] == values[:, :-1])
    return jnp.sort(jnp.where(repeated, last, values), axis=1)


def _check_something_left(catalogue: Catalogue, filters: PreparedFilters, batch: Rows) -> None:
    """Refuses, where the numbers are known, filters that leave a request nothing."""
    parts = jax.tree.leaves(filters)
    if not parts or any(isinstance(part, jax.core.Tracer) for part in parts):
        return
    end = jnp.full((batch, 1), catalogue.items, jnp.int32)
    empty = np.flatnonzero(np.asarray(live_before(filters, end)[:, 0]) == 0)
    if len(empty):
        raise ValueError(
            f"the filters leave {len(empty)} of {batch} requests nothing, first request "
            f"{empty[0]}: none of the {catalogue.items} items is allowed, listed and not denied. "
            "Widen them, or leave the request out."
        )


def check_filters(filters: Filters, batch: Rows, items: int) -> None:
    """Refuses filters of another catalogue or another batch.

    Raises:
        ValueError: shapes that do not fit.
    """
    allowed, domain = filters.allowed, filters.domain
    if allowed is not None and allowed.shape[-1:] != (items,):
        raise ValueError(
            f"filters.allowed has shape {allowed.shape}, but the catalogue has {items} items; "
            "give one flag per item."
        )
    if (allowed is not None and allowed.ndim == 2) != (domain is not None):
        raise ValueError(
            "filters.domain says which of several masks each request goes by: give it with masks "
            f"of shape [masks, {items}] in filters.allowed, and only then."
        )
    for name, what in (
        ("domain", "one number per request"),
        ("denied", "one list per request, padded with -1"),
        ("listed", "one list per request, padded with -1"),
    ):
        given = getattr(filters, name)
        if given is not None and given.shape[0] != batch:
            raise ValueError(
                f"filters.{name} has {given.shape[0]} rows, but the batch has {batch}; give {what}."
            )
