"""What lies behind semantic IDs, with titles: groups of a prefix, collisions, hot spots.

Items of a group are named from the most popular on, so that a reader knows some of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrec.tokenization.collisions import popularity_order
from jaxrec.tokenization.leaves import bucket_numbers
from jaxrec.tokenization.semantic_ids import codes_as_text

GROUPS = 3
"""First codes that are shown."""
PARTS = 3
"""Second codes below each."""
TITLES = 4
"""Items of each."""
COLLISIONS = 3
"""Groups of items with the same codes that are shown."""
HOT = 2
"""Codes of a level that are shown as its hot spots."""


def example_groups(
    codes: np.ndarray,
    titles: Sequence[str],
    popularity: np.ndarray,
    labels: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """First codes, the one with most items and others at even places of the order by size, and
    what the largest prefixes below them hold; codes of one item are left out.

    Args:
        codes: int[n, l].
        titles: of the n items.
        popularity: int[n], training events.
        labels: category of each item, "" for none.

    Returns:
        For each: `prefix`, `items`, with labels `category` (the most frequent) and
        `category_share`, and `parts`: `prefix`, `items`, `titles` of the largest prefixes of two
        codes (of the first code itself where there is one level).
    """
    counts = np.bincount(codes[:, 0])
    ranked = popularity_order(counts)
    ranked = ranked[counts[ranked] > 1]
    places = np.unique(np.linspace(0, len(ranked), GROUPS, endpoint=False).astype(int))
    found = []
    for code in ranked[places[places < len(ranked)]]:
        rows = np.flatnonzero(codes[:, 0] == code)
        entry: dict[str, Any] = {"prefix": codes_as_text(codes[rows[0], :1]), "items": len(rows)}
        if labels is not None:
            names, sizes = np.unique(np.asarray(labels, str)[rows], return_counts=True)
            entry["category"] = str(names[sizes.argmax()])
            entry["category_share"] = float(sizes.max() / len(rows))
        parts = _largest(codes[:, :2], rows, PARTS)
        entry["parts"] = [_named(codes[:, :2], part, titles, popularity) for part in parts]
        found.append(entry)
    return found


def collision_groups(
    codes: np.ndarray, titles: Sequence[str], popularity: np.ndarray
) -> list[dict[str, Any]]:
    """The largest groups of items with the same codes: `prefix`, `items`, `titles`."""
    parts = _largest(codes, np.arange(len(codes)), COLLISIONS)
    return [_named(codes, part, titles, popularity) for part in parts if len(part) > 1]


def hot_spots(
    codes: np.ndarray, sizes: tuple[int, ...], titles: Sequence[str], popularity: np.ndarray
) -> list[dict[str, Any]]:
    """The codes of each level that hold most items.

    Returns:
        For each: `level`, `code`, `items`, `times_even` = items relative to an even use of the
        level, `events` = share of the training events, `title` of its most popular item.
    """
    found = []
    for level, size in enumerate(sizes):
        column = codes[:, level]
        counts = np.bincount(column, minlength=size)
        for code in popularity_order(counts)[:HOT]:
            rows = np.flatnonzero(column == code)
            if len(rows):
                found.append(
                    {
                        "level": level,
                        "code": int(code),
                        "items": len(rows),
                        "times_even": float(len(rows) * size / len(codes)),
                        "events": float(popularity[rows].sum() / max(popularity.sum(), 1)),
                        "title": titles[rows[popularity_order(popularity[rows])[0]]],
                    }
                )
    return found


def _largest(codes: np.ndarray, rows: np.ndarray, most: int) -> list[np.ndarray]:
    """The largest groups of equal codes among some rows, as rows; the lower code first among
    equals."""
    bucket = bucket_numbers(codes[rows])
    chosen = popularity_order(np.bincount(bucket))[:most]
    return [rows[bucket == each] for each in chosen]


def _named(
    codes: np.ndarray, rows: np.ndarray, titles: Sequence[str], popularity: np.ndarray
) -> dict[str, Any]:
    popular = rows[popularity_order(popularity[rows])[:TITLES]]
    return {
        "prefix": codes_as_text(codes[rows[0]]),
        "items": len(rows),
        "titles": [titles[row] for row in popular],
    }
