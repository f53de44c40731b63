"""`ContextWriter`: what generators share that read a history once and then write the next item.

A history becomes keys and values of every layer (`Context`), however that is done; the layers then
run over `[BOS, s1, s2, ..]`, the codes of the item that is written, and look at the context by
cross-attention. `LazyDecoder` makes the context by one projection, `OneRec` by an encoder of
several pathways.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from jaxrec.backbones.caches import Past, of_parents, start_past
from jaxrec.backbones.dropout import draw_kept, drop
from jaxrec.backbones.layers import (
    BeamKeys,
    BeamMask,
    Embedding,
    Stack,
    apply_module,
    logical_axes,
    unbox,
)
from jaxrec.backbones.lazy_layers import Arrangement, Context, LazyLayers, LevelHead
from jaxrec.backbones.mixture import Mixture, MixtureStatistics, update_biases
from jaxrec.backbones.rotary import Rotation, rope_rotation
from jaxrec.types import SPECIAL_TOKENS, Events, PyTree, Tables, TokenSpace

BOS = SPECIAL_TOKENS.index("BOS")

Pieces = dict[str, tuple[nn.Module, tuple]]
"""Modules that hold parameters, by name, with the smallest inputs they take."""


class WriterCache(NamedTuple):
    """What `step` needs."""

    context: Context
    """The history's keys and values, shared by all beams of a row."""
    user: Array
    """State that predicts the first code, `[b 1 d]` for all beams."""
    past: Past
    """Self-attention's keys and values: those of BOS, shared, and those of what each beam wrote."""


