"""The loss of texts: against the whole softmax, whatever the stretch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.backbones.language_model import TextStates
from jaxrec.objectives.response_tokens import ResponseTokens, token_losses
from jaxrec.types import Tables, TextBatch

ROWS, TIME, WIDTH, VOCABULARY = 2, 7, 3, 11
KEYS = jax.random.split(jax.random.key(0), 4)
STATES = jax.random.normal(KEYS[0], (ROWS, TIME, WIDTH))
KERNEL = jax.random.normal(KEYS[1], (WIDTH, VOCABULARY))
TARGETS = jax.random.randint(KEYS[2], (ROWS, TIME), 0, VOCABULARY)


def reference(states, kernel, targets):
    logits = np.asarray(states, np.float64) @ np.asarray(kernel, np.float64)
    normaliser = np.log(np.exp(logits).sum(-1))
    losses = normaliser - np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0]
    return losses, logits.argmax(-1) == np.asarray(targets)


@pytest.mark.parametrize("logits", [1, 2 * ROWS * VOCABULARY, 10**6])
def test_every_stretch_gives_the_loss_of_the_whole(logits):
    losses, hits = token_losses(STATES, KERNEL, TARGETS, logits=logits)
    expected, first = reference(STATES, KERNEL, TARGETS)
    np.testing.assert_allclose(losses, expected, atol=1e-5)
    np.testing.assert_array_equal(hits, first)
    weight = jnp.arange(ROWS * TIME, dtype=jnp.float32).reshape(ROWS, TIME)

    def total(kernel, logits):
        return jnp.sum(token_losses(STATES, kernel, TARGETS, logits=logits)[0] * weight)

    slope, whole = jax.grad(total)(KERNEL, logits), jax.grad(total)(KERNEL, 10**9)
    np.testing.assert_allclose(slope, whole, atol=1e-4)


def test_the_logits_never_exist_together():
    states, kernel = jnp.zeros((4, 512, 8)), jnp.zeros((8, 2048))
    targets = jnp.zeros((4, 512), jnp.int32)

    def memory(logits):
        def total(kernel):
            return token_losses(states, kernel, targets, logits=logits)[0].sum()

        compiled = jax.jit(jax.grad(total)).lower(kernel).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(2**16) < memory(2**23) / 10


def test_only_answers_are_learnt_and_told_apart():
    item = np.array([[-1, -1, 4, 4, -1, -1, -1], [-1, 2, 2, -1, -1, -1, -1]], np.int32)
    weight = np.zeros((ROWS, TIME), np.float32)
    weight[0, 2:5], weight[1, 2:4] = 1.0, 2.0
    zeros = jnp.zeros((ROWS, TIME), jnp.int32)
    batch = TextBatch(zeros, jnp.asarray(item), zeros + 1, zeros, jnp.asarray(weight))

    def apply(params, tables, batch, key):
        return TextStates(STATES, KERNEL, TARGETS)

    tables = Tables(jnp.zeros((5, 2), jnp.int32))
    total, count, metrics = ResponseTokens()(apply, None, tables, batch, None)
    expected, first = reference(STATES[:, :-1], KERNEL, TARGETS[:, 1:])
    np.testing.assert_allclose(total, (expected * weight[:, 1:]).sum(), rtol=1e-5)
    assert count == 7
    codes = item[:, 1:] >= 0
    for name, mask in (("codes", codes), ("text", ~codes)):
        of_kind = weight[:, 1:] * mask
        assert of_kind.sum() in (4, 3)
        found = metrics[f"loss_{name}"]
        np.testing.assert_allclose(found[0], (expected * of_kind).sum(), rtol=1e-5)
        assert found[1] == of_kind.sum()
        assert metrics[f"accuracy_{name}"][0] == (first * of_kind).sum()
    unlearnt = dataclasses.replace(batch, weight=batch.weight * 0)
    assert ResponseTokens()(apply, None, tables, unlearnt, None)[0] == 0


def test_nothing_at_a_time_is_refused():
    with pytest.raises(ValueError, match="logits=0 must be positive"):
        ResponseTokens(logits=0)
