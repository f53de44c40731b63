"""The grid of FSQ by hand: its bound, its bijection of codes and digits, its gradients."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.tokenization.fsq_grid import (
    bound,
    codes_of_digits,
    digits_of_codes,
    fsq_round,
    grid_values,
)


def slow_bound(scalar, values):
    half = (values - 1) * 1.001 / 2
    offset = 0.5 if values % 2 == 0 else 0.0
    return math.tanh(scalar + math.atanh(offset / half)) * half - offset


@pytest.mark.parametrize("values", [2, 3, 4, 5, 8, 255, 256])
def test_the_bound_reaches_every_value_of_the_grid_and_no_other(values):
    scalars = np.concatenate([np.linspace(-12, 12, 20_001), [-1e30, 1e30]]).astype(np.float32)
    bounded = bound(jnp.asarray(scalars)[:, None], (values,))[:, 0]
    expected = [slow_bound(float(scalar), values) for scalar in scalars]
    np.testing.assert_allclose(bounded, expected, atol=2e-5 * values)
    rounded = np.unique(np.asarray(fsq_round(bounded)))
    # Even numbers of values are not symmetric: of 8 they are -4 .. 3.
    np.testing.assert_array_equal(rounded, np.arange(values) - values // 2)
    assert abs(float(bound(jnp.zeros((1, 1)), (values,))[0, 0])) < 1e-4
    normalised = np.asarray(grid_values(jnp.arange(values)[:, None], (values,)))[:, 0]
    np.testing.assert_allclose(normalised, rounded / (values // 2), rtol=1e-6)
    assert normalised[0] == -1.0
    assert normalised[-1] <= 1.0


def test_every_scalar_has_its_own_number_of_values():
    scalars = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 3)), jnp.float32)
    together = bound(scalars, (8, 5, 2))
    for place, values in enumerate((8, 5, 2)):
        alone = bound(scalars[..., place : place + 1], (values,))[..., 0]
        np.testing.assert_array_equal(together[..., place], alone)


def test_halves_go_to_the_lower_value():
    halves = jnp.asarray([-1.5, -0.5, 0.5, 1.5, -0.4, 0.4])
    np.testing.assert_array_equal(fsq_round(halves), [-2, -1, 0, 1, 0, 0])
    assert not np.signbit(np.asarray(fsq_round(jnp.asarray([-0.4, -0.0])))).any()


@pytest.mark.parametrize("grid", [(8, 8, 8, 6, 5), (2,), (3, 7, 2, 4)])
def test_codes_and_digits_are_a_bijection(grid):
    codes = jnp.arange(math.prod(grid))
    digits = digits_of_codes(codes, grid)
    np.testing.assert_array_equal(codes_of_digits(digits, grid), codes)
    # The first digit counts units, so the last one is the slowest.
    slowest_first = itertools.product(*(range(values) for values in grid[::-1]))
    np.testing.assert_array_equal(digits, [each[::-1] for each in slowest_first])


def test_the_gradient_passes_the_rounding_and_is_that_of_the_bound():
    scalars = jnp.asarray(np.random.default_rng(1).normal(size=(6, 3)), jnp.float32)
    inside = jnp.asarray([-1.7, 0.2, 1.4])
    np.testing.assert_array_equal(jax.grad(lambda y: fsq_round(y).sum())(inside), np.ones(3))
    gradient = jax.grad(lambda z: fsq_round(bound(z, (8, 5, 2))).sum())(scalars)
    for place, values in enumerate((8, 5, 2)):
        for row in range(6):
            scalar, step = float(scalars[row, place]), 1e-5
            rise = slow_bound(scalar + step, values) - slow_bound(scalar - step, values)
            np.testing.assert_allclose(gradient[row, place], rise / (2 * step), rtol=1e-3)
