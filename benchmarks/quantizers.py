"""Seconds, error and memory of residual k-means, beside faiss and scikit-learn on the same vectors.

    python benchmarks/quantizers.py --peer-python PYTHON \
        --json benchmarks/results/quantizers.json

3 levels of 256 codes over `mixture.py`'s vectors, 768 wide, float32, two threads. faiss runs 25
iterations a level on all points (and, `faiss default`, on its own sample of 256 points a code);
scikit-learn is MiniBatchKMeans with its defaults. Ours runs at most 25 updates a level and stops
by its own rule; a first fit that is not counted compiles. Vectors are read from one file by both
sides, which take turns, each in a process of its own. `ratio` is the peer's seconds over ours; it
counts only where our error is no larger than the peer's (`error_ratio` at most 1), and is then a
lower bound of "time to the peer's final error". `peak_gib` is the largest resident memory.

faiss and scikit-learn are no dependencies of jaxrec: `--peer-python` names an interpreter that has
faiss-cpu, scikit-learn and numpy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import QUIET, THREADS, finish, parser, run
from mixture import mixture
from peers.quantizers_faiss import peak_gib

PEER = Path(__file__).resolve().parent / "peers" / "quantizers_faiss.py"
LEVELS, CODES, ITERATIONS, TOLERANCE = 3, 256, 25, 1e-3
ROWS = (10_000, 100_000, 1_000_000)
METHODS = ("faiss", "faiss default", "sklearn")


def ours(path: Path, warm: bool) -> dict[str, Any]:
    """Seconds of a fit with the codes of all rows, error a number, and the largest memory."""
    import jax

    from jaxrec.tokenization import ResidualKMeans

    vectors = np.load(path)
    quantizer = ResidualKMeans(LEVELS, CODES, iterations=ITERATIONS, tolerance=TOLERANCE)
    if warm:
        jax.block_until_ready(quantizer.fit(jax.random.key(1), vectors).codebooks)
    start = time.perf_counter()
    state = jax.block_until_ready(quantizer.fit(jax.random.key(0), vectors))
    seconds = time.perf_counter() - start
    report = quantizer.report(state)
    return {
        "seconds": seconds,
        "mse": report["fit_mse_after"][-1],
        "iterations": report["fit_iterations"],
        "peak_gib": peak_gib(),
    }


def compare(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Both sides by turns.

    Raises:
        SystemExit: other processes disturbed every round.
    """
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for count in options.rows:
        with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
            path = Path(folder) / "vectors.npy"
            np.save(path, mixture(count))
            own = [sys.executable, __file__, "--vectors", str(path)]
            peer = [options.peer_python, str(PEER), "--vectors", str(path)]
            rounds = options.rounds if count < 10**6 else 1
            mine = _median([run(own) for _ in range(rounds)], "jaxrec")
            rows.append({"rows": count, "method": "jaxrec", **mine})
            for method in options.methods:
                words = [*peer, "--method", method, "--threads", str(THREADS)]
                theirs = _median([run(words) for _ in range(rounds)], method)
                error = mine["mse"] / theirs["mse"]
                rows.append({"rows": count, "method": method, **theirs, "error_ratio": error})
                ratios[f"{count} rows: {method} over ours, our error {error:.3f} of its"] = (
                    theirs["seconds"] / mine["seconds"]
                )
                ratios[f"{count} rows: our memory over {method}"] = (
                    mine["peak_gib"] / theirs["peak_gib"]
                )
    return rows, ratios


def _median(rounds: list[dict[str, Any]], side: str) -> dict[str, Any]:
    quiet = [each for each in rounds if each["others"] <= QUIET]
    if not quiet:
        raise SystemExit(f"other processes took more than {QUIET:.0%} in every round of {side}.")
    middle = sorted(quiet, key=lambda each: each["seconds"])[len(quiet) // 2]
    seconds = statistics.median(each["seconds"] for each in quiet)
    return {**middle, "seconds": seconds, "rounds": len(quiet)}


def main() -> None:
    """Compares, or runs our side alone for the process that compares."""
    made = parser(__doc__)
    made.add_argument("--peer-python", default=sys.executable, help="one with faiss and sklearn")
    made.add_argument("--rows", type=int, nargs="+", default=ROWS)
    made.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    made.add_argument("--rounds", type=int, default=3, help="of each side, one at a million rows")
    made.add_argument("--scratch", type=Path, help="folder with room for the vectors")
    made.add_argument("--vectors", type=Path, help=argparse.SUPPRESS)
    options: argparse.Namespace = made.parse_args()
    if options.vectors is not None:
        small = options.vectors.stat().st_size < 2**30
        print(json.dumps(ours(options.vectors, warm=small)))
    else:
        finish(options.json, *compare(options))


if __name__ == "__main__":
    main()
