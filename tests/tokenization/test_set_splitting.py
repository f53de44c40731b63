"""Splits of many sets at once: scipy's assignment as the oracle, and each set as if alone."""

import itertools

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from jaxrec.tokenization import set_splitting
from jaxrec.tokenization.set_splitting import balanced_codes, group_means, split_sets


def starts_of(sizes):
    return np.concatenate([[0], np.cumsum(sizes)])


def least_cost(costs):
    """Hungarian method over columns that are repeated as often as their code has room."""
    rows, k = costs.shape
    columns = np.repeat(np.arange(k), rows // k + (np.arange(k) < rows % k))
    chosen = linear_sum_assignment(costs[:, columns])
    return costs[chosen[0], columns[chosen[1]]].sum()


def cost_of(costs, codes):
    return costs[np.arange(len(codes)), codes].sum()


@pytest.mark.parametrize("seed", range(3))
def test_two_codes_are_assigned_at_the_least_cost(seed):
    generator = np.random.default_rng(seed)
    sizes = generator.integers(2, 40, 20)
    costs, starts = generator.random((sizes.sum(), 2)), starts_of(sizes)
    codes = balanced_codes(costs, starts)
    for first, last in itertools.pairwise(starts):
        some, chosen = costs[first:last], codes[first:last]
        np.testing.assert_allclose(cost_of(some, chosen), least_cost(some))
        assert chosen.sum() == (last - first) // 2


@pytest.mark.parametrize(("k", "width", "gap"), [(3, 32, 0.01), (8, 32, 0.01), (8, 2, 0.03)])
def test_more_codes_cost_little_more_and_no_exchange_of_two_rows_helps(k, width, gap):
    generator = np.random.default_rng(k)
    sizes = generator.integers(k, 60, 12)
    points = generator.normal(size=(sizes.sum(), width))
    costs = ((points[:, None] - generator.normal(size=(k, width))) ** 2).sum(-1)
    starts = starts_of(sizes)
    codes = balanced_codes(costs, starts)
    total = least = 0.0
    for first, last in itertools.pairwise(starts):
        some, chosen = costs[first:last], codes[first:last]
        counts = np.bincount(chosen, minlength=k)
        rows = last - first
        np.testing.assert_array_equal(counts, rows // k + (np.arange(k) < rows % k))
        now = some[np.arange(rows), chosen]
        exchanged = some[:, chosen] + some[:, chosen].T  # [i, j]: both rows take the other's code
        assert (exchanged >= now[:, None] + now - 1e-9).all()
        total, least = total + cost_of(some, chosen), least + least_cost(some)
    assert least - 1e-9 <= total < (1 + gap) * least


def test_sweeps_never_raise_the_cost_and_start_from_given_codes():
    generator = np.random.default_rng(0)
    costs, starts = generator.random((200, 5)), np.array([0, 200])
    codes = np.arange(200) % 5
    totals = [cost_of(costs, codes)]
    for _ in range(4):
        codes = balanced_codes(costs, starts, codes, sweeps=1)
        totals.append(cost_of(costs, codes))
    assert (np.diff(totals) <= 1e-12).all()
    assert totals[-1] < 0.5 * totals[0]
    settled = balanced_codes(costs, starts, codes)
    np.testing.assert_array_equal(balanced_codes(costs, starts, settled), settled)


def test_equal_costs_are_shared_in_the_order_of_rows():
    codes = balanced_codes(np.zeros((7, 3)), np.array([0, 7]))
    np.testing.assert_array_equal(codes, [0, 0, 0, 1, 1, 2, 2])


def test_rows_with_most_to_lose_choose_first():
    costs = np.array([[0.0, 1.0], [0.0, 9.0], [0.0, 2.0], [0.0, 3.0]])
    np.testing.assert_array_equal(balanced_codes(costs, np.array([0, 4]), sweeps=0), [1, 0, 1, 0])


@pytest.mark.parametrize("balanced", [True, False])
def test_planted_clusters_of_every_set_are_found(balanced):
    generator = np.random.default_rng(1)
    middles = 10 * generator.normal(size=(6, 4, 8))
    labels = np.tile(np.repeat(np.arange(4), 5), 6)
    owner = np.repeat(np.arange(6), 20)
    points = (middles[owner, labels] + 0.1 * generator.normal(size=(120, 8))).astype(np.float32)
    starts, ones = 20 * np.arange(7), np.ones(120)
    codes = split_sets(generator, points, ones, starts, 4, balanced=balanced, iterations=20)
    for some in range(6):
        assert len({*zip(codes[owner == some].tolist(), labels[owner == some].tolist())}) == 4


def test_an_even_split_is_a_fixed_point_of_its_own_update():
    generator = np.random.default_rng(2)
    points = generator.normal(size=(90, 5)).astype(np.float32)
    codes = split_sets(
        generator, points, np.ones(90), np.array([0, 90]), 4, balanced=True, iterations=200
    )
    means = np.stack([points[codes == code].mean(0) for code in range(4)])
    costs = ((points[:, None] - means) ** 2).sum(-1)
    np.testing.assert_array_equal(balanced_codes(costs, np.array([0, 90]), codes), codes)
    drawn = generator.permutation(codes)
    worse = np.stack([points[drawn == code].mean(0) for code in range(4)])
    assert cost_of(costs, codes) < 0.85 * ((points - worse[drawn]) ** 2).sum()


def test_heavy_rows_come_first_in_an_even_split():
    generator = np.random.default_rng(7)
    points = generator.normal(size=(60, 3)).astype(np.float32)
    weights = generator.exponential(size=60) ** 2 + 0.01
    codes = split_sets(
        generator, points, weights, np.array([0, 60]), 2, balanced=True, iterations=200
    )
    means = np.stack([np.average(points[codes == c], 0, weights[codes == c]) for c in range(2)])
    distances = ((points[:, None] - means) ** 2).sum(-1)
    costs = weights[:, None] * distances
    np.testing.assert_allclose(cost_of(costs, codes), least_cost(costs), rtol=1e-6)
    assert cost_of(distances, codes) > 1.001 * least_cost(distances)  # and not whatever they weigh


def test_free_splits_are_lloyd_and_heavy_rows_draw_the_centroid():
    generator = np.random.default_rng(3)
    points = generator.normal(size=(80, 3)).astype(np.float32)
    weights = generator.random(80) + 0.1
    codes = split_sets(
        generator, points, weights, np.array([0, 80]), 5, balanced=False, iterations=200
    )
    means = np.stack([np.average(points[codes == c], 0, weights[codes == c]) for c in range(5)])
    distances = ((points[:, None] - means) ** 2).sum(-1)
    np.testing.assert_array_equal(distances.argmin(1), codes)


@pytest.mark.parametrize("balanced", [True, False])
def test_rows_that_rounding_cannot_tell_apart_are_cut_in_order(balanced):
    points = np.concatenate([np.ones((9, 4)), np.eye(4)[[0, 1, 2, 3] * 3]]).astype(np.float32)
    codes = split_sets(
        np.random.default_rng(4), points, np.ones(21), np.array([0, 9, 21]), 3,
        balanced=balanced, iterations=5,
    )  # fmt: skip
    np.testing.assert_array_equal(codes[:9], np.repeat([0, 1, 2], 3))
    if not balanced:  # equal rows of the other set stay together
        assert (codes[9:].reshape(3, 4) == codes[9:13]).all()


def test_seeds_are_different_rows_of_their_sets_and_never_without_weight():
    points = np.arange(12, dtype=np.float32)[:, None]
    weights = np.where(np.arange(12) % 2, 1.0, 1e-30)
    starts = np.array([0, 6, 12])
    for seed in range(20):
        generator = np.random.default_rng(seed)
        seeds = set_splitting._seeds(generator, points, weights, starts, 3)[..., 0]
        for drawn, odd in zip(seeds, ([1, 3, 5], [7, 9, 11])):
            assert sorted(drawn.tolist()) == odd


def test_means_of_groups_weigh_their_rows():
    generator = np.random.default_rng(5)
    points = generator.normal(size=(30, 4)).astype(np.float32)
    weights, groups = generator.random(30) + 0.1, generator.permutation(30) % 4
    means = group_means(points, weights, groups, 5)
    for group in range(4):
        mine = groups == group
        expected = np.average(points[mine], axis=0, weights=weights[mine])
        np.testing.assert_allclose(means[group], expected, atol=1e-6)
    np.testing.assert_array_equal(means[4], np.zeros(4))
