"""How features meet in ranking models: sums of products, without attention (METHODS B24).

- `factorization_machine`: all pairs of fields (Rendle 2010).
- `CrossLayers`: polynomials of rising degree, with a vector a layer (DCN, Wang et al. 2017,
  arXiv:1708.05123) or a matrix (DCN-V2, arXiv:2008.13535).
- `CompressedInteractions`: products of whole field vectors (xDeepFM, Lian et al. 2018,
  arXiv:1803.05170).
- `TokenMixing`: RankMixer's block (Zhu et al. 2025, arXiv:2507.15551).
- `GroupLayerNorm`: one norm a group of tokens (MTGR, arXiv:2505.18654).

Each is a plain function of its inputs and weights, and a module that holds the weights. Letters:
`m` fields or tokens, `d` numbers of a vector.
"""

from __future__ import annotations

from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrec.backbones.layers import normal, ones, zeros

CrossKind = Literal["vector", "matrix"]


def factorization_machine(vectors: Float[Array, "*n m d"]) -> Float[Array, "*n"]:
    """Sum of the inner products of all pairs of fields, in time linear in the fields:

        sum_{i<j} <v_i, v_j> = 1/2 sum_d ((sum_i v_id)^2 - sum_i v_id^2)

    Args:
        vectors: of the fields, each times the value of its feature.

    >>> import jax.numpy as jnp
    >>> factorization_machine(jnp.array([[1.0], [2.0], [3.0]])).item()  # 2 + 3 + 6
    11.0
    """
    wide = vectors.astype(jnp.float32)
    square_of_sum = jnp.square(jnp.sum(wide, axis=-2))
    sum_of_squares = jnp.sum(jnp.square(wide), axis=-2)
    return 0.5 * jnp.sum(square_of_sum - sum_of_squares, axis=-1)


def cross(
    first: Float[Array, "*n d"],
    x: Float[Array, "*n d"],
    kernel: Float[Array, "*k"],
    bias: Float[Array, " d"],
) -> Float[Array, "*n d"]:
    """One cross layer: every coordinate becomes a polynomial of one degree more.

        vector  [d]    x' = x_0 (x^T w) + b + x        DCN
        matrix  [d d]  x' = x_0 * (x W + b) + x        DCN-V2

    Args:
        first: x_0, what the first layer read.
        x: what the layer before gave.
        kernel: `w` or `W`; its rank says which.
        bias: `b`, outside the product with x_0 for a vector, inside for a matrix, as published.
    """
    kernel, bias = kernel.astype(x.dtype), bias.astype(x.dtype)
    if kernel.ndim == 1:
        return first * (x @ kernel)[..., None] + bias + x
    return first * (x @ kernel + bias) + x


class CrossLayers(nn.Module):
    """`layers` cross layers, `[*n d]` to `[*n d]`: polynomials of degree `layers + 1`.

    Raises:
        ValueError: no layer, or an unknown kind.
    """

    layers: int
    kind: CrossKind = "matrix"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.layers < 1 or self.kind not in get_args(CrossKind):
            raise ValueError(
                f"CrossLayers needs a layer and a kind out of {', '.join(get_args(CrossKind))}, "
                f"got {self.layers} and {self.kind!r}."
            )
        width = x.shape[-1]
        shape, axes = (width,), ("embed",)
        if self.kind == "matrix":
            shape, axes = (width, width), ("embed", None)
        init = normal(width**-0.5, "layers", *axes)
        kernels = self.param("kernel", init, (self.layers, *shape))
        biases = self.param("bias", zeros("layers", None), (self.layers, width))

        def layer(state: Array, weights: tuple[Array, Array]) -> tuple[Array, None]:
            return cross(x, state, *weights), None

        return jax.lax.scan(layer, x, (kernels, biases))[0]


def compress(
    first: Float[Array, "*n m d"], x: Float[Array, "*n h d"], kernel: Float[Array, "h m f"]
) -> Float[Array, "*n f d"]:
    """One layer of xDeepFM's compressed interaction network, linear as the paper found best:

        x'_f = sum_{h m} kernel_hmf (x_h * first_m)

    Args:
        first: the vectors of the fields.
        x: the feature maps of the layer before, the fields themselves at first.
        kernel: weights of every pair for each new feature map.
    """
    return jnp.einsum("...hd,...md,hmf->...fd", x, first, kernel.astype(x.dtype))


