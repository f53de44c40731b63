"""BERT4Rec (Sun et al. 2019, arXiv:1904.06690; METHODS B17): a bidirectional encoder of items.

Trained by the cloze task (`jaxrec.objectives.Cloze`): items of a history are replaced by a MASK and
guessed from both sides. To ask what comes next, a MASK is put at the end.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.backbones.cost import BACKWARD
from jaxrec.backbones.dropout import draw_kept, drop
from jaxrec.backbones.item_states import Retriever, num_items
from jaxrec.backbones.item_transformer import (
    Affine,
    ItemLayers,
    ItemStack,
    ItemTable,
    LayerNorm,
    split_keys,
)
from jaxrec.backbones.layers import apply_module, zeros
from jaxrec.backbones.masks import TokenMetadata, compile_mask, same_segment
from jaxrec.types import Events, PyTree, Tables, TokenSpace


class Guess(nn.Module):
    """From a state to what is compared with the items: linear, GELU, norm; and the items' biases.

    The bias of an item is one more number of its vector, against a 1 at the end of every state, so
    that scores stay inner products.
    """

    items: int
    width: int
    initial_scale: float

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        mapped = Affine(self.width, ("embed", None), self.initial_scale, name="project")(x)
        bias = self.param("bias", zeros("vocab"), (self.items,))
        return LayerNorm(name="norm")(jax.nn.gelu(mapped)), bias


@dataclasses.dataclass(frozen=True)
class Bert4Rec(Retriever):
    """Masked-item prediction from both sides.

    An event is masked by the item number `n`, one past the catalogue. The state at an event that is
    not masked knows the event itself: only masked events may be supervised.

    Raises:
        ValueError: sizes that do not divide.
    """

    layers: int = 2
    width: int = 64
    heads: int = 2
    length: int = 50
    """Events of a history that can be read; the question comes after them."""
    dropout: float = 0.1
    """Of the input and of the residual branches."""
    attention_dropout: float = 0.1
    """Of the attention probabilities."""
    remat: bool = False
    unroll: int = 1
    """Layers an iteration of the scan over layers."""

    reads_both_sides: ClassVar[bool] = True
    """The state at an event knows the event: the objective must mask what it asks for."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length={self.length} must be at least 1.")
        _ = self.stack  # its own checks

    @property
    def stack(self) -> ItemStack:
        """Shape of the layers: BERT's norms after each branch, a feed-forward of four widths."""
        return ItemStack(
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            feedforward=4 * self.width,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            norms="post",
            activation="gelu",
            remat=self.remat,
            unroll=self.unroll,
            dtype=self.dtype,
            initial_scale=self.initial_scale,
        )

    def modules(self, space: TokenSpace) -> dict:
        """The modules that hold parameters, with the smallest inputs they take."""
        state, mask = jnp.zeros((1, 1, self.width), self.dtype), jnp.ones((1, 1, 1, 1), bool)
        items = num_items(space)
        return {
            "items": (ItemTable(items + 1, self.width, self.initial_scale), ()),
            "positions": (ItemTable(self.length + 1, self.width, self.initial_scale, None), ()),
            "input_norm": (LayerNorm(), (state,)),
            "layers": (ItemLayers(self.stack), (state, mask)),
            "guess": (Guess(items, self.width, self.initial_scale), (state,)),
        }

    def parameters(self, space: TokenSpace) -> int:
        """Number of parameters, by formula."""
        items, width = num_items(space), self.width
        guess = width * width + 3 * width + items
        tables = (items + self.length + 2) * width
        return tables + 2 * width + self.stack.parameters + guess

    def flops(self, space: TokenSpace, rows: int, length: int) -> float:
        """FLOPs of forward and backward of the network; the objective adds its own scores."""
        del space
        guess = 2.0 * rows * length * self.width**2
        return BACKWARD * (self.stack.forward_flops(rows, length) + guess)

    def item_vectors(
        self, params: PyTree, tables: Tables, space: TokenSpace
    ) -> Float[Array, "n d1"]:
        """Vectors of all items, the bias last."""
        del tables
        table, bias = params["items"]["table"][: num_items(space)], params["guess"]["bias"]
        return jnp.concatenate([table, bias[:, None]], axis=1).astype(self.dtype)

    def states(
        self, params: PyTree, batch: Events, space: TokenSpace, key: Array | None = None
    ) -> Float[Array, "b t d1"]:
        """What masked events are guessed from, with a 1 at the end."""
        x = jnp.take(params["items"]["table"], batch.item, axis=0, mode="clip")
        x = x + jnp.take(params["positions"]["table"], batch.position, axis=0, mode="clip")
        x = apply_module(LayerNorm(), params["input_norm"], x.astype(self.dtype))
        any_dropout = self.dropout + self.attention_dropout > 0
        input_key, layer_keys = split_keys(key, any_dropout, self.layers)
        if input_key is not None and self.dropout:
            x = drop(x, draw_kept(input_key, x.shape, self.dropout), self.dropout)
        mask = compile_mask(same_segment, TokenMetadata(batch.segment, batch.position))
        x = apply_module(ItemLayers(self.stack), params["layers"], x, mask, layer_keys)
        guess = Guess(num_items(space), self.width, self.initial_scale)
        x, _ = apply_module(guess, params["guess"], x)
        return jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)
