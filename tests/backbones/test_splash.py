"""The splash kernel, interpreted, against attention by definition; and that it lowers for TPUs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.backbones.attention import attention
from jaxrec.backbones.splash import splash_attention
from jaxrec.parallel import MeshShape, make_mesh

TOKENS = 256


@pytest.fixture(scope="module")
def inputs():
    """Four rows of two or three histories each and some padding, grouped queries."""
    random = np.random.default_rng(0)

    def draw(heads):
        return jnp.asarray(random.normal(size=(4, TOKENS, heads, 16)), jnp.float32)

    segment = np.sort(random.integers(0, 3, (4, TOKENS)), axis=1)[:, ::-1]
    place = np.arange(TOKENS)
    mask = (segment[:, :, None] == segment[:, None]) & (segment[:, None] > 0)
    mask &= place[:, None] >= place
    assert not mask.any(axis=-1).all()  # padding sees nothing
    return draw(4), draw(2), draw(2), jnp.asarray(mask[:, None])


@functools.partial(jax.jit, static_argnames="attend")
def value_and_slopes(q, k, v, mask, attend):
    sees = jnp.any(mask, axis=-1).swapaxes(1, 2)[..., None]

    def loss(q, k, v):
        return jnp.sum(jnp.where(sees, jnp.sin(attend(q, k, v, mask)), 0.0))

    return jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)


def by_definition(q, k, v, mask):
    return attention(q, k, v, mask=mask)


interpreted = functools.partial(splash_attention, interpret=True)


def test_equals_attention_and_its_slopes(inputs):
    ours = value_and_slopes(*inputs, attend=interpreted)
    expected = value_and_slopes(*inputs, attend=by_definition)
    np.testing.assert_allclose(ours[0], expected[0], rtol=1e-5)
    for one, other in zip(ours[1], expected[1]):
        np.testing.assert_allclose(one, other, atol=2e-5)
    assert np.abs(expected[1][2]).max() > 0.1


def test_every_device_runs_its_own_rows_and_heads(inputs):
    alone = jax.jit(interpreted)(*inputs)
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        spread = jax.jit(interpreted)(*inputs)
    assert len(spread.sharding.device_set) == 8
    sees = np.asarray(inputs[3].any(axis=-1))[:, 0]
    np.testing.assert_allclose(np.asarray(spread)[sees], np.asarray(alone)[sees], atol=1e-6)


def test_attention_lowers_to_the_kernel_for_tpus(inputs):
    q, k, v, mask = inputs
    call = jax.jit(lambda q, k, v: attention(q, k, v, mask=mask, implementation="splash"))
    assert "tpu_custom_call" in jax.export.export(call, platforms=["tpu"])(q, k, v).mlir_module()


def test_refuses_what_it_cannot_do(inputs):
    q, k, v, mask = inputs
    with pytest.raises(ValueError, match="blocks of 128 tokens, got rows of 200"):
        splash_attention(q[:, :200], k[:, :200], v[:, :200], mask[..., :200, :200])
    for more in ({}, {"mask": mask, "bias": jnp.zeros((1, 1, TOKENS, TOKENS))}):
        with pytest.raises(ValueError, match="needs a mask and knows no bias"):
            attention(q, k, v, implementation="splash", **more)
