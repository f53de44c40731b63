"""RQ-VAE: an autoencoder whose latent vector is a sum of codewords, one a level.

    z = Enc(x);  r_1 = z;  c_l = argmin_k |r_l - e^l_k|^2;  r_{l+1} = r_l - e^l_{c_l}
    loss = |x - Dec(sum_l e^l)|^2 + sum_l ( |sg(r_l) - e^l|^2 + beta |r_l - sg(e^l)|^2 )

The tokenizer of TIGER (Rajput et al., arXiv:2305.05065) after the residual-quantized VAE of Lee et
al. (arXiv:2203.01941). METHODS T3 has the settings of the published systems; what they disagree
about is an option here: `residual_mode`, `reduction`, `quantization_weight`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from jaxrec.tokenization.blocks import block_rows
from jaxrec.tokenization.gradient_modes import Annealing, GradientMode
from jaxrec.tokenization.mlp import init_mlp
from jaxrec.tokenization.quantizer import Aux, check_codes, check_vectors, check_weights
from jaxrec.tokenization.regularizers import check_has, names_read
from jaxrec.tokenization.residual_kmeans import ResidualKMeans
from jaxrec.tokenization.rows import draw_rows, weight_ends, weighted_moments
from jaxrec.tokenization.rqvae_network import (
    Reduction,
    RqVaeParams,
    decoded_codes,
    from_named,
    latent_vectors,
    named_arrays,
    named_shapes,
    nearest_codes,
    start_at_identity,
)
from jaxrec.tokenization.rqvae_options import CodebookKind, check_options
from jaxrec.tokenization.rqvae_training import train
from jaxrec.tokenization.vector_quantization import Distance, ResidualMode
from jaxrec.training.optimizers import AdamW, Optimizer

_TRACE_POINTS = 20
_START_ITERATIONS = 25


@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class RqVaeTrace:
    """How the fit went."""

    reconstruction: Float[Array, " s"]
    """Reconstruction loss of every step's batch."""
    quantization: Float[Array, " s"]
    """Codebook and commitment losses of the same batches, before `quantization_weight`."""
    resets: Int32[Array, " l"]
    """Dead codes that were moved, of each level."""
    unused: Int32[Array, " l"]
    """Codes that no fitted row has in the end."""
    regularization: Float[Array, "s r"]
    """Loss of each regularizer in every step, before its weight."""


@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class RqVaeState:
    """A fitted RQ-VAE."""

    mean: Float[Array, " d"]
    """Of the fitted vectors; zeros where they are not standardised."""
    scale: Float[Array, " d"]
    """Their standard deviation, 1 in constant dimensions or where they are not standardised."""
    params: RqVaeParams
    trace: RqVaeTrace | None = None
    """Absent in a state read from disk."""


