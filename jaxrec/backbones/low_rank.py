"""Low-rank adaptation of any parameter tree (LoRA, Hu et al. 2021, arXiv:2106.09685; METHODS B22).

    W' = W + (alpha / r) A B,    A [in r] normal, B [r out] zero

Networks know nothing of it: they are given `W'`. The base stands still, what is trained is a small
tree of its own (the *deltas*), and so are optimizer state and checkpoints. `W'` is made anew in
every step, which costs `2 r` operations a weight: little beside a batch of thousands of tokens. The
backward pass holds one gradient as large as `W` for as long as it takes to shrink it to A and B.

A vocabulary that grew (the tokens of semantic IDs in a language model) needs more: a new row starts
as noise and no low-rank change of other matrices gives it a meaning. `NewRows` trains such rows
whole, and only them.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import math
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from jaxrec.types import PyTree

HEADS = ("heads", "kv_heads")
"""Axes that count as one with the size of a head that follows them."""

STACKED = ("layers", "experts")
"""Axes in front that are never a side of a matrix: each has an A and a B for every index."""


@dataclasses.dataclass(frozen=True)
class NewRows:
    """Rows `first .. first + count - 1` of a table, or columns of an output matrix.

    Rows lie along the axis that is named `vocab`.

    Raises:
        ValueError: a negative first row, or no row.
    """

    target: str
    """Path of the parameter, as in `LowRank.targets`: `tokens/table`."""
    first: int
    count: int

    def __post_init__(self) -> None:
        if self.first < 0 or self.count < 1:
            raise ValueError(
                f"NewRows({self.target!r}) needs first >= 0 and count >= 1, got {self.first} and "
                f"{self.count}."
            )


@dataclasses.dataclass(frozen=True)
class LowRank:
    """Which parameters change, and how far.

    A target is the end of a path, whole names only: `attention/query` is any parameter `query` of
    any `attention`. In every name `*` stands for anything: `attention/*`.

    The published dropout of the input of A is not offered: a changed matrix has no such input.

    Raises:
        ValueError: a rank below 1, an alpha that is not positive, or nothing to train.
    """

    rank: int = 8
    alpha: float = 16.0
    """Changes are scaled by `alpha / rank`, so that the rank may change alone."""
    targets: tuple[str, ...] = ("attention/query", "attention/value")
    unfreeze: tuple[NewRows, ...] = ()
    """Rows of new tokens that are trained whole."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(
                f"LowRank needs rank >= 1 and alpha > 0, got {self.rank} and {self.alpha}."
            )
        if not self.targets and not self.unfreeze:
            raise ValueError(
                "LowRank without targets and without rows to unfreeze trains nothing; name the "
                "ends of paths, such as targets=('attention/query', 'attention/value')."
            )

    def init(self, key: Array, params: PyTree, axes: PyTree) -> PyTree:
        """Deltas that change nothing yet, float32.

        A is normal with standard deviation `in^-1/2` (the paper gives none), B and rows are zero.

        Args:
            key: of A.
            params: the base: arrays or shapes.
            axes: logical axis names of the base, a tuple at each leaf.

        Returns:
            Nested dictionaries along the paths of the targets, with `down` (A, `[stack in r]`) and
            `up` (B, `[stack r out]`) at their ends, and `rows` where rows are unfrozen.

        Raises:
            ValueError: a target matches nothing, or something that is not a matrix; rows outside
                the table, or a table without an axis `vocab`.
        """
        shapes = flatten_dict(self._shapes(params, axes), sep="/")
        keys = jax.random.split(key, len(shapes))

        def start(key: Array, path: str) -> Array:
            shape = shapes[path]
            if not path.endswith("/down"):
                return jnp.zeros(shape, jnp.float32)
            return shape[-2] ** -0.5 * jax.random.normal(key, shape, jnp.float32)

        flat = {path: start(each, path) for each, path in zip(keys, sorted(shapes))}
        return unflatten_dict(flat, sep="/")

    def apply(self, params: PyTree, deltas: PyTree) -> PyTree:
        """The changed parameters, as a function of the deltas only: the base has no gradient."""
        return self.merge(jax.lax.stop_gradient(params), deltas)

    def merge(self, params: PyTree, deltas: PyTree) -> PyTree:
        """The changed parameters for good: a tree like the base, of its dtypes.

        Args:
            params: the base.
            deltas: from `init`, or trained.

        Raises:
            ValueError: deltas of parameters that the base does not have.
        """
        changes: dict[str, dict[str, Array]] = {}
        for path, leaf in flatten_dict(deltas, sep="/").items():
            target, _, part = path.rpartition("/")
            changes.setdefault(target, {})[part] = leaf
        if strangers := sorted(set(changes) - set(_leaves(params))):
            raise ValueError(
                f"there are deltas of {strangers[0]}, which the parameters do not have; make them "
                "from the same network (LowRank.init)."
            )
        scale = self.alpha / self.rank

        def changed(path: tuple, leaf: Array) -> Array:
            parts = changes.get(_name(path))
            return leaf if parts is None else change(leaf, parts, scale=scale, rows=self._row(path))

        return jax.tree_util.tree_map_with_path(changed, params)

    def axes(self, params: PyTree, axes: PyTree) -> PyTree:
        """Logical axis names of the deltas; arguments as in `init`. Ranks are not split."""
        return unflatten_dict(
            {f"{path}/{part}": names for path, part, _, names in self._parts(params, axes)}, sep="/"
        )

    def parameters(self, params: PyTree, axes: PyTree) -> int:
        """Number of numbers that are trained; arguments as in `init`."""
        return sum(math.prod(shape) for _, _, shape, _ in self._parts(params, axes))

    def _shapes(self, params: PyTree, axes: PyTree) -> PyTree:
        return unflatten_dict(
            {f"{path}/{part}": shape for path, part, shape, _ in self._parts(params, axes)}, sep="/"
        )

    def _parts(self, params: PyTree, axes: PyTree) -> Iterator[tuple[str, str, tuple, tuple]]:
        """Path, part, shape and axis names of every delta."""
        shapes = {path: tuple(leaf.shape) for path, leaf in _leaves(params).items()}
        names = _leaves(axes, is_leaf=lambda node: isinstance(node, tuple))
        for path in sorted({path for each in self.targets for path in matching(each, shapes)}):
            stack, inner, outer = split_axes(path, names[path], shapes[path])
            sizes = [math.prod(shapes[path][axis] for axis in side) for side in (inner, outer)]
            front = tuple(shapes[path][axis] for axis in stack)
            front_names = tuple(names[path][axis] for axis in stack)
            first, last = names[path][inner[0]], names[path][outer[0]]
            yield path, "down", (*front, sizes[0], self.rank), (*front_names, first, None)
            yield path, "up", (*front, self.rank, sizes[1]), (*front_names, None, last)
        freed = [(path, rows) for rows in self.unfreeze for path in matching(rows.target, shapes)]
        if len(freed) != len(dict(freed)):
            raise ValueError(
                f"two of unfreeze={self.unfreeze} are of one table; give each table one range."
            )
        for path, rows in freed:
            axis = _row_axis(path, names[path], shapes[path], rows)
            shape, kept = list(shapes[path]), list(names[path])
            shape[axis], kept[axis] = rows.count, None
            yield path, "rows", tuple(shape), tuple(kept)

    def _row(self, path: tuple) -> int:
        """First unfrozen row of a parameter, 0 where there is none."""
        found = [rows.first for rows in self.unfreeze if _matches(rows.target, _name(path))]
        return found[0] if found else 0


