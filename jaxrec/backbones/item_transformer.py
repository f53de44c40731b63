"""The transformer of SASRec and BERT4Rec: learned positions, LayerNorm, a two-layer feed-forward.

Three published arrangements of the norms, by name:

    query  x = norm(x); x = x + attend(q=x, kv=x before the norm); x = norm(x); x = x + feed(x)
           (SASRec as published: the residual carries the normed queries)
    pre    x = x + attend(norm(x)); x = x + feed(norm(x))
    post   x = norm(x + attend(x)); x = norm(x + feed(x))              (BERT)

`query` and `pre` end in one more norm. Layers are scanned; parameters are float32 and `dtype` is
the type of the arithmetic, while norms and softmax are float32.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxrec import parallel
from jaxrec.backbones.attention import attention
from jaxrec.backbones.dropout import draw_kept, drop
from jaxrec.backbones.layers import DTYPES, normal, ones, project, zeros

Norms = Literal["query", "pre", "post"]


@dataclasses.dataclass(frozen=True)
class ItemStack:
    """Shape of the layers.

    Raises:
        ValueError: a size is not positive or does not divide, or an option is unknown.
    """

    layers: int
    width: int
    heads: int
    feedforward: int
    dropout: float = 0.0
    """Of the residual branches and of what stands before them; kept to 1/256."""
    attention_dropout: float = 0.0
    """Of the attention probabilities."""
    norms: Norms = "pre"
    activation: str = "relu"
    remat: bool = False
    unroll: int = 1
    dtype: str = "float32"
    initial_scale: float = 0.02

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "feedforward", "unroll"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.width % self.heads:
            raise ValueError(
                f"width={self.width} does not divide into heads={self.heads}; choose a width that "
                "is a multiple of heads."
            )
        check_dtype(self.dtype)
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) <= 0.99:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 0.99.")
        for name, value, allowed in (
            ("norms", self.norms, get_args(Norms)),
            ("activation", self.activation, ("relu", "gelu")),
        ):
            if value not in allowed:
                raise ValueError(
                    f"{name}={value!r} is unknown; choose one of {', '.join(allowed)}."
                )

    @property
    def block_weights(self) -> int:
        """Weights of one layer that take part in matrix products."""
        return self.width * (4 * self.width + 2 * self.feedforward)

    @property
    def parameters(self) -> int:
        """Parameters of all layers and of the last norm."""
        biases = 4 * self.width + self.feedforward + self.width
        norms = 4 * self.width
        last = 0 if self.norms == "post" else 2 * self.width
        return self.layers * (self.block_weights + biases + norms) + last

    def forward_flops(self, rows: int, length: int) -> float:
        """FLOPs of the layers over rows of `length` tokens, forward only."""
        return 2.0 * rows * length * self.layers * (self.block_weights + 2 * length * self.width)


def check_dtype(dtype: str) -> None:
    """Refuses a type of arithmetic that networks do not know.

    Raises:
        ValueError: it is not one of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is unknown; choose one of {', '.join(DTYPES)}.")


