"""Seconds of a step of GRPO, rollouts and rewards included, beside a loop in the style of TRL.

    python benchmarks/alignment.py --peer-python PYTHON \
        --json benchmarks/results/alignment.json
    python benchmarks/alignment.py --accelerator --json benchmarks/results/alignment_gpu.json

One model on both sides: TIGER's T5 with random weights that are ported to Hugging Face's names,
12,000 items of 4 x 256 codes, 32 users with 20 items of history, 16 rollouts each, GRPO on-policy
with a divergence from a reference, AdamW, float32, no dropout. Rollouts are once drawn (`sample`)
and once found by beams (`beams`, what MiniOneRec does). A rollout is rewarded by how many leading
codes it shares with the target, which is drawn from the policy, so that groups differ.

Ours is the compiled step of `Align`. The peer, `peers/alignment_trl_style.py`, runs `generate`
under a Python trie, a Python reward, forward passes of reference and policy, and the update. It
scores once with a copy of the history a rollout, as TRL does (`repeated`), and once with each
history encoded once (`shared`), which is the stronger peer. Both are cut into the parts that suit
them best. The sides agree before anything is compared: log-probabilities, rewards and the norm of
the gradient of the peer's first step are computed again with ours.

The sides take turns, each in a process of its own with two threads; rounds in which other processes
took more than a tenth of the machine are left out, or `--cpu` compares processor seconds instead,
with threads that sleep while they wait.

`--accelerator` measures only ours, on a GPU or a TPU, with larger batches: rollouts a second, and
where the time goes, from programs that stop after each phase. `rollout` reads the histories and
writes the groups, `reward` and `reference` come next, `scoring` is the policy's own probability of
what it wrote and of the target, `update` the backward pass and the optimizer.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
from common import QUIET, THREADS, finish, median_seconds, parser, run
from step_times import full_rows, summary
from t5_generate import HISTORY, ITEMS, world, write_given

PEER = Path(__file__).resolve().parent / "peers" / "alignment_trl_style.py"
USERS, GROUP = 32, 16
ROLLOUTS = ("sample", "beams")
HISTORIES = {"repeated": 4, "shared": 32}
"""How the peer scores, and with how many users at once it is fastest."""
MICROBATCHES = 1
"""Parts of our batch, likewise."""
VALUES = (-0.5, -0.25, 0.0, 0.5, 1.0)
"""Rewards for 0 to 4 leading codes of the target."""
LEARNING_RATE = 1e-5
WARM_UPS = 1
NEAR = 1e-3
"""How far apart the sides may be."""
BATCHES = (32, 256, 1024)
"""Users of a batch on an accelerator."""


def stage(rollouts: str) -> Any:
    """What both sides do in a step."""
    from jaxrec.alignment.align import Align
    from jaxrec.alignment.rollouts import Beams, Sample
    from jaxrec.objectives.grpo import MINIONEREC
    from jaxrec.objectives.rewards import PrefixMatch

    return Align(
        MINIONEREC,
        reward=PrefixMatch(VALUES),
        rollouts=Sample(GROUP) if rollouts == "sample" else Beams(GROUP),
        norm="full",
    )


def start_of() -> tuple[Any, Any, Any, np.ndarray]:
    """Model, space, parameters and codes; probabilities are over the codes of a level, as `Align`
    has them."""
    model, space, params, codes, _ = world()
    return dataclasses.replace(model, softmax="level"), space, params, codes


def given_of(codes: np.ndarray, space: Any) -> Any:
    """The arrays that a step reads."""
    from jaxrec.alignment.policy import Given
    from jaxrec.decoding import build_catalogue
    from jaxrec.types import Tables

    return Given(Tables(codes), build_catalogue(codes, space))


def events_of(histories: np.ndarray) -> Any:
    """Full rows of events of these items."""
    events = full_rows(np.random.default_rng(0), *histories.shape, ITEMS)
    return dataclasses.replace(events, item=histories)


def draw_batches(path: Path, users: int, steps: int) -> None:
    """Histories `[steps, users, HISTORY]` and targets `[steps, users]`, drawn from the policy."""
    import jax

    from jaxrec.alignment.rollouts import Sample

    model, space, params, codes = start_of()
    random = np.random.default_rng(2)
    histories = [random.integers(0, ITEMS, (users, HISTORY), dtype=np.int32) for _ in range(steps)]
    given, policy = given_of(codes, space), stage("sample").policy(model, space)

    @jax.jit
    def draw(params: Any, given: Any, events: Any, key: Any) -> Any:
        functions = policy.read(params, given, events)
        return Sample(1)(functions, given.catalogue, policy.filters(events), key).items[:, 0]

    keys = jax.random.split(jax.random.key(3), steps)
    targets = [
        np.asarray(draw(params, given, events_of(each), key)) for each, key in zip(histories, keys)
    ]
    np.savez(path, histories=np.stack(histories), targets=np.stack(targets))


def ours(batches: Path, rollouts: str, microbatches: int, repeats: int) -> dict[str, Any]:
    """Times of single steps, each on a batch that comes from the host.

    With `repeats`, also of the phases, so often.
    """
    import jax

    from jaxrec.alignment.contexts import Context
    from jaxrec.alignment.rewarding import Rewarding
    from jaxrec.alignment.stage import REFERENCE, Start
    from jaxrec.parallel import make_mesh, replicated, shard_rows
    from jaxrec.training.optimizers import AdamW
    from jaxrec.training.state import abstract_state, create_state, state_shardings
    from jaxrec.training.step import make_train_step

    model, space, params, codes = start_of()
    align, mesh = stage(rollouts), make_mesh()
    optimizer = AdamW(LEARNING_RATE, warmup_steps=0, schedule="constant", weight_decay=0.0).build(1)
    abstract = abstract_state(
        lambda key: model.init(key, space), optimizer, model.axes(space), mesh, copies=(REFERENCE,)
    )
    state = create_state(
        lambda key: model.init(key, space),
        optimizer,
        jax.random.key(0),
        abstract,
        start=lambda _, shardings: jax.device_put(params, shardings),
    )
    policy, rewarding = align.policy(model, space), Rewarding(align.reward)
    step = make_train_step(
        align.loss(policy, Start(cast(Any, None), None), rewarding),
        optimizer,
        mesh=mesh,
        shardings=state_shardings(abstract),
        microbatches=microbatches,
        copies=align.copies,
    )
    given, key = jax.device_put((given_of(codes, space), jax.random.key(1)), replicated(mesh))
    with np.load(batches) as drawn:
        contexts = [
            Context(events_of(each), targets)
            for each, targets in zip(drawn["histories"], drawn["targets"])
        ]
    start = time.perf_counter()
    compiled = step.lower(state, given, shard_rows(contexts[0], mesh), key).compile()
    compiling, times, work, rows = time.perf_counter() - start, [], [], []
    for context in contexts:
        start, busy = time.perf_counter(), time.process_time()
        state, report = compiled(state, given, shard_rows(context, mesh), key)
        rows.append(jax.device_get(report.metrics))
        times.append(time.perf_counter() - start)
        work.append(time.process_time() - busy)
    arguments = (state.params, given, shard_rows(contexts[0], mesh), key)
    reached = phase_seconds(align, policy, rewarding, arguments, repeats) if repeats else {}
    seconds = statistics.median(times[WARM_UPS:])
    return {
        "seconds": seconds,
        "fastest": min(times[WARM_UPS:]),
        "cpu_seconds": statistics.median(work[WARM_UPS:]),
        "phases": differences({**reached, "update": seconds}) if repeats else {},
        "legal": min(float(row["valid_rollouts"][0] / row["valid_rollouts"][1]) for row in rows),
        "losses": [float(row["loss"][0] / row["loss"][1]) for row in rows],
        "compile": compiling,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    }


def phase_seconds(
    align: Any, policy: Any, rewarding: Any, arguments: tuple[Any, ...], repeats: int
) -> dict[str, float]:
    """Seconds of programs that stop after each phase of `Align.group`, each with those before it.

    What a program does not return the compiler leaves out.
    """
    import jax

    from jaxrec.alignment.stage import REFERENCE

    def rollout(params: Any, given: Any, batch: Any, key: Any) -> Any:
        functions = policy.read(params, given, batch.events)
        return policy.write(functions, given, batch.events, jax.random.split(key)[0]).items

    def reaching(*names: str) -> Callable[..., Any]:
        def reach(params: Any, reference: Any, given: Any, batch: Any, key: Any) -> Any:
            copies = {REFERENCE: reference}
            group, target, more = align.group(policy, rewarding, params, given, batch, key, copies)
            found = {name: getattr(group, name) for name in names}
            return (found, target, more) if "log_probs" in names else found

        return reach

    params, given, batch, key = arguments
    whole = (params, jax.tree.map(lambda leaf: leaf + 0, params), given, batch, key)
    programs = {
        "rollout": (jax.jit(rollout), arguments),
        "reward": (jax.jit(reaching("rewards")), whole),
        "reference": (jax.jit(reaching("rewards", "reference")), whole),
        "scoring": (jax.jit(reaching("rewards", "reference", "log_probs")), whole),
    }

    def timed(program: Any, given: tuple[Any, ...]) -> float:
        return median_seconds(lambda: jax.block_until_ready(program(*given)), repeats)

    return {name: timed(*each) for name, each in programs.items()}


def apart(batches: Path, found: Path) -> float:
    """How far our numbers for the peer's first step are from its own, relative to their size.

    Log-probabilities, rewards and the norm of the gradient; the largest of the three.
    """
    import jax
    import jax.numpy as jnp
    import optax

    from jaxrec.alignment.contexts import Context
    from jaxrec.alignment.rewarding import Rewarding
    from jaxrec.decoding import Filters
    from jaxrec.objectives.rollout_groups import ScoredGroup

    model, space, params, codes = start_of()
    align = stage("sample")
    policy, rewarding = align.policy(model, space), Rewarding(align.reward)
    with np.load(batches) as drawn, np.load(found) as theirs:
        batch = Context(events_of(drawn["histories"][0]), drawn["targets"][0])
        other = {name: np.asarray(theirs[name]) for name in theirs}
    items = jnp.asarray(other["items"].reshape(-1, GROUP), jnp.int32)

    @jax.jit
    def first(params: Any, given: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            functions = policy.read(params, given, batch.events)
            (scores,) = policy.log_probs(functions, given, items, Filters())
            drawn = rewarding.drawn(given, batch, items, scores.sum(-1))
            told = rewarding(drawn, jax.random.key(0))
            group = ScoredGroup(scores, scores, scores, told.rewards, told.valid, told.positive)
            total, weight, _ = align.objective(group)
            return total / weight, (scores, told.rewards)

        gradient, (scores, rewards) = jax.grad(loss, has_aux=True)(params)
        return scores, rewards, optax.tree.norm(gradient)

    mine = first(params, given_of(codes, space), batch)
    names = ("log_probs", "rewards", "gradient_norm")
    return max(
        float(np.abs(np.asarray(each).ravel() - other[name].ravel()).max() / np.abs(each).max())
        for name, each in zip(names, mine)
    )


def differences(reached: dict[str, float]) -> dict[str, float]:
    """What each phase adds to those before it, from the seconds until its end."""
    times = [0.0, *reached.values()]
    return {name: after - before for name, before, after in zip(reached, times, times[1:])}


def check(side: dict[str, Any]) -> None:
    """Raises SystemExit unless everything written is an item, and every loss a number."""
    if side["legal"] != 1.0 or not np.isfinite(side["losses"]).all():
        raise SystemExit(f"{side['legal']:.2%} of the rollouts are items; losses {side['losses']}.")


def run_ours(batches: Path, rollouts: str, passive: bool) -> dict[str, Any]:
    """Our side in a process of its own."""
    words = json.dumps([str(batches), rollouts, MICROBATCHES, 0])
    return run([sys.executable, __file__, "--ours", words], passive)


def run_peer(
    python: str, folder: Path, rollouts: str, histories: str, passive: bool
) -> dict[str, Any]:
    """The peer in a process of its own."""
    objective = stage(rollouts).objective
    options = {
        "given": folder / "given.npz",
        "batches": folder / "batches.npz",
        "found": folder / "found.npz",
        "rollouts": rollouts,
        "histories": histories,
        "users-at-once": HISTORIES[histories],
        "group": GROUP,
        "values": json.dumps(VALUES),
        "kl": objective.kl,
        "epsilon": objective.epsilon,
        "learning-rate": LEARNING_RATE,
        "warm-ups": WARM_UPS,
        "threads": THREADS,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return run([python, str(PEER), *words], passive)


def compare(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """All sides by turns.

    Raises:
        SystemExit: the sides do not agree, or other processes disturbed every round.
    """
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        batches = folder / "batches.npz"
        write_given(folder / "given.npz")
        draw_batches(batches, options.users, WARM_UPS + options.steps)
        for rollouts in ROLLOUTS:
            rounds = []
            for _ in range(options.rounds):
                sides = {"jaxrec": run_ours(batches, rollouts, options.cpu)}
                for histories in HISTORIES:
                    sides[histories] = run_peer(
                        options.peer_python, folder, rollouts, histories, options.cpu
                    )
                    check(sides[histories])
                check(sides["jaxrec"])
                rounds.append(sides)
            gap = apart(batches, folder / "found.npz")
            if not gap <= NEAR:
                raise SystemExit(f"{rollouts}: the sides are {gap:.1e} apart; nothing to compare.")
            more, faster = compared(rounds, options.cpu)
            told = {"rollouts": rollouts, "users": options.users, "group": GROUP}
            rows += [{**told, **row, "apart": float(f"{gap:.1e}")} for row in more]
            ratios |= {f"{rollouts}: {key}": value for key, value in faster.items()}
    return rows, ratios


def compared(
    rounds: list[dict[str, dict[str, Any]]], cpu: bool
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows and ratios of one way of writing.

    Raises:
        SystemExit: other processes disturbed every round.
    """
    quiet = [sides for sides in rounds if max(side["others"] for side in sides.values()) <= QUIET]
    if not quiet and not cpu:
        raise SystemExit(
            f"other processes took more than {QUIET:.0%} of the machine in every round; stop them, "
            "or compare processor seconds with --cpu."
        )
    kept, rows, ratios = rounds if cpu else quiet, [], {}
    kind = "cpu_seconds" if cpu else "seconds"
    found = {side: summary([each[side] for each in kept]) for side in kept[0]}
    for side, times in found.items():
        first = kept[0][side]
        name = side if side == "jaxrec" else f"torch, histories {side}"
        row = {"side": name, "threads": THREADS, "parameters": first["parameters"], **times}
        if side == "jaxrec":
            row["compile"] = round(first["compile"], 1)
        else:
            row["phases"] = {name: round(each, 4) for name, each in first["phases"].items()}
            row["peer"] = first["versions"]
            ratios[f"{name} / jaxrec, {kind}"] = times[kind] / found["jaxrec"][kind]
        rows.append(row)
    return rows, ratios


