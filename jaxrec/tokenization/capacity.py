"""At most so many items on one semantic ID (METHODS T22 e)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxrec.tokenization.collisions import (
    Finalised,
    Taken,
    change_report,
    check_distances,
    check_input,
    check_room,
    check_taken,
)
from jaxrec.tokenization.leaves import (
    Decode,
    Held,
    bucket_digits,
    bucket_numbers,
    child_distances,
    serving_places,
    spill,
)
from jaxrec.tracking import Progress
from jaxrec.types import TokenSpace

SPILLS = ("nearest", "random")


@dataclasses.dataclass(frozen=True)
class Capacity:
    """Caps buckets: the items farthest from a full code move to other last codes (FORGE).

    A bucket keeps the `limit` items that are nearest to what its codes decode to, those served
    first among equally near ones. Each of the others takes, in the order of serving, a last code
    below the same prefix that has room, and where there is none goes on to the nearest prefix with
    room. Collisions up to the limit stay: an answer names a bucket (see `Keep`). FORGE reports
    limits of 5, 10 and 25.

    Raises:
        ValueError: a limit below 1, an unknown `spill`, missing vectors, or more items than places.
    """

    limit: int = 10
    """Items that may share a semantic ID."""
    spill: str = "nearest"
    """Which last code with room an item takes: the `nearest`, or a `random` one."""
    seed: int = 0
    """Of the random codes; equal seeds, equal IDs."""

    schema_version: ClassVar[int] = 1
    reads_vectors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.limit < 1 or self.spill not in SPILLS:
            raise ValueError(
                f"Capacity needs limit >= 1 and spill one of {SPILLS}, got {self.limit} and "
                f"{self.spill!r}."
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
        """Codes of the same levels, at most `limit` items on each.

        Old items of an index that the rows join count, and stay even beyond the limit.
        """
        codes, order = check_input(codes, sizes, order)
        points, decode = check_distances(self, codes, vectors, decode)
        old = check_taken(taken, sizes)
        check_room(len(codes) + len(old), sizes, self.limit)
        new = codes.copy()
        moving = find_farthest(codes, order, points, decode, old, self.limit)
        held = np.concatenate([old, np.delete(codes, moving, axis=0)])
        prefixes = codes[moving, :-1]
        in_use = Held(held, prefixes)
        generator = np.random.default_rng(self.seed) if self.spill == "random" else None
        homeless = []
        with Progress(len(moving), "full codes", unit="items") as progress:
            for members, costs in child_distances(points, moving, prefixes, sizes[-1], decode):
                counts = np.bincount(in_use.lasts(members[0]), minlength=sizes[-1])
                room = np.maximum(self.limit - counts, 0)
                lasts = _take_places(costs, room, generator)
                settled = lasts >= 0
                new[moving[members[settled]], -1] = lasts[settled]
                homeless.append(moving[members[~settled]])
                progress.update(len(members))
        spilled = np.concatenate([np.zeros(0, np.int64), *homeless])
        spilled = spilled[np.argsort(serving_places(order)[spilled])]
        spill(new, spilled, old, sizes, points, decode, limit=self.limit)
        report = {**change_report(codes, new), "n_spilled": len(spilled), "limit": self.limit}
        return Finalised(new, TokenSpace(tuple(sizes)), report)


def find_farthest(
    codes: np.ndarray,
    order: np.ndarray,
    vectors: np.ndarray,
    decode: Decode,
    taken: np.ndarray,
    limit: int,
) -> np.ndarray:
    """Rows beyond the limit of their buckets, in the order of serving, int64[m].

    Items of `taken` (int32[t, l]) come first in a bucket, then rows by their distance to what its
    codes decode to.
    """
    bucket = bucket_numbers(np.concatenate([taken, codes]))
    crowded = np.bincount(bucket)[bucket[len(taken) :]] > limit
    distance = np.zeros(len(codes))
    if crowded.any():
        reached = np.asarray(decode(codes[crowded]), np.float64)
        distance[crowded] = ((vectors[crowded] - reached) ** 2).sum(1)
    nearest_first = np.lexsort((serving_places(order), distance))
    all_order = np.concatenate([np.arange(len(taken)), len(taken) + nearest_first])
    places = bucket_digits(np.concatenate([taken, codes]), all_order)[len(taken) :]
    return order[(places >= limit)[order]]


def _take_places(
    costs: np.ndarray, room: np.ndarray, generator: np.random.Generator | None
) -> np.ndarray:
    """Columns that rows take in turn, int64[rows]: the cheapest with room, or with a generator any
    with room; -1 where no room is left."""
    room, taken = room.copy(), np.full(len(costs), -1)
    for row, cost in enumerate(costs):
        (free,) = np.nonzero(room)
        if not len(free):
            break
        column = free[cost[free].argmin()] if generator is None else generator.choice(free)
        room[column] -= 1
        taken[row] = column
    return taken
