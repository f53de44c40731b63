"""Rows a block at a time: nearest centroids, sums of groups, and passes over parts of the rows.

Distances are fp32 at full matmul precision (accelerators would otherwise round the operands), ties
go to the lowest code, and an n x k matrix never exists beyond one block of rows. Everything is
plain jnp, so rows that are sharded over a mesh stay where they are: a block takes rows from every
shard.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jaxrec.types import PyTree

_CPU_BLOCK = 2**19
_ACCELERATOR_BLOCK = 2**25


def assign(
    points: Float[Array, "n d"], centroids: Float[Array, "k d"], *, block: int | None = None
) -> tuple[Int32[Array, " n"], Float[Array, " n"]]:
    """Nearest centroid of every point, the lowest id among equals.

    Args:
        block: rows of which distances are held at once; fitted to the backend by default.

    Returns:
        Codes, and squared distances (never negative).
    """
    block = block or block_rows(centroids.shape[0])
    return _assign(points, centroids, block=block)


@partial(jax.jit, static_argnames=("block",))
def _assign(points: Array, centroids: Array, *, block: int) -> tuple[Array, Array]:
    return map_rows(lambda rows: nearest(rows, centroids), points, block)


def block_rows(codes: int) -> int:
    """Rows whose distances to this many codes are held at once: cache-sized on a CPU, larger on
    accelerators, which want big matmuls."""
    entries = _CPU_BLOCK if jax.default_backend() == "cpu" else _ACCELERATOR_BLOCK
    return max(64, entries // codes)


def map_rows(
    function: Callable[[Array], PyTree], points: Float[Array, "n d"], block: int
) -> PyTree:
    """Applies a function of a block of rows to all rows, one block after the other.

    Block i holds rows i, i + blocks, i + 2 blocks, ...: of an array whose rows are sharded, every
    device works on its own part of every block.

    Args:
        function: [block, d] -> tree of arrays with `block` rows; rows must not mix.
    """
    rows = points.shape[0]
    block, blocks = _even(rows, block)
    if blocks <= 1:
        return function(points)
    padding = block * blocks - rows
    padded = jnp.pad(points, ((0, padding), (0, 0))) if padding else points
    strided = padded.reshape(block, blocks, points.shape[1])

    def body(_, index):
        return None, function(jax.lax.dynamic_index_in_dim(strided, index, 1, keepdims=False))

    _, out = jax.lax.scan(body, None, jnp.arange(blocks))
    return jax.tree.map(
        lambda leaf: jnp.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:])[:rows], out
    )


def update_rows(
    function: Callable[[Array, Array], Array],
    points: Float[Array, "n d"],
    codes: Int32[Array, " n"],
    block: int,
) -> Float[Array, "n d"]:
    """New rows from old rows and their codes, in place where the caller donates the points."""
    rows, width = points.shape
    block, blocks = _even(rows, block)
    if block * blocks != rows or blocks == 1:
        return function(points, codes)

    def body(index: Array, now: Array) -> Array:
        take = partial(jax.lax.dynamic_index_in_dim, index=index, axis=1, keepdims=False)
        new = function(take(now), take(codes.reshape(block, blocks)))
        return jax.lax.dynamic_update_index_in_dim(now, new, index, 1)

    strided = points.reshape(block, blocks, width)
    return jax.lax.fori_loop(0, blocks, body, strided).reshape(points.shape)


def _even(rows: int, block: int) -> tuple[int, int]:
    """Size and number of blocks. Rows that are a multiple of a power of two need no padding, which
    would be a second copy of all of them."""
    power = 2 ** (block.bit_length() - 1)
    if rows > block and rows % power == 0:
        return power, rows // power
    blocks = max(1, -(-rows // block))
    return -(-rows // blocks), blocks


def nearest(
    points: Float[Array, "n d"], centroids: Float[Array, "k d"]
) -> tuple[Int32[Array, " n"], Float[Array, " n"]]:
    """`assign` of one block: holds all n x k distances at once."""
    scores = jnp.sum(centroids**2, -1) - 2 * jnp.dot(
        points, centroids.T, precision=jax.lax.Precision.HIGHEST
    )
    # Two plain reductions; a variadic argmin is not vectorised on CPUs.
    best = jnp.min(scores, -1, keepdims=True)
    ids = jnp.arange(centroids.shape[0], dtype=jnp.int32)
    codes = jnp.min(jnp.where(scores == best, ids, centroids.shape[0] - 1), -1)
    return codes, jnp.maximum(best[:, 0] + jnp.sum(points**2, -1), 0.0)


def group_sums(
    points: Float[Array, "n d"], weights: Float[Array, " n"], codes: Int32[Array, " n"], k: int
) -> tuple[Float[Array, "k d"], Float[Array, " k"]]:
    """Weighted sum of the points of each code, and the sum of weights.

    A scatter-add on a CPU (ten times faster there than a one-hot matmul), a blocked one-hot matmul
    elsewhere (a scatter-add on a GPU adds in no fixed order).
    """
    return jax.lax.platform_dependent(
        points,
        weights,
        codes,
        cpu=partial(_group_sums_scatter, k=k),
        default=partial(_group_sums_matmul, k=k),
    )


def _group_sums_scatter(
    points: Array, weights: Array, codes: Array, *, k: int
) -> tuple[Array, Array]:
    sums = jax.ops.segment_sum(points * weights[:, None], codes, k)
    return sums, jax.ops.segment_sum(weights, codes, k)


def _group_sums_matmul(
    points: Array, weights: Array, codes: Array, *, k: int
) -> tuple[Array, Array]:
    rows, width = points.shape
    block, blocks = _even(rows, block_rows(k))
    padding = block * blocks - rows
    points = jnp.pad(points, ((0, padding), (0, 0))).reshape(block, blocks, width)
    weights = jnp.pad(weights, (0, padding)).reshape(block, blocks)
    codes = jnp.pad(codes, (0, padding)).reshape(block, blocks)

    def body(carry, index):
        sums, counts = carry
        take = partial(jax.lax.dynamic_index_in_dim, index=index, axis=1, keepdims=False)
        member = jnp.where(take(codes)[:, None] == jnp.arange(k), take(weights)[:, None], 0.0)
        sums += jnp.dot(member.T, take(points), precision=jax.lax.Precision.HIGHEST)
        return (sums, counts + jnp.sum(member, 0)), None

    start = (jnp.zeros((k, width), jnp.float32), jnp.zeros(k, jnp.float32))
    return jax.lax.scan(body, start, jnp.arange(blocks))[0]


class Statistics(NamedTuple):
    """What a pass over some blocks found."""

    sums: Float[Array, "k d"]
    """Weighted sum of each code's points."""
    counts: Float[Array, " k"]
    """Their weight."""
    inertia: Float[Array, ""]
    residuals: Float[Array, " n"]
    """Squared distance of each row to its centroid; -1 where it has no weight or was not seen."""


