"""The tokenization stage: fit, encode, finalise, and judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from jaxrec.tokenization.collisions import ExtraDigit
from jaxrec.tokenization.leaves import Decode
from jaxrec.tokenization.quality import quality_report
from jaxrec.tokenization.quality_behaviour import successive_pairs
from jaxrec.tokenization.quality_categories import Categories
from jaxrec.tokenization.quantizer import check_vectors
from jaxrec.tokenization.residual_kmeans import ResidualKMeans
from jaxrec.tokenization.semantic_ids import SemanticIds

FIT_ON = ("train_items", "all_items")

_BEHAVIOUR = ("collaborative", "has_behaviour", "pairs")
"""What a quantizer may read beside vectors; all of it comes from the training events."""


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A quantizer and a collision policy: vectors to SemanticIds.

    A quantizer that reads behaviour (`quantizer.reads`) gets it from the training events, through
    the components named here.

    Raises:
        ValueError: an encoder that reads texts; in the call, bad vectors, a mask or ids of another
            length, behaviour that is missing, or what the parts raise.
    """

    quantizer: Any = ResidualKMeans()
    """ResidualKMeans(...) or anything of that shape."""
    collisions: Any = ExtraDigit()
    """ExtraDigit(), Reassign(), NextNearest(), SinkhornLast(), Capacity(), RandomLast() or
    Keep()."""
    collaborative: Any = None
    """Encoder of behaviour, such as Cooccurrence(), for quantizers that read `collaborative`."""
    pairs: Any = None
    """Finds rows that belong together, `pairs(sequences, n) -> int[m, 2]` with n the number of
    items, for quantizers that read `pairs`."""

    schema_version: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if getattr(self.collaborative, "reads_text", False):
            raise ValueError(
                f"collaborative={type(self.collaborative).__name__} reads texts; it must be an "
                "encoder of behaviour, such as Cooccurrence()."
            )

    def __call__(
        self,
        key: PRNGKeyArray,
        vectors: Any,
        *,
        items: Sequence[str] | np.ndarray,
        order: np.ndarray | None = None,
        train_mask: np.ndarray | None = None,
        fit_on: str = "all_items",
        sequences: Any = None,
        categories: Categories | None = None,
    ) -> tuple[SemanticIds, dict[str, Any]]:
        """Semantic IDs of a catalogue.

        Args:
            key: of the fit.
            vectors: Float[n, d], row = catalogue row.
            items: n item ids.
            order: rows from first served to last (`popularity_order`); catalogue order by default.
            train_mask: bool[n], items seen in training; needed for `fit_on="train_items"`.
            fit_on: rows that shape the codebooks, `train_items` or `all_items`.
            sequences: the training events, `offsets` int64[u + 1] and `item` int32[e] (a
                `TrainingSequences`); needed where the quantizer reads behaviour. The quality
                report looks at them too.
            categories: of the n items, a label or labels from broad to narrow, for that report.

        Returns:
            The artefact, and a JSON-ready report: `fit`, `quality` (of the quantizer's own codes),
            `collisions` (what the policy did), `final` (uniqueness of what is used).
        """
        fitted = check_vectors(vectors)
        points = np.asarray(fitted)
        if len(items) != len(points):
            raise ValueError(f"{len(items)} item ids for {len(points)} vectors; give one each.")
        mask = _fit_rows(len(points), train_mask, fit_on)
        check_variety(points[mask])
        aux = self._behaviour(key, items, mask, sequences)
        if not mask.all():
            fitted = jnp.asarray(points[mask])
        state = self.quantizer.fit(key, fitted, aux)
        codes = np.asarray(self.quantizer.encode(state, points))

        def decode(some: np.ndarray) -> np.ndarray:
            return np.asarray(self.quantizer.decode(state, some))

        return finish(
            self.collisions,
            codes,
            self.quantizer.sizes(state),
            items=items,
            order=order,
            vectors=points,
            decode=decode,
            quantizer=type(self.quantizer).__name__,
            state=self.quantizer.to_arrays(state),
            fit={
                **self.quantizer.report(state),
                "fit_on": fit_on,
                "n_fitted_rows": int(mask.sum()),
            },
            sequences=sequences,
            categories=categories,
        )

    def fingerprint(self) -> str:
        """Hash of a file that `collaborative` reads, empty where there is none: an input of this
        stage that its fields do not show."""
        read = getattr(self.collaborative, "fingerprint", None)
        return read() if read else ""

    def _behaviour(
        self,
        key: PRNGKeyArray,
        items: Sequence[str] | np.ndarray,
        mask: np.ndarray,
        sequences: Any,
    ) -> dict[str, np.ndarray] | None:
        """What the quantizer reads beside vectors, of the rows it is fitted on; None if nothing."""
        names = getattr(self.quantizer, "reads", ())
        if not names:
            return None
        self._check_reads(names, sequences)
        aux: dict[str, np.ndarray] = {}
        if "collaborative" in names:
            seed = int(jax.random.randint(jax.random.fold_in(key, 1), (), 0, 2**31 - 1))
            encoded = self.collaborative.encode(
                [], table={"item": list(items)}, fit_mask=mask, seed=seed, sequences=sequences
            )
            aux["collaborative"] = np.asarray(encoded, np.float32)[mask]
        if "has_behaviour" in names:
            counts = np.bincount(np.asarray(sequences.item), minlength=len(mask))
            aux["has_behaviour"] = (counts > 0)[mask]
        if "pairs" in names:
            aux["pairs"] = _fitted_pairs(self.pairs(sequences, len(items)), mask)
        return aux

    def _check_reads(self, names: tuple[str, ...], sequences: Any) -> None:
        """Finds before the fit that something it needs is missing."""
        quantizer = type(self.quantizer).__name__
        if unknown := sorted(set(names) - set(_BEHAVIOUR)):
            raise ValueError(
                f"{quantizer} reads {', '.join(unknown)}, which a Tokenizer does not have; it has "
                f"{', '.join(_BEHAVIOUR)}. Call {quantizer}.fit with your own aux."
            )
        if "collaborative" in names and self.collaborative is None:
            raise ValueError(
                f"{quantizer} reads vectors of behaviour: set Tokenizer(collaborative=...) to an "
                "encoder of behaviour, such as Cooccurrence()."
            )
        if "pairs" in names and self.pairs is None:
            raise ValueError(
                f"{quantizer} reads pairs of items: set Tokenizer(pairs=...) to a component that "
                "finds them, pairs(sequences, n) -> int[m, 2]."
            )
        if sequences is None or not len(sequences.item):
            raise ValueError(
                f"{quantizer} learns from training events, and there are none: give "
                "sequences=TrainingSequences(...), or choose a quantizer that reads vectors alone."
            )


