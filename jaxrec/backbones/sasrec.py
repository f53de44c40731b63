"""SASRec (Kang and McAuley 2018, arXiv:1808.09781; METHODS B17): causal self-attention over items.

The bar of the field. With cross-entropy over the catalogue or sampled softmax it beats most
published generators on Amazon-2014; with the BCE of the paper it looks weak.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.backbones.cost import BACKWARD
from jaxrec.backbones.dropout import draw_kept, drop
from jaxrec.backbones.item_states import Retriever, num_items
from jaxrec.backbones.item_transformer import (
    ItemLayers,
    ItemStack,
    ItemTable,
    Norms,
    split_keys,
)
from jaxrec.backbones.layers import apply_module
from jaxrec.backbones.masks import TokenMetadata, compile_mask, packed
from jaxrec.backbones.sequences import follow, segment_starts
from jaxrec.types import Events, PyTree, TokenSpace


@dataclasses.dataclass(frozen=True)
class SasRec(Retriever):
    """Self-attentive sequential recommendation.

    The input at an event is the event before it, a learned vector at the start of a history: every
    event is predicted, also the first. Positions count from the start of a history, so that
    neither padding nor packing moves them (the published code counts from the left of a padded
    row). Norms after the fashion of `jaxrec.backbones.item_transformer`: `query` is the paper's.

    Raises:
        ValueError: sizes that do not divide, unknown options.
    """

    layers: int = 2
    width: int = 64
    heads: int = 2
    length: int = 50
    """Events of a history that can be read; the question comes after them."""
    feedforward: int | None = None
    """Inner width of the feed-forward; `width`, as published, by default."""
    dropout: float = 0.2
    """Of the input and of the residual branches."""
    attention_dropout: float = 0.0
    """Of the attention probabilities; the paper drops them like everything else."""
    norms: Norms = "pre"
    remat: bool = False
    """Recompute each layer in the backward pass."""
    unroll: int = 1
    """Layers an iteration of the scan over layers."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length={self.length} must be at least 1.")
        _ = self.stack  # its own checks

    @property
    def stack(self) -> ItemStack:
        """Shape of the layers."""
        return ItemStack(
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            feedforward=self.feedforward or self.width,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            norms=self.norms,
            remat=self.remat,
            unroll=self.unroll,
            dtype=self.dtype,
            initial_scale=self.initial_scale,
        )

    def modules(self, space: TokenSpace) -> dict:
        """The modules that hold parameters, with the smallest inputs they take."""
        state, mask = jnp.zeros((1, 1, self.width), self.dtype), jnp.ones((1, 1, 1, 1), bool)
        return {
            # One more row than items: what stands before the first event of a history.
            "items": (ItemTable(num_items(space) + 1, self.width, self.initial_scale), ()),
            "positions": (ItemTable(self.length + 1, self.width, self.initial_scale, None), ()),
            "layers": (ItemLayers(self.stack), (state, mask)),
        }

    def parameters(self, space: TokenSpace) -> int:
        """Number of parameters, by formula."""
        return (num_items(space) + self.length + 2) * self.width + self.stack.parameters

    def flops(self, space: TokenSpace, rows: int, length: int) -> float:
        """FLOPs of forward and backward of the network; the objective adds its own scores."""
        del space
        return BACKWARD * self.stack.forward_flops(rows, length)

    def states(
        self, params: PyTree, batch: Events, space: TokenSpace, key: Array | None = None
    ) -> Float[Array, "b t d"]:
        """What each event is predicted from."""
        del space
        table = params["items"]["table"].astype(self.dtype)
        scale = jnp.asarray(self.width**0.5, self.dtype)
        vectors = jnp.take(table, batch.item, axis=0, mode="clip") * scale
        x = follow(table[-1] * scale, vectors, segment_starts(batch.segment))
        x = x + jnp.take(params["positions"]["table"], batch.position, axis=0, mode="clip")
        any_dropout = self.dropout + self.attention_dropout > 0
        input_key, layer_keys = split_keys(key, any_dropout, self.layers)
        if input_key is not None and self.dropout:
            x = drop(x, draw_kept(input_key, x.shape, self.dropout), self.dropout)
        mask = compile_mask(packed, TokenMetadata(batch.segment, batch.position))
        layers = ItemLayers(self.stack)
        return apply_module(layers, params["layers"], x.astype(self.dtype), mask, layer_keys)
