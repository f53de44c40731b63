"""The layers of T5 and their two scanned stacks (Raffel et al., arXiv:1910.10683; METHODS B1).

Every module follows T5: norms before the branches and without bias, attention scores that are not
divided by sqrt(head size), and a learned bias for the distance between two tokens. That bias
belongs to a stack, is added in each of its layers, and is absent from cross-attention. As
everywhere, parameters are float32, `T5Shape.dtype` is the type of the arithmetic, and norms,
scores and softmax are float32. Names given here are the schema of checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from jaxrec import parallel
from jaxrec.backbones.attention import (
    history_attention,
    slot_attention,
    unscaled_attention,
)
from jaxrec.backbones.dropout import draw_kept, drop
from jaxrec.backbones.layers import DTYPES, RMSNorm, apply_module, normal, project
from jaxrec.types import PyTree


@dataclasses.dataclass(frozen=True)
class T5Shape:
    """Shape of a stack of T5 blocks.

    Raises:
        ValueError: a size is not positive, or an option is unknown.
    """

    layers: int
    width: int
    heads: int
    head_size: int
    feedforward: int
    gated: bool = False
    """Gated GELU (v1.1) instead of ReLU (v1.0)."""
    dropout: float = 0.0
    inner_dropout: bool = True
    """Also on attention probabilities and inside the feed-forward network."""
    distance_buckets: int = 32
    max_distance: int = 128
    remat: bool = False
    unroll: int = 1
    dtype: str = "float32"
    initial_factor: float = 1.0

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "head_size", "feedforward", "unroll"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if not 0.0 <= self.dropout <= 0.99:
            raise ValueError(f"dropout={self.dropout} must lie between 0 and 0.99.")
        if self.distance_buckets < 4 or self.distance_buckets % 4:
            raise ValueError(
                f"distance_buckets={self.distance_buckets} must be a multiple of 4: half of them "
                "count single steps, and the encoder halves them for the two directions."
            )
        if self.max_distance <= self.distance_buckets // 2:
            raise ValueError(
                f"max_distance={self.max_distance} must exceed half of "
                f"distance_buckets={self.distance_buckets}, which count single steps."
            )
        if self.initial_factor <= 0:
            raise ValueError(f"initial_factor={self.initial_factor} must exceed 0.")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} is unknown; choose one of {', '.join(DTYPES)}.")


class Seen(NamedTuple):
    """Which keys a query sees, and the bias of each pair's distance."""

    mask: Array
    """`[#b 1 #q t]`."""
    bias: Array | None = None
    """`[1 h q t]`, float32."""


class KeyValues(NamedTuple):
    """Keys and values of one layer: of the tokens that each beam wrote, `[b w s h d]`, or of the
    newest one, `[b w h d]`."""

    keys: Array
    values: Array


class History(NamedTuple):
    """Keys and values of one layer that all beams of a row read at every step, as
    `history_attention` wants them."""

    keys: Array
    """`[b h d t]`."""
    values: Array
    """`[b h t d]`."""


def turn_history(keys: Float[Array, "b t h d"], values: Float[Array, "b t h d"]) -> History:
    """A history as `history_attention` wants it. Turned by itself: see there."""
    keys, values = jax.lax.optimization_barrier((keys, values))
    return History(jnp.transpose(keys, (0, 2, 3, 1)), jnp.transpose(values, (0, 2, 1, 3)))


class BeamSlots(NamedTuple):
    """How beams see the tokens they wrote themselves, the same in every layer."""

    slot: Array | int
    """Slot that the newest token takes; the slots up to it are filled."""
    parents: Array
    """Beam of before that each beam continues, `[b w]`."""
    bias: Array
    """Bias of every slot, `[h s]`, float32."""


