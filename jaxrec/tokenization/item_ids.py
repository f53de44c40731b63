"""Sparse item ids (METHODS T0): every item is a code of its own, and there is one level of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import PRNGKeyArray

from jaxrec.tokenization.quality_categories import Categories
from jaxrec.tokenization.semantic_ids import SemanticIds
from jaxrec.types import TokenSpace


def has_item_ids(ids: SemanticIds) -> bool:
    """Whether an artefact holds sparse item ids, which say nothing about an item."""
    return ids.quantizer == ItemIds.__name__


@dataclasses.dataclass(frozen=True)
class ItemIds:
    """Stands where `Tokenizer` stands in the recipes of retrievers, which learn a vector an item.

    The token space is bound to the catalogue: a checkpoint of other items, or of the same in
    another order, is refused.
    """

    schema_version: ClassVar[int] = 1

    def __call__(
        self,
        key: PRNGKeyArray | None = None,
        vectors: Any = None,
        *,
        items: Sequence[str] | np.ndarray,
        order: np.ndarray | None = None,
        train_mask: np.ndarray | None = None,
        fit_on: str = "all_items",
        sequences: Any = None,
        categories: Categories | None = None,
    ) -> tuple[SemanticIds, dict[str, Any]]:
        """The code of an item is its catalogue row. All arguments but `items` are unused.

        Args:
            items: n item ids.

        Returns:
            The artefact, and a report without quality: nothing was quantized.
        """
        del key, vectors, order, train_mask, fit_on, sequences, categories
        names = np.asarray(items, str)
        ids = SemanticIds(
            codes=np.arange(len(names), dtype=np.int32)[:, None],
            space=TokenSpace((len(names),)),
            items=names,
            quantizer=type(self).__name__,
            state={"items": np.frombuffer("\n".join(names.tolist()).encode(), np.uint8)},
        )
        return ids, {"fit": {"quantizer": type(self).__name__}, "final": ids.summary()}
