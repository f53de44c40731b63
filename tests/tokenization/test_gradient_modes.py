"""Gradients past a look-up: against explicit rotations, finite differences and frequencies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.tokenization.gradient_modes import annealed, gumbel_weights, rotate, straight_through

KEY = jax.random.key(0)
GENERATOR = np.random.default_rng(0)
VECTORS = GENERATOR.normal(size=(30, 5)).astype(np.float32)
CODEWORDS = GENERATOR.normal(size=(30, 5)).astype(np.float32) * 3
UPSTREAM = GENERATOR.normal(size=(30, 5)).astype(np.float32)


def pulled(function, vectors, codewords, upstream):
    value, pull = jax.vjp(function, jnp.asarray(vectors), jnp.asarray(codewords))
    return np.asarray(value), *map(np.asarray, pull(jnp.asarray(upstream)))


def rotation(x, q):
    """The matrix that turns and stretches x to q inside their plane, in float64."""
    u, v = x / np.linalg.norm(x), q / np.linalg.norm(q)
    w = (u + v) / np.linalg.norm(u + v)
    turn = np.eye(len(x)) - 2 * np.outer(w, w) + 2 * np.outer(v, u)
    return np.linalg.norm(q) / np.linalg.norm(x) * turn


def test_straight_through_is_the_codeword_with_the_gradient_of_the_vector():
    quantized = CODEWORDS * 1e3
    value, to_vector, to_codeword = pulled(straight_through, VECTORS, quantized, UPSTREAM)
    np.testing.assert_array_equal(value, quantized)
    np.testing.assert_array_equal(to_vector, UPSTREAM)
    np.testing.assert_array_equal(to_codeword, 0)


def test_a_rotation_is_the_codeword_with_the_gradient_turned_back():
    value, to_vector, to_codeword = pulled(rotate, VECTORS, CODEWORDS, UPSTREAM)
    np.testing.assert_array_equal(value, CODEWORDS)
    np.testing.assert_array_equal(to_codeword, 0)
    doubles = VECTORS.astype(np.float64), CODEWORDS.astype(np.float64)
    maps = [rotation(x, q) for x, q in zip(*doubles)]
    for x, q, turn in zip(*doubles, maps):
        np.testing.assert_allclose(turn @ x, q, atol=1e-12)
    expected = np.stack([turn.T @ g for turn, g in zip(maps, UPSTREAM)])
    np.testing.assert_allclose(to_vector, expected, rtol=1e-4, atol=1e-4)


def test_a_rotation_keeps_angles_and_stretches_as_the_vector_was():
    _, to_vector, _ = pulled(rotate, VECTORS, CODEWORDS, UPSTREAM)
    length = np.linalg.norm
    stretch = length(CODEWORDS, axis=1) / length(VECTORS, axis=1)
    np.testing.assert_allclose(
        length(to_vector, axis=1), stretch * length(UPSTREAM, axis=1), rtol=1e-4
    )
    before = (UPSTREAM * CODEWORDS).sum(1) / length(UPSTREAM, axis=1) / length(CODEWORDS, axis=1)
    after = (to_vector * VECTORS).sum(1) / length(to_vector, axis=1) / length(VECTORS, axis=1)
    np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.mark.parametrize(("x", "q"), [([1, 2], [-2, -4]), ([0, 0], [1, 2]), ([1, 2], [0, 0])])
def test_without_a_rotation_the_gradient_goes_straight_through(x, q):
    upstream = np.array([0.3, -0.7], np.float32)
    value, to_vector, _ = pulled(rotate, np.float32(x), np.float32(q), upstream)
    np.testing.assert_array_equal(value, q)
    np.testing.assert_array_equal(to_vector, upstream)


def test_vectors_that_are_their_codewords_have_both_gradients_alike():
    _, to_vector, _ = pulled(rotate, VECTORS, VECTORS, UPSTREAM)
    np.testing.assert_allclose(to_vector, UPSTREAM, atol=1e-5)


def test_gumbel_weights_follow_the_formula_and_their_gradient_finite_differences():
    distances = jnp.asarray(GENERATOR.uniform(0, 3, (4, 6)), jnp.float32)
    noise = np.asarray(jax.random.gumbel(KEY, (4, 6)), np.float64)

    def slow(costs):
        logits = np.exp((noise - costs) / 0.7)
        return logits / logits.sum(1, keepdims=True)

    np.testing.assert_allclose(gumbel_weights(KEY, distances, 0.7), slow(distances), rtol=1e-5)
    mix = GENERATOR.normal(size=(4, 6))
    slope = jax.grad(lambda costs: jnp.sum(gumbel_weights(KEY, costs, 0.7) * mix))(distances)
    step = np.zeros((4, 6))
    step[2, 3] = 1e-6
    costs = np.asarray(distances, np.float64)
    difference = ((slow(costs + step) - slow(costs - step)) * mix).sum() / 2e-6
    np.testing.assert_allclose(slope[2, 3], difference, rtol=1e-3)


def test_a_cold_softmax_draws_codes_by_their_nearness_and_a_hot_one_mixes_evenly():
    distances = jnp.tile(jnp.array([0.0, 1.0, 2.0]), (4000, 1))
    cold = np.asarray(gumbel_weights(KEY, distances, 1e-4))
    share = np.exp([0.0, -1.0, -2.0])
    np.testing.assert_allclose(cold.mean(0), share / share.sum(), atol=0.02)
    assert (cold.max(1) > 0.99).mean() > 0.99
    np.testing.assert_allclose(gumbel_weights(KEY, distances, 1e6), 1 / 3, atol=1e-4)


def test_temperatures_fall_from_end_to_end():
    for annealing, middle in (("geometric", (2.0 * 0.5) ** 0.5), ("linear", 1.25)):
        got = [float(annealed(done, (2.0, 0.5), annealing)) for done in (0.0, 0.5, 1.0)]
        np.testing.assert_allclose(got, [2.0, middle, 0.5], rtol=1e-6)
