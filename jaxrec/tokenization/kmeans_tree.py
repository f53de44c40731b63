"""A tree of k-means: every set of items is split again until its items stand alone.

    root = all items;   children of a set = its k clusters;   semantic ID = the path to the leaf

The tokenizer of SEATER (arXiv:2309.13375), whose splits are even, and of DSI (arXiv:2202.06991),
EAGER and ColaRec (METHODS T6). Codes number the branches of one node: code 3 below different
parents means different clusters, so a generator may want an embedding a node.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from jaxrec.tokenization.blocks import block_rows, map_rows
from jaxrec.tokenization.quantizer import Aux, check_codes, check_vectors, check_weights
from jaxrec.tokenization.set_splitting import group_means, split_sets
from jaxrec.tracking import Progress


@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class KMeansTreeTrace:
    """How the fit went."""

    after: Float[Array, " l"]
    """Weighted sum of squared distances to the nodes of each level; 0 at the leaves."""
    weight: Float[Array, ""]
    """Sum of the weights."""
    rows: Int32[Array, ""]
    """Fitted rows of positive weight; the leaves are the different ones."""


@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class KMeansTreeState:
    """A fitted tree. The children of a node are consecutive nodes of the next level."""

    centroids: tuple[Float[Array, "_ d"], ...]
    """Mean vector of the nodes of each level below the root; last the leaves, which are the fitted
    vectors, each once."""
    children: tuple[Int32[Array, " _"], ...]
    """Where the children of each node of the level above begin, and where the last ones end."""
    trace: KMeansTreeTrace | None = None
    """Absent in a state read from disk."""


@dataclasses.dataclass(frozen=True)
class KMeansTree:
    """A tree over the fitted vectors, down to leaves of one vector.

    Different fitted vectors get different codes: `encode` knows them again. Equal vectors share a
    leaf and are left to the collision policy; `report(state)` counts them. A new vector goes from
    the root to the nearest child that exists, so it ends at the leaf of some fitted vector.

    Published settings, METHODS T6: SEATER 8 branches (Yelp, MIND) or 16 (Books) on SASRec's item
    embeddings; ColaRec 32; EAGER 256 without balance; DSI 10 with `leaf=100` without balance.

    Raises:
        ValueError: a number out of range; in the methods, bad vectors, codes or weights.
    """

    branches: int = 8
    """Clusters that a set is split into."""
    leaf: int = 1
    """A set of at most so many vectors (or `branches`) is not clustered any more: its vectors
    become leaves, numbered in the order of rows."""
    balanced: bool = True
    """Clusters of a set differ by at most one vector in size, so every leaf has the least depth
    that is possible, ceil(log_branches(leaves)) where `leaf` <= `branches`. Without it k-means
    splits as it likes, and shallow leaves are brought to equal depth by codes 0."""
    iterations: int = 20
    """Lloyd updates of a split, at most."""

    schema_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.branches < 2 or self.leaf < 1 or self.iterations < 1:
            raise ValueError(
                "KMeansTree needs branches >= 2, leaf >= 1 and iterations >= 1, got "
                f"{self.branches}, {self.leaf} and {self.iterations}."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """Nothing beside weights."""
        return ()

    def fit(self, key: PRNGKeyArray, vectors: Any, aux: Aux | None = None) -> KMeansTreeState:
        """Splits level by level.

        Args:
            key: of the starts of the k-means.
            vectors: Float[n, d], numpy or jax; brought to the host.
            aux: nothing, or {"weights": Float[n]}; weights move centroids, balance counts vectors.
        """
        points = np.asarray(check_vectors(vectors)) + np.float32(0)  # no minus zeros
        weights = np.asarray(check_weights(aux, len(points)), np.float64)
        points, weights = points[weights > 0], weights[weights > 0]
        rows = len(points)
        first, group = _distinct(points)
        points, weights = points[first], np.bincount(group, weights)
        generator = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
        levels = self._grow(generator, points, weights)
        centroids = [*(_node_means(points, weights, level) for level in levels[:-1])]
        centroids.append(points[levels[-1].order])
        after = []
        for level, means in zip(levels, centroids):
            gaps = points[level.order] - np.repeat(means, np.diff(level.starts), 0)
            after.append(((gaps**2).sum(1) * weights[level.order]).sum())
        trace = KMeansTreeTrace(
            after=jnp.asarray(after, jnp.float32),
            weight=jnp.float32(weights.sum()),
            rows=jnp.int32(rows),
        )
        children = tuple(jnp.asarray(level.children, jnp.int32) for level in levels)
        return KMeansTreeState(tuple(map(jnp.asarray, centroids)), children, trace)

    def encode(self, state: KMeansTreeState, vectors: Any) -> Int32[Array, "n l"]:
        """Paths of vectors, Int32[n, l]: a fitted one's own, otherwise down to the nearest child,
        the lowest code among equally near ones.

        Args:
            vectors: Float[m, d], fitted or new.
        """
        points = check_vectors(vectors, width=state.centroids[0].shape[1])
        leaves = {leaf.tobytes(): number for number, leaf in enumerate(_rows(state.centroids[-1]))}
        leaf = np.array([leaves.get(row.tobytes(), -1) for row in _rows(points)])
        codes = _paths(state)[leaf]
        if len(new := np.flatnonzero(leaf < 0)):
            width = max(self.sizes(state)) * points.shape[1]
            walked = _walk(
                state.centroids,
                state.children,
                points[new],
                sizes=self.sizes(state),
                block=block_rows(width),
            )
            codes[new] = np.asarray(walked)
        return jnp.asarray(codes)

    def decode(self, state: KMeansTreeState, codes: Any) -> Float[Array, "n d"]:
        """Mean vector of the node at the end of the given path, Float[n, d].

        Args:
            codes: Int[n, m], the first m levels. Where a node has no such child (collision policies
                ask for any code), that of the last node on the path.
        """
        known = check_codes(codes, self.sizes(state))
        return _decode(state.centroids, state.children, known)

    def sizes(self, state: KMeansTreeState) -> tuple[int, ...]:
        """The most children that a node of each level has."""
        return tuple(int(np.diff(np.asarray(starts)).max()) for starts in state.children)

    def report(self, state: KMeansTreeState) -> dict[str, Any]:
        """Plain numbers about the fit; errors are per vector and per dimension."""
        leaves, width = state.centroids[-1].shape
        content: dict[str, Any] = {
            "quantizer": type(self).__name__,
            "levels": len(state.centroids),
            "branches": self.branches,
            "balanced": self.balanced,
            "codes": list(self.sizes(state)),
            "nodes": [len(level) for level in state.centroids],
        }
        if state.trace is not None:
            per_number = 1.0 / (float(state.trace.weight) * width)
            content["fit_mse_after"] = [float(each) * per_number for each in state.trace.after]
            content["fit_repeated_rows"] = int(state.trace.rows) - leaves
        return content

    def to_arrays(self, state: KMeansTreeState) -> dict[str, np.ndarray]:
        """`centroids_0`, `children_0`, `centroids_1`, ...; the last centroids are the fitted
        vectors."""
        arrays = {}
        for level, (centroids, children) in enumerate(zip(state.centroids, state.children)):
            arrays[f"centroids_{level}"] = np.asarray(centroids)
            arrays[f"children_{level}"] = np.asarray(children)
        return arrays

    def from_arrays(self, arrays: Mapping[str, np.ndarray]) -> KMeansTreeState:
        """The state that `to_arrays` wrote.

        Raises:
            ValueError: an array is missing, tables that do not fit each other, or more children
                than these hyper-parameters allow.
        """
        levels = max(1, len(arrays) // 2)
        names = [f"{kind}_{level}" for level in range(levels) for kind in ("centroids", "children")]
        if set(names) != set(arrays):
            raise ValueError(
                f"the saved quantizer has {', '.join(sorted(arrays))}; a KMeansTree of {levels} "
                f"levels has {', '.join(names)}."
            )
        nodes = 1
        for level in range(levels):
            starts, found = arrays[f"children_{level}"], len(arrays[f"centroids_{level}"])
            if len(starts) != nodes + 1 or starts[0] != 0 or starts[-1] != found:
                raise ValueError(
                    f"children_{level} must lead from {nodes} nodes to the {found} of "
                    f"centroids_{level}; the saved tree is damaged, fit it again."
                )
            if np.diff(starts).min() < 1 or np.diff(starts).max() > self._limit:
                raise ValueError(
                    f"a node of the saved level {level} has {np.diff(starts).min()}.."
                    f"{np.diff(starts).max()} children, this KMeansTree allows 1..{self._limit}; "
                    "give the hyper-parameters it was fitted with."
                )
            nodes = found
        return KMeansTreeState(
            tuple(jnp.asarray(arrays[name], jnp.float32) for name in names[::2]),
            tuple(jnp.asarray(arrays[name], jnp.int32) for name in names[1::2]),
        )

    @property
    def _limit(self) -> int:
        """Vectors of a set that is not clustered any more."""
        return max(self.branches, self.leaf)

    def _grow(
        self, generator: np.random.Generator, points: np.ndarray, weights: np.ndarray
    ) -> list[_Level]:
        """The levels from below the root to the leaves; `points` are all different."""
        order, starts = np.arange(len(points)), np.array([0, len(points)])
        levels: list[_Level] = []
        expected = balanced_levels(len(points), self.branches, self._limit)
        with Progress(expected, "k-means tree", unit="levels") as progress:
            while not levels or len(starts) <= len(points):
                sizes = np.diff(starts)
                codes = np.arange(len(points)) - np.repeat(starts[:-1], sizes)
                is_large = sizes > self._limit
                if is_large.any():
                    rows = np.repeat(is_large, sizes)
                    codes[rows] = split_sets(
                        generator,
                        points[order[rows]],
                        weights[order[rows]],
                        _starts(sizes[is_large]),
                        self.branches,
                        balanced=self.balanced,
                        iterations=self.iterations,
                    )
                levels.append(_next_level(order, starts, codes))
                order, starts = levels[-1].order, levels[-1].starts
                progress.update(int(len(levels) <= expected))
        return levels


class _Level(NamedTuple):
    """The nodes of one level: node i holds rows order[starts[i] : starts[i + 1]]."""

    order: np.ndarray
    starts: np.ndarray
    children: np.ndarray
    """Of the nodes above, see `KMeansTreeState`."""


def balanced_levels(rows: int, branches: int, limit: int) -> int:
    """Levels of a balanced tree over so many rows.

    >>> balanced_levels(64, 8, 8), balanced_levels(65, 8, 8), balanced_levels(12_101, 8, 100)
    (2, 3, 4)
    """
    levels = 1
    while rows > limit:
        rows, levels = -(-rows // branches), levels + 1
    return levels


def _node_means(points: np.ndarray, weights: np.ndarray, level: _Level) -> np.ndarray:
    nodes = np.repeat(np.arange(len(level.starts) - 1), np.diff(level.starts))
    return group_means(points[level.order], weights[level.order], nodes, len(level.starts) - 1)


def _next_level(order: np.ndarray, starts: np.ndarray, codes: np.ndarray) -> _Level:
    """The nodes that the codes of the ordered rows make of the nodes at `starts`."""
    owner = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    again = np.lexsort((codes, owner))
    owner, codes = owner[again], codes[again]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (owner[1:] != owner[:-1]) | (codes[1:] != codes[:-1])
    nodes = np.flatnonzero(is_first)
    children = np.searchsorted(owner[nodes], np.arange(len(starts)))
    return _Level(order[again], np.append(nodes, len(order)), children)


def _starts(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)])


def _rows(points: Any) -> np.ndarray:
    """Rows whose bytes are equal when they are: minus zero is zero."""
    return np.ascontiguousarray(np.asarray(points, np.float32)) + np.float32(0)


def _distinct(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First row of each different vector, in the order of rows, and the number of each row's."""
    numbers: dict[bytes, int] = {}
    group = np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in points])
    return np.unique(group, return_index=True)[1], group


