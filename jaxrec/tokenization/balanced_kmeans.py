"""k-means whose clusters are of equal size: balanced assignments and means, by turns (METHODS T5).

    min_{c, e} sum_i w_i |x_i - e_{c_i}|^2   with   floor(n / k) <= #{i: c_i = k} <= ceil(n / k)

The exact assignment is that of constrained k-means (Bradley, Bennett, Demiriz, "Constrained k-means
clustering", 2000), which LETTER and MiniOneRec use; the greedy one is OneRec's (arXiv:2502.18965).
Either way the result is a power diagram: a point belongs to the centroid of least squared distance
plus price, and the prices, one a centroid, make the fitted points fill all clusters evenly.

Distances are fp32 on the device, assignments are made on the host (`balanced_assignment.py`): all
n x k distances are held there, some 24 bytes each.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from jaxrec.tokenization.balanced_assignment import (
    balanced_assign,
    greedy_assign,
    separating_prices,
)
from jaxrec.tokenization.blocks import group_sums
from jaxrec.tokenization.kmeans import count_distinct, lloyd, start_centroids
from jaxrec.tracking import Progress

Method = Literal["exact", "greedy"]

_LOOSE = 5
"""Updates without balance at the start."""


class BalancedFit(NamedTuple):
    """What `balanced_kmeans` found."""

    centroids: Float[Array, "k d"]
    codes: Int32[Array, " n"]
    """Of least error at these centroids among the even assignments. Rows without weight have the
    code that the prices give them."""
    prices: Float[Array, " k"]
    """In squared units of the points, of mean 0: `nearest_priced` gives the codes, but for rows
    that are equal to within rounding."""
    inertia: Float[Array, ""]
    """Weighted sum of squared distances to the centroids of the codes."""
    iterations: Int32[Array, ""]
    """Updates of the centroids."""


def nearest_priced(
    points: Float[Array, "n d"], centroids: Float[Array, "k d"], prices: Float[Array, " k"]
) -> Int32[Array, " n"]:
    """Code of least squared distance plus price, the lowest among equals.

    Holds all n x k distances at once.
    """
    scores = _relative_distances(points, centroids) + prices
    # Two plain reductions; a variadic argmin is not vectorised on CPUs.
    best = jnp.min(scores, -1, keepdims=True)
    ids = jnp.arange(centroids.shape[0], dtype=jnp.int32)
    return jnp.min(jnp.where(scores == best, ids, centroids.shape[0] - 1), -1)


def start_loosely(
    key: PRNGKeyArray, points: Float[Array, "n d"], weights: Float[Array, " n"], k: int
) -> Float[Array, "k d"]:
    """Where balanced k-means begins: careful seeds, and a few updates without balance.

    Centroids find their regions more easily while they may have as many points as there are: on
    10,000 vectors of `benchmarks/mixture.py` the error after ten balanced updates is .5 % lower.
    """
    seeds = start_centroids(key, points, weights, k)
    return lloyd(points, seeds, weights=weights, iterations=_LOOSE, tolerance=0.0).centroids


def balanced_kmeans(
    key: PRNGKeyArray,
    points: Float[Array, "n d"],
    k: int,
    *,
    weights: Float[Array, " n"] | None = None,
    iterations: int = 50,
    tolerance: float = 1e-4,
    method: Method = "exact",
) -> BalancedFit:
    """Centroids and an even assignment, from `start_loosely`.

    When the rows of positive weight hold fewer than `k` different ones, there are as many centroids
    as those: read the number off `centroids.shape`.

    Args:
        key: of the start.
        weights: how much each point counts for means and inertia. For the size of a cluster every
            row of positive weight is one; a row of weight 0 takes no place (padding).
        iterations: updates of the centroids, at most.
        tolerance: stop when an update changes the inertia by no more than this fraction.
        method: how rows are assigned while centroids are learnt: at least cost, or greedily, which
            may go round in circles. The best centroids are kept, and their codes are of least
            error whatever the method.

    Raises:
        ValueError: another method, or no update.
    """
    if method not in get_args(Method) or iterations < 1:
        raise ValueError(
            f"balanced_kmeans needs iterations >= 1 and a method of {', '.join(get_args(Method))}, "
            f"got {iterations} and {method!r}."
        )
    if weights is None:
        weights = jnp.ones(points.shape[0], jnp.float32)
    live = np.asarray(weights) > 0
    k = max(1, min(k, int(count_distinct(points, weights))))
    centroids = start_loosely(key, points, weights, k)
    lengths, counts = np.asarray(_squared_lengths(points)), np.asarray(weights)
    best, least, last, prices, step = centroids, np.inf, np.inf, np.zeros(k), 0
    best_codes = np.zeros(len(live), np.int32)
    with Progress(iterations, "balanced k-means", unit="updates") as progress:
        while True:
            costs = np.asarray(_costs(points, centroids))
            if method == "greedy":  # it compares rows, so their own lengths matter
                codes = greedy_assign(costs + lengths[:, None], live=live)
            else:
                codes, prices = balanced_assign(costs, live=live, prices=prices)
            inertia = float(counts @ (lengths + costs[np.arange(len(costs)), codes]))
            if inertia < least:
                best, best_codes, least = centroids, codes, inertia
            if step == iterations or abs(last - inertia) <= tolerance * inertia:
                break
            centroids, last, step = _means(points, weights, codes, k=k), inertia, step + 1
            progress.update(1, inertia=inertia)
    costs = np.asarray(_costs(points, best))
    if method == "greedy":
        best_codes, _ = balanced_assign(costs, live=live)
    found = jnp.asarray(separating_prices(costs[live], best_codes[live]), jnp.float32)
    # Rows without weight follow the prices that are kept.
    codes = jnp.where(weights > 0, best_codes, nearest_priced(points, best, found))
    return BalancedFit(best, codes, found, _inertia(points, weights, best, codes), jnp.int32(step))


def _relative_distances(points: Array, centroids: Array) -> Array:
    """Squared distances less the squared length of the point."""
    products = jnp.dot(points, centroids.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(centroids**2, -1) - 2 * products


_costs = jax.jit(_relative_distances)


@jax.jit
def _squared_lengths(points: Array) -> Array:
    return jnp.sum(points**2, -1)


@jax.jit
def _inertia(points: Array, weights: Array, centroids: Array, codes: Array) -> Array:
    return jnp.sum(weights * _squared_lengths(points - centroids[codes]))


@partial(jax.jit, static_argnames=("k",))
def _means(points: Array, weights: Array, codes: Array, *, k: int) -> Array:
    sums, counts = group_sums(points, weights, codes, k)
    return sums / counts[:, None]
