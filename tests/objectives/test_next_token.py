"""Next-token prediction: closed forms, masking, gradients."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxrec.objectives import next_token
from jaxrec.objectives.next_token import NextToken, code_losses, is_top_code, next_token_loss
from jaxrec.types import Events, Tables

SIZES = (6, 4, 3)


def draw(rows=2, time=5, seed=0):
    """Logits with illegal codes at -1e9, codes and weights (some of them 0)."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(rows, time, 3, 6)).astype(np.float32)
    codes = np.zeros((rows, time, 3), np.int32)
    for level, size in enumerate(SIZES):
        logits[..., level, size:] = -1e9
        codes[..., level] = random.integers(0, size, (rows, time))
    weight = random.integers(0, 3, (rows, time)).astype(np.float32) / 2
    return jnp.asarray(logits), jnp.asarray(codes), jnp.asarray(weight)


def reference(logits, codes, smoothing):
    """Cross-entropy with the smoothed target written out, in float64."""
    losses = np.zeros(codes.shape)
    for index in np.ndindex(codes.shape):
        size = SIZES[index[-1]]
        row = np.asarray(logits[index], np.float64)[:size]
        log_probability = row - np.log(np.exp(row).sum())
        target = np.full(size, smoothing / size)
        target[codes[index]] += 1 - smoothing
        losses[index] = -(target * log_probability).sum()
    return losses


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_equals_the_definition(reduction, smoothing):
    logits, codes, weight = draw()
    total, weights = next_token_loss(
        logits, codes, weight, label_smoothing=smoothing, level_reduction=reduction
    )
    losses = reference(np.asarray(logits), np.asarray(codes), smoothing)
    events = losses.sum(-1) if reduction == "sum" else losses.mean(-1)
    np.testing.assert_allclose(total, (events * np.asarray(weight)).sum(), rtol=1e-5)
    assert weights == weight.sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_log_probabilities_are_not_normalised_again(smoothing):
    """Levels that share their mass with other tokens pay for it: the shift comes back whole."""
    logits, codes, weight = draw()
    mass = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    options = {"label_smoothing": smoothing, "level_reduction": "sum"}
    whole, _ = next_token_loss(logits, codes, weight, **options)
    shifted, _ = next_token_loss(logits - mass - 0.5, codes, weight, normalised=True, **options)
    np.testing.assert_allclose(shifted - whole, 0.5 * 3 * weight.sum(), rtol=1e-4)
    item = jnp.arange(10, dtype=jnp.int32).reshape(2, 5)
    batch = Events(item, item, item, item, item, weight)
    for normalised in (True, False):
        objective = NextToken(smoothing, normalised=normalised)
        tables = Tables(codes.reshape(10, 3))
        loss, _, _ = objective(lambda *_: logits - mass, {}, tables, batch, None)
        np.testing.assert_allclose(loss, whole, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_uniform_model_pays_the_logarithm_of_every_size(smoothing):
    logits, codes, _ = draw()
    uniform = jnp.where(logits > -1e8, 2.5, logits)
    total, weight = next_token_loss(uniform, codes, jnp.ones((2, 5)), label_smoothing=smoothing)
    np.testing.assert_allclose(total / weight, np.log(SIZES).sum(), rtol=1e-6)


def test_weight_zero_is_the_same_as_absent():
    logits, codes, weight = draw()
    keep = np.array([True, False, True, True, False])
    masked = weight * jnp.asarray(keep, jnp.float32)
    ours = next_token_loss(logits, codes, masked)
    sliced = next_token_loss(logits[:, keep], codes[:, keep], weight[:, keep])
    np.testing.assert_allclose(ours, sliced, rtol=1e-6)
    slope = jax.grad(lambda z: next_token_loss(z, codes, masked)[0])(logits)
    assert np.all(np.asarray(slope)[:, ~keep] == 0.0)
    nothing = next_token_loss(logits, codes, 0 * weight)
    assert float(nothing[0]) == 0.0
    assert float(nothing[1]) == 0.0


def test_packing_rows_together_changes_nothing():
    logits, codes, weight = draw()
    packed = next_token_loss(*(x.reshape(1, 10, *x.shape[2:]) for x in (logits, codes, weight)))
    np.testing.assert_allclose(packed, next_token_loss(logits, codes, weight), rtol=1e-6)


def test_gradients():
    logits, codes, weight = draw()
    legal = np.asarray(logits) > -1e8

    def loss(numbers):
        filled = jnp.where(legal, numbers, -1e9)
        return next_token_loss(filled, codes, weight, label_smoothing=0.1)[0]

    start = jnp.where(legal, logits, 0.0)
    check_grads(loss, (start,), order=1, modes=["rev"], eps=1e-2, atol=1e-2, rtol=1e-2)
    slope = np.asarray(jax.grad(lambda z: next_token_loss(z, codes, weight)[0])(logits))
    assert np.all(slope[~legal] == 0.0)
    # d/dz = weight * (softmax - one hot)
    expected = np.asarray(jax.nn.softmax(logits) - jax.nn.one_hot(codes, 6))
    np.testing.assert_allclose(slope, expected * np.asarray(weight)[..., None, None], atol=1e-6)


def test_large_logits_stay_finite():
    logits = jnp.array([[1e4, -1e4, 0.0]])
    np.testing.assert_allclose(code_losses(logits, jnp.array([1], jnp.int32)), [2e4])
    assert np.all(np.isfinite(jax.grad(lambda z: code_losses(z, jnp.array([1]))[0])(logits)))


def test_top_code_is_argmax_with_ties_to_the_lowest():
    random = np.random.default_rng(0)
    logits = jnp.asarray(random.integers(0, 4, (200, 6)), jnp.float32)  # many ties
    codes = jnp.asarray(random.integers(0, 6, 200), jnp.int32)
    np.testing.assert_array_equal(is_top_code(logits, codes), jnp.argmax(logits, -1) == codes)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_component_gives_loss_and_metrics_per_level(smoothing):
    logits, codes, weight = draw()
    item = jnp.arange(10, dtype=jnp.int32).reshape(2, 5)
    zeros = jnp.zeros((2, 5), jnp.int32)
    batch = Events(item, zeros + 1, zeros, zeros, zeros, weight)
    tables = Tables(codes.reshape(10, 3))
    objective = NextToken(label_smoothing=smoothing, level_reduction="mean")
    given = {}

    def apply(*arguments):
        given["arguments"] = arguments
        return logits

    total, weights, metrics = objective(apply, {"w": 1}, tables, batch, None)
    assert given["arguments"] == ({"w": 1}, tables, batch, None)
    expected = next_token_loss(
        logits, codes, weight, label_smoothing=smoothing, level_reduction="mean"
    )
    np.testing.assert_allclose((total, weights), expected, rtol=1e-6)
    losses = reference(np.asarray(logits), np.asarray(codes), 0.0)
    assert len(metrics) == 6
    for level in range(3):
        value, divisor = metrics[f"loss_level_{level}"]
        np.testing.assert_allclose(value, (losses[..., level] * weight).sum(), rtol=1e-5)
        hits = np.argmax(logits[..., level, :], -1) == np.asarray(codes)[..., level]
        value, divisor = metrics[f"accuracy_level_{level}"]
        np.testing.assert_allclose(value, (hits * np.asarray(weight)).sum(), rtol=1e-6)
        assert divisor == weight.sum()


def test_logits_of_the_last_events_alone():
    """A network may answer for the last `m` columns only; the others then count for nothing."""
    logits, codes, weight = draw()
    item = jnp.arange(10, dtype=jnp.int32).reshape(2, 5)
    zeros = jnp.zeros((2, 5), jnp.int32)
    tables = Tables(codes.reshape(10, 3))

    def answer(logits, weight):
        batch = Events(item, zeros + 1, zeros, zeros, zeros, weight)
        return NextToken()(lambda *_: logits, None, tables, batch, None)

    last = weight * (jnp.arange(5) >= 3)
    jax.tree.map(
        lambda ours, expected: np.testing.assert_allclose(ours, expected, rtol=1e-6),
        answer(logits[:, 3:], weight),
        answer(logits, last),
    )


def test_metrics_carry_no_gradient():
    logits, codes, weight = draw()
    item = jnp.arange(10, dtype=jnp.int32).reshape(2, 5)
    batch = Events(item, item, item, item, item, weight)
    tables = Tables(codes.reshape(10, 3))

    def metric(z):
        return NextToken()(lambda *_: z, None, tables, batch, None)[2]["loss_level_0"][0]

    assert np.all(np.asarray(jax.grad(metric)(logits)) == 0.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing=1.0 must lie in \[0, 1\)"),
        ({"level_reduction": "max"}, "level_reduction='max' is unknown; choose one of sum, mean"),
    ],
)
def test_refuses_unknown_options(options, words):
    with pytest.raises(ValueError, match=words):
        NextToken(**options)
    with pytest.raises(ValueError, match=words):
        next_token_loss(*draw(), **options)


def test_examples_in_the_documentation():
    result = doctest.testmod(next_token)
    assert result.attempted >= 8
    assert result.failed == 0