def _paths(state: KMeansTreeState) -> np.ndarray:
    """Codes of every leaf, int32[leaves, l]."""
    node, columns = np.arange(len(state.centroids[-1])), []
    for table in reversed(state.children):
        starts = np.asarray(table)
        parent = np.searchsorted(starts, node, side="right") - 1
        columns.append(node - starts[parent])
        node = parent
    return np.stack(columns[::-1], 1).astype(np.int32)


@partial(jax.jit, static_argnames=("sizes", "block"))
def _walk(
    centroids: tuple[Array, ...],
    children: tuple[Array, ...],
    points: Array,
    *,
    sizes: tuple[int, ...],
    block: int,
) -> Array:
    """From the root to the nearest child, level by level."""

    def walk_block(rows: Array) -> Array:
        node, codes = jnp.zeros(rows.shape[0], jnp.int32), []
        for means, starts, size in zip(centroids, children, sizes):
            child = starts[node][:, None] + jnp.arange(size)
            exists = child < starts[node + 1][:, None]
            near = means[jnp.where(exists, child, 0)]
            distances = jnp.sum((rows[:, None] - near) ** 2, -1)
            codes.append(jnp.argmin(jnp.where(exists, distances, jnp.inf), -1).astype(jnp.int32))
            node = starts[node] + codes[-1]
        return jnp.stack(codes, -1)

    return map_rows(walk_block, points, block)


@jax.jit
def _decode(centroids: tuple[Array, ...], children: tuple[Array, ...], codes: Array) -> Array:
    node, exists = jnp.zeros(codes.shape[0], jnp.int32), jnp.ones(codes.shape[0], bool)
    vectors = jnp.zeros((codes.shape[0], centroids[0].shape[1]))
    for level in range(codes.shape[1]):
        child = children[level][node] + codes[:, level]
        exists &= child < children[level][node + 1]
        node = jnp.where(exists, child, 0)
        vectors = jnp.where(exists[:, None], centroids[level][node], vectors)
    return vectors
