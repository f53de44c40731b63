"""How good semantic IDs are before any generator is trained: numbers, and plain advice.

METHODS T23. A caution from there: over published systems the entropy of codes hardly correlates
with ranking quality, so these numbers find what is broken; they do not rank what works.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxrec.tokenization.leaves import bucket_numbers
from jaxrec.tokenization.quality_advice import advice
from jaxrec.tokenization.quality_behaviour import (
    chance_hits,
    forge_like,
    prefix_overlap,
    thin_pairs,
    vector_hits,
)
from jaxrec.tokenization.quality_categories import (
    Categories,
    category_labels,
    entropy_of,
    prefix_purity,
)

Decode = Callable[[np.ndarray], np.ndarray]
Numbers = dict[str, int | float]

_COMPARISONS = 2**28
_LEAST_PAIRS = 2000
"""A neighbourhood compares every pair with the whole catalogue: large ones are judged by fewer
pairs. Of 2,000 pairs a hit rate of .05 is known to .005."""


def quality_report(
    codes: np.ndarray,
    sizes: tuple[int, ...],
    *,
    vectors: np.ndarray | None = None,
    decode: Decode | None = None,
    categories: Categories | None = None,
    take: str = "first",
    pairs: np.ndarray | None = None,
) -> dict[str, Any]:
    """Everything that can be said about semantic codes, as plain numbers, with advice.

    Args:
        codes: int[n, l], the semantic levels only (no extra digit).
        sizes: codes of each level.
        vectors: float[n, d] that were quantized; without them no alignment, no duplicates.
        decode: codes int32[n, 1..l] to vectors; without it no reconstruction errors.
        categories: of the n items, a label or labels from broad to narrow (`category_labels`).
        take: which of several labels counts, `first` or `deepest`.
        pairs: int[m, 2], items that belong together in training (`successive_pairs`).

    Returns:
        JSON-ready: `collisions`, `levels` (one entry a level), `random_floor`, and where there is
        what they need: `hourglass`, `alignment`, `duplicates`, `reconstruction`, `categories`
        (`prefix_purity`), `behaviour` (`prefix_overlap`), `neighbourhood` (`forge_like`, with the
        hits of the vectors themselves and of chance); `advice` is a list of sentences.

    Raises:
        ValueError: codes that do not fit the sizes, and as the functions named above.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.shape[1] != len(sizes) or not len(codes):
        raise ValueError(f"codes must be [items, {len(sizes)}], got {codes.shape}.")
    conditional = conditional_entropies(codes)
    report: dict[str, Any] = {
        "n_items": len(codes),
        "collisions": collision_rates(codes),
        "random_floor": random_hash_floor(len(codes), math.prod(sizes)),
        "levels": [
            {**level_usage(codes[:, level], size), "conditional_entropy": conditional[level]}
            for level, size in enumerate(sizes)
        ],
    }
    if vectors is not None:
        vectors = np.asarray(vectors, np.float32)
        report["duplicates"] = duplicate_report(codes, vectors)
        report["alignment"] = prefix_alignment(codes, vectors)
        if decode is not None:
            report["reconstruction"] = reconstruction(codes, vectors, decode)
    if len(sizes) > 2:
        report["hourglass"] = hourglass(report["levels"], len(codes))
    if categories is not None:
        report["categories"] = prefix_purity(codes, category_labels(categories, take))
    if pairs is not None:
        report["behaviour"] = prefix_overlap(codes, pairs)
        if decode is not None:
            report["neighbourhood"] = _neighbourhood(codes, pairs, decode, vectors)
    report["advice"] = advice(report)
    return report


