"""Vectors of behaviour: items that are had close together lie close together (METHODS R4).

For logs whose items have no text. Learnt from training events alone: nothing held out can leak.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from jaxrec.representation.encoder import TrainingSequences, check_events, fill_empty
from jaxrec.representation.svd import PASSES, truncated_svd
from jaxrec.representation.text import Table
from jaxrec.tracking import Progress


@dataclasses.dataclass(frozen=True)
class Cooccurrence:
    """Positive pointwise mutual information of items within a window, reduced by an SVD.

    With n_ij the number of times that i and j are at most `window` events apart in a history,
    PPMI_ij = max(0, ln(n_ij n_.. / (n_i. n_.j))), and the vector of item i is row i of
    U_d S_d^(1/2) (O. Levy and Y. Goldberg, "Neural Word Embedding as Implicit Matrix
    Factorization", NeurIPS 2014). An item that is beside no other in training gets the constant
    vector; the report counts them.

    Raises:
        ValueError: a number below 1; in `encode`, no training events.
    """

    dimension: int = 64
    """Width of the vectors."""
    window: int = 3
    """How many events apart two items of a history still count as a pair."""

    schema_version: ClassVar[int] = 1
    reads_text: ClassVar[bool] = False
    surrogate: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if min(self.dimension, self.window) < 1:
            raise ValueError(
                "Cooccurrence needs positive numbers, got "
                f"dimension={self.dimension}, window={self.window}."
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
        """Vectors of all items, float32[n, dimension]."""
        del texts, table
        events = check_events("Cooccurrence", sequences)
        counts = pair_counts(events, len(fit_mask), self.window)
        information = positive_information(counts)
        with Progress(PASSES, "co-occurrence, SVD", unit="passes") as progress:
            directions = truncated_svd(information, self.dimension, seed, progress)
        scaled = information @ directions
        # |M v| is the singular value of v, and U S^(1/2) = M V S^(-1/2).
        singular = np.linalg.norm(scaled, axis=0)
        vectors = scaled / np.sqrt(np.where(singular > 0, singular, 1.0))
        return fill_empty(vectors, np.diff(information.indptr) == 0)


def pair_counts(sequences: TrainingSequences, items: int, window: int) -> Any:
    """How often two different items are at most `window` events apart, symmetric CSR [n, n].

    An item beside itself says nothing about others and is not counted.
    """
    from scipy import sparse

    user = np.repeat(np.arange(len(sequences.offsets) - 1), np.diff(sequences.offsets))
    total = sparse.csr_matrix((items, items), dtype=np.float64)
    for lag in range(1, window + 1):
        first, second = sequences.item[:-lag], sequences.item[lag:]
        pairs = (user[:-lag] == user[lag:]) & (first != second)
        ones = np.ones(int(pairs.sum()))
        total = total + sparse.csr_matrix(
            (ones, (first[pairs], second[pairs])), shape=(items, items)
        )
    return sparse.csr_matrix(total + total.T)


def positive_information(counts: Any) -> Any:
    """PPMI of a CSR matrix of counts; pairs that chance explains are not stored.

    >>> from scipy import sparse
    >>> bool(positive_information(sparse.csr_matrix(np.outer([1, 2], [1, 2]))).nnz)
    False
    """
    rows = np.asarray(counts.sum(1)).reshape(-1)
    columns = np.asarray(counts.sum(0)).reshape(-1)
    information = counts.tocoo()
    expected = rows[information.row] * columns[information.col] / max(counts.sum(), 1.0)
    information.data = np.maximum(np.log(information.data / expected), 0.0)
    information = information.tocsr()
    # Rounding leaves traces of zeros that would count as signs of life.
    information.data[information.data < 1e-12] = 0.0
    information.eliminate_zeros()
    return information
