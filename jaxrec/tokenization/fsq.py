"""Finite scalar quantization: an autoencoder whose latent scalars are rounded to a small grid.

    z = Enc(x);   y_i = bound(z_i);   code = the integers round(y_i), read as one number
    loss = |x - Dec(round(y) / (n // 2))|^2

Mentzer, Minnen, Agustsson, Tschannen, "Finite scalar quantization: VQ-VAE made simple"
(arXiv:2309.15505). There is no codebook: nothing can die, nothing needs a commitment. The tokenizer
of RecGPT (METHODS T9), where an item has 4 tokens of 5 scalars each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from jaxrec.tokenization.blocks import block_rows, map_rows
from jaxrec.tokenization.fsq_grid import (
    MOST_VALUES,
    bound,
    codes_of_digits,
    digits_of_codes,
    fsq_round,
    grid_values,
)
from jaxrec.tokenization.mlp import apply_mlp, init_mlp
from jaxrec.tokenization.quantizer import Aux, check_codes, check_vectors, check_weights
from jaxrec.tokenization.rows import draw_rows, weight_ends, weighted_moments
from jaxrec.tokenization.rqvae_network import RqVaeParams, from_named, named_arrays, named_shapes
from jaxrec.tracking import Progress
from jaxrec.training.optimizers import AdamW, Optimizer
from jaxrec.types import PyTree

_STEPS_PER_DISPATCH = 50
_TRACE_POINTS = 20


@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class FsqTrace:
    """How the fit went."""

    reconstruction: Float[Array, " s"]
    """Mean squared error per dimension of every step's batch."""
    used: Int32[Array, " l"]
    """Codes of each token that fitted rows have."""
    scalars: Int32[Array, " q"]
    """Grid values of each scalar that fitted rows have, token after token."""
    rows: Int32[Array, ""]
    """Fitted rows; a token cannot use more codes."""


@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class FsqState:
    """A fitted FSQ autoencoder."""

    mean: Float[Array, " d"]
    """Of the fitted vectors; zeros where they are not standardised."""
    scale: Float[Array, " d"]
    """Their standard deviation, 1 in constant dimensions or where they are not standardised."""
    params: RqVaeParams
    """Encoder and decoder; `codebooks` is empty, the grid needs none."""
    trace: FsqTrace | None = None
    """Absent in a state read from disk."""


class _Training(NamedTuple):
    """What a step hands to the next."""

    params: RqVaeParams
    moments: PyTree


