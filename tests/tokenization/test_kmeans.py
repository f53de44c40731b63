"""k-means against slow numpy, on one device and on eight."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.parallel import make_mesh, rows_sharding
from jaxrec.tokenization import blocks, kmeans

KEY = jax.random.key(0)


def blobs(centres=12, each=40, width=5, noise=0.1, seed=0):
    generator = np.random.default_rng(seed)
    middles = generator.normal(size=(centres, width)) * 5
    points = np.repeat(middles, each, 0) + noise * generator.normal(size=(centres * each, width))
    return jnp.asarray(points[generator.permutation(len(points))], jnp.float32)


def slow_assign(points, centroids):
    """Nearest centroid by the definition, in float64; argmin takes the first of equals."""
    points, centroids = np.asarray(points, np.float64), np.asarray(centroids, np.float64)
    distances = ((points[:, None] - centroids[None]) ** 2).sum(-1)
    return distances.argmin(1), distances.min(1)


def slow_lloyd(points, centroids, iterations, weights=None):
    """Lloyd by the definition, in float64; an empty code keeps its place."""
    points, centroids = np.asarray(points, np.float64), np.array(centroids, np.float64)
    weights = np.ones(len(points)) if weights is None else np.asarray(weights, np.float64)
    for _ in range(iterations):
        codes, _ = slow_assign(points, centroids)
        for code in range(len(centroids)):
            mass = weights[codes == code]
            if mass.sum() > 0:
                centroids[code] = (points[codes == code] * mass[:, None]).sum(0) / mass.sum()
    codes, distances = slow_assign(points, centroids)
    return centroids, codes, (weights * distances).sum()


@pytest.mark.parametrize("block", [None, 7, 64, 100, 1000])
def test_assignment_equals_the_definition_whatever_the_block(block):
    points = jax.random.normal(KEY, (333, 9))
    centroids = jax.random.normal(jax.random.key(1), (21, 9))
    codes, distances = blocks.assign(points, centroids, block=block)
    expected, exact = slow_assign(points, centroids)
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_allclose(distances, exact, atol=1e-5, rtol=1e-5)


def test_lowest_id_wins_ties():
    # Whole numbers are exact in fp32, so equal distances are equal.
    points = jnp.asarray(list(itertools.product((-1, 0, 1), repeat=3)), jnp.float32)
    centroids = jnp.concatenate([points[5:20], points[::-1], points])
    codes, _ = blocks.assign(points, centroids, block=4)
    expected, _ = slow_assign(points, centroids)
    np.testing.assert_array_equal(codes, expected)
    assert (slow_assign(points, centroids[::-1])[0] != len(centroids) - 1 - expected).any()


def test_no_more_than_one_block_of_distances_is_held():
    points, centroids = jnp.zeros((4096, 8)), jnp.zeros((128, 8))
    small = blocks._assign.lower(points, centroids, block=64).compile().memory_analysis()
    whole = blocks._assign.lower(points, centroids, block=4096).compile().memory_analysis()
    assert small.temp_size_in_bytes < 4096 * 128 * 4 / 4
    assert small.temp_size_in_bytes < whole.temp_size_in_bytes


def test_both_ways_to_sum_groups_equal_the_definition():
    points = jax.random.normal(KEY, (1001, 4))
    weights = jax.random.uniform(jax.random.key(1), (1001,))
    codes = jax.random.randint(jax.random.key(2), (1001,), 0, 50, jnp.int32)
    for way in (blocks._group_sums_scatter, blocks._group_sums_matmul):
        sums, counts = way(points, weights, codes, k=64)
        for code in range(64):
            mine = np.asarray(codes) == code
            mass = np.asarray(weights)[mine]
            np.testing.assert_allclose(counts[code], mass.sum(), atol=1e-5)
            expected = (np.asarray(points)[mine] * mass[:, None]).sum(0)
            np.testing.assert_allclose(sums[code], expected, atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_lloyd_equals_slow_lloyd_from_the_same_start(weighted):
    points = jax.random.normal(KEY, (400, 6))
    weights = jax.random.uniform(jax.random.key(1), (400,)) + 0.1 if weighted else None
    start = points[:10]
    for iterations in (1, 5, 40):
        fit = kmeans.lloyd(points, start, weights=weights, iterations=iterations, tolerance=0.0)
        centroids, codes, inertia = slow_lloyd(points, start, iterations, weights)
        np.testing.assert_array_equal(fit.codes, codes)
        np.testing.assert_allclose(fit.centroids, centroids, atol=1e-5)
        np.testing.assert_allclose(fit.inertia, inertia, rtol=1e-5)


def test_inertia_never_rises():
    points = jax.random.normal(KEY, (400, 6))
    # A start of one point ten times: nine codes are empty at first and must be re-seeded.
    start = jnp.broadcast_to(points[0], (10, 6))
    inertia = [
        float(kmeans.lloyd(points, start, iterations=steps, tolerance=0.0).inertia)
        for steps in range(1, 12)
    ]
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(inertia))


def test_an_empty_code_moves_to_the_farthest_point():
    points = jnp.asarray([[0.0], [1.0], [2.0], [100.0], [50.0]])
    start = jnp.asarray([[1.0], [-500.0], [-600.0]])
    fit = kmeans.lloyd(points, start, iterations=1)
    # All five points are nearest to the first code; the others go to the two largest residuals.
    np.testing.assert_allclose(fit.centroids, [[30.6], [100.0], [50.0]], rtol=1e-6)
    settled = kmeans.lloyd(points, start, iterations=20)
    assert int(settled.unused) == 0
    np.testing.assert_allclose(sorted(settled.centroids[:, 0]), [1.0, 50.0, 100.0], atol=1e-5)


def test_padding_rows_of_weight_zero_change_nothing():
    points = blobs()
    padded = jnp.concatenate([points, jnp.full((37, 5), 1e3)])
    weights = jnp.concatenate([jnp.ones(len(points)), jnp.zeros(37)])
    start = points[:12]
    bare = kmeans.lloyd(points, start)
    fit = kmeans.lloyd(padded, start, weights=weights)
    np.testing.assert_array_equal(fit.codes[: len(points)], bare.codes)
    np.testing.assert_allclose(fit.centroids, bare.centroids, atol=1e-5)
    np.testing.assert_allclose(fit.inertia, bare.inertia, rtol=1e-5)
    start = kmeans.start_plus_plus(KEY, padded, weights, 12)
    assert float(jnp.abs(start).max()) < 1e3


def test_a_weight_of_two_is_the_row_twice():
    points = jax.random.normal(KEY, (400, 6))
    twice = jnp.concatenate([points, points[:20]])
    weights = jnp.where(jnp.arange(400) < 20, 2.0, 1.0)
    left = kmeans.lloyd(twice, points[:10])
    right = kmeans.lloyd(points, points[:10], weights=weights)
    np.testing.assert_allclose(left.centroids, right.centroids, atol=1e-5)
    np.testing.assert_allclose(left.inertia, right.inertia, rtol=1e-5)


@pytest.mark.parametrize("start", [kmeans.start_plus_plus, kmeans.start_parallel])
def test_starts_are_points_one_in_every_blob(start):
    points = blobs(centres=12, each=40, noise=0.01)
    centroids = start(KEY, points, jnp.ones(len(points)), 12)
    assert all((np.asarray(points) == row).all(1).any() for row in np.asarray(centroids))
    # A point per blob: no two starting centroids are near each other.
    gaps = np.linalg.norm(np.asarray(centroids)[:, None] - np.asarray(centroids)[None], axis=-1)
    assert gaps[~np.eye(12, dtype=bool)].min() > 1.0
    np.testing.assert_array_equal(centroids, start(KEY, points, jnp.ones(len(points)), 12))
    assert not np.array_equal(centroids, start(jax.random.key(9), points, jnp.ones(480), 12))


def test_the_start_avoids_a_hub_in_many_dimensions():
    # Noise in 64 dimensions, one point in ten near the mean: such a point as a seed takes most.
    lengths = jnp.where(jnp.arange(480) < 48, 0.3, 1.0)[:, None]
    points = lengths * jax.random.normal(KEY, (480, 64))
    seeds = kmeans.start_parallel(KEY, points, jnp.ones(480), 24)
    trapped, free = kmeans.lloyd(points, seeds), kmeans.fit_kmeans(KEY, points, 24)
    assert float(free.inertia) < 0.95 * float(trapped.inertia)
    assert np.bincount(np.asarray(trapped.codes)).max() > 240
    assert np.bincount(np.asarray(free.codes)).max() < 120


def test_the_start_keeps_plain_seeds_where_clusters_are_clear():
    # Clusters on a line: drawn towards the mean, the outer seeds would share the outermost ones.
    noise = 0.01 * jax.random.normal(KEY, (480, 5))
    points = noise + jnp.repeat(jnp.arange(12.0), 40)[:, None]
    fit = kmeans.fit_kmeans(KEY, points, 12)
    np.testing.assert_allclose(fit.inertia, float((noise**2).sum()), rtol=0.05)


def test_plus_plus_draws_in_proportion_to_squared_distance():
    # After 0 (weight dominates), the next is 1 or 3 with odds 1 : 9.
    points = jnp.asarray([[0.0], [1.0], [3.0]])
    weights = jnp.asarray([1e9, 1.0, 1.0])
    draws = jax.vmap(lambda key: kmeans._start_plus_plus(key, points, weights, k=2)[1, 0])(
        jax.random.split(KEY, 4000)
    )
    share = float(jnp.mean(draws == 3.0))
    assert abs(share - 0.9) < 4 * (0.09 / 4000) ** 0.5


def test_distinct_rows_are_counted():
    rows = jnp.asarray([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [7.0, 7.0]])
    weights = jnp.asarray([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    assert int(kmeans.count_distinct(rows, weights)) == 3
    many = jax.random.randint(KEY, (3000, 3), 0, 12).astype(jnp.float32)
    expected = len(np.unique(np.asarray(many), axis=0))
    assert int(kmeans.count_distinct(many, jnp.ones(3000))) == expected


def test_more_codes_than_distinct_rows_are_capped():
    points = jnp.repeat(jax.random.normal(KEY, (7, 3)), 30, 0)
    fit = kmeans.fit_kmeans(KEY, points, 16)
    assert fit.centroids.shape == (7, 3)
    assert int(fit.unused) == 0
    np.testing.assert_allclose(fit.inertia, 0, atol=1e-9)


def test_one_code_is_the_mean():
    points = jax.random.normal(KEY, (400, 6))
    np.testing.assert_allclose(
        kmeans.fit_kmeans(KEY, points, 1).centroids[0], np.asarray(points).mean(0), atol=1e-6
    )


def test_restarts_keep_the_best_run():
    points, ones = jax.random.normal(KEY, (400, 6)), jnp.ones(400)
    alone = []
    for run in range(4):
        start = kmeans.start_centroids(jax.random.fold_in(KEY, run), points, ones, 10)
        alone.append(float(kmeans.lloyd(points, start).inertia))
    best = float(kmeans.fit_kmeans(KEY, points, 10, restarts=4).inertia)
    assert best == min(alone) < max(alone)


def test_rows_sharded_over_eight_devices_give_the_codes_of_one():
    points = blobs(centres=40, each=32, width=8, noise=1.0)
    sharded = jax.device_put(points, rows_sharding(make_mesh()))
    assert len(sharded.sharding.device_set) == 8
    one = kmeans.lloyd(points, points[:24], block=160)
    eight = kmeans.lloyd(sharded, points[:24], block=160)
    np.testing.assert_array_equal(one.codes, eight.codes)
    np.testing.assert_allclose(one.centroids, eight.centroids, atol=1e-5)
    one_codes = blocks.assign(points, one.centroids, block=160)[0]
    eight_codes, _ = blocks.assign(sharded, one.centroids, block=160)
    np.testing.assert_array_equal(one_codes, eight_codes)
    assert len(eight_codes.sharding.device_set) == 8
    assert not eight_codes.sharding.is_fully_replicated


def test_a_block_of_sharded_rows_needs_no_exchange_of_points():
    points = jax.ShapeDtypeStruct((1280, 8), jnp.float32, sharding=rows_sharding(make_mesh()))
    centroids = jax.ShapeDtypeStruct((24, 8), jnp.float32)
    program = blocks._assign.lower(points, centroids, block=160).compile().as_text()
    for exchange in ("all-gather", "all-to-all", "collective-permute"):
        assert exchange not in program


def test_many_rows_grow_into_the_fit():
    """Above 64 rows a code the fit begins with a sample; the result is as good, in less work."""
    points = jnp.asarray(np.random.default_rng(0).normal(size=(40_000, 8)), jnp.float32)
    points = points.at[:, :2].multiply(6.0)
    start = points[:32]
    whole = kmeans.lloyd(points, start, iterations=60, block=1000)
    grown = kmeans.lloyd(points, start, iterations=60, block=1000, grow_from=2000)
    assert float(grown.inertia) < 1.01 * float(whole.inertia)
    np.testing.assert_array_equal(grown.codes, blocks.assign(points, grown.centroids)[0])
    # Settled on all rows, not on a part of them: one more update would change next to nothing.
    again = kmeans.lloyd(points, grown.centroids, iterations=1, block=1000)
    assert float(again.inertia) > (1 - 2e-4) * float(grown.inertia)


def test_a_growing_fit_begins_with_every_so_manieth_row():
    """One update of a growing fit has seen two of forty blocks, and nothing else."""
    points = jax.random.normal(KEY, (40_000, 6))
    grown = kmeans.lloyd(points, points[:8], iterations=1, block=1000, grow_from=2000)
    sample = np.asarray(points)[np.arange(40_000) % 40 < 2]
    expected, _, _ = slow_lloyd(sample, points[:8], 1)
    np.testing.assert_allclose(grown.centroids, expected, atol=1e-5)


def test_a_growing_fit_never_settles_on_a_part_of_the_rows():
    """Even at a tolerance that any update meets: 2, 4, 8, 16, 32 and all 40 blocks are seen."""
    points = jax.random.normal(KEY, (40_000, 6))
    grown = kmeans.lloyd(points, points[:8], tolerance=0.5, block=1000, grow_from=2000)
    assert int(grown.iterations) >= 7
