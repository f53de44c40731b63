"""The layers of HSTU (Zhai et al., arXiv:2402.17152; METHODS B4), scanned.

    U, V, Q, K = SiLU(norm(x) W)        A = SiLU(Q K^T + bias) / n * M
    x = x + drop(U * norm(A V)) W_o + b_o

Both norms are layer norms without parameters, the second over all heads together. There is no
feed-forward: the gate U takes its place. Parameters are float32 and `dtype` is the type of the
arithmetic, while norms, scores and their activation are float32.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec import parallel
from jaxrec.backbones.dropout import draw_kept, drop
from jaxrec.backbones.item_transformer import check_dtype
from jaxrec.backbones.layers import normal, project, zeros
from jaxrec.backbones.masks import Predicate, TokenMetadata, packed
from jaxrec.backbones.pointwise_attention import LAST_BUCKET, RelativeBias, pointwise_attention


@dataclasses.dataclass(frozen=True)
class HstuStack:
    """Shape of the layers.

    Raises:
        ValueError: a size is not positive or does not divide, or an option is unknown.
    """

    layers: int
    width: int
    heads: int
    slots: int
    """Tokens of the longest row: the normaliser `n`, and the reach of the bias by position."""
    query_size: int | None = None
    """Numbers of a head's queries and keys; `width / heads` by default."""
    value_size: int | None = None
    """Numbers of a head's values and gates; `width / heads` by default."""
    dropout: float = 0.0
    """Of the gated mixture, before it is written into the residual stream; kept to 1/256."""
    position_bias: bool = True
    time_bias: bool = True
    block: int = 256
    """Queries that are attended at a time."""
    recompute: bool = True
    """Compute the attention weights of blocks anew in the backward pass."""
    remat: bool = False
    unroll: int = 1
    dtype: str = "float32"
    initial_scale: float = 0.02

    def __post_init__(self) -> None:
        sizes = ("layers", "width", "heads", "slots", "query_size", "value_size", "block", "unroll")
        for name in sizes:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if None in (self.query_size, self.value_size) and self.width % self.heads:
            raise ValueError(
                f"width={self.width} does not divide into heads={self.heads}; choose a width that "
                "is a multiple of heads, or give query_size and value_size."
            )
        check_dtype(self.dtype)
        if not 0.0 <= self.dropout <= 0.99:
            raise ValueError(f"dropout={self.dropout} must lie between 0 and 0.99.")
        if self.initial_scale <= 0:
            raise ValueError(f"initial_scale={self.initial_scale} must exceed 0.")

    @property
    def head_sizes(self) -> tuple[int, int]:
        """Numbers of a head's queries, and of its values."""
        even = self.width // self.heads
        return self.query_size or even, self.value_size or even

    @property
    def block_weights(self) -> int:
        """Weights of one layer that take part in products with the states."""
        query, value = self.head_sizes
        return self.width * self.heads * (2 * query + 3 * value)

    @property
    def parameters(self) -> int:
        """Parameters of all layers: matrices, the bias of the output, the tables of the bias."""
        positions = self.position_bias * (2 * self.slots - 1)
        times = self.time_bias * (LAST_BUCKET + 1)
        return self.layers * (self.block_weights + self.width + positions + times)

    def forward_flops(self, rows: int, length: int) -> float:
        """FLOPs of the layers over rows of `length` tokens, forward only."""
        pairs = length * self.heads * sum(self.head_sizes)
        return 2.0 * rows * length * self.layers * (self.block_weights + pairs)


class Read(NamedTuple):
    """What the layers computed of tokens that later ones may attend to."""

    keys: Array
    """`[layers b t h d]`, without the first axis inside a layer."""
    values: Array
    """`[layers b t h dv]`."""


def plain_norm(x: Float[Array, "*n d"], epsilon: float = 1e-6) -> Float[Array, "*n d"]:
    """Mean 0 and variance 1 over the last axis, in float32, without parameters.

    Where all numbers are equal, as in the mixture of a query that sees nothing, the result is 0.
    """
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


def unit_norm(x: Float[Array, "*n d"], epsilon: float = 1e-6) -> Float[Array, "*n d"]:
    """Length 1 over the last axis, in float32; what is shorter than `epsilon` stays shorter."""
    wide = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(jnp.maximum(square, epsilon**2))).astype(x.dtype)


