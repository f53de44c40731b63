"""Seconds to fit balanced residual k-means, beside k-means-constrained.

    python benchmarks/balanced_kmeans.py --peer-python PYTHON \
        --json benchmarks/results/balanced_kmeans.json

10,000 vectors of `mixture.py` (width 768), 3 levels of 256 codes, 10 updates a level from one
start, every code with as many rows as any other or one more: what MiniOneRec fits with
k-means-constrained, in more starts and updates. The peer is `peers/balanced_constrained.py`, which
solves a minimum-cost flow for every assignment; the package is no dependency of jaxrec, so
`--peer-python` names an interpreter that has it. Both sides report the squared error that is left,
the sizes of the codes of each level and the share of vectors that have a semantic ID to themselves.

The sides take turns, each in a process of its own with two threads; rounds in which other processes
took more than a tenth of the machine are left out. Ours is the second fit of its process, and
`compile` what the first took longer.
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
from common import QUIET, finish, parser, run
from mixture import mixture

PEER = Path(__file__).resolve().parent / "peers" / "balanced_constrained.py"
LEVELS, CODES = 3, 256


def ours(given: Path, found: Path, iterations: int) -> dict[str, Any]:
    """Seconds of a fit and its error; writes the codes."""
    import jax

    from jaxrec.tokenization.balanced_residual_kmeans import BalancedResidualKMeans

    with np.load(given) as file:
        vectors = file["vectors"]
    quantizer = BalancedResidualKMeans(
        levels=LEVELS, codes=CODES, iterations=iterations, tolerance=0.0
    )
    times = []
    for _ in range(2):
        start, worked = time.perf_counter(), time.process_time()
        state = jax.block_until_ready(quantizer.fit(jax.random.key(0), vectors))
        times.append(time.perf_counter() - start)
        worked = time.process_time() - worked
    codes = np.asarray(quantizer.encode(state, vectors))
    np.savez(found, codes=codes)
    error = float(((vectors - np.asarray(quantizer.decode(state, codes))) ** 2).mean())
    return {
        "seconds": times[1],
        "processor_seconds": worked,
        "compile": times[0] - times[1],
        "error": error,
    }


def described(path: Path) -> dict[str, Any]:
    """Fewest and most rows of a code at each level, and the share of IDs of one vector."""
    with np.load(path) as file:
        codes = file["codes"]
    counts = [np.bincount(column, minlength=CODES) for column in codes.T]
    alone = np.unique(codes, axis=0, return_counts=True)[1] == 1
    return {
        "sizes": [[int(each.min()), int(each.max())] for each in counts],
        "alone": round(float(alone.sum()) / len(codes), 4),
    }


def compare(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Both sides by turns.

    Raises:
        SystemExit: other processes disturbed every round.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, mine, theirs = (Path(folder) / f"{name}.npz" for name in ("given", "ours", "peer"))
        vectors = mixture(options.rows)
        np.savez(given, vectors=vectors)
        shared = ["--given", str(given), "--iterations", str(options.iterations)]
        own = [sys.executable, __file__, *shared, "--found", str(mine)]
        peer = [options.peer_python, str(PEER), *shared, "--found", str(theirs)]
        peer += ["--levels", str(LEVELS), "--codes", str(CODES)]
        rounds = [(run(own), run(peer)) for _ in range(options.rounds)]
        shapes = [described(mine), described(theirs)]
    quiet = [each for each in rounds if max(side["others"] for side in each) <= QUIET]
    if not quiet:
        raise SystemExit(f"other processes took more than {QUIET:.0%} in every round.")
    rows, seconds = [], []
    for name, sides, shape in zip(("jaxrec", quiet[0][1]["versions"]), zip(*quiet), shapes):
        seconds.append(statistics.median(side["seconds"] for side in sides))
        worked = statistics.median(side["processor_seconds"] for side in sides)
        row = {"side": name, "seconds": round(seconds[-1], 2), "processor": round(worked, 2)}
        row |= {"error": round(sides[0]["error"], 5), **shape, "rounds": len(quiet)}
        if "compile" in sides[0]:
            row["compile"] = round(sides[0]["compile"], 2)
        rows.append({**row, "variance": round(float(vectors.var()), 4)})
    ratio = {"fits in the time of k-means-constrained": seconds[1] / seconds[0]}
    return rows, ratio


def main() -> None:
    """Compares, or runs our side alone for the process that compares."""
    arguments = parser(__doc__)
    arguments.add_argument("--peer-python", default=sys.executable, help="one with the peer")
    arguments.add_argument("--rows", type=int, default=10_000)
    arguments.add_argument("--iterations", type=int, default=10, help="updates of a level")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--given", type=Path, help=argparse.SUPPRESS)
    arguments.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    options: argparse.Namespace = arguments.parse_args()
    if options.given is not None:
        print(json.dumps(ours(options.given, options.found, options.iterations)))
    else:
        finish(options.json, *compare(options))


if __name__ == "__main__":
    main()
