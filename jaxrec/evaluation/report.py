"""`report.json`: every method under one protocol, one row a method, level and masking.

The file is a contract for machines:

    {"protocol": {...},
     "rows": [{"method", "level": "item"|"sid", "split", "tie_policy", "seen_masked", "seed",
               "metrics": {"recall@10": ..., ...}, "intervals": {"recall@10": [low, high], ...},
               "seconds"}, ...],
     "comparisons": [{"method", "baseline", "metric", "level", "seen_masked", "difference", "low",
                      "high", "confidence", "p_value", "verdict"}, ...],
     "breakdowns": [{"by": "history length"|"target popularity", "level", "seen_masked",
                     "buckets": [{"label": "6-10", "low": 6, "high": 10, "cases", "users", "few"},
                                 ...],
                     "rows": [{"method", "metrics": {"recall@10": [...], ...},
                               "intervals": {"recall@10": [[low, high], ...], ...}}, ...]}, ...],
     "ranks": {"file": "ranks.npz", "cases": SHA-256, "fingerprint": SHA-256}, ...}

A bucket holds the cases whose key is low .. high, both included; "high" is null in the last one,
which has no end. Arrays of a breakdown have one entry a bucket, null where it has no case; "few"
marks buckets too small to say much (`jaxrec.evaluation.breakdown`). "ranks" names the file of all
ranks (`jaxrec.evaluation.ranks`). "comparisons", "breakdowns" and "ranks" may be absent.

Times stand under "seconds" only, so two runs of one recipe differ nowhere else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxrec.evaluation.breakdown import check_breakdowns
from jaxrec.evaluation.metrics import CUTOFFS, per_case_metrics, per_user_means
from jaxrec.evaluation.protocol import LEVELS, Protocol
from jaxrec.evaluation.significance import bootstrap_means, paired_difference
from jaxrec.files import read_json, write_json

FILE = "report.json"
VERDICTS = ("ahead", "behind", "undecided")
HEADLINE = "recall@10"
"""The metric of the verdict."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The numbers of one method.

    Raises:
        ValueError: an unknown level, no metric, or a number that is not finite.
    """

    method: str
    level: str
    split: str
    tie_policy: str
    seen_masked: bool
    seed: int
    metrics: Mapping[str, float]
    seconds: float
    intervals: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    """Low and high end of the 95 % interval of a metric, where one was computed."""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"Row {self.method!r}: level={self.level!r}; choose one of {LEVELS}.")
        if not self.metrics:
            raise ValueError(f"Row {self.method!r} has no metric.")
        numbers = [*self.metrics.values(), self.seconds]
        numbers += [end for ends in self.intervals.values() for end in ends]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"Row {self.method!r} holds a number that is not finite.")
        if stray := set(self.intervals) - set(self.metrics):
            raise ValueError(f"Row {self.method!r}: intervals without metrics: {sorted(stray)}.")

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return {
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
            "metrics": {name: float(value) for name, value in self.metrics.items()},
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far `method` is ahead of `baseline` in one metric, on the same users."""

    method: str
    baseline: str
    metric: str
    level: str
    seen_masked: bool
    difference: float
    low: float
    high: float
    confidence: float
    """0.95 for a 95 % interval `low` .. `high`."""
    p_value: float
    verdict: str
    """One of "ahead", "behind", and "undecided" when the interval holds zero."""


def row_from_ranks(
    method: str,
    ranks: Int[np.ndarray, "c"],
    protocol: Protocol,
    *,
    seen_masked: bool,
    seconds: float,
    level: str = "item",
    cutoffs: Sequence[int] = CUTOFFS,
    users: Int[np.ndarray, "c"] | None = None,
    more_metrics: Mapping[str, float] | None = None,
    draws: int = 1000,
) -> Row:
    """A row with bootstrap intervals, from the rank of every case (0: not found).

    Args:
        method: name to print.
        ranks: one a case.
        protocol: gives split, tie policy and seed.
        seen_masked: whether these ranks leave out items of the history.
        seconds: time the method took.
        level: "item" or "sid".
        cutoffs: K of the metrics.
        users: user of each case, where users have several: the numbers are then means over users.
        more_metrics: numbers without interval, such as `metrics.list_metrics`.
        draws: bootstrap resamples.
    """
    values = _user_values(ranks, cutoffs, users)
    intervals = bootstrap_means(values, draws=draws, seed=protocol.seed)
    return Row(
        method=method,
        level=level,
        split=protocol.split,
        tie_policy=protocol.tie_policy,
        seen_masked=seen_masked,
        seed=protocol.seed,
        metrics={n: i.mean for n, i in intervals.items()} | dict(more_metrics or {}),
        seconds=seconds,
        intervals={name: (interval.low, interval.high) for name, interval in intervals.items()},
    )


