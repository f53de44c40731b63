"""Residual k-means by faiss or scikit-learn, timed: the peer of `quantizers.py`.

    python benchmarks/peers/quantizers_faiss.py --vectors vectors.npy --method faiss --threads 2

Level by level, as published code does it (OneRec, GRID, MiniOneRec): fit, assign, subtract. Prints
seconds, error and the largest memory. Imports faiss, scikit-learn and numpy only.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

LEVELS, CODES, ITERATIONS = 3, 256, 25
ALL_POINTS = 10**9


def main() -> None:
    """Fits the levels once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    residuals = np.load(options.vectors)
    level_of = {"faiss": faiss_level, "faiss default": sampled_level, "sklearn": sklearn_level}
    start = time.perf_counter()
    for level in range(LEVELS):
        centroids, codes = level_of[options.method](residuals, level, options.threads)
        residuals -= centroids[codes]
    seconds = time.perf_counter() - start
    peak = peak_gib()
    error = float(np.mean([np.mean(part**2) for part in np.array_split(residuals, 100)]))
    print(json.dumps({"seconds": seconds, "mse": error, "peak_gib": peak}))


def peak_gib() -> float:
    """The most memory this program has held. Not `ru_maxrss`, which begins with its parent's."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def faiss_level(residuals: np.ndarray, level: int, threads: int, points: int = ALL_POINTS):
    """Centroids and codes by faiss.Kmeans on at most so many points a code."""
    import faiss

    faiss.omp_set_num_threads(threads)
    kmeans = faiss.Kmeans(
        residuals.shape[1], CODES, niter=ITERATIONS, seed=level, max_points_per_centroid=points
    )
    kmeans.train(residuals)
    return kmeans.centroids, kmeans.index.search(residuals, 1)[1][:, 0]


def sampled_level(residuals: np.ndarray, level: int, threads: int):
    """The same with faiss's own sample of 256 points a code."""
    return faiss_level(residuals, level, threads, points=256)


def sklearn_level(residuals: np.ndarray, level: int, threads: int):
    """Centroids and codes by scikit-learn's MiniBatchKMeans."""
    del threads  # by OMP_NUM_THREADS
    from sklearn.cluster import MiniBatchKMeans

    fitted = MiniBatchKMeans(CODES, random_state=level).fit(residuals)
    return fitted.cluster_centers_, fitted.labels_


if __name__ == "__main__":
    main()
