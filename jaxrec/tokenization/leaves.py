"""Codes as a tree: buckets, prefixes, and how far vectors lie from the codes below a prefix.

What the collision policies share. They know a quantizer by `decode` alone, so the distance of x to
code k below a prefix is |x - decode(prefix, k)|^2, which for additive quantizers is the distance of
the residual to codeword k.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterator

import numpy as np

Decode = Callable[[np.ndarray], np.ndarray]
"""Codes int32[m, 1..l] to vectors float32[m, d]: `quantizer.decode` with its state."""
Codes = tuple[int, ...]

_DECODED = 2**16
"""Codes that are decoded at once."""
_ENTRIES = 2**24
"""Distances that are held at once, where a group may be split."""
_KEPT = 4096
"""Prefixes whose children a search keeps decoded."""


def bucket_numbers(codes: np.ndarray) -> np.ndarray:
    """Number of each row's bucket, int64[n]: equal rows, equal numbers, in the order of codes.

    >>> bucket_numbers(np.array([[5, 1], [0, 7], [5, 1]])).tolist()
    [1, 0, 1]
    """
    if codes.shape[1] == 0 or not len(codes):
        return np.zeros(len(codes), np.int64)
    low = codes.min(0).astype(np.int64)
    spans = [int(span) for span in codes.max(0) - low + 1]
    if math.prod(spans) >= 2**62:
        return np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)
    # One number a row sorts ten times faster than rows do.
    numbers = np.zeros(len(codes), np.int64)
    for level, span in enumerate(spans):
        numbers = numbers * span + (codes[:, level] - low[level])
    return np.unique(numbers, return_inverse=True)[1].reshape(-1)


def bucket_digits(codes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Number of each item within its bucket, int32[n]: the one served first is 0.

    >>> bucket_digits(np.array([[5], [7], [5], [5]]), order=np.array([3, 2, 1, 0]))
    array([2, 0, 1, 0], dtype=int32)
    """
    bucket = bucket_numbers(codes)
    sequence = np.lexsort((serving_places(order), bucket))
    sorted_bucket = bucket[sequence]
    first = np.searchsorted(sorted_bucket, sorted_bucket, side="left")
    digits = np.empty(len(codes), np.int32)
    digits[sequence] = np.arange(len(codes)) - first
    return digits


def serving_places(order: np.ndarray) -> np.ndarray:
    """Place of each row in an order of serving, int64[n]: the inverse of the permutation."""
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return places


