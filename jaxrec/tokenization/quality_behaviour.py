"""Do the codes follow behaviour: are items that people take one after the other near each other?

METHODS T23. Behaviour comes as pairs of items, int[m, 2]: `successive_pairs` makes them from
training histories, and nothing held out may be among them. A pair that occurs often counts often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxrec.tokenization.leaves import bucket_numbers
from jaxrec.tracking import Progress

_BLOCK = 2**23
"""Similarities held at once: 32 MiB."""


@runtime_checkable
class Sequences(Protocol):
    """Training histories: user u owns the events `item[offsets[u] : offsets[u + 1]]`."""

    @property
    def offsets(self) -> Any:
        """int[u + 1]."""
        ...

    @property
    def item(self) -> Any:
        """int[e], catalogue rows, oldest first."""
        ...


def successive_pairs(sequences: Sequences) -> np.ndarray:
    """Every item with the one that the same user took next, int32[m, 2]; repeats of an item are
    left out."""
    item, offsets = np.asarray(sequences.item), np.asarray(sequences.offsets)
    starts = np.zeros(len(item) + 1, bool)
    starts[offsets] = True
    before, after = item[:-1], item[1:]
    kept = ~starts[1 : len(item)] & (before != after)
    return np.column_stack([before[kept], after[kept]]).astype(np.int32)


def thin_pairs(pairs: np.ndarray, most: int) -> np.ndarray:
    """At most this many of the pairs, evenly spaced.

    >>> thin_pairs(np.arange(10).reshape(5, 2), 3)[:, 0].tolist()
    [0, 4, 8]
    """
    if len(pairs) <= most:
        return pairs
    return pairs[np.linspace(0, len(pairs) - 1, most).astype(np.int64)]


def prefix_overlap(codes: np.ndarray, pairs: np.ndarray) -> dict[str, Any]:
    """How many leading codes the two items of a pair have in common (CF alignment, after the
    comparison in LETTER, arXiv:2405.07314).

    Args:
        codes: int[n, l].
        pairs: int[m, 2], rows of the catalogue.

    Returns:
        `n_pairs`; `overlap` = mean number of shared leading codes / l; `overlap_chance`, the same
        over all pairs of different items; `prefixes`, for p = 1 .. l: `levels` = p, `pairs` = share
        of the pairs that share p codes or more, `chance` likewise over all pairs.

    Raises:
        ValueError: pairs of another shape, of items that are not there, or none of two items.

    >>> found = prefix_overlap(np.array([[0, 0], [0, 1], [1, 0]]), np.array([[0, 1], [0, 2]]))
    >>> found["overlap"], [row["pairs"] for row in found["prefixes"]]
    (0.25, [0.5, 0.0])
    """
    pairs, rows = check_pairs(pairs, len(codes)), []
    same = np.logical_and.accumulate(codes[pairs[:, 0]] == codes[pairs[:, 1]], axis=1)
    for levels in range(1, codes.shape[1] + 1):
        sizes = np.bincount(bucket_numbers(codes[:, :levels])).astype(np.float64)
        chance = float((sizes * (sizes - 1)).sum()) / (len(codes) * (len(codes) - 1.0))
        rows.append(
            {"levels": levels, "pairs": float(same[:, levels - 1].mean()), "chance": chance}
        )
    return {
        "n_pairs": len(pairs),
        "overlap": float(np.mean([row["pairs"] for row in rows])),
        "overlap_chance": float(np.mean([row["chance"] for row in rows])),
        "prefixes": rows,
    }


def forge_like(
    codes: np.ndarray,
    decode: Callable[[np.ndarray], np.ndarray],
    pairs: np.ndarray,
    *,
    cutoffs: Sequence[int] = (10, 100),
) -> dict[str, float]:
    """Neighbourhood hit rate of the quantized items, a proxy in the manner of FORGE (`forge_like`:
    its repository does not ship the measure, and descriptions differ).

    For a pair (q, p) all items but q are ranked by the cosine of their decoded codes to those of q;
    HR@K is the share of pairs with p among the first K.

    Args:
        codes: int[n, l].
        decode: codes int32[u, l] to vectors float[u, d].
        pairs: int[m, 2], rows of the catalogue.
        cutoffs: values of K.

    Returns:
        `hr@K` for every K.

    Raises:
        ValueError: as `prefix_overlap`.
    """
    different, bucket = np.unique(np.asarray(codes, np.int32), axis=0, return_inverse=True)
    return _hit_rates(np.asarray(decode(different)), bucket.reshape(-1), pairs, cutoffs)


def vector_hits(
    vectors: np.ndarray, pairs: np.ndarray, *, cutoffs: Sequence[int] = (10, 100)
) -> dict[str, float]:
    """The hit rates of the vectors before quantization, which `forge_like` has to keep.

    Args and Returns: as `forge_like`, with float[n, d] in the place of codes.
    """
    rows = np.ascontiguousarray(vectors, np.float32) + np.float32(0)
    _, first, bucket = np.unique(
        rows.view(np.void(rows.strides[0]).dtype), return_index=True, return_inverse=True
    )
    return _hit_rates(rows[first], bucket.reshape(-1), pairs, cutoffs)


def chance_hits(items: int, cutoffs: Sequence[int] = (10, 100)) -> dict[str, float]:
    """The hit rates of a random order of all other items.

    >>> chance_hits(101, (10, 1000))
    {'hr@10': 0.1, 'hr@1000': 1.0}
    """
    return {f"hr@{k}": min(1.0, k / (items - 1)) for k in cutoffs}


def check_pairs(pairs: Any, items: int) -> np.ndarray:
    """Pairs of two different items, int[m, 2]; pairs of an item with itself are left out.

    Raises:
        ValueError: another shape, an item that is not there, or no pair of two items.
    """
    pairs = np.asarray(pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise ValueError(f"pairs must be integers [m, 2], got {pairs.dtype} {pairs.shape}.")
    if len(pairs) and (pairs.min() < 0 or pairs.max() >= items):
        raise ValueError(
            f"pairs name items {pairs.min()}..{pairs.max()}, outside the catalogue, 0..{items - 1}."
        )
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    if not len(pairs):
        raise ValueError("there is no pair of two different items; leave pairs out.")
    return pairs


def _hit_rates(
    points: np.ndarray, bucket: np.ndarray, pairs: np.ndarray, cutoffs: Sequence[int]
) -> dict[str, float]:
    """Hit rates where item i lies at points[bucket[i]].

    Items that cannot be told apart share their places: of e items behind a better ones, p is among
    the first K with probability (K - a) / e. An order by id would call a collapsed index good
    wherever low ids are popular ones.
    """
    pairs = check_pairs(pairs, len(bucket))
    above, equal, times = _places(points, bucket, pairs, max(cutoffs))
    return {
        f"hr@{k}": float((np.clip((k - above) / equal, 0.0, 1.0) * times).sum() / times.sum())
        for k in cutoffs
    }


def _places(
    points: np.ndarray, bucket: np.ndarray, pairs: np.ndarray, reach: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every different pair of buckets: items nearer to the query than its partner, items as
    near (the partner among them, the query not), and how many pairs it stands for. Items as near
    are counted only where fewer than `reach` are nearer."""
    unit = _unit_rows(points)
    sizes = np.bincount(bucket)
    # Similarities are taken once a bucket, so that items of one bucket tie to the last bit.
    more = np.repeat(np.arange(len(sizes)), sizes - 1)
    asked, times = np.unique(bucket[pairs].astype(np.int64), axis=0, return_counts=True)
    queries, starts = np.unique(asked[:, 0], return_index=True)
    ends = np.append(starts[1:], len(asked))
    above, equal = np.zeros(len(asked), np.int64), np.ones(len(asked), np.int64)
    block = max(1, _BLOCK // len(bucket))
    near = np.empty((min(block, len(queries)), len(bucket)), np.float32)
    with Progress(len(queries), "neighbourhoods", unit="items") as progress:
        for first in range(0, len(queries), block):
            part = queries[first : first + block]
            np.matmul(unit[part], unit.T, out=near[: len(part), : len(unit)])
            near[: len(part), len(unit) :] = near[: len(part), more]
            # The query itself is no candidate.
            own = near[np.arange(len(part)), part].copy()
            for row in range(len(part)):
                for pair in range(starts[first + row], ends[first + row]):
                    there = near[row, asked[pair, 1]]
                    above[pair] = np.count_nonzero(near[row] > there) - (own[row] > there)
                    if above[pair] < reach:
                        equal[pair] = np.count_nonzero(near[row] == there) - (own[row] == there)
            progress.update(len(part))
    return above, equal, times


def _unit_rows(points: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32; a row of zeros stays one."""
    points = np.asarray(points, np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", points, points, dtype=np.float64))
    return points / np.where(lengths > 0, lengths, 1.0).astype(np.float32)[:, None]