@dataclasses.dataclass(frozen=True)
class Fsq:
    """FSQ with one token for each entry of `grid`, trained by gradient descent.

    The defaults are RecGPT's four tokens of 8 x 8 x 8 x 6 x 5 = 15,360 codes. Tokens stand side by
    side: none refines another, and their order is only that of the latent vector. RecGPT cuts the
    vector into as many parts and projects each; here one encoder reads the whole vector.

    Raises:
        ValueError: a number out of range; in the methods, bad vectors, codes or weights, or a loss
            that is no longer finite.
    """

    grid: tuple[tuple[int, ...], ...] = ((8, 8, 8, 6, 5),) * 4
    """Values of each scalar of each token; a token has the product as codes."""
    hidden: tuple[int, ...] = (512, 256)
    """Widths between the vectors and the latent scalars, ReLU after each; the decoder has them in
    reverse. Empty makes both linear."""
    standardise: bool = True
    """Train on (x - mean) / deviation of each dimension; `decode` undoes it. Without it, vectors
    of small variance all round to the middle of the grid."""
    steps: int = 2000
    """Updates; an epoch is rows / batch of them."""
    batch: int = 1024
    """Rows of an update, fewer where fewer were given; drawn in proportion to their weights."""
    optimizer: Optimizer = AdamW(learning_rate=1e-3, weight_decay=1e-4)

    schema_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not self.grid or not all(self.grid):
            raise ValueError(
                "Fsq needs a grid of at least one token with at least one scalar, got "
                f"{self.grid}; for example grid=((8, 8, 8, 6, 5),) * 4."
            )
        values = [value for token in self.grid for value in token]
        if min(values) < 2 or max(values) > MOST_VALUES:
            raise ValueError(
                f"every scalar of Fsq needs 2..{MOST_VALUES} values, got grid={self.grid}."
            )
        if max(math.prod(token) for token in self.grid) > np.iinfo(np.int32).max:
            raise ValueError(
                f"a token of Fsq has more than 2^31 - 1 codes in grid={self.grid}; give it fewer "
                "scalars, and use more tokens."
            )
        if min(self.steps, self.batch, *self.hidden) < 1:
            raise ValueError(
                "Fsq needs steps, batch and every hidden width >= 1, got "
                f"{self.steps}, {self.batch} and {self.hidden}."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """Nothing beside weights."""
        return ()

    @property
    def scalars(self) -> tuple[int, ...]:
        """Values of all tokens' scalars, one after the other."""
        return tuple(value for token in self.grid for value in token)

    def fit(self, key: PRNGKeyArray, vectors: Any, aux: Aux | None = None) -> FsqState:
        """Trains the networks.

        Args:
            key: of the networks' start and the batches.
            vectors: Float[n, d], numpy or jax; rows may be sharded over a mesh.
            aux: nothing, or {"weights": Float[n]}.
        """
        points = check_vectors(vectors)
        weights = check_weights(aux, points.shape[0])
        mean, scale = jnp.zeros(points.shape[1]), jnp.ones(points.shape[1])
        if self.standardise:
            mean, scale = weighted_moments(points, weights)
        # Rows without weight are padding: their numbers may be anything, here they become 0.
        points = jnp.where(weights[:, None] > 0, _standardised(points, mean, scale), 0.0)
        encoder_key, decoder_key, train_key = jax.random.split(key, 3)
        widths = (points.shape[1], *self.hidden, len(self.scalars))
        params = RqVaeParams(init_mlp(encoder_key, widths), init_mlp(decoder_key, widths[::-1]), ())
        rows = int(jnp.sum(weights > 0))
        params, losses = self._train(train_key, params, points, weights, min(self.batch, rows))
        digits = np.asarray(_digits(params, points, grid=self.grid, block=self._block))
        used, scalars = _used(digits[np.asarray(weights) > 0], self.grid)
        trace = FsqTrace(losses, jnp.asarray(used), jnp.asarray(scalars), jnp.int32(rows))
        return FsqState(mean, scale, params, trace)

    def encode(self, state: FsqState, vectors: Any) -> Int32[Array, "n l"]:
        """Codes of vectors, Int32[n, l]; the lower grid value of two equally near ones.

        Args:
            vectors: Float[m, d], fitted or new.
        """
        points = check_vectors(vectors, width=state.mean.shape[0])
        points = _standardised(points, state.mean, state.scale)
        digits = _digits(state.params, points, grid=self.grid, block=self._block)
        tokens = zip(_split(digits, self.grid), self.grid)
        return jnp.stack([codes_of_digits(token, sizes) for token, sizes in tokens], -1)

    def decode(self, state: FsqState, codes: Any) -> Float[Array, "n d"]:
        """The decoder's output, Float[n, d], in the units of the fitted vectors.

        Args:
            codes: Int[n, m], the first m tokens; the scalars of the others are taken as 0, the
                middle of the grid, which the decoder was not trained for.
        """
        known = check_codes(codes, self.sizes(state))
        return _decoded(state.params, known, grid=self.grid) * state.scale + state.mean

    def sizes(self, state: FsqState) -> tuple[int, ...]:
        """Codes of each token: a property of the grid, whatever was fitted."""
        del state
        return tuple(math.prod(token) for token in self.grid)

    def report(self, state: FsqState) -> dict[str, Any]:
        """Plain numbers about the fit; losses are means over stretches of the training."""
        sizes = self.sizes(state)
        content: dict[str, Any] = {
            "quantizer": type(self).__name__,
            "levels": len(self.grid),
            "codes": list(sizes),
            "grid": [list(token) for token in self.grid],
            "steps": self.steps,
        }
        if state.trace is not None:
            used = [int(each) for each in state.trace.used]
            content["fit_reconstruction_loss"] = _stretches(state.trace.reconstruction)
            content["fit_used_codes"] = used
            content["fit_utilisation"] = [each / size for each, size in zip(used, sizes)]
            # A catalogue smaller than the grid cannot use it all.
            reachable = [min(size, int(state.trace.rows)) for size in sizes]
            content["fit_utilisation_of_reachable"] = [
                each / most for each, most in zip(used, reachable)
            ]
            content["fit_scalar_utilisation"] = [
                int(each) / values for each, values in zip(state.trace.scalars, self.scalars)
            ]
        return content

    def to_arrays(self, state: FsqState) -> dict[str, np.ndarray]:
        """`mean`, `scale`, `encoder_0_weight`, `encoder_0_bias`, ..., `decoder_0_weight`, ..."""
        moments = {"mean": np.asarray(state.mean), "scale": np.asarray(state.scale)}
        return {**moments, **named_arrays(state.params)}

    def from_arrays(self, arrays: Mapping[str, np.ndarray]) -> FsqState:
        """The state that `to_arrays` wrote.

        Raises:
            ValueError: an array is missing, or has another shape than these hyper-parameters give.
        """
        width = np.size(arrays.get("mean", ()))
        shapes: dict[str, tuple[int, ...]] = {"mean": (width,), "scale": (width,)}
        shapes |= named_shapes((width, *self.hidden, len(self.scalars)), ())
        if absent := [name for name in shapes if name not in arrays]:
            raise ValueError(
                f"the saved quantizer lacks {', '.join(absent)}; it has "
                f"{', '.join(sorted(arrays))}: it is not an Fsq of {len(self.hidden)} hidden "
                "widths."
            )
        found = {name: jnp.asarray(arrays[name], jnp.float32) for name in shapes}
        for name, shape in shapes.items():
            if found[name].shape != shape:
                raise ValueError(
                    f"the saved {name} has shape {found[name].shape}, this Fsq needs {shape}; give "
                    "the hyper-parameters it was fitted with."
                )
        params = from_named(found, len(self.hidden) + 1, 0)
        return FsqState(found["mean"], found["scale"], params)

    @property
    def _block(self) -> int:
        """Rows encoded at once: their widest layer fits the cache."""
        return block_rows(max(*self.hidden, len(self.scalars), 1))

    def _train(
        self, key: Array, params: RqVaeParams, points: Array, weights: Array, batch: int
    ) -> tuple[RqVaeParams, Array]:
        """Trained parameters, and the loss of every step."""
        ends = weight_ends(weights)
        training = _Training(params, self.optimizer.build(self.steps).init(params))
        losses = []
        with Progress(self.steps, "FSQ", unit="steps") as progress:
            for first in range(0, self.steps, _STEPS_PER_DISPATCH):
                steps = jnp.arange(first, min(first + _STEPS_PER_DISPATCH, self.steps))
                training, now = _run(self, batch, training, key, steps, points, ends)
                losses.append(now)
                if not np.isfinite(last := float(now[-1])):
                    raise ValueError(
                        f"the loss of Fsq is no longer finite after step {int(steps[-1])}; lower "
                        f"the learning rate of {self.optimizer}, or clip its gradients."
                    )
                progress.update(len(steps), reconstruction=last)
        return training.params, jnp.concatenate(losses)


def fsq_loss(
    params: RqVaeParams, rows: Float[Array, "b d"], grid: tuple[tuple[int, ...], ...]
) -> Float[Array, ""]:
    """Mean squared error, per dimension, of the decoder's output for the rounded latent scalars.

    Args:
        rows: vectors, standardised where the quantizer does so.
        grid: of `Fsq`.
    """
    scalars = tuple(value for token in grid for value in token)
    rounded = fsq_round(bound(apply_mlp(params.encoder, rows), scalars))
    decoded = apply_mlp(params.decoder, rounded / (jnp.asarray(scalars, jnp.int32) // 2))
    return jnp.mean((rows - decoded) ** 2)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2,))
def _run(
    model: Fsq,
    batch: int,
    training: _Training,
    key: Array,
    steps: Array,
    points: Array,
    ends: Array,
) -> tuple[_Training, Array]:
    """Several updates in one dispatch; equal results however they are divided."""
    optimizer = model.optimizer.build(model.steps)

    def update(training: _Training, step: Array) -> tuple[_Training, Array]:
        rows = points[draw_rows(jax.random.fold_in(key, step), ends, batch)]
        loss, gradients = jax.value_and_grad(fsq_loss)(training.params, rows, model.grid)
        changes, moments = optimizer.update(gradients, training.moments, training.params)
        return _Training(jax.tree.map(jnp.add, training.params, changes), moments), loss

    return jax.lax.scan(update, training, steps)


@partial(jax.jit, static_argnames=("grid", "block"))
def _digits(
    params: RqVaeParams, points: Array, *, grid: tuple[tuple[int, ...], ...], block: int
) -> Array:
    """Digits of all tokens' scalars, Int32[n, q]."""
    scalars = tuple(value for token in grid for value in token)

    def digits_of_block(rows: Array) -> Array:
        rounded = fsq_round(bound(apply_mlp(params.encoder, rows), scalars))
        return rounded.astype(jnp.int32) + jnp.asarray(scalars, jnp.int32) // 2

    return map_rows(digits_of_block, points, block)


@partial(jax.jit, static_argnames=("grid",))
def _decoded(params: RqVaeParams, codes: Array, *, grid: tuple[tuple[int, ...], ...]) -> Array:
    tokens = [
        grid_values(digits_of_codes(codes[:, token], grid[token]), grid[token])
        for token in range(codes.shape[1])
    ]
    missing = sum(map(len, grid[codes.shape[1] :]))
    return apply_mlp(params.decoder, jnp.pad(jnp.concatenate(tokens, -1), ((0, 0), (0, missing))))


def _split(digits: Array, grid: tuple[tuple[int, ...], ...]) -> list[Array]:
    return jnp.split(digits, np.cumsum([len(token) for token in grid])[:-1], -1)


def _used(digits: np.ndarray, grid: tuple[tuple[int, ...], ...]) -> tuple[np.ndarray, np.ndarray]:
    """Different codes of each token, and different values of each scalar, int32."""
    tokens = np.split(digits, np.cumsum([len(token) for token in grid])[:-1], -1)
    used = [len(np.unique(token, axis=0)) for token in tokens]
    scalars = [len(np.unique(column)) for column in digits.T]
    return np.asarray(used, np.int32), np.asarray(scalars, np.int32)


@jax.jit
def _standardised(points: Array, mean: Array, scale: Array) -> Array:
    return (points - mean) / scale


def _stretches(losses: Array) -> list[float]:
    """Means over at most so many stretches of about equal length."""
    parts = np.array_split(np.asarray(losses), min(_TRACE_POINTS, len(losses)))
    return [float(part.mean()) for part in parts]
