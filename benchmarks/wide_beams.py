"""Milliseconds from a history to 200 items on the shape that NVIDIA publishes for SID-GR.

    python benchmarks/wide_beams.py --json benchmarks/results/wide_beams.json

A causal decoder over codes: 8 layers, width 1024, 8 heads of 128, 4 x 256 codes, 200 beams,
bfloat16, random weights; histories of 256 and 2,048 tokens (64 and 512 items), 1 and 16 users. The
published numbers are those of an H100 (NVIDIA/recsys-examples, examples/sid_gr/benchmark, as of
43465ae), without any constraint on what the beams may write; ours name items out of a catalogue
of a million. Medians of 20 calls after 5, from arrays on the device to arrays on the device.

Meant for one GPU: a processor takes minutes a cell. `--layers`, `--width`, `--beams` and `--items`
make it small enough to try; the ratios are left out then, and on any other device than a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import numpy as np
from common import finish, parser

LEVELS, SIZE = 4, 256
PUBLISHED_MS = {(1, 256): 21.5, (1, 2048): 30.1, (16, 256): 23.0, (16, 2048): 80.0}
"""(users, tokens of history) -> milliseconds."""
WARM_UPS = 5


def arguments() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--layers", type=int, default=8)
    made.add_argument("--width", type=int, default=1024, help="8 heads share it")
    made.add_argument("--beams", type=int, default=200)
    made.add_argument("--items", type=int, default=1_000_000)
    made.add_argument("--repeats", type=int, default=20, help="timed calls a cell")
    return made.parse_args()


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every number of users and tokens."""
    import jax

    from jaxrec.backbones.decoder import Decoder
    from jaxrec.decoding import BeamSearch, Filters, build_catalogue
    from jaxrec.training.ranking import rank_batch
    from jaxrec.types import Events, Tables, TokenSpace

    space = TokenSpace((SIZE,) * LEVELS)
    network = Decoder(
        layers=options.layers,
        width=options.width,
        heads=8,
        history="flat",
        dropout=0.0,
        dtype="bfloat16",
        unroll=options.layers,
    )
    random = np.random.default_rng(0)
    codes = random.integers(0, SIZE, (options.items, LEVELS), dtype=np.int32)
    params = network.init(jax.random.key(0), space)
    known = jax.device_put((params, Tables(codes), build_catalogue(codes, space), Filters()))
    chosen = {"generator": network, "space": space}
    chosen["decoding"] = BeamSearch(width=options.beams, k=options.beams)
    rows = []
    for users, tokens in PUBLISHED_MS:
        shape = (users, tokens // LEVELS)
        place = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
        item = random.integers(0, options.items, shape, dtype=np.int32)
        none = np.zeros_like(item)
        batch = Events(item, none + 1, place, none, none, np.ones(shape, np.float32))
        call = (*known, jax.device_put(batch))
        times: list[float] = []
        for _ in range(WARM_UPS + options.repeats):
            start = time.perf_counter()
            ranked = jax.block_until_ready(rank_batch(*call, **chosen))
            times.append(time.perf_counter() - start)
        assert bool(ranked.valid.all()), "some beams named no item"
        rows.append(
            {
                "users": users,
                "history_tokens": tokens,
                "ms": round(1e3 * statistics.median(times[WARM_UPS:]), 2),
                "compile": round(times[0], 1),
                "published_ms": PUBLISHED_MS[users, tokens],
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Measures, and compares where the shape and the device allow it."""
    import jax

    options = arguments()
    rows = measure(options)
    published = (options.layers, options.width, options.beams) == (8, 1024, 200)
    comparable = published and jax.default_backend() == "gpu"
    ratios = {
        f"{row['users']} users, {row['history_tokens']} tokens: published / ours": (
            row["published_ms"] / row["ms"]
        )
        for row in rows
        if comparable
    }
    finish(options.json, rows, ratios)


if __name__ == "__main__":
    main()
