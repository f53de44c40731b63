"""Steps between an encoder and a quantizer: unit length, standardising, PCA, whitening.

A step is fitted on some rows (which ones is the recipe's `fit_on`) and applied to all. Statistics
are computed in float64, vectors stay float32. Published choices: RPG whitens 512 components,
ActionPiece and LLaDA-Rec keep 128, DiffGRM keeps 256 and normalises again (METHODS R1).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

State = dict[str, np.ndarray]
"""What a step learnt, by name."""


@runtime_checkable
class Step(Protocol):
    """One post-processing step; a frozen dataclass."""

    schema_version: ClassVar[int]

    def fit(self, vectors: np.ndarray, train_mask: np.ndarray) -> State:
        """Learns from the rows of float32[n, d] that bool[n] marks."""
        ...

    def apply(self, state: State, vectors: np.ndarray) -> np.ndarray:
        """Maps float32[m, d] to float32[m, d'], any rows."""
        ...


@dataclasses.dataclass(frozen=True)
class L2:
    """Scales each row to unit length. A row of zeros stays a row of zeros."""

    schema_version: ClassVar[int] = 1

    def fit(self, vectors: np.ndarray, train_mask: np.ndarray) -> State:
        """Learns nothing."""
        del vectors, train_mask
        return {}

    def apply(self, state: State, vectors: np.ndarray) -> np.ndarray:
        """Rows of unit length, float32[m, d]."""
        del state
        return normalise_rows(vectors)


@dataclasses.dataclass(frozen=True)
class Standardise:
    """Mean 0 and variance 1 in each dimension; a constant dimension becomes 0."""

    schema_version: ClassVar[int] = 1

    def fit(self, vectors: np.ndarray, train_mask: np.ndarray) -> State:
        """Means and standard deviations of the marked rows."""
        rows = _rows(vectors, train_mask)
        scale = rows.std(0)
        # A constant dimension has a deviation of rounding size; dividing by it makes noise.
        is_constant = scale <= 1e-6 * (np.abs(rows).max(0) + 1e-30)
        return {"mean": rows.mean(0), "scale": np.where(is_constant, np.inf, scale)}

    def apply(self, state: State, vectors: np.ndarray) -> np.ndarray:
        """(x - mean) / scale, float32[m, d]."""
        return ((vectors - state["mean"]) / state["scale"]).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class PCA:
    """Keeps the k directions of largest variance, centred; k = d is a rotation."""

    k: int
    schema_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_k("PCA", self.k)

    def fit(self, vectors: np.ndarray, train_mask: np.ndarray) -> State:
        """Mean and directions of the marked rows."""
        mean, _, directions = principal_axes(_rows(vectors, train_mask), self.k)
        return {"mean": mean, "projection": directions}

    def apply(self, state: State, vectors: np.ndarray) -> np.ndarray:
        """(x - mean) E_k, float32[m, k]."""
        return _project(state, vectors)


@dataclasses.dataclass(frozen=True)
class Whiten:
    """PCA to k directions, each scaled to variance 1: (x - mean) E_k diag(lambda_k + eps)^(-1/2).

    The covariance of the fitted rows is then the identity, as far as `eps` and the rank allow.
    """

    k: int
    eps: float = 1e-8
    """Added to each variance: below it a direction is noise and is damped."""
    schema_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_k("Whiten", self.k)
        if not self.eps > 0:
            raise ValueError(f"Whiten needs eps > 0, got {self.eps}; try 1e-8.")

    def fit(self, vectors: np.ndarray, train_mask: np.ndarray) -> State:
        """Mean and scaled directions of the marked rows."""
        mean, variances, directions = principal_axes(_rows(vectors, train_mask), self.k)
        return {"mean": mean, "projection": directions / np.sqrt(variances + self.eps)}

    def apply(self, state: State, vectors: np.ndarray) -> np.ndarray:
        """Whitened rows, float32[m, k]."""
        return _project(state, vectors)


def normalise_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows of unit length, float32[n, d]; rows of zeros stay."""
    norms = np.linalg.norm(np.asarray(vectors, np.float64), axis=1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1.0)).astype(np.float32)


def principal_axes(rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean float64[d], the k largest variances (falling) and their directions float64[d, k].

    Signs are fixed: the entry of largest magnitude of each direction is positive. Covariances
    divide by n.

    Raises:
        ValueError: k exceeds the width.
    """
    if k > rows.shape[1]:
        raise ValueError(
            f"{k} directions asked of vectors of width {rows.shape[1]}; use k <= {rows.shape[1]}."
        )
    mean = rows.mean(0)
    centred = rows - mean
    variances, directions = np.linalg.eigh(centred.T @ centred / len(rows))
    variances, directions = variances[::-1][:k], directions[:, ::-1][:, :k]
    largest = np.argmax(np.abs(directions), 0)
    directions = directions * np.sign(directions[largest, np.arange(k)])
    return mean, np.maximum(variances, 0.0), directions


def _project(state: State, vectors: np.ndarray) -> np.ndarray:
    return ((vectors - state["mean"]) @ state["projection"]).astype(np.float32)


def _rows(vectors: np.ndarray, train_mask: np.ndarray) -> np.ndarray:
    if not train_mask.any():
        raise ValueError("no item is marked for fitting; a step needs at least one row.")
    return np.asarray(vectors[train_mask], np.float64)


def _check_k(name: str, k: int) -> None:
    if k < 1:
        raise ValueError(f"{name} keeps k >= 1 directions, got {k}.")
