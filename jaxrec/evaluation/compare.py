"""Runs side by side, and honestly: what was judged by different rules is never ranked together.

Two numbers may be ranked together when everything that moves a ranking metric was the same: data,
filters, split, order of ties, candidates, masking, level, history cap, decoder and beam
(`BINDING`), and the test cases themselves. Such runs form a group, named A, B, ... The seed, what
chose the checkpoint and surrogates may differ inside a group; they are printed.

Inside a group every method is compared with the best one on the same cases: bootstrap interval of
the paired difference, p-value of random sign flips, and Holm's correction of the p-values for how
many methods were compared. The best was chosen by the same numbers, so the comparison flatters it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxrec.evaluation.figures import is_number
from jaxrec.evaluation.ranks import CaseRanks
from jaxrec.evaluation.report import compare_ranks

METRICS = ("recall@10", "ndcg@10")
"""What is compared unless asked otherwise; methods are ranked by the first."""

BINDING = (
    "dataset", "num_users", "num_items", "num_events", "num_cases", "min_user", "min_item", "split",
    "part", "tie_policy", "candidates", "seen_masked", "level", "fit_on", "history_cap", "decoder",
    "beam_width",
)  # fmt: skip
"""Fields of the protocol that must agree before two runs may be ranked together."""

NOTED = ("seed", "selected_on", "surrogate")
"""Fields that are printed where they differ, and forbid nothing."""

CASES = "test cases"
"""Named among the differences where the protocols agree and the cases do not."""


@dataclasses.dataclass(frozen=True, eq=False)
class RunResult:
    """What a finished run says about itself."""

    name: str
    """Unique among the runs compared."""
    report: Mapping[str, Any]
    """Content of report.json."""
    recipe: Mapping[str, Any]
    """Content of recipe.json."""
    ranks: CaseRanks | None
    """None where the run was judged before ranks were kept."""

    @property
    def protocol(self) -> Mapping[str, Any]:
        """What it was judged under."""
        return self.report["protocol"]

    @property
    def cases(self) -> str | None:
        """Fingerprint of the test cases, None where it is not known."""
        return self.ranks.cases if self.ranks else None

    @property
    def generators(self) -> set[str]:
        """Methods that the run trained; its other rows are baselines."""
        return {comparison["method"] for comparison in self.report.get("comparisons", ())}


def compare_runs(
    runs: Sequence[RunResult], *, metrics: Sequence[str] = METRICS, draws: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """The whole comparison, ready for JSON.

    Args:
        runs: at least two, with different names.
        metrics: recall@K, ndcg@K or mrr@K for the first, which ranks; any of the reports for the
            others.
        draws, seed: of the paired bootstrap.

    Returns:
        "metrics"; "groups": name, "runs", "protocol", what "differs" inside ("seed": {run: value});
        "differences" between the groups (field: {group: value}); "rows": group, level, masking,
        method, "runs" (several for a baseline that all of them have with equal numbers), "metrics",
        "intervals", "place" by the first metric (null where the row lacks it), "seconds" (one a
        run); "paired": per group the "best" row and how every other stands against it, or the
        "reason" why nothing is paired; "recipes": fields that differ ({field: {run: value}});
        "costs": "parameters", "steps", "seconds" of training, per run.

    Raises:
        ValueError: fewer than two runs, equal names, or a metric that no run has.
    """
    names = [run.name for run in runs]
    if len(runs) < 2:
        raise ValueError(f"a comparison needs at least two runs, got {len(runs)}.")
    if len(set(names)) < len(names):
        raise ValueError(f"runs need different names, got {', '.join(names)}.")
    _check_metrics(runs, metrics)
    groups = group_runs(runs)
    rows = [row for name, members in groups.items() for row in _rows(name, members, metrics)]
    return {
        "metrics": list(metrics),
        "groups": [
            {
                "name": name,
                "runs": [run.name for run in members],
                "protocol": dict(members[0].protocol),
                "differs": _differing({run.name: run.protocol for run in members}, NOTED),
            }
            for name, members in groups.items()
        ],
        "differences": _between(groups),
        "rows": rows,
        "paired": [
            _pair(name, members, rows, metrics[0], draws, seed) for name, members in groups.items()
        ],
        "recipes": recipe_differences({run.name: run.recipe for run in runs}),
        "costs": {run.name: _cost(run) for run in runs},
    }


def _check_metrics(runs: Sequence[RunResult], metrics: Sequence[str]) -> None:
    known = {name for run in runs for row in run.report["rows"] for name in row["metrics"]}
    if unknown := [name for name in metrics if name not in known]:
        raise ValueError(
            f"no run has the metric(s) {', '.join(unknown)}; choose from "
            f"{', '.join(sorted(known))}."
        )
    if not metrics or metrics[0].partition("@")[0] not in ("recall", "ndcg", "mrr"):
        raise ValueError(
            f"the first metric ranks and pairs the methods, so it is recall@K, ndcg@K or mrr@K; "
            f"got {', '.join(metrics) or 'none'}."
        )


def group_runs(runs: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    """Runs that may be ranked together: groups A, B, ... in the order of their first run.

    A run whose cases are not known joins the first group of its protocol.
    """
    groups: list[list[RunResult]] = []
    for run in runs:
        for members in groups:
            same = _binding(run) == _binding(members[0])
            known = {each.cases for each in (*members, run)} - {None}
            if same and len(known) <= 1:
                members.append(run)
                break
        else:
            groups.append([run])
    return {_letter(number): members for number, members in enumerate(groups)}


def _binding(run: RunResult) -> list[Any]:
    return [run.protocol.get(field) for field in BINDING]


def _letter(number: int) -> str:
    """A, ..., Z, AA, AB, ...

    >>> [_letter(n) for n in (0, 25, 26, 27)]
    ['A', 'Z', 'AA', 'AB']
    """
    letters = ""
    while number >= 0:
        letters = chr(65 + number % 26) + letters
        number = number // 26 - 1
    return letters


def _differing(
    values: Mapping[str, Mapping[str, Any]], fields: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Fields whose value is not the same everywhere: {field: {name: value}}."""
    found = {}
    for field in fields:
        here = {name: mapping.get(field) for name, mapping in values.items()}
        if any(value != next(iter(here.values())) for value in here.values()):
            found[field] = here
    return found


