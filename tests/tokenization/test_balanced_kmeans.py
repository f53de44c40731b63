"""Balanced k-means against slow numpy loops with the Hungarian method as the assignment."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from jaxrec.parallel import make_mesh, rows_sharding
from jaxrec.tokenization.balanced_kmeans import balanced_kmeans, nearest_priced, start_loosely
from jaxrec.tokenization.kmeans import start_centroids
from tests.tokenization.test_balanced_assignment import hungarian, slow_greedy
from tests.tokenization.test_kmeans import blobs, slow_assign, slow_lloyd

KEY = jax.random.key(0)
ROWS, CODES = 203, 12
POINTS = blobs(centres=7, each=29, noise=1.5)
ONES = jnp.ones(ROWS)


def squares(points, centroids):
    """Squared distances in float64."""
    points, centroids = np.asarray(points, np.float64), np.asarray(centroids, np.float64)
    return ((points[:, None] - centroids) ** 2).sum(-1)


def inertia(points, centroids, codes):
    return squares(points, centroids)[np.arange(len(points)), codes].sum()


def fit(iterations=20, **settings):
    return balanced_kmeans(KEY, POINTS, CODES, iterations=iterations, tolerance=0.0, **settings)


EXACT = fit()


def test_sizes_differ_by_one_at_most_and_the_codes_are_the_best_at_the_centroids():
    sizes = np.bincount(EXACT.codes, minlength=CODES)
    assert sorted(set(sizes)) == [16, 17]
    assert EXACT.codes.dtype == np.int32
    ours = inertia(POINTS, EXACT.centroids, EXACT.codes)
    np.testing.assert_allclose(EXACT.inertia, ours, rtol=1e-5)
    costs = squares(POINTS, EXACT.centroids)
    np.testing.assert_allclose(ours, hungarian(costs, 16, 17), rtol=1e-6)
    nearest = slow_assign(POINTS, EXACT.centroids)[1].sum()
    assert nearest < ours < inertia(POINTS, EXACT.centroids, slow_greedy(costs))


def test_nearest_priced_gives_the_codes_and_follows_the_definition():
    np.testing.assert_array_equal(
        nearest_priced(POINTS, EXACT.centroids, EXACT.prices), EXACT.codes
    )
    new = jax.random.normal(jax.random.key(1), POINTS.shape) * 4
    priced = squares(new, EXACT.centroids) + np.asarray(EXACT.prices)
    found = nearest_priced(new, EXACT.centroids, EXACT.prices)
    np.testing.assert_array_equal(found, priced.argmin(1))
    assert (found != slow_assign(new, EXACT.centroids)[0]).any()
    # Whole numbers are exact in fp32, so equal sums are equal: the lowest code has them.
    grid = jnp.asarray(np.random.default_rng(0).integers(-2, 3, (ROWS, 5)), jnp.float32)
    prices = jnp.asarray(np.arange(CODES) % 3, jnp.float32)
    tied = squares(grid, grid[:CODES]) + np.asarray(prices)
    np.testing.assert_array_equal(nearest_priced(grid, grid[:CODES], prices), tied.argmin(1))


def test_error_falls_with_every_update_until_nothing_moves():
    errors = [float(fit(iterations=steps).inertia) for steps in range(1, 8)]
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(errors))
    assert errors[-1] < errors[0]
    assert int(EXACT.iterations) < 20
    means = [POINTS[EXACT.codes == code].mean(0) for code in range(CODES)]
    np.testing.assert_allclose(EXACT.centroids, np.stack(means), atol=1e-5)


def test_the_start_is_that_of_k_means_and_five_updates_of_it():
    seeds = start_centroids(KEY, POINTS, ONES, CODES)
    expected = slow_lloyd(POINTS, seeds, iterations=5)[0]
    np.testing.assert_allclose(start_loosely(KEY, POINTS, ONES, CODES), expected, atol=1e-5)


def test_exact_updates_equal_a_slow_loop_from_the_same_start():
    points = np.asarray(POINTS[:192], np.float64)
    centroids = np.asarray(start_loosely(KEY, POINTS[:192], ONES[:192], CODES), np.float64)
    for _ in range(3):
        codes = linear_sum_assignment(np.repeat(squares(points, centroids), 16, 1))[1] // 16
        centroids = np.stack([points[codes == code].mean(0) for code in range(CODES)])
    ours = balanced_kmeans(KEY, POINTS[:192], CODES, iterations=3, tolerance=0.0)
    np.testing.assert_allclose(ours.centroids, centroids, atol=1e-5)


def test_greedy_updates_equal_a_slow_loop_that_keeps_the_best():
    points = jax.random.normal(jax.random.key(8), POINTS.shape)
    centroids = np.asarray(start_loosely(KEY, points, ONES, CODES), np.float64)
    errors, tried = [], []
    for _ in range(16):
        codes = slow_greedy(squares(points, centroids))
        tried.append(centroids)
        errors.append(inertia(points, centroids, codes))
        centroids = np.stack([np.asarray(points)[codes == code].mean(0) for code in range(CODES)])
    best = int(np.argmin(errors))
    assert errors[-1] > errors[best]  # it went on from there, and up
    ours = balanced_kmeans(KEY, points, CODES, method="greedy", iterations=15, tolerance=0.0)
    np.testing.assert_allclose(ours.centroids, tried[best], atol=1e-5)
    assert np.ptp(np.bincount(ours.codes)) == 1
    assert float(ours.inertia) < errors[best]


def test_planted_groups_of_equal_size_are_found():
    planted = blobs(centres=12, each=16, noise=0.1)
    found = balanced_kmeans(jax.random.key(3), planted, CODES)
    assert float(found.inertia) < 0.1**2 * planted.size * 1.05


def test_rows_without_weight_take_no_place_and_do_not_count():
    live = np.arange(ROWS) % 4 != 1
    weights = jnp.asarray(live, jnp.float32)
    found = fit(weights=weights)
    sizes = np.bincount(np.asarray(found.codes)[live], minlength=CODES)
    assert np.ptp(sizes) <= 1
    far = jnp.where(weights[:, None] > 0, POINTS, 1e3)
    other = balanced_kmeans(KEY, far, CODES, weights=weights, tolerance=0.0, iterations=20)
    np.testing.assert_array_equal(np.asarray(other.codes)[live], np.asarray(found.codes)[live])
    np.testing.assert_allclose(other.centroids, found.centroids, atol=1e-4)
    padding = np.asarray(nearest_priced(POINTS, found.centroids, found.prices))[~live]
    np.testing.assert_array_equal(np.asarray(found.codes)[~live], padding)


def test_weights_draw_the_means_and_leave_the_sizes():
    weights = jnp.asarray(1 + 9.0 * (np.arange(ROWS) % 2), jnp.float32)
    found = fit(weights=weights)
    assert np.ptp(np.bincount(found.codes)) == 1
    expected = [
        np.average(np.asarray(POINTS)[rows], 0, np.asarray(weights)[rows])
        for rows in (np.asarray(found.codes) == code for code in range(CODES))
    ]
    np.testing.assert_allclose(found.centroids, np.stack(expected), atol=0.2)
    plain = np.stack([POINTS[found.codes == code].mean(0) for code in range(CODES)])
    gap = np.abs(np.asarray(found.centroids) - np.stack(expected)).mean()
    assert gap < 0.1 * np.abs(np.asarray(found.centroids) - plain).mean()


def test_more_codes_than_different_rows_are_capped():
    few = POINTS[np.arange(ROWS) % 7]
    found = balanced_kmeans(KEY, few, CODES)
    assert found.centroids.shape == (7, 5)
    np.testing.assert_array_equal(np.bincount(found.codes), [29] * 7)
    # A mean of equal fp32 rows is off by their last digit.
    assert float(found.inertia) < 1e-12 * float(jnp.sum(few**2))
    one = balanced_kmeans(KEY, jnp.ones((ROWS, 5)), CODES)
    np.testing.assert_array_equal(one.codes, np.zeros(ROWS))
    np.testing.assert_array_equal(one.prices, [0.0])


def test_equal_keys_and_sharded_rows_give_the_same_fit():
    rows = POINTS[:192]
    alone = balanced_kmeans(KEY, rows, CODES, iterations=4)
    again = balanced_kmeans(KEY, rows, CODES, iterations=4)
    for left, right in zip(alone, again):
        np.testing.assert_array_equal(left, right)
    sharded = jax.device_put(rows, rows_sharding(make_mesh()))
    spread = balanced_kmeans(KEY, sharded, CODES, iterations=4)
    np.testing.assert_array_equal(spread.codes, alone.codes)
    np.testing.assert_allclose(spread.centroids, alone.centroids, atol=1e-5)


def test_bad_input():
    with pytest.raises((ValueError, TypeError), match=r"(?s)method.*exact.*greedy.*'best'"):
        fit(method="best")
    with pytest.raises(ValueError, match="iterations >= 1"):
        fit(iterations=0)
