"""What every encoder offers, and what encoders share."""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxrec.representation.text import Table


class TrainingSequences(NamedTuple):
    """The training events of all users, oldest first, and nothing else."""

    offsets: np.ndarray
    """int64[u + 1]: user u owns the events offsets[u] .. offsets[u+1]-1."""
    item: np.ndarray
    """int32[e]: catalogue row of each event."""


@runtime_checkable
class Encoder(Protocol):
    """Items to raw vectors. One frozen dataclass a file; nothing is registered.

    An encoder reads the serialised texts, or (`reads_text = False`) anything else.
    """

    schema_version: ClassVar[int]
    """Counts the meanings of this encoder; a change makes cached vectors stale."""
    reads_text: ClassVar[bool]
    """Whether `encode` needs texts."""

    @property
    def surrogate(self) -> bool:
        """Whether this stands in for a pretrained encoder; printed with every result."""
        ...

    def encode(
        self,
        texts: list[str],
        *,
        table: Table,
        fit_mask: np.ndarray,
        seed: int,
        sequences: TrainingSequences | None = None,
    ) -> np.ndarray:
        """Vectors of all items.

        Args:
            texts: one text per item; empty when `reads_text` is False.
            table: the item table; its column `item` holds the ids.
            fit_mask: bool[n], the items that anything learnt here may look at.
            seed: makes equal calls equal.
            sequences: who had what in training, for encoders of behaviour; nothing held out is
                in there.

        Returns:
            float32[n, d].
        """
        ...


def constant_vector(dimension: int) -> np.ndarray:
    """The vector of an item without text: unit length, the same for all, float32[d]."""
    return np.full(dimension, dimension**-0.5, np.float32)


def fill_empty(vectors: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """Gives the rows marked in `empty` (bool[n]) the constant vector; float32[n, d]."""
    vectors = np.array(vectors, np.float32)
    vectors[empty] = constant_vector(vectors.shape[1])
    return vectors
