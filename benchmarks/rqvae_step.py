"""Rows a second of an RQ-VAE's training, beside PyTorch on the same machine.

    python benchmarks/rqvae_step.py --peer-python PYTHON --json benchmarks/results/rqvae_step.json

The step of `RqVae` as the tokenization stage runs it: a batch drawn from rows in memory, both
networks, three codebooks of 256 codes, AdamW with clipping, moving averages and dead codes, many
steps in one dispatch. The peer is `peers/rqvae_torch.py`, eager and through `torch.compile`; it
neither clips nor keeps averages. torch is no dependency of jaxrec, so `--peer-python` names an
interpreter that has it. The sides take turns, each in a process of its own with two threads and an
allocator that keeps its memory.

As in `sasrec_step.py`, rounds in which other processes took more than a tenth of the machine are
left out of the ratios, and `--cpu` compares the processor seconds of a step instead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import QUIET, THREADS, finish, parser, run

PEER = Path(__file__).resolve().parent / "peers" / "rqvae_torch.py"
SHAPE: dict[str, int] = {
    "rows": 640,
    "items": 12101,
    "width": 768,
    "latent": 32,
    "levels": 3,
    "codes": 256,
}
HIDDEN = (512, 256, 128)
DISPATCH = 50
"""Steps of a dispatch, as in the stage."""
SIDES = ("eager", "compiled")


def ours(dispatches: int) -> dict[str, Any]:
    """Times of a step of jaxrec: each dispatch's, divided by its steps."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxrec.tokenization.mlp import init_mlp
    from jaxrec.tokenization.rows import weight_ends
    from jaxrec.tokenization.rqvae import RqVae
    from jaxrec.tokenization.rqvae_network import RqVaeParams
    from jaxrec.tokenization.rqvae_training import run_steps, start_training

    rows, items, levels = SHAPE["rows"], SHAPE["items"], SHAPE["levels"]
    steps = DISPATCH * (dispatches + 1)
    model = RqVae(levels, SHAPE["codes"], HIDDEN, SHAPE["latent"], steps=steps, batch=rows)
    key = jax.random.key(0)
    widths = (SHAPE["width"], *HIDDEN, SHAPE["latent"])
    books = tuple(
        jax.random.normal(jax.random.fold_in(key, level), (SHAPE["codes"], SHAPE["latent"]))
        / (level + 1)
        for level in range(levels)
    )
    params = RqVaeParams(init_mlp(key, widths), init_mlp(key, widths[::-1]), books)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    training = start_training(model, params, rows)
    points = jax.random.normal(key, (items, SHAPE["width"]))
    ends = weight_ends(np.ones(items))
    times, work, loss = [], [], 0.0
    for dispatch in range(dispatches + 1):
        numbers = jnp.arange(dispatch * DISPATCH, (dispatch + 1) * DISPATCH)
        start, busy = time.perf_counter(), time.process_time()
        training, losses = run_steps(model, rows, training, key, numbers, points, ends)
        loss = float(losses.reconstruction[-1])
        times.append((time.perf_counter() - start) / DISPATCH)
        work.append((time.process_time() - busy) / DISPATCH)
    return {
        "seconds": statistics.median(times[1:]),
        "fastest": min(times[1:]),
        "cpu_seconds": statistics.median(work[1:]),
        "compile": times[0] * DISPATCH,
        "parameters": size,
        "loss": loss,
    }


def run_ours(options: argparse.Namespace) -> dict[str, Any]:
    """Our side in a process of its own."""
    words = [sys.executable, __file__, "--ours", "--dispatches", str(options.dispatches)]
    return run(words, options.cpu)


def run_peer(options: argparse.Namespace, side: str) -> dict[str, Any]:
    """The peer in a process of its own."""
    words = [options.peer_python, str(PEER), "--threads", str(THREADS)]
    words += ["--steps", str(options.dispatches * DISPATCH)]
    words += ["--hidden", ",".join(map(str, HIDDEN))]
    for name, number in SHAPE.items():
        words += [f"--{name}", str(number)]
    return run([*words, *(["--compile"] if side == "compiled" else [])], options.cpu)


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Medians of the rounds' medians, the fastest step of all, and rows a second."""
    seconds = statistics.median(each["seconds"] for each in runs)
    return {
        "seconds": round(seconds, 5),
        "fastest": round(min(each["fastest"] for each in runs), 5),
        "cpu_seconds": round(statistics.median(each["cpu_seconds"] for each in runs), 5),
        "rows_a_second": round(SHAPE["rows"] / seconds),
        "others": round(max(each["others"] for each in runs), 2),
        "rounds": len(runs),
    }


def compare(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Both sides by turns.

    Raises:
        SystemExit: other processes disturbed every round.
    """
    rounds = []
    for _ in range(options.rounds):
        rounds.append([run_ours(options), *(run_peer(options, side) for side in SIDES)])
    quiet = [each for each in rounds if max(side["others"] for side in each) <= QUIET]
    if not quiet and not options.cpu:
        raise SystemExit(
            f"other processes took more than {QUIET:.0%} of the machine in every round; stop "
            "them, or compare processor seconds with --cpu."
        )
    mine, *theirs = zip(*(rounds if options.cpu else quiet))
    sizes = {**SHAPE, "hidden": list(HIDDEN), "threads": THREADS}
    measured = summary(mine)
    compiled = round(mine[0]["compile"], 1)
    rows = [
        {**sizes, "parameters": mine[0]["parameters"]},
        {"side": "jaxrec", **measured, "compile": compiled},
    ]
    ratios: dict[str, float] = {}
    name, unit = ("cpu_seconds", ", processor seconds") if options.cpu else ("seconds", "")
    for side, runs in zip(SIDES, theirs):
        peer = summary(runs)
        rows.append({"side": f"torch {runs[0]['torch']}, {side}", **peer})
        ratios[f"jaxrec / torch {side}{unit}"] = peer[name] / measured[name]
    return rows, ratios


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--peer-python", default=sys.executable, help="one with torch")
    arguments.add_argument("--dispatches", type=int, default=4, help="timed, of a round")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--cpu", action="store_true", help="compare processor seconds")
    arguments.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    options: argparse.Namespace = arguments.parse_args()
    if options.ours:
        print(json.dumps(ours(options.dispatches)))
    else:
        finish(options.json, *compare(options))


if __name__ == "__main__":
    main()
