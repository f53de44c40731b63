"""Many sets of rows, each split into k clusters by itself: one level of a tree at once.

Small sets are work for the host: numpy handles the sets of a level together, in arrays whose rows
are ordered by set. Splits are free (the nearest centroid) or even (counts differ by at most one).
"""

from __future__ import annotations

import numpy as np


def split_sets(
    generator: np.random.Generator,
    points: np.ndarray,
    weights: np.ndarray,
    starts: np.ndarray,
    k: int,
    *,
    balanced: bool,
    iterations: int,
) -> np.ndarray:
    """k-means of every set by itself, from k-means++ seeds, int[n] codes 0 .. k - 1.

    Args:
        points: float32[n, d], the rows of one set after those of the other.
        weights: float[n].
        starts: int[s + 1], where each set begins, and n; a set has at least k rows.
        balanced: see `balanced_codes`; otherwise the nearest centroid, and at least two clusters.
    """
    sizes = np.diff(starts)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    # Around the mean of its set: float32 then tells rows apart that are near to each other.
    points = points - group_means(points, weights, owner, len(sizes))[owner]
    centroids = _seeds(generator, points, weights, starts, k)
    codes = None
    for _ in range(iterations):
        costs = weights[:, None] * _scores(points, centroids, starts)
        # One sweep an update: what it leaves over, the next one finds.
        new = balanced_codes(costs, starts, codes, sweeps=1) if balanced else costs.argmin(1)
        if codes is not None and (new == codes).all():
            break
        codes = new
        # A cluster that lost its rows goes to 0, the mean of its set.
        means = group_means(points, weights, owner * k + codes, len(sizes) * k)
        centroids = means.reshape(centroids.shape)
    assert codes is not None  # iterations >= 1
    # Rows that differ by less than rounding stay together: cut such a set in the order of rows.
    is_whole = np.bincount(owner * k + codes, minlength=len(sizes) * k) == np.repeat(sizes, k)
    whole = np.flatnonzero(is_whole.reshape(len(sizes), k).any(1)[owner])
    place = whole - starts[owner[whole]]
    codes[whole] = place * k // sizes[owner[whole]]
    return codes


def balanced_codes(
    costs: np.ndarray, starts: np.ndarray, codes: np.ndarray | None = None, *, sweeps: int = 20
) -> np.ndarray:
    """Codes of little total cost whose counts in a set differ by at most one, int[n].

    First the rows choose, those with most to lose by another code before the others; then pairs of
    codes exchange rows until no pair can gain. For two codes that is the optimum; for more it is
    one that no exchange between any two codes improves. Beside the exact assignment, 30 sets of
    up to 300 normal vectors cost 0.2 % more with 8 codes and 0.6 % with 16 in 32 dimensions, 0.7 %
    and 1.3 % in 2, on average.

    Args:
        costs: float[n, k], of every row and code.
        starts: int[s + 1], where each set of rows begins, and n; a set has at least k rows. Its
            first (rows mod k) codes have the one row more.
        codes: balanced ones to improve, where there are any.
        sweeps: over all pairs of codes, at most; they end when nothing is left to gain.
    """
    sizes, k = np.diff(starts), costs.shape[1]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    room = sizes[:, None] // k + (np.arange(k) < sizes[:, None] % k)
    codes = _choose(costs, owner, room) if codes is None else codes.copy()
    for _ in range(sweeps):
        # The pairs {a, turn - a} are disjoint, and over all turns every pair comes once.
        if not sum(_exchange(costs, codes, owner, room, turn) for turn in range(k)):
            break
    return codes


def _choose(costs: np.ndarray, owner: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Rows take the cheapest code with room; where too many want one, those of largest regret."""
    room, k = room.copy(), costs.shape[1]
    codes, rows = np.full(len(costs), -1), np.arange(len(costs))
    while len(rows):
        left = np.where(room[owner[rows]] > 0, costs[rows], np.inf)
        choice = left.argmin(1)
        best_two = np.partition(left, 1, axis=1)[:, :2]
        groups = owner[rows] * k + choice
        order, rank = _ranks(groups, best_two[:, 0] - best_two[:, 1])
        taking = order[rank < room.ravel()[groups[order]]]
        codes[rows[taking]] = choice[taking]
        room -= np.bincount(groups[taking], minlength=room.size).reshape(room.shape)
        rows = rows[codes[rows] < 0]
    return codes


def _exchange(
    costs: np.ndarray, codes: np.ndarray, owner: np.ndarray, room: np.ndarray, turn: int
) -> bool:
    """Divides the rows of every pair of codes {a, turn - a mod k} anew, in place, at least cost."""
    k = costs.shape[1]
    other = (turn - codes) % k
    rows = np.flatnonzero(codes != other)
    low, high = np.minimum(codes, other)[rows], np.maximum(codes, other)[rows]
    groups = owner[rows] * k + low
    margin = costs[rows, low] - costs[rows, high]
    is_low = codes[rows] == low
    most, least = np.full(room.size, -np.inf), np.full(room.size, np.inf)
    np.maximum.at(most, groups[is_low], margin[is_low])
    np.minimum.at(least, groups[~is_low], margin[~is_low])
    gains = (most > least)[groups]
    if not gains.any():
        return False
    rows, low, high, groups, margin = (x[gains] for x in (rows, low, high, groups, margin))
    order, rank = _ranks(groups, margin)
    stays = rank < room.ravel()[groups[order]]
    codes[rows[order]] = np.where(stays, low[order], high[order])
    return True


def _ranks(groups: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows by group and key, lower ones first among equals, and each one's place in its group."""
    order = np.lexsort((keys, groups))
    ordered = groups[order]
    return order, np.arange(len(order)) - np.searchsorted(ordered, ordered, side="left")


def _seeds(
    generator: np.random.Generator,
    points: np.ndarray,
    weights: np.ndarray,
    starts: np.ndarray,
    k: int,
) -> np.ndarray:
    """k-means++ in every set at once, float32[s, k, d]; drawn by the Gumbel trick."""
    sizes, rows = np.diff(starts), np.arange(len(points))
    distance, seeds = np.ones(len(points)), []
    for number in range(k):
        with np.errstate(divide="ignore"):  # a seed has distance 0 and is not drawn again
            scores = np.log(weights * distance) + generator.gumbel(size=len(points))
        best = np.repeat(np.maximum.reduceat(scores, starts[:-1]), sizes)
        chosen = np.minimum.reduceat(np.where(scores == best, rows, len(points)), starts[:-1])
        seeds.append(points[chosen])
        new = ((points - np.repeat(seeds[-1], sizes, 0)) ** 2).sum(1)
        distance = np.minimum(distance, new) if number else new
    return np.stack(seeds, 1)


def _scores(points: np.ndarray, centroids: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Squared distances to the centroids of the own set, less the row's own square."""
    products = [
        points[first:last] @ some.T
        for first, last, some in zip(starts[:-1].tolist(), starts[1:].tolist(), centroids)
    ]
    squares = np.repeat((centroids**2).sum(-1), np.diff(starts), 0)
    return squares - 2 * np.concatenate(products)


def group_means(
    points: np.ndarray, weights: np.ndarray, groups: np.ndarray, count: int
) -> np.ndarray:
    """Weighted means of groups, float32[count, d]; 0 where a group is empty."""
    from scipy import sparse

    mass = np.bincount(groups, weights, minlength=count)
    shares = weights / mass[groups]
    table = sparse.csr_matrix((shares, (groups, np.arange(len(groups)))), (count, len(groups)))
    return (table @ points).astype(np.float32)
