"""The layers of the lazy decoder (OneRec-V2, arXiv:2508.20900; METHODS B6).

The history is projected once, to keys and values that all layers share or take turns with, and no
layer has key or value projections of its own for it: what is paid per event of the history is one
projection, and the products of attention. As everywhere, parameters are float32, `Stack.dtype` is
the type of the arithmetic, and norms, scores and softmax are float32. Names given here are the
schema of checkpoints.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxrec import parallel
from jaxrec.backbones.attention import attention
from jaxrec.backbones.dropout import draw_kept, drop
from jaxrec.backbones.heads import CodeLogits, MergeCodes
from jaxrec.backbones.layers import (
    Attention,
    BeamKeys,
    BeamMask,
    Embedding,
    FeedForward,
    RMSNorm,
    Stack,
    normal,
    ones,
    project,
    rms_norm,
)
from jaxrec.backbones.mixture import Mixture, MixtureFeedForward, MixtureStatistics
from jaxrec.backbones.rotary import Rotation
from jaxrec.types import TokenSpace


@dataclasses.dataclass(frozen=True)
class ContextShape:
    """How a history becomes keys and values. `split * groups * kv_heads * head_size` is the paper's
    width of the context, `S_kv L_kv G_kv d_head`.

    Raises:
        ValueError: a size out of its range.
    """

    width: int
    """Of the vectors of codes and items, before the projection."""
    split: int
    """2: keys and values are different parts of the projection (`S_kv`); 1: they are the same."""
    groups: int
    """Pairs of keys and values, which successive layers take turns with (`L_kv`)."""
    kv_heads: int
    """Heads of keys and values (`G_kv`)."""
    head_size: int
    positions: int
    """Rows of the table of positions; 0 for none."""
    item_buckets: int
    """Rows of the table of items; 0 for none."""

    def __post_init__(self) -> None:
        for name in ("width", "groups", "kv_heads", "head_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"context: {name}={getattr(self, name)} must be at least 1.")
        if self.split not in (1, 2):
            raise ValueError(
                f"kv_split={self.split} is impossible; use 1 (values are the keys) or 2."
            )
        if self.positions < 0 or self.item_buckets < 0:
            raise ValueError(
                f"positions={self.positions} and item_buckets={self.item_buckets} "
                "must not be negative."
            )

    @property
    def chunks(self) -> int:
        """Parts of the projection: the keys, and with `split` 2 the values, of every group."""
        return self.split * self.groups

    @property
    def channels(self) -> int:
        """Width of one part."""
        return self.kv_heads * self.head_size


class Context(NamedTuple):
    """A history as layers read it."""

    keys: Array
    """`[groups b t g d]`, shared by all beams of a row."""
    values: Array | None
    """Alike; None where the values are the keys."""
    exists: Array
    """Which events are no padding, `[b t]`."""

    def of_group(self, group: Array) -> tuple[Array, Array]:
        """Keys and values of one group, which may be traced."""
        # A single group is no question: a traced index would copy it in every layer.
        keys = self.keys[0] if self.keys.shape[0] == 1 else self.keys[group]
        if self.values is None:
            return keys, keys
        return keys, self.values[0] if self.values.shape[0] == 1 else self.values[group]


class ContextProcessor(nn.Module):
    """Makes keys and values of merged items: one projection, then a norm for every part.

    Args of `__call__`:
        total: sums of the vectors of each item's codes, `[b t c]`.
        item: the items, `[b t]`.
        place: events that lie between each event and the one that is asked for, `[b t]`.
        exists: which events are no padding, `[b t]`.
        key: for dropout of the items' vectors; None switches it off.
    """

    cfg: Stack
    shape: ContextShape

    @nn.compact
    def __call__(
        self, total: Array, item: Array, place: Array, exists: Array, key: Array | None = None
    ) -> Context:
        shape = self.shape
        cfg = dataclasses.replace(self.cfg, width=shape.width)
        x = MergeCodes(cfg, shape.item_buckets, name="merge")(total, item)
        if shape.positions:
            x = x + Embedding(cfg, shape.positions, name="positions")(place)
        x = drop(x, None if key is None else draw_kept(key, x.shape, cfg.dropout), cfg.dropout)
        heads = (shape.kv_heads, shape.head_size)
        init = normal(cfg.initial_scale, "embed", None, "kv_heads", None)
        parts = project(x, self.param("kernel", init, (shape.width, shape.chunks, *heads)))
        parts = jnp.moveaxis(parts, 2, 0)
        keys = PartNorms(name="key_norm")(parts[:: shape.split])
        values = None
        if shape.split == 2:
            values = PartNorms(name="value_norm")(parts[1::2])
        return Context(keys, values, exists)


class PartNorms(nn.Module):
    """A root-mean-square norm over all heads together, with a scale for each of the parts in
    front."""

    @nn.compact
    def __call__(self, parts: Array) -> Array:
        flat = parts.reshape(*parts.shape[:3], -1)
        scale = self.param("scale", ones(None, "embed"), (flat.shape[0], flat.shape[-1]))
        return jax.vmap(rms_norm)(flat, scale).reshape(parts.shape)


class CrossAttention(nn.Module):
    """Grouped-query attention to a context whose keys and values are there already.

    Queries `[b q d]` may be the tokens of a row or its beams: all see the whole context.
    """

    cfg: Stack

    @nn.compact
    def __call__(self, x: Array, keys: Array, values: Array, exists: Array) -> Array:
        cfg = self.cfg
        query = self.param(
            "query",
            normal(cfg.initial_scale, "embed", "heads", None),
            (cfg.width, cfg.heads, cfg.head_size),
        )
        output = self.param(
            "output",
            normal(cfg.residual_scale, "heads", None, "embed"),
            (cfg.heads, cfg.head_size, cfg.width),
        )
        mask = exists[:, None, None, :]
        q = project(x, query)
        mixed = attention(q, keys, values, mask=mask, implementation=cfg.attention)
        return project(mixed.reshape(*x.shape[:2], -1), output.reshape(-1, cfg.width))


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """How a block is put together; OneRec-V2's way by default."""

    self_first: bool = False
    """Self-attention before cross-attention (OneRec)."""
    attention_norms: bool = True
    """Norms before both attentions; False as the equations of OneRec are printed."""


