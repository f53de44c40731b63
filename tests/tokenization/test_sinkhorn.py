"""The entropic transport plan: its margins, its limits, and a float64 reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.tokenization.sinkhorn import sinkhorn_codes, sinkhorn_plan


def distances(rows: int, codes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, codes)).astype(np.float32)


def reference(given: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """LC-Rec's loop as published: exponentials in float64, columns then rows."""
    given = given.astype(np.float64)
    middle = (given.max() + given.min()) / 2
    plan = np.exp(-(given - middle) / (given.max() - middle) / epsilon)
    for _ in range(iterations):
        plan /= plan.sum(0, keepdims=True) * plan.shape[1]
        plan /= plan.sum(1, keepdims=True) * plan.shape[0]
    return plan


@pytest.mark.parametrize(("epsilon", "iterations"), [(0.05, 30), (0.01, 100), (0.003, 50)])
def test_the_plan_is_that_of_the_published_loop(epsilon, iterations):
    given = distances(64, 8)
    plan = np.exp(sinkhorn_plan(jnp.asarray(given), epsilon=epsilon, iterations=iterations))
    np.testing.assert_allclose(plan, reference(given, epsilon, iterations), rtol=2e-3, atol=1e-7)
    # float32 logarithms of up to 1 / epsilon carry a relative error of 333 x 6e-8.
    np.testing.assert_allclose(plan.sum(1), 1 / 64, rtol=1e-4)


def test_codes_become_even_with_the_iterations():
    """METHODS T2: 64 x 8 random distances, epsilon .003; 100 iterations give exactly 8 each."""
    given = jnp.asarray(distances(64, 8))
    few = np.bincount(sinkhorn_codes(given, iterations=50), minlength=8)
    many = np.bincount(sinkhorn_codes(given, iterations=500), minlength=8)
    nearest = np.bincount(np.asarray(given).argmin(1), minlength=8)
    assert np.ptp(nearest) > np.ptp(few) >= np.ptp(many)
    assert np.ptp(many) <= 1


def test_permuted_rows_and_codes_permute_the_plan():
    given = distances(20, 5)
    rows, codes = np.random.default_rng(1).permutation(20), np.array([3, 1, 4, 0, 2])
    plan = sinkhorn_plan(jnp.asarray(given), epsilon=0.05)
    other = sinkhorn_plan(jnp.asarray(given[rows][:, codes]), epsilon=0.05)
    np.testing.assert_allclose(other, plan[rows][:, codes], atol=2e-4)


def test_equal_rows_get_equal_codes():
    """The trap: an even plan does not separate duplicates."""
    given = jnp.broadcast_to(jnp.asarray(distances(1, 4)), (8, 4))
    assert len(set(np.asarray(sinkhorn_codes(given)).tolist())) == 1


def test_rows_without_weight_do_not_count():
    given = distances(12, 3)
    padded = np.concatenate([given, np.full((4, 3), 1e6, np.float32)])
    weights = jnp.asarray([1.0] * 12 + [0.0] * 4)
    plan = sinkhorn_plan(jnp.asarray(padded), epsilon=0.05, weights=weights)
    np.testing.assert_allclose(
        plan[:12], sinkhorn_plan(jnp.asarray(given), epsilon=0.05), atol=1e-4
    )
    assert not np.isnan(plan[12:]).any()
    assert float(jnp.exp(plan[12:]).sum()) == 0.0


def test_gradients_stay_finite_at_the_published_epsilon():
    gradient = jax.grad(lambda d: jnp.sum(jnp.exp(sinkhorn_plan(d))[:, 0]))(
        jnp.asarray(distances(16, 4))
    )
    assert np.isfinite(gradient).all()
