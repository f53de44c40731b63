"""Reward models on KuaiRand-Pure: order and calibration on users that training never saw.

    python benchmarks/reward_model.py --json benchmarks/results/reward_model.json

Labels are grades of real exposures (`Graded`): only they are asked about, since the older events of
this sample were put together from lists whose order tells the grade. They are read as history. Each
seed parts the users anew: 80 % train, 10 % choose the checkpoint and calibrate, 10 % are measured.
Beside the model stands what needs none: the smoothed rate of each item among the users that train.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, parser

from jaxrec.alignment.feedback import Graded, grade_numbers, part_users
from jaxrec.alignment.reward_model import FrozenReward, RewardModel
from jaxrec.backbones.preference import PreferenceModel
from jaxrec.data.dataset import read_dataset
from jaxrec.data.datasets.kuairand import KuaiRand
from jaxrec.data.histories import Histories, prepare
from jaxrec.data.splits import LeaveOneOut, Split, training_positions
from jaxrec.evaluation.classification import auc, grouped_auc
from jaxrec.parallel import make_mesh
from jaxrec.training.loop import FitOptions
from jaxrec.training.optimizers import AdamW

DATA = Path(os.environ.get("JAXREC_DATA", "../shared/data")) / "kuairand-pure"
TASKS = ("long_view", "like", "follow")
SMOOTHING = 10.0
"""Exposures at the mean rate that every item is given beside its own."""


def read_log(folder: Path) -> tuple[Histories, int]:
    """All exposures as histories, actions by grade, and the time of the first real exposure."""
    import polars as pl

    KuaiRand(str(DATA)).write(folder)
    dataset = read_dataset(folder)
    first = dataset.scan().filter(pl.col("page").is_not_null()).select(pl.col("timestamp").min())
    histories = prepare(dataset, events=tuple(dataset.manifest["grades"]))
    return histories, int(first.collect().item())


def model(since: int, actions: int, steps: int) -> RewardModel:
    """What is measured."""
    return RewardModel(
        network=PreferenceModel(tasks=TASKS, width=32, actions=actions, dropout=0.1),
        feedback=Graded(tasks=TASKS, length=48, candidates=8, rows=64, since=since),
        optimizer=AdamW(learning_rate=3e-3, warmup_steps=50, weight_decay=0.1),
        fit=FitOptions(
            steps=steps, validate_every=100, checkpoint_every=steps, patience=3, monitor="-loss"
        ),
    )


def item_rates(
    histories: Histories, split: Split, feedback: Graded, seed: int, share: float
) -> dict[str, dict[str, Any]]:
    """AUC and GAUC, on the same candidates, of how often each item got the grade in training."""
    parts = part_users(histories, split, share=share, seed=seed)
    least = grade_numbers(histories.actions, feedback.tasks)
    train, test = (_asked(histories, part, feedback) for part in (parts.train, parts.report))
    found = {}
    for task, number in zip(feedback.tasks, least):
        labels = histories.action[train] >= number
        item, count = histories.item, histories.num_items
        shown = np.bincount(item[train], minlength=count)
        liked = np.bincount(item[train], labels, minlength=count)
        rate = (liked + SMOOTHING * labels.mean()) / (shown + SMOOTHING)
        truth = histories.action[test] >= number
        user, score = histories.user_of(test), rate[item[test]]
        found[task] = {
            "cases": len(test),
            "auc": auc(score, truth),
            "gauc": grouped_auc(score, truth, user),
        }
    return found


def _asked(histories: Histories, part: Split, feedback: Graded) -> np.ndarray:
    """Flat positions of all candidates."""
    positions = training_positions(histories, part)
    before = positions - histories.offsets[histories.user_of(positions)]
    since = feedback.since or 0
    return positions[(histories.time[positions] >= since) & (before >= feedback.min_history)]


def rows_of(reward: FrozenReward, rates: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
    """One row a task."""
    report, rows = reward.report, []
    for task, row in report["tasks"].items():
        assert row["cases"] == rates[task].pop("cases"), "not the same candidates"
        numbers = {
            name: value if value is None or isinstance(value, int) else round(value, 4)
            for name, value in row.items()
        }
        rows.append(
            {
                "seed": report["seed"],
                "task": task,
                **numbers,
                **{f"item_rate_{name}": round(each, 4) for name, each in rates[task].items()},
                "split": report["split"],
                "users": report["users"],
                "best_step": report["best_step"],
                "seconds": round(seconds, 1),
                "hash": reward.hash[:16],
            }
        )
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=int, default=600)
    arguments.add_argument("--seeds", type=int, default=3)
    options: argparse.Namespace = arguments.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        histories, since = read_log(Path(folder) / "kuairand")
        split, mesh = LeaveOneOut()(histories), make_mesh()
        component = model(since, len(histories.actions), options.steps)
        for seed in range(options.seeds):
            start = time.perf_counter()
            reward = component.train(
                histories, split, mesh=mesh, folder=Path(folder) / f"seed-{seed}", seed=seed
            )
            seconds = time.perf_counter() - start
            assert isinstance(component.feedback, Graded)
            rates = item_rates(histories, split, component.feedback, seed, component.held_out)
            rows += rows_of(reward, rates, seconds)
    finish(options.json, rows, {})


if __name__ == "__main__":
    main()
