"""Gradient descent over arrays that fit a device: what encoders that learn have in common.

For small models and some hundred steps; what trains for days is `jaxrec.training`.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from jaxrec.tracking import Progress
from jaxrec.training.optimizers import Optimizer
from jaxrec.types import PyTree

_STEPS_PER_DISPATCH = 10
_TRACE_POINTS = 10


@runtime_checkable
class Learner(Protocol):
    """A hashable component that can be trained."""

    @property
    def optimizer(self) -> Optimizer:
        """What turns gradients into updates."""
        ...

    @property
    def steps(self) -> int:
        """Updates."""
        ...

    def loss(self, params: PyTree, data: PyTree, key: PRNGKeyArray) -> Float[Array, ""]:
        """Mean loss of the batch that the key draws from the data."""
        ...


def descend(
    learner: Learner, params: PyTree, data: PyTree, key: PRNGKeyArray
) -> tuple[PyTree, Float[np.ndarray, " s"]]:
    """Trains all its steps; step s draws with `fold_in(key, s)`.

    Args:
        learner: what is trained; a static argument of the compiled program.
        params: where it starts; given away.
        data: arrays that every step may read.
        key: of the batches.

    Returns:
        Parameters, and the loss of every step.

    Raises:
        ValueError: the loss is no longer finite.
    """
    name = type(learner).__name__
    moments = learner.optimizer.build(learner.steps).init(params)
    losses = []
    with Progress(learner.steps, name, unit="steps") as progress:
        for first in range(0, learner.steps, _STEPS_PER_DISPATCH):
            steps = jnp.arange(first, min(first + _STEPS_PER_DISPATCH, learner.steps))
            params, moments, now = _run(learner, params, moments, data, key, steps)
            losses.append(np.asarray(now))
            if not np.isfinite(losses[-1]).all():
                raise ValueError(
                    f"the loss of {name} is no longer finite after step {int(steps[-1])}; lower "
                    f"the learning rate of {learner.optimizer}, or clip its gradients."
                )
            progress.update(len(steps), loss=float(losses[-1][-1]))
    return params, np.concatenate(losses)


def stretches(losses: Float[np.ndarray, " s"]) -> list[float]:
    """Means over at most ten stretches of about equal length, for a report.

    >>> stretches(np.arange(20.0, dtype=np.float32))[:2]
    [0.5, 2.5]
    """
    parts = np.array_split(losses, min(_TRACE_POINTS, len(losses)))
    return [float(part.mean()) for part in parts]


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _run(
    learner: Learner, params: PyTree, moments: PyTree, data: PyTree, key: Array, steps: Array
) -> tuple[PyTree, PyTree, Array]:
    """Several updates in one dispatch; equal results however they are divided."""
    optimizer = learner.optimizer.build(learner.steps)

    def update(carry: tuple[PyTree, PyTree], step: Array) -> tuple[tuple[PyTree, PyTree], Array]:
        params, moments = carry
        step_key = jax.random.fold_in(key, step)
        loss, gradients = jax.value_and_grad(learner.loss)(params, data, step_key)
        changes, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, changes), moments), loss

    (params, moments), losses = jax.lax.scan(update, (params, moments), steps)
    return params, moments, losses
