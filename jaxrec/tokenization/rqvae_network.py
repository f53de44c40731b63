"""The network of an RQ-VAE as pure functions: parameters, loss, codes and vectors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from jaxrec.tokenization.blocks import map_rows
from jaxrec.tokenization.gradient_modes import GradientMode, rotate, straight_through
from jaxrec.tokenization.mlp import Layer, apply_mlp
from jaxrec.tokenization.vector_quantization import (
    Distance,
    Pick,
    Quantized,
    ResidualMode,
    look_up,
    pick_nearest,
    quantize_residuals,
)

Reduction = Literal["mean", "sum"]
"""Of squared errors over the dimensions of a vector."""


class RqVaeParams(NamedTuple):
    """What is trained."""

    encoder: tuple[Layer, ...]
    decoder: tuple[Layer, ...]
    codebooks: tuple[Float[Array, "_ d"], ...]
    """One a level, Float[k_l, latent]."""


class RqVaeLosses(NamedTuple):
    """The parts of `rqvae_loss`, means over the batch, and what they were computed from."""

    reconstruction: Float[Array, ""]
    quantization: Float[Array, ""]
    quantized: Quantized
    summed: Float[Array, "b latent"]
    """Sums of the codewords, with the gradient that the mode gives them."""
    decoded: Float[Array, "b d"]


def apply_network(
    layers: tuple[Layer, ...], rows: Float[Array, "b i"], *, is_residual: bool = False
) -> Float[Array, "b o"]:
    """The perceptron of the rows, or what it adds to them where `is_residual` (i = o)."""
    out = apply_mlp(layers, rows)
    return rows + out if is_residual else out


def start_at_identity(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The same layers with a last one of zeros: x + MLP(x) starts as x."""
    return (*layers[:-1], jax.tree.map(jnp.zeros_like, layers[-1]))


def quantize_rows(
    params: RqVaeParams,
    rows: Float[Array, "b d"],
    *,
    residual_mode: ResidualMode = "paper",
    gradient: GradientMode = "straight_through",
    pick: Pick = pick_nearest,
    is_residual: bool = False,
) -> tuple[Quantized, Float[Array, "b latent"]]:
    """The encoder's output level by level, and the sum of its codewords as the decoder gets it.

    Args:
        gradient: how what the decoder says reaches the encoder: from the sum of all levels at once,
            straight through or by one rotation. In `gumbel` through the soft codewords that `pick`
            must give, and so to the codebooks as well.
    """
    latents = apply_network(params.encoder, rows, is_residual=is_residual)
    quantized = quantize_residuals(latents, params.codebooks, residual_mode, pick)
    if gradient == "straight_through":
        return quantized, straight_through(latents, quantized.total)
    if gradient == "rotation":
        return quantized, rotate(latents, quantized.total)
    return quantized, quantized.total


def rqvae_loss(
    params: RqVaeParams,
    rows: Float[Array, "b d"],
    *,
    residual_mode: ResidualMode = "paper",
    gradient: GradientMode = "straight_through",
    pick: Pick = pick_nearest,
    is_residual: bool = False,
    reduction: Reduction = "mean",
    beta: float = 0.25,
    reconstruction_weight: float = 1.0,
    quantization_weight: float = 1.0,
) -> tuple[Float[Array, ""], RqVaeLosses]:
    """Loss of a batch: the weighted sum of reconstruction and quantization.

        reconstruction  |x - Dec(z + sg(zhat - z))|^2            zhat: the sum of the codewords
        quantization    sum_l |sg(r_l) - e_l|^2 + beta |r_l - sg(e_l)|^2

    Both are means over the batch, and sums or means over dimensions.

    Args:
        rows: vectors, standardised where the quantizer does so.
        residual_mode: see `quantize_residuals`.
        gradient: see `quantize_rows`; the formula is that of `straight_through`.
        pick: how codes are chosen, see `quantize_residuals`.
        is_residual: both networks add to their input.
    """
    quantized, summed = quantize_rows(
        params,
        rows,
        residual_mode=residual_mode,
        gradient=gradient,
        pick=pick,
        is_residual=is_residual,
    )
    decoded = apply_network(params.decoder, summed, is_residual=is_residual)
    reconstruction = jnp.mean(jnp.sum((rows - decoded) ** 2, -1))
    quantization = jnp.mean(jnp.sum(quantized.codebook + beta * quantized.commitment, -1))
    if reduction == "mean":
        reconstruction = reconstruction / rows.shape[1]
        quantization = quantization / summed.shape[1]
    loss = reconstruction_weight * reconstruction + quantization_weight * quantization
    return loss, RqVaeLosses(reconstruction, quantization, quantized, summed, decoded)


