"""What all retrievers share: one vector an item, one state an event, and the question "what next".

The Retriever contract, obeyed by `SasRec`, `Bert4Rec`, `Gru4Rec` and `Caser`; the token space is
that of sparse item ids (`jaxrec.tokenization.ItemIds`), one code an item:

- `init(key, space)`, `axes(space)`, `parameters(space)`, `flops(space, rows, length)`;
- `forward(params, tables, batch, space, key=None) -> (states [b t d], item vectors [n d])`: the
  state at an event predicts that event, which it knows nothing about;
- `user_vectors(params, tables, batch, space) -> [b d]`: the state that predicts what comes after
  each history; `item_vectors(params, tables, space) -> [n d]`. Scores are their inner products.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.backbones.layers import logical_axes, unbox
from jaxrec.types import Events, PyTree, TokenSpace


def num_items(space: TokenSpace) -> int:
    """Size of the catalogue that a space of sparse item ids stands for.

    Raises:
        ValueError: the space has several levels, so its codes are not items.
    """
    if space.levels != 1:
        raise ValueError(
            f"a retriever reads sparse item ids, and this token space has {space.levels} levels of "
            f"{space.sizes} codes; use tokenizer=ItemIds() and items=NoVectors()."
        )
    return space.sizes[0]


def ask_next(batch: Events, query: int) -> tuple[Events, Array]:
    """Histories with one more event, the one that is asked for.

    Args:
        batch: one history a row, padded on the right; an empty row is an unknown user.
        query: item number that stands at the event that is asked for.

    Returns:
        Events one column wider, and the column of each row's question.
    """
    asked = jnp.sum(batch.segment > 0, axis=1, dtype=jnp.int32)
    columns = jnp.arange(batch.item.shape[1] + 1, dtype=jnp.int32)
    inside = (columns <= asked[:, None]).astype(jnp.int32)
    # An empty history has no first event; what stands in its padding means nothing.
    first = jnp.where(asked[:, None] > 0, batch.position[:, :1], 0)

    def widen(array: Array) -> Array:
        return jnp.pad(array, ((0, 0), (0, 1)))

    wide = jax.tree.map(widen, batch)
    return (
        dataclasses.replace(
            wide,
            item=jnp.where(columns == asked[:, None], query, wide.item),
            segment=inside,
            position=(first + columns) * inside,
        ),
        asked,
    )


def state_after(
    states: Callable[[Events], Float[Array, "b t d"]], batch: Events, query: int
) -> Float[Array, "b d"]:
    """The state that predicts what comes after each history."""
    wide, asked = ask_next(batch, query)
    return jnp.take_along_axis(states(wide), asked[:, None, None], axis=1)[:, 0]


@functools.partial(jax.jit, static_argnames=("network", "space"))
def initial_parameters(network: Any, key: Array, space: TokenSpace) -> PyTree:
    """Random parameters of the modules that `network.modules(space)` names, float32.

    Compiled, so that the arithmetic of the modules, whose results nobody reads, is dropped.
    """
    return unbox(boxed_parameters(network.modules(space), key))


def boxed_parameters(
    modules: Mapping[str, tuple[nn.Module, tuple[Any, ...]]], key: Array
) -> PyTree:
    """Initialises every module on the smallest inputs it takes; parameters carry axis names."""
    keys = jax.random.split(key, len(modules))
    return {
        name: module.init(module_key, *inputs)["params"]
        for module_key, (name, (module, inputs)) in zip(keys, sorted(modules.items()))
    }


def parameter_axes(network: Any, space: TokenSpace) -> PyTree:
    """Logical axis names of every parameter of a network."""
    modules = network.modules(space)
    return logical_axes(jax.eval_shape(lambda: boxed_parameters(modules, jax.random.key(0))))
