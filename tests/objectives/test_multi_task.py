"""Multi-task cross-entropy: closed forms, a loop, missing labels, and its optimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxrec.objectives.multi_task import binary_losses, multi_task_loss

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(2, 5, 3)), jnp.float32)
LABELS = jnp.asarray(RNG.random((2, 5, 3)) < 0.4, jnp.float32)
KNOWN = jnp.asarray(RNG.random((2, 5, 3)) < 0.7)
TASKS = jnp.array([1.0, 0.25, 0.0])
WEIGHT = jnp.asarray(RNG.random((2, 5)), jnp.float32)
loss = jax.jit(multi_task_loss)
slope = jax.jit(jax.grad(lambda *arrays: multi_task_loss(*arrays)[0]))


def test_it_is_the_loop_over_labels():
    total = mass = 0.0
    logits, labels, known, tasks, weights = map(np.asarray, (LOGITS, LABELS, KNOWN, TASKS, WEIGHT))
    for place in np.ndindex(*logits.shape):
        if known[place]:
            weight = weights[place[:2]] * tasks[place[2]]
            p = 1 / (1 + np.exp(-np.float64(logits[place])))
            total -= weight * np.log(p if labels[place] else 1 - p)
            mass += weight
    found = loss(LOGITS, LABELS, KNOWN, TASKS, WEIGHT)
    np.testing.assert_allclose(found, (total, mass), rtol=1e-5)
    whole = loss(LOGITS, LABELS, KNOWN, TASKS, jnp.ones((2, 5)))
    np.testing.assert_allclose(loss(LOGITS, LABELS, KNOWN, TASKS), whole, rtol=1e-6)


def test_large_logits_are_exact():
    logits, labels = jnp.array([1e30, -1e30, 200.0, -200.0]), jnp.array([1.0, 0.0, 0.0, 1.0])
    np.testing.assert_array_equal(binary_losses(logits, labels), [0.0, 0.0, 200.0, 200.0])
    slopes = jax.jit(jax.grad(lambda z: binary_losses(z, labels).sum()))(logits)
    np.testing.assert_array_equal(slopes, [0.0, 0.0, 1.0, -1.0])


def test_what_is_unknown_or_without_weight_may_hold_anything():
    counts = KNOWN & (TASKS > 0)
    rubbish_labels = jnp.where(counts, LABELS, jnp.nan)
    rubbish_logits = jnp.where(counts, LOGITS, jnp.inf)
    expected = loss(LOGITS, LABELS, KNOWN, TASKS, WEIGHT)
    found = loss(rubbish_logits, rubbish_labels, KNOWN, TASKS, WEIGHT)
    np.testing.assert_array_equal(found, expected)
    slopes = np.asarray(slope(rubbish_logits, rubbish_labels, KNOWN, TASKS, WEIGHT))
    np.testing.assert_array_equal(slopes[~np.asarray(counts)], 0)
    assert np.all(slopes[np.asarray(counts)] != 0)
    nothing = loss(rubbish_logits, rubbish_labels, jnp.zeros_like(KNOWN), TASKS, WEIGHT)
    assert [float(each) for each in nothing] == [0.0, 0.0]


def test_the_slope_is_probability_minus_label():
    expected = (jax.nn.sigmoid(LOGITS) - LABELS) * KNOWN * TASKS * WEIGHT[..., None]
    np.testing.assert_allclose(slope(LOGITS, LABELS, KNOWN, TASKS, WEIGHT), expected, atol=1e-6)
    check_grads(
        lambda z: loss(z, LABELS, KNOWN, TASKS, WEIGHT)[0], (LOGITS,), order=1, modes=("rev",),
        atol=1e-2, rtol=1e-2,
    )  # fmt: skip


def test_the_optimum_of_one_logit_is_the_weighted_mean_rate():
    """P-Score: rates .8 and .2 of weights 3 and 1 give .65."""
    labels = jnp.stack([jnp.arange(10) < 8, jnp.arange(10) < 2], axis=-1).astype(jnp.float32)
    known, weights = jnp.ones((10, 2), bool), jnp.array([3.0, 1.0])

    def total(z):
        return multi_task_loss(jnp.full((10, 1), z), labels, known, weights)[0]

    best = np.log(0.65 / 0.35)
    assert float(jax.jit(jax.grad(total))(jnp.float32(best))) == pytest.approx(0, abs=1e-5)
    assert float(loss(jnp.zeros((10, 1)), labels, known, weights)[1]) == 40.0


def test_logistic_regression_finds_the_rates():
    """The closed form of a table of logits: the log-odds of each cell's mean label (O25)."""
    cell = jnp.asarray(RNG.integers(0, 3, 400))
    labels = jnp.asarray(RNG.random((400, 2)) < np.array([0.3, 0.7]), jnp.float32)
    known = jnp.asarray(RNG.random((400, 2)) < 0.8)

    @jax.jit
    def step(table):
        def mean(table):
            total, weight = multi_task_loss(table[cell], labels, known, jnp.ones(2))
            return total / weight

        return table - 5.0 * jax.grad(mean)(table)

    table = jnp.zeros((3, 2))
    for _ in range(200):
        table = step(table)
    for row, task in np.ndindex(3, 2):
        inside = np.asarray(known)[:, task] & (np.asarray(cell) == row)
        rate = np.asarray(labels[:, task])[inside].mean()
        assert float(jax.nn.sigmoid(table[row, task])) == pytest.approx(rate, abs=1e-4)
