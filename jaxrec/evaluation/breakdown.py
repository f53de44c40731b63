"""Metrics by group of cases: by how long the history is, by how often training saw the target.

A mean over all cases hides for whom a method works. Cases are grouped by a whole number (the key),
and every bucket carries its own mean and bootstrap interval, for every method alike.

**The rule of the buckets** (`bucket_ends`). Key 0 is a bucket of its own, however small: it holds
empty histories, or items that training never saw ("cold"). The other buckets end at numbers of the
ladder 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, ...: from the smallest key upwards, a bucket
is closed at the first such number at which it holds a sixth of the cases and at least `FEW`. What
is left is the last bucket, which has no end; where it would be smaller than half of that, it joins
the one before.
Buckets follow from the keys alone, so runs on the same cases have the same buckets.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxrec.evaluation.metrics import per_case_metrics, per_user_means
from jaxrec.evaluation.significance import Interval, bootstrap_means

METRICS = ("recall@10", "ndcg@10")
"""What is broken down."""
FEW = 30
"""Buckets with fewer cases are flagged: their numbers say little."""
PARTS = 6
"""A bucket closes once it holds this part of the cases."""
HISTORY_LENGTH = "history length"
"""Events of the user before the target, all of them: not only those that the generator reads."""
TARGET_POPULARITY = "target popularity"
"""Training events of the target item; 0 is an item that training never saw."""

_STEPS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
_LADDER = tuple(int(s * 10**p) for p in range(12) for s in _STEPS if (s * 10**p).is_integer())
_ZERO = {HISTORY_LENGTH: "0 (empty)", TARGET_POPULARITY: "0 (cold)"}


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Cases whose key is `low .. high`."""

    label: str
    """For people: "0", "1-5", "101+"."""
    low: int
    high: int | None
    """The largest key, included; None in the last bucket, which has no end."""
    cases: int
    users: int
    """Users with a case here; equals `cases` where every user has one."""

    @property
    def few(self) -> bool:
        """Whether the bucket is too small to say much."""
        return self.cases < FEW


def bucket_ends(keys: Int[np.ndarray, "c"]) -> tuple[int, ...]:
    """The largest key of every bucket but the last, by the rule above.

    Raises:
        ValueError: a negative key.

    >>> bucket_ends(np.repeat([0, 3, 8, 40, 300], [2, 100, 100, 100, 100]))
    (0, 3, 10, 50)
    """
    if len(keys) and keys.min() < 0:
        raise ValueError(f"Keys of buckets are counts from 0, got {keys.min()}.")
    rest = np.sort(keys[keys > 0])
    least = max(len(rest) / PARTS, FEW)
    ends, taken = [], 0
    for end in _LADDER:
        upto = int(np.searchsorted(rest, end, side="right"))
        if upto == len(rest):
            break
        if upto - taken >= least:
            ends.append(end)
            taken = upto
    if ends and len(rest) - taken < least / 2:
        ends.pop()
    has_zero = len(rest) < len(keys)
    return (0, *ends) if has_zero and len(rest) else tuple(ends)


def make_buckets(
    keys: Int[np.ndarray, "c"],
    ends: Sequence[int],
    *,
    users: Int[np.ndarray, "c"] | None = None,
    zero: str = "0",
) -> tuple[list[Bucket], Int[np.ndarray, "c"]]:
    """The buckets, and which of them each case lies in.

    Args:
        keys: one count a case.
        ends: rising; bucket i ends at `ends[i]`, and one more follows that has no end.
        users: user of each case; None: every case is a user of its own.
        zero: label of a bucket that holds key 0 alone.

    Raises:
        ValueError: a negative key or end, or ends that do not rise.

    >>> buckets, bucket = make_buckets(np.array([0, 3, 60]), (0, 5))
    >>> [each.label for each in buckets], bucket.tolist()
    (['0', '1-5', '6+'], [0, 1, 2])
    """
    if any(b <= a for a, b in itertools.pairwise(ends)) or (ends and ends[0] < 0):
        raise ValueError(f"Ends of buckets are counts that rise, got {tuple(ends)}.")
    if len(keys) and keys.min() < 0:
        raise ValueError(f"Keys of buckets are counts from 0, got {keys.min()}.")
    bucket = np.searchsorted(np.asarray(ends, np.int64), keys, side="left").astype(np.int64)
    users = np.arange(len(keys)) if users is None else users
    # A lowest bucket without zeros starts at 1: "1-5", not "0-5".
    lowest = 0 if (keys == 0).any() or 0 in ends else 1
    lows = [lowest, *(end + 1 for end in ends)]
    highs = [*ends, None]
    buckets = []
    for number, (low, high) in enumerate(zip(lows, highs)):
        inside = bucket == number
        label = _label(low, high, zero if high == 0 else None)
        buckets.append(Bucket(label, low, high, int(inside.sum()), len(np.unique(users[inside]))))
    if len(keys) and not keys.any():
        buckets[-1] = dataclasses.replace(buckets[-1], label=zero)
    return buckets, bucket


def _label(low: int, high: int | None, name: str | None) -> str:
    if name is not None:
        return name
    if high is None:
        return f"{low:,}+"
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"