def change(leaf: Array, parts: dict[str, Array], *, scale: float, rows: int = 0) -> Array:
    """One parameter with its changes, computed in float32 and rounded once.

    Args:
        leaf: the parameter.
        parts: `down` `[stack in r]` and `up` `[stack r out]`, whose product has the numbers of the
            parameter in the same order; and `rows`, of its shape but for one shorter axis.
        scale: of the product.
        rows: where on that axis `rows` begin.
    """
    wide = leaf.astype(jnp.float32)
    if "down" in parts:
        product = jnp.matmul(parts["down"], parts["up"], precision=jax.lax.Precision.HIGHEST)
        wide = wide + scale * product.reshape(leaf.shape)
    if "rows" in parts:
        added = parts["rows"]
        shorter = [axis for axis in range(leaf.ndim) if added.shape[axis] != leaf.shape[axis]]
        begin = [rows if axis in shorter else 0 for axis in range(leaf.ndim)]
        there = tuple(slice(at, at + size) for at, size in zip(begin, added.shape))
        wide = wide.at[there].add(added)
    return wide.astype(leaf.dtype)


def trainable(params: PyTree, deltas: PyTree) -> PyTree:
    """Labels of one tree that holds both, `{"base": params, "deltas": deltas}`.

    For `optax.multi_transform({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)`: no
    moments are kept of the base, and no weight decay moves it.

    >>> trainable({"w": 1.0}, {"w": {"down": 1.0, "up": 0.0}})
    {'base': {'w': 'frozen'}, 'deltas': {'w': {'down': 'trained', 'up': 'trained'}}}
    """
    return {
        "base": jax.tree.map(lambda _: "frozen", params),
        "deltas": jax.tree.map(lambda _: "trained", deltas),
    }


