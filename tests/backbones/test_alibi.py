"""Linear biases against the published slopes and a double loop."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.backbones.alibi import alibi_bias, alibi_slopes
from jaxrec.backbones.attention import attention


def test_slopes_are_the_published_ones():
    np.testing.assert_allclose(alibi_slopes(8), [2.0**-h for h in range(1, 9)])
    # 12 heads: those of 8, then every other one of 16
    np.testing.assert_allclose(alibi_slopes(12)[8:], [2.0 ** -(h + 0.5) for h in range(4)])
    assert alibi_slopes(1) == (2.0**-8,)
    with pytest.raises(ValueError, match="heads=0 must be at least 1"):
        alibi_slopes(0)


def test_bias_is_the_distance_times_the_slope():
    query, key = np.array([[5, 0, 9]]), np.array([[2, 5, 7, 30]])
    found = alibi_bias(jnp.asarray(query), jnp.asarray(key), 4)
    for head, slope in enumerate(alibi_slopes(4)):
        for i, q in enumerate(query[0]):
            for j, k in enumerate(key[0]):
                np.testing.assert_allclose(found[0, head, i, j], -slope * abs(q - k), rtol=1e-6)


def test_attention_prefers_what_is_near():
    """Equal keys: the shares are the softmax of the biases."""
    q, k = jnp.zeros((1, 1, 2, 4)), jnp.zeros((1, 5, 2, 4))
    v = jnp.broadcast_to(jnp.arange(5.0)[None, :, None, None], (1, 5, 2, 4))
    bias = alibi_bias(jnp.array([[4]]), jnp.arange(5)[None], 2)
    mixed = attention(q, k, v, bias=bias)
    for head, slope in enumerate(alibi_slopes(2)):
        shares = np.exp(-slope * np.arange(4, -1, -1))
        expected = (shares * np.arange(5)).sum() / shares.sum()
        np.testing.assert_allclose(mixed[0, 0, head], expected, rtol=1e-5)
