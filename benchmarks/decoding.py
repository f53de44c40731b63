"""Constrained beam search over catalogues of up to ten million items, beside a published decoder.

    python benchmarks/decoding.py --peer PATH/TO/static-constraint-decoding \
        --json benchmarks/results/decoding.json

The peer is STATIC (Su et al. 2026, arXiv:2602.22647; youtube/static-constraint-decoding, in JAX),
whose code is not part of this project: fetch it and give its folder. Both sides decode with the
same model, a table of random logits by the code chosen last, and with the same beams (the peer's
`tokens_per_beam` is what keeps it exact). In every cell the two sets of semantic IDs are compared,
and the scores of both are recomputed from the logits in float64. Times are the medians of rounds in
which the sides take turns. `floor` is the model and its normaliser alone, on the same numbers of
beams: what no decoder can do without.

A cell the peer cannot run (more beams than codes) is measured for ours alone. `--items`, `--only`
and `--beams` choose a part; results of a part replace those cells in the JSON and keep the rest.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, parser

from jaxrec.files import read_json, write_json

SPACES = {"256x4": (256, 4), "2048x8": (2048, 8)}
"""Codes of a level and levels."""
DRAWS = ("uniform", "zipf")
BATCHES = (1, 8, 32)
BEAMS = (10, 50, 70, 512)
SECONDS = 1.0
"""Of measuring, at least, a side and cell; three rounds at least."""


def arguments() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--peer", type=Path, required=True, help="checkout of the peer")
    made.add_argument("--items", nargs="+", type=int, default=[100_000, 1_000_000, 10_000_000])
    made.add_argument("--only", nargs="+", choices=SPACES, default=list(SPACES))
    made.add_argument("--draws", nargs="+", choices=DRAWS, default=list(DRAWS))
    made.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    made.add_argument("--beams", nargs="+", type=int, default=list(BEAMS))
    return made.parse_args()


def main() -> int:
    """Runs the cells and prints a line each; exit code 1 where the sides differ."""
    options = arguments()
    sys.path.insert(0, str(options.peer.resolve()))
    try:
        importlib.import_module("static_decoding.decoding_jax")
    except ImportError as error:
        print(f"error: --peer {options.peer} is no checkout of the peer: {error}", file=sys.stderr)
        return 2
    found: dict[str, dict[str, Any]] = {}
    for name in options.only:
        for draw in options.draws:
            for items in options.items:
                for row in catalogue_rows(name, draw, items, options):
                    found[row["cell"]] = row
                    print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                if options.json is not None:
                    write(options.json, found)
    for what, ratio in summary(list(found.values())).items():
        print(f"{what}: {ratio:.2f}")
    return int(any(row.get("equal") is False for row in found.values()))


def catalogue_rows(
    name: str, draw: str, items: int, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Builds one catalogue on both sides and measures its cells."""
    import jax

    from jaxrec.decoding import build_catalogue
    from jaxrec.types import TokenSpace

    size, levels = SPACES[name]
    codes = draw_codes(size, levels, draw, items)
    kept = codes.astype(np.uint8 if size <= 256 else np.uint16)
    space, cell = TokenSpace((size,) * levels), f"{name} {draw} {items}"
    build_peer = importlib.import_module("static_decoding.csr_utils").build_static_index
    jax.block_until_ready(jax.numpy.zeros(1))  # the first array starts the backend
    seconds, catalogue = fastest(lambda: jax.block_until_ready(build_catalogue(kept, space)))
    peer_seconds, tables = fastest(
        lambda: build_peer(codes, vocab_size=size, dense_lookup_layers=2)
    )
    peer_bytes = sum(np.asarray(part).nbytes for part in tables[:2] + tables[3:])
    count = len(codes)
    yield {
        "cell": f"{cell} build",
        "items": count,
        "layout": " ".join(catalogue.shape.kinds),
        "seconds": round(seconds, 4),
        "peer_seconds": round(peer_seconds, 4),
        "ratio": round(peer_seconds / seconds, 2),
        "bytes_an_item": round(catalogue.bytes / count, 2),
        "peer_bytes_an_item": round(peer_bytes / count, 2),
    }
    table = np.random.default_rng(1).normal(size=(size + 1, size)).astype(np.float32)
    table = jax.device_put(table)
    peer = Peer(tables, size, levels)
    for batch in options.batches:
        for beams in options.beams:
            row = measure(catalogue, codes, table, peer, batch, beams)
            yield {"cell": f"{cell} batch {batch} beams {beams}"} | row


