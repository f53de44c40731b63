"""Lloyd's k-means as pure, jitted functions: growing samples, weighted, deterministic.

Rows are looked at a block at a time (`blocks.py`): no n x k matrix, no second copy of the points.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray

from jaxrec.tokenization.blocks import (
    Blocks,
    block_rows,
    map_rows,
    nearest,
)

_CANDIDATES_PER_CODE = 4
_ROUNDS = 8
_SHRINK = 0.25
_ROWS_PER_CODE = 64
"""Rows a code that a fit begins with."""
_SLACK = 1e-2
"""A part of the rows has told what it can when an update lowers its inertia by less than this."""


class KMeansFit(NamedTuple):
    """What `fit_kmeans` found."""

    centroids: Float[Array, "k d"]
    codes: Int32[Array, " n"]
    inertia: Float[Array, ""]
    """Weighted sum of squared distances to the nearest centroid."""
    iterations: Int32[Array, ""]
    unused: Int32[Array, ""]
    """Codes without a point; 0 unless the iterations ran out."""


class _Lloyd(NamedTuple):
    """State of the iteration: the inertia is that of the centroids before the last update."""

    step: Array
    centroids: Array
    inertia: Array
    improvement: Array
    empty: Array
    used: Array
    """Blocks."""
    is_first: Array
    """Whether these blocks were never passed over before."""


@jax.jit
def count_distinct(points: Float[Array, "n d"], weights: Float[Array, " n"]) -> Int32[Array, ""]:
    """Number of different rows among those of positive weight.

    Compares 64-bit hashes of the rows: wrong by one with a probability below n^2 / 2^65.
    """
    first, second = map_rows(_hash, points, block_rows(points.shape[1]))
    live = weights > 0
    dead, first, second = jax.lax.sort((~live, first, second), num_keys=3)
    is_new = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return jnp.sum(is_new & ~dead[1:], dtype=jnp.int32) + jnp.any(live).astype(jnp.int32)


def _hash(points: Array) -> tuple[Array, Array]:
    no_minus_zero = jnp.where(points == 0, 0.0, points)
    bits = jax.lax.bitcast_convert_type(no_minus_zero, jnp.uint32)
    column = jnp.arange(points.shape[1], dtype=jnp.uint32)
    first = jnp.sum(_mix(bits ^ _mix(2 * column + 1)), -1, dtype=jnp.uint32)
    return first, jnp.sum(_mix(_mix(bits + _mix(2 * column + 2))), -1, dtype=jnp.uint32)


def _mix(word: Array) -> Array:
    # The finaliser of MurmurHash3: a bijection of 32 bits in which every input bit matters.
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


def start_plus_plus(
    key: PRNGKeyArray, points: Float[Array, "n d"], weights: Float[Array, " n"], k: int
) -> Float[Array, "k d"]:
    """k-means++: each next centroid is a point drawn with probability w * (squared distance).

    Source: Arthur, Vassilvitskii, "k-means++: the advantages of careful seeding" (2007). Drawn by
    the Gumbel trick, so equal keys give equal points on any number of devices.
    """
    return _start_plus_plus(key, points, weights, k=k)


@partial(jax.jit, static_argnames=("k",))
def _start_plus_plus(key: Array, points: Array, weights: Array, *, k: int) -> Array:
    def body(distance, step):
        mass = jnp.where(step == 0, weights, weights * distance)
        chosen = points[_draw(jax.random.fold_in(key, step), mass, 1)[0]]
        return jnp.minimum(distance, jnp.sum((points - chosen) ** 2, -1)), chosen

    nowhere = jnp.full(points.shape[0], jnp.inf)
    return jax.lax.scan(body, nowhere, jnp.arange(k))[1]


def start_parallel(
    key: PRNGKeyArray, points: Float[Array, "n d"], weights: Float[Array, " n"], k: int
) -> Float[Array, "k d"]:
    """k-means||: a few rounds draw many candidates at once, then k-means++ among the candidates.

    The first round draws by weight, the later ones by w * (squared distance to the candidates);
    candidates count for the points nearest to them. Needs n >= k; the cost is that of four
    assignments, where k-means++ passes over the points k times.

    Source: Bahmani et al., "Scalable k-means++" (2012).
    """
    return _start_parallel(key, points, weights, k=k, block=block_rows(k))


@partial(jax.jit, static_argnames=("k", "block"))
def _start_parallel(key: Array, points: Array, weights: Array, *, k: int, block: int) -> Array:
    batch = -(-_CANDIDATES_PER_CODE * k // _ROUNDS)

    def body(carry, step):
        distance, owner = carry
        mass = jnp.where(step == 0, weights, weights * distance)
        chosen = points[_draw(jax.random.fold_in(key, step), mass, batch)]
        codes, new = map_rows(lambda rows: nearest(rows, chosen), points, block)
        owner = jnp.where(new < distance, step * batch + codes, owner)
        return (jnp.minimum(new, distance), owner), chosen

    nowhere = (jnp.full(points.shape[0], jnp.inf), jnp.zeros(points.shape[0], jnp.int32))
    rounds = jnp.arange(_ROUNDS, dtype=jnp.int32)
    (_, owner), chosen = jax.lax.scan(body, nowhere, rounds)
    candidates = chosen.reshape(-1, points.shape[1])
    owned = jax.ops.segment_sum(weights, owner, candidates.shape[0])
    return _start_plus_plus(jax.random.fold_in(key, _ROUNDS), candidates, owned, k=k)


def _draw(key: Array, mass: Array, count: int) -> Array:
    """Indices drawn without replacement in proportion to `mass`; massless ones only if need be."""
    scores = jnp.log(mass) + jax.random.gumbel(key, mass.shape)
    if count == 1:
        return jnp.argmax(scores)[None]
    return jax.lax.top_k(scores, count)[1]


def lloyd(
    points: Float[Array, "n d"],
    centroids: Float[Array, "k d"],
    *,
    weights: Float[Array, " n"] | None = None,
    iterations: int = 50,
    tolerance: float = 1e-4,
    block: int | None = None,
    grow_from: int | None = None,
) -> KMeansFit:
    """Lloyd's iteration from given centroids.

    A code without a point is moved to the point with the largest residual (the j-th such code to
    the j-th largest), which never raises the inertia.

    Args:
        weights: how much each point counts; 0 leaves a row out (padding).
        iterations: at most so many updates.
        tolerance: stop when an update lowers the inertia by no more than this fraction and no
            code is empty; 0 stops at a fixed point.
        grow_from: begin with about so many rows, every so-manieth, and double them whenever an
            update no longer helps much (nested mini-batches, Newling and Fleuret,
            arXiv:1602.02934): most of the way costs a fraction of a pass. All rows from the start
            by default.
    """
    if weights is None:
        weights = jnp.ones(points.shape[0], jnp.float32)
    block = block or block_rows(centroids.shape[0])
    first = -(-(grow_from or points.shape[0]) // block)
    return _lloyd(points, weights, centroids, tolerance, iterations, first, block=block)


@partial(jax.jit, static_argnames=("block",))
def _lloyd(
    points: Array,
    weights: Array,
    start: Array,
    tolerance: Array,
    iterations: Array,
    first: Array,
    *,
    block: int,
) -> KMeansFit:
    rows = Blocks.of(points, weights, block)

    def proceed(carry: _Lloyd) -> Bool[Array, ""]:
        has_settled = (carry.improvement <= tolerance * carry.inertia) & (carry.empty == 0)
        return (carry.step < iterations) & ~(has_settled & (carry.used == rows.number))

    def update(carry: _Lloyd) -> _Lloyd:
        now = rows.measure(carry.centroids, carry.used)
        means = now.sums / jnp.where(now.counts > 0, now.counts, 1.0)[:, None]
        centroids = _fill_empty(means, now.counts <= 0, points, now.residuals)
        improvement = jnp.where(carry.is_first, jnp.inf, carry.inertia - now.inertia)
        empty = jnp.sum(now.counts <= 0, dtype=jnp.int32)
        grows = (improvement <= _SLACK * now.inertia) & (empty == 0) & (carry.used < rows.number)
        used = jnp.where(grows, jnp.minimum(2 * carry.used, rows.number), carry.used)
        # A first pass over more rows has nothing to be compared with.
        improvement = jnp.where(grows, jnp.inf, improvement)
        return _Lloyd(carry.step + 1, centroids, now.inertia, improvement, empty, used, grows)

    first = jnp.minimum(first, rows.number).astype(jnp.int32)
    nothing, zero = jnp.float32(0), jnp.int32(0)
    begin = _Lloyd(zero, start, nothing, jnp.float32(jnp.inf), zero, first, jnp.bool(True))
    last = jax.lax.while_loop(proceed, update, begin)
    codes, inertia, counts = rows.finish(last.centroids)
    unused = jnp.sum(counts <= 0, dtype=jnp.int32)
    return KMeansFit(last.centroids, codes, inertia, last.step, unused)


def _fill_empty(means: Array, is_empty: Array, points: Array, residuals: Array) -> Array:
    count = min(means.shape[0], points.shape[0])

    def refill(means: Array) -> Array:
        farthest = points[jax.lax.top_k(residuals, count)[1]]
        rank = jnp.minimum(jnp.cumsum(is_empty) - 1, count - 1)
        return jnp.where(is_empty[:, None], farthest[rank], means)

    return jax.lax.cond(jnp.any(is_empty), refill, lambda means: means, means)


def start_centroids(
    key: PRNGKeyArray,
    points: Float[Array, "n d"],
    weights: Float[Array, " n"],
    k: int,
    *,
    block: int | None = None,
) -> Float[Array, "k d"]:
    """Where Lloyd's iteration begins: careful seeds, as they are or drawn towards the mean.

    Seeds are k-means++ where points are few (n <= 8 k) and k-means|| otherwise. In many dimensions
    seeds that are points are a trap: points are nearer to the mean than to each other, so the seed
    nearest to the mean attracts most of them, and Lloyd's iteration does not get out. Seeds at a
    quarter of their distance to the mean compare by direction and share the points. On residuals
    of text vectors that lowers the final error by 3 to 10 % and doubles the codes in real use; on
    well separated clusters the seeds themselves are better. One update of each decides.
    """
    seed = start_plus_plus if points.shape[0] <= 8 * k else start_parallel
    seeds = seed(key, points, weights, k)
    once = partial(lloyd, points, weights=weights, iterations=1, tolerance=0.0, block=block)
    plain, shrunk = once(seeds), once(_shrink(seeds, points, weights))
    return shrunk.centroids if shrunk.inertia < plain.inertia else plain.centroids


@jax.jit
def _shrink(seeds: Array, points: Array, weights: Array) -> Array:
    mean = jnp.sum(points * weights[:, None], 0) / jnp.sum(weights)
    return mean + _SHRINK * (seeds - mean)


def fit_kmeans(
    key: PRNGKeyArray,
    points: Float[Array, "n d"],
    k: int,
    *,
    weights: Float[Array, " n"] | None = None,
    iterations: int = 50,
    tolerance: float = 1e-4,
    restarts: int = 1,
    block: int | None = None,
) -> KMeansFit:
    """k-means: a careful start, Lloyd's iteration, and the best of `restarts` runs.

    When the rows of positive weight hold fewer than `k` different ones, there are as many centroids
    as those: read the number off `centroids.shape`.

    Args:
        key: of the start; run r uses `fold_in(key, r)`.
        weights: how much each point counts; 0 leaves a row out (padding).
    """
    if weights is None:
        weights = jnp.ones(points.shape[0], jnp.float32)
    k = max(1, min(k, int(count_distinct(points, weights))))
    grow_from = _ROWS_PER_CODE * k
    sample, counts = _every_so_manieth(points, weights, rows=grow_from)
    best = None
    for run in range(restarts if k > 1 else 1):
        centroids = points[:1]
        if k > 1:
            run_key = jax.random.fold_in(key, run)
            centroids = start_centroids(run_key, sample, counts, k, block=block)
        fit = lloyd(
            points,
            centroids,
            weights=weights,
            iterations=iterations,
            tolerance=tolerance,
            block=block,
            grow_from=grow_from,
        )
        if best is None or float(fit.inertia) < float(best.inertia):
            best = fit
    assert best is not None  # restarts >= 1 is checked by the caller's dataclass
    return best


@partial(jax.jit, static_argnames=("rows",))
def _every_so_manieth(points: Array, weights: Array, *, rows: int) -> tuple[Array, Array]:
    """At least so many rows from all over, or all."""
    stride = max(1, points.shape[0] // rows)
    return points[::stride], weights[::stride]