@dataclasses.dataclass(frozen=True)
class RqVae:
    """RQ-VAE over `levels` codebooks, trained by gradient descent.

    Codebooks start at the residual k-means of the untrained encoder's output. A level never has
    more codes than that output's residuals have different rows; `sizes(state)` says how many it
    got, `report(state)` how many were asked for.

    Published settings, METHODS T3: TIGER 3 x 256 codes, sum over dimensions, 20 k epochs; LC-Rec,
    LETTER and MiniOneRec `residual_mode="per_level_ste"`, `reduction="mean"`,
    `quantization_weight=1/levels`, wider encoders, AdamW 1e-3; LIGER `residual_mode="ema_cumsum"`,
    latent 128.

    Raises:
        ValueError: a number out of range; in the methods, bad vectors, codes or weights, or a loss
            that is no longer finite.
    """

    levels: int = 3
    """Codebooks."""
    codes: int | tuple[int, ...] = 256
    """Codes of every level, or of each."""
    hidden: tuple[int, ...] = (512, 256, 128)
    """Widths between the vectors and the latent vector, ReLU after each; the decoder has them in
    reverse. Empty makes both linear."""
    latent: int = 32
    """Width of the latent vector and the codewords."""
    standardise: bool = True
    """Train on (x - mean) / deviation of each dimension; `decode` undoes it. Without it, vectors
    of small variance collapse onto few codes."""
    residual_mode: ResidualMode = "paper"
    """Gradients of the later levels: `paper`, `per_level_ste`, `detach` or `ema_cumsum`; see
    `quantize_residuals`."""
    reduction: Reduction = "mean"
    """Over dimensions: `sum` (the formula) or `mean` (LC-Rec's family), which weighs the
    reconstruction less by the ratio of width to latent width."""
    beta: float = 0.25
    """Weight of the commitment."""
    quantization_weight: float = 1.0
    """Weight of all levels' codebook and commitment losses together. Heavy ones lose fewer IDs and
    reconstruct less: on Beauty's text vectors, rate .003, 1 loses 6.5 % of the IDs of different
    vectors and explains 70 % of the variance, 10 loses 3.4 % and explains 64 %."""
    steps: int = 2000
    """Updates; an epoch is rows / batch of them."""
    batch: int = 1024
    """Rows of an update, fewer where fewer were given; drawn in proportion to their weights."""
    optimizer: Optimizer = AdamW(learning_rate=1e-3, weight_decay=1e-4)
    """Of the networks and, but for `ema_cumsum`, the codebooks."""
    start_rows: int = 16384
    """Rows of the k-means that codebooks start from, at most."""
    dead_below: float = 0.05
    """A code is moved onto a residual of the batch when the moving average of its count falls
    below this fraction of an even share, batch / codes; 0 moves none."""
    settled: float = 0.2
    """Fraction of the steps, the last ones, in which no code is moved any more."""
    decay: float = 0.99
    """Of the moving averages of counts, and in `ema_cumsum` of codewords."""

    gradient: GradientMode = "straight_through"
    """What the reconstruction tells the encoder: `straight_through`, `rotation` (arXiv:2410.06424)
    or `gumbel`, which mixes codewords at random; see `gradient_modes`."""
    temperature: tuple[float, float] = (1.0, 0.5)
    """Of `gumbel`, at the first step and at the last."""
    annealing: Annealing = "geometric"
    """How the temperature falls between them: `geometric` or `linear`."""
    distance: Distance = "euclidean"
    """By which a codeword is near: `euclidean`, or `cosine`, which looks at directions only."""
    codebook: CodebookKind = "free"
    """`free`, or `simvq` (arXiv:2411.02038): a level's codes stay where they started, and a linear
    map of all of them is trained. Needs `dead_below=0`."""
    sinkhorn: tuple[float, ...] = ()
    """Epsilon of each level's even assignment in training, 0 for the nearest code; LC-Rec has
    (0, 0, 0, .003). Encoding always takes the nearest."""
    sinkhorn_iterations: int = 50
    """Of the even assignment."""
    residual_networks: bool = False
    """Encoder and decoder are x + MLP(x), at first the identity, so that the training starts as
    residual k-means of the vectors (RQ-KMeans+ of MiniOneRec, arXiv:2510.24431). `latent` must be
    their width."""
    regularizers: tuple[Any, ...] = ()
    """Further terms of the loss: `LetterCollaborative`, `LetterDiversity`,
    `ReconstructionContrast`, `QuantizedPairs`."""
    reconstruction_weight: float = 1.0
    """Weight of the squared error of the decoder."""

    schema_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def asked_sizes(self) -> tuple[int, ...]:
        """Codes of each level as configured."""
        return (self.codes,) * self.levels if isinstance(self.codes, int) else tuple(self.codes)

    @property
    def reads(self) -> tuple[str, ...]:
        """What the regularizers need; nothing beside weights without them."""
        return names_read(self.regularizers)

    def fit(self, key: PRNGKeyArray, vectors: Any, aux: Aux | None = None) -> RqVaeState:
        """Starts the codebooks by k-means, then trains them with the networks.

        Args:
            key: of the networks' start, the k-means, the batches and the resets.
            vectors: Float[n, d], numpy or jax; rows may be sharded over a mesh.
            aux: nothing, or {"weights": Float[n]}, and what `reads` names.
        """
        points = check_vectors(vectors)
        weights = check_weights(aux, points.shape[0], also=self.reads)
        given = check_has(aux, self.regularizers)
        self._check_width(points.shape[1])
        mean, scale = jnp.zeros(points.shape[1]), jnp.ones(points.shape[1])
        if self.standardise:
            mean, scale = weighted_moments(points, weights)
        # Rows without weight are padding: their numbers may be anything, here they become 0.
        points = jnp.where(weights[:, None] > 0, _standardised(points, mean, scale), 0.0)
        ends = weight_ends(weights)
        start_key, train_key = jax.random.split(key)
        params = self._start(start_key, points, weights, ends)
        batch = min(self.batch, int(jnp.sum(weights > 0)))
        regularizers = tuple(
            each.start(jax.random.fold_in(start_key, number), given, weights, params.codebooks)
            for number, each in enumerate(self.regularizers)
        )
        params, resets, losses = train(self, train_key, params, points, ends, batch, regularizers)
        trace = RqVaeTrace(
            reconstruction=losses.reconstruction,
            quantization=losses.quantization,
            resets=resets,
            unused=_count_unused(
                self._nearest(params, points), weights, tuple(map(len, params.codebooks))
            ),
            regularization=losses.regularization,
        )
        return RqVaeState(mean, scale, params, trace)

    def encode(self, state: RqVaeState, vectors: Any) -> Int32[Array, "n l"]:
        """Codes of vectors, Int32[n, l]; the lowest code among equally near ones.

        Args:
            vectors: Float[m, d], fitted or new.
        """
        points = check_vectors(vectors, width=state.mean.shape[0])
        points = _standardised(points, state.mean, state.scale)
        return self._nearest(state.params, points)

    def decode(self, state: RqVaeState, codes: Any) -> Float[Array, "n d"]:
        """The decoder's output for the sum of the given levels' codewords, Float[n, d], in the
        units of the fitted vectors.

        Args:
            codes: Int[n, m], the first m levels.
        """
        known = check_codes(codes, self.sizes(state))
        decoded = decoded_codes(state.params, known, is_residual=self.residual_networks)
        return decoded * state.scale + state.mean

    def sizes(self, state: RqVaeState) -> tuple[int, ...]:
        """Codes of each level as fitted."""
        return tuple(codebook.shape[0] for codebook in state.params.codebooks)

    def report(self, state: RqVaeState) -> dict[str, Any]:
        """Plain numbers about the fit; losses are means over stretches of the training."""
        sizes = self.sizes(state)
        content: dict[str, Any] = {
            "quantizer": type(self).__name__,
            "levels": self.levels,
            "codes_asked": list(self.asked_sizes),
            "codes": list(sizes),
            "capped_levels": [
                level
                for level, (asked, got) in enumerate(zip(self.asked_sizes, sizes))
                if got < asked
            ],
            "residual_mode": self.residual_mode,
            "reduction": self.reduction,
            "steps": self.steps,
        }
        if state.trace is not None:
            content["fit_reconstruction_loss"] = _stretches(state.trace.reconstruction)
            content["fit_quantization_loss"] = _stretches(state.trace.quantization)
            content["fit_resets"] = [int(each) for each in state.trace.resets]
            content["fit_unused_codes"] = [int(each) for each in state.trace.unused]
            content["fit_utilisation"] = [
                1.0 - int(unused) / size for unused, size in zip(state.trace.unused, sizes)
            ]
            for number, each in enumerate(self.regularizers):
                losses = state.trace.regularization[:, number]
                content[f"fit_{type(each).__name__}_loss"] = _stretches(losses)
        return content

    def to_arrays(self, state: RqVaeState) -> dict[str, np.ndarray]:
        """`mean`, `scale`, `encoder_0_weight`, `encoder_0_bias`, ..., `decoder_0_weight`, ...,
        `codebook_0`, ..."""
        moments = {"mean": np.asarray(state.mean), "scale": np.asarray(state.scale)}
        return {**moments, **named_arrays(state.params)}

    def from_arrays(self, arrays: Mapping[str, np.ndarray]) -> RqVaeState:
        """The state that `to_arrays` wrote.

        Raises:
            ValueError: an array is missing, or has another shape than these hyper-parameters give.
        """
        width = np.size(arrays.get("mean", ()))
        shapes: dict[str, tuple[int, ...]] = {"mean": (width,), "scale": (width,)}
        shapes |= named_shapes((width, *self.hidden, self.latent), self.asked_sizes)
        if absent := [name for name in shapes if name not in arrays]:
            raise ValueError(
                f"the saved quantizer lacks {', '.join(absent)}; it has "
                f"{', '.join(sorted(arrays))}: it is not an RqVae of {self.levels} levels and "
                f"{len(self.hidden)} hidden widths."
            )
        found = {name: jnp.asarray(arrays[name], jnp.float32) for name in shapes}
        for name, shape in shapes.items():
            given = found[name].shape
            is_capped = name.startswith("codebook") and 1 <= given[0] <= shape[0]
            if given != shape and not (is_capped and given[1:] == shape[1:]):
                raise ValueError(
                    f"the saved {name} has shape {given}, this RqVae needs {shape}; give the "
                    "hyper-parameters it was fitted with."
                )
        params = from_named(found, len(self.hidden) + 1, self.levels)
        return RqVaeState(found["mean"], found["scale"], params)

    @property
    def _block(self) -> int:
        """Rows encoded at once: their widest layer and their distances fit the cache."""
        return block_rows(max(*self.asked_sizes, *self.hidden, self.latent))

    def _start(self, key: Array, points: Array, weights: Array, ends: Array) -> RqVaeParams:
        """Random networks, and codebooks that fit the random encoder's output."""
        encoder_key, decoder_key, rows_key, codes_key = jax.random.split(key, 4)
        widths = (points.shape[1], *self.hidden, self.latent)
        encoder, decoder = init_mlp(encoder_key, widths), init_mlp(decoder_key, widths[::-1])
        if self.residual_networks:
            encoder, decoder = start_at_identity(encoder), start_at_identity(decoder)
        if points.shape[0] > self.start_rows:
            points = points[draw_rows(rows_key, ends, self.start_rows)]
            weights = jnp.ones(self.start_rows)
        latents = latent_vectors(
            encoder, points, block=self._block, is_residual=self.residual_networks
        )
        clusters = ResidualKMeans(self.levels, self.codes, iterations=_START_ITERATIONS)
        start = clusters.fit(codes_key, latents, {"weights": weights})
        # An RQ-VAE has no offset; the first level takes it in.
        codebooks = (start.codebooks[0] + start.offset, *start.codebooks[1:])
        return RqVaeParams(encoder, decoder, codebooks)

    def _nearest(self, params: RqVaeParams, points: Array) -> Array:
        return nearest_codes(
            params,
            points,
            block=self._block,
            is_residual=self.residual_networks,
            distance=self.distance,
        )

    def _check_width(self, width: int) -> None:
        if self.residual_networks and width != self.latent:
            raise ValueError(
                f"RqVae.residual_networks adds to the vectors, whose width is {width}, and latent "
                f"is {self.latent}; set latent={width}."
            )


@jax.jit
def _standardised(points: Array, mean: Array, scale: Array) -> Array:
    return (points - mean) / scale


def _count_unused(codes: Array, weights: Array, sizes: tuple[int, ...]) -> Array:
    used = [
        jnp.sum(jax.ops.segment_max(weights, codes[:, level], size) > 0)
        for level, size in enumerate(sizes)
    ]
    return jnp.asarray(sizes, jnp.int32) - jnp.stack(used).astype(jnp.int32)


def _stretches(losses: Array) -> list[float]:
    """Means over at most so many stretches of about equal length."""
    parts = np.array_split(np.asarray(losses), min(_TRACE_POINTS, len(losses)))
    return [float(part.mean()) for part in parts]