def matching(target: str, paths: Iterable[str]) -> list[str]:
    """Paths that a target names, in order.

    Raises:
        ValueError: there is none.

    >>> matching("attention/*", ["a/attention/key", "a/attention/query", "a/self_attention/key"])
    ['a/attention/key', 'a/attention/query']
    """
    paths = sorted(paths)
    found = [path for path in paths if _matches(target, path)]
    if not found:
        raise ValueError(
            f"target {target!r} matches no parameter; a target is the end of a path in whole "
            f"names, * for any. There are: {', '.join(paths)}."
        )
    return found


def split_axes(
    path: str, names: tuple[str | None, ...], shape: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Which axes of a parameter are a stack of matrices, their inputs and their outputs.

    Heads and the size of a head are one side; the last two sides are the matrix.

    Raises:
        ValueError: fewer than two sides: a vector.

    >>> split_axes("query", ("layers", "embed", "heads", None), (2, 64, 4, 16))
    ((0,), (1,), (2, 3))
    >>> split_axes("output", ("layers", "heads", None, "embed"), (2, 4, 16, 64))
    ((0,), (1, 2), (3,))
    """
    stacked = next((i for i, name in enumerate(names) if name not in STACKED), len(names))
    sides: list[tuple[int, ...]] = [(axis,) for axis in range(stacked, len(names))]
    for axis in range(stacked, len(names) - 1):
        if len(sides) > 2 and names[axis] in HEADS and names[axis + 1] is None:
            place = sides.index((axis,))
            sides[place : place + 2] = [(axis, axis + 1)]
    if len(sides) < 2:
        raise ValueError(
            f"{path} with axes {names} and shape {shape} is no matrix, so it has no low-rank "
            "change; name targets that are, or whole paths instead of *."
        )
    *front, inner, outer = sides
    return (*range(stacked), *(axis for side in front for axis in side)), inner, outer


def _row_axis(path: str, names: tuple, shape: tuple[int, ...], rows: NewRows) -> int:
    if "vocab" not in names:
        raise ValueError(f"{path} has axes {names}, none of them vocab, so it has no rows to free.")
    axis = names.index("vocab")
    if rows.first + rows.count > shape[axis]:
        raise ValueError(
            f"rows {rows.first} to {rows.first + rows.count - 1} are not all in {path}, which has "
            f"{shape[axis]} along vocab; grow the table first."
        )
    return axis


def _matches(target: str, path: str) -> bool:
    wanted, names = target.split("/"), path.split("/")
    return len(wanted) <= len(names) and all(
        fnmatch.fnmatchcase(name, want) for name, want in zip(names[-len(wanted) :], wanted)
    )


def _leaves(tree: PyTree, is_leaf=None) -> dict[str, PyTree]:
    """Leaves by path, names joined by slashes."""
    return {
        _name(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    }


_name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
