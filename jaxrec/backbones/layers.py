"""The layers that decoders are made of, and the scanned stack of them.

Flax Linen serves as a thin parameter layer: a module declares its parameters, with the logical
name of every axis (`jaxrec.parallel.RULES`), and does its arithmetic in place. Parameters are
float32; `Stack.dtype` is the type of the arithmetic, while norms, rotations, softmax and logits are
float32. Names given here are the schema of checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec import parallel
from jaxrec.backbones.attention import IMPLEMENTATIONS, attention, shared_history_attention
from jaxrec.backbones.dropout import draw_kept, drop
from jaxrec.backbones.rotary import RopeScaling, Rotation, rotate
from jaxrec.types import PyTree

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Stack:
    """Shape of a stack of pre-norm blocks: grouped-query attention, then a SwiGLU.

    Raises:
        ValueError: a size is not positive or does not divide, or an option is unknown.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_size: int
    feedforward: int
    dropout: float = 0.0
    """Share of a residual branch that is dropped; kept to 1/256 (see `draw_kept`)."""
    rope_base: float = 1e4
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float = 1e-6
    attention_bias: bool = False
    """Biases of queries, keys and values (Qwen2.5)."""
    query_key_norm: bool = False
    """A norm of every query and key before they are rotated (Qwen3)."""
    remat: bool = False
    """Recompute a layer in the backward pass instead of keeping its intermediate results."""
    unroll: int = 1
    """Layers per iteration of the scan; `layers` compiles straight-line code."""
    dtype: str = "float32"
    initial_scale: float = 0.02
    attention: str = "xla"

    def __post_init__(self) -> None:
        sizes = ("layers", "width", "heads", "kv_heads", "head_size", "feedforward", "unroll")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"kv_heads={self.kv_heads} must divide heads={self.heads}; "
                "use equal numbers for plain multi-head attention."
            )
        if self.head_size % 2:
            raise ValueError(
                f"heads of {self.head_size} numbers cannot be rotated in pairs; "
                "choose width / heads even."
            )
        if not 0.0 <= self.dropout <= 0.99:
            raise ValueError(f"dropout={self.dropout} must lie between 0 and 0.99.")
        if self.rope_base <= 1 or min(self.initial_scale, self.norm_epsilon) <= 0:
            raise ValueError(
                f"rope_base={self.rope_base} must exceed 1, and "
                f"initial_scale={self.initial_scale} and norm_epsilon={self.norm_epsilon} 0."
            )
        _choose("dtype", self.dtype, DTYPES)
        _choose("attention", self.attention, IMPLEMENTATIONS)

    @property
    def residual_scale(self) -> float:
        """Initial scale of the projections that write into the residual stream (GPT-2)."""
        return self.initial_scale / (2 * self.layers) ** 0.5


class BeamKeys(NamedTuple):
    """What beams attend to in one layer, or, with a leading axis, in all layers."""

    keys: Array
    """Keys of the history, `[b t g d]`, shared by the beams."""
    values: Array
    beam_keys: Array
    """Keys of the tokens that each beam generated, `[b w s g d]`."""
    beam_values: Array


class BeamMask(NamedTuple):
    """Which of the keys exist: those of the history `[b t]`, and how many slots are filled."""

    keys: Array
    slot: Array | int
    """Slot that the newest token takes; the slots up to it are filled."""


def rms_norm(x: Float[Array, "*n d"], scale: Float[Array, " d"], epsilon: float = 1e-6) -> Array:
    """Divides by the root mean square over the last axis, in float32: `x / rms(x) * scale`."""
    wide = x.astype(jnp.float32)
    rms = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
    return (wide * (rms * scale)).astype(x.dtype)


def project(x: Float[Array, "*n d"], kernel: Float[Array, "d *out"]) -> Float[Array, "*n *out"]:
    """Multiplies the last axis of `x` with the first of `kernel`, in the type of `x`.

    One plain matrix product: on CPU a product over several row axes takes half as long again,
    forward and backward, and so do two kernels that lie in one array.
    """
    rows = x.reshape(-1, x.shape[-1])
    columns = kernel.astype(x.dtype).reshape(kernel.shape[0], -1)
    return (rows @ columns).reshape(*x.shape[:-1], *kernel.shape[1:])


