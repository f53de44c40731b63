"""The encoder of OneRec: pathways of a history, and the layers over them (arXiv:2506.13695, B5).

Every event is described by its item, its age and what the user did, and a small network makes one
vector of them. Pathways differ in the events they read: the newest ones, the newest ones that the
user liked, and all of them through a few learned queries (a QFormer, arXiv:2301.12597).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from jaxrec import parallel
from jaxrec.backbones.dropout import draw_kept, drop
from jaxrec.backbones.layers import Embedding, FeedForward, RMSNorm, Stack, normal, project, zeros
from jaxrec.backbones.lazy_layers import CrossAttention

AGES = 32
"""Buckets of an event's age: powers of two of seconds."""


class EventFeatures(NamedTuple):
    """What is known of the events of histories, arrays `[b t]` and `[b t d]`."""

    vector: Array
    """Sum of the vectors of the item's codes."""
    age: Array
    """Seconds between the event and the newest one of the row."""
    action: Array
    exists: Array
    """False at padding."""

    def take(self, index: Int32[Array, "b s"], exists: Bool[Array, "b s"]) -> EventFeatures:
        """Those of chosen events."""
        return EventFeatures(
            jnp.take_along_axis(self.vector, index[..., None], axis=1),
            jnp.take_along_axis(self.age, index, axis=1),
            jnp.take_along_axis(self.action, index, axis=1),
            exists,
        )


def newest(
    chosen: Bool[Array, "b t"], count: int
) -> tuple[Int32[Array, "b c"], Bool[Array, "b c"]]:
    """Where the newest chosen events of each row are, oldest first, on the right.

    Args:
        chosen: which events count; later columns are newer.
        count: how many to give.

    Returns:
        Columns, and whether there is such an event.

    Example:
        >>> import jax.numpy as jnp
        >>> index, there = newest(jnp.array([[True, False, True, True]]), 2)
        >>> index.tolist(), there.tolist()
        ([[2, 3]], [[True, True]])
    """
    from_right = jnp.cumsum(chosen[:, ::-1], axis=1)[:, ::-1]  # 1 at the newest chosen event
    wanted = jnp.arange(count, 0, -1)
    hits = chosen[:, None] & (from_right[:, None] == wanted[:, None])
    return jnp.argmax(hits, axis=-1).astype(jnp.int32), jnp.any(hits, axis=-1)


def age_bucket(age: Int32[Array, "*any"]) -> Int32[Array, "*any"]:
    """`floor(log2(1 + seconds))`; the future counts as now.

    Example:
        >>> import jax.numpy as jnp
        >>> age_bucket(jnp.array([0, 1, 3600, 2**31 - 1])).tolist()
        [0, 1, 11, 31]
    """
    seconds = jnp.maximum(age, 0).astype(jnp.uint32) + 1
    return (31 - jax.lax.clz(seconds)).astype(jnp.int32)  # exact, as no logarithm is


class DescribeEvents(nn.Module):
    """One vector an event: item, age and action side by side, through two linear maps with a leaky
    ReLU between them."""

    cfg: Stack
    actions: int
    feature_width: int

    @nn.compact
    def __call__(self, events: EventFeatures) -> Array:
        cfg, width = self.cfg, self.cfg.width
        narrow = dataclasses.replace(cfg, width=self.feature_width)
        action = jnp.clip(events.action, 0, self.actions - 1)
        x = jnp.concatenate(
            [
                events.vector,
                Embedding(narrow, AGES, name="ages")(age_bucket(events.age)),
                Embedding(narrow, self.actions, name="actions")(action),
            ],
            axis=-1,
        )
        scale = cfg.initial_scale
        into = self.param("into", normal(scale, "embed", "mlp"), (x.shape[-1], width))
        bias = self.param("bias", zeros("mlp"), (width,))
        out = self.param("out", normal(scale, "mlp", "embed"), (width, width))
        hidden = project(x, into) + bias.astype(x.dtype)
        return project(jax.nn.leaky_relu(hidden), out)


