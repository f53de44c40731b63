"""Users a second of constrained generation with TIGER's T5, beside Hugging Face's `generate`.

    python benchmarks/t5_generate.py --peer-python PYTHON \
        --json benchmarks/results/t5_generate.json

One model on both sides: 4 + 4 layers, width 128, 6 heads of 64, feed-forward 1024, random weights
that are ported to Hugging Face's names; 12,000 items of 4 x 256 codes; batches of 32 users with 20
items of history each. Both normalise over the whole vocabulary and lose the mass of what the trie
forbids, so their beams are compared, code for code and score for score. The peer is
`peers/t5_generate.py` with a trie of Python dictionaries; torch and transformers are no
dependencies of jaxrec, so `--peer-python` names an interpreter that has them. The sides take turns,
each in a process of its own with two threads; rounds in which other processes took more than a
tenth of the machine are left out.

Ours also says what the constraint costs: the same search without a catalogue (any code may follow
any other), and with catalogues of 100,000 and 10 million items, in turns in one process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import QUIET, THREADS, finish, median_seconds, parser, run

PEER = Path(__file__).resolve().parent / "peers" / "t5_generate.py"
ITEMS, LEVELS, SIZE = 12_000, 4, 256
USERS, HISTORY = 32, 20
BEAMS = (20, 50)
CATALOGUES = (100_000, 10_000_000)
"""Items, beside those of the comparison."""
WARM_UPS = 5
SHARP = 3.0
"""Factor of the initial token table: logits that differ as those of a trained model do."""


def draw_codes(items: int) -> np.ndarray:
    """Distinct semantic IDs, int32 `[items, levels]`, sorted."""
    random = np.random.default_rng(0)
    number = random.integers(0, SIZE**LEVELS, items + items // 50 + 10)
    number = np.unique(number)
    number = np.sort(random.permutation(number)[:items])
    return np.stack(np.unravel_index(number, (SIZE,) * LEVELS), axis=1).astype(np.int32)


def world() -> tuple[Any, Any, Any, np.ndarray, np.ndarray]:
    """Model, space, parameters, codes of the items, and the items of the histories."""
    import jax

    from jaxrec.backbones.t5 import T5
    from jaxrec.types import TokenSpace

    model, space = T5(softmax="vocabulary", dropout=0.0), TokenSpace((SIZE,) * LEVELS)
    params = model.init(jax.random.key(0), space)
    params["tokens"]["table"] = params["tokens"]["table"] * SHARP
    histories = np.random.default_rng(1).integers(0, ITEMS, (USERS, HISTORY), dtype=np.int32)
    return model, space, params, draw_codes(ITEMS), histories


def write_given(path: Path) -> None:
    """Model and batch as the peer reads them."""
    model, space, params, codes, histories = world()
    tokens = codes + np.asarray(space.offsets, np.int32)
    sizes = {
        "vocab_size": model.tokens(space),
        "d_model": model.width,
        "d_kv": model.head_size,
        "d_ff": model.feedforward,
        "num_layers": model.layers,
        "num_decoder_layers": model.decoder.layers,
        "num_heads": model.heads,
        "relative_attention_num_buckets": model.distance_buckets,
        "relative_attention_max_distance": model.max_distance,
    }
    np.savez(
        path,
        paths=tokens.astype(np.int64),
        histories=tokens[histories].reshape(USERS, -1).astype(np.int64),
        **{f"size {name}": size for name, size in sizes.items()},
        **{f"weight {name}": weight for name, weight in ported(params).items()},
    )


def ported(params: Any) -> dict[str, np.ndarray]:
    """The weights under Hugging Face's names; its matrices are transposed."""
    plain: dict[str, np.ndarray] = {"shared.weight": np.asarray(params["tokens"]["table"])}
    for stack in ("encoder", "decoder"):
        blocks, attentions = params[stack]["blocks"], {"attention": "SelfAttention"}
        if stack == "decoder":
            attentions["cross_attention"] = "EncDecAttention"
        plain[f"{stack}.final_layer_norm.weight"] = np.asarray(params[stack]["norm"]["scale"])
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        plain[bias] = np.asarray(params[stack]["bias"]["table"])
        for layer in range(blocks["attention"]["query"].shape[0]):
            for number, (ours, theirs) in enumerate(attentions.items()):
                here = f"{stack}.block.{layer}.layer.{number}"
                plain[f"{here}.layer_norm.weight"] = blocks[f"{ours}_norm"]["scale"][layer]
                for name in ("query", "key", "value"):
                    matrix = np.asarray(blocks[ours][name][layer])
                    flat = matrix.reshape(matrix.shape[0], -1)
                    plain[f"{here}.{theirs}.{name[0]}.weight"] = flat.T
                matrix = np.asarray(blocks[ours]["output"][layer])
                plain[f"{here}.{theirs}.o.weight"] = matrix.reshape(-1, matrix.shape[-1]).T
            here = f"{stack}.block.{layer}.layer.{len(attentions)}"
            plain[f"{here}.layer_norm.weight"] = blocks["feedforward_norm"]["scale"][layer]
            for ours, theirs in (("up", "wi"), ("down", "wo")):
                matrix = np.asarray(blocks["feedforward"][ours][layer])
                plain[f"{here}.DenseReluDense.{theirs}.weight"] = matrix.T
    return {name: np.ascontiguousarray(weight) for name, weight in plain.items()}


