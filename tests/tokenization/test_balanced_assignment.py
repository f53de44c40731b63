"""Even assignment against the Hungarian method and linear programming, and OneRec's Algorithm 1."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment, linprog

from jaxrec.tokenization import balanced_assignment
from jaxrec.tokenization.balanced_assignment import (
    balanced_assign,
    greedy_assign,
    separating_prices,
)


def distances(rows, codes, width=3, seed=0):
    generator = np.random.default_rng(seed)
    points = generator.normal(size=(rows, width))
    # Centroids off to one side: without prices a few of them would take nearly all rows.
    centroids = 0.3 + 0.5 * generator.normal(size=(codes, width))
    return ((points[:, None] - centroids) ** 2).sum(-1).astype(np.float32)


def hungarian(costs, low, high):
    """Least total by the Hungarian method: a column for every place, and rows that fill up."""
    rows, codes = costs.shape
    tiled = np.repeat(costs.astype(np.float64), high, 1)
    fill = np.where(np.tile(np.arange(high) < low, codes), 1e9, 0.0)
    square = np.concatenate([tiled, np.tile(fill, (codes * high - rows, 1))])
    return square[linear_sum_assignment(square)][:rows].sum()


def total(costs, codes):
    return costs.astype(np.float64)[np.arange(len(costs)), codes].sum()


def even(rows, codes):
    return rows // codes, -(-rows // codes)


@pytest.mark.parametrize(
    ("rows", "codes", "bounds"),
    [
        (96, 8, None),
        (203, 10, None),
        (61, 30, None),
        (12, 12, None),
        (40, 1, None),
        (5, 8, None),
        (103, 10, (9, 11)),
        (103, 10, (0, 15)),
        (100, 10, (2, 100)),
        (103, 10, (5, 11)),
    ],
)
def test_the_cost_is_the_least_and_sizes_keep_the_bounds(rows, codes, bounds):
    low, high = bounds or even(rows, codes)
    for seed in range(4):
        costs = distances(rows, codes, seed=seed)
        found = balanced_assign(costs, bounds=bounds)
        sizes = np.bincount(found.codes, minlength=codes)
        assert low <= sizes.min()
        assert sizes.max() <= high
        # Costs are rounded to 2^-40 of their range, some 1e-11 here.
        np.testing.assert_allclose(
            total(costs, found.codes), hungarian(costs, low, high), rtol=0, atol=1e-8
        )


def test_whole_numbers_with_many_ties_are_solved_exactly():
    for seed in range(10):
        costs = np.random.default_rng(seed).integers(0, 3, (50, 6)).astype(np.float32)
        found = balanced_assign(costs)
        assert total(costs, found.codes) == hungarian(costs, *even(50, 6))
        assert np.ptp(np.bincount(found.codes)) <= 1


def test_an_outlier_does_not_blur_the_other_rows():
    costs = distances(96, 8)
    costs[5] = np.linspace(0, 1e5, 8)
    found = balanced_assign(costs)
    np.testing.assert_allclose(total(costs, found.codes), hungarian(costs, 12, 12), atol=1e-4)


def test_prices_prove_that_the_cost_is_the_least():
    for rows, bounds in ((96, None), (103, None), (103, (9, 15))):
        costs = distances(rows, 8, seed=rows).astype(np.float64)
        low, high = bounds or even(rows, 8)
        found = balanced_assign(costs, bounds=bounds)
        priced = costs + found.prices
        own = priced[np.arange(rows), found.codes]
        assert (own <= priced.min(1) + 1e-9).all()
        sizes = np.bincount(found.codes, minlength=8)
        full, least = found.prices[sizes == high], found.prices[sizes == low]
        if low < high:  # what more room is worth is no less than what less of it is
            middle = found.prices[(sizes > low) & (sizes < high)]
            assert full.min(initial=np.inf) >= least.max(initial=-np.inf) - 1e-9
            assert np.ptp(middle) < 1e-9 if len(middle) else True
        assert abs(found.prices.mean()) < 1e-9
        assert np.ptp(found.prices) > 0.1


def test_any_start_gives_the_same_codes():
    costs = distances(203, 10)
    found = balanced_assign(costs)
    generator = np.random.default_rng(1)
    for scale in (1e-3, 1.0, 1e3, 1e20):
        again = balanced_assign(costs, prices=scale * generator.normal(size=10))
        np.testing.assert_array_equal(again.codes, found.codes)


def test_prices_to_begin_with_crowd_fewer_rows_than_those_given():
    whole, unit = balanced_assignment._whole_numbers(distances(2000, 20))
    none = np.zeros(20, np.int64)
    bad = np.rint(np.random.default_rng(0).normal(size=20) / unit).astype(np.int64)
    for given in (none, bad):
        near = balanced_assignment._near_prices(whole, given, 100)
        crowd, sizes = balanced_assignment._crowd(whole, near, 100)
        np.testing.assert_array_equal(sizes, np.bincount((whole + near).argmin(1), minlength=20))
        assert crowd == np.maximum(sizes - 100, 0).sum()
        assert crowd < balanced_assignment._crowd(whole, none, 100)[0] / 2
    good = np.rint(balanced_assign(distances(2000, 20)).prices / unit).astype(np.int64)
    np.testing.assert_array_equal(balanced_assignment._near_prices(whole, good, 100), good)


def test_permuted_rows_and_codes_permute_the_assignment():
    costs = distances(203, 10)
    generator = np.random.default_rng(2)
    rows, codes = generator.permutation(203), generator.permutation(10)
    found = balanced_assign(costs).codes
    np.testing.assert_array_equal(balanced_assign(costs[rows]).codes, found[rows])
    np.testing.assert_array_equal(codes[balanced_assign(costs[:, codes]).codes], found)


def test_what_all_codes_of_a_row_cost_does_not_matter():
    costs = distances(96, 8)
    moved = costs + np.arange(96, dtype=np.float32)[:, None] / 8
    np.testing.assert_array_equal(balanced_assign(moved).codes, balanced_assign(costs).codes)


def test_rows_that_do_not_count_take_no_place():
    costs = distances(150, 8)
    live = np.arange(150) % 3 != 0
    costs[~live] *= 1e3
    found = balanced_assign(costs, live=live)
    alone = balanced_assign(costs[live])
    np.testing.assert_array_equal(found.codes[live], alone.codes)
    np.testing.assert_array_equal(found.codes[~live], (costs + found.prices).argmin(1)[~live])
    np.testing.assert_array_equal(greedy_assign(costs, live=live)[live], greedy_assign(costs[live]))


def test_separating_prices_of_two_codes_are_half_way():
    # What it costs to go from code 0 to code 1; the four lowest go, and the border is at 4.
    differences = np.array([7.0, 1.0, 9.0, 3.0, 0.5, 2.0, 5.0, 8.0])
    costs = np.stack([np.zeros(8), differences], 1)
    found = balanced_assign(costs)
    np.testing.assert_array_equal(found.codes, [0, 1, 0, 1, 1, 1, 0, 0])
    prices = separating_prices(costs, found.codes)
    np.testing.assert_allclose(prices, [2.0, -2.0], atol=1e-9)


@pytest.mark.parametrize("rows", [30, 33])
def test_separating_prices_have_the_largest_margin(rows):
    costs = distances(rows, 5, seed=rows).astype(np.float64)
    codes = balanced_assign(costs).codes
    found = costs + separating_prices(costs, codes)

    def margin(priced):
        own = priced[np.arange(rows), codes]
        others = np.where(np.arange(5) == codes[:, None], np.inf, priced)
        return (others.min(1) - own).min()

    # max m with p[k] - p[c_i] - m >= D[i, c_i] - D[i, k]: a linear program.
    left, right = [], []
    for row, code in enumerate(codes):
        for other in set(range(5)) - {int(code)}:
            line = np.zeros(6)
            line[code], line[other], line[5] = 1, -1, 1
            left.append(line)
            right.append(costs[row, other] - costs[row, code])
    goal = np.array([0, 0, 0, 0, 0, -1.0])
    free = [(None, None)] * 6
    best = -linprog(goal, A_ub=np.stack(left), b_ub=np.array(right), bounds=free).fun
    assert best > 1e-4
    np.testing.assert_allclose(margin(found), best, rtol=1e-6)
    assert margin(costs + balanced_assign(costs).prices) < best / 2


def slow_greedy(costs):
    """OneRec's Algorithm 1, row by row."""
    rows, codes = costs.shape
    found, left = np.zeros(rows, int), set(range(rows))
    for code in range(codes):
        share = rows // codes + (code < rows % codes)
        taken = sorted(left, key=lambda row: (costs[row, code], row))[:share]
        found[taken] = code
        left -= set(taken)
    return found


