"""Swing: two items are alike when users who share little else share both (METHODS R5).

    Swing(i, j) = sum over u, v in U_i and U_j, u != v, of 1 / (alpha + |I_u and I_v|)

with U_i the users of item i and I_u the items of user u (Yang et al., "Large scale product graph
construction for recommendation in e-commerce", arXiv:2010.05525). Such pairs align the vectors of
QARM (arXiv:2411.11739) and OneRec (arXiv:2506.13695). The sum is over ordered pairs of users.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float64, Int32

from jaxrec.representation.encoder import TrainingSequences, interactions
from jaxrec.representation.pairs import top_pairs
from jaxrec.tracking import Progress

_BLOCK_NUMBERS = 2**22
"""Numbers of a dense block of users times items."""


def swing_pairs(
    sequences: TrainingSequences,
    items: int,
    *,
    alpha: float = 1.0,
    top: int = 10,
    max_users: int = 200,
) -> tuple[Int32[np.ndarray, "m 2"], Float64[np.ndarray, " m"]]:
    """Pairs of items with a positive Swing score, where one is among the other's best.

    Args:
        sequences: who had what; how often does not count.
        items: size of the catalogue.
        alpha: added to every overlap; small trusts users who share little.
        top: partners of an item, the best ones; ties go to the lowest id.
        max_users: users of an item that are read: those of the shortest histories, whose pairs
            weigh most; ties go to the lowest id. The work for an item grows with its square. Seen
            from either item of a pair the users may then differ, and the larger score counts.

    Returns:
        Pairs (lower id, higher id), rising, each once, and their scores, to nine decimals.
    """
    from scipy import sparse

    had = interactions(sequences, items)
    had.data[:] = 1.0
    length = np.diff(had.indptr)
    users_of = had.tocsc()
    row, column, score = [], [], []
    with Progress(items, "Swing", unit="items") as progress:
        for item in range(items):
            users = users_of.indices[users_of.indptr[item] : users_of.indptr[item + 1]]
            users = np.sort(users[np.lexsort((users, length[users]))[:max_users]])
            partners, found = _scores_beside(had, users, alpha)
            other = partners != item
            partners, found = partners[other], found[other]
            # No more are needed, and the whole matrix would not fit.
            best = np.lexsort((partners, -found))[:top]
            row.append(np.full(len(best), item))
            column.append(partners[best])
            score.append(found[best])
            progress.update(1)
    parts = (np.concatenate(score), (np.concatenate(row), np.concatenate(column)))
    return top_pairs(sparse.csr_matrix(parts, shape=(items, items)), top)


def _scores_beside(
    had: Any, users: np.ndarray, alpha: float
) -> tuple[np.ndarray, Float64[np.ndarray, " k"]]:
    """Items that at least two of the users had, rising, and their scores among these users."""
    rows = had[users]
    # Items that a single one of them had are in no overlap and in no pair of users.
    shared = np.flatnonzero(np.bincount(rows.indices, minlength=1) > 1)
    columns = rows.tocsc()
    block = max(1, _BLOCK_NUMBERS // max(len(users), 1))
    parts = [shared[start : start + block] for start in range(0, len(shared), block)]
    overlap = np.zeros((len(users), len(users)))
    for part in parts:
        dense = columns[:, part].toarray()
        overlap += dense @ dense.T
    weight = 1.0 / (alpha + overlap)
    np.fill_diagonal(weight, 0.0)
    found = np.zeros(len(shared))
    for start, part in zip(range(0, len(shared), block), parts):
        dense = columns[:, part].toarray()
        found[start : start + len(part)] = np.einsum("uk,uk->k", weight @ dense, dense)
    # Equal sums, added up in another order, must stay equal: ties go to the lowest id.
    return shared, np.round(found, 9)


@dataclasses.dataclass(frozen=True)
class SwingPairs:
    """Pairs of items by Swing, from training events alone.

    Raises:
        ValueError: a number out of range.
    """

    alpha: float = 1.0
    """Added to every overlap of two users."""
    per_item: int = 10
    """Partners of an item, the best ones."""
    max_users: int = 200
    """Users of an item that are read; see `swing_pairs`."""

    schema_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.alpha <= 0 or self.per_item < 1 or self.max_users < 2:
            raise ValueError(
                "SwingPairs needs alpha > 0, per_item >= 1 and max_users >= 2, got "
                f"{self.alpha}, {self.per_item} and {self.max_users}."
            )

    def __call__(self, sequences: TrainingSequences, items: int) -> Int32[np.ndarray, "m 2"]:
        """Pairs (lower id, higher id) of different items, rising, each once."""
        pairs, _ = swing_pairs(
            sequences, items, alpha=self.alpha, top=self.per_item, max_users=self.max_users
        )
        return pairs
