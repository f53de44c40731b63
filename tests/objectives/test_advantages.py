"""Advantages: definitions, affine invariance, and groups that have nothing to compare."""

import doctest
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.objectives import advantages
from jaxrec.objectives.advantages import (
    against,
    against_batch,
    as_given,
    group_normalised,
    leave_one_out,
    moved_baseline,
)

RNG = np.random.default_rng(0)
REWARDS = RNG.normal(size=(4, 5)).astype(np.float32)
SOME = np.array([[1], [0], [0], [1]]) * [1, 1, 0, 1, 0] > 0
SOME[0] = True
SOME[1] = [True] + [False] * 4
SOME[2] = False
VALID = jnp.asarray(SOME)
FILLED = jnp.where(VALID, REWARDS, jnp.nan)

scaled = {
    (ddof, epsilon): partial(group_normalised, ddof=ddof, epsilon=epsilon)
    for ddof, epsilon in ((0, 1e-4), (1, 0.0), (1, 0.5))
}
plain = partial(group_normalised, scale_by_std=False)


def by_group(function):
    """A row at a time, over the list of its valid rewards."""
    out = np.zeros(REWARDS.shape)
    for b, keep in enumerate(SOME):
        if keep.sum() >= 2:
            out[b, keep] = function(REWARDS[b, keep].astype(np.float64))
    return out


@pytest.mark.parametrize(("ddof", "epsilon"), list(scaled))
def test_normalised_by_the_group(ddof, epsilon):
    expected = by_group(lambda r: (r - r.mean()) / (r.std(ddof=ddof) + epsilon))
    found = scaled[ddof, epsilon](FILLED, VALID)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_the_degrees_of_freedom_change_the_scale():
    wide, narrow = scaled[0, 1e-4](FILLED[:1], VALID[:1]), scaled[1, 0.0](FILLED[:1], VALID[:1])
    np.testing.assert_allclose(wide, narrow * np.sqrt(5 / 4), rtol=1e-3)


def test_centred_and_leave_one_out():
    np.testing.assert_allclose(plain(FILLED, VALID), by_group(lambda r: r - r.mean()), atol=1e-6)

    def slow(r):
        return [x - np.delete(r, i).mean() for i, x in enumerate(r)]

    np.testing.assert_allclose(leave_one_out(FILLED, VALID), by_group(slow), rtol=1e-5, atol=1e-6)


def test_baselines_from_outside_the_group():
    expected = np.where(SOME, REWARDS - REWARDS[SOME].mean(), 0)
    np.testing.assert_allclose(against_batch(FILLED, VALID), expected, atol=1e-6)
    each = np.arange(4, dtype=np.float32)
    expected = np.where(SOME, REWARDS - each[:, None], 0)
    np.testing.assert_allclose(against(FILLED, VALID, jnp.asarray(each)), expected, rtol=1e-6)
    expected = np.where(SOME, REWARDS - 2.0, 0)
    np.testing.assert_allclose(against(FILLED, VALID, jnp.asarray(2.0)), expected, rtol=1e-6)
    np.testing.assert_array_equal(as_given(FILLED, VALID), np.where(SOME, REWARDS, 0))
    moved = moved_baseline(jnp.asarray(5.0), FILLED, VALID, 0.8)
    np.testing.assert_allclose(moved, 4 + 0.2 * REWARDS[SOME].mean(), rtol=1e-6)
    assert float(moved_baseline(jnp.asarray(5.0), FILLED, jnp.zeros_like(VALID), 0.8)) == 5


@pytest.mark.parametrize(("scale", "shift"), [(3.0, 0.0), (0.01, 5.0), (1.0, -1000.0)])
def test_affine_invariance(scale, shift):
    moved = scale * FILLED + shift
    found, expected = (scaled[1, 0.0](r, VALID) for r in (moved, FILLED))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-3)
    assert np.abs(expected).max() > 1
    for function in (plain, leave_one_out, against_batch):
        np.testing.assert_allclose(
            function(moved, VALID), scale * np.asarray(function(FILLED, VALID)), atol=1e-3
        )


@pytest.mark.parametrize("value", [1.1, 0.1, -0.7, 1e6, 3.3333333, 0.0])
def test_equal_rewards_give_exactly_nothing(value):
    """The rounded mean of five times 1.1 is not 1.1; divided by a tiny deviation it would be 1."""
    rewards = jnp.full((4, 5), value, jnp.float32)
    for function in (*scaled.values(), plain, leave_one_out, against_batch):
        np.testing.assert_array_equal(function(rewards, VALID), 0)


@pytest.mark.parametrize("function", [scaled[1, 0.0], scaled[0, 1e-4], plain, leave_one_out])
def test_a_group_of_one_valid_rollout_gives_nothing(function):
    found = np.asarray(function(FILLED, VALID))
    np.testing.assert_array_equal(found[1:3], 0)
    assert np.all(found[SOME & (SOME.sum(1) > 1)[:, None]] != 0)


def test_no_gradient_flows():
    functions = (
        plain,
        leave_one_out,
        against_batch,
        as_given,
        lambda r, v: against(r, v, jnp.ones(())),
    )
    for function in functions:
        slope = jax.grad(lambda r, function=function: jnp.sum(function(r, VALID) ** 2))(FILLED)
        np.testing.assert_array_equal(slope, 0)


def test_refuses_groups_of_one():
    one = FILLED[:, :1], VALID[:, :1]
    for function in (group_normalised, leave_one_out):
        with pytest.raises(ValueError, match="a group of 1 has nothing to be compared with"):
            function(*one)


def test_examples_in_the_documentation():
    result = doctest.testmod(advantages)
    assert result.attempted >= 11
    assert result.failed == 0
