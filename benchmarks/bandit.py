"""A bandit of 64 items: does the alignment step find what it is paid for?

    python benchmarks/bandit.py --json benchmarks/results/bandit.json

The generator is a table of logits at every prefix (tests/alignment/table_policy.py), so that the
probability of every item is known exactly; it is trained by the compiled step of a recipe, over
`Align.loss` or `Prefer.loss`. In one world all 64 semantic IDs of 4 x 4 x 4 are items, in the other
64 of 125, so that rollouts and loss must agree on the trie. Four questions:

- `optimum`: with its regulariser off, how far from the best reward does an objective end? Balance
  and entropy have another optimum, which is compared by total variation.
- `trade-off`: expected reward against KL(policy || start) for several strengths of the regulariser,
  beside the most that any policy of that divergence gets, which a tilt of the start has.
- `hacking`: a reward model overrates some items that a gate of relevance knows to be bad; what
  happens to the true reward while the model's rises?

Numbers are means over seeds, with the worst of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import finish, parser

from jaxrec.alignment.align import Align
from jaxrec.alignment.contexts import Context
from jaxrec.alignment.pairs import BestAgainstAll, BestAndWorst
from jaxrec.alignment.policy import Given
from jaxrec.alignment.prefer import Prefer
from jaxrec.alignment.rewarding import Rewarding
from jaxrec.alignment.rollouts import Sample
from jaxrec.alignment.stage import Start
from jaxrec.evaluation.figures import has_matplotlib
from jaxrec.objectives.dpo import DPO
from jaxrec.objectives.ecpo import ECPO
from jaxrec.objectives.gbpo import GBPO
from jaxrec.objectives.gflownet import TrajectoryBalance
from jaxrec.objectives.grpo import DAPO, DR_GRPO, GRPO, MINIONEREC
from jaxrec.objectives.grpo_sr import GRPOSR
from jaxrec.objectives.reinforce import Reinforce
from jaxrec.objectives.rewards.model_scores import Gated, ModelScore
from jaxrec.objectives.s_dpo import SDPO
from jaxrec.objectives.weighted_dpo import ListDPO, WeightedDPO
from jaxrec.parallel import MeshShape, make_mesh
from jaxrec.tracking import Progress
from jaxrec.training.optimizers import AdamW
from jaxrec.training.state import abstract_state, create_state, state_shardings
from jaxrec.training.step import make_train_step
from jaxrec.training.supervised import StageContext
from jaxrec.types import PyTree

TESTS = Path(__file__).resolve().parent.parent / "tests" / "alignment"
sys.path.insert(0, str(TESTS))
table_policy: Any = importlib.import_module("table_policy")
toy_stage: Any = importlib.import_module("toy_stage")
Known, Scored = toy_stage.Known, toy_stage.Scored

ITEMS = 64
WORLDS = {"full": (4, 4, 4), "sparse": (5, 5, 5)}
ROWS, GROUP = 8, 16
STEPS, CALL = 300, 50
RATE = 0.1
NEAR = 0.02
"""What counts as found: this share of the best reward, or this total variation, away."""
BAD = 8
"""Items that the reward model overrates."""


def item_features(seed: int = 0) -> dict[str, np.ndarray]:
    """What is known of each item: `gain` in [0, 1], its reward; `sign` +1, 0 or -1, the same as
    feedback; and for the question of hacking `preference`, a model's estimate of the gain that is
    close but for some bad items, and `relevance`, which is low for these."""
    random = np.random.default_rng(seed)
    gain = random.uniform(0.0, 1.0, ITEMS)
    sign = np.where(gain > 0.75, 1.0, np.where(gain < 0.5, -1.0, 0.0))
    bad = np.argsort(gain)[:BAD]
    preference = np.clip(gain + random.normal(0.0, 0.02, ITEMS), 0.0, 1.0)
    preference[bad] = random.uniform(1.1, 1.2, BAD)
    relevance = random.uniform(0.6, 1.0, ITEMS)
    relevance[bad] = random.uniform(0.0, 0.4, BAD)
    made = {"gain": gain, "sign": sign, "preference": preference, "relevance": relevance}
    return {name: value.astype(np.float32) for name, value in made.items()}


FEATURES = item_features()
GAIN, SIGN = Known("gain"), Known("sign")
TRUSTING = Scored(ModelScore("preference"), ("preference",))
GATED = Scored(Gated(ModelScore("preference"), "relevance", 0.5), ("preference", "relevance"))


def learn(
    stage: Align | Prefer,
    sizes: tuple[int, ...],
    seeds: int,
    *,
    scale: float = 0.0,
    steps: int = STEPS,
) -> np.ndarray:
    """Runs a stage in one world, all seeds beside each other.

    Args:
        stage: what learns; its optimizer is used, its feed is not.
        sizes: codes of each level.
        seeds: runs.
        scale: standard deviation of the logits at the start.
        steps: of each run, a multiple of `CALL`.

    Returns:
        Probabilities of the items, float64[seeds, 1 + steps / CALL, items]: at the start and after
        every call.
    """
    mesh = make_mesh(MeshShape(1), jax.devices()[:1])
    context = toy_stage.toy_context(
        Path(), mesh, items=ITEMS, sizes=sizes, features=FEATURES, scale=scale
    )
    start, optimizer = Start(context, None), stage.optimizer.build(steps)
    abstract = abstract_state(start.init, optimizer, start.axes(), mesh, stage.copies)
    step = make_train_step(
        stage.loss(stage.policy(context.generator, context.space), start, Rewarding(stage.reward)),
        optimizer,
        mesh=mesh,
        shardings=state_shardings(abstract),
        steps_per_call=CALL,
        copies=stage.copies,
    )
    given = Given(context.tables, context.catalogue)
    batch = Context(*table_policy.contexts(ROWS, ITEMS))
    stacked = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (CALL, *leaf.shape)), batch)
    keys = jax.random.split(jax.random.key(0), seeds)
    state = jax.vmap(lambda key: create_state(start.init, optimizer, key, abstract))(keys)
    all_seeds = jax.jit(jax.vmap(step, in_axes=(0, None, None, 0)), donate_argnums=0)
    curves = [chances(context, state.params, seeds)]
    for _ in range(steps // CALL):
        state, report = all_seeds(state, given, stacked, keys)
        assert bool(np.asarray(report.finite).all()), "a step was not finite"
        curves.append(chances(context, state.params, seeds))
    return np.stack(curves, axis=1)


def chances(context: StageContext, params: PyTree, seeds: int) -> np.ndarray:
    """Probabilities of the items under the policy of every seed, by definition."""
    params, codes = jax.device_get(params), np.asarray(context.tables.codes)
    each = [jax.tree.map(lambda leaf: leaf[seed], params) for seed in range(seeds)]  # noqa: B023
    return np.stack([table_policy.item_probabilities(one, codes, context.space) for one in each])


def align(objective: Any, reward: Any = GAIN, rate: float = RATE) -> Align:
    """Alignment of independent draws, as all rows of this benchmark have it."""
    return Align(objective, reward=reward, rollouts=Sample(GROUP), optimizer=descent(rate))


def prefer(objective: Any, pairs: Any, rate: float = RATE) -> Prefer:
    """The same for pairs of rollouts."""
    return Prefer(
        objective, pairs=pairs, reward=GAIN, rollouts=Sample(GROUP), optimizer=descent(rate)
    )


def descent(rate: float) -> AdamW:
    """Adam without decay, down to nothing."""
    return AdamW(learning_rate=rate, warmup_steps=10, weight_decay=0.0)


OPTIMA: dict[str, Align | Prefer] = {
    "Reinforce leave_one_out": align(Reinforce("leave_one_out")),
    "Reinforce mean": align(Reinforce("mean")),
    "Reinforce batch": align(Reinforce("batch")),
    "Reinforce none": align(Reinforce("none")),
    "GRPO": align(GRPO(kl=0.0)),
    "GRPO ratio of the item": align(GRPO(kl=0.0, ratio_level="item")),
    "MiniOneRec": align(dataclasses.replace(MINIONEREC, kl=0.0)),
    "Dr.GRPO": align(DR_GRPO),
    "DAPO": align(DAPO),
    "ECPO": align(ECPO()),
    "GRPOSR": align(GRPOSR(nll=0.0)),
    "GBPO of signs": align(GBPO(), SIGN),
    "GBPO of gains": align(GBPO()),
    "DPO best and worst": prefer(DPO(beta=0.1), BestAndWorst()),
    "IPO best and worst": prefer(DPO(beta=0.02, loss="ipo"), BestAndWorst()),
    "hinge best and worst": prefer(DPO(beta=0.1, loss="hinge"), BestAndWorst()),
    "DPO best against all": prefer(DPO(beta=0.1), BestAgainstAll()),
    "S-DPO best against all": prefer(SDPO(beta=0.1), BestAgainstAll()),
    "WeightedDPO best against all": prefer(WeightedDPO(weighting="gap"), BestAgainstAll()),
    "ListDPO best against all": prefer(ListDPO(beta=0.1, weighting="gap"), BestAgainstAll()),
}
"""What is measured against the best reward, in the full world."""
SPARSE = ("Reinforce leave_one_out", "GRPO", "ECPO", "GBPO of signs", "S-DPO best against all")
"""Of these, in the sparse world too."""
ENTROPY = 0.2
SPREAD: dict[str, Align] = {
    "TrajectoryBalance": align(TrajectoryBalance()),
    "Reinforce entropy": align(Reinforce(entropy=ENTROPY)),
}
"""What has a whole distribution for its optimum, in both worlds."""
DR_K2 = dataclasses.replace(DR_GRPO, kl_estimator="k2")
TRADES: dict[str, dict[float, Align | Prefer]] = {
    "GRPO k3": {kl: align(GRPO(kl=kl)) for kl in (0.1, 0.3, 1.0)},
    "Dr.GRPO k2": {kl: align(dataclasses.replace(DR_K2, kl=kl)) for kl in (0.03, 0.1, 0.3)},
    "DPO": {beta: prefer(DPO(beta=beta), BestAndWorst()) for beta in (0.1, 0.3, 1.0, 3.0)},
}
"""Objective -> strength of its regulariser -> the stage."""
HACKS = {"trusting": align(GRPO(kl=0.0), TRUSTING), "gated": align(GRPO(kl=0.0), GATED)}


def optimum_row(name: str, stage: Align | Prefer, world: str, seeds: int) -> dict[str, Any]:
    """How much of the best expected reward a stage ends with, and why, where a seed misses it."""
    assert isinstance(stage.reward, Known)
    reward = FEATURES[stage.reward.name].astype(np.float64)
    curves = learn(stage, WORLDS[world], seeds)[:, [0, -1]]
    share = curves @ reward / reward.max()
    worst = float(share[:, 1].min())
    row = {
        "question": "optimum",
        "objective": name,
        "world": world,
        "paid_in": stage.reward.name,
        "share_at_start": round(float(share[:, 0].mean()), 4),
        "share": round(float(share[:, 1].mean()), 4),
        "share_worst": round(worst, 4),
        "found": bool(share[:, 1].mean() >= 1 - NEAR),
        "found_by_all_seeds": worst >= 1 - NEAR,
    }
    if not row["found_by_all_seeds"]:
        end = curves[share[:, 1].argmin(), 1]
        row["why"] = (
            f"the worst seed settled on an item worth {reward[end.argmax()] / reward.max():.3f} of "
            f"the best, drawn with {end.max():.3f}; the best one with {end[reward.argmax()]:.3f}"
        )
    return row


def spread_row(name: str, stage: Align, world: str, seeds: int) -> dict[str, Any]:
    """How far a policy is from the distribution that is its optimum."""
    gain = FEATURES["gain"].astype(np.float64)
    if isinstance(stage.objective, TrajectoryBalance):
        wanted = np.maximum(gain, stage.objective.reward_floor)
    else:
        wanted = np.exp(gain / ENTROPY)
    wanted /= wanted.sum()
    distance = np.abs(learn(stage, WORLDS[world], seeds)[:, [0, -1]] - wanted).sum(-1) / 2
    return {
        "question": "optimum",
        "objective": name,
        "world": world,
        "paid_in": "gain",
        "variation_at_start": round(float(distance[:, 0].mean()), 4),
        "variation": round(float(distance[:, 1].mean()), 4),
        "variation_worst": round(float(distance[:, 1].max()), 4),
        "found": bool(distance[:, 1].mean() <= NEAR),
        "found_by_all_seeds": bool(distance[:, 1].max() <= NEAR),
    }


def trade_row(name: str, strength: float, stage: Align | Prefer, seeds: int) -> dict[str, Any]:
    """What a regularised policy earns, and how far it went for it from where it started."""
    gain = FEATURES["gain"].astype(np.float64)
    curves = learn(stage, WORLDS["full"], seeds, scale=1.0)
    start, end = curves[:, 0], curves[:, -1]
    divergence = np.sum(end * np.log(np.maximum(end, 1e-300) / start), axis=-1)
    most = [most_reward(*each, gain) for each in zip(start, divergence)]
    return {
        "question": "trade-off",
        "objective": name,
        "strength": strength,
        "reward_at_start": round(float((start @ gain).mean()), 4),
        "reward": round(float((end @ gain).mean()), 4),
        "kl": round(float(divergence.mean()), 4),
        "most_of_that_kl": round(float(np.mean(most)), 4),
    }


def most_reward(start: np.ndarray, divergence: float, reward: np.ndarray) -> float:
    """The most that a policy of this KL from the start earns: that of the tilt
    `start exp(reward / c)` whose KL it is, found by bisection of log c."""
    low, high = np.log(1e-3), np.log(1e3)
    for _ in range(60):
        middle = (low + high) / 2
        logits = np.log(start) + reward / np.exp(middle)
        tilted = np.exp(logits - logits.max())
        tilted /= tilted.sum()
        kept = tilted > 0
        far = np.sum(tilted[kept] * np.log(tilted[kept] / start[kept])) > divergence
        low, high = (middle, high) if far else (low, middle)
    return float(tilted @ reward)


def hacking_row(name: str, seeds: int) -> dict[str, Any]:
    """What the reward model believes, and what is true, on the way."""
    curves = learn(HACKS[name], WORLDS["full"], seeds)
    bad = FEATURES["relevance"] <= 0.5

    def told(values: np.ndarray) -> list[float]:
        return (curves @ values.astype(np.float64)).mean(0).round(4).tolist()

    return {
        "question": "hacking",
        "reward": name,
        "steps": [CALL * call for call in range(curves.shape[1])],
        "model": told(FEATURES["preference"]),
        "true": told(FEATURES["gain"]),
        "bad_items": told(bad),
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The curves of trade-off and hacking as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (trade, hack) = pyplot.subplots(1, 2, figsize=(10, 4))
    for name in TRADES:
        mine = [row for row in rows if row.get("objective") == name and "kl" in row]
        mine.sort(key=lambda row: row["kl"])
        told = [[row[field] for row in mine] for field in ("kl", "reward")]
        trade.plot(*told, marker="o", label=name)
    best = sorted((row["kl"], row["most_of_that_kl"]) for row in rows if "kl" in row)
    trade.plot(*zip(*best), color="black", linestyle=":", label="most of that KL")
    trade.set(xlabel="KL(policy || start), nats", ylabel="expected reward")
    for row in rows:
        if row["question"] == "hacking":
            for field, style in (("model", "--"), ("true", "-")):
                hack.plot(row["steps"], row[field], style, label=f"{row['reward']}: {field}")
    hack.set(xlabel="step", ylabel="expected reward")
    for axes in (trade, hack):
        axes.legend()
        axes.grid(alpha=0.2)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def measure(seeds: int) -> list[dict[str, Any]]:
    """All rows."""
    calls: list[Callable[[], dict[str, Any]]] = []
    for name, stage in OPTIMA.items():
        for world in ("full", "sparse") if name in SPARSE else ("full",):
            calls.append(partial(optimum_row, name, stage, world, seeds))
    for name, stage in SPREAD.items():
        calls += [partial(spread_row, name, stage, world, seeds) for world in WORLDS]
    for name, stages in TRADES.items():
        calls += [partial(trade_row, name, each, stage, seeds) for each, stage in stages.items()]
    calls += [partial(hacking_row, name, seeds) for name in HACKS]
    rows = []
    with Progress(len(calls), "bandit", unit="runs") as progress:
        for call in calls:
            start = time.perf_counter()
            rows.append({**call(), "seconds": round(time.perf_counter() - start, 1)})
            progress.update(1)
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=10)
    options: argparse.Namespace = arguments.parse_args()
    # Programs run for a moment here; optimising them takes longer.
    jax.config.update("jax_disable_most_optimizations", True)
    rows = measure(options.seeds)
    finish(options.json, rows, {})
    if options.json is not None and has_matplotlib():
        draw(rows, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
