"""Collision policies: what becomes of items whose codes are equal (METHODS T22).

Quantizers never resolve collisions; a policy does, once, over the whole catalogue, and reports what
it changed. Every policy has the call

    policy(codes, sizes=..., order=..., vectors=..., decode=..., taken=...) -> Finalised

`order` lists the catalogue rows from first served to last (by popularity, for example): it decides
who gets digit 0 and who keeps a contested code. `taken` is an index that the rows join, whose IDs
stay as they are.

Here are the policies that need little; others stand in files of their own: `next_nearest.py`,
`sinkhorn_last.py`, `capacity.py`, `random_last.py`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxrec.tokenization.leaves import Decode, Held, bucket_digits, bucket_numbers
from jaxrec.tokenization.reassignment import reassign
from jaxrec.types import TokenSpace


class Finalised(NamedTuple):
    """Semantic IDs as they will be used."""

    codes: np.ndarray
    """int32[n, l']."""
    space: TokenSpace
    report: dict[str, Any]
    """Plain numbers; `changed_rows` lists the items whose semantic codes the policy changed."""


class Taken(NamedTuple):
    """An index that new rows join: none of its IDs changes."""

    codes: np.ndarray
    """int32[t, l']."""
    space: TokenSpace


@runtime_checkable
class CollisionPolicy(Protocol):
    """A frozen dataclass that turns the quantizer's codes into semantic IDs."""

    schema_version: ClassVar[int]
    reads_vectors: ClassVar[bool]
    """Whether the policy measures distances: it needs `vectors` and `decode`."""

    def __call__(
        self,
        codes: np.ndarray,
        *,
        sizes: tuple[int, ...],
        order: np.ndarray | None = None,
        vectors: np.ndarray | None = None,
        decode: Decode | None = None,
        taken: Taken | None = None,
    ) -> Finalised:
        """Finalises int[n, l] codes of levels of these sizes.

        Args:
            codes: of the quantizer.
            sizes: codes of each level.
            order: rows from first served to last; catalogue order by default.
            vectors: float[n, d], what was quantized.
            decode: the quantizer's, with its state.
            taken: the index that the rows join; their IDs are of its space.
        """
        ...


@dataclasses.dataclass(frozen=True)
class ExtraDigit:
    """Appends a digit that numbers the items of each bucket (TIGER). Every item gets one.

    The level holds `capacity` digits, more than are needed, so that new items find room without a
    change of the token space.

    Raises:
        ValueError: a bucket holds more items than the capacity; it names the bucket.
    """

    capacity: int = 0
    """Digits of the level; 0 chooses the least power of two that is at least
    `headroom` times the largest bucket."""
    headroom: float = 1.5
    """Reserve for new items where the capacity is chosen."""

    schema_version: ClassVar[int] = 1
    reads_vectors: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.capacity < 0 or not self.headroom >= 1:
            raise ValueError(
                "ExtraDigit needs capacity >= 0 (0 chooses one) and headroom >= 1, got "
                f"{self.capacity} and {self.headroom}."
            )

    def __call__(
        self,
        codes: np.ndarray,
        *,
        sizes: tuple[int, ...],
        order: np.ndarray | None = None,
        vectors: np.ndarray | None = None,
        decode: Decode | None = None,
        taken: Taken | None = None,
    ) -> Finalised:
        """Codes with one more level; `vectors` and `decode` are not needed.

        Rows that join an index take the lowest free digits of their buckets, and its capacity.
        """
        del vectors, decode
        codes, order = check_input(codes, sizes, order)
        if taken is not None:
            return _continue_digits(codes, sizes, order, taken)
        digits = bucket_digits(codes, order)
        largest = int(digits.max()) + 1
        capacity = self.capacity or 2 ** math.ceil(math.log2(self.headroom * largest))
        if largest > capacity:
            bucket = tuple(int(code) for code in codes[digits.argmax()])
            raise ValueError(
                f"the semantic ID {bucket} holds {largest} items but the extra digit has capacity "
                f"{capacity}; raise ExtraDigit(capacity=...), or use more codes or levels."
            )
        space = TokenSpace((*sizes, capacity), has_extra_digit=True)
        report = {**collision_counts(codes), "changed_rows": [], "capacity": capacity}
        return Finalised(np.column_stack([codes, digits]).astype(np.int32), space, report)


@dataclasses.dataclass(frozen=True)
class Reassign:
    """Gives colliding items other last codes, at the least total distance, until all are unique.

    Within the items that share all codes but the last, a linear assignment on
    |x - decode(prefix, k)|^2 chooses who takes which code. Where a prefix holds more items than the
    last level has codes, those served last spill to the nearest prefix with room. Old items of an
    index that the rows join never move.

    Source: arXiv:2605.25330 for the fewest moves.

    Raises:
        ValueError: an unknown `moves`, missing vectors, or more items than semantic IDs.
    """

    moves: str = "fewest"
    """`fewest`: in each bucket the item served first keeps its code, only the others move (ZCR);
    no policy changes fewer items. `cheapest`: all items of a prefix with a collision may move, at
    the least total distance."""

    schema_version: ClassVar[int] = 2
    reads_vectors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.moves not in ("fewest", "cheapest"):
            raise ValueError(f"moves must be 'fewest' or 'cheapest', got {self.moves!r}.")

    def __call__(
        self,
        codes: np.ndarray,
        *,
        sizes: tuple[int, ...],
        order: np.ndarray | None = None,
        vectors: np.ndarray | None = None,
        decode: Decode | None = None,
        taken: Taken | None = None,
    ) -> Finalised:
        """Unique codes of the same levels."""
        codes, order = check_input(codes, sizes, order)
        points, decode = check_distances(self, codes, vectors, decode)
        old = check_taken(taken, sizes)
        check_room(len(codes) + len(old), sizes)
        new, spilled = reassign(codes, sizes, order, points, decode, moves=self.moves, taken=old)
        report = {
            **change_report(codes, new),
            "n_spilled": len(spilled),
            "moves": self.moves,
        }
        return Finalised(new, TokenSpace(tuple(sizes)), report)


@dataclasses.dataclass(frozen=True)
class Keep:
    """Keeps collisions: an answer names a bucket, and retrieval serves its items in `order`."""

    schema_version: ClassVar[int] = 1
    reads_vectors: ClassVar[bool] = False

    def __call__(
        self,
        codes: np.ndarray,
        *,
        sizes: tuple[int, ...],
        order: np.ndarray | None = None,
        vectors: np.ndarray | None = None,
        decode: Decode | None = None,
        taken: Taken | None = None,
    ) -> Finalised:
        """The codes as they are."""
        del vectors, decode
        codes, _ = check_input(codes, sizes, order)
        check_taken(taken, sizes)
        report = {**collision_counts(codes), "changed_rows": []}
        return Finalised(codes, TokenSpace(tuple(sizes)), report)


def _continue_digits(
    codes: np.ndarray, sizes: tuple[int, ...], order: np.ndarray, taken: Taken
) -> Finalised:
    """Digits of rows that join an index: the lowest that its items leave free, in `order`."""
    space = taken.space
    if not space.has_extra_digit or space.sizes[:-1] != tuple(sizes):
        raise ValueError(
            f"ExtraDigit cannot join an index of levels {space.sizes} "
            f"({'with' if space.has_extra_digit else 'without'} an extra digit) with codes of "
            f"levels {tuple(sizes)}; give the policy and the quantizer that made the index."
        )
    capacity = space.sizes[-1]
    digits = bucket_digits(codes, order)
    in_use = Held(taken.codes, codes)
    bucket = bucket_numbers(codes)
    sequence = np.lexsort((digits, bucket))
    for rows in np.split(sequence, np.flatnonzero(np.diff(bucket[sequence])) + 1):
        old = in_use.lasts(rows[0])
        free = np.setdiff1d(np.arange(capacity), old)
        if len(free) < len(rows):
            name = tuple(int(code) for code in codes[rows[0]])
            raise ValueError(
                f"the semantic ID {name} holds {len(old)} items and would get {len(rows)} more, "
                f"but its extra digit has capacity {capacity}. Another capacity is another token "
                "space: remove items of that ID, or tokenize again with ExtraDigit(capacity=...) "
                "or a larger headroom, and train again."
            )
        digits[rows] = free[: len(rows)]
    report = {**collision_counts(codes), "changed_rows": [], "capacity": capacity}
    return Finalised(np.column_stack([codes, digits]).astype(np.int32), space, report)


def collision_counts(codes: np.ndarray) -> dict[str, int]:
    """Items, different semantic IDs, and the size of the largest bucket, before any policy."""
    sizes = np.bincount(bucket_numbers(codes))
    return {"n_items": len(codes), "n_sids": len(sizes), "max_bucket": int(sizes.max())}


def popularity_order(counts: np.ndarray) -> np.ndarray:
    """Rows by falling count, the lower row first among equals, int64[n].

    >>> popularity_order(np.array([1, 5, 5])).tolist()
    [1, 2, 0]
    """
    return np.lexsort((np.arange(len(counts)), -np.asarray(counts)))


def check_input(
    codes: np.ndarray, sizes: tuple[int, ...], order: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Codes as int32[n, l], and the order of serving (catalogue order by default).

    Raises:
        ValueError: codes that do not fit the sizes, or an order that is no permutation.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.shape[1] != len(sizes) or not len(codes):
        raise ValueError(f"codes must be [items, {len(sizes)}], got {codes.shape}.")
    if (codes < 0).any() or (codes >= np.asarray(sizes)).any():
        raise ValueError(
            f"codes run from {codes.min(0).tolist()} to {codes.max(0).tolist()}, but the levels "
            f"have {tuple(sizes)} codes."
        )
    order = np.arange(len(codes)) if order is None else np.asarray(order)
    if not np.array_equal(np.sort(order), np.arange(len(codes))):
        raise ValueError(
            f"order must list each of the {len(codes)} rows once; see popularity_order(counts)."
        )
    return codes.astype(np.int32), order


def check_distances(
    policy: Any, codes: np.ndarray, vectors: np.ndarray | None, decode: Decode | None
) -> tuple[np.ndarray, Decode]:
    """Vectors as float32[n, d], and `decode`, for a policy that measures distances.

    Raises:
        ValueError: one of them is missing, or there is another number of vectors than of codes.
    """
    if vectors is None or decode is None:
        raise ValueError(f"{type(policy).__name__} measures distances: give it vectors and decode.")
    points = np.asarray(vectors, np.float32)
    if points.ndim != 2 or len(points) != len(codes):
        raise ValueError(f"vectors must be [{len(codes)}, width], got {points.shape}.")
    return points, decode


def check_taken(taken: Taken | None, sizes: tuple[int, ...]) -> np.ndarray:
    """IDs of the index that the rows join, int32[t, l]; none where they join none.

    Raises:
        ValueError: an index of other levels.
    """
    if taken is None:
        return np.zeros((0, len(sizes)), np.int32)
    if taken.space.has_extra_digit or taken.space.sizes != tuple(sizes):
        raise ValueError(
            f"codes of levels {tuple(sizes)} cannot join an index of levels {taken.space.sizes}"
            f"{', the last an extra digit' if taken.space.has_extra_digit else ''}; give the "
            "policy and the quantizer that made the index."
        )
    return np.asarray(taken.codes, np.int32)


def check_room(items: int, sizes: tuple[int, ...], limit: int = 1) -> None:
    """Raises ValueError where there are fewer semantic IDs than items, `limit` on each."""
    if items > limit * math.prod(sizes):
        shared = "have different semantic IDs" if limit == 1 else f"share IDs {limit} on each"
        raise ValueError(
            f"{items} items cannot {shared}: levels of {tuple(sizes)} codes make "
            f"{math.prod(sizes)}. Use more codes or levels, or ExtraDigit()."
        )


def change_report(codes: np.ndarray, new: np.ndarray) -> dict[str, Any]:
    """What every policy reports that changes codes: the counts, and which rows it changed."""
    changed = np.flatnonzero((new != codes).any(1))
    return {**collision_counts(codes), "changed_rows": [int(row) for row in changed]}