class HstuBlock(nn.Module):
    """One layer; a key switches on dropout. Arguments as `HstuLayers`, of one layer."""

    cfg: HstuStack
    allow: Predicate
    ordered: bool
    keep: bool

    @nn.compact
    def __call__(
        self,
        x: Array,
        query: TokenMetadata,
        key: TokenMetadata,
        read: Read | None,
        dropout_key: Array | None,
    ) -> tuple[Array, Read | None]:
        cfg = self.cfg
        x = parallel.constrain(x, "batch", None, None)
        own = self._projections(plain_norm(x))
        gate, q, keys, values = own["gate"], own["query"], own["key"], own["value"]
        if read is not None:
            keys = jnp.concatenate([read.keys, keys], axis=1)
            values = jnp.concatenate([read.values, values], axis=1)
        mixed = pointwise_attention(
            *(q, keys, values, query, key),
            normaliser=cfg.slots,
            bias=self._bias(),
            allow=self.allow,
            block=cfg.block,
            ordered=self.ordered,
            recompute=cfg.recompute,
        )
        flat = (*x.shape[:2], -1)
        gated = gate.reshape(flat) * plain_norm(mixed.reshape(flat))
        kept = None if dropout_key is None else draw_kept(dropout_key, gated.shape, cfg.dropout)
        x = x + self._output(drop(gated, kept, cfg.dropout))
        return x, Read(own["key"], own["value"]) if self.keep else None

    def _projections(self, normed: Array) -> dict[str, Array]:
        """Gates, values, queries and keys, `[b t h d]` each."""
        cfg = self.cfg
        query_size, value_size = cfg.head_sizes
        sizes = {"gate": value_size, "value": value_size, "query": query_size, "key": query_size}
        init = normal(cfg.initial_scale, "embed", "heads", None)
        return {
            name: jax.nn.silu(project(normed, self.param(name, init, (cfg.width, cfg.heads, size))))
            for name, size in sizes.items()
        }

    def _bias(self) -> RelativeBias:
        cfg, init = self.cfg, normal(self.cfg.initial_scale, None)
        positions, times = (2 * cfg.slots - 1,), (LAST_BUCKET + 1,)
        return RelativeBias(
            self.param("position_bias", init, positions) if cfg.position_bias else None,
            self.param("time_bias", init, times) if cfg.time_bias else None,
        )

    def _output(self, gated: Array) -> Array:
        cfg = self.cfg
        glorot = nn.initializers.xavier_uniform(in_axis=(0, 1), out_axis=2)
        init: Any = nn.with_logical_partitioning(glorot, ("heads", None, "embed"))
        kernel = self.param("output", init, (cfg.heads, cfg.head_sizes[1], cfg.width))
        bias = self.param("output_bias", zeros("embed"), (cfg.width,))
        return project(gated, kernel.reshape(-1, cfg.width)) + bias.astype(gated.dtype)


class HstuLayers(nn.Module):
    """`cfg.layers` blocks as one scan.

    Args of `__call__`:
        x: vectors of the tokens, `[b t d]`.
        query: what mask and bias know of them as queries, arrays `[b t]`.
        key: what they know of the keys: those read before, then those of `x`.
        read: keys and values of what was read before, of all layers; None if nothing was.
        dropout_keys: one random key a layer; None switches dropout off.

    Returns:
        The states, and with `keep` what later tokens may attend to, otherwise None.
    """

    cfg: HstuStack
    allow: Predicate = packed
    ordered: bool = False
    """Whether `allow` forbids all that stands later in the row."""
    keep: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        query: TokenMetadata,
        key: TokenMetadata,
        read: Read | None = None,
        dropout_keys: Array | None = None,
    ) -> tuple[Array, Read | None]:
        cfg = self.cfg
        block = nn.remat(HstuBlock, prevent_cse=False) if cfg.remat else HstuBlock
        scanned = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, 0, 0),
            length=cfg.layers,
            unroll=cfg.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scanned(cfg, self.allow, self.ordered, self.keep, name="blocks")(
            x, query, key, read, dropout_keys
        )