def on_accelerator(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rollouts a second, and the share of each phase in a step, for batches of several sizes.

    Raises:
        SystemExit: there is no accelerator.
    """
    import jax

    device = jax.devices()[0]
    if device.platform == "cpu":
        raise SystemExit("--accelerator needs a GPU or a TPU; this machine has none.")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for users in BATCHES:
            batches = Path(folder) / f"{users}.npz"
            draw_batches(batches, users, WARM_UPS + options.steps)
            for rollouts in ROLLOUTS:
                found = ours(batches, rollouts, 1, options.steps)
                check(found)
                rows.append(
                    {
                        "rollouts": rollouts,
                        "device": device.device_kind,
                        "users": users,
                        "group": GROUP,
                        "seconds": round(found["seconds"], 5),
                        "rollouts_a_second": round(users * GROUP / found["seconds"]),
                        "shares": {
                            name: round(each / found["seconds"], 3)
                            for name, each in found["phases"].items()
                        },
                        "compile": round(found["compile"], 1),
                    }
                )
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Compares, or measures an accelerator."""
    arguments = parser(__doc__)
    arguments.add_argument("--peer-python", default=sys.executable, help="one with transformers")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--steps", type=int, default=5, help="timed steps of a round")
    arguments.add_argument("--users", type=int, default=USERS, help="of a batch")
    arguments.add_argument("--cpu", action="store_true", help="compare processor seconds")
    arguments.add_argument("--accelerator", action="store_true", help="measure the device")
    arguments.add_argument("--ours", type=json.loads, help=argparse.SUPPRESS)
    options: argparse.Namespace = arguments.parse_args()
    if options.ours is not None:
        batches, *how = options.ours
        print(json.dumps(ours(Path(batches), *how)))
    elif options.accelerator:
        finish(options.json, on_accelerator(options), {})
    else:
        finish(options.json, *compare(options))


if __name__ == "__main__":
    main()
