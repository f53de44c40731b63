"""The measures by which tokenizers stand side by side: where each is read, and which end is better.

A measure of one level is told of the worst, for a generator goes through all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from jaxrec.tokenization.quality_categories import above_chance

Quality = Mapping[str, Any]
CUTOFFS = (10, 100)
"""K of the hit rates."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """One number of a quality report."""

    section: str
    name: str
    read: Callable[[Quality], int | float]
    """Raises KeyError where the report does not have it."""
    better: Literal["high", "low", ""] = ""
    """Nothing where neither end is better by itself."""
    style: Literal["share", "number", "count"] = "share"
    same_vectors: bool = False
    """Comparable only between tokenizers of the same vectors."""


def _levels(quality: Quality, name: str) -> list[int | float]:
    return [level[name] for level in quality["levels"]]


def _perplexity(quality: Quality) -> float:
    return min(level["perplexity"] / level["size"] for level in quality["levels"])


def _categories(quality: Quality, name: str) -> float:
    row = quality["categories"]["prefixes"][1]
    return above_chance(row[name], row[f"{name}_chance"])


def _first(quality: Quality) -> Mapping[str, int | float]:
    return quality["behaviour"]["prefixes"][0]


def _above_chance(quality: Quality) -> float:
    first = _first(quality)
    return first["pairs"] - first["chance"]


def _alignment(quality: Quality) -> float:
    """Mean cosine of the items that share the first code, or more, less that of all others."""
    rows = quality["alignment"]
    pairs = sum(row["pairs"] for row in rows[1:])
    inside = sum(row["pairs"] * row["cosine"] for row in rows[1:])
    return (inside / pairs if pairs else 0.0) - rows[0]["cosine"]


def _hits(kind: str, cutoff: int) -> Callable[[Quality], float]:
    return lambda quality: quality["neighbourhood"][kind][f"hr@{cutoff}"]


IDS, USE = "IDs", "Use of the codes"
MEANING, BEHAVIOUR = "Meaning", "Behaviour"
RECONSTRUCTION = "Reconstruction"

MEASURES = (
    Measure(IDS, "IDs lost to collisions", lambda q: q["collisions"]["lost_ids"], "low"),
    Measure(IDS, "items that share an ID", lambda q: q["collisions"]["items_sharing"], "low"),
    Measure(IDS, "the same with random codes", lambda q: q["random_floor"]),
    Measure(IDS, "IDs that are shared", lambda q: q["collisions"]["ids_shared"], "low"),
    Measure(
        IDS, "items of the largest group", lambda q: q["collisions"]["max_bucket"], "low", "count"
    ),
    Measure(USE, "codes used, worst level", lambda q: min(_levels(q, "utilisation")), "high"),
    Measure(USE, "perplexity / codes, worst level", _perplexity, "high"),
    Measure(
        USE, "Gini over all codes, worst level", lambda q: max(_levels(q, "gini_all")), "low",
        "number",
    ),
    Measure(
        USE, "entropy of the whole ID, nats", lambda q: sum(_levels(q, "conditional_entropy")), "",
        "number",
    ),
    Measure(
        USE, "hourglass: dip of the middle", lambda q: max(0.0, q["hourglass"]["dip"]), "low",
        "number",
    ),
    Measure(
        RECONSTRUCTION, "variance explained", lambda q: q["reconstruction"][-1]["explained"],
        "high", same_vectors=True,
    ),
    Measure(
        RECONSTRUCTION, "the same by the first level",
        lambda q: q["reconstruction"][0]["explained"], "high", same_vectors=True,
    ),
    Measure(
        RECONSTRUCTION, "cosine to the vectors", lambda q: q["reconstruction"][-1]["cosine"],
        "high", "number", same_vectors=True,
    ),
    Measure(
        MEANING, "cosine inside a first code, above the rest", _alignment, "high", "number",
        same_vectors=True,
    ),
    Measure(
        MEANING, "purity of the first code", lambda q: q["categories"]["prefixes"][1]["purity"]
    ),
    Measure(MEANING, "the same, above chance", lambda q: _categories(q, "purity"), "high"),
    Measure(
        MEANING, "mutual information with the categories, above chance",
        lambda q: _categories(q, "nmi"), "high", "number",
    ),
    Measure(BEHAVIOUR, "pairs that share the first code", lambda q: _first(q)["pairs"]),
    Measure(BEHAVIOUR, "the same for any two items", lambda q: _first(q)["chance"]),
    Measure(BEHAVIOUR, "the pairs less any two", _above_chance, "high"),
    Measure(BEHAVIOUR, "leading codes that pairs share", lambda q: q["behaviour"]["overlap"]),
    *(
        Measure(BEHAVIOUR, f"HR@{k} of {words}", _hits(kind, k), better)
        for k in CUTOFFS
        for kind, words, better in (
            ("quantized", "the codes (forge_like)", "high"),
            ("vectors", "the vectors", ""),
            ("chance", "a random order", ""),
        )
    ),
)  # fmt: skip
"""In the order of the table."""


def measure_rows(qualities: Mapping[str, Quality], *, same_vectors: bool) -> list[dict[str, Any]]:
    """Every measure that any report has.

    Args:
        qualities: by name, reports of `quality_report`.
        same_vectors: whether all quantized the same vectors.

    Returns:
        For each: `section`, `name`, `better`, `style`, `values` by name (None where a report does
        not have it), and `best`, the names of the best, empty where there are no two values, all
        are equal, or they are not comparable.
    """
    rows = []
    for measure in MEASURES:
        values = {name: _read(measure, quality) for name, quality in qualities.items()}
        if any(value is not None for value in values.values()):
            told = [value for value in values.values() if value is not None]
            best = []
            comparable = same_vectors or not measure.same_vectors
            if measure.better and comparable and len(set(told)) > 1:
                end = max(told) if measure.better == "high" else min(told)
                best = [name for name, value in values.items() if value == end]
            rows.append(
                {
                    "section": measure.section,
                    "name": measure.name,
                    "better": measure.better,
                    "style": measure.style,
                    "values": values,
                    "best": best,
                }
            )
    return rows


def _read(measure: Measure, quality: Quality) -> int | float | None:
    try:
        return measure.read(quality)
    except KeyError:
        return None


def told_value(value: int | float | None, style: str) -> str:
    """A value for people.

    >>> told_value(0.1239, "share"), told_value(0.1239, "number"), told_value(1200, "count")
    ('12.4%', '0.124', '1,200')
    """
    if value is None:
        return "-"
    return {"share": f"{value:.1%}", "number": f"{value:.3f}", "count": f"{value:,.0f}"}[style]