def break_down(
    ranks: Int[np.ndarray, "c"],
    keys: Int[np.ndarray, "c"],
    ends: Sequence[int],
    *,
    users: Int[np.ndarray, "c"] | None = None,
    metrics: Sequence[str] = METRICS,
    draws: int = 1000,
    seed: int,
) -> list[dict[str, Interval | None]]:
    """Means of a method's metrics in every bucket, with bootstrap intervals over users.

    Args:
        ranks: rank of every case, 0 where the target was not found.
        keys, ends, users: as `make_buckets`. Where users have several cases, those that lie in one
            bucket are averaged first.
        metrics: names such as "recall@10".
        draws: bootstrap resamples.
        seed: equal seeds, equal intervals.

    Returns:
        One mapping a bucket; the mean of a bucket without cases is None.

    Raises:
        ValueError: as `make_buckets`, or a metric that is not recall@K, ndcg@K or mrr@K.
    """
    buckets, bucket = make_buckets(keys, ends, users=users)
    values = _values(ranks, metrics)
    result: list[dict[str, Interval | None]] = []
    for number, each in enumerate(buckets):
        if not each.cases:
            result.append(dict.fromkeys(metrics))
            continue
        inside = bucket == number
        mine = {name: value[inside] for name, value in values.items()}
        if users is not None:
            mine = {name: per_user_means(value, users[inside]) for name, value in mine.items()}
        result.append({**bootstrap_means(mine, draws=draws, seed=seed)})
    return result


def _values(ranks: Int[np.ndarray, "c"], metrics: Sequence[str]) -> dict[str, np.ndarray]:
    cutoffs = [name.partition("@")[2] for name in metrics]
    if all(cutoff.isdecimal() and int(cutoff) for cutoff in cutoffs):
        known = per_case_metrics(ranks, tuple(sorted({int(cutoff) for cutoff in cutoffs})))
        if set(metrics) <= set(known):
            return {name: known[name] for name in metrics}
    raise ValueError(f"metrics={tuple(metrics)}; give names like recall@K, ndcg@K or mrr@K.")


def breakdown_entry(
    by: str,
    ranks: Mapping[str, Int[np.ndarray, "c"]],
    keys: Int[np.ndarray, "c"],
    *,
    seen_masked: bool,
    users: Int[np.ndarray, "c"] | None = None,
    level: str = "item",
    draws: int = 1000,
    seed: int,
) -> dict[str, Any]:
    """One entry of the report's "breakdowns" (its schema: `jaxrec.evaluation.report`).

    Args:
        by: what the keys count, `HISTORY_LENGTH` or `TARGET_POPULARITY`.
        ranks: of every method, on the same cases.
        keys: one count a case.
        seen_masked, level: of the ranks.
        users, draws, seed: as `break_down`.
    """
    ends = bucket_ends(keys)
    buckets, _ = make_buckets(keys, ends, users=users, zero=_ZERO.get(by, "0"))
    rows = []
    for method, mine in ranks.items():
        told = break_down(mine, keys, ends, users=users, draws=draws, seed=seed)
        metrics: dict[str, list[float | None]] = {}
        intervals: dict[str, list[list[float] | None]] = {}
        for name in METRICS:
            found = [bucket[name] for bucket in told]
            metrics[name] = [each.mean if each else None for each in found]
            intervals[name] = [[each.low, each.high] if each else None for each in found]
        rows.append({"method": method, "metrics": metrics, "intervals": intervals})
    return {
        "by": by,
        "level": level,
        "seen_masked": seen_masked,
        "buckets": [{**dataclasses.asdict(each), "few": each.few} for each in buckets],
        "rows": rows,
    }


_BUCKET_FIELDS: dict[str, Any] = {
    "label": str,
    "low": int,
    "high": (int, type(None)),
    "cases": int,
    "users": int,
    "few": bool,
}


def check_breakdowns(entries: Any) -> None:
    """Holds the "breakdowns" of a report against their schema.

    Raises:
        ValueError: what is wrong, and in which breakdown.
    """
    if not isinstance(entries, list):
        raise ValueError(f"'breakdowns' is a list, got {type(entries).__name__}.")
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("by"), str):
            raise ValueError("a breakdown is an object with 'by', 'buckets' and 'rows'.")
        name = f"breakdown by {entry['by']}"
        buckets, rows = entry.get("buckets"), entry.get("rows")
        if not isinstance(buckets, list) or not buckets or not isinstance(rows, list):
            raise ValueError(f"{name}: it needs 'buckets' (at least one) and 'rows'.")
        if not isinstance(entry.get("level"), str) or not isinstance(
            entry.get("seen_masked"), bool
        ):
            raise ValueError(f"{name}: 'level' or 'seen_masked' is missing.")
        for bucket in buckets:
            for field, kind in _BUCKET_FIELDS.items():
                if (
                    not isinstance(bucket, dict)
                    or field not in bucket
                    or not isinstance(bucket[field], kind)
                ):
                    raise ValueError(f"{name}: a bucket lacks {field!r}, or it is not allowed.")
        for row in rows:
            _check_row(name, row, buckets)


def _check_row(name: str, row: Any, buckets: list[dict[str, Any]]) -> None:
    if not isinstance(row, dict) or not isinstance(row.get("method"), str):
        raise ValueError(f"{name}: a row has no 'method'.")
    name = f"{name}, {row['method']}"
    metrics, intervals = row.get("metrics"), row.get("intervals")
    if not isinstance(metrics, dict) or not isinstance(intervals, dict) or not metrics:
        raise ValueError(f"{name}: 'metrics' and 'intervals' are objects, with a metric at least.")
    if set(metrics) != set(intervals):
        raise ValueError(f"{name}: every metric has its intervals, and no other stands there.")
    for metric, means in metrics.items():
        ends = intervals[metric]
        for values in (means, ends):
            if not isinstance(values, list) or len(values) != len(buckets):
                raise ValueError(f"{name}: {metric} needs one entry a bucket ({len(buckets)}).")
        for bucket, mean, pair in zip(buckets, means, ends):
            wanted = [mean, *pair] if isinstance(pair, list) else [mean, pair]
            whole = len(wanted) == 3 and all(_finite(number) for number in wanted)
            if not (whole if bucket["cases"] else mean is None and pair is None):
                raise ValueError(f"{name}: {metric} of bucket {bucket['label']} is not allowed.")


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
