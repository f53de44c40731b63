"""The rows of `quality.py`: what finished cells measured, paired with the best baseline.

Cells of one data set, order of ties and seed are one group, provided that their test cases are the
same; history cap and decoder are choices of the methods. Inside a group `evaluation/compare.py`
merges the untrained rows and pairs every row with the best one that writes no semantic IDs.
"""

from __future__ import annotations

import re
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quality_cells import Cell

from jaxrec.evaluation.compare import (
    TASK,
    RunResult,
    group_rows,
    group_runs,
    pair_group,
)
from jaxrec.evaluation.compare_costs import cost_of
from jaxrec.evaluation.compare_pairs import row_label
from jaxrec.files import read_json
from jaxrec.pipeline.compare import open_result

METRICS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
PAIRED = ("recall@10", "ndcg@10")
"""Metrics that are paired; the first makes the verdict."""

SIGNIFICANT = 0.05
"""A difference is told where Holm's p-value is below this and the interval does not hold zero."""

BEST = "the best baseline"
WORDS = {"ahead": "ahead", "behind": "loses to the best baseline", "undecided": "level"}


def collect(cells: Sequence[Cell], state: Path) -> dict[str, Any]:
    """Everything that the finished cells say, ready for JSON.

    Returns:
        "rows": one a method and group, untrained methods once a data set and order of ties;
        "summary": means and deviations over seeds and tie seeds (`summarise`); "failed": "run" and
        "error" of the cells that failed; "waiting": names of the cells that have not ended;
        "finished": how many have; "machines": those that ran them, by the number in "machine" of
        a row.
    """
    groups: dict[tuple[str, str, int], list[tuple[Cell, RunResult]]] = {}
    failed, waiting = [], []
    for cell in cells:
        folder = state / "runs" / cell.name
        record = _record(cell, state)
        if (folder / "report.json").is_file():
            key = (cell.dataset, cell.protocol, cell.seed)
            groups.setdefault(key, []).append((cell, open_result(folder, cell.method)))
        elif record.get("error"):
            failed.append({"run": cell.name, "error": record["error"]})
        else:
            waiting.append(cell.name)
    rows, untrained = [], set()
    for members in groups.values():
        for row in rows_of(members, state):
            key = (row["dataset"], row["protocol"], row["method"], tuple(row["metrics"].values()))
            if row["kind"] != "untrained":
                rows.append(row)
            elif key not in untrained:
                untrained.add(key)
                rows.append(row)
    machines = []
    for row in rows:
        if told := row.get("machine"):
            machines += [told] if told not in machines else []
            row["machine"] = machines.index(told)
    return {
        "rows": rows,
        "summary": summarise(rows),
        "failed": failed,
        "waiting": waiting,
        "finished": sum(map(len, groups.values())),
        "machines": machines,
    }


def _record(cell: Cell, state: Path) -> dict[str, Any]:
    path = state / "cells" / f"{cell.name}.json"
    return read_json(path) if path.is_file() else {}


def rows_of(members: Sequence[tuple[Cell, RunResult]], state: Path) -> list[dict[str, Any]]:
    """The rows of the finished cells of one data set, order of ties and seed."""
    cells = {run.name: cell for cell, run in members}
    found = []
    for name, runs in group_runs([run for _, run in members], TASK).items():
        everything = group_rows(name, runs, METRICS)
        protocol = runs[0].protocol
        key = (protocol["level"], protocol["seen_masked"])
        rows = [row for row in everything if (row["level"], row["seen_masked"]) == key]
        names = [run.name for run in runs]
        shown = {row_label(row, names): _method(row) for row in rows}
        pairs = {
            metric: _pairs(pair_group(name, runs, rows, metric=metric), shown) for metric in PAIRED
        }
        for row in rows:
            label = row_label(row, names)
            against = {metric: pairs[metric].get(label) for metric in PAIRED}
            (run,) = [each for each in runs if each.name == row["runs"][0]]
            cell = cells[run.name]
            kind = row["kind"]
            entry = {
                "dataset": cell.dataset,
                "protocol": cell.protocol,
                "seed": None if kind == "untrained" else cell.seed,
                "method": shown[label],
                "kind": kind,
                "group": name,
                "metrics": row["metrics"],
                "intervals": row["intervals"],
                "against": against,
                "verdict": _verdict(against[PAIRED[0]]),
                "answering_seconds": round(min(row["seconds"]), 2),
            }
            if kind in ("retriever", "generator"):
                entry |= _trained(cell, run, everything, state)
            found.append(entry)
    return found


def _method(row: Mapping[str, Any]) -> str:
    """What the tables call a row: the run's name stands for the network that it trained."""
    if row["kind"] == "untrained":
        return row["method"]
    (run, *_) = row["runs"]
    told, changed = re.subn(r"\b(generator|retriever)\b", run, row["method"])
    return told if changed else f"{row['method']} of {run}"


