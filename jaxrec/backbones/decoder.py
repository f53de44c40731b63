"""`Decoder`: a causal transformer over histories that generates semantic IDs level by level.

Two shapes share one stack of layers (Llama-like: pre-RMSNorm, rotary positions, grouped-query
attention, SwiGLU; METHODS B2):

- `merged`: one token per event, the merged vectors of its item's codes, and a light head that
  spells the codes of the next item from the user state. A prompt is as long as the history, and a
  beam remembers one vector.
- `flat`: one token per code, as in decoder-only language models of semantic IDs.

Both read the input token at an event as *what came before*: BOS at the start of a history, else the
previous event (or code). So the state at an event predicts that event, and packed histories need
no room for extra tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jaxrec.backbones import cost
from jaxrec.backbones.caches import FlatCache, MergedCache, Past, of_parents, start_past
from jaxrec.backbones.dropout import draw_kept, drop
from jaxrec.backbones.heads import CodeHead, CodeLogits, MergeCodes
from jaxrec.backbones.layers import (
    BeamKeys,
    BeamMask,
    Embedding,
    Layers,
    Stack,
    apply_module,
    logical_axes,
    unbox,
)
from jaxrec.backbones.masks import TokenMetadata, compile_mask, packed
from jaxrec.backbones.rotary import rope_rotation
from jaxrec.backbones.sequences import (
    code_metadata,
    flatten_levels,
    follow,
    mark_first_code,
    prefix_sums,
    segment_starts,
)
from jaxrec.types import Events, PyTree, Tables, TokenSpace

HISTORIES = ("merged", "flat")
BOS = 1
"""Row of the token table that starts a history (`jaxrec.types.SPECIAL_TOKENS`)."""


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A causal decoder of semantic IDs; obeys the Generator contract.

    Raises:
        ValueError: sizes that do not divide, unknown options, options that contradict.
    """

    layers: int = 2
    width: int = 64
    heads: int = 4
    kv_heads: int | None = None
    """Key-value heads; as many as `heads` by default."""
    feedforward: int | None = None
    """Width of the SwiGLU; 8/3 of `width`, rounded to a multiple of 16, by default."""
    dropout: float = 0.1
    """On the input and on every residual branch."""
    history: str = "merged"
    """`merged` (one token per event) or `flat` (one token per code)."""
    item_buckets: int = 0
    """Rows of a table that is added per item (`item % item_buckets`), 0 for none; merged only."""
    head_layers: int = 1
    """Residual SwiGLUs of the head; merged only."""
    head_feedforward: int | None = None
    """Their width; twice `width` by default."""
    rope_base: float = 1e4
    remat: bool = False
    """Recompute each layer in the backward pass: less memory, a third more arithmetic."""
    unroll: int = 1
    """Layers per iteration of the scan over layers."""
    dtype: str = "float32"
    """Type of the arithmetic; parameters, norms, softmax and logits stay float32."""
    initial_scale: float = 0.02
    attention: str = "xla"
    """Implementation of attention, see `jaxrec.backbones.attention.IMPLEMENTATIONS`."""

    def __post_init__(self) -> None:
        if self.history not in HISTORIES:
            raise ValueError(
                f"history={self.history!r} is unknown; choose one of {', '.join(HISTORIES)}."
            )
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(
                f"width={self.width} does not divide into heads={self.heads}; "
                "choose a width that is a multiple of heads."
            )
        if self.item_buckets < 0 or self.head_layers < 0:
            raise ValueError(
                f"item_buckets={self.item_buckets} and head_layers={self.head_layers} "
                "must not be negative."
            )
        if self.history == "flat" and self.item_buckets:
            raise ValueError(
                f"item_buckets={self.item_buckets} needs history='merged': in the flat shape no "
                "token stands for a whole item. Set item_buckets=0."
            )
        _ = self.stack, self.head  # their own checks

    @property
    def stack(self) -> Stack:
        """Shape of the layers over the history."""
        rounded = 16 * max(1, round(self.width * 8 / 3 / 16))
        return Stack(
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            kv_heads=self.heads if self.kv_heads is None else self.kv_heads,
            head_size=self.width // self.heads,
            feedforward=rounded if self.feedforward is None else self.feedforward,
            dropout=self.dropout,
            rope_base=self.rope_base,
            remat=self.remat,
            unroll=self.unroll,
            dtype=self.dtype,
            initial_scale=self.initial_scale,
            attention=self.attention,
        )

    @property
    def head(self) -> Stack:
        """Shape of the head's residual branches."""
        feedforward = 2 * self.width if self.head_feedforward is None else self.head_feedforward
        return dataclasses.replace(
            self.stack, layers=max(self.head_layers, 1), feedforward=feedforward
        )

    def parameters(self, space: TokenSpace) -> int:
        """Number of parameters, by formula."""
        width = self.width
        output = space.levels * width * space.width
        shared = space.vocabulary * width + cost.stack_parameters(self.stack) + output
        if self.history == "flat":
            return shared
        merge = width * width + width + self.item_buckets * width
        blocks = self.head_layers * (3 * width * self.head.feedforward + width)
        return shared + merge + blocks + width * width + space.levels * width + width

    def flops(self, space: TokenSpace, rows: int, length: int) -> float:
        """FLOPs of forward and backward of `rows` rows of `length` events, by formula.

        Merged: the layers read `length` tokens and the head runs once per level. Flat: the layers
        read `length * levels` tokens. What counts is said in `jaxrec.backbones.cost`.
        """
        width, events = self.width, rows * length
        weights = space.levels * width * space.width  # the output matrices
        if self.history == "flat":
            layers = cost.stack_forward_flops(self.stack, rows, length * space.levels)
        else:
            layers = cost.stack_forward_flops(self.stack, rows, length)
            weights += 2 * width * width  # merged codes in, user state to the head
            weights += space.levels * self.head_layers * 3 * width * self.head.feedforward
        return cost.BACKWARD * (layers + 2.0 * events * weights)

    def init(self, key: Array, space: TokenSpace) -> PyTree:
        """Random parameters: nested dictionaries of float32 arrays.

        Normal with `initial_scale`; projections into the residual stream are divided by
        sqrt(2 layers), norms start at 1.
        """
        return _init(self, key, space)

    def axes(self, space: TokenSpace) -> PyTree:
        """Logical axis names of every parameter: the tree of `init` with a tuple at each leaf."""
        return logical_axes(jax.eval_shape(lambda: self._boxed(jax.random.key(0), space)))

    def forward(
        self,
        params: PyTree,
        tables: Tables,
        batch: Events,
        space: TokenSpace,
        *,
        key: Array | None = None,
    ) -> Float[Array, "b t l k"]:
        """Teacher-forced logits of the codes of every event.

        The logits at event `t`, level `l` know the events before `t` in its segment and codes
        `0..l-1` of event `t` itself. Padding and other segments have no influence.

        Args:
            params: from `init`.
            tables: codes of the items.
            batch: histories; several may share a row.
            space: the token space of the codes.
            key: of the dropout; None switches it off.

        Returns:
            float32 logits; codes beyond the size of a level get -1e9.
        """
        input_key, layer_keys, head_key = self._dropout_keys(key)
        vectors = self._code_vectors(params, tables, batch.item, space)
        starts = segment_starts(batch.segment)
        bos = self._tokens(params, jnp.asarray(BOS), space)
        if self.history == "merged":
            prefix, total = prefix_sums(vectors)
            x = follow(bos, self._merge(params, total, batch.item), starts)
            metadata = TokenMetadata(batch.segment, batch.position)
            x = self._drop_input(x, input_key)
            states, _ = self._run(params, x, metadata, keys=layer_keys)
            head = CodeHead(self.head, space, self.head_layers)
            logits = apply_module(head, params["head"], states, prefix, None, head_key)
        else:
            x = follow(bos, flatten_levels(vectors), mark_first_code(starts, space.levels))
            metadata = code_metadata(batch.segment, batch.position, space.levels)
            x = self._drop_input(x, input_key)
            states, _ = self._run(params, x, metadata, keys=layer_keys)
            states = jnp.moveaxis(states.reshape(*batch.item.shape, space.levels, -1), 2, 0)
            logits = apply_module(CodeLogits(self.stack, space), params["head"], states)
        return jnp.moveaxis(logits, 0, 2)

    def prefill(
        self,
        params: PyTree,
        tables: Tables,
        batch: Events,
        space: TokenSpace,
        *,
        items: int = 1,
    ) -> MergedCache | FlatCache:
        """Reads one history per row, for `step` to continue with the next event.

        Args:
            params: from `init`.
            tables: codes of the items.
            batch: segment 1 or 0, padding on the right; a row of padding is an empty history.
            space: the token space of the codes.
            items: items that will be written one after another; more than one needs `extend`.

        Returns:
            A cache of one beam per row.
        """
        flat = self.history == "flat"
        vectors = self._code_vectors(params, tables, batch.item, space)
        per_event = space.levels if flat else 1
        if flat:
            x = flatten_levels(vectors)
        else:
            x = self._merge(params, prefix_sums(vectors)[1], batch.item)
        rows, width = x.shape[0], x.shape[-1]
        bos = self._tokens(params, jnp.asarray(BOS), space)
        x = jnp.concatenate([jnp.broadcast_to(bos, (rows, 1, width)), x], axis=1)
        length = per_event * jnp.sum(batch.segment > 0, axis=1, dtype=jnp.int32)
        indices = jnp.arange(x.shape[1], dtype=jnp.int32)
        exists = indices <= length[:, None]
        first = per_event * batch.position[:, 0]
        metadata = TokenMetadata(exists.astype(jnp.int32), first[:, None] + indices)
        states, kept = self._run(params, x, metadata, keep=flat or items > 1)
        user = jnp.take_along_axis(states, length[:, None, None], axis=1)
        past, slots = None, items * per_event - 1  # nothing follows the last token
        if flat or items > 1:
            past = start_past(*kept, exists, first + length, max(slots, 1))
        if flat:
            assert past is not None
            return FlatCache(user, past)
        return MergedCache(user, jnp.zeros((rows, 1, width), user.dtype), past)

    def step(
        self,
        params: PyTree,
        cache: MergedCache | FlatCache,
        codes: Int32[Array, "b w"],
        parents: Int32[Array, "b w"],
        level: int | Int32[Array, ""],
        space: TokenSpace,
    ) -> tuple[Float[Array, "b w k"], MergedCache | FlatCache]:
        """Logits of the codes at `level` for every beam.

        Args:
            params: from `init`.
            cache: from `prefill`, `extend` or the step before.
            codes: codes that the beams chose at `level - 1`; ignored at level 0.
            parents: which beam of the cache each beam continues.
            level: 0 as a Python integer; later levels may be traced.
            space: the token space of the codes.

        Returns:
            Logits, and the cache of the new beams.
        """
        first = not isinstance(level, jax.Array) and int(level) == 0
        user = of_parents(cache.user, parents)
        past = None if cache.past is None else cache.past.reorder(parents)
        chosen = None if first else self._chosen(params, codes, level - 1, space)
        if isinstance(cache, MergedCache):
            prefix = jnp.take_along_axis(cache.prefix, parents[..., None], axis=1)
            prefix = prefix if chosen is None else prefix + chosen
            head = CodeHead(self.head, space, self.head_layers)
            logits = apply_module(head, params["head"], user, prefix, level)
            return logits, MergedCache(user, prefix, past)
        assert past is not None
        states = jnp.broadcast_to(user, (*codes.shape, user.shape[-1]))
        if chosen is not None:
            states, past = self._append(params, past, chosen, past.written + level - 1)
        logits = apply_module(CodeLogits(self.stack, space), params["head"], states, level)
        return logits, FlatCache(user, past)

    def extend(
        self,
        params: PyTree,
        cache: MergedCache | FlatCache,
        codes: Int32[Array, "b w"],
        parents: Int32[Array, "b w"],
        items: Int32[Array, "b w"],
        space: TokenSpace,
    ) -> MergedCache | FlatCache:
        """Takes what every beam has written into its history, for `step` to write the next item.

        Args:
            params: from `init`.
            cache: from the step of the last level; `prefill` made room for another item.
            codes: codes that the beams chose at the last level.
            parents: which beam of the cache each beam continues.
            items: the items that the codes are of.
            space: the token space of the codes.

        Returns:
            The cache of the new beams.

        Raises:
            ValueError: `prefill` was not told of further items.
        """
        if cache.past is None:
            raise ValueError("This cache has no room for a second item; use prefill(..., items=2).")
        past = cache.past.reorder(parents)
        x = self._chosen(params, codes, space.levels - 1, space)
        if isinstance(cache, FlatCache):
            user, past = self._append(params, past, x, past.written + space.levels - 1)
            return FlatCache(user, past._replace(written=past.written + space.levels))
        prefix = jnp.take_along_axis(cache.prefix, parents[..., None], axis=1)
        event = self._merge(params, prefix + x, items)
        user, past = self._append(params, past, event, past.written)
        past = past._replace(written=past.written + 1)
        return MergedCache(user, jnp.zeros_like(prefix), past)

    def _append(
        self, params: PyTree, past: Past, x: Array, slot: Array | int
    ) -> tuple[Array, Past]:
        """Runs one more token per beam through the layers."""
        rotation = self._rotation(past.position[:, None] + slot + 1)
        states, (beam_keys, beam_values) = apply_module(
            Layers(self.stack, keep=True),
            params["history"],
            x,
            rotation,
            BeamMask(past.key_mask, slot),
            BeamKeys(past.keys, past.values, past.beam_keys, past.beam_values),
        )
        return states, past._replace(beam_keys=beam_keys, beam_values=beam_values)

    def _chosen(
        self, params: PyTree, codes: Array, level: int | Array, space: TokenSpace
    ) -> Float[Array, "b w d"]:
        """Vectors of codes of one level."""
        return self._tokens(params, jnp.asarray(space.offsets, jnp.int32)[level] + codes, space)

    def _run(
        self,
        params: PyTree,
        x: Array,
        metadata: TokenMetadata,
        *,
        keep: bool = False,
        keys: Array | None = None,
    ) -> tuple[Array, Any]:
        """The layers over whole rows; with `keep`, also every layer's keys and values."""
        mask = compile_mask(packed, metadata)
        rotation = self._rotation(metadata.position)
        layers = Layers(self.stack, keep)
        return apply_module(layers, params["history"], x, rotation, mask, None, keys)

    def _dropout_keys(self, key: Array | None) -> tuple[Array | None, ...]:
        """Keys of the input, of every layer, and of the head; None where nothing is dropped."""
        if key is None or round(self.dropout * 256) == 0:
            return None, None, None
        keys = jax.random.split(key, self.layers + 2)
        return keys[0], keys[1:-1], keys[-1]

    def _drop_input(self, x: Array, key: Array | None) -> Array:
        kept = None if key is None else draw_kept(key, x.shape, self.dropout)
        return drop(x, kept, self.dropout)

    def _rotation(self, positions: Array) -> Any:
        return rope_rotation(positions, self.stack.head_size, self.rope_base)

    def _tokens(self, params: PyTree, tokens: Array, space: TokenSpace) -> Array:
        return apply_module(Embedding(self.stack, space.vocabulary), params["tokens"], tokens)

    def _code_vectors(
        self, params: PyTree, tables: Tables, item: Array, space: TokenSpace
    ) -> Float[Array, "l b t d"]:
        """Vectors of the codes of items, levels in front; one lookup serves input and head."""
        codes = jnp.take(tables.codes, item, axis=0, mode="clip")
        tokens = jnp.moveaxis(codes + jnp.asarray(space.offsets, codes.dtype), -1, 0)
        return self._tokens(params, tokens, space)

    def _merge(self, params: PyTree, total: Array, item: Array) -> Array:
        return apply_module(MergeCodes(self.stack, self.item_buckets), params["merge"], total, item)

    def _boxed(self, key: Array, space: TokenSpace) -> PyTree:
        """Initialises every piece on the smallest input it takes."""
        state = jnp.zeros((1, 1, self.width), self.dtype)
        index = jnp.zeros((1, 1), jnp.int32)
        rotation, mask = self._rotation(index), jnp.ones((1, 1, 1, 1), bool)
        levels = jnp.zeros((space.levels, 1, 1, self.width), self.dtype)
        pieces: dict[str, tuple[nn.Module, tuple]] = {
            "tokens": (Embedding(self.stack, space.vocabulary), (index,)),
            "history": (Layers(self.stack), (state, rotation, mask)),
        }
        if self.history == "merged":
            pieces["merge"] = (MergeCodes(self.stack, self.item_buckets), (state, index))
            pieces["head"] = (CodeHead(self.head, space, self.head_layers), (state, levels))
        else:
            pieces["head"] = (CodeLogits(self.stack, space), (levels,))
        keys = jax.random.split(key, len(pieces))
        return {
            name: module.init(piece_key, *inputs)["params"]
            for piece_key, (name, (module, inputs)) in zip(keys, sorted(pieces.items()))
        }


@functools.partial(jax.jit, static_argnames=("decoder", "space"))
def _init(decoder: Decoder, key: Array, space: TokenSpace) -> PyTree:
    """Compiled, so that the arithmetic of the pieces, whose results nobody reads, is dropped."""
    return unbox(decoder._boxed(key, space))