def normal(scale: float, *axes: str | None) -> Callable[..., Any]:
    """Normal initialiser whose parameter carries logical axis names."""
    return nn.with_logical_partitioning(nn.initializers.normal(scale), axes)


def ones(*axes: str | None) -> Callable[..., Any]:
    """Initialiser of ones whose parameter carries logical axis names."""
    return nn.with_logical_partitioning(nn.initializers.ones_init(), axes)


def zeros(*axes: str | None) -> Callable[..., Any]:
    """Initialiser of zeros whose parameter carries logical axis names."""
    return nn.with_logical_partitioning(nn.initializers.zeros_init(), axes)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale, whose axis is named for the mesh."""

    epsilon: float = 1e-6
    axis: str | None = "embed"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", ones(self.axis), (x.shape[-1],))
        return rms_norm(x, scale, self.epsilon)


class Embedding(nn.Module):
    """A table of vectors, looked up by row; rows outside the table are clipped into it."""

    cfg: Stack
    rows: int

    @nn.compact
    def __call__(self, rows: Array) -> Array:
        init = normal(self.cfg.initial_scale, "vocab", "embed")
        table = self.param("table", init, (self.rows, self.cfg.width))
        return jnp.take(table.astype(self.cfg.dtype), rows, axis=0, mode="clip")


class Linear(nn.Module):
    """A linear map of the width onto itself, no bias."""

    cfg: Stack

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = normal(self.cfg.initial_scale, "embed", None)
        kernel = self.param("kernel", init, (self.cfg.width, self.cfg.width))
        return project(x, kernel)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions (METHODS B2)."""

    cfg: Stack

    @nn.compact
    def __call__(
        self, x: Array, rotation: Rotation, mask: Array | BeamMask, cache: BeamKeys | None = None
    ) -> tuple[Array, tuple[Array, Array]]:
        cfg = self.cfg
        init = cfg.initial_scale
        wide = (cfg.width, cfg.heads, cfg.head_size)
        narrow = (cfg.width, cfg.kv_heads, cfg.head_size)
        query = self.param("query", normal(init, "embed", "heads", None), wide)
        key = self.param("key", normal(init, "embed", "kv_heads", None), narrow)
        value = self.param("value", normal(init, "embed", "kv_heads", None), narrow)
        output = self.param(
            "output",
            normal(cfg.residual_scale, "heads", None, "embed"),
            (cfg.heads, cfg.head_size, cfg.width),
        )
        q, k, v = project(x, query), project(x, key), project(x, value)
        if cfg.attention_bias:
            q = q + self._bias("query_bias", "heads", q)
            k = k + self._bias("key_bias", "kv_heads", k)
            v = v + self._bias("value_bias", "kv_heads", v)
        if cfg.query_key_norm:
            q = RMSNorm(cfg.norm_epsilon, None, name="query_norm")(q)
            k = RMSNorm(cfg.norm_epsilon, None, name="key_norm")(k)
        q, k = rotate(q, rotation), rotate(k, rotation)
        if isinstance(mask, BeamMask):
            assert cache is not None, "beams attend to a cache"
            mixed, kept = _attend_from_beams(q, k, v, mask, cache)
        else:
            mixed, kept = attention(q, k, v, mask=mask, implementation=cfg.attention), (k, v)
        return project(mixed.reshape(*x.shape[:2], -1), output.reshape(-1, cfg.width)), kept

    def _bias(self, name: str, axis: str, x: Array) -> Array:
        return self.param(name, zeros(axis, None), x.shape[2:]).astype(x.dtype)


