"""Collision policies: what becomes of items whose codes are equal (METHODS T22).

Quantizers never resolve collisions; a policy does, once, over the whole catalogue, and reports what
it changed. Every policy has the call

    policy(codes, sizes=..., order=..., vectors=..., decode=...) -> Finalised

`order` lists the catalogue rows from first served to last (by popularity, for example): it decides
who gets digit 0 and who keeps a contested code.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxrec.tokenization.reassignment import reassign
from jaxrec.types import TokenSpace

Decode = Callable[[np.ndarray], np.ndarray]
"""Codes int32[m, 1..l] to vectors float32[m, d]: `quantizer.decode` with its state."""


class Finalised(NamedTuple):
    """Semantic IDs as they will be used."""

    codes: np.ndarray
    """int32[n, l']."""
    space: TokenSpace
    report: dict[str, Any]
    """Plain numbers; `changed_rows` lists the items whose semantic codes the policy changed."""


@runtime_checkable
class CollisionPolicy(Protocol):
    """A frozen dataclass that turns the quantizer's codes into semantic IDs."""

    schema_version: ClassVar[int]

    def __call__(
        self,
        codes: np.ndarray,
        *,
        sizes: tuple[int, ...],
        order: np.ndarray | None = None,
        vectors: np.ndarray | None = None,
        decode: Decode | None = None,
    ) -> Finalised:
        """Finalises int[n, l] codes of levels of these sizes."""
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
    ) -> Finalised:
        """Codes with one more level; `vectors` and `decode` are not needed."""
        del vectors, decode
        codes, order = check_input(codes, sizes, order)
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
    last level has codes, those served last spill to the nearest prefix with room.

    Raises:
        ValueError: an unknown `moves`, missing vectors, or more items than semantic IDs.
    """

    moves: str = "fewest"
    """`fewest`: in each bucket the item served first keeps its code, only the others move (ZCR);
    no policy changes fewer items. `cheapest`: all items of a prefix with a collision may move, at
    the least total distance."""

    schema_version: ClassVar[int] = 1

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
    ) -> Finalised:
        """Unique codes of the same levels."""
        codes, order = check_input(codes, sizes, order)
        if vectors is None or decode is None:
            raise ValueError("Reassign measures distances: give it vectors and decode.")
        if len(codes) > math.prod(sizes):
            raise ValueError(
                f"{len(codes)} items cannot have different semantic IDs: levels of {sizes} codes "
                f"make {math.prod(sizes)}. Use more codes or levels, or ExtraDigit()."
            )
        new, spilled = reassign(
            codes, sizes, order, np.asarray(vectors, np.float32), decode, moves=self.moves
        )
        changed = np.flatnonzero((new != codes).any(1))
        report = {
            **collision_counts(codes),
            "changed_rows": [int(row) for row in changed],
            "n_spilled": len(spilled),
            "moves": self.moves,
        }
        return Finalised(new, TokenSpace(tuple(sizes)), report)


@dataclasses.dataclass(frozen=True)
class Keep:
    """Keeps collisions: an answer names a bucket, and retrieval serves its items in `order`."""

    schema_version: ClassVar[int] = 1

    def __call__(
        self,
        codes: np.ndarray,
        *,
        sizes: tuple[int, ...],
        order: np.ndarray | None = None,
        vectors: np.ndarray | None = None,
        decode: Decode | None = None,
    ) -> Finalised:
        """The codes as they are."""
        del vectors, decode
        codes, _ = check_input(codes, sizes, order)
        report = {**collision_counts(codes), "changed_rows": []}
        return Finalised(codes, TokenSpace(tuple(sizes)), report)


def bucket_digits(codes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Number of each item within its bucket, int32[n]: the one served first is 0.

    >>> bucket_digits(np.array([[5], [7], [5], [5]]), order=np.array([3, 2, 1, 0]))
    array([2, 0, 1, 0], dtype=int32)
    """
    served = np.empty(len(codes), np.int64)
    served[order] = np.arange(len(codes))
    bucket = bucket_numbers(codes)
    sequence = np.lexsort((served, bucket))
    sorted_bucket = bucket[sequence]
    first = np.searchsorted(sorted_bucket, sorted_bucket, side="left")
    digits = np.empty(len(codes), np.int32)
    digits[sequence] = np.arange(len(codes)) - first
    return digits


def bucket_numbers(codes: np.ndarray) -> np.ndarray:
    """Number of each row's bucket, int64[n]: equal rows, equal numbers, in the order of codes."""
    if codes.shape[1] == 0:
        return np.zeros(len(codes), np.int64)
    return np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)


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