def find_repeats(codes: np.ndarray, order: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Rows, in the order of serving, that cannot keep their code, int64[m].

    Theirs is among `taken` (int32[t, l]), or a row that is served earlier has it. To make codes
    unique at least so many rows must change: each bucket keeps one.
    """
    all_codes = np.concatenate([taken, codes])
    all_order = np.concatenate([np.arange(len(taken)), len(taken) + order])
    repeats = bucket_digits(all_codes, all_order)[len(taken) :] > 0
    return order[repeats[order]]


def squared_distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distances float64[n, k] between float[n, d] and float[k, d]."""
    points, centres = np.asarray(points, np.float64), np.asarray(centres, np.float64)
    cross = points @ centres.T
    squares = (points**2).sum(1)[:, None] + (centres**2).sum(1)[None]
    return np.maximum(squares - 2 * cross, 0.0)


def child_distances(
    vectors: np.ndarray,
    rows: np.ndarray,
    prefixes: np.ndarray,
    size: int,
    decode: Decode,
    *,
    split: bool = False,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Distances of vectors to all codes below their prefixes, one prefix after the other.

    Prefixes are decoded many at once and each only once, however many rows share it.

    Args:
        vectors: float[n, d].
        rows: int64[m], those asked for; one may be asked for below several prefixes.
        prefixes: int32[m, p], that of each row asked for; p may be 0.
        size: codes of the level below.
        split: whether the rows of one prefix may come in several parts, to bound the memory.

    Yields:
        Places in `rows` that share a prefix, ascending, int64[g], and their squared distances
        float64[g, size].
    """
    group = bucket_numbers(prefixes)
    sequence = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[sequence], prepend=-1))
    ends = np.append(starts[1:], len(sequence))
    distinct = prefixes[sequence[starts]]
    at_once = max(1, _DECODED // size)
    most = max(1, _ENTRIES // size) if split else len(sequence)
    for first in range(0, len(distinct), at_once):
        block = distinct[first : first + at_once]
        decoded = _decode_children(block, size, decode)
        for number, children in enumerate(decoded, start=first):
            for start in range(starts[number], ends[number], most):
                places = sequence[start : min(start + most, ends[number])]
                yield places, squared_distances(vectors[rows[places]], children)


def _decode_children(prefixes: np.ndarray, size: int, decode: Decode) -> np.ndarray:
    """Vectors [p, size, d] of the codes below prefixes."""
    # A power of two of prefixes: a compiled decoder meets few different shapes.
    count = 1 << (len(prefixes) - 1).bit_length()
    padded = prefixes[np.minimum(np.arange(count), len(prefixes) - 1)]
    decoded = np.asarray(decode(extend_prefixes(padded, size)))
    return decoded.reshape(count, size, -1)[: len(prefixes)]


def extend_prefixes(prefixes: np.ndarray, size: int) -> np.ndarray:
    """All codes one level below prefixes int[p, l], int32[p * size, l + 1].

    >>> extend_prefixes(np.array([[7]]), 2).tolist()
    [[7, 0], [7, 1]]
    """
    last = np.tile(np.arange(size), len(prefixes))
    return np.column_stack([np.repeat(prefixes, size, axis=0), last]).astype(np.int32)


class Held:
    """The last codes that are in use below prefixes, for look-up by row of `prefixes`."""

    def __init__(self, codes: np.ndarray, prefixes: np.ndarray) -> None:
        """
        Args:
            codes: int32[h, l], the IDs in use.
            prefixes: int32[m, l - 1], what will be asked for.
        """
        group = bucket_numbers(np.concatenate([codes[:, :-1], prefixes]))
        held, asked = group[: len(codes)], group[len(codes) :]
        sequence = np.argsort(held, kind="stable")
        self._lasts = codes[sequence, -1]
        self._starts = np.searchsorted(held[sequence], asked, side="left")
        self._ends = np.searchsorted(held[sequence], asked, side="right")

    def lasts(self, row: int | np.integer) -> np.ndarray:
        """Last codes in use below the row's prefix, int32[u]; as often as they are used."""
        return self._lasts[self._starts[row] : self._ends[row]]


def spill(
    codes: np.ndarray,
    homeless: np.ndarray,
    taken: np.ndarray,
    sizes: tuple[int, ...],
    vectors: np.ndarray,
    decode: Decode,
    *,
    limit: int = 1,
) -> None:
    """Gives each homeless row in turn the first place that a nearest-first search finds; in place.

    The recursive search with backtracking of PSI (METHODS T22 d): level by level the nearest code
    below which a place is left. Because places are counted, no step is ever taken back.

    Args:
        codes: int32[n, l], written at the homeless rows.
        homeless: int64[m], rows in the order of serving.
        taken: int32[t, l], further IDs that are in use.
        limit: items that may share an ID.
    """
    if not len(homeless):
        return
    settled = np.ones(len(codes), bool)
    settled[homeless] = False
    used = _count_used(np.concatenate([taken, codes[settled]]), limit)
    children: dict[Codes, np.ndarray] = {}
    for row in homeless:
        prefix: Codes = ()
        for level, size in enumerate(sizes):
            if prefix not in children:
                if len(children) >= _KEPT:
                    children.clear()
                above = np.array([prefix], np.int32).reshape(1, level)
                children[prefix] = _decode_children(above, size, decode)[0]
            distances = squared_distances(vectors[row : row + 1], children[prefix])[0]
            room = limit * math.prod(sizes[level + 1 :])
            nearest_first = np.argsort(distances, kind="stable").tolist()
            prefix = next(
                candidate
                for candidate in ((*prefix, code) for code in nearest_first)
                if used[candidate] < room
            )
        codes[row] = prefix
        used.update(prefix[: level + 1] for level in range(len(sizes)))


def _count_used(codes: np.ndarray, limit: int) -> collections.Counter[Codes]:
    """Places in use below every prefix; an ID beyond its limit has no more places than that."""
    distinct, counts = np.unique(codes, axis=0, return_counts=True)
    used: collections.Counter[Codes] = collections.Counter()
    for code, count in zip(map(tuple, distinct.tolist()), np.minimum(counts, limit).tolist()):
        for level in range(len(code)):
            used[code[: level + 1]] += count
    return used
