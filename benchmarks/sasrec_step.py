"""Seconds of a SASRec training step, beside PyTorch on the same machine.

    python benchmarks/sasrec_step.py --peer-python PYTHON \
        --json benchmarks/results/sasrec_step.json

SASRec as published (norms on the queries, one negative an event, binary cross-entropy, dropout .5
everywhere, also of the attention probabilities), Adam, float32, full rows: every event is trained
on. The peer is `peers/sasrec_torch.py`; torch is no dependency of jaxrec, so `--peer-python` names
an interpreter that has it. The sides take turns, each in a process of its own with two threads and
an allocator that keeps its memory; both get new batches from the host every step. Ours also draws
the negatives inside the step and leaves out those that stand in the row; the peer gets them ready.

A machine that does other work at the same time says nothing about seconds: torch's threads wait
for each other by spinning, and lose ten times over. `others` in the rows is the share of the
machine that other processes took; rounds above a tenth are left out of the ratios. `--cpu` compares
the processor seconds of a step instead, with threads that sleep while they wait, which other
processes hardly change.

`--microbatches 1,2,4,8,16,32` measures ours once with each instead, to choose what SHAPES says.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from common import QUIET, THREADS, finish, parser, run
from step_times import full_rows, measure, summary

PEER = Path(__file__).resolve().parent / "peers" / "sasrec_torch.py"
DROPOUT = 0.5
LAYERS = 2
SHAPES: dict[str, dict[str, int]] = {
    "128 x 200, width 50": {
        "rows": 128,
        "length": 200,
        "width": 50,
        "heads": 1,
        "items": 3416,
        "microbatches": 16,
    },
    "256 x 50, width 64": {
        "rows": 256,
        "length": 50,
        "width": 64,
        "heads": 2,
        "items": 12101,
        "microbatches": 4,
    },
}


def ours(shape: dict[str, int], steps: int) -> dict[str, Any]:
    """Times of single steps of jaxrec, each on a batch of its own."""
    import numpy as np

    from jaxrec.backbones.sasrec import SasRec
    from jaxrec.objectives.item_pairwise import ItemPairwise
    from jaxrec.types import TokenSpace

    network = SasRec(
        layers=LAYERS,
        width=shape["width"],
        heads=shape["heads"],
        length=shape["length"],
        dropout=DROPOUT,
        attention_dropout=DROPOUT,
        norms="query",
        unroll=LAYERS,
    )
    rng = np.random.default_rng(0)
    return measure(
        network,
        TokenSpace((shape["items"],)),
        ItemPairwise("bce", negatives=1),
        lambda: full_rows(rng, shape["rows"], shape["length"], shape["items"]),
        items=shape["items"],
        microbatches=shape["microbatches"],
        steps=steps,
    )


def run_ours(shape: dict[str, int], steps: int, passive: bool = False) -> dict[str, Any]:
    """Our side in a process of its own."""
    words = [sys.executable, __file__, "--ours", json.dumps(shape), "--steps", str(steps)]
    return run(words, passive)


def run_peer(
    python: str, shape: dict[str, int], steps: int, passive: bool = False
) -> dict[str, Any]:
    """The peer in a process of its own."""
    words = [python, str(PEER), "--steps", str(steps), "--threads", str(THREADS)]
    # Without returning its weights torch takes its fused attention, the faster of its two ways.
    words += ["--layers", str(LAYERS), "--dropout", str(DROPOUT), "--no-weights"]
    for name in ("rows", "length", "width", "heads", "items"):
        words += [f"--{name}", str(shape[name])]
    return run(words, passive)


def compare(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Both sides by turns.

    Raises:
        SystemExit: other processes disturbed every round.
    """
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for name, shape in SHAPES.items():
        rounds = []
        for _ in range(options.rounds):
            peer = run_peer(options.peer_python, shape, options.steps, options.cpu)
            rounds.append((peer, run_ours(shape, options.steps, options.cpu)))
        quiet = [each for each in rounds if max(side["others"] for side in each) <= QUIET]
        if not quiet and not options.cpu:
            raise SystemExit(
                f"other processes took more than {QUIET:.0%} of the machine in every round; stop "
                "them, or compare processor seconds with --cpu."
            )
        theirs, mine = zip(*(rounds if options.cpu else quiet))
        ours, peer = summary(list(mine)), summary(list(theirs))
        version = f"torch {theirs[0]['torch']}"
        sizes = {**shape, "layers": LAYERS, "dropout": DROPOUT, "threads": THREADS}
        rows += [
            {"shape": name, **sizes, "parameters": mine[0]["parameters"]},
            {"shape": name, "side": "jaxrec", **ours, "compile": round(mine[0]["compile"], 1)},
            {"shape": name, "side": version, **peer},
        ]
        if options.cpu:
            ratios[f"{name}: torch / jaxrec, processor seconds"] = (
                peer["cpu_seconds"] / ours["cpu_seconds"]
            )
        else:
            ratios[f"{name}: torch / jaxrec"] = peer["seconds"] / ours["seconds"]
    return rows, ratios


def tune(counts: str, steps: int) -> list[dict[str, Any]]:
    """Ours with several numbers of micro-batches."""
    rows = []
    for name, shape in SHAPES.items():
        for count in map(int, counts.split(",")):
            found = run_ours({**shape, "microbatches": count}, steps, passive=True)
            rows.append({"shape": name, "microbatches": count, **summary([found])})
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--peer-python", default=sys.executable, help="one with torch")
    arguments.add_argument("--steps", type=int, default=20, help="timed steps of a round")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--cpu", action="store_true", help="compare processor seconds")
    arguments.add_argument("--microbatches", help="numbers to try, ours only")
    arguments.add_argument("--ours", type=json.loads, help=argparse.SUPPRESS)
    options: argparse.Namespace = arguments.parse_args()
    if options.ours is not None:
        print(json.dumps(ours(options.ours, options.steps)))
    elif options.microbatches is not None:
        finish(options.json, tune(options.microbatches, options.steps), {})
    else:
        finish(options.json, *compare(options))


if __name__ == "__main__":
    main()