def test_greedy_assignment_equals_the_definition():
    for rows, codes in ((96, 8), (103, 10), (5, 8), (40, 1)):
        costs = distances(rows, codes, seed=rows)
        np.testing.assert_array_equal(greedy_assign(costs), slow_greedy(costs))
    ties = np.random.default_rng(0).integers(0, 3, (50, 6)).astype(np.float32)
    np.testing.assert_array_equal(greedy_assign(ties), slow_greedy(ties))


def test_greedy_assignment_costs_more_and_depends_on_the_order_of_the_codes():
    costs = distances(203, 10)
    greedy = greedy_assign(costs)
    backwards = 9 - greedy_assign(costs[:, ::-1])
    assert (greedy != backwards).any()
    least = total(costs, balanced_assign(costs).codes)
    assert least < min(total(costs, greedy), total(costs, backwards))
    np.testing.assert_array_equal(np.bincount(greedy), [21] * 3 + [20] * 7)


def test_bad_input():
    costs = distances(20, 4)
    with pytest.raises(ValueError, match="20 rows do not fit 4 codes of 1 to 4 rows each"):
        balanced_assign(costs, bounds=(1, 4))
    with pytest.raises(ValueError, match="both sides of 5"):
        balanced_assign(costs, bounds=(6, 9))
    costs[3, 2] = np.nan
    for assign in (balanced_assign, greedy_assign):
        with pytest.raises(ValueError, match="finite"):
            assign(costs)
