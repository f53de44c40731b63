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
from jaxrec.backbones.item_states import (
    initial_parameters,
    num_items,
    parameter_axes,
    state_after,
)
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
from jaxrec.types import Events, PyTree, Tables, TokenSpace


@dataclasses.dataclass(frozen=True)
class SasRec:
    """Self-attentive sequential recommendation; obeys the Retriever contract.

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
    dtype: str = "float32"
    """Type of the arithmetic; parameters, norms and softmax stay float32."""
    initial_scale: float = 0.02

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

    def init(self, key: Array, space: TokenSpace) -> PyTree:
        """Random parameters: normal with `initial_scale`, biases 0, norms 1."""
        return initial_parameters(self, key, space)

    def axes(self, space: TokenSpace) -> PyTree:
        """Logical axis names of every parameter."""
        return parameter_axes(self, space)

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
        return self.states(params, batch, key), self.item_vectors(params, tables, space)

    def user_vectors(
        self, params: PyTree, tables: Tables, batch: Events, space: TokenSpace
    ) -> Float[Array, "b d"]:
        """The state that predicts what comes after each history, one history a row."""
        del tables
        return state_after(lambda wide: self.states(params, wide), batch, num_items(space))

    def item_vectors(
        self, params: PyTree, tables: Tables, space: TokenSpace
    ) -> Float[Array, "n d"]:
        """Vectors of all items."""
        del tables
        return params["items"]["table"][: num_items(space)].astype(self.dtype)

    def states(
        self, params: PyTree, batch: Events, key: Array | None = None
    ) -> Float[Array, "b t d"]:
        """What each event is predicted from."""
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
