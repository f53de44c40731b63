"""Which items may be returned: a mask shared by the batch, and a deny-list per request.

Neither rebuilds the trie. A prefix is a range of rows, so the items that live below it are a
difference of prefix sums (the shared mask) minus the denied rows in the range. From that follow

- `open`: per node, whether the shared mask leaves any item below it: O(n) once per mask;
- `dead`: per request and depth, the nodes that the deny-list empties. Only ancestors of denied
  rows can be emptied, so there are at most m of them, found with m binary searches per depth,
  whatever the size of the catalogue.

A node is entered only when an item below it lives, so a beam never runs into a dead end.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from jaxrec.decoding.catalogue import Catalogue, children, node_at, slot_of
from jaxrec.decoding.interface import Level


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


class PreparedFilters(NamedTuple):
    """Filters laid over one catalogue, by `prepare_filters`. Decoders take either.

    Worth keeping between calls where a mask stays: its prefix sums cost O(n), all else is small.
    """

    before: Int32[Array, " n1"] | None
    """Allowed rows before each row (n + 1 numbers); None without a shared mask."""
    open: Bool[Array, " nodes"] | None
    """Whether the shared mask allows an item below each node."""
    denied: Int32[Array, "b m"] | None
    """Rows that are allowed and denied, ascending, each once; padded with n."""
    dead: Int32[Array, "l b m"] | None
    """Per level, the children that the deny-list empties; -1 is padding. May repeat."""
    dead_parent: Int32[Array, "l b m"] | None
    """Their parents; -2 is padding, so that it equals no beam."""


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
        return PreparedFilters(None, None, None, None, None)
    _check(catalogue, filters, batch)
    before = is_open = None
    if filters.allowed is not None:
        allowed = filters.allowed[catalogue.item].astype(jnp.int32)
        before = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(allowed, dtype=jnp.int32)])
        is_open = before[catalogue.stop] > before[catalogue.start]
    if filters.denied is None or filters.denied.shape[1] == 0:
        return PreparedFilters(before, is_open, None, None, None)
    rows = _denied_rows(catalogue, filters)
    prepared = PreparedFilters(before, is_open, rows, None, None)
    dead, parent = _dead(catalogue, prepared, rows)
    return prepared._replace(dead=dead, dead_parent=parent)


def live_before(filters: PreparedFilters, row: Int32[Array, "b q"]) -> Int32[Array, "b q"]:
    """Rows before each given row (0 .. n) whose items may be returned."""
    count = row if filters.before is None else filters.before[row]
    if filters.denied is not None:
        count = count - jax.vmap(jnp.searchsorted)(filters.denied, row).astype(jnp.int32)
    return count


def live_children(
    catalogue: Catalogue, filters: PreparedFilters, node: Int32[Array, "b w"], level: Level
) -> Int32[Array, "b w c"]:
    """Children that have an item to give, in the order of their codes; -1 elsewhere.

    Args:
        node: nodes of depth `level`, none twice in a row of the batch; -1 has no children.
    """
    child = children(catalogue, node)
    if filters.open is not None:
        child = jnp.where(filters.open[jnp.maximum(child, 0)], child, -1)
    if filters.dead is None or filters.dead_parent is None:
        return child
    dead, parent = filters.dead[level], filters.dead_parent[level]
    matches = node[:, :, None] == parent[:, None, :]
    beam = jnp.where(matches.any(axis=1), jnp.argmax(matches, axis=1), node.shape[1])
    slot = slot_of(catalogue, jnp.maximum(dead, 0))

    def close(row: Array, beam: Array, slot: Array) -> Array:
        return row.at[beam, slot].set(-1, mode="drop")

    return jax.vmap(close)(child, beam, slot)


def live_leaves(
    catalogue: Catalogue, filters: PreparedFilters, batch: int
) -> Bool[Array, "b leaves"]:
    """Whether each leaf has an item to give, per request."""
    first, leaves = catalogue.offset(catalogue.levels), catalogue.nodes[-1]
    live = catalogue.stop[first:] > catalogue.start[first:]
    if filters.open is not None:
        live &= filters.open[first:]
    live = jnp.broadcast_to(live, (batch, leaves))
    if filters.dead is None:
        return live
    index = jnp.where(filters.dead[-1] < 0, leaves, filters.dead[-1] - first)
    return jax.vmap(lambda row, dead: row.at[dead].set(False, mode="drop"))(live, index)


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
    rows = jnp.sort(jnp.where(known, catalogue.row[item], count), axis=1)
    repeated = jnp.zeros_like(known).at[:, 1:].set(rows[:, 1:] == rows[:, :-1])
    return jnp.sort(jnp.where(repeated, count, rows), axis=1)


def _dead(
    catalogue: Catalogue, prepared: PreparedFilters, rows: Int32[Array, "b m"]
) -> tuple[Int32[Array, "l b m"], Int32[Array, "l b m"]]:
    """Per level, the children that the denied rows empty, and their parents."""
    depths = jnp.arange(catalogue.levels + 1, dtype=jnp.int32)[:, None, None]
    paths = node_at(catalogue, jnp.minimum(rows, catalogue.items - 1)[None], depths)
    node, parent = paths[1:], paths[:-1]

    def count(row: Array) -> Array:
        levels, batch, denied = row.shape
        flat = live_before(prepared, row.swapaxes(0, 1).reshape(batch, levels * denied))
        return flat.reshape(batch, levels, denied).swapaxes(0, 1)

    empty = count(catalogue.stop[node]) == count(catalogue.start[node])
    dead = empty & (rows < catalogue.items)[None]
    return jnp.where(dead, node, -1), jnp.where(dead, parent, -2)


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
