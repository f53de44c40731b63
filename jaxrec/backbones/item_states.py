"""What all retrievers share: one vector an item, one state an event, and the question "what next".

The Retriever contract; the token space is that of sparse item ids (`jaxrec.tokenization.ItemIds`),
one code an item:

- `init(key, space)`, `axes(space)`, `parameters(space)`, `flops(space, rows, length)`;
- `forward(params, tables, batch, space, key=None) -> (states [b t d], item vectors [n d])`: the
  state at an event predicts that event, which it knows nothing about;
- `user_vectors(params, tables, batch, space) -> [b d]`: the state that predicts what comes after
  each history; `item_vectors(params, tables, space) -> [n d]`. Scores are their inner products.

`Retriever` derives all of it from a network's modules, its states and its item vectors.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.backbones.layers import logical_axes, unbox
from jaxrec.types import Events, PyTree, Tables, TokenSpace


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retriever(abc.ABC):
    """Base of the retrievers: from their modules, states and sizes follows the rest."""

    dtype: str = "float32"
    """Type of the arithmetic; parameters, norms and softmax stay float32."""
    initial_scale: float = 0.02
    """Standard deviation of the vectors at the start."""

    @abc.abstractmethod
    def modules(self, space: TokenSpace) -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
        """The modules that hold parameters, with the smallest inputs they take."""

    @abc.abstractmethod
    def states(
        self, params: PyTree, batch: Events, space: TokenSpace, key: Array | None = None
    ) -> Float[Array, "b t d"]:
        """What each event is predicted from; a key switches on dropout."""

    def item_vectors(
        self, params: PyTree, tables: Tables, space: TokenSpace
    ) -> Float[Array, "n d"]:
        """Vectors of all items: by default those that are read."""
        del tables
        return params["items"]["table"][: num_items(space)].astype(self.dtype)

    def init(self, key: Array, space: TokenSpace) -> PyTree:
        """Random parameters, float32."""
        return _initial_parameters(self, key, space)

    def axes(self, space: TokenSpace) -> PyTree:
        """Logical axis names of every parameter."""
        boxed = functools.partial(_boxed_parameters, self, space=space)
        return logical_axes(jax.eval_shape(lambda: boxed(jax.random.key(0))))

    def forward(
        self,
        params: PyTree,
        tables: Tables,
        batch: Events,
        space: TokenSpace,
        *,
        key: Array | None = None,
    ) -> tuple[Float[Array, "b t d"], Float[Array, "n d"]]:
        """States that predict every event of a batch, and the vectors of all items.

        Args:
            params: from `init`.
            tables: not read.
            batch: histories; several may share a row.
            space: of sparse item ids.
            key: of the dropout; None switches it off.
        """
        return self.states(params, batch, space, key), self.item_vectors(params, tables, space)

    def user_vectors(
        self, params: PyTree, tables: Tables, batch: Events, space: TokenSpace
    ) -> Float[Array, "b d"]:
        """The state that predicts what comes after each history, one history a row."""
        del tables
        wide, asked = ask_next(batch, num_items(space))
        states = self.states(params, wide, space)
        return jnp.take_along_axis(states, asked[:, None, None], axis=1)[:, 0]


@functools.partial(jax.jit, static_argnames=("network", "space"))
def _initial_parameters(network: Retriever, key: Array, space: TokenSpace) -> PyTree:
    """Compiled, so that the arithmetic of the modules, whose results nobody reads, is dropped."""
    return unbox(_boxed_parameters(network, key, space))


def _boxed_parameters(network: Retriever, key: Array, space: TokenSpace) -> PyTree:
    """Initialises every module on the smallest inputs it takes; parameters carry axis names."""
    modules = network.modules(space)
    keys = jax.random.split(key, len(modules))
    return {
        name: module.init(module_key, *inputs)["params"]
        for module_key, (name, (module, inputs)) in zip(keys, sorted(modules.items()))
    }
