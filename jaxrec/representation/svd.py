"""The leading singular vectors of a large, usually sparse matrix."""

from __future__ import annotations

from typing import Any

import numpy as np

_OVERSAMPLE = 16
_POWER_ITERATIONS = 4
_RANK_TOLERANCE = 1e-12
"""Squared singular values below this fraction of the largest are taken for rounding."""
PASSES = _POWER_ITERATIONS + 1
"""Passes over the matrix that `truncated_svd` tells its progress."""


def truncated_svd(matrix: Any, rank: int, seed: int, progress: Any = None) -> np.ndarray:
    """Leading right singular vectors by randomised power iteration.

    Signs are fixed: the entry of largest magnitude of each vector (the first of equals) is
    positive.

    Args:
        matrix: [n, f], dense or sparse.
        rank: how many vectors; those that the matrix does not have are columns of zeros.
        seed: of the random start.
        progress: told of each pass.

    Returns:
        float64[f, rank], by falling singular value.
    """
    rows, features = matrix.shape
    directions = np.zeros((features, rank))
    width = min(rank + _OVERSAMPLE, rows, features)
    if width == 0:
        return directions
    sample = np.random.default_rng(seed).standard_normal((rows, width))
    basis = _orthonormal(matrix.T @ sample, passes=1)
    for step in range(_POWER_ITERATIONS):
        passes = 2 if step == _POWER_ITERATIONS - 1 else 1
        basis = _orthonormal(matrix.T @ (matrix @ basis), passes)
        if progress is not None:
            progress.update(1)
    scores = matrix @ basis
    energies, inner = np.linalg.eigh(scores.T @ scores)
    energies, inner = energies[::-1][:rank], inner[:, ::-1][:, :rank]
    if progress is not None:
        progress.update(1)
    real = int(np.sum(energies > _RANK_TOLERANCE * max(energies.max(initial=0.0), 1e-300)))
    found = basis @ inner[:, :real]
    largest = np.argmax(np.abs(found), 0)
    directions[:, :real] = found * np.sign(found[largest, np.arange(real)])
    return directions


def _orthonormal(columns: np.ndarray, passes: int) -> np.ndarray:
    """An orthonormal basis of the columns, without those that depend on the others.

    Through the Gram matrix, many times faster than a QR of so tall a matrix; a second pass removes
    the rounding of the first.
    """
    for _ in range(passes):
        energies, directions = np.linalg.eigh(columns.T @ columns)
        live = energies > _RANK_TOLERANCE * max(energies.max(initial=0.0), 1e-300)
        columns = columns @ (directions[:, live] / np.sqrt(energies[live]))
    return columns
