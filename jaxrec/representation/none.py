"""No item vectors: what a system needs that knows items by their ids alone."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from jaxrec.representation.encoder import TrainingSequences
from jaxrec.representation.text import Table
from jaxrec.representation.vectors import VectorsResult


@dataclasses.dataclass(frozen=True)
class NoVectors:
    """Stands where `ItemVectors` stands in the recipes of retrievers (SASRec and its like)."""

    fit_on: ClassVar[str] = "all_items"
    schema_version: ClassVar[int] = 1

    def __call__(
        self,
        table: Table,
        train_mask: np.ndarray | None = None,
        seed: int = 0,
        sequences: TrainingSequences | None = None,
    ) -> VectorsResult:
        """Vectors of no numbers, float32[n, 0]; only the length of `table` is looked at."""
        del train_mask, seed, sequences
        rows = len(next(iter(table.values())))
        report: dict[str, Any] = {
            "n_items": rows,
            "dimension": 0,
            "encoder": type(self).__name__,
            "surrogate": False,
        }
        return VectorsResult(np.zeros((rows, 0), np.float32), report, ())

    def fingerprint(self) -> str:
        """No file is read."""
        return ""