@dataclasses.dataclass(frozen=True)
class ContextWriter(abc.ABC):
    """Base of the generators that write from a context; obeys the Generator contract.

    Training needs rows with one target, the last event of the row (`TargetCentric`): `forward`
    answers for that event alone.

    A mixture is kept in balance by the training step, not by `forward`: it adds the `loss` of
    `forward_with_statistics` and, for `balance="bias"`, calls `rebalance` after each update.
    `Supervised` does both.
    """

    layers: int
    width: int
    heads: int
    feedforward: int | None
    dropout: float
    rope_base: float
    mixture: Mixture | None
    remat: bool
    unroll: int
    dtype: str
    initial_scale: float
    attention: str

    widening: ClassVar[int]
    """Widths that the SwiGLU has where `feedforward` is None."""
    answers_last_only: ClassVar[bool] = True
    """`forward` answers for the last event of a row: the feed must put the targets there."""

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(
                f"width={self.width} does not divide into heads={self.heads}; "
                "choose a width that is a multiple of heads."
            )
        _ = self.stack  # its own checks

    @property
    def stack(self) -> Stack:
        """Shape of the layers over the codes."""
        wide = self.widening * self.width
        return Stack(
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            kv_heads=self.heads,
            head_size=self.width // self.heads,
            feedforward=wide if self.feedforward is None else self.feedforward,
            dropout=self.dropout,
            rope_base=self.rope_base,
            remat=self.remat,
            unroll=self.unroll,
            dtype=self.dtype,
            initial_scale=self.initial_scale,
            attention=self.attention,
        )

    @property
    @abc.abstractmethod
    def context_groups(self) -> int:
        """Pairs of keys and values that the layers take turns with."""

    @property
    @abc.abstractmethod
    def context_heads(self) -> int:
        """Heads of the context's keys and values."""

    @property
    @abc.abstractmethod
    def dense(self) -> int:
        """Layers in front that have a SwiGLU; the others have the mixture."""

    @property
    def arrangement(self) -> Arrangement:
        """How a block is put together."""
        return Arrangement()

    @abc.abstractmethod
    def read(
        self,
        params: PyTree,
        tables: Tables,
        history: Events,
        exists: Bool[Array, "b t"],
        place: Int32[Array, "b t"],
        space: TokenSpace,
        key: Array | None = None,
    ) -> Context:
        """Keys and values of histories.

        Args:
            params: from `init`.
            tables: codes of the items.
            history: events, arrays `[b t]`.
            exists: which of them are read.
            place: events that lie between each event and the one that is asked for.
            space: the token space of the codes.
            key: of the dropout; None switches it off.
        """

    @abc.abstractmethod
    def context_pieces(self, space: TokenSpace) -> Pieces:
        """The modules that `read` needs."""

    def layers_module(self, *, decoding: bool = False) -> LazyLayers:
        """The layers; while decoding they keep what self-attention needs, and drop nothing."""
        mixture = self.mixture
        if decoding and mixture is not None:
            mixture = dataclasses.replace(mixture, capacity_factor=None)
        return LazyLayers(
            self.stack, self.context_groups, mixture, self.dense, decoding, self.arrangement
        )

    def init(self, key: Array, space: TokenSpace) -> PyTree:
        """Random parameters: nested dictionaries of float32 arrays.

        Normal with `initial_scale`; projections into the residual stream are divided by
        sqrt(2 layers), norms start at 1, biases of a mixture at 0.
        """
        return _init(self, key, space)

    def axes(self, space: TokenSpace) -> PyTree:
        """Logical axis names of every parameter: the tree of `init` with a tuple at each leaf."""
        return logical_axes(jax.eval_shape(lambda: _boxed(self, jax.random.key(0), space)))

    def forward(
        self,
        params: PyTree,
        tables: Tables,
        batch: Events,
        space: TokenSpace,
        *,
        key: Array | None = None,
    ) -> Float[Array, "b 1 l k"]:
        """Teacher-forced logits of the codes of the last event of each row.

        The logits at level `l` know the events of the same segment before it and its own codes
        `0..l-1`. Padding and other segments have no influence, unless a mixture has a capacity:
        then rows compete for seats.

        Args:
            params: from `init`.
            tables: codes of the items.
            batch: rows whose last column is the target.
            space: the token space of the codes.
            key: of the dropout; None switches it off.

        Returns:
            float32 logits of one event per row; codes beyond the size of a level get -1e9.
        """
        return self.forward_with_statistics(params, tables, batch, space, key=key)[0]

    def forward_with_statistics(
        self,
        params: PyTree,
        tables: Tables,
        batch: Events,
        space: TokenSpace,
        *,
        key: Array | None = None,
    ) -> tuple[Float[Array, "b 1 l k"], MixtureStatistics | None]:
        """`forward`, and what its mixtures did.

        Returns:
            The logits, and statistics with a leading axis of the layers that have a mixture; None
            without any. Rows of padding are not counted.
        """
        context_key, input_key, layer_keys = self._dropout_keys(key)
        batch = jax.tree.map(jnp.asarray, batch)
        segment, position = batch.segment, batch.position
        exists = (segment[:, :-1] == segment[:, -1:]) & (segment[:, :-1] > 0)
        place = position[:, -1:] - position[:, :-1] - 1
        history = jax.tree.map(lambda array: array[:, :-1], batch)
        context = self.read(params, tables, history, exists, place, space, context_key)
        target = jnp.take(tables.codes, batch.item[:, -1], axis=0, mode="clip")
        written = (target + jnp.asarray(space.offsets, target.dtype))[:, :-1]
        start = jnp.full((target.shape[0], 1), BOS, written.dtype)
        x = self._tokens(params, jnp.concatenate([start, written], axis=1), space)
        kept = None if input_key is None else draw_kept(input_key, x.shape, self.dropout)
        indices = jnp.arange(space.levels, dtype=jnp.int32)
        states, _, statistics = apply_module(
            self.layers_module(),
            params["layers"],
            drop(x, kept, self.dropout),
            context,
            self._rotation(indices[None]),
            (indices <= indices[:, None])[None, None],
            jnp.broadcast_to(segment[:, -1:] > 0, x.shape[:2]),
            keys=layer_keys,
        )
        by_level = jnp.swapaxes(states, 0, 1)[:, :, None]
        logits = apply_module(LevelHead(self.stack, space), params["head"], by_level)
        return jnp.moveaxis(logits, 0, 2), statistics

    def rebalance(self, params: PyTree, load: Int32[Array, "layers e"]) -> PyTree:
        """Parameters after one step of loss-free balancing; others than biases stay.

        Args:
            params: after the optimizer's update.
            load: `MixtureStatistics.load` of the step, summed over micro-batches.

        Raises:
            ValueError: there is no mixture that is balanced by biases.
        """
        mixture = self.mixture
        if mixture is None or mixture.balance != "bias":
            raise ValueError(
                f"{mixture=} has no biases; use Mixture(balance='bias'), or do not rebalance."
            )

        def move(path: tuple, leaf: Array) -> Array:
            is_bias = [key.key for key in path[-2:]] == ["feedforward", "bias"]
            return update_biases(leaf, load, mixture.bias_rate) if is_bias else leaf

        return jax.tree_util.tree_map_with_path(move, params)

    def prefill(
        self, params: PyTree, tables: Tables, batch: Events, space: TokenSpace
    ) -> WriterCache:
        """Reads one history per row, for `step` to continue with the next event.

        BOS, which all beams begin with, runs through the layers here. Nothing is dropped, whatever
        the mixture's capacity.

        Args:
            params: from `init`.
            tables: codes of the items.
            batch: segment 1 or 0, padding on one side; a row of padding is an empty history.
            space: the token space of the codes.

        Returns:
            A cache of one beam per row.
        """
        batch = jax.tree.map(jnp.asarray, batch)
        exists = batch.segment > 0
        position = jnp.where(exists, batch.position, -1)
        place = jnp.max(position, axis=1, keepdims=True) - position
        context = self.read(params, tables, batch, exists, place, space)
        rows = exists.shape[0]
        x = self._tokens(params, jnp.full((rows, 1), BOS, jnp.int32), space)
        here = jnp.ones((rows, 1), bool)
        user, kept, _ = apply_module(
            self.layers_module(decoding=True),
            params["layers"],
            x,
            context,
            self._rotation(jnp.zeros((rows, 1), jnp.int32)),
            here[:, None, None],
            here,
        )
        slots = max(space.levels - 1, 1)  # nothing follows the last code
        past = start_past(*kept, here, jnp.zeros(rows, jnp.int32), slots)
        return WriterCache(context, user, past)

    def step(
        self,
        params: PyTree,
        cache: WriterCache,
        codes: Int32[Array, "b w"],
        parents: Int32[Array, "b w"],
        level: int | Int32[Array, ""],
        space: TokenSpace,
    ) -> tuple[Float[Array, "b w k"], WriterCache]:
        """Logits of the codes at `level` for every beam.

        Args:
            params: from `init`.
            cache: from `prefill` or the step before.
            codes: codes that the beams chose at `level - 1`; ignored at level 0.
            parents: which beam of the cache each beam continues.
            level: 0 as a Python integer; later levels may be traced.
            space: the token space of the codes.

        Returns:
            Logits, and the cache of the new beams.
        """
        past, user = cache.past.reorder(parents), of_parents(cache.user, parents)
        if not isinstance(level, jax.Array) and int(level) == 0:
            states = jnp.broadcast_to(user, (*codes.shape, user.shape[-1]))
        else:
            tokens = jnp.asarray(space.offsets, codes.dtype)[level - 1] + codes
            states, (keys, values), _ = apply_module(
                self.layers_module(decoding=True),
                params["layers"],
                self._tokens(params, tokens, space),
                cache.context,
                self._rotation(past.position[:, None] + level),
                BeamMask(past.key_mask, level - 1),
                jnp.ones(codes.shape, bool),
                BeamKeys(past.keys, past.values, past.beam_keys, past.beam_values),
            )
            past = past._replace(beam_keys=keys, beam_values=values)
        logits = apply_module(LevelHead(self.stack, space), params["head"], states, level)
        return logits, cache._replace(past=past)

    def _dropout_keys(self, key: Array | None) -> tuple[Array | None, ...]:
        """Keys of the context, of the input, and of every layer; None where nothing is dropped."""
        if key is None or round(self.dropout * 256) == 0:
            return None, None, None
        keys = jax.random.split(key, self.layers + 2)
        return keys[0], keys[1], keys[2:]

    def _rotation(self, positions: Array) -> Rotation:
        return rope_rotation(positions, self.stack.head_size, self.rope_base)

    def _tokens(self, params: PyTree, tokens: Array, space: TokenSpace) -> Array:
        return apply_module(Embedding(self.stack, space.vocabulary), params["tokens"], tokens)