class LazyBlock(nn.Module):
    """Cross-attention to the context, causal self-attention, then a SwiGLU or a mixture of them.

    Returns its output, what self-attention kept (None unless asked), and the mixture's statistics
    (None without one). A key switches on dropout of all three branches.
    """

    cfg: Stack
    mixture: Mixture | None
    keep: bool = False
    arrangement: Arrangement = Arrangement()

    @nn.compact
    def __call__(
        self,
        x: Array,
        context: Context,
        rotation: Rotation,
        mask: Array | BeamMask,
        valid: Array,
        group: Array,
        cache: BeamKeys | None,
        key: Array | None,
    ) -> tuple[Array, tuple[Any, MixtureStatistics | None]]:
        cfg, rate = self.cfg, self.cfg.dropout
        kept = [None] * 3 if key is None else draw_kept(key, (3, *x.shape), rate)
        x = parallel.constrain(x, "batch", None, None)
        cross = CrossAttention(cfg, name="cross_attention")
        attend, own = Attention(cfg, name="attention"), None
        for branch in (
            ("attention", "cross") if self.arrangement.self_first else ("cross", "attention")
        ):
            if branch == "cross":
                read = self._normed("cross_attention_norm", x)
                mixed = cross(read, *context.of_group(group), context.exists)
                x = x + drop(mixed, kept[0], rate)
            else:
                mixed, own = attend(self._normed("attention_norm", x), rotation, mask, cache)
                x = x + drop(mixed, kept[1], rate)
        normed, statistics = RMSNorm(name="feedforward_norm")(x), None
        if self.mixture is None:
            branch = FeedForward(cfg, name="feedforward")(normed)
        else:
            experts = MixtureFeedForward(cfg, self.mixture, name="feedforward")
            branch, statistics = experts(normed, valid)
        x = x + drop(branch, kept[2], rate)
        return x, (own if self.keep else None, statistics)

    def _normed(self, name: str, x: Array) -> Array:
        return RMSNorm(name=name)(x) if self.arrangement.attention_norms else x


class LazyLayers(nn.Module):
    """`cfg.layers` blocks: the dense ones as one scan, then those with a mixture as another.

    Args of `__call__`:
        x: token vectors `[b l d]`; with a cache, one token a beam, `[b w d]`.
        context: the history.
        rotation: of the tokens' positions.
        mask: of all pairs, `[#b 1 l l]`; with a cache, a `BeamMask`.
        valid: False at tokens of no event, `[b l]` or `[b w]`: mixtures do not count them.
        cache: what the beams wrote, with a leading axis of layers.
        keys: one random key per layer, for dropout; None switches it off.

    Returns:
        The states, without norm; with `keep`, self-attention's keys and values (or the cache's
        updated ones) with a leading axis of layers; the mixtures' statistics, alike.
    """

    cfg: Stack
    groups: int
    mixture: Mixture | None
    dense_layers: int
    keep: bool = False
    arrangement: Arrangement = Arrangement()

    @nn.compact
    def __call__(
        self,
        x: Array,
        context: Context,
        rotation: Rotation,
        mask: Array | BeamMask,
        valid: Array,
        cache: BeamKeys | None = None,
        keys: Array | None = None,
    ) -> tuple[Array, Any, MixtureStatistics | None]:
        cfg = self.cfg
        # Layer i reads group floor(i groups / layers).
        groups = jnp.arange(cfg.layers, dtype=jnp.int32) * self.groups // cfg.layers
        dense = cfg.layers if self.mixture is None else self.dense_layers
        parts = (("dense", None, 0, dense), ("sparse", self.mixture, dense, cfg.layers))
        everything, statistics = [], None
        for name, mixture, begin, end in parts:
            if begin == end:
                continue
            layered = jax.tree.map(lambda a, b=begin, e=end: a[b:e], (groups, cache, keys))
            made = self._scan(end - begin)
            blocks = made(cfg, mixture, self.keep, self.arrangement, name=name)
            x, (own, statistics) = blocks(x, context, rotation, mask, valid, *layered)
            everything.append(own)
        kept = None
        if self.keep:
            kept = jax.tree.map(lambda *each: jnp.concatenate(each), *everything)
        return x, kept, statistics

    def _scan(self, length: int) -> Any:
        block = LazyBlock
        if self.cfg.remat and not self.keep:
            block = nn.remat(LazyBlock, prevent_cse=False)
        return nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(*(nn.broadcast,) * 4, 0, 0, 0),
            length=length,
            unroll=min(self.cfg.unroll, length),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )


class LevelHead(nn.Module):
    """Logits of codes: each level has a norm and an output matrix of its own.

    Args of `__call__`:
        x: states of all levels `[l b t d]`, or of one level `[b w d]`.
        level: None for all levels, else the level, which may be traced.
    """

    cfg: Stack
    space: TokenSpace

    @nn.compact
    def __call__(self, x: Array, level: int | Array | None = None) -> Array:
        shape = (self.space.levels, self.cfg.width)
        scale = self.param("scale", ones(None, "embed"), shape)
        if level is None:
            x = jax.vmap(rms_norm)(x, scale)
        else:
            x = rms_norm(x, scale[level])
        return CodeLogits(self.cfg, self.space, name="output")(x, level)
