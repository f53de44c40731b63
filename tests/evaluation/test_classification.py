"""AUC, GAUC and calibration against loops over all pairs and bins, and closed forms."""

import numpy as np
import pytest

from jaxrec.evaluation.classification import (
    auc,
    calibration_error,
    expected_over_observed,
    grouped_auc,
)

RNG = np.random.default_rng(0)
# Few values, so that many cases tie; two groups have one kind of label only.
SCORES = RNG.integers(0, 6, 60) / 5
LABELS = RNG.random(60) < 0.4
GROUPS = RNG.integers(0, 7, 60)
LABELS[GROUPS == 2], LABELS[GROUPS == 5] = True, False


def slow_auc(scores, labels):
    """All pairs of a positive and a negative; None where there is none."""
    won = [0.5 if p == n else float(p > n) for p in scores[labels] for n in scores[~labels]]
    return sum(won) / len(won) if won else None


def test_auc_is_the_share_of_pairs_in_order():
    assert auc(SCORES, LABELS) == pytest.approx(slow_auc(SCORES, LABELS), abs=1e-12)
    assert auc(-SCORES, LABELS) == pytest.approx(1 - auc(SCORES, LABELS), abs=1e-12)
    assert auc(np.zeros(60), LABELS) == 0.5
    assert auc(LABELS.astype(float), LABELS) == 1.0
    assert auc(np.exp(5 * SCORES), LABELS) == auc(SCORES, LABELS)
    order = RNG.permutation(60)
    assert auc(SCORES[order], LABELS[order]) == auc(SCORES, LABELS)
    assert auc(np.array([-np.inf, 0.0]), np.array([False, True])) == 1.0


def test_gauc_is_the_mean_over_groups_by_impressions():
    total = impressions = 0.0
    for group in np.unique(GROUPS):
        inside = group == GROUPS
        value = slow_auc(SCORES[inside], LABELS[inside])
        if value is not None:
            total += inside.sum() * value
            impressions += inside.sum()
    assert impressions < 60  # some groups are left out
    found = grouped_auc(SCORES, LABELS, GROUPS)
    assert found == pytest.approx(total / impressions, abs=1e-12)
    order = RNG.permutation(60)
    assert grouped_auc(SCORES[order], LABELS[order], GROUPS[order]) == pytest.approx(found)
    assert grouped_auc(SCORES, LABELS, np.full(60, -3)) == pytest.approx(auc(SCORES, LABELS))


def test_gauc_does_not_reward_knowing_the_user():
    """A score that is a user's rate orders users and none of their impressions."""
    users = np.repeat(np.arange(40), 10)
    rate = np.repeat(np.linspace(0.05, 0.95, 40), 10)
    labels = RNG.random(400) < rate
    assert auc(rate, labels) > 0.75
    assert grouped_auc(rate, labels, users) == 0.5


@pytest.mark.parametrize("bins", [1, 3, 10])
def test_calibration_error_is_the_loop_over_bins(bins):
    probabilities = np.concatenate([SCORES, [0.0, 1.0, 1.0]])
    labels = np.concatenate([LABELS, [True, True, False]])
    expected = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        inside = (probabilities >= low) & (probabilities < high)
        inside |= (number == bins - 1) & (probabilities == 1.0)
        if inside.any():
            expected += inside.mean() * abs(probabilities[inside].mean() - labels[inside].mean())
    assert calibration_error(probabilities, labels, bins=bins) == pytest.approx(expected)


def test_bins_of_equal_mass_see_rare_events():
    """Half of the cases at .001 and half at .009, each predicted as the other."""
    truth = np.repeat([0.001, 0.009], 5000)
    labels = np.zeros(10_000, bool)
    labels[:5], labels[5000:5045] = True, True
    wrong = truth[::-1].copy()
    assert calibration_error(wrong, labels) == pytest.approx(0)
    assert calibration_error(wrong, labels, kind="mass") == pytest.approx(0.008)
    assert calibration_error(truth, labels, kind="mass") == pytest.approx(0, abs=1e-12)
    order = RNG.permutation(10_000)
    found = calibration_error(wrong[order], labels[order], bins=3, kind="mass")
    assert found == pytest.approx(0.008)  # equal probabilities stay together


def test_mass_spreads_distinct_probabilities_evenly():
    probabilities = RNG.random(12) / 100
    labels = np.zeros(12, bool)
    labels[np.argsort(probabilities)[3:6]] = True
    parts = np.sort(probabilities).reshape(4, 3).sum(axis=1) - [0, 3, 0, 0]
    expected = np.abs(parts).sum() / 12
    assert calibration_error(probabilities, labels, bins=4, kind="mass") == pytest.approx(expected)


def test_expected_over_observed_is_the_factor_of_the_bias():
    labels = np.arange(100) < 20
    assert expected_over_observed(np.full(100, 0.2), labels) == pytest.approx(1.0)
    assert expected_over_observed(np.full(100, 0.5), labels) == pytest.approx(2.5)


YES, NO = np.array([True, True]), np.array([False, False])
HALF = np.array([0.5, 0.5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: auc(HALF, YES), "got 2 positives of 2"),
        (lambda: auc(np.empty(0), np.empty(0, bool)), "got 0 positives of 0"),
        (lambda: auc(np.array([np.nan, 0.0]), np.array([True, False])), "not a number"),
        (lambda: grouped_auc(HALF, np.array([True, False]), np.array([0, 1])), "none of 2 groups"),
        (lambda: calibration_error(np.array([-0.1, 2.0]), YES), r"give sigmoid\(logits\)"),
        (lambda: calibration_error(np.array([np.nan, 0.2]), YES), "between 0 and 1"),
        (lambda: calibration_error(np.empty(0), np.empty(0, bool)), "no case"),
        (lambda: calibration_error(HALF, YES, bins=0), "bins >= 1"),
        (lambda: expected_over_observed(HALF, NO), "Nothing was observed"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
