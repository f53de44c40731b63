"""Quantizers over more vectors than fit in memory: a sample, passes over the file, codes in pieces.

`vectors` may be anything with a shape whose rows can be sliced: a memory-mapped `.npy`
(`numpy.load(path, mmap_mode="r")`), an array of HDF5 or Zarr. Only one piece of it, and the sample,
are ever in memory; the codes are, 4 bytes a row and level.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from jaxrec.tokenization.blocks import Blocks, assign, block_rows
from jaxrec.tokenization.quantizer import Aux, check_vectors
from jaxrec.tokenization.residual_kmeans import ResidualKMeans, ResidualState, unit
from jaxrec.tracking import Progress
from jaxrec.types import PyTree


@dataclasses.dataclass(frozen=True)
class Streamed:
    """A quantizer that reads its vectors from where they lie; itself a quantizer.

    `fit` fits the inner quantizer on every so-manieth row. For `ResidualKMeans`, `passes` Lloyd
    updates a level over all rows follow, each level on what the ones before it leave over.

    Raises:
        ValueError: a number out of range, or passes with another quantizer; in `fit`, weights or
            other `aux`, which belong to rows in memory.
    """

    quantizer: Any = ResidualKMeans()
    """What is fitted."""
    sample: int = 2**18
    """Rows of the first fit, about; 1,000 a code are plenty."""
    passes: int = 1
    """Updates of each level over all rows, after that; 0 for quantizers that are trained."""
    piece: int = 2**16
    """Rows in memory at once, beside the sample."""

    schema_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if min(self.sample, self.piece) < 1 or self.passes < 0:
            raise ValueError(
                "Streamed needs sample >= 1, piece >= 1 and passes >= 0, got "
                f"{self.sample}, {self.piece} and {self.passes}."
            )
        if self.passes and not isinstance(self.quantizer, ResidualKMeans):
            raise ValueError(
                f"only ResidualKMeans can go on over all rows, not "
                f"{type(self.quantizer).__name__}; set Streamed(..., passes=0)."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """What the inner quantizer reads."""
        return self.quantizer.reads

    def fit(self, key: PRNGKeyArray, vectors: Any, aux: Aux | None = None) -> PyTree:
        """The inner quantizer's state.

        Args:
            key: of the inner fit.
            vectors: Float[n, d], sliced a piece at a time.
            aux: must be empty.
        """
        if aux:
            raise ValueError(
                f"Streamed fits rows of equal weight, and got aux {', '.join(sorted(aux))}; fit "
                "the inner quantizer on rows in memory instead."
            )
        state = self.quantizer.fit(key, self._sampled(vectors))
        if not self.passes:
            return state
        codes = np.zeros((len(vectors), self.quantizer.levels), np.int32)
        work = self.quantizer.levels * (self.passes + 1) * len(vectors)
        with Progress(work, "residual k-means over all rows", unit="rows") as progress:
            for level in range(self.quantizer.levels):
                for _ in range(self.passes):
                    state = self._update(state, vectors, codes, level, progress)
                for rows, points in self._residuals(state, vectors, codes, level):
                    found, _ = assign(points, state.codebooks[level])
                    codes[rows, level] = np.asarray(found)
                    progress.update(len(points))
        # The trace is that of the sample, and no longer of these codebooks.
        return dataclasses.replace(state, trace=None)

    def encode(self, state: PyTree, vectors: Any) -> np.ndarray:
        """Codes int32[n, l], on the host."""
        return encode_in_pieces(partial(self.quantizer.encode, state), vectors, self.piece)

    def decode(self, state: PyTree, codes: Any) -> Array:
        """As the inner quantizer."""
        return self.quantizer.decode(state, codes)

    def sizes(self, state: PyTree) -> tuple[int, ...]:
        """As the inner quantizer."""
        return self.quantizer.sizes(state)

    def report(self, state: PyTree) -> dict[str, Any]:
        """The inner quantizer's, with how it was streamed."""
        own = {"sample": self.sample, "passes": self.passes}
        return {**self.quantizer.report(state), "streamed": own}

    def to_arrays(self, state: PyTree) -> dict[str, np.ndarray]:
        """As the inner quantizer."""
        return self.quantizer.to_arrays(state)

    def from_arrays(self, arrays: Mapping[str, np.ndarray]) -> PyTree:
        """As the inner quantizer."""
        return self.quantizer.from_arrays(arrays)

    def _sampled(self, vectors: Any) -> np.ndarray:
        """Every so-manieth row, read piece by piece."""
        stride = max(1, len(vectors) // self.sample)
        span = max(stride, self.piece // stride * stride)
        parts = [
            np.asarray(vectors[start : start + span], np.float32)[::stride]
            for start in range(0, len(vectors), span)
        ]
        return np.concatenate(parts)

    def _update(
        self, state: ResidualState, vectors: Any, codes: np.ndarray, level: int, progress: Progress
    ) -> ResidualState:
        """One Lloyd update of one level over all rows; a code without a row stays."""
        codebook = state.codebooks[level]
        sums, counts = jnp.zeros_like(codebook), jnp.zeros(len(codebook), jnp.float32)
        for _, points in self._residuals(state, vectors, codes, level):
            more_sums, more_counts = _sums(points, codebook, block=block_rows(len(codebook)))
            sums, counts = sums + more_sums, counts + more_counts
            progress.update(len(points))
        means = sums / jnp.maximum(counts, 1.0)[:, None]
        updated = jnp.where(counts[:, None] > 0, means, codebook)
        books = (*state.codebooks[:level], updated, *state.codebooks[level + 1 :])
        return dataclasses.replace(state, codebooks=books)

    def _residuals(
        self, state: ResidualState, vectors: Any, codes: np.ndarray, level: int
    ) -> Iterator[tuple[slice, Array]]:
        """What the levels before leave over, piece by piece."""
        for start in range(0, len(vectors), self.piece):
            rows = slice(start, min(start + self.piece, len(vectors)))
            points = check_vectors(vectors[rows], width=state.offset.shape[0])
            before = jnp.asarray(codes[rows, :level])
            yield (
                rows,
                _left_over(
                    *(points, state.offset, state.codebooks[:level], before),
                    normalise=self.quantizer.normalise_residuals,
                ),
            )


def encode_in_pieces(
    encode: Callable[[Any], Array], vectors: Any, piece: int = 2**16
) -> np.ndarray:
    """Codes int32[n, l] on the host, from a function that encodes some rows."""
    parts = []
    with Progress(len(vectors), "encode", unit="rows") as progress:
        for start in range(0, len(vectors), piece):
            some = np.asarray(vectors[start : start + piece], np.float32)
            parts.append(np.asarray(encode(some), np.int32))
            progress.update(len(some))
    return np.concatenate(parts)


@partial(jax.jit, static_argnames=("normalise",))
def _left_over(
    points: Array, offset: Array, books: tuple[Array, ...], codes: Array, *, normalise: bool
) -> Array:
    points = points - offset
    for level, book in enumerate(books):
        points = unit(points) if normalise else points
        points = points - book[codes[:, level]]
    return unit(points) if normalise else points


@partial(jax.jit, static_argnames=("block",))
def _sums(points: Array, codebook: Array, *, block: int) -> tuple[Array, Array]:
    rows = Blocks.of(points, jnp.ones(len(points), jnp.float32), block)
    found = rows.measure(codebook, rows.number)
    return found.sums, found.counts
