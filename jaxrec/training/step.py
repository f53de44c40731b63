"""One training step as one compiled program: gradient, accumulation, guarded update.

The gradient is that of the *sum* of the loss, summed over micro-batches and divided once by the
whole weight, so the split into micro-batches does not change it. An update that would not be finite
is not made: the state keeps its last good value, and the report says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxrec.parallel import replicated, rows_sharding
from jaxrec.training.state import TrainState
from jaxrec.types import PyTree

LossFunction = Callable[..., tuple]
"""(params, tables, batch, key) -> (sum, weight, {name: (sum, weight)}); where the state keeps
copies of the parameters, these are one more argument `copies`, by name."""

LOAD = "expert_load"
"""Metric that a loss may report as a bare array, for `rebalance`; summed over micro-batches."""

Rebalance = Callable[[PyTree, Array], PyTree]
"""(parameters after an update, `LOAD` of the step) -> parameters, some moved without gradient."""

TrainStep = Callable[..., tuple[TrainState, "StepReport"]]
"""(state, tables, batch, key) -> (state, report), compiled, the state donated."""


@dataclasses.dataclass(frozen=True)
class Follow:
    """How a copy of the parameters follows them: a reference policy, or the one that draws.

    Raises:
        ValueError: a negative interval, or a share outside (0, 1].
    """

    every: int = 0
    """Steps after which the copy moves; 0 keeps it where training started."""
    mix: float = 1.0
    """Share of the parameters in what the copy becomes; the rest is the copy itself."""

    def __post_init__(self) -> None:
        if self.every < 0 or not 0 < self.mix <= 1:
            raise ValueError(
                f"Follow needs every >= 0 (0 never moves) and mix in (0, 1], got {self.every} and "
                f"{self.mix}."
            )

    def __call__(self, step: Array, copy: PyTree, params: PyTree) -> PyTree:
        """The copy after `step` steps."""
        if not self.every:
            return copy
        due = step % self.every == 0

        def follow(old: Array, new: Array) -> Array:
            # At a whole share the copy is the parameters to the bit.
            moved = new if self.mix == 1 else (1 - self.mix) * old + self.mix * new
            return jnp.where(due, moved.astype(old.dtype), old)

        return jax.tree.map(follow, copy, params)


class StepReport(NamedTuple):
    """What a call of the training step tells, on the device until somebody asks."""

    metrics: dict[str, tuple[Float[Array, ""], Float[Array, ""]]]
    """name -> (sum, weight) over the steps of the call: `loss`, the loss function's own, and
    `gradient_norm` before clipping."""
    finite: Bool[Array, " steps"]
    """Whether loss and gradient of each step were finite; where not, that update was not made."""


def make_train_step(
    loss: LossFunction,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    shardings: PyTree,
    microbatches: int = 1,
    steps_per_call: int = 1,
    rebalance: Rebalance | None = None,
    copies: Mapping[str, Follow] | None = None,
) -> Any:
    """Compiles (at its first call) `step(state, tables, batch, key) -> (state, StepReport)`.

    The state is donated. The key of a step is `fold_in(key, state.step)`, that of a micro-batch
    folds in its number, so a resumed run draws what an undisturbed one would. A step of weight zero
    changes nothing but the step number, and copies that are due.

    Args:
        loss: sums over its batch; see `LossFunction`.
        optimizer: the transformation.
        mesh: where it runs; networks that call `parallel.constrain` see it.
        shardings: of the state, from `state_shardings(abstract_state(...))`.
        microbatches: parts into which each batch is cut (row r goes to part r mod microbatches, so
            that rows stay on their device); the parts run one after another.
        steps_per_call: with more than 1, every array of a batch has a leading axis of steps (of
            any length), done in one dispatch.
        rebalance: moves parameters after each update by the `LOAD` that the loss reports.
        copies: how the state's copies of the parameters follow them, by name; the loss reads them.

    Raises:
        ValueError: a count is less than 1; while tracing: the rows do not divide into the
            micro-batches, or the loss reports a reserved metric name.
    """
    if microbatches < 1 or steps_per_call < 1:
        raise ValueError(
            f"microbatches and steps_per_call must be at least 1, got {microbatches} and "
            f"{steps_per_call}."
        )
    one = partial(_train_step, loss, optimizer, microbatches, rebalance, copies or {})

    def run(
        state: TrainState, tables: PyTree, batch: PyTree, key: PRNGKeyArray
    ) -> tuple[TrainState, StepReport]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            if steps_per_call == 1:
                state, metrics, finite = one(state, tables, batch, key)
                return state, StepReport(metrics, finite[None])
            state, (metrics, finite) = jax.lax.scan(
                lambda state, batch: _as_scan(one(state, tables, batch, key)), state, batch
            )
            return state, StepReport(jax.tree.map(lambda each: each.sum(0), metrics), finite)

    return jax.jit(run, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))


def lower_train_step(
    step: Any, state: PyTree, tables: PyTree, batch: PyTree, *, mesh: Mesh, stacked: bool = False
) -> Any:
    """Lowers a training step without any array, for a mesh of real or described devices.

    Args:
        step: from `make_train_step`.
        state: from `abstract_state`.
        tables: arrays or shapes; replicated.
        batch: arrays or shapes of the *global* batch.
        mesh: the mesh of both.
        stacked: whether the batch has a leading axis of steps.

    Returns:
        `jax.stages.Lowered`; its `compile()` tells memory and collectives.
    """

    def shaped(tree: PyTree, sharding: jax.sharding.Sharding) -> PyTree:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
        )

    key = jax.eval_shape(lambda: jax.random.key(0))
    return step.lower(
        state,
        shaped(tables, replicated(mesh)),
        shaped(batch, rows_sharding(mesh, int(stacked))),
        shaped(key, replicated(mesh)),
    )


def accumulate_gradients(
    loss: LossFunction,
    params: PyTree,
    tables: PyTree,
    batch: PyTree,
    key: PRNGKeyArray,
    microbatches: int = 1,
) -> tuple[PyTree, Float[Array, ""], Float[Array, ""], dict]:
    """Gradient of the mean loss of a batch, computed part by part.

    Args:
        loss: see `LossFunction`.
        params: parameters.
        tables: what the loss reads about items.
        batch: pytree whose arrays have rows on axis 0.
        key: each part gets `fold_in(key, part)`.
        microbatches: number of parts.

    Returns:
        (gradient of sum / weight, sum, weight, metrics); the gradient is zero where the weight is.

    Raises:
        ValueError: the rows do not divide into the parts.
    """

    def value(params: PyTree, part: PyTree, key: PRNGKeyArray) -> tuple[Array, tuple]:
        total, weight, metrics = loss(params, tables, part, key)
        return jnp.asarray(total, jnp.float32), (jnp.asarray(weight, jnp.float32), metrics)

    def gradient(number: Array | int, part: PyTree) -> PyTree:
        (total, (weight, metrics)), grads = jax.value_and_grad(value, has_aux=True)(
            params, part, jax.random.fold_in(key, number)
        )
        return grads, total, weight, metrics

    if microbatches == 1:
        grads, total, weight, metrics = gradient(0, batch)
    else:
        parts = _split_rows(batch, microbatches)
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(gradient, 0, jax.tree.map(lambda leaf: leaf[0], parts)),
        )
        (grads, total, weight, metrics), _ = jax.lax.scan(
            lambda sums, numbered: (jax.tree.map(jnp.add, sums, gradient(*numbered)), None),
            zeros,
            (jnp.arange(microbatches), parts),
        )
    inverse = jnp.where(weight > 0, 1.0 / jnp.where(weight > 0, weight, 1.0), 0.0)
    return jax.tree.map(lambda leaf: leaf * inverse, grads), total, weight, metrics


def _train_step(
    loss: LossFunction,
    optimizer: optax.GradientTransformation,
    microbatches: int,
    rebalance: Rebalance | None,
    copies: Mapping[str, Follow],
    state: TrainState,
    tables: PyTree,
    batch: PyTree,
    key: PRNGKeyArray,
) -> tuple[TrainState, dict, Array]:
    if copies:
        loss = partial(loss, copies=state.copies)
    grads, total, weight, metrics = accumulate_gradients(
        loss, state.params, tables, batch, jax.random.fold_in(key, state.step), microbatches
    )
    load = metrics.pop(LOAD, None)
    if reserved := {"loss", "gradient_norm"} & metrics.keys():
        raise ValueError(f"the loss may not report {sorted(reserved)}: the training step does.")
    norm = optax.tree.norm(grads)
    # One number tells of every element: any NaN or infinity in a gradient is in its norm.
    finite = jnp.isfinite(total) & jnp.isfinite(weight) & jnp.isfinite(norm)
    updates, optimizer_state = optimizer.update(grads, state.optimizer_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if rebalance is not None and load is not None:
        params = rebalance(params, load)
    # Adam's momentum would move the parameters even by a gradient of zero.
    good = finite & (weight > 0)
    keep = partial(jax.tree.map, lambda new, old: jnp.where(good, new, old))
    step, params = state.step + 1, keep(params, state.params)
    new = TrainState(
        step=step,
        params=params,
        optimizer_state=keep(optimizer_state, state.optimizer_state),
        copies={name: copies[name](step, copy, params) for name, copy in state.copies.items()},
    )
    one = jnp.ones((), jnp.float32)
    return new, {"loss": (total, weight), **metrics, "gradient_norm": (norm, one)}, finite


def _as_scan(result: tuple[TrainState, dict, Array]) -> tuple[TrainState, tuple[dict, Array]]:
    state, metrics, finite = result
    return state, (metrics, finite)


def _split_rows(batch: PyTree, parts: int) -> PyTree:
    def split(array: Array) -> Array:
        rows = array.shape[0]
        if rows % parts:
            raise ValueError(
                f"a batch of {rows} rows does not divide into {parts} micro-batches; change one."
            )
        return jnp.moveaxis(array.reshape(rows // parts, parts, *array.shape[1:]), 1, 0)

    return jax.tree.map(split, batch)
