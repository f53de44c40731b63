"""Which cheap numbers about semantic IDs foretell how well a generator recommends with them.

    python benchmarks/tokenizer_study.py --state FOLDER \
        --json benchmarks/results/tokenizer_study.json

Every tokenizer of `tokenizer_study_cells.py`, on Beauty and ML-1M with three seeds, under one fixed
small generator that knows items by their IDs alone (no embedding of its own an item): quality
numbers of the IDs, then item-level Recall@10 and NDCG@10 on the test items. The table ranks the
tokenizers of a data set by the mean over seeds, and says for each quality number how its order
agrees with that of NDCG@10: Spearman's rank correlation over tokenizers, with a bootstrap interval
over them. A dozen tokenizers make wide intervals; the docs say only what both data sets bear out.

A cell is a run below FOLDER; killed, the same command goes on. `--only-table` runs nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, parser
from tokenizer_study_cells import DATASETS, SEEDS, TOKENIZERS, recipe_of

from jaxrec.files import read_json

METRICS = ("recall@10", "ndcg@10")
RESAMPLES = 2000
FEWEST = 8
"""Tokenizers that must have a number for its order to mean anything."""


def measure(folder: Path) -> dict[str, Any]:
    """Quality numbers and results of one finished run, flat."""
    quality = read_json(folder / "artefacts" / "tokens" / "quality.json")["quality"]
    report = read_json(folder / "report.json")
    trained = {each["method"] for each in report["comparisons"]}
    row = next(
        each
        for each in report["rows"]
        if each["method"] in trained and each["level"] == "item" and each["seen_masked"]
    )
    return {**flat(quality), **{name: row["metrics"][name] for name in METRICS}}


def flat(quality: dict[str, Any]) -> dict[str, float]:
    """The numbers of a quality report that are one a tokenizer; larger is not always better."""
    levels, rates = quality["levels"], quality["collisions"]
    first, last = levels[0], levels[-1]
    numbers = {
        "lost_ids": rates["lost_ids"],
        "items_sharing": rates["items_sharing"],
        "max_bucket": rates["max_bucket"],
        "utilisation": statistics.mean(each["utilisation"] for each in levels),
        "entropy": statistics.mean(each["entropy"] for each in levels),
        "first_entropy": first["entropy"],
        "last_conditional_entropy": last["conditional_entropy"],
        "gini": statistics.mean(each["gini_all"] for each in levels),
    }
    if alignment := quality.get("alignment"):
        pairs = [each for each in alignment if each["shared"]]
        weight = sum(each["pairs"] for each in pairs)
        total = sum(each["pairs"] * each["cosine"] for each in pairs)
        numbers["cosine_of_sharing"] = total / weight if weight else 0.0
    if errors := quality.get("reconstruction"):
        numbers["explained"] = errors[-1]["explained"]
        numbers["explained_by_first"] = errors[0]["explained"]
    if behaviour := quality.get("behaviour"):
        numbers["behaviour_overlap"] = behaviour["overlap"]
        numbers["behaviour_first_lift"] = lift(behaviour["prefixes"][0], "pairs")
    if categories := quality.get("categories"):
        numbers["purity_first"] = categories["prefixes"][1]["purity"]
        numbers["information_first"] = categories["prefixes"][1]["nmi"]
    if neighbourhood := quality.get("neighbourhood"):
        numbers["neighbourhood_hr@100"] = neighbourhood["quantized"]["hr@100"]
    return numbers


def lift(prefix: dict[str, float], name: str) -> float:
    """How many times as often as by chance."""
    return prefix[name] / prefix["chance"] if prefix["chance"] else 0.0


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation, equal values at their mean rank; 0 where one side does not vary."""
    from scipy.stats import rankdata

    ranks = [rankdata(each) for each in (one, other)]
    if min(np.ptp(each) for each in ranks) == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def correlations(rows: list[dict[str, Any]], dataset: str) -> list[dict[str, Any]]:
    """How each quality number orders the tokenizers of a data set, beside NDCG@10."""
    table = means(rows, dataset)
    random = np.random.default_rng(0)
    found = []
    known = set.union(*(set(row) for row in table)) - {"tokenizer", "seeds", *METRICS}
    for name in sorted(known):
        there = [row for row in table if name in row]
        values = np.array([row[name] for row in there])
        outcome = np.array([row["ndcg@10"] for row in there])
        if len(there) < FEWEST or not np.ptp(values):
            continue
        draws = random.integers(0, len(there), (RESAMPLES, len(there)))
        spread = [spearman(values[draw], outcome[draw]) for draw in draws]
        low, high = np.percentile(spread, [2.5, 97.5])
        found.append(
            {
                "dataset": dataset,
                "measure": name,
                "spearman": round(spearman(values, outcome), 3),
                "low": round(float(low), 3),
                "high": round(float(high), 3),
                "tokenizers": len(there),
            }
        )
    return sorted(found, key=lambda each: -abs(each["spearman"]))


def means(rows: list[dict[str, Any]], dataset: str) -> list[dict[str, Any]]:
    """One row a tokenizer, numbers averaged over the seeds that have them, best first."""
    table = []
    for tokenizer in dict.fromkeys(row["tokenizer"] for row in rows):
        here = [r for r in rows if r["tokenizer"] == tokenizer and r["dataset"] == dataset]
        if here:
            names = dict.fromkeys(name for row in here for name in row if name != "seed")
            numbers = {
                name: statistics.mean(row[name] for row in here if name in row)
                for name in names
                if isinstance(here[-1].get(name), int | float)
            }
            table.append({"tokenizer": tokenizer, "seeds": len(here), **numbers})
    return sorted(table, key=lambda row: -row["ndcg@10"])


def run_cells(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs what has not finished, and reads what has."""
    from jaxrec.pipeline.run import run

    rows = []
    for seed in options.seeds:
        for dataset in options.datasets:
            for tokenizer in options.tokenizers:
                recipe = recipe_of(dataset, tokenizer, seed)
                if recipe is None:
                    continue
                folder = options.state / "runs" / recipe.name
                start = time.perf_counter()
                if not (folder / "report.json").is_file():
                    if options.only_table:
                        continue
                    try:
                        run(recipe, runs=options.state / "runs")
                    except ValueError:  # a cell that cannot be is told, and does not end the study
                        traceback.print_exc()
                        continue
                row = {"dataset": dataset, "tokenizer": tokenizer, "seed": seed}
                rows.append({**row, **measure(folder)})
                print(f"{recipe.name}: {time.perf_counter() - start:.0f} s", flush=True)
    return rows


def main() -> None:
    """Runs the cells, then correlates."""
    made = parser(__doc__)
    made.add_argument("--state", type=Path, required=True, help="folder of the runs")
    made.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=DATASETS)
    made.add_argument("--tokenizers", nargs="+", default=list(TOKENIZERS), choices=TOKENIZERS)
    made.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    made.add_argument("--only-table", action="store_true", help="run nothing")
    options: argparse.Namespace = made.parse_args()
    rows = run_cells(options)
    table: list[dict[str, Any]] = []
    for dataset in options.datasets:
        if any(row["dataset"] == dataset for row in rows):
            table += [{"dataset": dataset, **row} for row in means(rows, dataset)]
            table += correlations(rows, dataset)
    finish(options.json, table, {})


if __name__ == "__main__":
    main()
