"""Product quantization, plain and optimized: the vector is cut into parts, one code a part.

    y = (x - offset) R;   c_j = argmin_k |y_j - e^j_k|^2   for the parts y = (y_1, ..., y_m)

Jegou, Douze, Schmid, "Product quantization for nearest neighbor search" (2011); Ge, He, Ke, Sun,
"Optimized product quantization for approximate nearest neighbor search" (2013), which learns the
rotation R as well. The parallel tokenizer of RPG (METHODS T7; 16 to 64 parts), of ActionPiece and
of DiffGRM (4 parts).

The codes of an item are a set without an order: a part says nothing about the next one, so a trie
over prefixes needs an order that somebody chose.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from jaxrec.tokenization.blocks import assign
from jaxrec.tokenization.kmeans import KMeansFit, count_distinct, fit_kmeans, lloyd
from jaxrec.tokenization.quantizer import Aux, check_codes, check_vectors, check_weights
from jaxrec.tokenization.rows import weighted_moments
from jaxrec.tracking import Progress

Rotation = Literal["none", "learnt"]
Start = Literal["identity", "pca"]

_NOISE = 1e-12
"""Share of the sum of squares below which a part holds nothing but rounding."""


@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class ProductTrace:
    """How the fit went; errors are weighted sums of squares."""

    before: Float[Array, ""]
    """Of the centred vectors."""
    turns: Float[Array, " a"]
    """After the first k-means, and after every alternation; the last one runs the k-means out."""
    after: Float[Array, " m"]
    """What every part left over in the end."""
    unused: Int32[Array, " m"]
    """Codes that no fitted row has."""
    weight: Float[Array, ""]
    """Sum of the weights."""


@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class ProductState:
    """A fitted product quantizer."""

    offset: Float[Array, " d"]
    """Mean of the fitted vectors."""
    rotation: Float[Array, "d d"] | None
    """Orthogonal; applied from the right. None where the vectors are cut as they are."""
    codebooks: tuple[Float[Array, "_ w"], ...]
    """One codebook a part, Float[k_j, d / m]."""
    trace: ProductTrace | None = None
    """Absent in a state read from disk."""


@dataclasses.dataclass(frozen=True)
class ProductKMeans:
    """k-means of each of `parts` equal blocks of the vectors: PQ, and with a rotation OPQ.

    A part never has more codes than the fitted vectors have different blocks; `sizes(state)` says
    how many it got, `report(state)` how many were asked for. The mean is subtracted first, which is
    what an index of one coarse cell does before it cuts (faiss, `IVF1,PQ`).

    Published settings, METHODS T7: RPG `rotation="learnt"` with 16, 32 or 64 parts of 256 codes,
    fitted on items seen in training; ActionPiece and DiffGRM 4 parts of 256.

    Raises:
        ValueError: a number out of range, or a start without a rotation to start; in the methods,
            bad vectors, codes or weights, or a width that `parts` does not divide.
    """

    parts: int = 4
    """Blocks, one code each; the width of the vectors must be a multiple."""
    codes: int = 256
    """Codes of every part."""
    rotation: Rotation = "none"
    """`learnt`: alternates between the codebooks and the rotation that suits them best (OPQ)."""
    start: Start = "identity"
    """Of the rotation. `identity` never ends above the error of plain PQ; `pca` spreads principal
    components over the parts in equal products of variances, the optimum for Gaussian vectors."""
    alternations: int = 50
    """Of rotation and codebooks, where the rotation is learnt; 0 keeps the start."""
    iterations: int = 50
    """Lloyd updates of a part, at most, before the alternations and again after them."""
    tolerance: float = 1e-4
    """A part is done when an update lowers its error by less than this fraction."""

    schema_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if min(self.parts, self.codes, self.iterations) < 1 or self.alternations < 0:
            raise ValueError(
                "ProductKMeans needs parts, codes and iterations >= 1 and alternations >= 0, got "
                f"{self.parts}, {self.codes}, {self.iterations} and {self.alternations}."
            )
        for name, choices in (("rotation", Rotation), ("start", Start)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"ProductKMeans.{name} {getattr(self, name)!r} is unknown; choose one of "
                    f"{', '.join(get_args(choices))}."
                )
        if self.rotation == "none" and self.start != "identity":
            raise ValueError(
                f"ProductKMeans.start {self.start!r} turns the vectors, but rotation is 'none'; "
                "set rotation='learnt' (with alternations=0 to keep the start)."
            )
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"ProductKMeans needs 0 <= tolerance < 1, got {self.tolerance}.")

    @property
    def reads(self) -> tuple[str, ...]:
        """Nothing beside weights."""
        return ()

    def fit(self, key: PRNGKeyArray, vectors: Any, aux: Aux | None = None) -> ProductState:
        """Fits the parts, and the rotation by turns with them.

        Args:
            key: of the starts of the k-means; part j uses `fold_in(key, j)`.
            vectors: Float[n, d], numpy or jax; rows may be sharded over a mesh.
            aux: nothing, or {"weights": Float[n]}.
        """
        points = check_vectors(vectors)
        weights = check_weights(aux, points.shape[0])
        self._check_width(points.shape[1])
        offset, centred = _centre(points, weights)
        before = _sum_of_squares(centred, weights)
        is_learnt = self.rotation == "learnt"
        rotation = self._first_rotation(centred, weights) if is_learnt else None
        turns = self.alternations if is_learnt else 0
        with Progress(self.parts + turns, "product k-means", unit="turns") as progress:
            fits = []
            for part, block in enumerate(cut_parts(centred, rotation, parts=self.parts)):
                size = _most_codes(block, weights, self.codes, before)
                fits.append(
                    fit_kmeans(
                        jax.random.fold_in(key, part),
                        block,
                        size,
                        weights=weights,
                        iterations=self.iterations,
                        tolerance=self.tolerance,
                    )
                )
                progress.update(1)
            errors = [sum(fit.inertia for fit in fits)]
            for turn in range(turns):
                joined = _join(tuple(fit.centroids[fit.codes] for fit in fits))
                rotation = best_rotation(centred, joined, weights)
                blocks = cut_parts(centred, rotation, parts=self.parts)
                grown = [
                    _grow(fit, block, weights, self.codes, before)
                    for fit, block in zip(fits, blocks)
                ]
                updates = self.iterations if turn == turns - 1 else 1
                fits = [self._improve(*pair, weights, updates) for pair in zip(blocks, grown)]
                errors.append(sum(fit.inertia for fit in fits))
                progress.update(1)
        trace = ProductTrace(
            before=before,
            turns=jnp.stack(errors),
            after=jnp.stack([fit.inertia for fit in fits]),
            unused=jnp.stack([fit.unused for fit in fits]),
            weight=jnp.sum(weights),
        )
        return ProductState(offset, rotation, tuple(fit.centroids for fit in fits), trace)

    def encode(self, state: ProductState, vectors: Any) -> Int32[Array, "n m"]:
        """Codes of vectors, Int32[n, m]; the lowest code among equally near ones.

        Args:
            vectors: Float[n, d], fitted or new.
        """
        points = check_vectors(vectors, width=state.offset.shape[0])
        blocks = cut_parts(points - state.offset, state.rotation, parts=self.parts)
        return jnp.stack([assign(*pair)[0] for pair in zip(blocks, state.codebooks)], -1)

    def decode(self, state: ProductState, codes: Any) -> Float[Array, "n d"]:
        """Codewords side by side, turned back, plus the offset, Float[n, d].

        Args:
            codes: Int[n, m'], the first m' parts; the others are taken at their mean, which is 0
                after the offset.
        """
        known = check_codes(codes, self.sizes(state))
        return _decode(state.offset, state.rotation, state.codebooks, known)

    def sizes(self, state: ProductState) -> tuple[int, ...]:
        """Codes of each part as fitted."""
        return tuple(codebook.shape[0] for codebook in state.codebooks)

    def report(self, state: ProductState) -> dict[str, Any]:
        """Plain numbers about the fit; errors are per vector and per dimension."""
        sizes = self.sizes(state)
        content: dict[str, Any] = {
            "quantizer": type(self).__name__,
            "levels": self.parts,
            "codes_asked": [self.codes] * self.parts,
            "codes": list(sizes),
            "capped_levels": [part for part, size in enumerate(sizes) if size < self.codes],
            "rotation": self.rotation,
            "start": self.start,
        }
        if state.trace is not None:
            per_number = 1.0 / (float(state.trace.weight) * state.offset.shape[0])
            content["fit_mse_before"] = float(state.trace.before) * per_number
            content["fit_mse_turns"] = [float(each) * per_number for each in state.trace.turns]
            content["fit_mse_parts"] = [
                float(each) * per_number * self.parts for each in state.trace.after
            ]
            content["fit_unused_codes"] = [int(each) for each in state.trace.unused]
        return content

    def to_arrays(self, state: ProductState) -> dict[str, np.ndarray]:
        """`offset`, `rotation` where one is learnt, `codebook_0`, ..."""
        arrays = {"offset": np.asarray(state.offset)}
        if state.rotation is not None:
            arrays["rotation"] = np.asarray(state.rotation)
        for part, codebook in enumerate(state.codebooks):
            arrays[f"codebook_{part}"] = np.asarray(codebook)
        return arrays

    def from_arrays(self, arrays: Mapping[str, np.ndarray]) -> ProductState:
        """The state that `to_arrays` wrote.

        Raises:
            ValueError: an array is missing, or one too many.
        """
        names = ["offset", *(f"codebook_{part}" for part in range(self.parts))]
        names += ["rotation"] if self.rotation == "learnt" else []
        if set(names) != set(arrays):
            raise ValueError(
                f"the saved quantizer has {', '.join(sorted(arrays))}; a ProductKMeans of "
                f"{self.parts} parts and rotation {self.rotation!r} has {', '.join(sorted(names))}."
                " Give the hyper-parameters it was fitted with."
            )
        found = {name: jnp.asarray(arrays[name], jnp.float32) for name in names}
        codebooks = tuple(found[f"codebook_{part}"] for part in range(self.parts))
        return ProductState(found["offset"], found.get("rotation"), codebooks)

    def _check_width(self, width: int) -> None:
        if width % self.parts:
            below = width - width % self.parts
            nearest = [str(each) for each in (below, below + self.parts) if each]
            raise ValueError(
                f"vectors of width {width} cannot be cut into {self.parts} equal parts; change "
                f"parts, or bring the vectors to width {' or '.join(nearest)}."
            )

    def _first_rotation(self, centred: Array, weights: Array) -> Array:
        if self.start == "identity":
            return jnp.eye(centred.shape[1])
        return principal_rotation(centred, weights, self.parts)

    def _improve(self, block: Array, codebook: Array, weights: Array, updates: int) -> KMeansFit:
        return lloyd(block, codebook, weights=weights, iterations=updates, tolerance=self.tolerance)


@partial(jax.jit, static_argnames=("parts",))
def cut_parts(
    points: Float[Array, "n d"], rotation: Float[Array, "d d"] | None, *, parts: int
) -> tuple[Float[Array, "n w"], ...]:
    """The `parts` blocks of (turned) points, Float[n, d / parts] each."""
    if rotation is not None:
        points = jnp.dot(points, rotation, precision=jax.lax.Precision.HIGHEST)
    return tuple(jnp.split(points, parts, -1))


def best_rotation(
    points: Float[Array, "n d"], targets: Float[Array, "n d"], weights: Float[Array, " n"]
) -> Float[Array, "d d"]:
    """The orthogonal R of least sum_i w_i |x_i R - y_i|^2: R = U V^T of the SVD X^T W Y = U S V^T.

    Orthogonal Procrustes (Schoenemann 1966). The SVD is float64, on the host.
    """
    left, _, right = np.linalg.svd(np.asarray(_cross(points, targets, weights), np.float64))
    return jnp.asarray(left @ right, jnp.float32)


def principal_rotation(
    points: Float[Array, "n d"], weights: Float[Array, " n"], parts: int
) -> Float[Array, "d d"]:
    """Principal axes of centred points, spread over the parts by `allocate_variances`.

    For Gaussian vectors no rotation quantizes better (Ge et al. 2013, section 3.1).
    """
    covariance = np.asarray(_cross(points, points, weights), np.float64)
    variances, axes = np.linalg.eigh(covariance / float(jnp.sum(weights)))
    order = np.argsort(-variances, kind="stable")
    chosen = order[allocate_variances(variances[order], parts)]
    return jnp.asarray(axes[:, chosen], jnp.float32)


def allocate_variances(variances: np.ndarray, parts: int) -> np.ndarray:
    """Places of dimensions, int[d], so that parts have about equal products of variances.

    Each variance, the largest first, goes to the part with the least product that has room.

    Args:
        variances: float[d], falling; d is a multiple of `parts`.

    >>> allocate_variances(np.array([8.0, 4.0, 2.0, 1.0]), 2)
    array([0, 3, 1, 2])
    """
    # Relative to the least: with numbers below 1 a fuller part would have the smaller product.
    floor = max(variances[0], 1e-30) * 1e-10
    sizes = np.log(np.maximum(variances, floor))
    sizes -= sizes[-1]
    members: list[list[int]] = [[] for _ in range(parts)]
    products = np.zeros(parts)
    for dimension, size in enumerate(sizes):
        part = int(np.argmin(products))
        members[part].append(dimension)
        is_full = len(members[part]) == len(variances) // parts
        products[part] = np.inf if is_full else products[part] + size
    return np.concatenate(members).astype(int)


@jax.jit
def _centre(points: Array, weights: Array) -> tuple[Array, Array]:
    # Rows without weight are padding: their numbers may be anything, here they become 0.
    offset, _ = weighted_moments(points, weights)
    return offset, jnp.where(weights[:, None] > 0, points - offset, 0.0)


@jax.jit
def _sum_of_squares(points: Array, weights: Array) -> Array:
    return jnp.sum(weights * jnp.sum(points**2, -1))


@jax.jit
def _cross(left: Array, right: Array, weights: Array) -> Array:
    return jnp.dot((left * weights[:, None]).T, right, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _join(blocks: tuple[Array, ...]) -> Array:
    return jnp.concatenate(blocks, -1)


def _most_codes(block: Array, weights: Array, most: int, total: Array) -> int:
    """Codes that a block can use: `most`, or one where there is only rounding (`fit_kmeans` sees
    to blocks that repeat)."""
    return most if float(_sum_of_squares(block, weights)) > _NOISE * float(total) else 1


def _grow(fit: KMeansFit, block: Array, weights: Array, most: int, total: Array) -> Array:
    """The codebook for a block that another rotation made; more codes, where it may have more.

    A block that was constant before may not be now. The new codes are copies of the first, which no
    point chooses, so that the next Lloyd update puts them where the error is largest.
    """
    codebook = fit.centroids
    if len(codebook) == most:
        return codebook
    size = min(_most_codes(block, weights, most, total), int(count_distinct(block, weights)))
    copies = jnp.repeat(codebook[:1], max(0, size - len(codebook)), 0)
    return jnp.concatenate([codebook, copies])


@jax.jit
def _decode(
    offset: Array, rotation: Array | None, codebooks: tuple[Array, ...], codes: Array
) -> Array:
    known = [codebooks[part][codes[:, part]] for part in range(codes.shape[1])]
    points = jnp.concatenate(known, -1)
    points = jnp.pad(points, ((0, 0), (0, offset.shape[0] - points.shape[1])))
    if rotation is not None:
        points = jnp.dot(points, rotation.T, precision=jax.lax.Precision.HIGHEST)
    return points + offset
