"""Runs side by side, and honestly: what was judged by different rules is never ranked together.

Two numbers may be ranked together when everything that moves a ranking metric was the same: data,
filters, split, order of ties, candidates, masking, level, history cap, decoder and beam
(`BINDING`), and the test cases themselves. Such runs form a group, named A, B, ... The seed, what
chose the checkpoint and surrogates may differ inside a group; they are printed.

Inside a group every method is compared with one of them on the same cases (`compare_pairs`): with
the best baseline, or with the best of all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrec.evaluation.compare_costs import cost_of
from jaxrec.evaluation.compare_pairs import AGAINST, pair_rows
from jaxrec.evaluation.methods import kind_of
from jaxrec.evaluation.ranks import CaseRanks

METRICS = ("recall@10", "ndcg@10")
"""What is compared unless asked otherwise; methods are ranked by the first."""

BINDING = (
    "dataset", "num_users", "num_items", "num_events", "num_cases", "min_user", "min_item", "split",
    "part", "tie_policy", "candidates", "seen_masked", "level", "fit_on", "history_cap", "decoder",
    "beam_width",
)  # fmt: skip
"""Fields of the protocol that must agree before two runs may be ranked together."""

ANSWERING = ("history_cap", "decoder", "beam_width")
"""Rules where models are compared; choices of the system where whole systems are."""

TASK = tuple(field for field in BINDING if field not in ANSWERING)
"""What must agree before two systems, each with its own way to read and to answer, are ranked."""

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
    runs: Sequence[RunResult],
    *,
    metrics: Sequence[str] = METRICS,
    against: str = "baseline",
    binding: Sequence[str] = BINDING,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The whole comparison, ready for JSON.

    Args:
        runs: at least two, with different names.
        metrics: recall@K, ndcg@K or mrr@K for the first, which ranks; any of the reports for the
            others.
        against: what the others of a group are paired with: "baseline", the best of the rows that
            are no trained semantic-ID generators, or "best", the best of all.
        binding: fields of the protocol that make a group: `BINDING`, or `TASK`.
        draws, seed: of the paired bootstrap.

    Returns:
        "metrics"; "groups": name, "runs", "protocol", what "differs" inside ("seed": {run: value});
        "differences" between the groups (field: {group: value}); "rows": group, level, masking,
        method, "kind" (`methods.kind_of`), "runs" (several for a baseline that all of them
        have with equal numbers), "metrics", "intervals", "place" by the first metric (null where
        the row lacks it), "seconds" (one a run); "paired": per group the "best" row (of all, or of
        the baselines where that is the "rule") and how every other stands against it, or the
        "reason" why nothing is paired; "recipes": fields that differ ({field: {run: value}});
        "costs": of training, per run (`compare_costs.cost_of`).

    Raises:
        ValueError: fewer than two runs, equal names, a metric that no run has, or an unknown rule.
    """
    names = [run.name for run in runs]
    if len(runs) < 2:
        raise ValueError(f"a comparison needs at least two runs, got {len(runs)}.")
    if len(set(names)) < len(names):
        raise ValueError(f"runs need different names, got {', '.join(names)}.")
    _check_metrics(runs, metrics)
    if against not in AGAINST:
        raise ValueError(f"against={against!r}; choose one of {', '.join(AGAINST)}.")
    groups = group_runs(runs, binding)
    rows = [row for name, members in groups.items() for row in group_rows(name, members, metrics)]
    noted = (*NOTED, *(field for field in BINDING if field not in binding))
    pairing: dict[str, Any] = {
        "metric": metrics[0], "against": against, "draws": draws, "seed": seed
    }  # fmt: skip
    return {
        "metrics": list(metrics),
        "groups": [
            {
                "name": name,
                "runs": [run.name for run in members],
                "protocol": dict(members[0].protocol),
                "differs": _differing({run.name: run.protocol for run in members}, noted),
            }
            for name, members in groups.items()
        ],
        "differences": _between(groups, binding),
        "rows": rows,
        "paired": [pair_group(name, members, rows, **pairing) for name, members in groups.items()],
        "recipes": recipe_differences({run.name: run.recipe for run in runs}),
        "costs": {run.name: cost_of(run.report) for run in runs},
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


def group_runs(
    runs: Sequence[RunResult], binding: Sequence[str] = BINDING
) -> dict[str, list[RunResult]]:
    """Runs that may be ranked together: groups A, B, ... in the order of their first run.

    A run whose cases are not known joins the first group of its protocol.
    """
    groups: list[list[RunResult]] = []
    for run in runs:
        for members in groups:
            same = all(
                run.protocol.get(field) == members[0].protocol.get(field) for field in binding
            )
            known = {each.cases for each in (*members, run)} - {None}
            if same and len(known) <= 1:
                members.append(run)
                break
        else:
            groups.append([run])
    return {_letter(number): members for number, members in enumerate(groups)}


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


def _between(
    groups: Mapping[str, Sequence[RunResult]], binding: Sequence[str]
) -> dict[str, dict[str, Any]]:
    found = _differing({name: runs[0].protocol for name, runs in groups.items()}, binding)
    cases = {name: _cases(runs) for name, runs in groups.items()}
    if len(groups) > 1 and len({each for each in cases.values() if each}) > 1:
        found[CASES] = {name: (each or "not known")[:12] for name, each in cases.items()}
    return found


def _cases(runs: Sequence[RunResult]) -> str | None:
    return next((run.cases for run in runs if run.cases), None)


def group_rows(
    group: str, runs: Sequence[RunResult], metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """The rows of a group with their places; equal baselines of several runs become one row.

    Each row is told as in `compare_runs`.
    """
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
                    "kind": kind_of(row["method"], run.generators),
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


def pair_group(
    name: str,
    runs: Sequence[RunResult],
    rows: Sequence[Mapping[str, Any]],
    *,
    metric: str,
    against: str = "baseline",
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The rows of a group's headline against the best of them, or the best baseline.

    Args:
        name, runs, rows: the group, its runs, and rows of `group_rows` (of any group).
        metric: recall@K, ndcg@K or mrr@K; it chooses the row that the others are paired with.
        against, draws, seed: as `compare_runs`.
    """
    protocol = runs[0].protocol
    level, masked = protocol["level"], protocol["seen_masked"]
    headline = [
        row
        for row in rows
        if (row["group"], row["level"], row["seen_masked"]) == (name, level, masked)
    ]
    ranks = {run.name: run.ranks for run in runs}
    common: dict[str, Any] = {"level": level, "seen_masked": masked, "draws": draws, "seed": seed}
    paired = pair_rows(headline, ranks, metric=metric, against=against, **common)
    return {"group": name} | paired