def compare_ranks(
    method: str,
    ranks: Int[np.ndarray, "c"],
    baseline: str,
    baseline_ranks: Int[np.ndarray, "c"],
    *,
    seen_masked: bool,
    seed: int,
    metric: str = HEADLINE,
    level: str = "item",
    users: Int[np.ndarray, "c"] | None = None,
    draws: int = 1000,
) -> Comparison:
    """Paired comparison of two methods on the same cases.

    Args: as `row_from_ranks`; both arrays of ranks hold the same cases in the same order.

    Raises:
        ValueError: different numbers of cases, or a metric that is not `name@K`.
    """
    name, _, cutoff = metric.partition("@")
    if name not in ("recall", "ndcg", "mrr") or not cutoff.isdecimal():
        raise ValueError(f"metric={metric!r}; give recall@K, ndcg@K or mrr@K.")
    ours = _user_values(ranks, (int(cutoff),), users)[metric]
    theirs = _user_values(baseline_ranks, (int(cutoff),), users)[metric]
    paired = paired_difference(ours, theirs, draws=draws, seed=seed)
    return Comparison(
        method=method,
        baseline=baseline,
        metric=metric,
        level=level,
        seen_masked=seen_masked,
        difference=paired.difference,
        low=paired.low,
        high=paired.high,
        confidence=paired.level,
        p_value=paired.p_value,
        verdict=paired.verdict,
    )


def _user_values(ranks, cutoffs, users) -> dict[str, np.ndarray]:
    values = per_case_metrics(ranks, cutoffs)
    if users is None:
        return values
    return {name: per_user_means(value, users) for name, value in values.items()}


