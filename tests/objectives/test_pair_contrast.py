"""The contrast of pairs: closed forms, a loop over rows, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxrec.objectives.pair_contrast import pair_contrast

RNG = np.random.default_rng(0)
APART = jnp.arange(6, dtype=jnp.int32), jnp.arange(6, 12, dtype=jnp.int32)
contrast = jax.jit(pair_contrast)
ANCHORS = jnp.asarray(RNG.normal(size=(6, 6)), jnp.float32)
PARTNERS = jnp.asarray(RNG.normal(size=(6, 6)), jnp.float32)


def slow(anchors, partners, anchor_ids, partner_ids, temperature, weight):
    """Row by row, with the negatives of each row listed."""
    total = 0.0
    for i in range(len(anchors)):
        negatives = [
            j
            for j in range(len(anchors))
            if weight[j] > 0
            and partner_ids[j] != partner_ids[i]
            and partner_ids[j] != anchor_ids[i]
            and anchor_ids[j] != anchor_ids[i]
        ]
        if not weight[i]:
            continue
        z = np.asarray(anchors[i], np.float64)
        cosines = {}
        for j in [i, *negatives]:
            p = np.asarray(partners[j], np.float64)
            cosines[j] = z @ p / np.linalg.norm(z) / np.linalg.norm(p)
        mass = sum(np.exp(cosine / temperature) for cosine in cosines.values())
        total += weight[i] * (np.log(mass) - cosines[i] / temperature)
    return total


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_an_aligned_orthogonal_batch_has_a_closed_form(temperature):
    lengths = jnp.asarray([[1.0], [2.0], [0.1], [30.0], [5.0], [1.0]])
    total, weight = contrast(jnp.eye(6) * lengths, jnp.eye(6), *APART, temperature)
    expected = np.log1p(5 * np.exp(-1 / temperature))
    np.testing.assert_allclose(total / weight, expected, rtol=1e-4, atol=1e-7)
    assert float(weight) == 6.0


def test_a_hot_batch_knows_nothing():
    total, weight = contrast(ANCHORS, PARTNERS, *APART, 1e6)
    np.testing.assert_allclose(total / weight, np.log(6), rtol=1e-5)


def test_it_is_the_loop_with_repeated_items_and_weights():
    anchor_ids = jnp.asarray([0, 0, 1, 2, 5, 7], jnp.int32)
    partner_ids = jnp.asarray([3, 4, 3, 0, 6, 9], jnp.int32)
    for weight in ([1.0] * 6, [1.0, 0.5, 2.0, 0.0, 1.0, 0.0]):
        found, mass = contrast(ANCHORS, PARTNERS, anchor_ids, partner_ids, 0.3, jnp.asarray(weight))
        ids = np.asarray(anchor_ids), np.asarray(partner_ids)
        np.testing.assert_allclose(
            found, slow(ANCHORS, PARTNERS, *ids, 0.3, np.array(weight)), rtol=1e-5
        )
        assert float(mass) == sum(weight)
    # Told apart from nothing, a pair costs nothing.
    same = jnp.zeros(6, jnp.int32)
    nothing = contrast(ANCHORS, PARTNERS, same, same + 1, 0.3)[0]
    np.testing.assert_allclose(nothing, 0, atol=1e-6)


def test_rows_without_weight_may_hold_anything():
    weight = jnp.asarray([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    short = tuple(each[:4] for each in (ANCHORS, PARTNERS, *APART))
    alone = jax.jit(jax.value_and_grad(lambda a: pair_contrast(a, *short[1:], 0.2)[0]))
    expected, slope = alone(short[0])
    padding = jnp.asarray([[0.0] * 6, [1e30] * 6])
    anchors = jnp.concatenate([short[0], padding])
    partners = jnp.concatenate([short[1], padding])
    filled = jax.jit(
        jax.value_and_grad(lambda a: pair_contrast(a, partners, *APART, 0.2, weight)[0])
    )
    found, padded = filled(anchors)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(padded[:4], slope, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(padded[4:], 0)


def test_the_gradient_is_that_of_finite_differences():
    ids = jnp.asarray([0, 0, 1, 2, 5, 7], jnp.int32), jnp.asarray([3, 4, 3, 0, 6, 9], jnp.int32)
    loss = jax.jit(lambda a, p: pair_contrast(a, p, *ids, 0.5)[0])
    check_grads(
        loss,
        (ANCHORS, PARTNERS),
        order=1,
        modes=("rev",),
        atol=1e-2,
        rtol=1e-2,
    )
    zero = jax.grad(loss)(jnp.zeros((6, 6)), PARTNERS)
    assert np.isfinite(zero).all()
