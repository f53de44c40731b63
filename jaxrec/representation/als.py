"""Implicit ALS: a weighted factorisation of who had what, solved in turns (METHODS R4).

    sum_ui c_ui (p_ui - w_u . v_i)^2 + lambda (sum_u |w_u|^2 + sum_i |v_i|^2)
    w_u = (V^T V + V^T (C^u - I) V + lambda I)^(-1) V^T C^u p_u

with r_ui events of user u with item i, p_ui = [r_ui > 0] and the confidence c_ui = 1 + alpha r_ui
(Y. Hu, Y. Koren and C. Volinsky, "Collaborative Filtering for Implicit Feedback Datasets",
ICDM 2008). Solved in float64: the normal equations are often badly conditioned.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float64

from jaxrec.representation.encoder import (
    Encoding,
    TrainingSequences,
    check_events,
    encode_behaviour,
    interactions,
    keep_known,
)
from jaxrec.representation.text import Table
from jaxrec.tracking import Progress

_BLOCK_NUMBERS = 2**22
"""Numbers of the gathered vectors, or of the normal equations, of rows that are solved at once."""


class Factors(NamedTuple):
    """What alternating least squares found."""

    users: Float64[np.ndarray, "u d"]
    items: Float64[np.ndarray, "n d"]
    objectives: list[float]
    """The objective after each half of each round; it never rises."""


def fit_als(
    counts: Any,
    *,
    dimension: int,
    alpha: float,
    regularisation: float,
    iterations: int,
    seed: int,
) -> Factors:
    """Users given items, then items given users, `iterations` times.

    Args:
        counts: scipy CSR matrix [u, n] of events.
        dimension: width of the factors.
        alpha: growth of the confidence with each event.
        regularisation: `lambda`.
        iterations: rounds of both halves.
        seed: of the items at the start, normal with deviation 1 / sqrt(dimension).
    """
    by_item = counts.T.tocsr()
    generator = np.random.default_rng(seed)
    items = generator.standard_normal((counts.shape[1], dimension)) / dimension**0.5
    users = np.zeros((counts.shape[0], dimension))
    objectives = []
    with Progress(iterations, "ALS", unit="rounds") as progress:
        for _ in range(iterations):
            users = solve_rows(counts, items, alpha, regularisation)
            objectives.append(als_objective(counts, users, items, alpha, regularisation))
            items = solve_rows(by_item, users, alpha, regularisation)
            objectives.append(als_objective(counts, users, items, alpha, regularisation))
            progress.update(1, objective=objectives[-1])
    return Factors(users, items, objectives)


def solve_rows(
    counts: Any, fixed: Float64[np.ndarray, "n d"], alpha: float, regularisation: float
) -> Float64[np.ndarray, "u d"]:
    """The best vector of every row of `counts` (CSR [u, n]) for fixed vectors of its columns.

    Rows of similar length are solved together, padded to the longest; an empty row is 0.
    """
    degree = np.diff(counts.indptr)
    width = fixed.shape[1]
    gram = fixed.T @ fixed + regularisation * np.eye(width)
    solved = np.zeros((len(degree), width))
    order = np.argsort(degree, kind="stable")[int((degree == 0).sum()) :]
    while len(order):
        # From the longest row on: it says how wide the block is.
        longest = int(degree[order[-1]])
        rows = max(1, _BLOCK_NUMBERS // (width * max(longest, width)))
        order, block = order[:-rows], order[-rows:]
        columns = counts.indptr[block][:, None] + np.arange(longest)
        is_real = np.arange(longest) < degree[block][:, None]
        columns = np.where(is_real, columns, 0)
        near = fixed[counts.indices[columns]]
        extra = np.where(is_real, alpha * counts.data[columns], 0.0)
        left = gram + np.swapaxes(near * extra[..., None], 1, 2) @ near
        right = np.swapaxes(near, 1, 2) @ (extra + is_real)[..., None]
        solved[block] = np.linalg.solve(left, right)[..., 0]
    return solved


def als_objective(
    counts: Any,
    users: Float64[np.ndarray, "u d"],
    items: Float64[np.ndarray, "n d"],
    alpha: float,
    regularisation: float,
) -> float:
    """The weighted squared error over all pairs, those without events included, and the ridge."""
    pairs = counts.tocoo()
    scores = np.einsum("ed,ed->e", users[pairs.row], items[pairs.col])
    # All pairs as if without events, through the Gram matrices; then what events change.
    every = np.sum((users.T @ users) * (items.T @ items))
    events = np.sum((1.0 + alpha * pairs.data) * np.square(1.0 - scores) - np.square(scores))
    ridge = np.sum(np.square(users)) + np.sum(np.square(items))
    return float(every + events + regularisation * ridge)


@dataclasses.dataclass(frozen=True)
class Als:
    """Item factors of implicit ALS, learnt from training events alone.

    Items that nobody had in training get the constant vector.

    Raises:
        ValueError: a number out of range; in `encode`, no training events.
    """

    dimension: int = 64
    """Width of the vectors."""
    alpha: float = 40.0
    """Growth of the confidence with each event; 40 in the paper."""
    regularisation: float = 1.0
    """Ridge of both factors."""
    iterations: int = 15
    """Rounds of both halves."""

    schema_version: ClassVar[int] = 1
    reads_text: ClassVar[bool] = False
    surrogate: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if min(self.dimension, self.iterations) < 1:
            raise ValueError(
                "Als needs dimension and iterations >= 1, got "
                f"{self.dimension} and {self.iterations}."
            )
        if self.alpha < 0 or self.regularisation <= 0:
            raise ValueError(
                "Als needs alpha >= 0 and regularisation > 0, got "
                f"{self.alpha} and {self.regularisation}."
            )

    def encode(self, texts: list[str], **given: Any) -> np.ndarray:
        """Vectors of all items, float32[n, dimension]; arguments as `encode_with_facts`."""
        return self.encode_with_facts(texts, **given).vectors

    def encode_with_facts(
        self,
        texts: list[str],
        *,
        table: Table,
        fit_mask: np.ndarray,
        seed: int,
        sequences: TrainingSequences | None = None,
    ) -> Encoding:
        """Vectors of all items, which have no behaviour, and the objective after each round."""
        del texts, table
        events, known = keep_known(check_events("Als", sequences), len(fit_mask))
        factors = fit_als(
            interactions(events, int(known.sum())),
            dimension=self.dimension,
            alpha=self.alpha,
            regularisation=self.regularisation,
            iterations=self.iterations,
            seed=seed,
        )
        return encode_behaviour(factors.items, known, {"fit_objective": factors.objectives[1::2]})
