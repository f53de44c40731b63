"""Vectors to measure quantizers on: many clusters in a subspace, and noise in every dimension.

    x = c_j + .4 e;  c = a B / sqrt(r),  a in R^{2000 x r}, B in R^{r x width}, r = 64

with j uniform and all of a, B, e standard normal, so an element has a variance of about 1.16: text
vectors too have far fewer directions than dimensions, and more groups than a level has codes.
"""

from __future__ import annotations

import numpy as np

CENTRES = 2000
RANK = 64
NOISE = 0.4


def mixture(rows: int, width: int = 768, seed: int = 0) -> np.ndarray:
    """Vectors of the mixture, float32 `[rows, width]`; equal arguments, equal vectors.

    A longer draw does not begin with a shorter one.
    """
    random = np.random.default_rng(seed)
    low = random.standard_normal((CENTRES, RANK), np.float32)
    directions = random.standard_normal((RANK, width), np.float32) / np.float32(np.sqrt(RANK))
    chosen = random.integers(0, CENTRES, rows)
    noise = random.standard_normal((rows, width), np.float32)
    return low[chosen] @ directions + np.float32(NOISE) * noise
