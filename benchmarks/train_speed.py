"""Seconds of a training step, beside PyTorch on the same machine; model-FLOP use on a GPU.

    python benchmarks/train_speed.py --peer-python PYTHON \
        --json benchmarks/results/train_speed.json
    python benchmarks/train_speed.py --accelerator --json benchmarks/results/train_speed_gpu.json

The first compares on CPU, float32, dropout on, sides by turns, each in a process of its own with
two threads and an allocator that keeps its memory:

- `tiger`: T5 at TIGER's sizes, 256 rows of 20 items and a target, four levels of 256 codes, with
  `transformers`' T5 (`peers/t5_train.py`). The same softmax over all 1,026 tokens on both sides.
- `hstu`: two layers of width 50 over 128 rows of 200 events, 128 negatives a row, with the same
  arithmetic in plain torch (`peers/hstu_torch.py`).

SASRec has a benchmark of its own, `sasrec_step.py`. The second needs an accelerator and no torch:
a decoder of a billion parameters at 2,048 tokens, and HSTU at 4,096 events, in bfloat16 on one
device, with the share of the device's peak that the model's FLOPs by formula make.

`--microbatches 8,16,32` measures ours once with each instead, to choose what SYSTEMS says.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import QUIET, THREADS, finish, parser, run
from step_times import full_rows, measure, summary

PEERS = Path(__file__).resolve().parent / "peers"
SYSTEMS: dict[str, dict[str, Any]] = {
    "tiger": {
        "peer": "t5_train.py",
        "rows": 256,
        "items": 20,
        "levels": 4,
        "codes": 256,
        "microbatches": 32,
        "steps": 3,
        "warm_ups": 1,
    },
    "hstu": {
        "peer": "hstu_torch.py",
        "rows": 128,
        "length": 200,
        "width": 50,
        "heads": 1,
        "layers": 2,
        "items": 3416,
        "negatives": 128,
        "block": 100,
        "microbatches": 8,
        "steps": 20,
        "warm_ups": 3,
    },
}
NOT_THE_PEERS = ("peer", "block", "microbatches", "warm_ups")
PEAKS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}
"""Dense bfloat16 FLOP/s of devices, by their makers."""


def build(name: str, system: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Network, token space and objective of a system."""
    from jaxrec.types import TokenSpace

    if name == "tiger":
        from jaxrec.backbones.t5 import T5
        from jaxrec.objectives.next_token import NextToken

        space = TokenSpace((system["codes"],) * system["levels"])
        objective = NextToken(normalised=True, level_reduction="mean")
        return T5(softmax="vocabulary"), space, objective
    from jaxrec.backbones.hstu import Hstu
    from jaxrec.objectives.item_sampled import ItemSampledSoftmax

    network = Hstu(
        layers=system["layers"],
        width=system["width"],
        heads=system["heads"],
        length=system["length"],
        block=system["block"],
        recompute=False,
        dtype=system.get("dtype", "float32"),
        remat=system.get("remat", False),
    )
    objective = ItemSampledSoftmax(negatives=system["negatives"], correct=False, temperature=0.05)
    return network, TokenSpace((system["items"],)), objective


def ours(name: str, system: dict[str, Any]) -> dict[str, Any]:
    """Times of single steps of jaxrec, each on a batch of its own."""
    import numpy as np

    network, space, objective = build(name, system)
    rng, catalogue = np.random.default_rng(0), system["items"] if name == "hstu" else 12101
    length = system["items"] + 1 if name == "tiger" else system["length"]

    def draw() -> Any:
        batch = full_rows(rng, system["rows"], length, catalogue)
        if name != "tiger":
            return batch
        weight = np.zeros_like(batch.weight)
        weight[:, -1] = 1.0
        return dataclasses.replace(batch, weight=weight)

    return measure(
        network,
        space,
        objective,
        draw,
        items=catalogue,
        microbatches=system["microbatches"],
        steps=system["steps"],
        warm_ups=system["warm_ups"],
    )


def run_ours(name: str, system: dict[str, Any], passive: bool = False) -> dict[str, Any]:
    """Our side in a process of its own."""
    return run([sys.executable, __file__, "--ours", json.dumps([name, system])], passive)


def run_peer(python: str, system: dict[str, Any], passive: bool = False) -> dict[str, Any]:
    """The peer in a process of its own."""
    words = [python, str(PEERS / system["peer"]), "--threads", str(THREADS)]
    for option, value in system.items():
        if option not in NOT_THE_PEERS:
            words += [f"--{option}", str(value)]
    return run(words, passive)