def _neighbourhood(
    codes: np.ndarray, pairs: np.ndarray, decode: Decode, vectors: np.ndarray | None
) -> dict[str, Any]:
    asked = thin_pairs(np.asarray(pairs), max(_LEAST_PAIRS, _COMPARISONS // len(codes)))
    found = {
        "kind": "forge_like",
        "n_pairs": len(asked),
        "quantized": forge_like(codes, decode, asked),
        "chance": chance_hits(len(codes)),
    }
    return found if vectors is None else {**found, "vectors": vector_hits(vectors, asked)}


def collision_rates(codes: np.ndarray) -> Numbers:
    """The three collision rates in use, METHODS T23.

    Returns:
        `lost_ids` = (n - number of different IDs) / n (LC-Rec, MiniOneRec); `items_sharing` =
        fraction of items that share their ID; `ids_shared` = fraction of IDs with several items;
        `n_sids`, `max_bucket`.

    >>> rates = collision_rates(np.array([[1, 2], [1, 2], [1, 3], [4, 4]]))
    >>> rates["lost_ids"], rates["items_sharing"], round(rates["ids_shared"], 3)
    (0.25, 0.5, 0.333)
    """
    buckets = np.bincount(bucket_numbers(codes))
    shared = buckets[buckets > 1]
    return {
        "lost_ids": 1.0 - len(buckets) / len(codes),
        "items_sharing": float(shared.sum() / len(codes)),
        "ids_shared": len(shared) / len(buckets),
        "n_sids": len(buckets),
        "max_bucket": int(buckets.max()),
    }


def level_usage(codes: np.ndarray, size: int) -> Numbers:
    """How evenly one level's codes are used.

    Args:
        codes: int[n], the codes of the level.
        size: codes that the level has.

    Returns:
        `used`, `utilisation` = used / size, `entropy` in nats, `perplexity` = exp(entropy),
        `gini_used` over the codes in use, `gini_all` over all codes.
    """
    counts = np.bincount(codes, minlength=size)
    used = counts[counts > 0]
    entropy = entropy_of(used)
    return {
        "size": size,
        "used": len(used),
        "utilisation": len(used) / size,
        "entropy": entropy,
        "perplexity": math.exp(entropy),
        "gini_used": gini(used),
        "gini_all": gini(counts),
    }


def gini(counts: np.ndarray) -> float:
    """Gini coefficient of counts: 0 = even, towards 1 = all in one. Zeros count.

    (n + 1) / n - 2 sum_i cum_i / (n cum_n), counts ascending (the form FORGE uses).

    >>> gini(np.array([1, 2, 3, 4])), gini(np.array([0, 0, 0, 4])), gini(np.array([4]))
    (0.25, 0.75, 0.0)
    """
    cumulative = np.cumsum(np.sort(np.asarray(counts, np.float64)))
    n = len(cumulative)
    return float((n + 1) / n - 2 * cumulative.sum() / (n * cumulative[-1]))


def conditional_entropies(codes: np.ndarray) -> list[float]:
    """H(c_l | c_1 .. c_{l-1}) in nats for each level: what a generator has to decide there."""
    joint = [0.0]
    for level in range(codes.shape[1]):
        joint.append(entropy_of(np.bincount(bucket_numbers(codes[:, : level + 1]))))
    return [max(after - before, 0.0) for before, after in itertools.pairwise(joint)]


def hourglass(levels: list[Numbers], items: int) -> Numbers:
    """Whether a middle level is used less evenly than the ends: the hourglass of residual codes
    (Kuai et al., arXiv:2407.21488), through whose waist most paths lead.

    Args:
        levels: of three levels or more, their `size` and `entropy` (`level_usage`).
        items: of the catalogue; a level cannot be more even than they allow.

    Returns:
        `level` = the least even of the middle, its `evenness` = entropy / ln(min(size, items)),
        `ends` = the lower evenness of first and last level, `dip` = ends - evenness: positive in
        an hourglass.

    >>> entropies = (math.log(4), math.log(2), math.log(4))
    >>> hourglass([{"size": 4, "entropy": each} for each in entropies], 16)
    {'level': 1, 'evenness': 0.5, 'ends': 1.0, 'dip': 0.5}
    """
    evenness = [
        level["entropy"] / math.log(most) if (most := min(level["size"], items)) > 1 else 1.0
        for level in levels
    ]
    waist = min(range(1, len(levels) - 1), key=evenness.__getitem__)
    ends = min(evenness[0], evenness[-1])
    return {
        "level": waist,
        "evenness": evenness[waist],
        "ends": ends,
        "dip": ends - evenness[waist],
    }


def random_hash_floor(items: int, space: int) -> float:
    """Expected fraction of items that share their ID under uniformly random codes.

    1 - (1 - 1/M)^(N-1) with M possible IDs and N items.

    >>> round(random_hash_floor(12101, 256**3), 5), round(random_hash_floor(12101, 256**2), 3)
    (0.00072, 0.169)
    """
    if space == 1:
        return float(items > 1)
    return -math.expm1((items - 1) * math.log1p(-1.0 / space))


def prefix_alignment(codes: np.ndarray, vectors: np.ndarray) -> list[Numbers]:
    """Mean cosine of item pairs by the length of the prefix they share, over all pairs, exactly.

    In a group of g unit vectors the cosines of the g (g - 1) / 2 pairs sum to (|sum|^2 - g) / 2, so
    no pair is ever formed.

    Returns:
        For p = 0 .. l: `shared` = p, `pairs` that share exactly p codes, their mean `cosine` (0
        where there is no pair). Meaningful where prefixes are (not for product quantizers).
    """
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1.0)
    pairs, cosines = [], []
    for level in range(codes.shape[1] + 1):
        group = bucket_numbers(codes[:, :level])
        sizes = np.bincount(group).astype(np.float64)
        starts = np.searchsorted(np.sort(group), np.arange(len(sizes)))
        sums = np.add.reduceat(unit[np.argsort(group, kind="stable")], starts)
        own = np.add.reduceat((unit**2).sum(1)[np.argsort(group, kind="stable")], starts)
        pairs.append(float((sizes * (sizes - 1) / 2).sum()))
        cosines.append(float(((sums**2).sum(1) - own).sum() / 2))
    pairs, cosines = [*pairs, 0.0], [*cosines, 0.0]
    rows = []
    for level in range(codes.shape[1] + 1):
        exactly = pairs[level] - pairs[level + 1]
        total = cosines[level] - cosines[level + 1]
        rows.append(
            {"shared": level, "pairs": exactly, "cosine": total / exactly if exactly else 0.0}
        )
    return rows


def duplicate_report(codes: np.ndarray, vectors: np.ndarray) -> Numbers:
    """Which collisions no quantizer could avoid.

    Returns:
        `n_duplicate_rows` = items whose vector an earlier item has; `lost_ids_distinct` =
        `lost_ids` counted over different vectors only (the quantizer's own collisions).
    """
    rows = np.ascontiguousarray(vectors + np.float32(0))
    _, first = np.unique(rows.view(np.void(rows.strides[0]).dtype), return_index=True)
    return {
        "n_duplicate_rows": len(rows) - len(first),
        "lost_ids_distinct": collision_rates(codes[first])["lost_ids"],
    }


def reconstruction(codes: np.ndarray, vectors: np.ndarray, decode: Decode) -> list[Numbers]:
    """Error of the vectors decoded from the first 1, 2, ... levels.

    Returns:
        For each number of levels: `levels`, `mse` per number of a vector, mean `cosine` to the
        original, and `explained` = 1 - mse / variance.
    """
    codes = np.ascontiguousarray(codes, np.int32)
    variance = float(((vectors - vectors.mean(0)) ** 2).mean())
    rows = []
    for levels in range(1, codes.shape[1] + 1):
        decoded = np.asarray(decode(codes[:, :levels]), np.float64)
        mse = float(((vectors - decoded) ** 2).mean())
        norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(decoded, axis=1)
        cosine = (vectors * decoded).sum(1) / np.where(norms > 0, norms, 1.0)
        rows.append(
            {
                "levels": levels,
                "mse": mse,
                "cosine": float(cosine.mean()),
                "explained": 1.0 - mse / variance if variance > 0 else 1.0,
            }
        )
    return rows
