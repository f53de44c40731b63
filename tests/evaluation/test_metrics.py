"""Metrics against closed forms, published goldens and the invariants of METHODS E1."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.evaluation.metrics import (
    collision_aware_metrics,
    exposure,
    gini,
    list_metrics,
    multi_target_recall,
    novelty,
    per_case_metrics,
    per_user_means,
    rank_metrics,
)

RANKS = st.lists(st.integers(0, 60), min_size=1, max_size=20).map(np.array)


def test_rank_metrics_by_hand():
    metrics = rank_metrics(np.array([1, 2, 7, 0]), cutoffs=(1, 5, 10))
    assert metrics["recall@1"] == 0.25
    assert metrics["recall@5"] == 0.5
    assert metrics["recall@10"] == 0.75
    assert metrics["ndcg@5"] == pytest.approx((1 + 1 / math.log2(3)) / 4)
    assert metrics["ndcg@10"] == pytest.approx((1 + 1 / math.log2(3) + 1 / 3) / 4)
    assert metrics["mrr@10"] == pytest.approx((1 + 1 / 2 + 1 / 7) / 4)


@given(RANKS)
def test_invariants(ranks):
    cutoffs = (1, 2, 5, 10, 60)
    metrics = per_case_metrics(ranks, cutoffs)
    for small, large in pairwise(cutoffs):
        for kind in ("recall", "ndcg", "mrr"):
            assert (metrics[f"{kind}@{small}"] <= metrics[f"{kind}@{large}"]).all()
    for cutoff in cutoffs:
        assert (metrics[f"ndcg@{cutoff}"] <= metrics[f"recall@{cutoff}"]).all()
    # 1/r <= 1/log2(r + 1), so MRR never exceeds NDCG over the whole list.
    assert (metrics["mrr@60"] <= metrics["ndcg@60"]).all()
    assert rank_metrics(ranks, cutoffs)["ndcg@10"] == pytest.approx(metrics["ndcg@10"].mean())


def test_bad_ranks_are_refused():
    with pytest.raises(ValueError, match="got -1"):
        rank_metrics(np.array([3, -1]))
    with pytest.raises(ValueError, match="no case"):
        rank_metrics(np.zeros(0, int))
    with pytest.raises(ValueError, match="Cutoffs"):
        rank_metrics(np.array([1]), cutoffs=(0,))


@pytest.mark.parametrize(
    ("first", "group", "cutoff", "hit", "ndcg"),
    [(1, 1, 10, 1.0, 1.0), (3, 4, 5, 0.75, 0.3294), (9, 4, 10, 0.5, 0.1475), (0, 3, 10, 0.0, 0.0)],
)
def test_collision_aware_goldens(first, group, cutoff, hit, ndcg):
    got = collision_aware_metrics(np.array([first]), np.array([group]), cutoff)
    assert [round(float(value[0]), 4) for value in got] == [hit, ndcg]


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 25))
def test_collision_aware_is_the_mean_over_the_places_of_the_group(first, group, cutoff):
    places = np.arange(first, first + group)
    expected = rank_metrics(places, cutoffs=(cutoff,))
    hit, ndcg = collision_aware_metrics(np.array([first]), np.array([group]), cutoff)
    assert hit[0] == pytest.approx(expected[f"recall@{cutoff}"])
    assert ndcg[0] == pytest.approx(expected[f"ndcg@{cutoff}"])


def test_collision_aware_with_unique_ids_is_the_plain_metric():
    ranks = np.array([0, 1, 4, 11])
    hit, ndcg = collision_aware_metrics(ranks, np.ones(4, int), 10)
    plain = per_case_metrics(ranks, (10,))
    np.testing.assert_allclose(hit, plain["recall@10"])
    np.testing.assert_allclose(ndcg, plain["ndcg@10"])
    with pytest.raises(ValueError, match="at least 1 item"):
        collision_aware_metrics(ranks, np.zeros(4, int), 10)


def test_multi_target_denominators():
    relevant = np.array([[True, False, True], [False, False, False]])
    targets = np.array([4, 1])
    np.testing.assert_allclose(multi_target_recall(relevant, targets, 3, "targets"), [0.5, 0])
    np.testing.assert_allclose(multi_target_recall(relevant, targets, 3, "capped"), [2 / 3, 0])
    np.testing.assert_allclose(multi_target_recall(relevant, targets, 1, "capped"), [1, 0])
    with pytest.raises(ValueError, match="'hits'"):
        multi_target_recall(relevant, targets, 3, "hits")


@given(st.lists(st.integers(0, 60), min_size=1, max_size=10))
def test_one_target_makes_the_denominators_equal(ranks):
    relevant = np.arange(1, 21)[None, :] == np.array(ranks)[:, None]
    ones = np.ones(len(ranks), int)
    plain = per_case_metrics(np.array(ranks), (10,))["recall@10"]
    for denominator in ("targets", "capped"):
        got = multi_target_recall(relevant, ones, 10, denominator)
        np.testing.assert_array_equal(got, plain)


def test_gini_goldens():
    assert gini(np.array([1, 2, 3, 4])) == pytest.approx(0.25)
    assert gini(np.array([0, 0, 0, 4])) == pytest.approx(0.75)
    assert gini(np.array([4])) == pytest.approx(0.0)
    assert gini(np.array([7, 7, 7])) == pytest.approx(0.0)
    with pytest.raises(ValueError, match="not all zero"):
        gini(np.zeros(3, int))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any))
def test_gini_is_half_the_relative_mean_difference(counts):
    counts = np.array(counts)
    spread = np.abs(counts[:, None] - counts[None, :]).mean() / (2 * counts.mean())
    assert gini(counts) == pytest.approx(spread, abs=1e-12)


def test_exposure_and_coverage_respect_validity_and_cutoff():
    items = np.array([[0, 1, 2], [0, -1, -1]])
    valid = np.array([[True, True, True], [True, False, False]])
    assert exposure(items, valid, 5, 2).tolist() == [2, 1, 0, 0, 0]
    metrics = list_metrics(items, valid, np.ones(5, int), cutoffs=(2, 3))
    assert metrics["coverage@2"] == pytest.approx(2 / 5)
    assert metrics["coverage@3"] == pytest.approx(3 / 5)
    assert metrics["gini@2"] == pytest.approx(gini(np.array([2, 1, 0, 0, 0])))


def test_novelty_by_hand():
    popularity = np.array([7, 3, 2, 0])  # with one added each: 8/16, 4/16, 3/16, 1/16
    items = np.array([[0, 1], [3, -1], [-1, -1]])
    valid = items >= 0
    assert novelty(items, valid, popularity, 2) == pytest.approx(((1 + 2) / 2 + 4) / 2)
    assert novelty(items, valid, popularity, 1) == pytest.approx((1 + 4) / 2)
    assert novelty(items, np.zeros_like(valid), popularity, 2) == 0.0


def test_per_user_means_counts_every_user_once():
    values, users = np.array([1.0, 0.0, 0.0, 1.0]), np.array([9, 2, 9, 9])
    np.testing.assert_allclose(per_user_means(values, users), [0.0, 2 / 3])
