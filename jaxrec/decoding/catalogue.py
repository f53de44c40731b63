"""The catalogue as a trie of device tables: items sorted by semantic ID, nothing pointed to.

Sorting the items by their codes makes every prefix a contiguous range, so nodes are numbered depth
by depth in sorted order and the children of a node are consecutive. A node of a depth is just its
number there; what has to be stored is where the children of each node begin and the last code of
each node. Both shrink further where the shape of a level allows it (`Kind`), so that ten million
items with 8 codes of 2,048 take 16 bytes an item, and a lookup costs the same in a catalogue of any
size. The last depth are the leaves, the distinct full IDs; items that share one stand side by side.

Dense rows over compressed ones are the layout of Su et al. 2026 (arXiv:2602.22647, "STATIC");
numbers without pointers and the four kinds of levels are ours.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Literal, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int32, Integer, UInt32

from jaxrec.types import TokenSpace

Kind = Literal["chain", "full", "dense", "slots"]
"""How the children of the nodes of one depth are laid out.

- `chain`: every node has one child, which has its number; nothing is stored.
- `full`: every node has every code of the level; nothing is stored.
- `dense`: one bit a code says which children exist; for levels that are nearly full.
- `slots`: children are looked up one after another; for wide and sparse levels.
"""

BITS = 32
"""Codes of a word in `Catalogue.bits`."""
BLOCK = 32
"""Nodes that share a 32-bit base in `Starts`, and codes that are read together."""


class Starts(NamedTuple):
    """A rising table of numbers, in one or two bytes each: where the children of nodes begin."""

    base: Int32[Array, " blocks"]
    """Number at the start of every `BLOCK`."""
    delta: Integer[Array, " n"]
    """What is added to it; unsigned."""

    def at(self, index: Int32[Array, " ..."]) -> Int32[Array, " ..."]:
        """Numbers at places."""
        return self.base[index // BLOCK] + self.delta[index].astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class TrieShape:
    """The static numbers of a catalogue: two catalogues of equal shape share a compiled program.

    They only bound: a depth may have unused nodes at its end, so an index may leave room to grow.
    """

    nodes: tuple[int, ...]
    """Nodes of each depth, from 1 (the root) to the number of leaves."""
    kinds: tuple[Kind, ...]
    """Layout below the nodes of each depth, leaves excluded."""
    fanout: tuple[int, ...]
    """Most children that a node of each depth has, leaves excluded."""
    max_group: int
    """Most items that one leaf has; 1 when all semantic IDs are unique."""
    crowd: tuple[tuple[int, ...], ...] = ()
    """Per depth, leaves excluded: most children that 1, 2, 4, 8 .. nodes have together. Where a few
    nodes have most of the children (popular prefixes), far fewer than `fanout` of each. Empty where
    nobody has counted."""

    def most_children(self, depth: int, nodes: int) -> int:
        """A bound on the children of some different nodes of a depth."""
        bound = min(nodes, self.nodes[depth]) * self.fanout[depth]
        if not self.crowd:
            return bound
        sums = self.crowd[depth]
        last = min(max(nodes, 1).bit_length() - 1, len(sums) - 1)
        # The next nodes have no more than the average of those counted last.
        steps = (sums[last] - sums[last - 1], 1 << (last - 1)) if last else (sums[0], 1)
        return min(bound, sums[last] + -(-(nodes - (1 << last)) * steps[0] // steps[1]))


@no_type_check  # tree operations put shapes and shardings where the arrays were
@partial(
    jax.tree_util.register_dataclass,
    data_fields=("item", "row", "code", "first", "bits", "group"),
    meta_fields=("space", "shape", "items"),
)
@dataclasses.dataclass(frozen=True)
class Catalogue:
    """A trie over the items' semantic IDs. Made by `build_catalogue`; an argument of `jit`.

    Rows are the items sorted by semantic ID, then by their order inside the leaf.
    """

    item: Int32[Array, " n"] | None
    """Item of each row, -1 in unused rows; None where rows are items."""
    row: Int32[Array, " n"] | None
    """Row of each item, the inverse of `item`; n for items that are not there."""
    code: Integer[Array, " stored"]
    """Last code of the nodes of every depth below one that is not `full`, unsigned; every depth is
    filled up to a multiple of `BLOCK`."""
    first: tuple[Starts | None, ...]
    """First child of each node, and one number more; per depth, for `dense` and `slots`."""
    bits: tuple[UInt32[Array, "nodes words"] | None, ...]
    """Which codes may follow each node, the lowest bit first; per depth, for `dense`."""
    group: Starts | None
    """First row of each leaf, and one number more; None where every leaf is one row."""
    space: TokenSpace
    """The token space of the codes."""
    shape: TrieShape
    """Static numbers."""
    items: int
    """Number of items, unused places included."""

    @property
    def levels(self) -> int:
        """Levels of a semantic ID."""
        return self.space.levels

    @property
    def leaves(self) -> int:
        """Number of distinct semantic IDs, unused places included."""
        return self.shape.nodes[-1]

    @property
    def bytes(self) -> int:
        """Bytes of all tables."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self))

    def item_at(self, row: Int32[Array, " ..."]) -> Int32[Array, " ..."]:
        """Items of rows."""
        return row if self.item is None else self.item[row]

    def row_of(self, item: Int32[Array, " ..."]) -> Int32[Array, " ..."]:
        """Rows of items."""
        return item if self.row is None else self.row[item]