class KeysValues(nn.Module):
    """Keys and values of states for attention from elsewhere, `[b t g d]` each."""

    cfg: Stack

    @nn.compact
    def __call__(self, states: Array) -> tuple[Array, Array]:
        cfg = self.cfg
        shape = (cfg.width, cfg.kv_heads, cfg.head_size)
        init = normal(cfg.initial_scale, "embed", "kv_heads", None)
        key, value = self.param("key", init, shape), self.param("value", init, shape)
        return project(states, key), project(states, value)


class QueryBlock(nn.Module):
    """Learned queries attend to events, then a SwiGLU."""

    cfg: Stack

    @nn.compact
    def __call__(self, x: Array, events: Array, exists: Array) -> tuple[Array, None]:
        keys, values = KeysValues(self.cfg, name="events")(events)
        cross = CrossAttention(self.cfg, name="cross_attention")
        x = x + cross(RMSNorm(name="cross_attention_norm")(x), keys, values, exists)
        return x + FeedForward(self.cfg, name="feedforward")(
            RMSNorm(name="feedforward_norm")(x)
        ), None


class Queries(nn.Module):
    """As many vectors as there are queries, of however many events (QFormer)."""

    cfg: Stack
    queries: int

    @nn.compact
    def __call__(self, events: Array, exists: Array) -> Array:
        cfg = self.cfg
        init = normal(cfg.initial_scale, None, "embed")
        table = self.param("queries", init, (self.queries, cfg.width)).astype(events.dtype)
        x = jnp.broadcast_to(table, (events.shape[0], *table.shape))
        blocks = nn.scan(
            QueryBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=cfg.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = blocks(cfg, name="blocks")(x, events, exists)
        return RMSNorm(name="norm")(x)


class EncoderBlock(nn.Module):
    """Attention among all tokens of the pathways, then a SwiGLU; a key switches on dropout."""

    cfg: Stack

    @nn.compact
    def __call__(self, x: Array, exists: Array, key: Array | None) -> tuple[Array, None]:
        cfg, rate = self.cfg, self.cfg.dropout
        first, second = (None, None) if key is None else draw_kept(key, (2, *x.shape), rate)
        x = parallel.constrain(x, "batch", None, None)
        normed = RMSNorm(name="attention_norm")(x)
        keys, values = KeysValues(cfg, name="tokens")(normed)
        x = x + drop(
            CrossAttention(cfg, name="attention")(normed, keys, values, exists), first, rate
        )
        branch = FeedForward(cfg, name="feedforward")(RMSNorm(name="feedforward_norm")(x))
        return x + drop(branch, second, rate), None


class Encoder(nn.Module):
    """Tokens of all pathways with learned positions, through `cfg.layers` blocks and a norm.

    Args of `__call__`:
        x: `[b s d]`.
        exists: which tokens are there, `[b s]`.
        keys: one random key a layer, for dropout; None switches it off.
    """

    cfg: Stack

    @nn.compact
    def __call__(self, x: Array, exists: Array, keys: Array | None = None) -> Array:
        cfg = self.cfg
        shape = (x.shape[1], cfg.width)
        positions = self.param("positions", normal(cfg.initial_scale, None, "embed"), shape)
        block = nn.remat(EncoderBlock, prevent_cse=False) if cfg.remat else EncoderBlock
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0),
            length=cfg.layers,
            unroll=cfg.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = blocks(cfg, name="blocks")(x + positions.astype(x.dtype), exists, keys)
        return RMSNorm(name="norm")(x)


class CrossKeys(nn.Module):
    """Keys and values of the encoder's states for every layer of the decoder, layers in front."""

    cfg: Stack

    @nn.compact
    def __call__(self, states: Array) -> tuple[Array, Array]:
        cfg = self.cfg
        shape = (cfg.layers, cfg.width, cfg.kv_heads, cfg.head_size)
        init = normal(cfg.initial_scale, "layers", "embed", "kv_heads", None)
        key, value = self.param("key", init, shape), self.param("value", init, shape)
        each = jax.vmap(lambda kernel: project(states, kernel))
        return each(key), each(value)
