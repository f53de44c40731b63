"""The catalogue as a trie of device tables: items sorted by semantic ID, prefixes as row ranges.

Sorting the items by their codes makes every prefix a contiguous range of *rows*, so the trie needs
no pointers: a node is a range, counting the items below it is a subtraction, and its children are
consecutive. Nodes are numbered globally, depth by depth and in sorted order inside a depth: node 0
is the root, the last `nodes[-1]` are the leaves (distinct full IDs). Items that share a full ID
share a leaf; inside it they stand in the order that `build_catalogue` was given.

Children are stored as dense rows, one column per code. The decoders reach them only through
`children` and read the code of a chosen child from `code`, so another layout of the rows
changes nothing above.
"""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from jaxrec.types import TokenSpace

DENSE_BUDGET = 1 << 30
"""Bytes that the dense child rows may take unless the caller says otherwise: 1 GiB."""


@no_type_check  # tree operations put shapes and shardings where the arrays were
@partial(
    jax.tree_util.register_dataclass,
    data_fields=("item", "row", "start", "stop", "code", "child"),
    meta_fields=("space", "nodes", "fanout", "max_group"),
)
@dataclasses.dataclass(frozen=True)
class Catalogue:
    """A trie over the items' semantic IDs. Made by `build_catalogue`; an argument of `jit`.

    The static numbers (`nodes`, `fanout`, `max_group`) only bound shapes: two catalogues with equal
    ones share a compiled program, and a depth may have unused nodes at its end (`start == stop`, no
    parent), so an index may leave room to grow.
    """

    item: Int32[Array, " n"]
    """Item of each row; rows are sorted by semantic ID, then by order inside the leaf."""
    row: Int32[Array, " n"]
    """Row of each item: the inverse of `item`."""
    start: Int32[Array, " nodes"]
    """First row of each node."""
    stop: Int32[Array, " nodes"]
    """One past the last row of each node."""
    code: Int32[Array, " nodes"]
    """Last code of each node's prefix; 0 at the root."""
    child: Int32[Array, "inner k"]
    """Child of each inner node by code, as a node number; -1 where the catalogue has none."""
    space: TokenSpace
    """The token space of the codes."""
    nodes: tuple[int, ...]
    """Nodes of each depth, from 1 (the root) to the number of leaves."""
    fanout: tuple[int, ...]
    """Most children that a node of each depth has, leaves excluded."""
    max_group: int
    """Most items that one leaf has; 1 when all semantic IDs are unique."""

    @property
    def items(self) -> int:
        """Number of items."""
        return self.item.shape[0]

    @property
    def levels(self) -> int:
        """Levels of a semantic ID."""
        return self.space.levels

    def offset(self, depth: int) -> int:
        """Number of the first node of a depth."""
        return sum(self.nodes[:depth])