def distance_bucket(
    distance: Int32[Array, "*n"], *, bidirectional: bool, buckets: int = 32, max_distance: int = 128
) -> Int32[Array, "*n"]:
    """Row of the bias table for the distance `key - query` (METHODS B1, Hugging Face's rule).

    Half of the buckets hold one distance each; in the rest each holds a range, and the ranges grow
    geometrically up to `max_distance`, beyond which everything is one bucket. An encoder spends
    half of the buckets on keys that come after the query; a decoder sees none of those and counts
    them as distance 0. Bounds are integers found in advance, so no rounding of logarithms decides.

    >>> import jax.numpy as jnp
    >>> distance_bucket(jnp.array([-200, -16, -1, 0, 1, 64]), bidirectional=True).tolist()
    [15, 10, 1, 0, 17, 30]
    >>> distance_bucket(jnp.array([-200, -16, -1, 0, 1, 64]), bidirectional=False).tolist()
    [31, 16, 1, 0, 0, 0]
    """
    if bidirectional:
        buckets //= 2
        first = jnp.where(distance > 0, buckets, 0)
        steps = jnp.abs(distance)
    else:
        first, steps = 0, jnp.maximum(-distance, 0)
    exact = buckets // 2
    ratio, ranges = max_distance / exact, buckets - exact
    # The small number keeps powers that are integers, such as 8 * 16 ** (2 / 8), where they are.
    bounds = [-int(-(exact * ratio ** (i / ranges) - 1e-6) // 1) for i in range(1, ranges)]
    beyond = sum((steps >= bound).astype(jnp.int32) for bound in bounds)
    return (first + jnp.minimum(steps, exact) + beyond).astype(jnp.int32)


class DistanceBias(nn.Module):
    """The learned bias of a stack: distances `key - query` of any shape to `[h *shape]`."""

    cfg: T5Shape
    bidirectional: bool

    @nn.compact
    def __call__(self, distance: Array) -> Array:
        cfg = self.cfg
        scale = cfg.initial_factor * cfg.width**-0.5
        table = self.param("table", normal(scale, None, "heads"), (cfg.distance_buckets, cfg.heads))
        bucket = distance_bucket(
            distance,
            bidirectional=self.bidirectional,
            buckets=cfg.distance_buckets,
            max_distance=cfg.max_distance,
        )
        return jnp.moveaxis(table[bucket], -1, 0)


class Attention(nn.Module):
    """Multi-head attention of T5, no bias in the projections, `heads * head_size` of any size.

    Args of `__call__`:
        x: queries' states, `[b q d]`; with slots, one token a beam, `[b w d]`.
        source: states `[b t d]` that keys and values are made of, or those of a history, made
            before.
        seen: the pairs; with slots, how beams see their own tokens.
        slots: what the beams wrote before.
        key: for dropout of the probabilities; None switches it off.

    Returns:
        The branch `[b q d]`, and the slots with the newest token in them (else None).
    """

    cfg: T5Shape

    @nn.compact
    def __call__(
        self,
        x: Array,
        source: Array | History,
        seen: Seen | BeamSlots,
        slots: KeyValues | None = None,
        key: Array | None = None,
    ) -> tuple[Array, KeyValues | None]:
        cfg, inner = self.cfg, (self.cfg.width, self.cfg.heads, self.cfg.head_size)
        factor, heads = cfg.initial_factor, ("embed", "heads", None)
        narrow = factor * (cfg.width * cfg.head_size) ** -0.5
        query = self.param("query", normal(narrow, *heads), inner)
        to_keys = self.param("key", normal(factor * cfg.width**-0.5, *heads), inner)
        to_values = self.param("value", normal(factor * cfg.width**-0.5, *heads), inner)
        output = self.param(
            "output",
            normal(factor * (cfg.heads * cfg.head_size) ** -0.5, "heads", None, "embed"),
            (cfg.heads, cfg.head_size, cfg.width),
        )
        q = project(x, query)
        if isinstance(source, History):
            assert isinstance(seen, Seen), "a history is read whole"
            mixed = history_attention(q, *source, mask=seen.mask)
        elif isinstance(seen, BeamSlots):
            assert slots is not None, "beams attend to slots"
            newest = KeyValues(project(source, to_keys), project(source, to_values))
            own = fill_slots(slots, newest, seen)
            count = own.keys.shape[2]
            filled = jnp.arange(count) <= seen.slot
            mixed = slot_attention(q, *own, mask=filled, bias=seen.bias[:, :count])
            room = ((0, 0), (0, 0), (0, seen.bias.shape[1] - count), (0, 0), (0, 0))
            slots = KeyValues(*(jnp.pad(each, room) for each in own))
        else:
            k, v = project(source, to_keys), project(source, to_values)
            pairs = (x.shape[0], cfg.heads, x.shape[1], k.shape[1])
            kept = None if key is None else draw_kept(key, pairs, cfg.dropout)
            mixed = unscaled_attention(
                q, k, v, mask=seen.mask, bias=seen.bias, kept=kept, rate=cfg.dropout
            )
        return project(mixed.reshape(*x.shape[:2], -1), output.reshape(-1, cfg.width)), slots


def fill_slots(slots: KeyValues, newest: KeyValues, seen: BeamSlots) -> KeyValues:
    """The slots of the beams' parents, with their own newest key and value, `[b w h d]`.

    Only those up to the newest, where its slot is known while the program is made: what is never
    read need not be reordered.
    """
    slot, pick = seen.slot, seen.parents[:, :, None, None, None]

    def fill(old: Array, new: Array) -> Array:
        new = new[:, :, None]
        known = isinstance(slot, int)
        old = old[:, :, :slot] if known else old
        old = jnp.take_along_axis(old, pick, axis=1, mode="promise_in_bounds")
        if known:
            return jnp.concatenate([old, new], axis=2)
        return jnp.where((jnp.arange(old.shape[2]) == slot)[:, None, None], new, old)

    return KeyValues(*map(fill, slots, newest))


class FeedForward(nn.Module):
    """`relu(x U) D` (v1.0), or `(gelu(x G) * x U) D` (v1.1), no bias."""

    cfg: T5Shape

    @nn.compact
    def __call__(self, x: Array, key: Array | None = None) -> Array:
        cfg, shape = self.cfg, (self.cfg.width, self.cfg.feedforward)
        into = normal(cfg.initial_factor * cfg.width**-0.5, "embed", "mlp")
        out = normal(cfg.initial_factor * cfg.feedforward**-0.5, "mlp", "embed")
        hidden = project(x, self.param("up", into, shape))
        if cfg.gated:
            hidden = hidden * jax.nn.gelu(project(x, self.param("gate", into, shape)))
        else:
            hidden = jax.nn.relu(hidden)
        kept = None if key is None else draw_kept(key, hidden.shape, cfg.dropout)
        hidden = drop(hidden, kept, cfg.dropout)
        return project(hidden, self.param("down", out, shape[::-1]))


class _Drops(NamedTuple):
    """The dropout of one block: what is kept of each residual branch, and keys inside them."""

    branches: Any
    inner: Any


def _draw_drops(cfg: T5Shape, key: Array | None, shape: tuple[int, ...], branches: int) -> _Drops:
    if key is None:
        return _Drops([None] * branches, [None] * branches)
    keys = jax.random.split(key, branches + 1)
    kept = draw_kept(keys[0], (branches, *shape), cfg.dropout)
    return _Drops(kept, keys[1:] if cfg.inner_dropout else [None] * branches)


class EncoderBlock(nn.Module):
    """Self-attention and feed-forward. A key switches on dropout."""

    cfg: T5Shape

    @nn.compact
    def __call__(self, x: Array, seen: Seen, key: Array | None) -> tuple[Array, None]:
        cfg = self.cfg
        kept, inner = _draw_drops(cfg, key, x.shape, 2)
        x = parallel.constrain(x, "batch", None, None)
        normed = RMSNorm(name="attention_norm")(x)
        branch, _ = Attention(cfg, name="attention")(normed, normed, seen, key=inner[0])
        x = x + drop(branch, kept[0], cfg.dropout)
        normed = RMSNorm(name="feedforward_norm")(x)
        branch = FeedForward(cfg, name="feedforward")(normed, inner[1])
        return x + drop(branch, kept[1], cfg.dropout), None


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention to the encoder's states, feed-forward."""

    cfg: T5Shape

    @nn.compact
    def __call__(
        self,
        x: Array,
        seen: Seen | BeamSlots,
        source: Array | History,
        source_seen: Seen,
        slots: KeyValues | None,
        key: Array | None,
    ) -> tuple[Array, KeyValues | None]:
        cfg = self.cfg
        kept, inner = _draw_drops(cfg, key, x.shape, 3)
        x = parallel.constrain(x, "batch", None, None)
        normed = RMSNorm(name="attention_norm")(x)
        branch, slots = Attention(cfg, name="attention")(normed, normed, seen, slots, inner[0])
        x = x + drop(branch, kept[0], cfg.dropout)
        normed = RMSNorm(name="cross_attention_norm")(x)
        cross = Attention(cfg, name="cross_attention")
        branch, _ = cross(normed, source, source_seen, key=inner[1])
        x = x + drop(branch, kept[1], cfg.dropout)
        normed = RMSNorm(name="feedforward_norm")(x)
        branch = FeedForward(cfg, name="feedforward")(normed, inner[2])
        return x + drop(branch, kept[2], cfg.dropout), slots


class Encoder(nn.Module):
    """Reads a history: `cfg.layers` blocks as one scan, then a norm.

    Args of `__call__`:
        x: token vectors `[b t d]`.
        exists: which of them are no padding, `[b t]`.
        keys: two random keys for input and output and one per layer; None switches dropout off.
    """

    cfg: T5Shape

    @nn.compact
    def __call__(self, x: Array, exists: Array, keys: Array | None = None) -> Array:
        cfg, place = self.cfg, jnp.arange(x.shape[1], dtype=jnp.int32)
        bias = DistanceBias(cfg, bidirectional=True, name="bias")(place - place[:, None])
        seen = _whole(exists)._replace(bias=bias[None])
        inputs = (nn.broadcast, 0)
        x, _ = _scan(EncoderBlock, cfg, inputs)(drop_states(x, keys, 0, cfg), seen, _rest(keys))
        return drop_states(RMSNorm(name="norm")(x), keys, 1, cfg)


class Decoder(nn.Module):
    """Reads codes that are known: `cfg.layers` blocks as one scan, then a norm.

    Args of `__call__`:
        x: token vectors `[b l d]`.
        source: the encoder's states `[b t d]`.
        exists: which of the source's tokens are no padding, `[b t]`.
        keys: as in `Encoder`.
    """

    cfg: T5Shape

    @nn.compact
    def __call__(self, x: Array, source: Array, exists: Array, keys: Array | None = None) -> Array:
        cfg, place = self.cfg, jnp.arange(x.shape[1], dtype=jnp.int32)
        distance = place - place[:, None]
        bias = DistanceBias(cfg, bidirectional=False, name="bias")(distance)
        seen, source_seen = Seen((distance <= 0)[None, None], bias[None]), _whole(exists)
        inputs = (*(nn.broadcast,) * 4, 0)
        x = drop_states(x, keys, 0, cfg)
        blocks = _scan(DecoderBlock, cfg, inputs)
        x, _ = blocks(x, seen, source, source_seen, None, _rest(keys))
        return drop_states(RMSNorm(name="norm")(x), keys, 1, cfg)


def write_token(
    cfg: T5Shape,
    params: PyTree,
    x: Float[Array, "b w d"],
    history: Sequence[History],
    exists: Bool[Array, "b t"],
    slots: Sequence[KeyValues],
    slot: Array | int,
    parents: Int32[Array, "b w"],
) -> tuple[Float[Array, "b w d"], tuple[KeyValues, ...]]:
    """One more token of every beam through the blocks and the norm of `Decoder`.

    Layer by layer: a scan would copy each layer's part out of stacked caches and back at every
    step, which takes longer than the arithmetic.

    Args:
        cfg: shape of the decoder.
        params: of `Decoder`.
        x: vector of the newest token of each beam.
        history: of every layer.
        exists: which of the history's tokens are no padding.
        slots: of every layer, what the beams wrote before.
        slot: which slot the newest token takes.
        parents: which of those beams each beam continues.

    Returns:
        The normed states, and the slots with the newest token in them.
    """
    place = jnp.arange(slots[0].keys.shape[2], dtype=jnp.int32)
    bias = apply_module(DistanceBias(cfg, bidirectional=False), params["bias"], place - slot)
    seen, written = BeamSlots(slot, parents, bias), []
    for layer in range(cfg.layers):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"])
        x, own = apply_module(
            *(DecoderBlock(cfg), block, x, seen),
            *(history[layer], _whole(exists), slots[layer], None),
        )
        written.append(own)
    return apply_module(RMSNorm(), params["norm"], x), tuple(written)


def _whole(exists: Bool[Array, "b t"]) -> Seen:
    """Every query sees all that is no padding."""
    return Seen(exists[:, None, None, :])


def _scan(block: Any, cfg: T5Shape, in_axes: tuple) -> Any:
    """The blocks of a stack: parameters have a leading axis of layers."""
    block = nn.remat(block, prevent_cse=False) if cfg.remat else block
    scanned = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=cfg.layers,
        unroll=cfg.unroll,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned(cfg, name="blocks")


def _rest(keys: Array | None) -> Array | None:
    return None if keys is None else keys[2:]


def drop_states(x: Array, keys: Array | None, index: int, cfg: T5Shape) -> Array:
    """Dropout of whole states with one of the keys; none without keys."""
    kept = None if keys is None else draw_kept(keys[index], x.shape, cfg.dropout)
    return drop(x, kept, cfg.dropout)