def ours(found: Path, beams: int, repeats: int) -> dict[str, Any]:
    """Seconds of a batch from histories to items; writes the beams for comparison."""
    import jax

    from jaxrec.decoding import BeamSearch, Filters, build_catalogue
    from jaxrec.training.ranking import rank_batch
    from jaxrec.types import Events, Tables

    model, space, params, codes, histories = world()
    place = np.broadcast_to(np.arange(HISTORY, dtype=np.int32), histories.shape)
    none = np.zeros_like(histories)
    batch = Events(histories, none + 1, place, none, none, np.ones(histories.shape, np.float32))
    params, tables, batch = jax.device_put((params, Tables(codes), batch))
    chosen = {"generator": model, "space": space}
    chosen["decoding"] = BeamSearch(width=beams, k=beams, mask="as_given")

    def constrained(items: int) -> Callable[[], Any]:
        catalogue = jax.device_put(build_catalogue(draw_codes(items), space))
        return lambda: rank_batch(params, tables, catalogue, Filters(), batch, **chosen)

    free = jax.jit(lambda *arguments: unconstrained(model, space, beams, *arguments))
    calls: dict[str, Callable[[], Any]] = {
        str(items): constrained(items) for items in (ITEMS, *CATALOGUES)
    }
    calls["unconstrained"] = lambda: free(params, tables, batch)
    start = time.perf_counter()
    ranked = jax.block_until_ready(calls[str(ITEMS)]())
    compiled = time.perf_counter() - start
    for _ in range(WARM_UPS):  # until the allocator has what it needs
        jax.block_until_ready(calls[str(ITEMS)]())
    alone = median_seconds(lambda: jax.block_until_ready(calls[str(ITEMS)]()), repeats)
    tokens = codes + np.asarray(space.offsets, np.int32)
    np.savez(found, paths=tokens[np.asarray(ranked.items)], scores=np.asarray(ranked.scores))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(1 + repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if repeat:  # the first call compiles
                times[name].append(time.perf_counter() - start)
    return {
        "seconds": alone,
        "in_turns": {name: statistics.median(each) for name, each in times.items()},
        "compile": compiled,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    }


def unconstrained(
    model: Any, space: Any, beams: int, params: Any, tables: Any, events: Any
) -> tuple[Any, Any]:
    """Codes `[b, w, l]` and scores of the best beams when any code may follow any other."""
    import jax
    import jax.numpy as jnp

    cache = model.prefill(params, tables, events, space)
    score = jnp.zeros((events.item.shape[0], 1))
    code = parent = jnp.zeros(score.shape, jnp.int32)
    paths = jnp.zeros((*score.shape, 0), jnp.int32)
    for level in range(space.levels):
        logits, cache = model.step(params, cache, code, parent, level, space)
        total = (score[..., None] + logits).reshape(len(score), -1)
        score, index = jax.lax.top_k(total, beams)
        parent, code = index // SIZE, index % SIZE
        paths = jnp.take_along_axis(paths, parent[..., None], axis=1)
        paths = jnp.concatenate([paths, code[..., None]], axis=-1)
    return paths, score


def same(mine: Path, theirs: Path) -> tuple[bool, float]:
    """Whether both sides found the same beams, and how far their scores are apart at most."""
    with np.load(mine) as one, np.load(theirs) as other:
        sets = [
            set(map(tuple, a)) == set(map(tuple, b))
            for a, b in zip(one["paths"].tolist(), other["paths"].tolist())
        ]
        apart = np.abs(np.sort(one["scores"]) - np.sort(other["scores"])).max()
    return all(sets), float(apart)


def compare(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Both sides by turns.

    Raises:
        SystemExit: the sides differ, or other processes disturbed every round.
    """
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        given, mine, theirs = (Path(folder) / f"{name}.npz" for name in ("given", "ours", "peer"))
        write_given(given)
        for beams in BEAMS:
            common = ["--beams", str(beams), "--repeats", str(options.repeats)]
            peer = [options.peer_python, str(PEER), "--given", str(given), "--found", str(theirs)]
            own = [sys.executable, __file__, "--found", str(mine), *common]
            rounds = [
                (run(own), run([*peer, *common, "--threads", str(THREADS)]))
                for _ in range(options.rounds)
            ]
            equal, apart = same(mine, theirs)
            if not equal:
                raise SystemExit(f"{beams} beams: the sides found other beams; nothing to compare.")
            quiet = [each for each in rounds if max(side["others"] for side in each) <= QUIET]
            if not quiet:
                raise SystemExit(f"other processes took more than {QUIET:.0%} in every round.")
            ours, peers = zip(*quiet)
            mine_all = {
                name: statistics.median(side["in_turns"][name] for side in ours)
                for name in ours[0]["in_turns"]
            }
            seconds = [
                statistics.median(side["seconds"] for side in each) for each in (ours, peers)
            ]
            rows.append(
                {
                    "beams": beams,
                    "users_a_second": round(USERS / seconds[0], 1),
                    "peer_users_a_second": round(USERS / seconds[1], 1),
                    "ms_in_turns": {name: round(1e3 * each, 1) for name, each in mine_all.items()},
                    "equal_beams": equal,
                    "scores_apart": round(apart, 7),
                    "parameters": ours[0]["parameters"],
                    "compile": round(ours[0]["compile"], 1),
                    "peer": peers[0]["versions"],
                    "rounds": len(quiet),
                }
            )
            ratios[f"{beams} beams: users a second over Hugging Face"] = seconds[1] / seconds[0]
            for name in map(str, (ITEMS, *CATALOGUES)):
                ratios[f"{beams} beams: time with {name} items over no catalogue"] = (
                    mine_all[name] / mine_all["unconstrained"]
                )
    return rows, ratios


def main() -> None:
    """Compares, or runs our side alone for the process that compares."""
    arguments = parser(__doc__)
    arguments.add_argument("--peer-python", default=sys.executable, help="one with transformers")
    arguments.add_argument("--repeats", type=int, default=5, help="timed batches of a round")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    arguments.add_argument("--beams", type=int, help=argparse.SUPPRESS)
    options: argparse.Namespace = arguments.parse_args()
    if options.found is not None:
        print(json.dumps(ours(options.found, options.beams, options.repeats)))
    else:
        finish(options.json, *compare(options))


if __name__ == "__main__":
    main()
