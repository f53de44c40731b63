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

from jaxrec.tokenization.kmeans import map_rows
from jaxrec.tokenization.mlp import Layer, apply_mlp
from jaxrec.tokenization.vector_quantization import (
    Quantized,
    ResidualMode,
    look_up,
    quantize_residuals,
    straight_through,
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


def rqvae_loss(
    params: RqVaeParams,
    rows: Float[Array, "b d"],
    *,
    residual_mode: ResidualMode = "paper",
    reduction: Reduction = "mean",
    beta: float = 0.25,
    quantization_weight: float = 1.0,
) -> tuple[Float[Array, ""], RqVaeLosses]:
    """Loss of a batch: reconstruction + quantization_weight * quantization.

        reconstruction  |x - Dec(z + sg(zhat - z))|^2            zhat: the sum of the codewords
        quantization    sum_l |sg(r_l) - e_l|^2 + beta |r_l - sg(e_l)|^2

    Both are means over the batch, and sums or means over dimensions.

    Args:
        rows: vectors, standardised where the quantizer does so.
        residual_mode: see `quantize_residuals`.
    """
    latents = apply_mlp(params.encoder, rows)
    quantized = quantize_residuals(latents, params.codebooks, residual_mode)
    decoded = apply_mlp(params.decoder, straight_through(latents, quantized.total))
    reconstruction = jnp.mean(jnp.sum((rows - decoded) ** 2, -1))
    quantization = jnp.mean(jnp.sum(quantized.codebook + beta * quantized.commitment, -1))
    if reduction == "mean":
        reconstruction = reconstruction / rows.shape[1]
        quantization = quantization / latents.shape[1]
    loss = reconstruction + quantization_weight * quantization
    return loss, RqVaeLosses(reconstruction, quantization, quantized)


@partial(jax.jit, static_argnames=("block",))
def latent_vectors(
    encoder: tuple[Layer, ...], rows: Float[Array, "n d"], *, block: int
) -> Float[Array, "n latent"]:
    """The encoder's output, so many rows at once."""
    return map_rows(partial(apply_mlp, encoder), rows, block)


@partial(jax.jit, static_argnames=("block",))
def nearest_codes(
    params: RqVaeParams, rows: Float[Array, "n d"], *, block: int
) -> Int32[Array, "n l"]:
    """Codes of (standardised) vectors, so many rows at once."""

    def encode_block(some: Array) -> Array:
        return quantize_residuals(apply_mlp(params.encoder, some), params.codebooks).codes

    return map_rows(encode_block, rows, block)


@jax.jit
def decoded_codes(params: RqVaeParams, codes: Int32[Array, "n m"]) -> Float[Array, "n d"]:
    """The decoder's output for the sum of the first m levels' codewords."""
    total = look_up(params.codebooks[0], codes[:, 0])
    for level in range(1, codes.shape[1]):
        total = total + look_up(params.codebooks[level], codes[:, level])
    return apply_mlp(params.decoder, total)


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
