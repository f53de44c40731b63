"""What a training step carries: step number, parameters, optimizer state, all sharded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from jaxrec.parallel import replicated, shardings
from jaxrec.types import PyTree

Init = Callable[[PRNGKeyArray], PyTree]
"""key -> parameters."""

Start = Callable[[PRNGKeyArray, PyTree], PyTree]
"""(key, shardings of the parameters) -> parameters that exist already, laid out so."""


@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of training between two steps.

    Its fields are not typed more narrowly because the same class also holds the shapes and the
    shardings of a state.
    """

    step: PyTree
    """int32[], steps done."""
    params: PyTree
    """Parameters, float32."""
    optimizer_state: PyTree
    """State of the optax transformation."""
    copies: PyTree = dataclasses.field(default_factory=dict)
    """Copies of the parameters by name, that follow them now and then; see `step.Follow`."""


def abstract_state(
    init: Init,
    optimizer: optax.GradientTransformation,
    axes: PyTree,
    mesh: Mesh,
    copies: Iterable[str] = (),
) -> PyTree:
    """Shapes, dtypes and shardings of the train state; computes and allocates nothing.

    A moment of the optimizer lies on the mesh like its parameter; counters are replicated.

    Args:
        init: makes the parameters.
        optimizer: the transformation.
        axes: tree of the parameters with a tuple of logical axis names at each leaf.
        mesh: real devices, or those of a described topology.
        copies: names of the copies of the parameters, which lie as these do.

    Returns:
        `TrainState` of `jax.ShapeDtypeStruct`.

    Raises:
        ValueError: `axes` is not the tree of the parameters.
    """
    params = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
    _check_axes(params, axes)
    state = jax.eval_shape(optimizer.init, params)
    param_shardings = shardings(axes, params, mesh)
    everywhere = replicated(mesh)
    placed = optax.tree_map_params(
        optimizer,
        _place,
        state,
        param_shardings,
        transform_non_params=lambda leaf: _place(leaf, everywhere),
    )
    laid = jax.tree.map(_place, params, param_shardings)
    return TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere),
        params=laid,
        optimizer_state=placed,
        copies=dict.fromkeys(copies, laid),
    )


def create_state(
    init: Init,
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
    abstract: PyTree,
    start: Start | None = None,
) -> TrainState:
    """Initialises the state where it belongs; no device ever holds the whole of it.

    Args:
        init: makes the parameters.
        optimizer: the transformation.
        key: equal keys give equal parameters on every mesh.
        abstract: what `abstract_state` returned.
        start: gives the parameters instead of `init`: those of a network that was trained before.
    """
    wanted = state_shardings(abstract)

    def complete(params: PyTree) -> TrainState:
        # Arrays of their own: those of the state are given up to the step that makes the next one.
        copies = {name: jax.tree.map(jnp.copy, params) for name in abstract.copies}
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), copies)

    if start is None:
        return jax.jit(lambda key: complete(init(key)), out_shardings=wanted)(key)
    # An argument and not a constant of the program, which would hold the parameters twice.
    return jax.jit(complete, out_shardings=wanted)(start(key, wanted.params))


def state_shardings(abstract: PyTree) -> PyTree:
    """The shardings in a tree of `jax.ShapeDtypeStruct`."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def _place(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_axes(params: PyTree, axes: PyTree) -> None:
    is_axes = lambda node: isinstance(node, tuple)  # noqa: E731
    flat = {
        jax.tree_util.keystr(path): names
        for path, names in jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_axes)
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        if len(flat.pop(name, ())) != len(leaf.shape):
            raise ValueError(
                f"parameter {name} of shape {leaf.shape} needs one logical axis name (or None) per "
                "axis in `axes`; give the tree that the backbone's axes() returns."
            )
    if flat:
        raise ValueError(f"`axes` names {', '.join(flat)}, which are no parameters; remove them.")
