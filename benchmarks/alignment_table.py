"""What alignment does to rewards and rankings: every objective from the same checkpoint.

    python benchmarks/alignment_table.py --state FOLDER \
        --json benchmarks/results/alignment_table.json

MovieLens-100K and Amazon-2014 Beauty; for every seed one supervised run, one reward model on its
training events (`Implicit`: what came next against drawn items; calibrated and frozen), then every
objective from that run's best step, 150 steps of 32 histories, validation reward chooses the step.
Rewards are means over groups of 16 draws for test cases before and afterwards, with the same
reward that was trained for; rankings are those of the test split, seen items masked. Nothing was
tuned on it. Resumable: cells that are finished are not run again.

`--datasets`, `--seeds` and `--objectives` choose cells.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from common import finish, parser

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
OBJECTIVES = ("dpo", "s-dpo", "grpo", "ecpo", "gbpo", "grpo-sr")
MORE = ("reinforce", "gflownet", "rose-po", "sprec", "ipa", "weighted-dpo", "list-dpo", "sp-dpo")
METRICS = ("recall@10", "ndcg@10", "coverage@10")


def base(dataset: str, seed: int) -> Any:
    """The supervised run that all objectives start from."""
    from jaxrec.data.datasets.movielens import MovieLens100K
    from jaxrec.recipe import load_recipe, replace

    ours = Path(__file__).resolve().parent.parent / "configs"
    changes: dict[str, Any]
    if dataset == "ml-100k":
        recipe = load_recipe(ours / "quickstart.py")
        recipe = replace(recipe, "data.source", MovieLens100K(str(DATA / "movielens-100k")))
        changes = {"stages.0.fit.steps": 600, "evaluation.history": 50}
    else:
        recipe = load_recipe(ours / "beauty_decoder.py")
        recipe = replace(recipe, "data.source.path", str(DATA / "amazon2014-beauty"))
        changes = {"stages.0.fit.steps": 400, "evaluation.history": 20}
        changes |= {"evaluation.max_cases": 2000, "stages.0.validation_cases": 500}
        changes |= {"evaluation.rows": 128}
    changes |= {"name": f"{dataset}-s{seed}", "seed": seed, "evaluation.bootstrap": 200}
    for path, value in changes.items():
        recipe = replace(recipe, path, value)
    return recipe


def cell(source: Path, recipe: Any, objective: str) -> dict[str, Any]:
    """One objective from one run; everything that `alignment.json` says, and the curves' ends."""
    import dataclasses

    from jaxrec.alignment.defaults import stage_of
    from jaxrec.files import read_json
    from jaxrec.pipeline.align import RESULT, align
    from jaxrec.pipeline.run import stage_folder
    from jaxrec.recipe import replace
    from jaxrec.tracking import JsonLines

    stage = stage_of(objective, None, length=recipe.evaluation.history, rows=32)
    for path, value in {
        "fit.steps": 150,
        "fit.validate_every": 50,
        "validation_cases": 300,
    }.items():
        stage = replace(stage, path, value)
    stage = replace(stage, "fit.checkpoint_every", 50)
    name = f"{recipe.name}-{objective}"
    longer = dataclasses.replace(recipe, name=name, stages=(*recipe.stages, stage))
    folder = source.parent / name
    if not (folder / RESULT).is_file():
        align(source, longer, runs=source.parent)
    result = read_json(folder / RESULT)
    rows = JsonLines(stage_folder(folder, 1, stage) / "metrics.jsonl").rows()
    steps = [row for row in rows if "loss" in row]
    training = read_json(folder / "report.json")["training"]["stages"][1]
    return {
        "rewards": result["rewards"]["test"],
        "before": {name: result["ranking"]["before"][name] for name in METRICS},
        "after": {name: result["ranking"]["after"][name] for name in METRICS},
        "legality": [row["legality"] for row in (steps[0], steps[-1]) if "legality" in row],
        "kl": steps[-1].get("kl"),
        "best_step": training["best_step"],
        "reward_model": result["reward_model"] and result["reward_model"]["tasks"],
    }


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds of a data set's objectives."""
    found = []
    for key in dict.fromkeys((row["dataset"], row["objective"]) for row in rows):
        some = [row for row in rows if (row["dataset"], row["objective"]) == key]

        def mean(take: Any, some: list[dict[str, Any]] = some) -> float:
            return round(statistics.fmean(take(row) for row in some), 4)

        line: dict[str, Any] = {"dataset": key[0], "objective": key[1], "seeds": len(some)}
        sides = ("before", "after")
        line["reward"] = [mean(lambda row, s=side: row["rewards"][s]) for side in sides]
        rises = [row["rewards"]["difference_interval"][0] > 0 for row in some]
        line["reward_rises"] = f"{sum(rises)} of {len(rises)}"
        for metric in METRICS:
            line[metric] = [mean(lambda row, m=metric, s=s: row[s][m]) for s in sides]
        if all(row["legality"] for row in some):
            line["legality"] = [mean(lambda row, i=i: row["legality"][i]) for i in (0, -1)]
        found.append(line)
    return found


def main() -> None:
    """Runs the cells that are not finished and writes what there is after each."""
    arguments = parser(__doc__)
    arguments.add_argument("--state", type=Path, required=True, help="folder of the runs")
    arguments.add_argument("--datasets", nargs="+", default=["ml-100k", "beauty"])
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments.add_argument("--objectives", nargs="+", default=list(OBJECTIVES))
    options: argparse.Namespace = arguments.parse_args()

    from jaxrec.pipeline.run import run

    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        for dataset in options.datasets:
            recipe = base(dataset, seed)
            source = run(recipe, runs=options.state)
            for objective in options.objectives:
                told = cell(source, recipe, objective)
                rows.append({"dataset": dataset, "objective": objective, "seed": seed, **told})
                print(f"== {dataset} {objective} seed {seed}", told, file=sys.stderr, flush=True)
                finish(options.json, [*summarise(rows), *rows], {})


if __name__ == "__main__":
    main()