def _pairs(paired: Mapping[str, Any], shown: Mapping[str, str]) -> dict[str, Any]:
    """{label: how it stands against the best baseline}; nothing where nothing was paired."""
    if paired["best"] is None:
        return {}
    found: dict[str, Any] = {paired["best"]: {"baseline": shown[paired["best"]], "verdict": BEST}}
    fields = ("difference", "low", "high", "p_value", "p_holm")
    for each in paired["against"]:
        sure = each["p_holm"] < SIGNIFICANT
        found[each["method"]] = {
            "baseline": shown[each["baseline"]],
            **{field: each[field] for field in fields},
            "verdict": WORDS[each["verdict"] if sure else "undecided"],
        }
    return found


def _verdict(against: Mapping[str, Any] | None) -> str | None:
    return against["verdict"] if against else None


def _trained(
    cell: Cell, run: RunResult, rows: Sequence[Mapping[str, Any]], state: Path
) -> dict[str, Any]:
    """What training took and what chose its result, and hits by semantic codes as a note."""
    record, cost = _record(cell, state), cost_of(run.report)
    last = run.report["training"]["stages"][-1]
    by_codes = [
        row["metrics"]
        for row in rows
        if row["level"] == "sid" and row["seen_masked"] and row["runs"] == [run.name]
    ]
    return {
        "run": cell.name,
        "command": record.get("command"),
        "changed": record.get("command") != f"jaxrec {shlex.join(cell.words())}",
        "sid_metrics": by_codes[0] if by_codes else None,
        "parameters": cost["parameters"],
        "flops": cost["flops"],
        "training_seconds": cost["seconds"],
        "wall_seconds": record.get("seconds"),
        "best_step": last["best_step"],
        "last_step": last["last_step"],
        "stopped": last["stopped"],
        "validations": cost["validations"],
        "validations_allowed": allowed_validations(run.recipe),
        "validation_cases": cost["validation_cases"],
        **{
            field: run.protocol.get(field)
            for field in ("selected_on", "history_cap", "decoder", "beam_width", "surrogate")
        },
        "machine": record.get("machine"),
    }


def allowed_validations(recipe: Mapping[str, Any]) -> int | None:
    """Validations that a recipe allows, patience aside; None where it does not say."""
    try:
        fits = [stage["fit"] for stage in recipe["stages"]]
        return sum(
            -(-fit["steps"] // fit["validate_every"]) for fit in fits if fit["validate_every"]
        )
    except (KeyError, TypeError):
        return None


def family(protocol: str) -> str:
    """The order of ties without its seed.

    >>> family("shuffle:3")
    'shuffle'
    """
    return protocol.partition(":")[0]


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds and tie seeds, one entry a data set, order of ties and method.

    Returns:
        "dataset", "family", "method", "kind"; "runs" behind the means, "seeds", "tie_seeds";
        "mean" and "deviation" of each metric (standard deviation of the sample, None for one run);
        "difference" and "difference_deviation" from the best baseline in the paired metrics, None
        for that baseline itself; "verdicts": {verdict: runs}; "verdict" where all runs agree, else
        "mixed".
    """
    groups: dict[tuple[str, str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = (row["dataset"], family(row["protocol"]), row["method"], row["kind"])
        groups.setdefault(key, []).append(row)
    found = []
    for (dataset, ties, method, kind), members in groups.items():
        names = [name for name in METRICS if all(name in row["metrics"] for row in members)]
        values = {name: [row["metrics"][name] for row in members] for name in names}
        gaps = {
            metric: [row["against"][metric]["difference"] for row in members]
            for metric in PAIRED
            if all("difference" in (row["against"][metric] or {}) for row in members)
        }
        verdicts = [row["verdict"] for row in members]
        found.append(
            {
                "dataset": dataset,
                "family": ties,
                "method": method,
                "kind": kind,
                "runs": len(members),
                "seeds": sorted({row["seed"] for row in members} - {None}),
                "tie_seeds": sorted(
                    {int(row["protocol"].partition(":")[2] or 0) for row in members}
                    if ties == "shuffle"
                    else ()
                ),
                "mean": {name: statistics.mean(each) for name, each in values.items()},
                "deviation": {name: deviation(each) for name, each in values.items()},
                "difference": {name: statistics.mean(each) for name, each in gaps.items()},
                "difference_deviation": {name: deviation(each) for name, each in gaps.items()},
                "verdicts": {str(word): verdicts.count(word) for word in dict.fromkeys(verdicts)},
                "verdict": verdicts[0] if len(set(verdicts)) == 1 else "mixed",
            }
        )
    return found


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation of the sample; None for a single value."""
    return statistics.stdev(values) if len(values) > 1 else None
