"""Early fusion: the vectors of several encoders side by side (METHODS R6).

    x = concat_m( weight_m / sqrt(width_m) * (x_m - mean_m) / deviation_m )

A modality of larger numbers would otherwise rule every distance. Each part is moved and scaled as a
whole (`deviation` is one number, over all its dimensions), so what it says is not bent, and its
squared length is `weight`^2 on average.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Float32

from jaxrec.representation.encoder import (
    Encoding,
    TrainingSequences,
    encode_items,
    fingerprint_of,
)
from jaxrec.representation.text import Table

Missing = Literal["mean", "zero"]


def fuse_block(
    vectors: Float[np.ndarray, "n d"],
    unknown: Bool[np.ndarray, " n"],
    fit_mask: Bool[np.ndarray, " n"],
    *,
    weight: float,
    standardise: bool,
    missing: Missing,
) -> Float32[np.ndarray, "n d"]:
    """One part as it stands in the fused vector.

    Args:
        vectors: the part.
        unknown: rows that stand for nobody: not looked at, and filled.
        fit_mask: rows that mean and deviation may look at.
        weight: of the part.
        standardise: whether mean and deviation are taken out.
        missing: what an unknown row becomes, before the mean is taken out.

    Raises:
        ValueError: no row is both known and fitted.
    """
    fitted = np.asarray(vectors[fit_mask & ~unknown], np.float64)
    if not len(fitted):
        raise ValueError(
            "a part of Fused knows none of the items that may be fitted; leave it out, or give it "
            "vectors of such items."
        )
    mean = fitted.mean(0)
    rows = np.where(unknown[:, None], mean if missing == "mean" else 0.0, vectors)
    scale = weight / vectors.shape[1] ** 0.5
    if standardise:
        rows = rows - mean
        deviation = np.sqrt(np.mean(np.square(fitted - mean)))
        # A part that is constant up to rounding tells nothing, and may not be blown up.
        is_constant = deviation <= 1e-6 * (np.abs(fitted).max() + 1e-30)
        scale = 0.0 if is_constant else scale / deviation
    return (rows * scale).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Fused:
    """Several encoders, each standardised and weighed, side by side.

    The report names the columns of each part, so that a quantizer a modality can have its own.
    An item is unknown where it is unknown to all parts.

    Raises:
        ValueError: no part, weights or steps of another number, a weight that is not positive, or
            an unknown `missing`; in `encode`, a part that knows no fitted item.
    """

    parts: tuple[Any, ...]
    """Encoders: WordLlama(), LightGcn(), Precomputed(path), ..."""
    weights: tuple[float, ...] = ()
    """Of each part; all 1 by default."""
    steps: tuple[tuple[Any, ...], ...] = ()
    """Steps of each part before it is standardised, for example ((L2(),), ()); none by default."""
    missing: Missing = "mean"
    """What a part becomes where it knows nothing about an item: its mean, or zeros."""
    standardise: bool = True
    """Take out each part's mean and deviation; off for parts whose scales are meant."""

    schema_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("Fused needs at least one encoder in parts.")
        for name in ("weights", "steps"):
            if len(getattr(self, name)) not in (0, len(self.parts)):
                raise ValueError(
                    f"Fused needs as many {name} as its {len(self.parts)} parts, or none, got "
                    f"{len(getattr(self, name))}."
                )
        if any(weight <= 0 for weight in self.weights):
            raise ValueError(f"Fused needs positive weights, got {self.weights}; drop the part.")
        if self.missing not in get_args(Missing):
            raise ValueError(
                f"Fused.missing must be one of {get_args(Missing)}, got {self.missing!r}."
            )

    @property
    def reads_text(self) -> bool:
        """Whether a part does."""
        return any(part.reads_text for part in self.parts)

    @property
    def surrogate(self) -> bool:
        """Whether a part is one."""
        return any(part.surrogate for part in self.parts)

    def fingerprint(self) -> str:
        """Hash of the files of all parts."""
        return fingerprint_of(*self.parts)

    def encode(self, texts: list[str], **given: Any) -> np.ndarray:
        """Fused vectors, float32[n, sum of widths]; arguments as `encode_with_facts`."""
        return self.encode_with_facts(texts, **given).vectors

    def encode_with_facts(
        self,
        texts: list[str],
        *,
        table: Table,
        fit_mask: np.ndarray,
        seed: int,
        sequences: TrainingSequences | None = None,
    ) -> Encoding:
        """Fused vectors, items unknown to all parts, and each part's columns and facts."""
        mask = np.asarray(fit_mask, bool)
        blocks, unknown, facts, column = [], np.ones(len(mask), bool), [], 0
        weights = self.weights or (1.0,) * len(self.parts)
        steps = self.steps or ((),) * len(self.parts)
        for part, weight, own in zip(self.parts, weights, steps):
            made = encode_items(
                part, texts, table=table, fit_mask=fit_mask, seed=seed, sequences=sequences
            )
            vectors = made.vectors
            for step in own:
                vectors = step.apply(step.fit(vectors, mask & ~made.unknown), vectors)
            block = fuse_block(
                vectors,
                made.unknown,
                mask,
                weight=weight,
                standardise=self.standardise,
                missing=self.missing,
            )
            blocks.append(block)
            unknown &= made.unknown
            facts.append(
                {
                    "encoder": type(part).__name__,
                    "columns": [column, column + block.shape[1]],
                    "weight": weight,
                    "n_unknown": int(made.unknown.sum()),
                    **made.facts,
                }
            )
            column += block.shape[1]
        return Encoding(np.concatenate(blocks, 1), unknown, {"blocks": facts})
