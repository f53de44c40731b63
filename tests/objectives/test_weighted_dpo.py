"""Weighted and list-wise DPO: weight 1, loops over pairs, and the trap of the margin."""

import functools

import jax
import numpy as np
import pytest

from jaxrec.objectives.dpo import DPO
from jaxrec.objectives.preference_pairs import pair_logits
from jaxrec.objectives.s_dpo import SDPO
from jaxrec.objectives.weighted_dpo import (
    ListDPO,
    WeightedDPO,
    clipped_list_losses,
    gap_factors,
)
from tests.objectives.test_preference_pairs import random_pairs, with_slopes

logits_of = jax.jit(functools.partial(pair_logits, beta=0.3))


def factor(gap, weighting, margin=0.0):
    """One pair at a time."""
    return {
        "none": 1.0,
        "gap": gap,
        "inverse_gap": 1 / gap,
        "softened": 1 + gap**-1.5,
        "margin": max(0.0, gap - margin),
    }[weighting]


def check_equal(found, expected):
    np.testing.assert_allclose(found[:2], expected[:2], rtol=1e-6)
    np.testing.assert_allclose(found[3].chosen, expected[3].chosen, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found[3].rejected, expected[3].rejected, rtol=1e-5, atol=1e-7)
    for name, value in expected[2].items():
        np.testing.assert_allclose(found[2][name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("weighting", ["none", "gap", "inverse_gap", "margin"])
def test_with_weight_1_it_is_dpo_and_with_weight_1_in_the_list_s_dpo(weighting):
    margin = 0.5 if weighting == "margin" else 0.0
    gap = None if weighting == "none" else np.full((5, 4), 1.0 + margin)
    pairs = random_pairs()._replace(gap=gap)
    found = with_slopes(WeightedDPO(0.3, weighting, margin), pairs)
    check_equal(found, with_slopes(DPO(0.3), random_pairs()))
    assert [float(each) for each in found[2]["factor"]] == [20, 20]
    if weighting != "margin":
        listed = with_slopes(ListDPO(0.3, weighting), pairs)
        check_equal(listed, with_slopes(SDPO(0.3), random_pairs()))


@pytest.mark.parametrize("weighting", ["gap", "inverse_gap", "softened", "margin"])
def test_pairs_are_weighted_one_by_one(weighting):
    margin = 0.5 if weighting == "margin" else 0.0
    pairs = random_pairs()._replace(valid=np.arange(20).reshape(5, 4) % 3 > 0)
    x, gap = (np.float64(each) for each in (logits_of(pairs), pairs.gap))
    expected = mass = 0.0
    for place in zip(*np.nonzero(pairs.valid)):
        weight = factor(gap[place], weighting, margin)
        expected += weight * np.log(1 + np.exp(-x[place]))
        mass += weight
    total, weight, metrics, _ = with_slopes(WeightedDPO(0.3, weighting, margin), pairs)
    np.testing.assert_allclose((total, weight), (expected, 13), rtol=1e-5)
    np.testing.assert_allclose(metrics["factor"], (mass, 13), rtol=1e-5)


def test_what_violates_the_margin_learns_nothing_and_is_counted():
    pairs = random_pairs()
    pairs.gap[:2] = [0.2, 1.0, 3.0, 0.6], [0.5, 0.4, 0.1, 0.3]
    pairs.valid[2:] = False
    _, weight, metrics, slopes = with_slopes(WeightedDPO(0.3, "margin", margin=0.5), pairs)
    assert (slopes.rejected[:2] != 0).tolist() == [[False, True, True, True], [False] * 4]
    assert [float(each) for each in metrics["pairs_below_margin"]] == [5, 8]
    assert float(weight) == 8
    assert "pairs_below_margin" not in with_slopes(WeightedDPO(0.3, "gap"), pairs)[2]


@pytest.mark.parametrize("objective", [WeightedDPO(0.3), ListDPO(0.3), WeightedDPO(0.3, "gap")])
def test_what_is_no_preference_is_left_out_and_counted(objective):
    pairs = random_pairs()
    pairs.gap[:2] = [0.5, 0.0, -1.0, 0.0], [np.nan, 2.0, 1.0, 1.0]
    pairs.equal[0, 3] = True
    pairs.valid[1:, 2:] = pairs.valid[2:] = False
    better = np.zeros((5, 4), bool)
    better[[0, 1], [0, 1]] = True
    total, weight, metrics, slopes = with_slopes(objective, pairs)
    rest = pairs._replace(valid=better, gap=np.where(better, pairs.gap, 1.0).astype(np.float32))
    expected = with_slopes(objective, rest)
    np.testing.assert_array_equal((total, weight), expected[:2])
    np.testing.assert_array_equal(slopes.rejected, expected[3].rejected)
    assert [float(each) for each in metrics["pairs_unordered"]] == [3, 5]
    assert [float(each) for each in metrics["pairs_equal"]] == [1, 3]
    assert [float(each) for each in expected[2]["pairs_unordered"]] == [0, 2]


def test_no_gap_is_so_small_that_one_pair_rules():
    gap = np.array([1e-30, 1e-3, 1.0])[None]
    factors = jax.jit(gap_factors, static_argnums=1)
    np.testing.assert_allclose(factors(gap, "inverse_gap")[0], [1e3, 1e3, 1], rtol=1e-6)
    np.testing.assert_allclose(factors(gap, "softened")[0, 0], 1 + 1e-3**-1.5, rtol=1e-5)


@pytest.mark.parametrize("form", ["softmax", "clipped"])
@pytest.mark.parametrize("weighting", ["inverse_gap", "softened"])
def test_lists_are_weighted_row_by_row(form, weighting):
    margin = 0.1 if form == "clipped" else 0.0
    valid = (np.arange(20).reshape(5, 4) % 3 > 0) & (np.arange(5) != 1)[:, None]
    pairs = random_pairs()._replace(valid=valid)
    x, gap = (np.float64(each) for each in (logits_of(pairs), pairs.gap))
    expected = 0.0
    for row in (0, 2, 3, 4):
        pushed = 0.0
        for j in np.flatnonzero(valid[row]):
            weight = factor(gap[row, j], weighting)
            if form == "softmax":
                pushed += np.exp(-weight * x[row, j])
            else:
                pushed += np.exp(weight * max(0.0, x[row, j] - margin))
        inner = np.log(pushed) * (-1 if form == "softmax" else 1)
        expected += np.log(1 + np.exp(-inner))
    total, weight, _, _ = with_slopes(ListDPO(0.3, weighting, form, margin), pairs)
    np.testing.assert_allclose((total, weight), (expected, 4), rtol=1e-5)


def test_clipped_rows_have_no_slope_where_it_is_needed_most():
    """The policy ranks the rejected item first: softmax pushes, the printed form rests at log 2."""
    pairs = random_pairs(2, 1)
    pairs = pairs._replace(chosen=pairs.reference_chosen + np.array([-3.0, 3.0]))
    pairs = pairs._replace(rejected=pairs.reference_rejected)
    total, _, metrics, slopes = with_slopes(ListDPO(1.0, "none", form="clipped", margin=1.0), pairs)
    assert float(slopes.chosen[0]) == 0
    assert float(slopes.chosen[1]) == pytest.approx(-1 / (1 + np.exp(2)), rel=1e-5)
    assert float(total) == pytest.approx(np.log(2) + np.log(1 + np.exp(-2)), rel=1e-5)
    assert [float(each) for each in metrics["pairs_below_margin"]] == [1, 2]
    pushed = with_slopes(ListDPO(1.0, "none"), pairs)
    assert float(pushed[3].chosen[0]) == pytest.approx(-1 / (1 + np.exp(-3)), rel=1e-5)
    assert "pairs_below_margin" not in pushed[2]


def test_clipped_lists_follow_the_easiest_item_and_rest_at_a_floor():
    run = jax.jit(jax.value_and_grad(clipped_list_losses), static_argnums=3)
    one, counts = np.ones(3), np.ones(3, bool)
    slopes = run(np.array([4.0, 1.0, -2.0]), one, counts, 0.5)[1]
    assert float(slopes[0]) < float(slopes[1]) < float(slopes[2]) == 0
    floor = run(np.full(3, -5.0), one, counts, 0.5)[0]
    assert float(floor) == pytest.approx(np.log(1 + 1 / 3), rel=1e-6)


@pytest.mark.parametrize(
    ("component", "fields", "message"),
    [
        (
            WeightedDPO,
            {"weighting": "best"},
            "weighting='best' is unknown; choose one of none, gap",
        ),
        (WeightedDPO, {"weighting": "margin", "margin": -1.0}, "margin=-1.0 must not be negative"),
        (WeightedDPO, {"margin": 0.5}, "read by weighting='margin' only, not by 'inverse_gap'"),
        (ListDPO, {"weighting": "margin"}, "weighting='margin' is unknown"),
        (ListDPO, {"form": "hard"}, "form='hard' is unknown; choose one of softmax, clipped"),
        (ListDPO, {"margin": 0.5}, "read by form='clipped' only, not by 'softmax'"),
    ],
)
def test_what_cannot_be_is_refused(component, fields, message):
    with pytest.raises(ValueError, match=message):
        component(**fields)


@pytest.mark.parametrize("objective", [WeightedDPO(), ListDPO()])
def test_pairs_without_a_gap_are_refused(objective):
    with pytest.raises(ValueError, match=r"weighting='inverse_gap' reads pairs.gap.*have none"):
        with_slopes(objective, random_pairs()._replace(gap=None))
