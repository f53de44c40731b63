"""A random last code in the place of one that is taken (METHODS T22 b)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxrec.tokenization.collisions import (
    Finalised,
    Taken,
    change_report,
    check_input,
    check_taken,
)
from jaxrec.tokenization.leaves import Decode, Held, bucket_numbers, find_repeats
from jaxrec.types import TokenSpace


@dataclasses.dataclass(frozen=True)
class RandomLast:
    """Draws the last code of a colliding item anew until it is unique.

    In each bucket the item served first keeps its code. The others draw, in the order of serving,
    evenly among the codes that are free below their prefix, which is what drawing until one is
    unused comes to. What the last level meant is lost for them: a floor for policies that measure
    distances.

    Raises:
        ValueError: a prefix holds more items than the last level has codes; it names the prefix.
    """

    seed: int = 0
    """Of the draws; equal seeds, equal IDs."""

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
        """Unique codes of the same levels; `vectors` and `decode` are not needed."""
        del vectors, decode
        codes, order = check_input(codes, sizes, order)
        old = check_taken(taken, sizes)
        new, moving = codes.copy(), find_repeats(codes, order, old)
        held = np.concatenate([old, np.delete(codes, moving, axis=0)])
        prefixes = codes[moving, :-1]
        in_use = Held(held, prefixes)
        generator = np.random.default_rng(self.seed)
        prefix = bucket_numbers(prefixes)
        sequence = np.argsort(prefix, kind="stable")
        starts = np.flatnonzero(np.diff(prefix[sequence], prepend=-1))
        for members in np.split(sequence, starts[1:]) if len(sequence) else []:
            lasts = in_use.lasts(members[0])
            free = np.setdiff1d(np.arange(sizes[-1]), lasts)
            if len(free) < len(members):
                raise ValueError(
                    f"the prefix {tuple(prefixes[members[0]].tolist())} holds "
                    f"{len(set(lasts.tolist())) + len(members)} items, more than the "
                    f"{sizes[-1]} codes of the last level; use more codes, or Reassign(), which "
                    "moves items to other prefixes."
                )
            new[moving[members], -1] = generator.permutation(free)[: len(members)]
        return Finalised(new, TokenSpace(tuple(sizes)), change_report(codes, new))