def fastest(build: Callable[[], Any], times: int = 3) -> tuple[float, Any]:
    """Seconds of the fastest of a few builds, and what was built."""
    spent, made = [], None
    for _ in range(times):
        start = time.perf_counter()
        made = build()
        spent.append(time.perf_counter() - start)
    return min(spent), made


def draw_codes(size: int, levels: int, draw: str, items: int) -> np.ndarray:
    """Distinct sorted semantic IDs, int32 `[n, levels]`; a few fewer than asked for."""
    random = np.random.default_rng(0)
    if draw == "uniform":
        codes = random.integers(0, size, (items, levels), dtype=np.int32)
    else:
        share = 1.0 / np.arange(1, size + 1)
        edges = np.cumsum(share / share.sum())
        uniform = random.random((items, levels), dtype=np.float32)
        codes = np.minimum(np.searchsorted(edges, uniform), size - 1).astype(np.int32)
    codes = codes[np.lexsort(codes.T[::-1])]
    fresh = np.any(codes[1:] != codes[:-1], axis=1)
    return codes[np.concatenate([[True], fresh])]


class Peer:
    """The peer's decoder over its tables."""

    def __init__(self, tables: tuple, size: int, levels: int) -> None:
        import jax

        packed, pointers, self.branches, start, mask, states = tables
        names = ("packed_csr", "csr_indptr", "start_mask", "dense_mask", "dense_states")
        arrays = (packed, pointers, start, mask, states)
        self.tables = dict(zip(names, map(jax.device_put, arrays)))
        self.size, self.levels = size, levels

    def program(self, table: Any, batch: int, beams: int) -> Callable[[], Any]:
        """A call that decodes once."""
        import jax

        decode = importlib.import_module("static_decoding.decoding_jax").sparse_transition_jax

        def model(tokens: Any, key: Any) -> tuple[Any, Any]:
            return table[tokens], key  # [n, 1] tokens -> [n, 1, size] logits

        return functools.partial(
            decode,
            model,
            jax.random.key(0),
            batch_size=batch,
            beam_size=beams,
            tokens_per_beam=min(beams, self.size),
            start_token=self.size,
            max_sample_len=self.levels,
            vocab_size=self.size,
            max_branch_factors=tuple(int(each) for each in self.branches),
            **self.tables,
        )


def measure(
    catalogue: Any, codes: np.ndarray, table: Any, peer: Peer, batch: int, beams: int
) -> dict[str, Any]:
    """Milliseconds of one cell, both sides in turns, and whether they say the same."""
    ours = ours_program(catalogue, table, batch, beams)
    floor = floor_program(catalogue, table, batch, beams)
    calls = {"ms": ours, "floor_ms": floor}
    if beams <= peer.size:
        calls["peer_ms"] = peer.program(table, batch, beams)
    times = in_turns(calls)
    row: dict[str, Any] = {name: round(1e3 * seconds, 3) for name, seconds in times.items()}
    if "peer_ms" in times:
        row["ratio"] = round(times["peer_ms"] / times["ms"], 2)
        row["equal"] = same(
            ours(), np.asarray(calls["peer_ms"]()), codes, np.asarray(table), peer.size
        )
    return row


