"""DPO: its value and slope at the reference, its relatives in closed form, and its errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.objectives.dpo import DPO, dpo_loss, dpo_losses, hinge_losses, ipo_losses
from jaxrec.objectives.preference_pairs import ScoredPairs
from tests.objectives.test_preference_pairs import random_pairs, with_slopes

LOGITS = np.array([-30.0, -2.0, -0.5, 0.0, 0.5, 1.0, 3.0, 30.0])
losses = jax.jit(dpo_losses)


def at_reference():
    pairs = random_pairs()
    return pairs._replace(chosen=pairs.reference_chosen, rejected=pairs.reference_rejected)


def test_at_the_reference_it_is_log_2_with_slope_half_beta():
    total, weight, metrics, slopes = with_slopes(DPO(0.1), at_reference())
    assert float(weight) == 20.0
    np.testing.assert_allclose(total / weight, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(slopes.chosen, np.full(5, -0.05 * 4), rtol=1e-6)
    np.testing.assert_allclose(slopes.rejected, np.full((5, 4), 0.05), rtol=1e-6)
    assert float(metrics["accuracy"][0]) == float(metrics["margin"][0]) == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_the_sigmoid_is_its_definition(smoothing):
    log_won, log_lost = -np.logaddexp(0, -LOGITS), -np.logaddexp(0, LOGITS)
    expected = -(1 - smoothing) * log_won - smoothing * log_lost
    np.testing.assert_allclose(losses(LOGITS, smoothing), expected, rtol=1e-6, atol=1e-12)


def test_smoothing_one_half_prefers_nothing_and_less_has_its_optimum_at_the_log_odds():
    np.testing.assert_allclose(losses(LOGITS, 0.5), losses(-LOGITS, 0.5), rtol=1e-6)
    slope = jax.jit(jax.grad(dpo_losses))
    assert float(slope(np.log(4.0), 0.2)) == pytest.approx(0, abs=1e-7)


def test_ipo_and_hinge_are_their_definitions():
    for beta in (0.1, 2.0):
        # On the log-ratio x / beta, as the paper writes it.
        expected = (LOGITS / beta - 1 / (2 * beta)) ** 2
        np.testing.assert_allclose(
            jax.jit(ipo_losses, static_argnums=1)(LOGITS, beta), expected, rtol=1e-5
        )
    np.testing.assert_allclose(jax.jit(hinge_losses)(LOGITS), np.maximum(0, 1 - LOGITS))


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge"])
def test_a_loop_over_the_pairs(loss):
    pairs = random_pairs()._replace(valid=np.arange(20).reshape(5, 4) % 3 > 0)
    chosen, rejected, reference_chosen, reference_rejected, valid = map(np.float64, pairs[:5])
    expected = 0.0
    for i, j in zip(*np.nonzero(valid)):
        h = chosen[i] - reference_chosen[i] - rejected[i, j] + reference_rejected[i, j]
        expected += {
            "sigmoid": np.log(1 + np.exp(-0.3 * h)),
            "ipo": (h - 1 / (2 * 0.3)) ** 2,
            "hinge": max(0, 1 - 0.3 * h),
        }[loss]
    found = jax.jit(functools.partial(dpo_loss, beta=0.3, loss=loss))(pairs)
    np.testing.assert_allclose(found, (expected, 13), rtol=1e-5)
    np.testing.assert_allclose(with_slopes(DPO(0.3, loss=loss), pairs)[:2], found, rtol=1e-6)


def test_the_component_smooths():
    pairs = random_pairs()
    plain, _, metrics, _ = with_slopes(DPO(0.3), pairs)
    smoothed = with_slopes(DPO(0.3, label_smoothing=0.2), pairs)[0]
    np.testing.assert_allclose(smoothed - plain, 0.2 * metrics["margin"][0], rtol=1e-4)
    assert abs(float(metrics["margin"][0])) > 0.1


def test_descent_stops_where_ipo_says():
    """Two items, equally likely under the reference: the log-ratio goes to 1 / (2 beta)."""
    half = jnp.full(1, -jnp.log(2.0))

    def total(table):
        logp = jax.nn.log_softmax(table)[:, None]
        pairs = ScoredPairs(logp[0], logp[1:], half, half[None], jnp.ones((1, 1), bool))
        return DPO(0.5, loss="ipo")(pairs)[0]

    def step(_, table):
        return table - 0.1 * jax.grad(total)(table)

    table = jax.jit(lambda table: jax.lax.fori_loop(0, 200, step, table))(np.zeros(2, np.float32))
    assert float(table[0] - table[1]) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "squared"}, r"loss='squared' is unknown; choose one of sigmoid, ipo, hinge"),
        ({"label_smoothing": 0.6}, r"label_smoothing=0.6 must lie in \[0, .5\]"),
        ({"label_smoothing": -0.1}, r"label_smoothing=-0.1 must lie in \[0, .5\]"),
        ({"label_smoothing": 0.1, "loss": "ipo"}, "belongs to loss='sigmoid', not to 'ipo'"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DPO(**fields)