@partial(jax.jit, static_argnames=("block", "is_residual"))
def latent_vectors(
    encoder: tuple[Layer, ...],
    rows: Float[Array, "n d"],
    *,
    block: int,
    is_residual: bool = False,
) -> Float[Array, "n latent"]:
    """The encoder's output, so many rows at once."""
    return map_rows(partial(apply_network, encoder, is_residual=is_residual), rows, block)


@partial(jax.jit, static_argnames=("block", "is_residual", "distance"))
def nearest_codes(
    params: RqVaeParams,
    rows: Float[Array, "n d"],
    *,
    block: int,
    is_residual: bool = False,
    distance: Distance = "euclidean",
) -> Int32[Array, "n l"]:
    """Codes of (standardised) vectors, so many rows at once."""
    pick = partial(pick_nearest, distance=distance)

    def encode_block(some: Array) -> Array:
        latents = apply_network(params.encoder, some, is_residual=is_residual)
        return quantize_residuals(latents, params.codebooks, pick=pick).codes

    return map_rows(encode_block, rows, block)


@partial(jax.jit, static_argnames=("is_residual",))
def decoded_codes(
    params: RqVaeParams, codes: Int32[Array, "n m"], *, is_residual: bool = False
) -> Float[Array, "n d"]:
    """The decoder's output for the sum of the first m levels' codewords."""
    total = look_up(params.codebooks[0], codes[:, 0])
    for level in range(1, codes.shape[1]):
        total = total + look_up(params.codebooks[level], codes[:, level])
    return apply_network(params.decoder, total, is_residual=is_residual)


def named_arrays(params: RqVaeParams) -> dict[str, np.ndarray]:
    """`encoder_0_weight`, `encoder_0_bias`, ..., `decoder_0_weight`, ..., `codebook_0`, ..."""
    arrays = {}
    for side, layers in (("encoder", params.encoder), ("decoder", params.decoder)):
        for number, layer in enumerate(layers):
            arrays[f"{side}_{number}_weight"] = np.asarray(layer.weight)
            arrays[f"{side}_{number}_bias"] = np.asarray(layer.bias)
    for level, codebook in enumerate(params.codebooks):
        arrays[f"codebook_{level}"] = np.asarray(codebook)
    return arrays


def named_shapes(widths: tuple[int, ...], sizes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of `named_arrays` for an encoder of these widths (vectors first, latent last).

    >>> list(named_shapes((5, 3), (8,)))
    ['encoder_0_weight', 'encoder_0_bias', 'decoder_0_weight', 'decoder_0_bias', 'codebook_0']
    >>> named_shapes((5, 3), (8,))["decoder_0_weight"]
    (3, 5)
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for side, order in (("encoder", widths), ("decoder", widths[::-1])):
        for number, pair in enumerate(pairwise(order)):
            shapes[f"{side}_{number}_weight"] = pair
            shapes[f"{side}_{number}_bias"] = pair[1:]
    for level, size in enumerate(sizes):
        shapes[f"codebook_{level}"] = (size, widths[-1])
    return shapes


def from_named(arrays: Mapping[str, Array], layers: int, levels: int) -> RqVaeParams:
    """The parameters of `named_arrays`."""
    encoder, decoder = (
        tuple(
            Layer(arrays[f"{side}_{number}_weight"], arrays[f"{side}_{number}_bias"])
            for number in range(layers)
        )
        for side in ("encoder", "decoder")
    )
    codebooks = tuple(arrays[f"codebook_{level}"] for level in range(levels))
    return RqVaeParams(encoder, decoder, codebooks)
