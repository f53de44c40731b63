"""Colliding items spread over the last level by optimal transport (METHODS T22 f)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from jaxrec.tokenization.collisions import (
    Finalised,
    Keep,
    Taken,
    change_report,
    check_distances,
    check_input,
)
from jaxrec.tokenization.leaves import Decode, bucket_numbers, child_distances
from jaxrec.tokenization.sinkhorn import sinkhorn_plan
from jaxrec.tracking import Progress

_EQUAL = 1e-3
"""Logarithms of parts that differ by less are equal."""
_ENTRIES = 2**22
"""Distances that are balanced at once."""


@dataclasses.dataclass(frozen=True)
class SinkhornLast:
    """Encodes the last level of colliding items again, evenly inside each bucket.

    In each round the items of one bucket, and no others, share out the codes of the last level by
    optimal transport (`bucket_codes`); the levels before stay. An item may so land on a code that
    another one has, and both are balanced in the next round. Equal vectors never part. What still
    collides after the last round is counted as `n_left` and handed to the policy `leftovers`.

    Items that join an index have nobody to share out codes with, for old items stay: their
    collisions all go to `leftovers`.

    Source: LC-Rec (arXiv:2311.09049), in its code up to 20 rounds; LETTER and MiniOneRec. They
    leave equal parts of a plan to rounding.

    Raises:
        ValueError: a number that is not positive, or missing vectors.
    """

    rounds: int = 20
    """Rounds at most; fewer where nothing collides any more or nothing changes."""
    epsilon: float = 0.003
    """Entropy of the transport plan, see `sinkhorn_plan`."""
    iterations: int = 50
    """Scalings of each plan."""
    leftovers: Any = Keep()
    """The policy for what still collides: Keep(), Reassign(), ExtraDigit(), ..."""

    schema_version: ClassVar[int] = 1
    reads_vectors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.rounds, self.iterations) < 1 or not self.epsilon > 0:
            raise ValueError(
                "SinkhornLast needs rounds >= 1, iterations >= 1 and epsilon > 0, got "
                f"{self.rounds}, {self.iterations} and {self.epsilon}."
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
        """Codes as `leftovers` ends them; unique if it makes them so."""
        codes, order = check_input(codes, sizes, order)
        points, decode = check_distances(self, codes, vectors, decode)
        balanced, done = codes, 0
        if taken is None:
            balanced, done = self._balance(codes, points, sizes[-1], decode)
        final = self.leftovers(
            balanced, sizes=sizes, order=order, vectors=points, decode=decode, taken=taken
        )
        report = {
            **change_report(codes, final.codes[:, : len(sizes)]),
            "rounds": done,
            "n_left": len(colliding_rows(balanced)),
            "leftovers": {"policy": type(self.leftovers).__name__, **final.report},
        }
        return Finalised(final.codes, final.space, report)

    def _balance(
        self, codes: np.ndarray, vectors: np.ndarray, size: int, decode: Decode
    ) -> tuple[np.ndarray, int]:
        """Codes after the rounds, and how many rounds changed something."""
        with Progress(self.rounds, "even last codes", unit="rounds") as progress:
            for done in range(self.rounds):
                new = codes.copy()
                for rows, is_row in colliding_blocks(codes, size):
                    costs = _padded_costs(vectors, codes, rows, is_row, size, decode)
                    weights = is_row.astype(np.float32)
                    lasts = _share_codes(costs, weights, self.epsilon, self.iterations)
                    new[rows[is_row], -1] = np.asarray(lasts)[is_row]
                if np.array_equal(new, codes):
                    return codes, done
                codes = new
                progress.update(1)
        return codes, self.rounds


def colliding_rows(codes: np.ndarray) -> np.ndarray:
    """Rows that share their code with another one, ascending, int64[m]."""
    bucket = bucket_numbers(codes)
    return np.flatnonzero(np.bincount(bucket)[bucket] > 1)


def colliding_blocks(codes: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Buckets of several rows, in blocks of about equal width; few different shapes.

    Args:
        codes: int32[n, l].
        size: codes of the last level: bounds a block's distances.

    Yields:
        Rows int64[b, w] of b buckets, and bool[b, w], which of them are rows and not padding.
    """
    rows = colliding_rows(codes)
    bucket = bucket_numbers(codes[rows])
    rows = rows[np.argsort(bucket, kind="stable")]
    counts = np.bincount(bucket)
    starts = np.cumsum(counts) - counts
    widths = 2 ** np.ceil(np.log2(counts)).astype(np.int64)
    for width in np.unique(widths).tolist():
        (members,) = np.nonzero(widths == width)
        at_once = max(1, _ENTRIES // (width * size))
        for first in range(0, len(members), at_once):
            block = members[first : first + at_once]
            is_row = np.arange(width) < counts[block, None]
            places = starts[block, None] + np.where(is_row, np.arange(width), 0)
            yield rows[places], is_row


def _padded_costs(
    vectors: np.ndarray,
    codes: np.ndarray,
    rows: np.ndarray,
    is_row: np.ndarray,
    size: int,
    decode: Decode,
) -> np.ndarray:
    """Distances of a block's rows to all last codes, float32[b, w, size]; 0 for padding."""
    live = rows[is_row]
    distances = np.empty((len(live), size), np.float32)
    for members, costs in child_distances(vectors, live, codes[live, :-1], size, decode):
        distances[members] = costs
    padded = np.zeros((*rows.shape, size), np.float32)
    padded[is_row] = distances
    return padded


def _share_codes(
    costs: np.ndarray, weights: np.ndarray, epsilon: float, iterations: int
) -> np.ndarray:
    """Last codes of a block of buckets, int32[b, w], each bucket by itself."""
    buckets = len(costs)
    # A power of two of buckets, the further ones repeating the first: few programs are compiled.
    taken = np.minimum(np.arange(1 << (buckets - 1).bit_length()), buckets - 1)
    return np.asarray(_share(costs[taken], weights[taken], epsilon=epsilon, iterations=iterations))[
        :buckets
    ]


@partial(jax.jit, static_argnames=("epsilon", "iterations"))
def _share(
    costs: Float[Array, "b w k"],
    weights: Float[Array, "b w"],
    *,
    epsilon: float,
    iterations: int,
) -> Int32[Array, "b w"]:
    share = partial(bucket_codes, epsilon=epsilon, iterations=iterations)
    return jax.vmap(share)(costs, weights)


def bucket_codes(
    distances: Float[Array, "w k"], weights: Float[Array, " w"], *, epsilon: float, iterations: int
) -> Int32[Array, " w"]:
    """Codes that the rows of one bucket share out evenly.

    A few rows share many codes: most codes belong to one row alone, with equal parts of its mass,
    and the largest of them is a matter of rounding. Of parts that are equal to a thousandth a row
    takes that of the nearest code, the lowest among equally near ones.

    Args:
        distances: of the bucket's rows to all codes.
        weights: 1 for rows, 0 for padding.
    """
    plan = sinkhorn_plan(distances, epsilon=epsilon, iterations=iterations, weights=weights)
    is_best = plan >= jnp.max(plan, axis=1, keepdims=True) - _EQUAL
    return jnp.argmin(jnp.where(is_best, distances, jnp.inf), axis=1).astype(jnp.int32)