class CompressedInteractions(nn.Module):
    """xDeepFM's network: sums over `d` of the feature maps of every layer, `[*n m d]` to `[*n s]`.

    A feature map of layer `i` is of degree `i + 1` in the fields; `s = sum(maps)`.

    Raises:
        ValueError: no layer.
    """

    maps: tuple[int, ...]
    """Feature maps of each layer."""

    @nn.compact
    def __call__(self, fields: Array) -> Array:
        if not self.maps or min(self.maps) < 1:
            raise ValueError(f"maps={self.maps} needs a layer, of at least one feature map each.")
        x, found = fields, []
        for layer, maps in enumerate(self.maps, start=1):
            shape = (x.shape[-2], fields.shape[-2], maps)
            init = normal((shape[0] * shape[1]) ** -0.5, None, None, None)
            x = compress(fields, x, self.param(f"kernel_{layer}", init, shape))
            found.append(jnp.sum(x, axis=-1))
        return jnp.concatenate(found, axis=-1)


def mix_tokens(x: Float[Array, "*n m d"]) -> Float[Array, "*n m d"]:
    """RankMixer's token mixing: new token `i` is the `i`-th part of every token, in their order.

    As many parts as tokens, so that the shape stays and a residual can be added. No weights.

    Raises:
        ValueError: tokens do not divide the width.

    >>> import jax.numpy as jnp
    >>> mix_tokens(jnp.array([[1, 2, 3, 4], [5, 6, 7, 8]], jnp.float32)).tolist()
    [[1.0, 2.0, 5.0, 6.0], [3.0, 4.0, 7.0, 8.0]]
    """
    tokens, width = x.shape[-2:]
    if width % tokens:
        raise ValueError(
            f"vectors of {width} numbers do not divide into {tokens} parts, one a token; choose a "
            "width that is a multiple of the tokens."
        )
    parts = x.reshape(*x.shape[:-1], tokens, width // tokens)
    return jnp.swapaxes(parts, -2, -3).reshape(x.shape)


class TokenMixing(nn.Module):
    """One block of RankMixer, `[*n m d]` to the same: mixing, then a network of each token's own.

    s = norm(x + mix(x));  y_i = norm(s_i + gelu(s_i U_i + b_i) D_i + c_i)
    """

    expansion: int = 4
    """Width of the networks as a multiple of `d`."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        tokens, width = x.shape[-2:]
        wide = self.expansion * width
        up = self.param("up", normal(width**-0.5, None, "embed", "mlp"), (tokens, width, wide))
        up_bias = self.param("up_bias", zeros(None, "mlp"), (tokens, wide))
        down = self.param("down", normal(wide**-0.5, None, "mlp", "embed"), (tokens, wide, width))
        down_bias = self.param("down_bias", zeros(None, "embed"), (tokens, width))
        one = jnp.zeros(x.shape[:-1], jnp.int32)
        mixed = GroupLayerNorm(1, name="mixing_norm")(x + mix_tokens(x), one)
        hidden = jnp.einsum("...md,mdf->...mf", mixed, up.astype(x.dtype)) + up_bias.astype(x.dtype)
        out = jnp.einsum("...mf,mfd->...md", jax.nn.gelu(hidden), down.astype(x.dtype))
        out = mixed + out + down_bias.astype(x.dtype)
        return GroupLayerNorm(1, name="feedforward_norm")(out, one)


def group_layer_norm(
    x: Float[Array, "*n d"],
    group: Int[Array, "*n"],
    scale: Float[Array, "g d"],
    bias: Float[Array, "g d"],
    epsilon: float = 1e-6,
) -> Float[Array, "*n d"]:
    """Mean 0, variance 1 over the last axis in float32, then scale and bias of the token's group.

    Tokens of unlike meaning (a profile, a click, a candidate) lie in unlike spaces; MTGR gives
    each kind its own scale and bias.

    Args:
        x: tokens.
        group: kind of each token, from 0.
        scale: one row a group.
        bias: one row a group.
        epsilon: added to the variance.
    """
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(variance + epsilon)
    own_scale, own_bias = (jnp.take(rows, group, axis=0, mode="clip") for rows in (scale, bias))
    return (normed * own_scale + own_bias).astype(x.dtype)


class GroupLayerNorm(nn.Module):
    """`group_layer_norm` with learned scales and biases.

    Args of `__call__`:
        x: tokens `[*n d]`.
        group: kind of each token, int `[*n]`.
    """

    groups: int

    @nn.compact
    def __call__(self, x: Array, group: Array) -> Array:
        shape = (self.groups, x.shape[-1])
        scale = self.param("scale", ones(None, "embed"), shape)
        bias = self.param("bias", zeros(None, "embed"), shape)
        return group_layer_norm(x, group, scale, bias)
