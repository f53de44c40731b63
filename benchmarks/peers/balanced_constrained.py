"""Balanced residual k-means with k-means-constrained, timed: the peer of `balanced_kmeans.py`.

    python benchmarks/peers/balanced_constrained.py --given given.npz --found found.npz \
        --levels 3 --codes 256 --iterations 10

Reads `vectors` from `given.npz`. Each level clusters the residuals of the one before into codes of
equal size within one, by minimum-cost flows, from one start: what MiniOneRec does, which takes
three starts and more iterations. Writes the codes; prints seconds and the squared error.

Imports k-means-constrained and numpy only, so it runs in an environment without jaxrec.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time

import numpy as np
from k_means_constrained import KMeansConstrained


def main() -> None:
    """Fits the levels and says how long it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--given", required=True)
    parser.add_argument("--found", required=True)
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--codes", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=10)
    options = parser.parse_args()
    with np.load(options.given) as file:
        residuals = file["vectors"]
    rows = len(residuals)
    start, worked = time.perf_counter(), time.process_time()
    residuals = residuals - residuals.mean(0)
    codes = []
    for level in range(options.levels):
        fitted = KMeansConstrained(
            options.codes,
            size_min=rows // options.codes,
            size_max=-(-rows // options.codes),
            n_init=1,
            max_iter=options.iterations,
            tol=0.0,
            random_state=level,
        ).fit(residuals)
        codes.append(fitted.labels_)
        residuals = residuals - fitted.cluster_centers_[fitted.labels_].astype(np.float32)
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    np.savez(options.found, codes=np.stack(codes, 1))
    version = importlib.metadata.version("k-means-constrained")
    error = float((residuals**2).mean())
    found = {"seconds": seconds, "processor_seconds": worked, "error": error}
    print(json.dumps({**found, "versions": f"k-means-constrained {version}"}))


if __name__ == "__main__":
    main()
