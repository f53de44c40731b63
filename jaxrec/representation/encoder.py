"""What every encoder offers, and what encoders share."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxrec.files import json_hash
from jaxrec.representation.text import Table


class TrainingSequences(NamedTuple):
    """The training events of all users, oldest first, and nothing else."""

    offsets: np.ndarray
    """int64[u + 1]: user u owns the events offsets[u] .. offsets[u+1]-1."""
    item: np.ndarray
    """int32[e]: catalogue row of each event."""


class Encoding(NamedTuple):
    """What an encoder made, and what it could not make."""

    vectors: np.ndarray
    """float32[n, d]."""
    unknown: np.ndarray
    """bool[n]: items that the encoder knew nothing about; their rows stand for nobody."""
    facts: dict[str, Any]
    """Plain numbers for the report, JSON-ready."""


@runtime_checkable
class Encoder(Protocol):
    """Items to raw vectors. One frozen dataclass a file; nothing is registered.

    An encoder reads the serialised texts, or (`reads_text = False`) anything else. One that has
    more to tell than vectors also offers `encode_with_facts`, with the arguments of `encode`, which
    returns an `Encoding`; `encode_items` asks for it.
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


def encode_items(
    encoder: Any,
    texts: list[str],
    *,
    table: Table,
    fit_mask: np.ndarray,
    seed: int,
    sequences: TrainingSequences | None = None,
) -> Encoding:
    """What any encoder makes of the items; arguments as `Encoder.encode`.

    Of an encoder that has no `encode_with_facts`, rows whose entries are all equal count as
    unknown: that is what it gives an item without text or behaviour. A single number is no such
    sign.
    """
    full = getattr(encoder, "encode_with_facts", None)
    if full is not None:
        return full(texts, table=table, fit_mask=fit_mask, seed=seed, sequences=sequences)
    vectors = encoder.encode(texts, table=table, fit_mask=fit_mask, seed=seed, sequences=sequences)
    is_constant = (vectors == vectors[:, :1]).all(1) & (vectors.shape[1] > 1)
    return Encoding(vectors, is_constant, {})


def fingerprint_of(*encoders: Any) -> str:
    """Hash of the files that encoders read, empty where they read none; of one encoder its own."""
    readers = [getattr(encoder, "fingerprint", None) for encoder in encoders]
    found = [read() if read else "" for read in readers]
    if len(found) == 1:
        return found[0]
    return json_hash(found) if any(found) else ""


def has_behaviour(sequences: TrainingSequences, items: int) -> np.ndarray:
    """Which of so many items somebody had in training, bool[n].

    >>> has_behaviour(TrainingSequences(np.array([0, 2]), np.array([2, 0])), 4)
    array([ True, False,  True, False])
    """
    return np.bincount(sequences.item, minlength=items) > 0


def check_events(name: str, sequences: TrainingSequences | None) -> TrainingSequences:
    """The training events that the encoder `name` learns from.

    Raises:
        ValueError: there are none.
    """
    if sequences is None or not len(sequences.item):
        raise ValueError(
            f"{name} learns from training events, and there are none; choose an encoder of text, "
            "or another split."
        )
    return sequences


def keep_known(sequences: TrainingSequences, items: int) -> tuple[TrainingSequences, np.ndarray]:
    """The events with items numbered anew, 0, 1, ... among those that have behaviour, and
    bool[n], which these are: what nobody had can then not shape what is learnt."""
    known = has_behaviour(sequences, items)
    number = np.cumsum(known) - 1
    return sequences._replace(item=number[sequences.item].astype(np.int32)), known


def encode_behaviour(vectors: np.ndarray, known: np.ndarray, facts: dict[str, Any]) -> Encoding:
    """Vectors of the items that have behaviour, spread over the catalogue; all others get the
    constant vector and are counted.

    Args:
        vectors: Float[k, d], in the order of `keep_known`.
        known: bool[n], k of them True.
        facts: what else to report.
    """
    full = np.zeros((len(known), vectors.shape[1]), np.float32)
    full[known] = vectors
    return Encoding(
        fill_empty(full, ~known), ~known, {"n_without_behaviour": int((~known).sum()), **facts}
    )


def interactions(sequences: TrainingSequences, items: int) -> Any:
    """How often each user had each item, a scipy CSR matrix float64[u, n], rows sorted."""
    from scipy import sparse

    ones = np.ones(len(sequences.item))
    shape = (len(sequences.offsets) - 1, items)
    # A copy: adding up repeated items rewrites the indices in place.
    counts = sparse.csr_matrix(
        (ones, sequences.item.astype(np.int32), sequences.offsets), shape=shape, copy=True
    )
    counts.sum_duplicates()
    return counts
