"""Paired significance inside a group of rows that were judged on the same cases.

Every row is compared with one of them: bootstrap interval of the paired difference over users,
p-value of random sign flips, and Holm's correction of the p-values for how many rows were compared.
That one is the best of all, which was chosen by the same numbers and is flattered; or the best
baseline, chosen likewise, which makes it as hard a bar as the table holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxrec.evaluation.methods import is_generator
from jaxrec.evaluation.ranks import CaseRanks
from jaxrec.evaluation.report import compare_ranks

AGAINST = ("baseline", "best")
"""What the rows of a group are paired with: the best baseline, or the best row of all."""


def row_label(row: Mapping[str, Any], group_runs: Sequence[str]) -> str:
    """A method and its run: "generator of small"; a baseline that all runs share is its name."""
    if len(group_runs) > 1 and list(row["runs"]) == list(group_runs):
        return row["method"]
    return f"{row['method']} of {', '.join(row['runs'])}"


def pair_rows(
    rows: Sequence[Mapping[str, Any]],
    ranks: Mapping[str, CaseRanks | None],
    *,
    metric: str,
    level: str,
    seen_masked: bool,
    against: str = "baseline",
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Every row against the best baseline, or the best of all, on the same cases.

    Args:
        rows: of one group, level and masking: "method", "runs", "metrics" of each.
        ranks: what each run of the group kept, all of the same cases in the same order.
        metric: recall@K, ndcg@K or mrr@K.
        level, seen_masked: of the rows.
        against: one of `AGAINST`.
        draws, seed: of the paired bootstrap.

    Returns:
        "metric", "level", "seen_masked", "rule" (`against`), "best": the label of the row that the
        others are paired with; "against": the fields of `report.Comparison` and "p_holm" for each
        other row; "reason": why nothing is paired, or None.

    Raises:
        ValueError: `against` is none of `AGAINST`.
    """
    if against not in AGAINST:
        raise ValueError(f"against={against!r}; choose one of {', '.join(AGAINST)}.")
    entry: dict[str, Any] = {
        "metric": metric, "level": level, "seen_masked": seen_masked, "rule": against,
        "best": None, "against": [], "reason": None,
    }  # fmt: skip
    if missing := [name for name, each in ranks.items() if each is None]:
        entry["reason"] = f"{', '.join(missing)} kept no ranks; `jaxrec evaluate RUN` writes them"
        return entry
    kept = {name: each for name, each in ranks.items() if each is not None}
    told = _with_ranks(rows, kept, metric, level, seen_masked)
    if len(told) < 2:
        entry["reason"] = "fewer than two methods have ranks"
        return entry
    able = [each for each in told if against == "best" or not is_generator(each[0]["method"])]
    if not able:
        entry["reason"] = "no row is a baseline"
        return entry
    best, entry["best"], best_ranks = max(able, key=lambda each: each[0]["metrics"][metric])
    users = next(iter(kept.values())).user
    common: dict[str, Any] = {"seen_masked": seen_masked, "level": level, "metric": metric}
    common |= {"users": users, "draws": draws, "seed": seed}
    compared = [
        compare_ranks(label, mine, entry["best"], best_ranks, **common)
        for row, label, mine in told
        if row is not best
    ]
    corrected = holm([each.p_value for each in compared])
    entry["against"] = [
        {**dataclasses.asdict(each), "p_holm": p} for each, p in zip(compared, corrected)
    ]
    return entry


def _with_ranks(
    rows: Sequence[Mapping[str, Any]],
    ranks: Mapping[str, CaseRanks],
    metric: str,
    level: str,
    seen_masked: bool,
) -> list[tuple[Mapping[str, Any], str, Int[np.ndarray, "c"]]]:
    """(row, its label, its ranks) of the rows that have the metric and ranks."""
    found = []
    for row in rows:
        mine = ranks[row["runs"][0]].of(row["method"], level, seen_masked)
        if mine is not None and metric in row["metrics"]:
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
