"""The tokenization stage: fit, encode, finalise, and judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from jaxrec.tokenization.collisions import ExtraDigit
from jaxrec.tokenization.quality import quality_report
from jaxrec.tokenization.quantizer import check_vectors
from jaxrec.tokenization.residual_kmeans import ResidualKMeans
from jaxrec.tokenization.semantic_ids import SemanticIds

FIT_ON = ("train_items", "all_items")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A quantizer and a collision policy: vectors to SemanticIds."""

    quantizer: Any = ResidualKMeans()
    """ResidualKMeans(...) or anything of that shape."""
    collisions: Any = ExtraDigit()
    """ExtraDigit(), Reassign() or Keep()."""

    schema_version: ClassVar[int] = 1

    def __call__(
        self,
        key: PRNGKeyArray,
        vectors: Any,
        *,
        items: Sequence[str] | np.ndarray,
        order: np.ndarray | None = None,
        train_mask: np.ndarray | None = None,
        fit_on: str = "all_items",
    ) -> tuple[SemanticIds, dict[str, Any]]:
        """Semantic IDs of a catalogue.

        Args:
            key: of the fit.
            vectors: Float[n, d], row = catalogue row.
            items: n item ids.
            order: rows from first served to last (`popularity_order`); catalogue order by default.
            train_mask: bool[n], items seen in training; needed for `fit_on="train_items"`.
            fit_on: rows that shape the codebooks, `train_items` or `all_items`.

        Returns:
            The artefact, and a JSON-ready report: `fit`, `quality` (of the quantizer's own codes),
            `collisions` (what the policy did), `final` (uniqueness of what is used).

        Raises:
            ValueError: bad vectors, a mask or ids of another length, or what the parts raise.
        """
        fitted = check_vectors(vectors)
        points = np.asarray(fitted)
        if len(items) != len(points):
            raise ValueError(f"{len(items)} item ids for {len(points)} vectors; give one each.")
        mask = _fit_rows(len(points), train_mask, fit_on)
        if not mask.all():
            fitted = jnp.asarray(points[mask])
        state = self.quantizer.fit(key, fitted)
        sizes = self.quantizer.sizes(state)
        codes = np.asarray(self.quantizer.encode(state, points))

        def decode(some: np.ndarray) -> np.ndarray:
            return np.asarray(self.quantizer.decode(state, some))

        final = self.collisions(codes, sizes=sizes, order=order, vectors=points, decode=decode)
        ids = SemanticIds(
            codes=final.codes,
            space=final.space,
            items=np.asarray(items, str),
            quantizer=type(self.quantizer).__name__,
            state=self.quantizer.to_arrays(state),
        )
        report = {
            "fit": {
                **self.quantizer.report(state),
                "fit_on": fit_on,
                "n_fitted_rows": int(mask.sum()),
            },
            "quality": quality_report(codes, sizes, vectors=points, decode=decode),
            "collisions": {"policy": type(self.collisions).__name__, **final.report},
            "final": {
                "sizes": list(final.space.sizes),
                "has_extra_digit": final.space.has_extra_digit,
                "is_unique": len(np.unique(final.codes, axis=0)) == len(points),
                "space_id": ids.space_id,
                "assignment_id": ids.assignment_id,
            },
        }
        return ids, report


def _fit_rows(rows: int, train_mask: np.ndarray | None, fit_on: str) -> np.ndarray:
    if fit_on not in FIT_ON:
        raise ValueError(f"fit_on must be one of {FIT_ON}, got {fit_on!r}.")
    if fit_on == "all_items":
        return np.ones(rows, bool)
    if train_mask is None or train_mask.shape != (rows,) or not train_mask.any():
        given = "no mask" if train_mask is None else f"a mask of shape {train_mask.shape}"
        raise ValueError(
            f"fit_on='train_items' needs train_mask, one bool for each of {rows} items and at "
            f"least one of them true, got {given}."
        )
    return train_mask.astype(bool)