class Blocks(NamedTuple):
    """Weighted rows in blocks; block i holds rows i, i + blocks, i + 2 blocks, ...

    So the first few blocks are a sample of all rows, and of rows that are sharded every device
    works on its own part of every block.
    """

    points: Float[Array, "block blocks d"]
    weights: Float[Array, "block blocks"]
    rows: int
    """Without the padding of the last block."""

    @classmethod
    def of(cls, points: Float[Array, "n d"], weights: Float[Array, " n"], block: int) -> Blocks:
        """Rows in as many blocks of equal size, at most `block`, as needed."""
        rows, width = points.shape
        block, blocks = _even(rows, block)
        padding = block * blocks - rows
        if padding:
            points, weights = (
                jnp.pad(points, ((0, padding), (0, 0))),
                jnp.pad(weights, (0, padding)),
            )
        return cls(points.reshape(block, blocks, width), weights.reshape(block, blocks), rows)

    @property
    def number(self) -> int:
        """How many blocks there are."""
        return self.points.shape[1]

    def take(
        self, index: Int32[Array, ""]
    ) -> tuple[Float[Array, "block d"], Float[Array, " block"]]:
        """Rows and weights of one block."""
        pick = partial(jax.lax.dynamic_index_in_dim, index=index, axis=1, keepdims=False)
        return pick(self.points), pick(self.weights)

    def measure(self, centroids: Float[Array, "k d"], used: int | Int32[Array, ""]) -> Statistics:
        """Assigns the rows of the first `used` blocks, and sums them by code."""

        def body(index: Int32[Array, ""], now: Statistics) -> Statistics:
            points, weights = self.take(index)
            codes, residuals = nearest(points, centroids)
            sums, counts = group_sums(points, weights, codes, centroids.shape[0])
            seen = jnp.where(weights > 0, residuals, -1.0)
            return Statistics(
                now.sums + sums,
                now.counts + counts,
                now.inertia + jnp.sum(residuals * weights),
                jax.lax.dynamic_update_index_in_dim(now.residuals, seen, index, 1),
            )

        start = Statistics(
            jnp.zeros_like(centroids),
            jnp.zeros(centroids.shape[0], jnp.float32),
            jnp.float32(0),
            jnp.full(self.weights.shape, -1.0, jnp.float32),
        )
        found = jax.lax.fori_loop(0, used, body, start)
        return found._replace(residuals=found.residuals.reshape(-1)[: self.rows])

    def finish(
        self, centroids: Float[Array, "k d"]
    ) -> tuple[Int32[Array, " n"], Float[Array, ""], Float[Array, " k"]]:
        """Codes of all rows, the inertia from exact differences, and the weight of each code."""

        def body(carry: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], Array]:
            inertia, counts = carry
            points, weights = self.take(index)
            codes, _ = nearest(points, centroids)
            # The expanded form leaves rounding noise where the residual is 0.
            exact = jnp.sum((points - centroids[codes]) ** 2, -1)
            counts = counts + jax.ops.segment_sum(weights, codes, centroids.shape[0])
            return (inertia + jnp.sum(weights * exact), counts), codes

        start = (jnp.float32(0), jnp.zeros(centroids.shape[0], jnp.float32))
        (inertia, counts), codes = jax.lax.scan(body, start, jnp.arange(self.number))
        return jnp.swapaxes(codes, 0, 1).reshape(-1)[: self.rows], inertia, counts
