"""Platt scaling: closed forms, what it must never do, and that it repairs what was planted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.alignment.calibration import Scaling, calibrated, fit_platt, identity
from jaxrec.evaluation.classification import calibration_error

RNG = np.random.default_rng(0)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def test_two_logits_get_their_smoothed_rates():
    """Two numbers fit two rates exactly."""
    logits = np.array([-1.0] * 10 + [2.0] * 4)
    labels = np.array([1.0, 1.0] + [0.0] * 8 + [1.0, 1.0, 1.0, 0.0])
    slope, offset = fit_platt(logits, labels, np.ones(14))
    low, high = 1 / (9 + 2), (5 + 1) / (5 + 2)
    for logit, rate in ((-1.0, 0.2), (2.0, 0.75)):
        expected = low + rate * (high - low)
        assert sigmoid(slope * logit + offset) == pytest.approx(expected, abs=1e-7)


def test_weights_repeat_cases_and_soft_labels_count_for_both():
    logits, labels = RNG.normal(size=60), (RNG.random(60) < 0.4).astype(float)
    labels[:20] = logits[:20] > 0
    weight = RNG.integers(0, 3, 60)
    expected = fit_platt(
        *(np.repeat(each, weight) for each in (logits, labels)), np.ones(weight.sum())
    )
    rubbish = np.where(weight == 0, 50.0, logits)
    assert fit_platt(rubbish, labels, weight.astype(float)) == pytest.approx(expected, rel=1e-5)
    soft = fit_platt(
        np.repeat(logits, 2), np.tile([0.0, 1.0], 60), np.stack([1 - labels, labels], 1).ravel()
    )
    assert fit_platt(logits, labels, np.ones(60)) == pytest.approx(soft, rel=1e-5)


def test_a_planted_miscalibration_is_repaired():
    true = RNG.normal(size=20_000) - 1
    labels = RNG.random(20_000) < sigmoid(true)
    told = 3 * true + 2
    slope, offset = fit_platt(told, labels.astype(float), np.ones(20_000))
    assert (slope, offset) == pytest.approx((1 / 3, -2 / 3), abs=0.04)
    before, after = (
        calibration_error(p, labels) for p in (sigmoid(told), sigmoid(slope * told + offset))
    )
    assert before > 0.15
    assert after < 0.01


def test_the_order_is_never_turned_round_and_nothing_is_infinite():
    logits, labels = np.linspace(-3, 3, 50), np.array([1.0] * 25 + [0.0] * 25)
    assert fit_platt(logits, labels, np.ones(50)) == pytest.approx((0.0, 0.0))
    slope, offset = fit_platt(logits, 1 - labels, np.ones(50))  # separable
    assert 0 < slope < 20
    assert np.isfinite(offset)
    # No positive at all: the rate that Platt's smoothing gives, for everybody.
    slope, offset = fit_platt(logits, np.zeros(50), np.ones(50))
    assert slope == pytest.approx(0, abs=1e-6)
    assert sigmoid(offset) == pytest.approx(1 / 52)
    assert fit_platt(np.full(50, 7.0), labels, np.ones(50)) == pytest.approx((0.0, 0.0))
    assert fit_platt(logits, labels, np.zeros(50)) == (1.0, 0.0)
    slope, offset = fit_platt(
        1e4 * logits + 1e6, (logits + RNG.normal(size=50) > 0) * 1.0, np.ones(50)
    )
    assert 0 < slope < 1e-2
    assert abs(slope * 1e6 + offset) < 10


def test_probabilities_of_logits():
    logits = jnp.asarray(RNG.normal(size=(4, 3, 2)), jnp.float32)
    found = jax.jit(calibrated)(logits, Scaling(jnp.array([2.0, 0.0]), jnp.array([1.0, -1.0])))
    np.testing.assert_allclose(
        found[..., 0], sigmoid(2 * np.asarray(logits)[..., 0] + 1), rtol=1e-5
    )
    np.testing.assert_allclose(found[..., 1], sigmoid(-1), rtol=1e-5)
    np.testing.assert_allclose(
        calibrated(logits, identity(2)), sigmoid(np.asarray(logits)), rtol=1e-5
    )