def ours_program(catalogue: Any, table: Any, batch: int, beams: int) -> Callable[[], Any]:
    """A call that decodes once: items, scores and validity."""
    import jax
    import jax.numpy as jnp

    from jaxrec.decoding import StepFunctions, beam_search

    size = table.shape[1]

    def decode(table: Any, catalogue: Any) -> Any:
        def step(cache: Any, last: Any, parents: Any, level: Any) -> tuple[Any, Any]:
            if not isinstance(level, jax.Array) and level == 0:
                last = jnp.full_like(last, size)
            return table[last], cache

        functions = StepFunctions((), step, batch)
        return beam_search(functions, catalogue, width=beams, k=beams)

    program = jax.jit(decode)
    return lambda: program(table, catalogue)


def floor_program(catalogue: Any, table: Any, batch: int, beams: int) -> Callable[[], Any]:
    """A call of the model and its normaliser alone, on beams that nobody chose."""
    import jax
    import jax.numpy as jnp

    from jaxrec.decoding.beam import beam_widths

    size = table.shape[1]
    widths = [1, *beam_widths(catalogue, beams)[1:-1]]

    def run(table: Any) -> Any:
        total = jnp.zeros((batch, 1))
        for width in widths:
            # Codes that depend on what came before, or levels would be computed at once.
            moved = (total[:, :1] > 1e30).astype(jnp.int32)
            codes = (jnp.arange(width) % size + moved).astype(jnp.int32)
            logits = table[codes]
            total = jax.nn.logsumexp(logits, axis=-1) + logits[..., 0]
        return total

    program = jax.jit(run)
    return lambda: program(table)


def in_turns(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of calls that take turns."""
    import jax

    spent: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    while min(map(len, spent.values())) < 3 or max(map(sum, spent.values())) < SECONDS:
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            spent[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in spent.items()}


def same(ranked: Any, tokens: np.ndarray, codes: np.ndarray, table: np.ndarray, size: int) -> bool:
    """Whether both sides found the same IDs, and our scores are those of the logits."""
    wide = table.astype(np.float64)
    top = wide.max(axis=1, keepdims=True)
    logs = wide - top - np.log(np.exp(wide - top).sum(axis=1, keepdims=True))

    def score(path: np.ndarray) -> np.ndarray:
        before = np.concatenate([np.full((len(path), 1), size), path[:, :-1]], axis=1)
        return logs[before, path].sum(axis=1)

    items, valid = np.asarray(ranked.items), np.asarray(ranked.valid)
    for row in range(len(items)):
        mine = codes[items[row][valid[row]]]
        close = np.allclose(score(mine), np.asarray(ranked.scores)[row][valid[row]], atol=1e-4)
        theirs = score(tokens[row][: len(mine)])
        if not close or not np.allclose(np.sort(score(mine)), np.sort(theirs), atol=1e-6):
            return False
        if set(map(tuple, mine.tolist())) != set(map(tuple, tokens[row].tolist())):
            return False
    return True


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Ratios over the cells of both sides."""
    cells = [row for row in rows if "ratio" in row and "peer_ms" in row]
    builds = [row for row in rows if "peer_seconds" in row]
    wide = [
        row
        for row in cells
        if row["cell"].startswith("256x4")
        and " batch 32 " in row["cell"]
        and int(row["cell"].split()[-1]) >= 50
    ]
    told = {}
    for name, some in (("all cells", cells), ("256x4, batch 32, 50 beams or more", wide)):
        if some:
            told[f"{name}: geometric mean"] = math.exp(
                statistics.mean(math.log(row["ratio"]) for row in some)
            )
            told[f"{name}: least"] = min(row["ratio"] for row in some)
    if builds:
        told["build: least"] = min(row["ratio"] for row in builds)
    return told


def write(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """Writes the cells, over those of earlier runs."""
    rows = {row["cell"]: row for row in read_json(path)["rows"]} if path.is_file() else {}
    rows |= found
    write_json(
        path,
        {"rows": list(rows.values()), "ratios": summary(list(rows.values())), "machine": machine()},
    )


if __name__ == "__main__":
    sys.exit(main())
