"""Attention against a numpy reference, with and without a cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxrec.backbones.attention import attention, shared_history_attention


def reference(q, k, v, mask, bias):
    """The definition, one query head and one query at a time."""
    batch, time, heads, size = q.shape
    out = np.zeros_like(q)
    for b in range(batch):
        for h in range(heads):
            g = h // (heads // k.shape[2])
            for t in range(time):
                seen = np.flatnonzero(mask[b, 0, t])
                if len(seen) == 0:
                    continue
                scores = k[b, seen, g] @ q[b, t, h] / np.sqrt(size) + bias[0, h, t, seen]
                shares = np.exp(scores - scores.max())
                out[b, t, h] = (shares / shares.sum()) @ v[b, seen, g]
    return out


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def inputs():
    q, k, v = draw(2, 5, 4, 6), draw(2, 7, 2, 6, seed=1), draw(2, 7, 2, 6, seed=2)
    mask = np.random.default_rng(3).random((2, 1, 5, 7)) < 0.6
    mask[1, 0, 2] = False  # a query that sees nothing
    return q, k, v, mask, draw(1, 4, 5, 7, seed=4)


def test_equals_the_definition_with_grouped_heads_mask_and_bias(inputs):
    q, k, v, mask, bias = inputs
    ours = attention(*map(jnp.asarray, (q, k, v)), mask=jnp.asarray(mask), bias=jnp.asarray(bias))
    np.testing.assert_allclose(ours, reference(*inputs), atol=1e-5)
    assert np.all(np.asarray(ours)[1, 2] == 0.0)


def test_gradient_is_finite_where_a_query_sees_nothing(inputs):
    q, k, v, mask, bias = map(jnp.asarray, inputs)

    def loss(*arrays):
        q, k, v, bias = map(jnp.asarray, arrays)  # check_grads perturbs in numpy
        return jnp.sum(jnp.sin(attention(q, k, v, mask=mask, bias=bias)))

    check_grads(loss, (q, k, v, bias), order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-2)
    slope = jax.grad(loss)(q, k, v, bias)
    assert np.all(np.asarray(slope)[1, 2] == 0.0)


def test_softmax_is_float32_for_16_bit_inputs(inputs):
    q, k, v, mask, bias = inputs
    short = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    ours = attention(*short, mask=jnp.asarray(mask), bias=jnp.asarray(bias))
    assert ours.dtype == jnp.bfloat16
    exact = reference(*[np.asarray(x, np.float32) for x in short], mask, bias)
    # bfloat16 keeps 8 bits: shares, values and sums round at 2^-8 of numbers around 1.
    np.testing.assert_allclose(np.asarray(ours, np.float32), exact, atol=0.03)


def test_beams_share_a_history_exactly_as_if_it_were_copied():
    q = draw(2, 3, 4, 6)
    keys, values = draw(2, 5, 2, 6, seed=1), draw(2, 5, 2, 6, seed=2)
    own_keys, own_values = draw(2, 3, 4, 2, 6, seed=3), draw(2, 3, 4, 2, 6, seed=4)
    key_mask = np.array([[True, True, True, False, False], [True] * 5])
    filled = np.array([True, True, False, False])
    ours = shared_history_attention(
        *map(jnp.asarray, (q, keys, values, key_mask, own_keys, own_values, filled))
    )
    for beam in range(3):
        all_keys = np.concatenate([keys, own_keys[:, beam]], axis=1)
        all_values = np.concatenate([values, own_values[:, beam]], axis=1)
        mask = np.concatenate([key_mask, np.tile(filled, (2, 1))], axis=1)[:, None, None]
        expected = reference(
            q[:, beam : beam + 1], all_keys, all_values, mask, np.zeros((1, 4, 1, 9))
        )
        np.testing.assert_allclose(ours[:, beam : beam + 1], expected, atol=1e-5)


def test_a_beam_without_any_key_gets_zero():
    q, keys, own = draw(1, 2, 2, 4), draw(1, 3, 2, 4), draw(1, 2, 1, 2, 4)
    nothing = jnp.zeros((1, 3), bool), jnp.zeros(1, bool)
    out = shared_history_attention(
        *map(jnp.asarray, (q, keys, keys)),
        nothing[0],
        jnp.asarray(own),
        jnp.asarray(own),
        nothing[1],
    )
    assert np.all(np.asarray(out) == 0.0)


def test_refuses_what_it_cannot_do(inputs):
    q, k, v, *_ = map(jnp.asarray, inputs)
    with pytest.raises(ValueError, match="choose one of xla, cudnn, splash"):
        attention(q, k, v, implementation="flash")
    with pytest.raises(ValueError, match="must divide"):
        attention(q[:, :, :3], k, v)
