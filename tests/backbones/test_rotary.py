"""Rotary positions against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.backbones.rotary import RopeScaling, rope_rotation, rotate


def test_rotation_turns_pairs_half_a_head_apart():
    x = jnp.array([1.0, 0.0, 0.0, 0.0]).reshape(1, 1, 1, 4)
    turned = rotate(x, rope_rotation(jnp.array([[1]], jnp.int32), 4, 1e4))
    np.testing.assert_allclose(turned[0, 0, 0], [np.cos(1), 0, np.sin(1), 0], atol=1e-6)
    second = jnp.array([0.0, 1.0, 0.0, 0.0]).reshape(1, 1, 1, 4)
    turned = rotate(second, rope_rotation(jnp.array([[50]], jnp.int32), 4, 1e4))
    np.testing.assert_allclose(turned[0, 0, 0], [0, np.cos(0.5), 0, np.sin(0.5)], atol=1e-6)


def test_rotated_products_depend_on_the_distance_only():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))

    def product(m, n):
        def at(p):
            return rope_rotation(jnp.array([[p]], jnp.int32), 16, 1e4)

        return float(jnp.sum(rotate(q, at(m)) * rotate(k, at(n))))

    pairs = [(3, 1), (52, 50), (102, 100)]
    values = [product(m, n) for m, n in pairs]
    np.testing.assert_allclose(values, values[0], atol=1e-4)
    assert abs(product(3, 2) - values[0]) > 1e-2


def test_scaling_slows_the_slow_pairs_only():
    scaling = RopeScaling(factor=8.0, low=1.0, high=4.0, original_length=100)
    turns = np.array([16.0, 4.0, 2.5, 1.0, 0.5])  # over the original context
    frequencies = jnp.asarray(turns * 2 * np.pi / 100, jnp.float32)
    # Half way between low and high, half of the frequency is slowed.
    expected = turns * np.array([1, 1, (1 + 1 / 8) / 2, 1 / 8, 1 / 8])
    np.testing.assert_allclose(scaling(frequencies) * 100 / (2 * np.pi), expected, rtol=1e-5)


def test_scaling_reaches_the_rotation():
    position = jnp.array([[1000]], jnp.int32)
    scaling = RopeScaling(factor=8.0, original_length=100)
    plain, slowed = (rope_rotation(position, 4, 1e4, each) for each in (None, scaling))
    np.testing.assert_array_equal(plain.cosine[..., 0], slowed.cosine[..., 0])  # 16 turns
    angles = 1000 * 0.01 / 8  # .16 turns: eight times slower
    np.testing.assert_allclose(slowed.sine[0, 0, 0, 1], np.sin(angles), rtol=1e-5)


@pytest.mark.parametrize("change", [{"factor": 0.5}, {"low": 4.0}, {"original_length": 0}])
def test_impossible_scaling_is_refused(change):
    with pytest.raises(ValueError, match="is impossible"):
        RopeScaling(**change)
