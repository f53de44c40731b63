"""Unique re-assignment: the work behind `collisions.Reassign`.

METHODS T22 g, with the fewest-moves variant of ZCR (arXiv:2605.25330); where a prefix is full, the
search of `leaves.spill`.
"""

from __future__ import annotations

import numpy as np

from jaxrec.tokenization.leaves import (
    Decode,
    Held,
    bucket_numbers,
    child_distances,
    find_repeats,
    serving_places,
    spill,
)
from jaxrec.tracking import Progress


def reassign(
    codes: np.ndarray,
    sizes: tuple[int, ...],
    order: np.ndarray,
    vectors: np.ndarray,
    decode: Decode,
    *,
    moves: str,
    taken: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Unique codes by linear assignment inside groups of equal prefix.

    Args:
        codes: int32[n, l].
        sizes: codes of each level; their product is at least n + t.
        order: rows from first served to last.
        vectors: float32[n, d].
        decode: codes int32[m, 1..l] to float32[m, d].
        moves: `fewest` or `cheapest`, see `collisions.Reassign`.
        taken: int32[t, l], IDs that no row may get.

    Returns:
        The new codes int32[n, l], and the rows that spilled to another prefix.
    """
    new = codes.copy()
    moving = find_repeats(codes, order, taken)
    if moves == "cheapest":
        prefix = bucket_numbers(codes[:, :-1])
        moving = order[np.isin(prefix, prefix[moving])[order]]
    held = np.concatenate([taken, np.delete(codes, moving, axis=0)])
    prefixes = codes[moving, :-1]
    in_use = Held(held, prefixes)
    homeless = []
    with Progress(len(moving), "unique codes", unit="items") as progress:
        for members, costs in child_distances(vectors, moving, prefixes, sizes[-1], decode):
            free = np.setdiff1d(np.arange(sizes[-1]), in_use.lasts(members[0]))
            staying, leaving = moving[members[: len(free)]], moving[members[len(free) :]]
            new[staying, -1] = free[_assign(costs[: len(free), free])]
            homeless.append(leaving)
            progress.update(len(members))
    spilled = np.concatenate([np.zeros(0, np.int64), *homeless])
    spilled = spilled[np.argsort(serving_places(order)[spilled])]
    spill(new, spilled, taken, sizes, vectors, decode)
    return new, spilled


def _assign(costs: np.ndarray) -> np.ndarray:
    """A different column for every row, at the least sum of costs; int[rows]."""
    if len(costs) == 1:
        return costs.argmin(1)
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(costs)[1]
