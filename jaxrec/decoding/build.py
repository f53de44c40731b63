"""Building the catalogue: vectorised numpy from the codes of the items to the tables of the trie.

One sort of packed codes, then one pass a level. Nothing is done node by node, and codes that come
sorted are not sorted again.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.decoding.catalogue import (
    BITS,
    BLOCK,
    Catalogue,
    Kind,
    Starts,
    TrieShape,
    whole_blocks,
)
from jaxrec.types import TokenSpace

WIDEST = 4096
"""Nodes of a depth whose children are counted together: beams that a search may have."""
NEARLY_FULL = 4
"""A level is laid out `dense` where a node has more than this share of the codes: one in four."""


@dataclasses.dataclass(frozen=True)
class _Level:
    """What one level of the codes says: the nodes below, and how they hang on those above."""

    code: np.ndarray
    """Last code of every node below."""
    start: np.ndarray | None
    """First child of every node above, and the number of nodes below; None where each has one."""

    @property
    def first(self) -> np.ndarray:
        """`start`, also where each node has one child."""
        return np.arange(len(self.code) + 1) if self.start is None else self.start


def build_catalogue(
    codes: np.ndarray,
    space: TokenSpace,
    order: np.ndarray | None = None,
    *,
    shape: TrieShape | None = None,
    items: int | None = None,
) -> Catalogue:
    """Sorts the items by semantic ID and lays the trie out as arrays.

    Args:
        codes: integers `[n, l]`; row i holds the codes of item i.
        space: token space that the codes belong to.
        order: numbers `[n]`; inside a collision group lower numbers come first, then lower item
            ids. By default the item id alone. (`-popularity` puts popular items first.)
        shape: static numbers to keep to, those of an index that this one replaces or `shape_for`:
            programs compiled for that shape serve this catalogue too.
        items: places for items, unused ones included; n by default.

    Raises:
        ValueError: no items, wrong shape or dtype, a code outside its level, or a catalogue that
            does not fit the given shape.
    """
    columns = _checked_columns(codes, space)
    count = len(columns[0])
    order = None if order is None else np.asarray(order)
    if order is not None and order.shape != (count,):
        raise ValueError(
            f"order has shape {order.shape} for {count} items; give one number per item."
        )
    item = sort_codes(columns, space, order)
    levels, group = _levels_of(columns if item is None else [each[item] for each in columns])
    found = _found_shape(levels, group, space)
    if shape is not None:
        _check_room(found, shape, space)
    places = count if items is None else items
    if places < count:
        raise ValueError(f"items={places} leaves no place for the {count} items that there are.")
    return _lay_out(levels, group, item, space, shape or found, places, tight=shape is None)


def shape_for(codes: np.ndarray, space: TokenSpace, *, room: float = 0.25) -> TrieShape:
    """The shape of an index that may grow by a share before a new program has to be compiled.

    Args:
        codes: integers `[n, l]` of today's items.
        space: token space that the codes belong to.
        room: share by which nodes, children of a node and items of a leaf may grow.

    Raises:
        ValueError: as `build_catalogue`, or a negative `room`.
    """
    if room < 0:
        raise ValueError(f"room={room} must not be negative.")
    columns = _checked_columns(codes, space)
    item = sort_codes(columns, space, None)
    levels, group = _levels_of(columns if item is None else [each[item] for each in columns])
    found = _found_shape(levels, group, space)
    nodes, kinds, fanout, crowd = [1], [], [], []
    for depth, size in enumerate(space.sizes):
        nodes.append(min(nodes[-1] * size, int(found.nodes[depth + 1] * (1 + room)) + 1))
        fanout.append(min(size, int(found.fanout[depth] * (1 + room)) + 1))
        kinds.append("dense" if found.kinds[depth] in ("dense", "full") else "slots")
        crowd.append(
            tuple(
                int(sum_ * (1 + room)) + (1 << power)
                for power, sum_ in enumerate(found.crowd[depth])
            )
        )
    biggest = int(found.max_group * (1 + room))
    return TrieShape(tuple(nodes), tuple(kinds), tuple(fanout), biggest, tuple(crowd))


def sort_codes(
    columns: list[np.ndarray], space: TokenSpace, order: np.ndarray | None
) -> np.ndarray | None:
    """The items sorted by their codes, then by `order`, then by item; None where they are.

    Codes are packed into as few 64-bit keys as hold them.
    """
    if order is None and _is_sorted(columns):
        return None
    keys, used = [], BITS * 2
    for level, size in enumerate(space.sizes):
        width = max(1, (size - 1).bit_length())
        if used + width > BITS * 2:
            keys.append(np.zeros(len(columns[0]), np.uint64))
            used = 0
        np.left_shift(keys[-1], np.uint64(width), out=keys[-1])
        np.bitwise_or(keys[-1], columns[level].astype(np.uint64), out=keys[-1])
        used += width
    last = () if order is None else (order,)
    if len(keys) == 1 and not last:
        return np.argsort(keys[0], kind="stable")
    return np.lexsort((*last, *keys[::-1]))


def _is_sorted(columns: list[np.ndarray]) -> bool:
    """Whether rows, the first column the weightiest, never fall."""
    equal = np.ones(len(columns[0]) - 1, bool)
    for column in columns:
        if np.any(equal & (column[1:] < column[:-1])):
            return False
        equal &= column[1:] == column[:-1]
        if not equal.any():
            break
    return True


def _levels_of(columns: list[np.ndarray]) -> tuple[list[_Level], np.ndarray]:
    """What every level says, and the first row of every leaf with the number of rows behind it."""
    count = len(columns[0])
    new = np.zeros(count, bool)
    new[0] = True
    starts, levels = np.zeros(1, np.int64), []
    for column in columns:
        if len(starts) == count:  # every row is a node of its own already
            levels.append(_Level(column, None))
            continue
        new[1:] |= column[1:] != column[:-1]
        below = np.flatnonzero(new)
        first = None
        if len(below) != len(starts):
            first = np.append(np.cumsum(new, dtype=np.int32)[starts] - 1, len(below))
        levels.append(_Level(column[below], first))
        starts = below
    return levels, np.append(starts, count)


def _found_shape(levels: list[_Level], group: np.ndarray, space: TokenSpace) -> TrieShape:
    """The tightest shape, each level in the layout that suits it."""
    nodes, kinds, crowd = [1], [], []
    for level, size in zip(levels, space.sizes):
        above, below = nodes[-1], len(level.code)
        crowd.append(_crowd(level, above))
        nodes.append(below)
        kinds.append(_kind(above, below, crowd[-1][0], size))
    fanout = tuple(sums[0] for sums in crowd)
    most = int(np.diff(group).max())
    return TrieShape(tuple(nodes), tuple(kinds), fanout, most, tuple(crowd))


def _crowd(level: _Level, above: int) -> tuple[int, ...]:
    """Children of the 1, 2, 4 .. widest nodes together."""
    wanted = [1 << power for power in range(min(above, WIDEST).bit_length())]
    if level.start is None:
        return tuple(wanted)
    nodes = np.bincount(np.diff(level.start))[::-1]  # by number of children, most first
    children = np.arange(len(nodes))[::-1]
    nodes_so_far, sums = np.cumsum(nodes), np.cumsum(nodes * children)
    last = np.searchsorted(nodes_so_far, wanted)
    surplus = nodes_so_far[last] - wanted
    return tuple((sums[last] - surplus * children[last]).tolist())


def _kind(above: int, below: int, most: int, size: int) -> Kind:
    if below == above:
        return "chain"
    if below == above * size:
        return "full"
    # A bit for every code must not cost more than the codes of the children would.
    words = -(-size // BITS) * 4
    affordable = above * words <= max(4 * below, 1 << 16)
    return "dense" if most * NEARLY_FULL > size and affordable else "slots"


def _lay_out(
    levels: list[_Level],
    group: np.ndarray,
    item: np.ndarray | None,
    space: TokenSpace,
    shape: TrieShape,
    items: int,
    *,
    tight: bool,
) -> Catalogue:
    """Device tables of a shape; a tight one leaves out tables that say nothing."""
    code = np.uint8 if space.width <= 256 else np.uint16 if space.width <= 65536 else np.uint32
    codes, first, bits = [], [], []
    for depth, level in enumerate(levels):
        kind, above, below = shape.kinds[depth], shape.nodes[depth], shape.nodes[depth + 1]
        if kind != "full":
            codes.append(_padded(level.code.astype(code), whole_blocks(below), 0))
        stored = kind in ("dense", "slots")
        first.append(_starts(level.first, above, shape.fanout[depth]) if stored else None)
        bits.append(_bits(level, above, space.sizes[depth]) if kind == "dense" else None)
    alone = tight and shape.max_group == 1
    if item is None and not (tight and items == group[-1]):
        item = np.arange(group[-1])
    rows = None
    if item is not None:
        rows = np.full(items, items, np.int32)
        rows[item] = np.arange(len(item), dtype=np.int32)
        item = _padded(item.astype(np.int32), items, -1)
    return Catalogue(
        item=None if item is None else jnp.asarray(item),
        row=None if rows is None else jnp.asarray(rows),
        code=jnp.asarray(np.concatenate(codes) if codes else np.zeros(0, code)),
        first=tuple(first),
        bits=tuple(bits),
        group=None if alone else _starts(group, shape.nodes[-1], shape.max_group),
        space=space,
        shape=shape,
        items=items,
    )


def _padded(values: np.ndarray, length: int, fill: int) -> np.ndarray:
    missing = length - len(values)
    return values if not missing else np.append(values, np.full(missing, fill, values.dtype))


def _starts(first: np.ndarray, above: int, most: int) -> Starts:
    """A table of `above + 1` rising numbers that grow by at most `most` each."""
    first = _padded(first, whole_blocks(above + 1), int(first[-1])).reshape(-1, BLOCK)
    bound = (BLOCK - 1) * most
    small = np.uint8 if bound < 1 << 8 else np.uint16 if bound < 1 << 16 else np.uint32
    delta = np.empty(first.shape, small)
    np.subtract(first, first[:, :1], out=delta, casting="unsafe")
    base = first[:, 0].astype(np.int32)
    return Starts(jnp.asarray(base), jnp.asarray(delta.reshape(-1)[: above + 1]))


def _bits(level: _Level, above: int, size: int) -> jax.Array:
    """A bit for every code that follows each node."""
    words = -(-size // BITS)
    exists = np.zeros((above, words * BITS), bool)
    parents = np.repeat(np.arange(len(level.first) - 1), np.diff(level.first))
    exists[parents, level.code] = True
    return jnp.asarray(np.packbits(exists, axis=1, bitorder="little").view(np.uint32))


def _check_room(found: TrieShape, shape: TrieShape, space: TokenSpace) -> None:
    """Refuses a catalogue that outgrows the shape it is to have."""
    for depth, size in enumerate(space.sizes):
        above, below = shape.nodes[depth], shape.nodes[depth + 1]
        kind, now = shape.kinds[depth], (found.nodes[depth], found.nodes[depth + 1])
        whole = kind not in ("chain", "full") or (
            now == (above, below) and below == above * (1 if kind == "chain" else size)
        )
        fits = now[0] <= above and now[1] <= below and found.fanout[depth] <= shape.fanout[depth]
        fits &= all(
            sum_ <= shape.most_children(depth, 1 << power)
            for power, sum_ in enumerate(found.crowd[depth])
        )
        if not (whole and fits):
            raise ValueError(
                f"the catalogue has {now[1]} prefixes of {depth + 1} codes and up to "
                f"{found.fanout[depth]} children of one, which does not fit a shape of {below} and "
                f"{shape.fanout[depth]} ({kind}); take a shape with more room (`shape_for`) and "
                "compile again."
            )
    if found.max_group > shape.max_group:
        raise ValueError(
            f"{found.max_group} items share a semantic ID, but the shape has room for "
            f"{shape.max_group}; take a shape with more room (`shape_for`) and compile again."
        )


def _checked_columns(codes: np.ndarray, space: TokenSpace) -> list[np.ndarray]:
    """The codes level by level, or a ValueError that names the first thing wrong with them."""
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
    columns = list(np.ascontiguousarray(codes.T))
    if any(map(_outside, columns, space.sizes)):
        wrong = (codes < 0) | (codes >= np.asarray(space.sizes))
        item, level = (int(index) for index in np.argwhere(wrong)[0])
        raise ValueError(
            f"{int(wrong.any(axis=1).sum())} item(s) have codes outside the token space; the first "
            f"is item {item}: code {int(codes[item, level])} at level {level}, where 0 .. "
            f"{space.sizes[level] - 1} are allowed. Use semantic IDs of this space."
        )
    return columns


def _outside(column: np.ndarray, size: int) -> bool:
    return bool(column.min() < 0 or column.max() >= size)
