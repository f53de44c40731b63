"""Residual k-means: each level clusters what the levels before it left over.

    r_1 = x - offset;  c_l = argmin_k |r_l - e^l_k|^2;  r_{l+1} = r_l - e^l_{c_l}

The tokenizer of OneRec and GenRec-JD (METHODS T4). The offset, the mean of the fitted vectors, is a
level with one code: it keeps fp32 distances exact however far the vectors lie from the origin.
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

from jaxrec.tokenization.blocks import block_rows, map_rows, nearest, update_rows
from jaxrec.tokenization.intake import own_rows
from jaxrec.tokenization.kmeans import fit_kmeans
from jaxrec.tokenization.quantizer import Aux, check_codes, check_vectors, check_weights
from jaxrec.tracking import Progress


@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class FitTrace:
    """How the fit of each level went."""

    before: Float[Array, " l"]
    """Weighted sum of squared residuals that the level was given."""
    after: Float[Array, " l"]
    """The same after the level."""
    iterations: Int32[Array, " l"]
    unused: Int32[Array, " l"]
    """Codes that no fitted row has."""
    weight: Float[Array, ""]
    """Sum of the weights."""


@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class ResidualState:
    """A fitted residual quantizer."""

    offset: Float[Array, " d"]
    """Mean of the fitted vectors."""
    codebooks: tuple[Float[Array, "_ d"], ...]
    """One codebook a level, Float[k_l, d]."""
    scales: Float[Array, " l"]
    """Mean length of the residuals a level was given, 1 where residuals are not normalised."""
    trace: FitTrace | None = None
    """Absent in a state read from disk."""


@dataclasses.dataclass(frozen=True)
class ResidualKMeans:
    """Residual k-means over `levels` codebooks.

    A level never has more codes than its residuals have different rows; `sizes(state)` says how
    many it got, `report(state)` how many were asked for.

    Raises:
        ValueError: a number out of range; in the methods, bad vectors, codes or weights.
    """

    levels: int = 3
    """Codebooks."""
    codes: int | tuple[int, ...] = 256
    """Codes of every level, or of each."""
    iterations: int = 50
    """Lloyd updates of a level, at most."""
    restarts: int = 1
    """Runs of each level from different starts; the one of least error is kept."""
    normalise_residuals: bool = False
    """Scale residuals to unit length before each level (GRID). `decode` then puts the mean lengths
    back, and is less exact."""
    tolerance: float = 1e-4
    """A level is done when an update lowers its error by less than this fraction."""

    schema_version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        sizes = self.asked_sizes
        if self.levels < 1 or len(sizes) != self.levels or min(sizes) < 1:
            raise ValueError(
                f"ResidualKMeans needs levels >= 1 and a positive number of codes for each, got "
                f"levels={self.levels}, codes={self.codes}."
            )
        if self.iterations < 1 or self.restarts < 1 or not 0 <= self.tolerance < 1:
            raise ValueError(
                "ResidualKMeans needs iterations >= 1, restarts >= 1 and 0 <= tolerance < 1, got "
                f"{self.iterations}, {self.restarts} and {self.tolerance}."
            )

    @property
    def asked_sizes(self) -> tuple[int, ...]:
        """Codes of each level as configured."""
        return (self.codes,) * self.levels if isinstance(self.codes, int) else tuple(self.codes)

    @property
    def reads(self) -> tuple[str, ...]:
        """Nothing beside weights."""
        return ()

    def fit(self, key: PRNGKeyArray, vectors: Any, aux: Aux | None = None) -> ResidualState:
        """Fits the levels one after the other.

        Args:
            key: of the starts.
            vectors: Float[n, d], numpy or jax; rows may be sharded over a mesh.
            aux: nothing, or {"weights": Float[n]}.
        """
        weights = check_weights(aux, len(vectors))
        offset, residuals = _centre(*own_rows(vectors, weights))
        weights = jnp.pad(weights, (0, len(residuals) - len(weights)))
        codebooks, scales, befores, fits = [], [], [], []
        with Progress(self.levels, "residual k-means", unit="levels") as progress:
            for level, size in enumerate(self.asked_sizes):
                scale = jnp.float32(1)
                if self.normalise_residuals:
                    residuals, scale = _rescale(residuals, weights)
                fit = fit_kmeans(
                    jax.random.fold_in(key, level),
                    residuals,
                    size,
                    weights=weights,
                    iterations=self.iterations,
                    tolerance=self.tolerance,
                    restarts=self.restarts,
                )
                befores.append(_energy(residuals, weights))
                residuals = _subtract(residuals, fit.centroids, fit.codes, block=block_rows(size))
                codebooks.append(fit.centroids)
                scales.append(scale)
                fits.append(fit)
                progress.update(1)
        trace = FitTrace(
            before=jnp.stack(befores),
            after=jnp.stack([fit.inertia for fit in fits]),
            iterations=jnp.stack([fit.iterations for fit in fits]),
            unused=jnp.stack([fit.unused for fit in fits]),
            weight=jnp.sum(weights),
        )
        return ResidualState(offset, tuple(codebooks), jnp.stack(scales), trace)

    def encode(self, state: ResidualState, vectors: Any) -> Int32[Array, "n l"]:
        """Codes of vectors, Int32[n, l]; the lowest code among equally near ones.

        Args:
            vectors: Float[m, d], fitted or new.
        """
        points = check_vectors(vectors, width=state.offset.shape[0])
        return _encode(
            state.offset,
            state.codebooks,
            points,
            normalise=self.normalise_residuals,
            block=block_rows(max(self.sizes(state))),
        )

    def decode(self, state: ResidualState, codes: Any) -> Float[Array, "n d"]:
        """Offset plus the codewords of the given levels, Float[n, d].

        Args:
            codes: Int[n, m], the first m levels.
        """
        known = check_codes(codes, self.sizes(state))
        return _decode(state.offset, state.codebooks, state.scales, known)

    def sizes(self, state: ResidualState) -> tuple[int, ...]:
        """Codes of each level as fitted."""
        return tuple(codebook.shape[0] for codebook in state.codebooks)

    def report(self, state: ResidualState) -> dict[str, Any]:
        """Plain numbers about the fit; errors are per vector and per dimension."""
        content: dict[str, Any] = {
            "quantizer": type(self).__name__,
            "levels": self.levels,
            "codes_asked": list(self.asked_sizes),
            "codes": list(self.sizes(state)),
            "capped_levels": [
                level
                for level, (asked, got) in enumerate(zip(self.asked_sizes, self.sizes(state)))
                if got < asked
            ],
        }
        if state.trace is not None:
            per_number = 1.0 / (float(state.trace.weight) * state.offset.shape[0])
            content["fit_mse_before"] = [float(each) * per_number for each in state.trace.before]
            content["fit_mse_after"] = [float(each) * per_number for each in state.trace.after]
            content["fit_iterations"] = [int(each) for each in state.trace.iterations]
            content["fit_unused_codes"] = [int(each) for each in state.trace.unused]
        return content

    def to_arrays(self, state: ResidualState) -> dict[str, np.ndarray]:
        """`offset`, `scales`, `codebook_0`, ..."""
        arrays = {"offset": np.asarray(state.offset), "scales": np.asarray(state.scales)}
        for level, codebook in enumerate(state.codebooks):
            arrays[f"codebook_{level}"] = np.asarray(codebook)
        return arrays

    def from_arrays(self, arrays: Mapping[str, np.ndarray]) -> ResidualState:
        """The state that `to_arrays` wrote.

        Raises:
            ValueError: an array is missing.
        """
        names = ["offset", "scales", *(f"codebook_{level}" for level in range(self.levels))]
        if absent := [name for name in names if name not in arrays]:
            raise ValueError(
                f"the saved quantizer lacks {', '.join(absent)}; it has "
                f"{', '.join(sorted(arrays))}: it is not a ResidualKMeans of {self.levels} levels."
            )
        offset, scales, *codebooks = (jnp.asarray(arrays[name], jnp.float32) for name in names)
        return ResidualState(offset, tuple(codebooks), scales)


@partial(jax.jit, donate_argnums=0)
def _centre(points: Array, weights: Array) -> tuple[Array, Array]:
    offset = jnp.sum(points * weights[:, None], 0) / jnp.sum(weights)
    return offset, points - offset


@partial(jax.jit, donate_argnums=0)
def _rescale(residuals: Array, weights: Array) -> tuple[Array, Array]:
    """Residuals of unit length, and their mean length before."""
    scale = jnp.sum(jnp.linalg.norm(residuals, axis=-1) * weights) / jnp.sum(weights)
    return unit(residuals), scale


@jax.jit
def _energy(residuals: Array, weights: Array) -> Array:
    return jnp.sum(weights * jnp.sum(residuals**2, -1))


# Apart from `_energy`: what else reads the residuals would cost a second copy of them.
@partial(jax.jit, donate_argnums=0, static_argnames=("block",))
def _subtract(residuals: Array, codebook: Array, codes: Array, *, block: int) -> Array:
    return update_rows(lambda rows, some: rows - codebook[some], residuals, codes, block)


@partial(jax.jit, static_argnames=("normalise", "block"))
def _encode(
    offset: Array, codebooks: tuple[Array, ...], points: Array, *, normalise: bool, block: int
) -> Array:
    def encode_block(rows: Array) -> Array:
        residuals, codes = rows - offset, []
        for codebook in codebooks:
            residuals = unit(residuals) if normalise else residuals
            codes.append(nearest(residuals, codebook)[0])
            residuals = residuals - codebook[codes[-1]]
        return jnp.stack(codes, -1)

    return map_rows(encode_block, points, block)


@jax.jit
def _decode(offset: Array, codebooks: tuple[Array, ...], scales: Array, codes: Array) -> Array:
    scales = jnp.cumprod(scales)
    vectors = jnp.broadcast_to(offset, (codes.shape[0], offset.shape[0]))
    for level in range(codes.shape[1]):
        vectors = vectors + scales[level] * codebooks[level][codes[:, level]]
    return vectors


def unit(vectors: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Rows of unit length; rows of zeros stay."""
    # A residual of zeros has no direction and stays.
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