def _between(groups: Mapping[str, Sequence[RunResult]]) -> dict[str, dict[str, Any]]:
    found = _differing({name: runs[0].protocol for name, runs in groups.items()}, BINDING)
    cases = {name: _cases(runs) for name, runs in groups.items()}
    if len(groups) > 1 and len({each for each in cases.values() if each}) > 1:
        found[CASES] = {name: (each or "not known")[:12] for name, each in cases.items()}
    return found


def _cases(runs: Sequence[RunResult]) -> str | None:
    return next((run.cases for run in runs if run.cases), None)


def _rows(group: str, runs: Sequence[RunResult], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a group with their places; equal baselines of several runs become one row."""
    found: dict[tuple, dict[str, Any]] = {}
    for run in runs:
        for row in run.report["rows"]:
            told = {name: row["metrics"][name] for name in metrics if name in row["metrics"]}
            key = (row["level"], row["seen_masked"], row["method"], tuple(told.items()))
            if row["method"] in run.generators:
                key = (*key, run.name)
            intervals = row.get("intervals", {})
            entry = found.setdefault(
                key,
                {
                    "group": group,
                    "level": row["level"],
                    "seen_masked": row["seen_masked"],
                    "method": row["method"],
                    "runs": [],
                    "metrics": told,
                    "intervals": {name: intervals[name] for name in told if name in intervals},
                    "place": None,
                    "seconds": [],
                },
            )
            entry["runs"].append(run.name)
            entry["seconds"].append(row["seconds"])
    rows = sorted(found.values(), key=lambda row: (row["level"], not row["seen_masked"]))
    for row in rows:
        row["place"] = _place(row, rows, metrics[0])
    return rows


def _place(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], metric: str) -> int | None:
    """1 + rows of the same level and masking that are better; equal numbers share a place."""
    if metric not in row["metrics"]:
        return None
    key = (row["level"], row["seen_masked"])
    return 1 + sum(
        other["metrics"].get(metric, -1) > row["metrics"][metric]
        for other in rows
        if (other["level"], other["seen_masked"]) == key
    )


def row_label(row: Mapping[str, Any], group_runs: Sequence[str]) -> str:
    """A method and its run: "generator of small"; a baseline that all runs share is its name."""
    if len(group_runs) > 1 and list(row["runs"]) == list(group_runs):
        return row["method"]
    return f"{row['method']} of {', '.join(row['runs'])}"


def _pair(
    name: str,
    runs: Sequence[RunResult],
    rows: Sequence[Mapping[str, Any]],
    metric: str,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """The rows of a group's headline against the best of them, on the same cases."""
    protocol = runs[0].protocol
    level, masked = protocol["level"], protocol["seen_masked"]
    entry: dict[str, Any] = {
        "group": name, "metric": metric, "level": level, "seen_masked": masked, "best": None,
        "against": [], "reason": None,
    }  # fmt: skip
    if missing := [run.name for run in runs if run.ranks is None]:
        entry["reason"] = f"{', '.join(missing)} kept no ranks; `jaxrec evaluate RUN` writes them"
        return entry
    headline = [
        row
        for row in rows
        if (row["group"], row["level"], row["seen_masked"]) == (name, level, masked)
    ]
    told = _with_ranks(headline, runs)
    if len(told) < 2:
        entry["reason"] = "fewer than two methods have ranks"
        return entry
    best, best_label, best_ranks = min(told, key=lambda each: each[0]["place"])
    users = runs[0].ranks.user if runs[0].ranks else None
    common: dict[str, Any] = {
        "seen_masked": masked,
        "level": level,
        "metric": metric,
        "users": users,
    }
    compared = [
        compare_ranks(label, mine, best_label, best_ranks, draws=draws, seed=seed, **common)
        for row, label, mine in told
        if row is not best
    ]
    corrected = holm([each.p_value for each in compared])
    entry["best"] = best_label
    entry["against"] = [
        {**dataclasses.asdict(each), "p_holm": p} for each, p in zip(compared, corrected)
    ]
    return entry


def _with_ranks(
    rows: Sequence[Mapping[str, Any]], runs: Sequence[RunResult]
) -> list[tuple[Mapping[str, Any], str, Int[np.ndarray, "c"]]]:
    """(row, its label, its ranks) of the rows that have a place and whose run kept ranks."""
    ranks = {run.name: run.ranks for run in runs}
    found = []
    for row in rows:
        kept = ranks[row["runs"][0]]
        mine = kept.of(row["method"], row["level"], row["seen_masked"]) if kept else None
        if mine is not None and row["place"] is not None:
            found.append((row, row_label(row, list(ranks)), mine))
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: p-values that stay honest when all of them are looked at.

    The i-th smallest of m (from 0) is multiplied by m - i, never below the one before, at most 1.
    From Holm 1979, "A simple sequentially rejective multiple test procedure".

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, least = [0.0] * len(p_values), 0.0
    for i, place in enumerate(order):
        least = min(1.0, max(least, p_values[place] * (len(p_values) - i)))
        corrected[place] = least
    return corrected


def recipe_differences(recipes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Fields in which recipes differ, by dotted path: {path: {run: value}}; None where a recipe
    has no such field. The name of the run is left out.

    >>> recipe_differences({"a": {"x": {"y": 1}}, "b": {"x": {"y": 2}}})
    {'x.y': {'a': 1, 'b': 2}}
    """
    flat = {name: _flatten(recipe) for name, recipe in recipes.items()}
    paths = dict.fromkeys(path for fields in flat.values() for path in fields)
    return _differing(flat, [path for path in paths if path != "name"])


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Leaves by dotted path; numbers pick elements of lists, and lists of plain values stay."""
    if isinstance(value, Mapping) and value:
        items = value.items()
    elif isinstance(value, list) and any(isinstance(each, (Mapping, list)) for each in value):
        items = enumerate(value)
    else:
        return {path: value}
    leaves: dict[str, Any] = {}
    for name, inside in items:
        leaves |= _flatten(inside, f"{path}.{name}" if path else str(name))
    return leaves


def _cost(run: RunResult) -> dict[str, Any]:
    """What training took, as far as the report says it."""
    training = run.report.get("training")
    training = training if isinstance(training, Mapping) else {}
    stages = training.get("stages")
    stages = [each for each in stages if isinstance(each, Mapping)] if stages else []

    def total(name: str) -> float:
        return sum((float(each[name]) for each in stages if is_number(each.get(name))), 0.0)

    return {
        "parameters": training.get("parameters"),
        "steps": int(total("last_step")),
        "seconds": round(total("seconds"), 1),
    }
