"""Softmax-DPO: DPO with one rejected item, log(1 + n) with equal ones, and a loop."""

import jax
import numpy as np
import pytest

from jaxrec.objectives.dpo import DPO
from jaxrec.objectives.s_dpo import SDPO, softmax_dpo_losses
from tests.objectives.test_preference_pairs import random_pairs, with_slopes


def test_with_one_rejected_item_it_is_dpo():
    pairs = random_pairs(5, 1)
    total, weight, metrics, slopes = with_slopes(SDPO(0.3), pairs)
    expected = with_slopes(DPO(0.3), pairs)
    np.testing.assert_allclose((total, weight), expected[:2], rtol=1e-6)
    np.testing.assert_allclose(slopes.chosen, expected[3].chosen, rtol=1e-5)
    np.testing.assert_allclose(slopes.rejected, expected[3].rejected, rtol=1e-5)
    for name, value in metrics.items():
        np.testing.assert_array_equal(value, expected[2][name])


@pytest.mark.parametrize("rejected", [4, 20])
def test_at_the_reference_it_is_log_of_all_items(rejected):
    pairs = random_pairs(5, rejected)
    pairs = pairs._replace(chosen=pairs.reference_chosen, rejected=pairs.reference_rejected)
    total, weight, _, slopes = with_slopes(SDPO(0.3), pairs)
    assert float(weight) == 5.0
    np.testing.assert_allclose(total / weight, np.log(1 + rejected), rtol=1e-6)
    # Each of the 1 + n items has the same share of the softmax.
    np.testing.assert_allclose(
        slopes.rejected, np.full((5, rejected), 0.3 / (1 + rejected)), rtol=1e-5
    )
    np.testing.assert_allclose(
        slopes.chosen, np.full(5, -0.3 * rejected / (1 + rejected)), rtol=1e-5
    )


def test_it_is_the_loop_of_its_definition():
    logits = np.random.default_rng(1).normal(size=(5, 4)) * 3
    counts = np.random.default_rng(2).random((5, 4)) < 0.6
    counts[0] = False
    found = jax.jit(softmax_dpo_losses)(logits, counts)
    assert float(found[0]) == 0
    for row in range(1, 5):
        inner = -np.log(sum(np.exp(-x) for x in logits[row, counts[row]]))
        assert float(found[row]) == pytest.approx(np.log(1 + np.exp(-inner)), rel=1e-5)


def test_the_hardest_rejected_item_is_pushed_most():
    logits, counts = np.array([3.0, -2.0, 0.0]), np.ones(3, bool)
    slopes = jax.jit(jax.grad(softmax_dpo_losses))(logits, counts)
    shares = np.exp([-3.0, 2.0, 0.0])
    np.testing.assert_allclose(slopes, -shares / (1 + shares.sum()), rtol=1e-5)


def test_a_row_counts_once_however_many_items_it_rejects():
    counts = np.arange(4) < np.array([0, 1, 2, 3, 4])[:, None]
    pairs = random_pairs()._replace(valid=counts)
    assert float(with_slopes(SDPO(0.3), pairs)[1]) == 4.0
