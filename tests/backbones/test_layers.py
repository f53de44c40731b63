"""The layers against closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.backbones.layers import Stack, draw_kept, drop, project, rms_norm

STACK = Stack(layers=2, width=8, heads=4, kv_heads=2, head_size=2, feedforward=16)


def test_rms_norm_by_hand():
    x = jnp.array([[3.0, 4.0]])  # root mean square sqrt(12.5)
    expected = np.array([[3.0, 8.0]]) / np.sqrt(12.5)
    np.testing.assert_allclose(rms_norm(x, jnp.array([1.0, 2.0])), expected, rtol=1e-6)
    assert np.all(np.asarray(rms_norm(jnp.zeros((1, 2)), jnp.ones(2))) == 0.0)


def test_dropout_keeps_the_mean_and_its_share():
    shape = (64, 250)  # 250 is no multiple of the four draws in a word
    kept = draw_kept(jax.random.key(0), shape, 0.25)
    out = np.asarray(drop(jnp.ones(shape), kept, 0.25))
    assert set(np.unique(out)) == {0.0, np.float32(256 / 192)}
    assert abs((out == 0).mean() - 0.25) < 0.015  # 4 standard deviations of 16,000 draws
    np.testing.assert_array_equal(kept, draw_kept(jax.random.key(0), shape, 0.25))
    assert np.any(np.asarray(kept) != np.asarray(draw_kept(jax.random.key(1), shape, 0.25)))


def test_dropout_draws_are_independent_within_a_word():
    kept = np.asarray(draw_kept(jax.random.key(0), (4096, 8), 0.5))
    correlation = np.corrcoef(kept.T) - np.eye(8)
    assert np.abs(correlation).max() < 0.08  # 5 standard deviations of 4,096 draws


def test_dropout_broadcasts_a_smaller_draw():
    kept = draw_kept(jax.random.key(0), (5, 8), 0.5)
    out = np.asarray(drop(jnp.ones((3, 5, 8)), kept, 0.5))
    np.testing.assert_array_equal(out[0], out[2])
    assert 0 < (out == 0).mean() < 1
    np.testing.assert_array_equal(drop(jnp.ones((2, 4)), None, 0.5), 1.0)


def test_project_equals_einsum():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4))
    kernel = jax.random.normal(jax.random.key(1), (4, 5, 6))
    np.testing.assert_allclose(
        project(x, kernel), jnp.einsum("btd,dhk->bthk", x, kernel), atol=1e-5
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kv_heads": 3}, "kv_heads=3 must divide heads=4"),
        ({"head_size": 3}, "choose width / heads even"),
        ({"layers": 0}, "layers=0 must be at least 1"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"rope_base": 1.0}, "rope_base"),
        ({"dtype": "float16"}, "choose one of float32, bfloat16"),
        ({"attention": "flash"}, "choose one of xla, cudnn"),
    ],
)
def test_stack_refuses_impossible_shapes(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(STACK, **change)