class LayerNorm(nn.Module):
    """Mean 0, variance 1 over the last axis in float32, then a learned scale and bias."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", ones("embed"), (x.shape[-1],))
        bias = self.param("bias", zeros("embed"), (x.shape[-1],))
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(x.dtype)


class Affine(nn.Module):
    """A linear map with a bias."""

    width: int
    axes: tuple[str | None, str | None]
    initial_scale: float = 0.02

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = normal(self.initial_scale, *self.axes)
        kernel = self.param("kernel", init, (x.shape[-1], self.width))
        bias = self.param("bias", zeros(self.axes[1]), (self.width,))
        return project(x, kernel) + bias.astype(x.dtype)


class SelfAttention(nn.Module):
    """Multi-head attention with biases, and dropout of the attention probabilities."""

    cfg: ItemStack

    @nn.compact
    def __call__(self, queries: Array, keys: Array, mask: Array, kept: Array | None) -> Array:
        cfg = self.cfg
        split = (*queries.shape[:2], cfg.heads, cfg.width // cfg.heads)

        def heads(name: str, x: Array) -> Array:
            mapped = Affine(cfg.width, ("embed", "heads"), cfg.initial_scale, name=name)(x)
            return mapped.reshape(split)

        q, k, v = heads("query", queries), heads("key", keys), heads("value", keys)
        mixed = attention(q, k, v, mask=mask, kept=kept, rate=cfg.attention_dropout)
        output = Affine(cfg.width, ("heads", "embed"), cfg.initial_scale, name="output")
        return output(mixed.reshape(queries.shape))


class FeedForward(nn.Module):
    """Two linear maps with an activation, which SASRec also drops between them."""

    cfg: ItemStack

    @nn.compact
    def __call__(self, x: Array, kept: Array | None) -> Array:
        cfg = self.cfg
        raise_ = Affine(cfg.feedforward, ("embed", "mlp"), cfg.initial_scale, name="up")
        activation = jax.nn.relu if cfg.activation == "relu" else jax.nn.gelu
        hidden = drop(activation(raise_(x)), kept, cfg.dropout)
        return Affine(cfg.width, ("mlp", "embed"), cfg.initial_scale, name="down")(hidden)


class ItemBlock(nn.Module):
    """One layer; a key switches on dropout."""

    cfg: ItemStack

    @nn.compact
    def __call__(self, x: Array, mask: Array, key: Array | None) -> tuple[Array, None]:
        cfg = self.cfg
        x = parallel.constrain(x, "batch", None, None)
        hidden, first, second, shares = self._draws(x, key)
        attend, feed = SelfAttention(cfg, name="attention"), FeedForward(cfg, name="feedforward")
        attention_norm = LayerNorm(name="attention_norm")
        feedforward_norm = LayerNorm(name="feedforward_norm")
        if cfg.norms == "post":
            x = attention_norm(x + drop(attend(x, x, mask, shares), first, cfg.dropout))
            return feedforward_norm(x + drop(feed(x, hidden), second, cfg.dropout)), None
        normed = attention_norm(x)
        if cfg.norms == "pre":
            x = x + drop(attend(normed, normed, mask, shares), first, cfg.dropout)
            return x + drop(feed(feedforward_norm(x), hidden), second, cfg.dropout), None
        x = feedforward_norm(normed + attend(normed, x, mask, shares))
        return x + drop(feed(x, hidden), second, cfg.dropout), None

    def _draws(self, x: Array, key: Array | None) -> tuple[Array | None, ...]:
        """What is kept: inside the feed-forward (published SASRec only), of the attention's output
        (all others), of the feed-forward's output, and of the attention probabilities."""
        cfg = self.cfg
        if key is None:
            return None, None, None, None
        branch_key, share_key = jax.random.split(key)
        rows, time, width = x.shape
        hidden = first = second = shares = None
        if cfg.dropout and cfg.norms == "query":
            kept = draw_kept(branch_key, (rows, time, cfg.feedforward + width), cfg.dropout)
            hidden, second = kept[..., : cfg.feedforward], kept[..., cfg.feedforward :]
        elif cfg.dropout:
            first, second = draw_kept(branch_key, (2, rows, time, width), cfg.dropout)
        if cfg.attention_dropout:
            shape = (rows, cfg.heads, time, time)
            shares = draw_kept(share_key, shape, cfg.attention_dropout)
        return hidden, first, second, shares


class ItemLayers(nn.Module):
    """`cfg.layers` blocks as one scan.

    Args of `__call__`:
        x: vectors of the events, `[b t d]`.
        mask: who may see whom, `[b 1 t t]`.
        keys: one random key a layer, for dropout; None switches it off.
    """

    cfg: ItemStack

    @nn.compact
    def __call__(self, x: Array, mask: Array, keys: Array | None = None) -> Array:
        cfg = self.cfg
        block = nn.remat(ItemBlock, prevent_cse=False) if cfg.remat else ItemBlock
        scanned = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0),
            length=cfg.layers,
            unroll=cfg.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = scanned(cfg, name="blocks")(x, mask, keys)
        return x if cfg.norms == "post" else LayerNorm(name="norm")(x)


class ItemTable(nn.Module):
    """A table of vectors, whole: the caller looks up rows and multiplies with it."""

    rows: int
    width: int
    initial_scale: float = 0.02
    axis: str | None = "vocab"

    @nn.compact
    def __call__(self) -> Array:
        init = normal(self.initial_scale, self.axis, "embed")
        return self.param("table", init, (self.rows, self.width))


def split_keys(key: Array | None, dropout: bool, layers: int) -> tuple[Array | None, Array | None]:
    """Keys of the input's dropout and of every layer; None where nothing is dropped."""
    if key is None or not dropout:
        return None, None
    keys = jax.random.split(key, layers + 1)
    return keys[0], keys[1:]
