"""Whether codebooks still fit what comes in: new vectors held against those that were fitted.

Level by level, how far an item lies from what its codes decode to. Codebooks are nearest to the
items that shaped them, so items like them lie a little farther off: give old items that took no
part in the fit as `old`, where there are any, or read small excesses with that in mind.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxrec.tokenization.leaves import Decode, bucket_numbers

QUANTILES = (0.5, 0.9, 0.99)
"""Of the distances; the last one is the edge beyond which an item counts as far."""

_FAR = (0.1, 0.5)
"""Shares of far items that are too many at the first level and at later ones. Without any drift,
20 fitted items a code put up to .04 of new ones beyond the edge of the first level, and .25 beyond
that of the third: a code that few items shaped lies too near to them."""
_MANY = 0.05
_CROWDED = 2.0
_SURE = 3.0
"""Standard deviations of chance that an excess must exceed before it is advised upon."""


def drift_report(quantizer: Any, state: Any, old: np.ndarray, new: np.ndarray) -> dict[str, Any]:
    """How new vectors sit in codebooks that were fitted to old ones; JSON-ready.

    Args:
        quantizer: the component.
        state: its fitted state (`open_quantizer`).
        old: float[n, d], vectors of the items that the index has.
        new: float[m, d], vectors of the items that come in.

    Returns:
        `levels`, one entry a level: quantiles of the distance |x - decode(first codes)| of `old`
        and `new`; `beyond`, the share of new items beyond the 99 % quantile of the old ones (.01
        if they are alike and codes are shaped by many); `used_old` and `used_new`, shares of the
        level's codes in use; `opened`, codes that only new items use; `focus`, the largest share
        of new items on one code.
        `collisions`: `old` and `new`, shares of items whose code an item of the same side has, and
        `new_on_old`, the share of new items whose code an old one has. `advice`: sentences, none
        where nothing speaks for a new fit.

    Raises:
        ValueError: bad vectors, or vectors of another width than the codebooks.
    """
    sizes = tuple(quantizer.sizes(state))
    old, new = np.asarray(old, np.float32), np.asarray(new, np.float32)
    old_codes = np.asarray(quantizer.encode(state, old))
    new_codes = np.asarray(quantizer.encode(state, new))

    def decode(some: np.ndarray) -> np.ndarray:
        return np.asarray(quantizer.decode(state, some))

    old_distances = prefix_distances(old, old_codes, decode)
    new_distances = prefix_distances(new, new_codes, decode)
    levels = [
        {
            **_distance_change(old_distances[:, level], new_distances[:, level]),
            **_usage_change(old_codes[:, level], new_codes[:, level], size),
        }
        for level, size in enumerate(sizes)
    ]
    report = {
        "n_old": len(old),
        "n_new": len(new),
        "quantiles": list(QUANTILES),
        "levels": levels,
        "collisions": collision_change(old_codes, new_codes),
    }
    return {**report, "advice": advice(report)}


def prefix_distances(vectors: np.ndarray, codes: np.ndarray, decode: Decode) -> np.ndarray:
    """Distances |x - decode(first 1, 2, ... codes)|, float64[n, l]."""
    columns = [
        np.linalg.norm(vectors - np.asarray(decode(codes[:, : level + 1]), np.float64), axis=1)
        for level in range(codes.shape[1])
    ]
    return np.stack(columns, 1)


def collision_change(old: np.ndarray, new: np.ndarray) -> dict[str, float]:
    """Shares of items that meet another one: old among old, new among new, new on old.

    >>> collision_change(np.array([[1], [1], [2], [3]]), np.array([[2], [4]]))
    {'old': 0.5, 'new': 0.0, 'new_on_old': 0.5}
    """
    numbers = bucket_numbers(np.concatenate([old, new]))
    ours, theirs = numbers[: len(old)], numbers[len(old) :]
    return {
        "old": _share_meeting(ours),
        "new": _share_meeting(theirs),
        "new_on_old": float(np.isin(theirs, ours).mean()),
    }


def advice(report: dict[str, Any]) -> list[str]:
    """What speaks for a new fit, in sentences; chance alone must be an unlikely cause."""
    found, count = [], report["n_new"]
    expected = 1 - QUANTILES[-1]
    noise = _SURE * math.sqrt(expected * (1 - expected) / count)
    for number, level in enumerate(report["levels"]):
        if level["beyond"] > max(_FAR[min(number, 1)], expected + noise):
            found.append(
                f"Level {number}: {level['beyond']:.0%} of the new items lie farther from their "
                "codes than 99 % of the old ones. The codebooks do not know such items: fit them "
                "again with the new items in, and train again. If most items are far, see first "
                "that the new vectors were made as the old ones were."
            )
            break  # what the first level misses, the later ones miss too
    met, before = report["collisions"]["new_on_old"], report["collisions"]["old"]
    noise = _SURE * math.sqrt(before * (1 - before) / count + 1 / count**2)
    if met > max(_MANY, _CROWDED * before, before + noise):
        found.append(
            f"{met:.0%} of the new items have the codes of an old one, where {before:.0%} of the "
            "old items share theirs. If they are no duplicates, the codebooks do not tell them "
            "apart: fit again, with more codes or a further level."
        )
    return found


def _distance_change(old: np.ndarray, new: np.ndarray) -> dict[str, Any]:
    edges = np.quantile(old, QUANTILES)
    return {
        "old": [float(each) for each in edges],
        "new": [float(each) for each in np.quantile(new, QUANTILES)],
        "beyond": float((new > edges[-1]).mean()),
    }


def _usage_change(old: np.ndarray, new: np.ndarray, size: int) -> dict[str, Any]:
    before, after = np.bincount(old, minlength=size), np.bincount(new, minlength=size)
    return {
        "used_old": float((before > 0).mean()),
        "used_new": float((after > 0).mean()),
        "opened": int(((before == 0) & (after > 0)).sum()),
        "focus": float(after.max() / len(new)),
    }


def _share_meeting(numbers: np.ndarray) -> float:
    counts = np.bincount(numbers)
    return float((counts[numbers] > 1).mean())