def node_at(
    catalogue: Catalogue, row: Int32[Array, " ..."], depth: int | Int32[Array, " ..."]
) -> Int32[Array, " ..."]:
    """Number of the node of `depth` that holds each row (the row's prefix of `depth` codes).

    A binary search among the first rows of the depth's nodes; `row` and `depth` broadcast, so the
    whole path of a row is one call.
    """
    ends = np.cumsum(catalogue.nodes, dtype=np.int32)
    low = jnp.asarray(ends - np.asarray(catalogue.nodes, np.int32))[depth]
    high = jnp.asarray(ends)[depth]
    low, high, row = jnp.broadcast_arrays(low, high, row)

    def halve(_: int | Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        inside = catalogue.start[middle] <= row
        return jnp.where(inside, middle, low), jnp.where(inside, high, middle)

    steps = max(catalogue.nodes).bit_length()
    return jax.lax.fori_loop(0, steps, halve, (low, high))[0]


def children(catalogue: Catalogue, node: Int32[Array, "b w"]) -> Int32[Array, "b w c"]:
    """Children of inner nodes, in the order of their codes; -1 where there is none.

    A `node` of -1 (a beam that is not alive) has no children.
    """
    rows = catalogue.child[jnp.maximum(node, 0)]
    return jnp.where(node[..., None] >= 0, rows, -1)


def slot_of(catalogue: Catalogue, node: Int32[Array, " ..."]) -> Int32[Array, " ..."]:
    """Where each node stands on the last axis of its parent's `children`."""
    return catalogue.code[node]


def build_catalogue(
    codes: np.ndarray,
    space: TokenSpace,
    order: np.ndarray | None = None,
    *,
    budget_bytes: int = DENSE_BUDGET,
) -> Catalogue:
    """Sorts the items by semantic ID and lays the trie out as arrays. Vectorised numpy.

    Args:
        codes: integers `[n, l]`; row i holds the codes of item i.
        space: token space that the codes belong to.
        order: numbers `[n]`; inside a collision group lower numbers come first, then lower item
            ids. By default the item id alone. (`-popularity` puts popular items first.)
        budget_bytes: most bytes that the dense child rows may take.

    Raises:
        ValueError: no items, wrong shape or dtype, a code outside its level, or dense rows above
            the budget.
    """
    codes = _checked_codes(codes, space)
    items = codes.shape[0]
    order = np.zeros(items, np.int8) if order is None else np.asarray(order)
    if order.shape != (items,):
        raise ValueError(
            f"order has shape {order.shape} for {items} items; give one number per item."
        )
    item = np.lexsort((order, *codes.T[::-1])).astype(np.int32)  # stable: then by item id
    codes = codes[item]
    starts, new = [np.zeros(1, np.int64)], np.zeros(items, bool)
    new[0] = True
    for level in range(space.levels):
        new[1:] |= codes[1:, level] != codes[:-1, level]
        starts.append(np.flatnonzero(new))
    nodes = tuple(len(rows) for rows in starts)
    _check_budget(sum(nodes[:-1]) * space.width * 4, budget_bytes, items)

    child, last_codes, fanout = _link(codes, starts, space.width)
    row = np.empty(items, np.int32)
    row[item] = np.arange(items, dtype=np.int32)
    stops = [np.append(rows[1:], items) for rows in starts]

    def device(values: np.ndarray) -> jax.Array:
        return jnp.asarray(values, jnp.int32)

    return Catalogue(
        item=device(item),
        row=device(row),
        start=device(np.concatenate(starts)),
        stop=device(np.concatenate(stops)),
        code=device(last_codes),
        child=device(child),
        space=space,
        nodes=nodes,
        fanout=fanout,
        max_group=int((stops[-1] - starts[-1]).max()),
    )


def _link(
    codes: np.ndarray, starts: list[np.ndarray], width: int
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Child rows, last code of every node, and the largest number of children per depth."""
    offsets = np.cumsum([0, *(len(rows) for rows in starts)])
    child = np.full((offsets[-2], width), -1, np.int32)
    last_codes, fanout = [np.zeros(1, np.int32)], []
    for level, (above, below) in enumerate(itertools.pairwise(starts)):
        parent = np.searchsorted(above, below, side="right") - 1
        code = codes[below, level]
        number = offsets[level + 1] + np.arange(len(below))
        child[offsets[level] + parent, code] = number
        last_codes.append(code.astype(np.int32))
        fanout.append(int(np.bincount(parent).max()))
    return child, np.concatenate(last_codes), tuple(fanout)


def _checked_codes(codes: np.ndarray, space: TokenSpace) -> np.ndarray:
    """The codes as int64, or a ValueError that names the first thing wrong with them."""
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.shape[1] != space.levels:
        raise ValueError(
            f"codes have shape {codes.shape}; a token space of sizes {space.sizes} needs one row "
            f"per item and {space.levels} columns."
        )
    if not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"codes have dtype {codes.dtype}; give integers.")
    if codes.shape[0] == 0:
        raise ValueError("the catalogue is empty; give the codes of at least one item.")
    if codes.shape[0] >= 1 << 31:
        raise ValueError(f"{codes.shape[0]} items do not fit 32-bit rows; split the catalogue.")
    wrong = (codes < 0) | (codes >= np.asarray(space.sizes))
    if wrong.any():
        item, level = (int(index) for index in np.argwhere(wrong)[0])
        raise ValueError(
            f"{int(wrong.any(axis=1).sum())} item(s) have codes outside the token space; the first "
            f"is item {item}: code {int(codes[item, level])} at level {level}, where 0 .. "
            f"{space.sizes[level] - 1} are allowed. Use semantic IDs of this space."
        )
    return codes.astype(np.int64)


def _check_budget(needed: int, budget: int, items: int) -> None:
    """Refuses dense child rows that would take more than the budget."""
    if needed > budget:
        raise ValueError(
            f"the dense child rows of {items} items need {needed:,} bytes, above the budget of "
            f"{budget:,}; pass budget_bytes={needed} if the device has them, or use semantic IDs "
            "with narrower levels."
        )
