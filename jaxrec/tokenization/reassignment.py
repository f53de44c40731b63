"""Unique re-assignment: the work behind `collisions.Reassign`.

METHODS T22 g, with the fewest-moves variant of ZCR (arXiv 2605.25330) and, where a prefix is full,
the recursive nearest search with backtracking of PSI.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable

import numpy as np

from jaxrec.tracking import Progress

Decode = Callable[[np.ndarray], np.ndarray]
Codes = tuple[int, ...]


def reassign(
    codes: np.ndarray,
    sizes: tuple[int, ...],
    order: np.ndarray,
    vectors: np.ndarray,
    decode: Decode,
    *,
    moves: str,
) -> tuple[np.ndarray, list[int]]:
    """Unique codes by linear assignment inside groups of equal prefix.

    Args:
        codes: int32[n, l].
        sizes: codes of each level; their product is at least n.
        order: rows from first served to last.
        vectors: float32[n, d].
        decode: codes int32[m, 1..l] to float32[m, d].
        moves: `fewest` or `cheapest`, see `collisions.Reassign`.

    Returns:
        The new codes int32[n, l], and the rows that spilled to another prefix.
    """
    new = codes.copy()
    members: dict[Codes, list[int]] = collections.defaultdict(list)
    for row in order:
        members[tuple(codes[row, :-1].tolist())].append(int(row))
    crowded = [prefix for prefix, rows in members.items() if _collide(codes, rows)]
    homeless = []
    with Progress(len(crowded), "unique codes", unit="prefixes") as progress:
        for prefix in sorted(crowded):
            rows = members[prefix]
            staying, leaving = rows[: sizes[-1]], rows[sizes[-1] :]
            homeless += leaving
            leaves = _extend(prefix, sizes[-1])
            costs = squared_distances(vectors[staying], decode(leaves))
            new[staying, -1] = _solve(codes[staying, -1], costs, moves)
            progress.update(1)
    served = np.empty(len(codes), np.int64)
    served[order] = np.arange(len(codes))
    homeless.sort(key=lambda row: served[row])
    _spill(new, homeless, sizes, vectors, decode)
    return new, homeless


def squared_distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distances float64[n, k] between float[n, d] and float[k, d]."""
    points, centres = np.asarray(points, np.float64), np.asarray(centres, np.float64)
    cross = points @ centres.T
    squares = (points**2).sum(1)[:, None] + (centres**2).sum(1)[None]
    return np.maximum(squares - 2 * cross, 0.0)


def _solve(last: np.ndarray, costs: np.ndarray, moves: str) -> np.ndarray:
    """Different codes for the items of one prefix, served first to last, int[g]."""
    from scipy.optimize import linear_sum_assignment

    if moves == "cheapest":
        return linear_sum_assignment(costs)[1]
    solved = last.copy()
    _, keepers = np.unique(last, return_index=True)  # first of each code = served first
    moving = np.setdiff1d(np.arange(len(last)), keepers)
    free = np.setdiff1d(np.arange(costs.shape[1]), last)
    rows, columns = linear_sum_assignment(costs[np.ix_(moving, free)])
    solved[moving[rows]] = free[columns]
    return solved


def _spill(
    codes: np.ndarray,
    homeless: list[int],
    sizes: tuple[int, ...],
    vectors: np.ndarray,
    decode: Decode,
) -> None:
    """Gives each homeless row, in turn, a free code below the nearest prefix with room."""
    if not homeless:
        return
    settled = np.ones(len(codes), bool)
    settled[homeless] = False
    taken = {tuple(row) for row in codes[settled].tolist()}
    below = collections.Counter(ids[:level] for ids in taken for level in range(len(sizes)))
    for row in homeless:
        prefix: Codes = ()
        for level, size in enumerate(sizes):
            children = _extend(prefix, size)
            distances = squared_distances(vectors[row : row + 1], decode(children))[0]
            room = math.prod(sizes[level + 1 :])
            is_leaf = level == len(sizes) - 1
            for child in np.argsort(distances, kind="stable"):
                candidate = (*prefix, int(child))
                used = int(candidate in taken) if is_leaf else below[candidate]
                if used < room:
                    break
            prefix = candidate
        codes[row] = prefix
        taken.add(prefix)
        below.update(prefix[:level] for level in range(len(sizes)))


def _extend(prefix: Codes, size: int) -> np.ndarray:
    """All codes of the next level below a prefix, int32[size, levels]."""
    block = np.empty((size, len(prefix) + 1), np.int32)
    block[:, :-1] = prefix
    block[:, -1] = np.arange(size)
    return block


def _collide(codes: np.ndarray, rows: list[int]) -> bool:
    return len(np.unique(codes[rows, -1])) < len(rows)
