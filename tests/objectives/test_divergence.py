"""Estimators of the divergence: what they are worth on average, and what their slopes are."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.objectives import divergence
from jaxrec.objectives.divergence import check_estimator, kl_terms

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=5), jnp.float32)
REFERENCE = jax.nn.log_softmax(jnp.asarray(RNG.normal(size=5), jnp.float32))


def exact(ours, theirs):
    """KL(ours || theirs), summed over everything that can be drawn."""
    return jnp.sum(jnp.exp(ours) * (ours - theirs))


def expected(estimator, log_probs, reference):
    return float(jnp.sum(jnp.exp(log_probs) * kl_terms(log_probs, reference, estimator)))


def test_k1_and_k3_are_unbiased_and_k2_nearly():
    ours = jax.nn.log_softmax(LOGITS)
    truth = float(exact(ours, REFERENCE))
    assert truth > 0.2
    assert expected("k1", ours, REFERENCE) == pytest.approx(truth, rel=1e-5)
    assert expected("k3", ours, REFERENCE) == pytest.approx(truth, rel=1e-5)
    assert expected("k2", ours, REFERENCE) != pytest.approx(truth, rel=0.05)
    near = jax.nn.log_softmax(ours + 0.02 * jnp.asarray([1.0, -1.0, 0.0, 2.0, -2.0]))
    assert expected("k2", near, ours) == pytest.approx(float(exact(near, ours)), rel=0.05)


def test_the_slopes_are_those_that_the_module_names():
    """Averaged over draws: none, that of KL(p || ref), that of KL(ref || p)."""

    @jax.jit
    def slopes(logits):
        share = jax.lax.stop_gradient(jax.nn.softmax(logits))

        def mean(logits, estimator):
            return jnp.sum(share * kl_terms(jax.nn.log_softmax(logits), REFERENCE, estimator))

        found = [jax.grad(mean)(logits, estimator) for estimator in ("k1", "k2", "k3")]
        backward = jax.grad(lambda z: exact(jax.nn.log_softmax(z), REFERENCE))(logits)
        forward = jax.grad(lambda z: exact(REFERENCE, jax.nn.log_softmax(z)))(logits)
        return found, [jnp.zeros(5), backward, forward]

    for ours, theirs in zip(*slopes(LOGITS)):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_k3_is_never_negative_and_nothing_is_lost_near_zero():
    gaps = np.concatenate([10.0 ** np.arange(-8, 1, 0.01), [0.00999, 0.01001, 30.0]])
    gaps = np.concatenate([gaps, -gaps, [0.0]]).astype(np.float32)
    found, slope = jax.jit(jax.vmap(jax.value_and_grad(lambda x: kl_terms(x, jnp.zeros(())))))(
        -gaps
    )
    wide = gaps.astype(np.float64)
    assert np.all(np.asarray(found)[:-1] > 0)
    assert found[-1] == 0
    np.testing.assert_allclose(found, np.expm1(wide) - wide, rtol=1e-4)
    np.testing.assert_allclose(slope, -np.expm1(wide), rtol=1e-4)


def test_a_policy_that_left_the_reference_stays_finite():
    far = jnp.asarray([-1e4, -100.0, -50.0, -30.0])

    @jax.jit
    def values_and_slopes(far):
        def total(far, estimator):
            return jnp.sum(kl_terms(far, jnp.zeros(4), estimator))

        return {k: jax.value_and_grad(total)(far, k) for k in ("k1", "k2", "k3")}

    found = values_and_slopes(far)
    assert all(np.isfinite(part).all() for pair in found.values() for part in pair)
    for estimator in ("k2", "k3"):
        assert np.all(found[estimator][1] < 0), "towards the reference"


def test_refuses_an_unknown_estimator():
    with pytest.raises(ValueError, match="kl_estimator='k4' is unknown; choose one of k1, k2, k3"):
        check_estimator("k4")


def test_examples_in_the_documentation():
    result = doctest.testmod(divergence)
    assert (result.attempted, result.failed) == (3, 0)