def write_report(
    folder: Path | str,
    protocol: Protocol,
    rows: Sequence[Row],
    extra: Mapping[str, Any] | None = None,
    *,
    comparisons: Sequence[Comparison] = (),
    breakdowns: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Writes `report.json` into a folder, atomically, and returns its path.

    Args:
        folder: of the run.
        protocol: what all rows share.
        rows: at least one.
        extra: more top-level entries for the file (anything JSON holds).
        comparisons: of the generator with the baselines; they make the verdict.
        breakdowns: metrics by group of cases (`breakdown.breakdown_entry`).

    Raises:
        ValueError: no row, an entry of `extra` that names a part of the contract, or NaN.
    """
    parts = {
        "protocol": protocol.to_dict(),
        "rows": [row.to_dict() for row in rows],
        "comparisons": [dataclasses.asdict(comparison) for comparison in comparisons],
        "breakdowns": [dict(entry) for entry in breakdowns],
    }
    if taken := set(parts) & set(extra or {}):
        raise ValueError(f"extra may not replace {sorted(taken)}; use other names.")
    content = parts | dict(extra or {})
    _check(content, FILE)
    path = Path(folder) / FILE
    write_json(path, content)
    return path


def read_report(folder: Path | str) -> dict[str, Any]:
    """Reads and checks the `report.json` of a folder (or the file itself).

    Raises:
        ValueError: it is missing, not JSON, or breaks the contract; the message names it.
    """
    path = Path(folder)
    path = path / FILE if path.is_dir() else path
    content = read_json(path)
    _check(content, str(path))
    return content


def headline(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The comparisons that the verdict speaks about: in `HEADLINE`, at the level and masking of the
    protocol, of the first method compared."""
    protocol = report["protocol"]
    key = (HEADLINE, protocol["level"], protocol["seen_masked"])
    told = [
        c
        for c in report.get("comparisons", [])
        if (c["metric"], c["level"], c["seen_masked"]) == key
    ]
    return [c for c in told if c["method"] == told[0]["method"]]


def verdict(report: Mapping[str, Any]) -> str:
    """How the generator stands against the baselines, in one plain sentence.

    Losing is called losing.
    """
    told = headline(report)
    if not told:
        return "No generator was compared with the baselines here."
    key = (told[0]["level"], told[0]["seen_masked"])
    value = {
        row["method"]: row["metrics"].get(HEADLINE)
        for row in report["rows"]
        if (row["level"], row["seen_masked"]) == key
    }
    method = told[0]["method"]
    clauses = [_clause(c, value.get(c["baseline"])) for c in told]
    own = value.get(method)
    start = f"{method} has Recall@10 {own:.4f}" if own is not None else f"{method} in Recall@10"
    listed = ", ".join(clauses[:-1]) + ", and " if len(clauses) > 1 else ""
    return f"{start}: it {listed}{clauses[-1]}."


def _clause(comparison: Mapping[str, Any], value: float | None) -> str:
    words = {
        "ahead": "is ahead of",
        "behind": "loses to",
        "undecided": "cannot be told apart from",
    }[comparison["verdict"]]
    reached = f"{value:.4f}; " if value is not None else ""
    return (
        f"{words} {comparison['baseline']} ({reached}difference {comparison['difference']:+.4f}, "
        f"{100 * comparison['confidence']:g} % interval {comparison['low']:+.4f} to "
        f"{comparison['high']:+.4f})"
    )


def text_table(
    report: Mapping[str, Any],
    metrics: Sequence[str] = ("recall@5", "ndcg@5", "recall@10", "ndcg@10"),
) -> str:
    """The rows as a table for a terminal, preceded by the verdict.

    Columns are `metrics`; a metric that a row lacks is a dash.
    """
    header = ["method", "level", "seen items", *metrics, "seconds"]
    lines = [header]
    for row in report["rows"]:
        numbers = [row["metrics"].get(name) for name in metrics]
        masked = "masked" if row["seen_masked"] else "kept"
        cells = [row["method"], row["level"], masked]
        cells += ["-" if number is None else f"{number:.4f}" for number in numbers]
        lines.append([*cells, f"{row['seconds']:.1f}"])
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    table = [
        "  ".join(
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([verdict(report), "", *table])


_ROW_FIELDS = {
    "method": str,
    "level": str,
    "split": str,
    "tie_policy": str,
    "seen_masked": bool,
    "seed": int,
    "metrics": dict,
    "seconds": (int, float),
}


def _check(content: Any, where: str) -> None:
    """Holds a report against the contract."""
    if not isinstance(content, dict) or not {"protocol", "rows"} <= set(content):
        raise ValueError(f"{where}: a report is an object with 'protocol' and 'rows'.")
    if not isinstance(content["rows"], list) or not content["rows"]:
        raise ValueError(f"{where}: 'rows' must be a list of at least one row.")
    try:
        Protocol.from_dict(content["protocol"])
        for row in content["rows"]:
            _check_row(row)
        for comparison in content.get("comparisons", []):
            _check_comparison(comparison)
        check_breakdowns(content.get("breakdowns", []))
        _check_ranks(content.get("ranks"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {str(error)[:1000]}") from None


def _check_comparison(content: Any) -> None:
    kinds = {"str": str, "bool": bool, "float": (int, float)}
    for field in dataclasses.fields(Comparison(**content)):
        if not isinstance(content[field.name], kinds[str(field.type)]):
            raise ValueError(
                f"a comparison has {field.name}={content[field.name]!r}, which is not allowed."
            )
    if content["verdict"] not in VERDICTS:
        raise ValueError(f"a comparison is {content['verdict']!r}; it is one of {VERDICTS}.")


def _check_ranks(entry: Any) -> None:
    if entry is None:
        return
    names = ("file", "cases", "fingerprint")
    if not isinstance(entry, dict) or not all(isinstance(entry.get(n), str) for n in names):
        raise ValueError(f"'ranks' is an object with the texts {', '.join(names)}.")


def _check_row(row: Any) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"a row is an object, got {type(row).__name__}.")
    for name, kind in _ROW_FIELDS.items():
        if not isinstance(row.get(name), kind):
            raise ValueError(f"row {row.get('method')!r}: {name}={row.get(name)!r} is not allowed.")
    intervals = {name: tuple(ends) for name, ends in row.get("intervals", {}).items()}
    fields: dict[str, Any] = {**row, "intervals": intervals}
    Row(**fields)
