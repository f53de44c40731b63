"""HSTU (Zhai et al., arXiv:2402.17152; METHODS B4): generative retrieval over sparse item ids.

A causal stack of gated pointwise attention (`jaxrec.backbones.hstu_layers`) with relative biases by
position and time. States and item vectors have length 1, so scores are cosines: the temperature
belongs to the objective (`ItemSampledSoftmax(temperature=.05)`, as published). The ranking form,
which reads actions too, is `jaxrec.backbones.hstu_ranking`.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from jaxrec.backbones.cost import BACKWARD
from jaxrec.backbones.dropout import draw_kept, drop
from jaxrec.backbones.hstu_layers import HstuLayers, HstuStack, unit_norm
from jaxrec.backbones.item_states import Retriever, ask_next, num_items
from jaxrec.backbones.item_transformer import ItemTable, split_keys
from jaxrec.backbones.layers import apply_module
from jaxrec.backbones.masks import TokenMetadata
from jaxrec.backbones.pointwise_attention import TIME
from jaxrec.backbones.sequences import follow, segment_starts
from jaxrec.types import Events, PyTree, Tables, TokenSpace


@dataclasses.dataclass(frozen=True)
class Hstu(Retriever):
    """Hierarchical sequential transduction units over items; the published small size.

    The input at an event is the event before it, a learned vector at the start of a history: every
    event is predicted, also the first. A state is asked at the time of the event that it predicts,
    as published, and what it reads happened when it happened; the vector at the start happened with
    the first event. `user_vectors` knows no such time: there the last event's repeats.

    `n`, which divides the attention weights, is `length + 1`, whatever the row's length is.
    Positions count from the start of a history, so that neither padding nor packing moves them.

    Raises:
        ValueError: sizes that do not divide, unknown options.
    """

    layers: int = 2
    width: int = 50
    heads: int = 1
    length: int = 200
    """Events of a history that can be read; the question comes after them."""
    query_size: int | None = None
    """Numbers of a head's queries and keys; `width / heads` by default."""
    value_size: int | None = None
    """Numbers of a head's values and gates; `width / heads` by default."""
    dropout: float = 0.2
    """Of the input and of what each layer writes into the residual stream."""
    position_bias: bool = True
    """Add a learned number for the difference of positions to every score."""
    time_bias: bool = True
    """Add a learned number for the difference of times; off where a log has no times."""
    block: int = 256
    """Queries that are attended at a time: longer rows never hold all pairs of a row, and keys
    behind a block cost nothing."""
    recompute: bool = True
    """Compute the attention weights of blocks anew in the backward pass; False is faster where all
    pairs of a row fit into memory anyhow."""
    remat: bool = False
    """Recompute each layer in the backward pass."""
    unroll: int = 1
    """Layers an iteration of the scan over layers."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length={self.length} must be at least 1.")
        _ = self.stack  # its own checks

    @property
    def stack(self) -> HstuStack:
        """Shape of the layers."""
        return HstuStack(
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            slots=self.length + 1,
            query_size=self.query_size,
            value_size=self.value_size,
            dropout=self.dropout,
            position_bias=self.position_bias,
            time_bias=self.time_bias,
            block=self.block,
            recompute=self.recompute,
            remat=self.remat,
            unroll=self.unroll,
            dtype=self.dtype,
            initial_scale=self.initial_scale,
        )

    def modules(self, space: TokenSpace) -> dict:
        """The modules that hold parameters, with the smallest inputs they take."""
        state, tokens = jnp.zeros((1, 1, self.width), self.dtype), one_token()
        # Positions start as long as items, which are multiplied by the root of the width.
        positions = ItemTable(self.length + 1, self.width, self.width**-0.5, None)
        return {
            # One more row than items: what stands before the first event of a history.
            "items": (ItemTable(num_items(space) + 1, self.width, self.initial_scale), ()),
            "positions": (positions, ()),
            "layers": (HstuLayers(self.stack), (state, tokens, tokens)),
        }

    def parameters(self, space: TokenSpace) -> int:
        """Number of parameters, by formula."""
        return (num_items(space) + self.length + 2) * self.width + self.stack.parameters

    def flops(self, space: TokenSpace, rows: int, length: int) -> float:
        """FLOPs of forward and backward of the network; the objective adds its own scores."""
        del space
        return BACKWARD * self.stack.forward_flops(rows, length)

    def item_vectors(
        self, params: PyTree, tables: Tables, space: TokenSpace
    ) -> Float[Array, "n d"]:
        """Vectors of all items, of length 1; those that are read are not normed."""
        del tables
        return unit_norm(params["items"]["table"][: num_items(space)]).astype(self.dtype)

    def states(
        self, params: PyTree, batch: Events, space: TokenSpace, key: Array | None = None
    ) -> Float[Array, "b t d"]:
        """What each event is predicted from, of length 1."""
        del space
        starts = segment_starts(batch.segment)
        table = params["items"]["table"].astype(self.dtype)
        scale = jnp.asarray(self.width**0.5, self.dtype)
        vectors = jnp.take(table, batch.item, axis=0, mode="clip") * scale
        x = follow(table[-1] * scale, vectors, starts)
        x = x + jnp.take(params["positions"]["table"], batch.position, axis=0, mode="clip")
        input_key, layer_keys = split_keys(key, self.dropout > 0, self.layers)
        if input_key is not None:
            x = drop(x, draw_kept(input_key, x.shape, self.dropout), self.dropout)
        query = TokenMetadata(batch.segment, batch.position, {TIME: batch.time})
        read = TokenMetadata(batch.segment, batch.position, {TIME: times_read(batch.time, starts)})
        inputs = x.astype(self.dtype), query, read, None, layer_keys
        x, _ = apply_module(HstuLayers(self.stack, ordered=True), params["layers"], *inputs)
        return unit_norm(x)

    def user_vectors(
        self, params: PyTree, tables: Tables, batch: Events, space: TokenSpace
    ) -> Float[Array, "b d"]:
        """The state that predicts what comes after each history, one history a row.

        It is asked at the time of the last event.
        """
        del tables
        wide, asked = ask_next(batch, num_items(space))
        last = jnp.take_along_axis(wide.time, jnp.maximum(asked - 1, 0)[:, None], axis=1)
        columns = jnp.arange(wide.time.shape[1])
        time = jnp.where(columns == asked[:, None], last, wide.time)
        states = self.states(params, dataclasses.replace(wide, time=time), space)
        return jnp.take_along_axis(states, asked[:, None, None], axis=1)[:, 0]


def times_read(time: Int32[Array, "b t"], starts: Bool[Array, "b t"]) -> Int32[Array, "b t"]:
    """When what each state reads happened: the event before, the first one where none is before."""
    return jnp.where(starts, time, jnp.pad(time[:, :-1], ((0, 0), (1, 0))))


def one_token() -> TokenMetadata:
    """Metadata of one token, the smallest input of the layers."""
    zero = jnp.zeros((1, 1), jnp.int32)
    return TokenMetadata(zero, zero, {TIME: zero})
