"""Intervals and p-values against closed forms, and against what they promise."""

import math

import numpy as np
import pytest

import jaxrec.evaluation.significance as significance
from jaxrec.evaluation.significance import (
    bootstrap_mean,
    bootstrap_means,
    paired_difference,
    sign_flip_p_value,
)


def test_interval_is_the_normal_one_for_many_users():
    values = (np.random.default_rng(0).random(4000) < 0.1).astype(np.float64)
    interval = bootstrap_mean(values, draws=4000, seed=1)
    half = 1.959964 * values.std() / math.sqrt(len(values))
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.05 * 2 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.05 * 2 * half)
    narrow = bootstrap_mean(values, draws=4000, level=0.5, seed=1)
    assert narrow.high - narrow.low == pytest.approx(2 * half * 0.6745 / 1.96, rel=0.1)


def test_coverage_is_what_the_level_says():
    generator = np.random.default_rng(7)
    held = 0
    for trial in range(300):
        values = (generator.random(250) < 0.3).astype(np.float64)
        interval = bootstrap_mean(values, draws=300, level=0.9, seed=trial)
        held += interval.low <= 0.3 <= interval.high
    # 300 trials at .9 have a standard error of .017.
    assert 0.85 < held / 300 < 0.95


def test_a_seed_fixes_the_result_whatever_the_chunk(monkeypatch):
    values = np.random.default_rng(2).random(50)
    first = bootstrap_mean(values, draws=200, seed=5)
    assert bootstrap_mean(values, draws=200, seed=5) == first
    assert bootstrap_mean(values, draws=200, seed=6) != first
    monkeypatch.setattr(significance, "CHUNK", 70)
    again = bootstrap_mean(values, draws=200, seed=5)
    assert (again.low, again.high) == pytest.approx((first.low, first.high))


def test_resampling_distinct_values_is_resampling_users():
    generator = np.random.default_rng(9)
    values = generator.choice([0.0, 0.5, 1.0], p=[0.7, 0.2, 0.1], size=60)
    drawn = values[generator.integers(0, 60, size=(20_000, 60))].mean(axis=1)
    interval = bootstrap_mean(values, draws=20_000, seed=0)
    expected = np.quantile(drawn, [0.025, 0.975])
    # Means move in steps of 1/120, so the quantiles agree to one step.
    assert (interval.low, interval.high) == pytest.approx(expected, abs=1 / 120 + 1e-9)


def test_constant_values_have_no_width():
    interval = bootstrap_mean(np.full(9, 0.25), draws=50, seed=0)
    assert (interval.mean, interval.low, interval.high) == (0.25, 0.25, 0.25)


def test_several_metrics_share_their_resamples():
    values = np.random.default_rng(3).random(40)
    both = bootstrap_means({"a": values, "b": 2 * values}, draws=100, seed=0)
    assert both["a"].low == pytest.approx(bootstrap_mean(values, draws=100, seed=0).low)
    assert both["b"].low == pytest.approx(2 * both["a"].low)


def test_paired_interval_is_narrower_than_two_separate_ones():
    generator = np.random.default_rng(4)
    ease = generator.random(2000)
    ours, theirs = ease + 0.02 * generator.random(2000), ease
    paired = paired_difference(ours, theirs, seed=0, permutations=500)
    alone = bootstrap_mean(ours, seed=0)
    assert paired.high - paired.low < 0.1 * (alone.high - alone.low)
    assert paired.verdict == "ahead"
    assert paired.p_value == pytest.approx(1 / 501)
    assert paired_difference(theirs, ours, seed=0, permutations=500).verdict == "behind"
    assert paired.difference == pytest.approx((ours - theirs).mean())


def test_small_sign_flip_test_is_exact():
    # 5 of 5 users better by one: 2 of the 32 sign patterns reach that far.
    assert sign_flip_p_value(np.ones(5), seed=0) == 2 / 32
    # 4 better, 1 worse: |sum| >= 3 holds for 1 + 5 + 5 + 1 patterns.
    assert sign_flip_p_value(np.array([1, 1, 1, 1, -1.0]), seed=0) == 12 / 32
    assert sign_flip_p_value(np.zeros(7), seed=0) == 1.0


def test_large_sign_flip_test_is_the_normal_one():
    differences = np.concatenate([np.ones(60), -np.ones(40), np.zeros(500)])
    # Binomial with continuity: P(|2B - 100| >= 20) for B ~ Bin(100, 1/2).
    exact = 2 * sum(math.comb(100, k) for k in range(60, 101)) / 2**100
    got = sign_flip_p_value(differences, permutations=20_000, seed=0)
    assert got == pytest.approx(exact, abs=0.006)


def test_p_values_are_uniform_without_an_effect():
    generator = np.random.default_rng(8)
    p_values = [
        sign_flip_p_value(generator.normal(size=30), permutations=200, seed=trial)
        for trial in range(300)
    ]
    assert np.mean(np.array(p_values) <= 0.1) == pytest.approx(0.1, abs=0.05)
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.06)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_mean(np.array([1.0, np.nan]), seed=0)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_mean(np.zeros(0), seed=0)
    with pytest.raises(ValueError, match="same users"):
        bootstrap_means({"a": np.zeros(2), "b": np.zeros(3)}, seed=0)
    with pytest.raises(ValueError, match="level=2"):
        bootstrap_mean(np.zeros(2), level=2.0, seed=0)
    with pytest.raises(ValueError, match="got 0"):
        paired_difference(np.zeros(2), np.zeros(2), permutations=0, seed=0)
