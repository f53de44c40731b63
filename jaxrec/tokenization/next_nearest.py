"""The next nearest unused code combination, and no further digit (METHODS T22 d)."""

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
    bucket_numbers,
    child_distances,
    find_repeats,
    spill,
)
from jaxrec.tracking import Progress
from jaxrec.types import TokenSpace


@dataclasses.dataclass(frozen=True)
class NextNearest:
    """Gives a colliding item the unused combination of near codes with the least total residual.

    In each bucket the item served first keeps its codes. Every other one looks at the combinations
    of its `nearest` codes of each level (each level below the codes chosen before it), and takes,
    in the order of serving, the one that nobody has with the least |x - decode(codes)|^2. All
    levels may change, not the last alone. Where all combinations are taken, it goes where the
    recursive nearest-first search finds a place. No policy changes fewer items.

    Source: the exhaustive candidate matching and the recursive residual search of PSI (METHODS,
    system 20).

    Raises:
        ValueError: a number below 1, missing vectors, or more items than semantic IDs.
    """

    nearest: int = 4
    """Codes of each level that are tried."""
    candidates: int = 256
    """Combinations that are kept of one item; where `nearest ** levels` are more, those prefixes go
    on that leave the least residual."""

    schema_version: ClassVar[int] = 1
    reads_vectors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.nearest, self.candidates) < 1:
            raise ValueError(
                "NextNearest needs nearest >= 1 and candidates >= 1, got "
                f"{self.nearest} and {self.candidates}."
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
        """Unique codes of the same levels."""
        codes, order = check_input(codes, sizes, order)
        points, decode = check_distances(self, codes, vectors, decode)
        old = check_taken(taken, sizes)
        check_room(len(codes) + len(old), sizes)
        new, moving = codes.copy(), find_repeats(codes, order, old)
        near, costs = near_combinations(
            points[moving], sizes, decode, nearest=self.nearest, most=self.candidates
        )
        held = np.concatenate([old, np.delete(codes, moving, axis=0)])
        choice = take_unused(held, near, costs)
        settled = choice >= 0
        new[moving[settled]] = near[settled, choice[settled]]
        spilled = moving[~settled]
        spill(new, spilled, old, sizes, points, decode)
        report = {**change_report(codes, new), "n_spilled": len(spilled)}
        return Finalised(new, TokenSpace(tuple(sizes)), report)


def near_combinations(
    vectors: np.ndarray, sizes: tuple[int, ...], decode: Decode, *, nearest: int, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Combinations of the nearest codes of each level, level by level.

    Args:
        vectors: float[m, d].
        sizes: codes of each level.
        decode: codes int32[p, 1..l] to float32[p, d].
        nearest: codes of a level that go on, the lowest among equally near ones.
        most: combinations of a vector that go on after each level, those of least residual.

    Returns:
        Codes int32[m, c, l], and what each leaves over, |x - decode(codes)|^2, float64[m, c].
    """
    rows = len(vectors)
    near, costs = np.zeros((rows, 1, 0), np.int32), np.zeros((rows, 1))
    for level, size in enumerate(sizes):
        count, ways = near.shape[1], min(nearest, size)
        prefixes = near.reshape(rows * count, level)
        owner = np.repeat(np.arange(rows), count)
        last = np.empty((rows * count, ways), np.int32)
        left = np.empty((rows * count, ways))
        with Progress(len(prefixes), f"near codes, level {level}", unit="prefixes") as progress:
            for members, distances in child_distances(
                vectors, owner, prefixes, size, decode, split=True
            ):
                last[members], left[members] = _smallest(distances, ways)
                progress.update(len(members))
        near = np.column_stack([np.repeat(prefixes, ways, 0), last.reshape(-1)])
        near = near.reshape(rows, count * ways, level + 1)
        costs = left.reshape(rows, count * ways)
        if near.shape[1] > most:
            best = np.argsort(costs, axis=1, kind="stable")[:, :most]
            near = np.take_along_axis(near, best[:, :, None], 1)
            costs = np.take_along_axis(costs, best, 1)
    return near, costs


def take_unused(held: np.ndarray, near: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Each row in turn takes its cheapest combination that is not in use, the lowest among equals.

    Args:
        held: int32[h, l], the IDs in use before.
        near: int32[m, c, l], the rows in the order of serving.
        costs: float[m, c].

    Returns:
        Which combination each row took, int64[m]; -1 where all are in use.
    """
    rows, count, levels = near.shape
    numbers = bucket_numbers(np.concatenate([held, near.reshape(-1, levels)]))
    asked = numbers[len(held) :].reshape(rows, count)
    cheapest_first = np.lexsort((asked, costs), axis=1)
    in_use = np.zeros(int(numbers.max(initial=0)) + 1, bool)
    in_use[numbers[: len(held)]] = True
    choice = np.full(rows, -1)
    for row in range(rows):
        free = ~in_use[asked[row, cheapest_first[row]]]
        if free.any():
            choice[row] = cheapest_first[row, free.argmax()]
            in_use[asked[row, choice[row]]] = True
    return choice


def _smallest(distances: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns of the `count` smallest entries of each row and the entries, [rows, count]; the
    lowest column among equals. Writes over `distances`."""
    rows = np.arange(len(distances))
    columns = np.empty((len(distances), count), np.int32)
    values = np.empty((len(distances), count))
    for place in range(count):
        columns[:, place] = distances.argmin(1)
        values[:, place] = distances[rows, columns[:, place]]
        distances[rows, columns[:, place]] = np.inf
    return columns, values
