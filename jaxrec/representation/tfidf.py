"""Hashed TF-IDF and truncated SVD: text vectors without any pretrained weights.

A surrogate for a language-model encoder (METHODS R1): deterministic, offline, labelled as such.
"""

from __future__ import annotations

import collections
import dataclasses
import zlib
from typing import Any, ClassVar

import numpy as np

from jaxrec.representation.encoder import TrainingSequences, fill_empty
from jaxrec.representation.svd import PASSES, truncated_svd
from jaxrec.representation.text import Table
from jaxrec.tracking import Progress


@dataclasses.dataclass(frozen=True)
class HashedTfidf:
    """Words and character n-grams, hashed, weighted, reduced by a randomised SVD, unit length.

    weight(t, i) = (1 + ln tf) * (ln((1 + N) / (1 + df)) + 1), rows normalised before the SVD.
    Document frequencies and the SVD come from `fit_mask` items only. When the matrix has fewer
    singular directions than `dimension`, the rest is 0. An item without text, or whose text has no
    direction in common with the fitted ones, gets the constant vector.

    Reference for the SVD: Halko, Martinsson, Tropp, "Finding structure with randomness" (2011).

    Raises:
        ValueError: a number below 1.
    """

    dimension: int = 256
    """Width of the vectors."""
    buckets: int = 2**18
    """Hash buckets of features; two features in one bucket add up."""
    ngram: int = 3
    """Characters of a character n-gram, word boundaries included."""

    schema_version: ClassVar[int] = 1
    reads_text: ClassVar[bool] = True
    surrogate: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.dimension, self.buckets, self.ngram) < 1:
            raise ValueError(
                "HashedTfidf needs positive numbers, got "
                f"dimension={self.dimension}, buckets={self.buckets}, ngram={self.ngram}."
            )

    def encode(
        self,
        texts: list[str],
        *,
        table: Table,
        fit_mask: np.ndarray,
        seed: int,
        sequences: TrainingSequences | None = None,
    ) -> np.ndarray:
        """Vectors of the texts, float32[n, dimension], of unit length."""
        del table, sequences
        counts = count_features(texts, self.buckets, self.ngram)
        weighted = tfidf(counts, fit_mask)
        # Most buckets are empty, and what no fitted item has gets no direction anyway.
        weighted = weighted[:, np.unique(weighted[fit_mask].indices)]
        with Progress(PASSES, "TF-IDF, SVD", unit="passes") as progress:
            directions = truncated_svd(weighted[fit_mask], self.dimension, seed, progress)
        vectors = weighted @ directions
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        lost = norms[:, 0] <= 1e-6
        return fill_empty(vectors / np.where(lost[:, None], 1.0, norms), lost)


def count_features(texts: list[str], buckets: int, ngram: int = 3) -> Any:
    """Counts of hashed words and character n-grams, a scipy CSR matrix float64[n, buckets].

    The hash is CRC-32, so that counts are the same in every process and on every machine.
    """
    from scipy import sparse

    bucket_of: dict[str, int] = {}
    indptr, indices, data = [0], [], []
    for text in texts:
        counts = collections.Counter(
            _bucket(feature, buckets, bucket_of) for feature in _features(text, ngram)
        )
        for bucket in sorted(counts):
            indices.append(bucket)
            data.append(counts[bucket])
        indptr.append(len(indices))
    return sparse.csr_matrix(
        (np.array(data, np.float64), np.array(indices, np.int32), np.array(indptr, np.int64)),
        shape=(len(texts), buckets),
    )


def tfidf(counts: Any, fit_mask: np.ndarray) -> Any:
    """Sublinear TF times smoothed IDF, rows of unit length (empty rows stay 0), sparse [n, b]."""
    from scipy import sparse

    weighted = counts.copy()
    weighted.data = 1.0 + np.log(weighted.data)
    frequency = np.bincount(counts[fit_mask].indices, minlength=counts.shape[1])
    idf = np.log((1.0 + int(fit_mask.sum())) / (1.0 + frequency)) + 1.0
    weighted = weighted @ sparse.diags_array(idf)
    norms = np.sqrt(np.asarray(weighted.multiply(weighted).sum(1)).reshape(-1))
    return sparse.csr_matrix(sparse.diags_array(1.0 / np.where(norms > 0, norms, 1.0)) @ weighted)


def _features(text: str, ngram: int) -> list[str]:
    words = text.lower().split()
    grams = []
    for word in words:
        padded = f" {word} "
        grams += [
            "c" + padded[start : start + ngram] for start in range(max(1, len(padded) - ngram + 1))
        ]
    return ["w" + word for word in words] + grams


def _bucket(feature: str, buckets: int, known: dict[str, int]) -> int:
    if feature not in known:
        known[feature] = zlib.crc32(feature.encode("utf-8")) % buckets
    return known[feature]
