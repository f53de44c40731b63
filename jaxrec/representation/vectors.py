"""Items to vectors: an encoder, then named steps, with a report of what no step can mend."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxrec.representation.encoder import TrainingSequences, encode_items, fingerprint_of
from jaxrec.representation.steps import L2, State
from jaxrec.representation.text import Table, TextFields, text_report
from jaxrec.representation.wordllama import WordLlama

FIT_ON = ("train_items", "all_items")


class VectorsResult(NamedTuple):
    """Vectors of the catalogue, and how they came about."""

    vectors: np.ndarray
    """float32[n, d], row = catalogue row."""
    report: dict[str, Any]
    """Plain numbers, JSON-ready."""
    states: tuple[State, ...]
    """What each step learnt, so that new items go the same way."""


@dataclasses.dataclass(frozen=True)
class ItemVectors:
    """The representation stage: text (or a file) to float32[n, d].

    Raises:
        ValueError: an unknown `fit_on`; in the call, a text field that the table lacks, a mask of
            another length, or vectors that are not finite.
    """

    encoder: Any = WordLlama()
    """WordLlama(), HashedTfidf(), Cooccurrence(), LightGcn(), Als(), SasRecTable(),
    Precomputed(path), Fused(parts), Aligned(encoder) or anything of that shape."""
    text: TextFields = TextFields()
    """How items are written; not used by encoders that read no text."""
    steps: tuple[Any, ...] = (L2(),)
    """Applied in order."""
    fit_on: str = "all_items"
    """Rows that encoder and steps may learn from: `train_items` (those seen in training) or
    `all_items`. Printed with every result, because published systems differ."""

    schema_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.fit_on not in FIT_ON:
            raise ValueError(f"fit_on must be one of {FIT_ON}, got {self.fit_on!r}.")

    def __call__(
        self,
        table: Table,
        train_mask: np.ndarray | None = None,
        seed: int = 0,
        sequences: TrainingSequences | None = None,
    ) -> VectorsResult:
        """Vectors of all items.

        Args:
            table: columns of the item table, one value per catalogue row.
            train_mask: bool[n], items seen in training; needed for `fit_on="train_items"`.
            seed: of encoders that draw.
            sequences: the training events, for encoders of behaviour.
        """
        mask = self._fit_mask(table, train_mask)
        texts = self.text.write(table) if self.encoder.reads_text else []
        encoding = encode_items(
            self.encoder, texts, table=table, fit_mask=mask, seed=seed, sequences=sequences
        )
        vectors = encoding.vectors
        n_constant_rows = count_constant_rows(vectors)
        states = []
        for step in self.steps:
            states.append(step.fit(vectors, mask))
            vectors = step.apply(states[-1], vectors)
        if not np.isfinite(vectors).all():
            raise ValueError(
                f"{int((~np.isfinite(vectors)).any(1).sum())} of {len(vectors)} item vectors are "
                "not finite; check the encoder's input and the steps."
            )
        report = {
            "n_items": len(vectors),
            "dimension": vectors.shape[1],
            "encoder": type(self.encoder).__name__,
            "surrogate": bool(self.encoder.surrogate),
            "text_fields": list(self.text.fields) if self.encoder.reads_text else [],
            "steps": [type(step).__name__ for step in self.steps],
            "fit_on": self.fit_on,
            "n_fitted_rows": int(mask.sum()),
            **text_report(texts),
            "n_constant_rows": n_constant_rows,
            "n_duplicate_rows": count_duplicate_rows(vectors),
            **encoding.facts,
        }
        return VectorsResult(np.ascontiguousarray(vectors, np.float32), report, tuple(states))

    def fingerprint(self) -> str:
        """Hash of the files that the encoder reads (`Precomputed`), empty where there are none: an
        input of this stage that its fields do not show."""
        return fingerprint_of(self.encoder)

    def _fit_mask(self, table: Table, train_mask: np.ndarray | None) -> np.ndarray:
        if not table:
            raise ValueError("the item table has no columns.")
        rows = len(next(iter(table.values())))
        if rows == 0:
            raise ValueError("the item table has no rows.")
        if self.fit_on == "all_items":
            return np.ones(rows, bool)
        if train_mask is None or train_mask.shape != (rows,):
            given = "no mask" if train_mask is None else f"a mask of shape {train_mask.shape}"
            raise ValueError(
                f"fit_on='train_items' needs train_mask, one bool for each of the {rows} items, "
                f"got {given}."
            )
        return train_mask.astype(bool)


def count_duplicate_rows(vectors: np.ndarray) -> int:
    """Rows that equal an earlier row: no quantizer can tell them apart.

    >>> count_duplicate_rows(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, -0.0]], np.float32))
    1
    """
    if not len(vectors):
        return 0
    rows = np.ascontiguousarray(vectors + np.float32(0))  # -0 becomes 0
    return len(rows) - len(np.unique(rows.view(np.void(rows.strides[0]).dtype)))


def count_constant_rows(vectors: np.ndarray) -> int:
    """Rows whose entries are all equal: items that the encoder knew nothing about.

    >>> count_constant_rows(np.array([[1.0, 1.0], [0.0, 1.0]]))
    1
    """
    return int((vectors == vectors[:, :1]).all(1).sum())