def _attend_from_beams(
    q: Array, k: Array, v: Array, mask: BeamMask, cache: BeamKeys
) -> tuple[Array, tuple[Array, Array]]:
    """Puts each beam's newest token into its slot and attends to history and slots."""
    start = (0, 0, mask.slot, 0, 0)
    beam_keys = jax.lax.dynamic_update_slice(cache.beam_keys, k[:, :, None], start)
    beam_values = jax.lax.dynamic_update_slice(cache.beam_values, v[:, :, None], start)
    filled = jnp.arange(beam_keys.shape[2]) <= mask.slot
    mixed = shared_history_attention(
        q, cache.keys, cache.values, mask.keys, beam_keys, beam_values, filled
    )
    return mixed, (beam_keys, beam_values)


class FeedForward(nn.Module):
    """SwiGLU, `(silu(x G) * x U) D`, no bias (Shazeer 2020)."""

    cfg: Stack

    @nn.compact
    def __call__(self, x: Array) -> Array:
        cfg = self.cfg
        shape = (cfg.width, cfg.feedforward)
        gate = self.param("gate", normal(cfg.initial_scale, "embed", "mlp"), shape)
        up = self.param("up", normal(cfg.initial_scale, "embed", "mlp"), shape)
        down = self.param("down", normal(cfg.residual_scale, "mlp", "embed"), shape[::-1])
        return project(jax.nn.silu(project(x, gate)) * project(x, up), down)


class Block(nn.Module):
    """One pre-norm layer. Returns its output and what `Attention` kept (None unless asked).

    A key switches on dropout of both residual branches.
    """

    cfg: Stack
    keep: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        rotation: Rotation,
        mask: Array | BeamMask,
        cache: BeamKeys | None,
        key: Array | None,
    ) -> tuple[Array, tuple[Array, Array] | None]:
        rate = self.cfg.dropout
        first, second = (None, None) if key is None else draw_kept(key, (2, *x.shape), rate)
        x = parallel.constrain(x, "batch", None, None)
        normed = RMSNorm(self.cfg.norm_epsilon, name="attention_norm")(x)
        mixed, kept = Attention(self.cfg, name="attention")(normed, rotation, mask, cache)
        x = x + drop(mixed, first, rate)
        normed = RMSNorm(self.cfg.norm_epsilon, name="feedforward_norm")(x)
        x = x + drop(FeedForward(self.cfg, name="feedforward")(normed), second, rate)
        return x, kept if self.keep else None


class Layers(nn.Module):
    """`cfg.layers` blocks as one scan, then a norm.

    Args of `__call__`:
        x: token vectors `[b t d]`; with a cache, one token a beam, `[b w d]`.
        rotation: of the tokens' positions.
        mask: of all pairs, `[b 1 t t]`; with a cache, a `BeamMask`.
        cache: what the beams attend to, with a leading axis of layers.
        keys: one random key per layer, for dropout; None switches it off.

    Returns:
        The normed states, and, with `keep`, two arrays with a leading axis of layers: keys and
        values `[layers b t g d]`, or the cache's updated beam keys and beam values.
    """

    cfg: Stack
    keep: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        rotation: Rotation,
        mask: Array | BeamMask,
        cache: BeamKeys | None = None,
        keys: Array | None = None,
    ) -> tuple[Array, tuple[Array, Array] | None]:
        cfg = self.cfg
        block = nn.remat(Block, prevent_cse=False) if cfg.remat and not self.keep else Block
        scanned = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, 0, 0),
            length=cfg.layers,
            unroll=cfg.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, kept = scanned(cfg, self.keep, name="blocks")(x, rotation, mask, cache, keys)
        return RMSNorm(cfg.norm_epsilon, name="norm")(x), kept


def logical_axes(boxed: PyTree) -> PyTree:
    """The logical axis names of a tree of boxed parameters, a tuple at each leaf."""
    return jax.tree.map(
        lambda box: box.names, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)
    )


def unbox(boxed: PyTree) -> PyTree:
    """Plain arrays: the boxes are dropped once, at initialisation."""
    return nn.meta.unbox(boxed)


def apply_module(module: nn.Module, params: PyTree, *inputs: Any, **named: Any) -> Any:
    """A module's output, as a function of its parameters."""
    return module.apply({"params": params}, *inputs, **named)


def _choose(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(allowed)}.")