def code_of(catalogue: Catalogue, depth: int, node: Int32[Array, " ..."]) -> Int32[Array, " ..."]:
    """Last code of nodes of a depth; 0 at the root."""
    if depth == 0:
        return jnp.zeros_like(node)
    if catalogue.shape.kinds[depth - 1] == "full":
        return node % catalogue.space.sizes[depth - 1]
    return catalogue.code[code_offset(catalogue, depth) + node].astype(jnp.int32)


def code_offset(catalogue: Catalogue, depth: int) -> int:
    """Place of the codes of a depth in `Catalogue.code`: a multiple of `BLOCK`."""
    shape = catalogue.shape
    kept = [above for above in range(1, depth) if shape.kinds[above - 1] != "full"]
    return sum(whole_blocks(shape.nodes[above]) for above in kept)


def whole_blocks(count: int) -> int:
    """The next multiple of `BLOCK`."""
    return -(-count // BLOCK) * BLOCK


def first_child(
    catalogue: Catalogue, depth: int, node: Int32[Array, " ..."]
) -> Int32[Array, " ..."]:
    """First child of nodes of a depth; one past the last node gives one past the last child."""
    kind, starts = catalogue.shape.kinds[depth], catalogue.first[depth]
    if kind == "chain":
        return node
    if kind == "full":
        return node * catalogue.space.sizes[depth]
    assert starts is not None
    return starts.at(node)


def parent_of(catalogue: Catalogue, depth: int, node: Int32[Array, " ..."]) -> Int32[Array, " ..."]:
    """Parents, of `depth - 1`, of nodes of a depth."""
    kind, starts = catalogue.shape.kinds[depth - 1], catalogue.first[depth - 1]
    if kind == "chain":
        return node
    if kind == "full":
        return node // catalogue.space.sizes[depth - 1]
    assert starts is not None
    return _bisect(starts, node, catalogue.shape.nodes[depth - 1])


def first_row(catalogue: Catalogue, leaf: Int32[Array, " ..."]) -> Int32[Array, " ..."]:
    """First row of leaves; one past the last leaf gives the number of rows in use."""
    return leaf if catalogue.group is None else catalogue.group.at(leaf)


def leaf_of(catalogue: Catalogue, row: Int32[Array, " ..."]) -> Int32[Array, " ..."]:
    """Leaves of rows."""
    if catalogue.group is None:
        return row
    return _bisect(catalogue.group, row, catalogue.leaves)


def ancestor_of(
    catalogue: Catalogue, depth: int, node: Int32[Array, " ..."], above: int
) -> Int32[Array, " ..."]:
    """Ancestors at depth `above` of nodes of a depth."""
    for below in range(depth, above, -1):
        node = parent_of(catalogue, below, node)
    return node


def _bisect(starts: Starts, place: Int32[Array, " ..."], count: int) -> Int32[Array, " ..."]:
    """The last of `count` numbers of a table that is not above each place."""
    low, high = jnp.zeros_like(place), jnp.full_like(place, count)

    def halve(_: int | Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        inside = (middle < high) & (starts.at(jnp.minimum(middle, count - 1)) <= place)
        return jnp.where(inside, middle, low), jnp.where(inside, high, middle)

    return jax.lax.fori_loop(0, count.bit_length(), halve, (low, high))[0]


def shard_catalogue(
    catalogue: Catalogue, mesh: Mesh, *, axis: str = "tensor", smallest: int = 1 << 20
) -> Catalogue:
    """Spreads the large tables over the devices of a mesh axis, for indices that outgrow one.

    Lookups then meet over the network, a few numbers a beam; answers are the same. The rows of a
    batch may be sharded over other axes.

    Args:
        mesh: the mesh.
        axis: of the mesh.
        smallest: bytes of a table from which on it is spread; smaller ones are copied everywhere.
    """
    parts = mesh.shape[axis]

    def place(table: Array) -> Array:
        if table.size * table.dtype.itemsize < smallest:
            return jax.device_put(table, NamedSharding(mesh, PartitionSpec()))
        # What is filled up is never looked at: places of nodes and items do not change.
        missing = -table.shape[0] % (parts * BLOCK)
        table = jnp.pad(table, ((0, missing), *((0, 0),) * (table.ndim - 1)))
        return jax.device_put(table, NamedSharding(mesh, PartitionSpec(axis)))

    return jax.tree.map(place, catalogue)
