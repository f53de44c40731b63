"""The descent that encoders share, on a parabola whose every step is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.representation.descent import descend, stretches
from jaxrec.training.optimizers import AdamW


@dataclasses.dataclass(frozen=True)
class Parabola:
    """(x - goal)^2 with noise of the key; `rate` 0 stands still."""

    steps: int = 23
    rate: float = 0.1
    noise: float = 0.0

    @property
    def optimizer(self):
        # Decays near 1 would lose digits of float32 to the correction of their bias.
        return AdamW(
            self.rate,
            warmup_steps=0,
            schedule="constant",
            weight_decay=0.0,
            b1=0.5,
            b2=0.75,
            clip_norm=0.0,
        )

    def loss(self, params, data, key):
        return jnp.sum(jnp.square(params - data)) + self.noise * jax.random.normal(key)


def adam(x, goal, rate, steps):
    """Adam of Kingma and Ba, in plain numbers."""
    first = second = 0.0
    losses = []
    for step in range(1, steps + 1):
        losses.append(np.sum((x - goal) ** 2))
        slope = 2 * (x - goal)
        first = 0.5 * first + 0.5 * slope
        second = 0.75 * second + 0.25 * slope**2
        x = x - rate * (first / (1 - 0.5**step)) / (np.sqrt(second / (1 - 0.75**step)) + 1e-8)
    return x, losses


def test_all_steps_are_those_of_adam():
    goal = np.array([1.0, -2.0])
    found, losses = descend(Parabola(), jnp.zeros(2), jnp.asarray(goal), jax.random.key(0))
    expected, values = adam(np.zeros(2), goal, 0.1, 23)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(losses, values, rtol=1e-5)


def test_every_step_draws_with_its_own_key():
    key = jax.random.key(5)
    learner = Parabola(steps=12, rate=0.0, noise=1.0)
    _, losses = descend(learner, jnp.zeros(1), jnp.zeros(1), key)
    expected = [float(jax.random.normal(jax.random.fold_in(key, step))) for step in range(12)]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_a_loss_that_is_no_number_stops():
    with pytest.raises(ValueError, match=r"Parabola is no longer finite after step 9; lower"):
        descend(Parabola(), jnp.zeros(1), jnp.full(1, jnp.nan), jax.random.key(0))


def test_a_course_is_shortened_to_ten_means():
    assert stretches(np.arange(3.0, dtype=np.float32)) == [0.0, 1.0, 2.0]
    assert stretches(np.arange(40.0, dtype=np.float32))[-1] == 37.5