def _boxed(writer: ContextWriter, key: Array, space: TokenSpace) -> PyTree:
    """Initialises every piece on the smallest input it takes."""
    stack, groups = writer.stack, writer.context_groups
    state, here = jnp.zeros((1, 1, stack.width), stack.dtype), jnp.ones((1, 1), bool)
    index = jnp.zeros((1, 1), jnp.int32)
    pieces = writer.context_pieces(space)
    keys = jnp.zeros((groups, 1, 1, writer.context_heads, stack.head_size), stack.dtype)
    rotation = rope_rotation(index, stack.head_size, writer.rope_base)
    inputs = (state, Context(keys, None, here), rotation, here[:, None, None], here)
    pieces |= {
        "tokens": (Embedding(stack, space.vocabulary), (index,)),
        "layers": (writer.layers_module(), inputs),
        "head": (
            LevelHead(stack, space),
            (jnp.zeros((space.levels, 1, 1, stack.width), stack.dtype),),
        ),
    }
    drawn = jax.random.split(key, len(pieces))
    return {
        name: module.init(piece_key, *inputs)["params"]
        for piece_key, (name, (module, inputs)) in zip(drawn, sorted(pieces.items()))
    }


@functools.partial(jax.jit, static_argnames=("writer", "space"))
def _init(writer: ContextWriter, key: Array, space: TokenSpace) -> PyTree:
    """Compiled, so that the arithmetic of the pieces, whose results nobody reads, is dropped."""
    return unbox(_boxed(writer, key, space))