def finish(
    policy: Any,
    codes: np.ndarray,
    sizes: tuple[int, ...],
    *,
    items: Sequence[str] | np.ndarray,
    quantizer: str,
    state: Mapping[str, np.ndarray],
    fit: dict[str, Any],
    order: np.ndarray | None = None,
    vectors: np.ndarray | None = None,
    decode: Decode | None = None,
    sequences: Any = None,
    categories: Categories | None = None,
) -> tuple[SemanticIds, dict[str, Any]]:
    """Semantic IDs from a quantizer's codes, and the report of every tokenizer.

    Args:
        policy: the collision policy.
        codes: int[n, l].
        sizes: codes of each level.
        items: n item ids.
        quantizer: name of the class that made the codes.
        state: what binds the token space.
        fit: the report's part about where the codes come from.
        order: rows from first served to last.
        vectors: float[n, d], where there are any.
        decode: codes int32[m, 1..l] to vectors, where there are codebooks.
        sequences: the training events, whose successive items the quality report looks at.
        categories: of the n items, which it looks at likewise.

    Returns:
        The artefact, and the report: `fit`, `quality`, `collisions`, `final`.
    """
    pairs = None if sequences is None else successive_pairs(sequences)
    final = policy(codes, sizes=sizes, order=order, vectors=vectors, decode=decode)
    ids = SemanticIds(
        codes=final.codes,
        space=final.space,
        items=np.asarray(items, str),
        quantizer=quantizer,
        state=state,
    )
    return ids, {
        "fit": fit,
        "quality": quality_report(
            codes,
            sizes,
            vectors=vectors,
            decode=decode,
            categories=categories,
            pairs=pairs if pairs is not None and len(pairs) else None,
        ),
        "collisions": {"policy": type(policy).__name__, **final.report},
        "final": ids.summary(),
    }


def check_variety(vectors: np.ndarray) -> None:
    """Raises ValueError where all of several vectors are equal: nothing tells their items apart."""
    if len(vectors) > 1 and (vectors == vectors[0]).all():
        raise ValueError(
            f"all {len(vectors)} vectors are equal, so semantic IDs cannot tell the items apart; "
            "look at the representation (empty texts, a wrong column or file)."
        )


def _fitted_pairs(pairs: Any, mask: np.ndarray) -> np.ndarray:
    """Pairs whose rows are both fitted, numbered among the fitted rows, int64[m, 2]."""
    array = np.asarray(pairs)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu":
        raise ValueError(f"pairs must be integers [m, 2], got {array.dtype} {array.shape}.")
    if len(array) and (array.min() < 0 or array.max() >= len(mask)):
        raise ValueError(
            f"pairs name rows {array.min()}..{array.max()}, but there are {len(mask)} items."
        )
    place = np.cumsum(mask) - 1
    return place[array[mask[array].all(1)]]


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