def compare(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Both sides by turns.

    Raises:
        SystemExit: other processes disturbed every round.
    """
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for name in options.systems or SYSTEMS:
        system, rounds = SYSTEMS[name], []
        for _ in range(options.rounds):
            peer = run_peer(options.peer_python, system, options.cpu)
            rounds.append((peer, run_ours(name, system, options.cpu)))
        quiet = [each for each in rounds if max(side["others"] for side in each) <= QUIET]
        if not quiet and not options.cpu:
            raise SystemExit(
                f"other processes took more than {QUIET:.0%} of the machine in every round; stop "
                "them, or compare processor seconds with --cpu."
            )
        theirs, mine = (list(side) for side in zip(*(rounds if options.cpu else quiet)))
        found, peer = summary(mine), summary(theirs)
        kind = "cpu_seconds" if options.cpu else "seconds"
        ratios[f"{name}: torch / jaxrec, {kind}"] = peer[kind] / found[kind]
        parameters = [side[0]["parameters"] for side in (mine, theirs)]
        rows += [
            {"system": name, **system, "threads": THREADS},
            {"system": name, "side": "jaxrec", "parameters": parameters[0], **found},
            {
                "system": name,
                "side": f"torch {theirs[0]['torch']}",
                "parameters": parameters[1],
                **peer,
            },
        ]
    return rows, ratios


def tune(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Ours with several numbers of micro-batches."""
    return [
        {
            "system": name,
            "microbatches": count,
            **summary([run_ours(name, {**SYSTEMS[name], "microbatches": count}, passive=True)]),
        }
        for name in options.systems or SYSTEMS
        for count in map(int, options.microbatches.split(","))
    ]


def on_accelerator(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A large decoder and a long HSTU on one device: seconds, tokens a second, share of the peak.

    Raises:
        SystemExit: there is no accelerator.
    """
    import jax
    import numpy as np

    device = jax.devices()[0]
    if device.platform == "cpu":
        raise SystemExit("--accelerator needs a GPU or a TPU; this machine has none.")
    rng, rows = np.random.default_rng(0), []
    for name, (network, space, objective), shape, items in large_systems(device.platform):
        if options.systems and not name.startswith(tuple(options.systems)):
            continue
        found = measure(
            network,
            space,
            objective,
            lambda shape=shape, items=items: full_rows(rng, *shape, items),
            items=items,
            microbatches=1,
            steps=10,
        )
        per_second = network.flops(space, *shape) / found["seconds"]
        peak = PEAKS.get(device.device_kind)
        rows.append(
            {
                "system": name,
                "device": device.device_kind,
                "rows": shape[0],
                "tokens": shape[1] * space.levels,
                **found,
                "tflops_a_second": round(per_second / 1e12, 1),
                "share_of_peak": round(per_second / peak, 4) if peak else None,
                "peak_gib": round(device.memory_stats()["peak_bytes_in_use"] / 2**30, 2),
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def large_systems(platform: str) -> Iterator[tuple[str, tuple[Any, Any, Any], tuple, int]]:
    """What `--accelerator` measures: name, what `build` gives, rows and length, items.

    HSTU without biases is the shape for which NVIDIA publishes its share of the peak. FLOPs count
    all pairs of a row for the decoder and HSTU alike, also those that the mask forbids.
    """
    from jaxrec.backbones.decoder import Decoder
    from jaxrec.objectives.next_token import NextToken
    from jaxrec.types import TokenSpace

    decoder = Decoder(
        layers=24,
        width=1792,
        heads=14,
        kv_heads=14,
        dropout=0.0,
        history="flat",
        remat=True,
        dtype="bfloat16",
        attention="cudnn" if platform == "gpu" else "xla",
    )
    yield "decoder", (decoder, TokenSpace((2048,) * 4), NextToken()), (8, 512), 100_000
    long = {"length": 4096, "block": 256, "width": 1024, "heads": 4, "layers": 8}
    network, space, objective = build(
        "hstu", {**SYSTEMS["hstu"], **long, "dtype": "bfloat16", "remat": True}
    )
    network = dataclasses.replace(network, dropout=0.0)
    plain = dataclasses.replace(network, position_bias=False, time_bias=False)
    for name, each in (("hstu without biases", plain), ("hstu", network)):
        yield name, (each, space, objective), (8, 4096), SYSTEMS["hstu"]["items"]


def main() -> None:
    """Compares, tunes, or measures an accelerator."""
    arguments = parser(__doc__)
    arguments.add_argument("--peer-python", default=sys.executable, help="one with torch")
    arguments.add_argument(
        "--systems",
        nargs="+",
        default=[],
        help=f"some of {', '.join(SYSTEMS)}, or of those of --accelerator: decoder, hstu",
    )
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--cpu", action="store_true", help="compare processor seconds")
    arguments.add_argument("--microbatches", help="numbers to try, ours only")
    arguments.add_argument("--accelerator", action="store_true", help="measure the device")
    arguments.add_argument("--ours", type=json.loads, help=argparse.SUPPRESS)
    options: argparse.Namespace = arguments.parse_args()
    if options.ours is not None:
        print(json.dumps(ours(*options.ours)))
    elif options.accelerator:
        finish(options.json, on_accelerator(options), {})
    elif options.microbatches is not None:
        finish(options.json, tune(options), {})
    else:
        finish(options.json, *compare(options))


if __name__ == "__main__":
    main()
