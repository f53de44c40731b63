"""Items that belong together: pairs for contrastive alignment (METHODS R5)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float64, Int32

from jaxrec.representation.cooccurrence import pair_counts
from jaxrec.representation.encoder import TrainingSequences


def top_pairs(
    scores: Any, per_item: int
) -> tuple[Int32[np.ndarray, "m 2"], Float64[np.ndarray, " m"]]:
    """Pairs in which one item is among the best partners of the other.

    Args:
        scores: scipy sparse matrix [n, n]; row i holds the scores of i's partners, nothing else is
            a partner. Where the two directions of a pair differ, the larger counts.
        per_item: partners of an item, the best ones; ties go to the lowest id.

    Returns:
        Pairs (lower id, higher id), rising, each once, and their scores.
    """
    both = scores.maximum(scores.T).tocoo()
    partner = both.row != both.col
    row, column, score = both.row[partner], both.col[partner], both.data[partner]
    order = np.lexsort((column, -score, row))
    row, column, score = row[order], column[order], score[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    best = place < per_item
    ends = np.sort(np.stack([row[best], column[best]], 1), 1)
    pairs, first = np.unique(ends, axis=0, return_index=True)
    return pairs.astype(np.int32), score[best][first].astype(np.float64)


@dataclasses.dataclass(frozen=True)
class NextPairs:
    """Items that are often had shortly after one another.

    Raises:
        ValueError: a number below 1.
    """

    window: int = 1
    """How many events apart two items of a history still count as a pair."""
    per_item: int = 10
    """Partners of an item, those with most counts; ties go to the lowest id."""

    schema_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if min(self.window, self.per_item) < 1:
            raise ValueError(
                f"NextPairs needs positive numbers, got window={self.window}, "
                f"per_item={self.per_item}."
            )

    def __call__(self, sequences: TrainingSequences, items: int) -> Int32[np.ndarray, "m 2"]:
        """Pairs (lower id, higher id) of different items, rising, each once."""
        return top_pairs(pair_counts(sequences, items, self.window), self.per_item)[0]
