"""What a log is made of, in numbers: counts, histories, time, ties, repeats, cold items, text.

The numbers are those of the histories that the log makes (`histories.prepare`, nothing filtered):
where dataset.json declares `history_events`, other rows count only as rows, events and pages.
"""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from jaxrec.data.advice import advise
from jaxrec.data.dataset import DataError, DatasetFolder
from jaxrec.data.histories import Histories, prepare, same_time_ties
from jaxrec.data.pages import page_summary, prepare_pages
from jaxrec.data.splits import LeaveOneOut, training_items
from jaxrec.data.text_coverage import text_coverage

DECLARED = ("name", "source", "licence", "time_unit", "page_rule")
"""What is told as dataset.json has it."""
PERCENTILES = (5, 25, 75, 95, 99)
SMALLEST_HISTORY = 3
"""Events that leave-one-out needs: one to train, one to validate, one to test."""

_DECADE = (10, 16, 25, 40, 60)
"""Where bins begin in each power of ten: each is about 1.6 times as wide as the one before, for
uneven steps would draw teeth that the counts do not have."""
_FINEST_BINS = 20
_PERIODS = (("hour", "h", 3 * 24), ("day", "D", 100), ("month", "M", 240), ("year", "Y", 0))
"""Periods of time, their numpy units, and how many of them a histogram may have."""
_RESOLUTIONS = (("day", 86_400), ("hour", 3600), ("minute", 60))


def describe(dataset: DatasetFolder) -> dict[str, Any]:
    """Everything that a person should know about a log before using it, ready for JSON.

    Ids are replaced by numbers while the log streams, and only the numbers are held: a log of
    20 million events (400,000 users, 200,000 items, no pages) took 1.1 GiB.

    Returns:
        dataset: name, source, licence, time_unit, history_events, page_rule of dataset.json.
        counts: rows of the log, events of histories, users and items; density is the share of all
            pairs of a user and an item that have an event.
        history_length, events_per_item: min, median, mean, max, percentiles, histogram (bins from
            and to, both inside, with their count). Items: of those with events; also the Gini
            coefficient, and the shares of the events in the top 1 % and 10 % of the items.
        largest_user: id, events and share of the user with the most events.
        time: None for a log without a clock. First and last moment (UTC), span in days, the
            coarsest unit that holds all times, rows of each hour, day, month or year.
        ties: shares of users whose last event shares its time (`tied`), users whose last event a
            shuffle replaces (`changed_by_shuffle`), neighbours in a history at one time
            (`consecutive`), users of two events or more who have one time only (`one_time`).
        repeats: exact (rows beyond the first of the same user, item, time and kind), pairs (events
            beyond the first of a user with an item), consecutive (events with the same item as
            the one before), targets (share of leave-one-out's tests whose item the user had).
        cold: items without any row (`never_logged`), with events that are all the last of a history
            (`only_last`), with events that all validate or test under leave-one-out (`untrained`);
            share of its tests with such an item (`targets`); users too short for it
            (`short_users`).
        text: `text_coverage.text_coverage`.
        events: rows of each kind, weakest grade first; None without kinds.
        values: how many, min, mean and max of `value`; None without values.
        pages: None without pages; `pages.page_summary`, or {"error": why there is none}.
        advice: what a careful person would say, as texts (`advice.advise`).

    Raises:
        DataError: the log makes no histories.
    """
    manifest = dataset.manifest
    histories = prepare(dataset)
    per_item = np.bincount(histories.item, minlength=histories.num_items)
    repeats, pairs = _repeats(histories)
    numbers = {
        "dataset": {
            **{name: manifest.get(name, "") for name in DECLARED},
            "history_events": list(manifest.get("history_events", ())),
        },
        "counts": {
            "rows": manifest["counts"]["interactions"],
            "events": histories.num_events,
            "users": histories.num_users,
            "users_without_history": manifest["counts"]["users"] - histories.num_users,
            "items": histories.num_items,
            "items_with_events": int((per_item > 0).sum()),
            "density": pairs / (histories.num_users * histories.num_items),
        },
        "history_length": _spread(histories.lengths),
        "events_per_item": _spread(per_item[per_item > 0]) | _concentration(per_item[per_item > 0]),
        "largest_user": _largest_user(histories),
        "time": _time(dataset) if manifest["time_unit"] == "s" else None,
        "ties": _ties(histories),
        "repeats": repeats,
        "cold": _cold(dataset, histories, per_item),
        "text": text_coverage(dataset),
        "events": _events(dataset),
        "values": _values(dataset),
        "pages": _pages(dataset, histories),
    }
    return {**numbers, "advice": advise(numbers)}


def bin_edges(low: int, high: int) -> list[int]:
    """Beginnings of readable bins for counts in low..high, and one past the last bin.

    Few counts, or counts of one order of magnitude, get bins of one width, others bins that widen.

    >>> bin_edges(23, 89)
    [20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 85, 90]
    >>> bin_edges(4, 40)
    [4, 6, 10, 16, 25, 40, 60]
    """
    if high < 10 * low or high - low < _FINEST_BINS:
        widths = (step * 10**power for power in range(19) for step in (1, 2, 5))
        width = next(w for w in widths if high // w - low // w < _FINEST_BINS)
        return list(range(low // width * width, (high // width + 2) * width, width))
    edges = [0, 1, 2, 3, 4, 6, *(begin * 10**power for power in range(18) for begin in _DECADE)]
    first = max(place for place, edge in enumerate(edges) if edge <= low)
    last = next(place for place, edge in enumerate(edges) if edge > high)
    return edges[first : last + 1]


def _spread(values: Int64[np.ndarray, " n"]) -> dict[str, Any]:
    """How counts are spread; `values` has at least one element."""
    edges = bin_edges(int(values.min()), int(values.max()))
    found, _ = np.histogram(values, np.asarray(edges) - 0.5)
    points = np.percentile(values, PERCENTILES, method="inverted_cdf")
    return {
        "min": int(values.min()),
        "median": float(np.median(values)),
        "mean": float(values.mean()),
        "max": int(values.max()),
        "percentiles": {str(name): int(point) for name, point in zip(PERCENTILES, points)},
        "histogram": [
            {"from": low, "to": end - 1, "count": int(count)}
            for low, end, count in zip(edges, edges[1:], found)
        ],
    }


def _concentration(values: Int64[np.ndarray, " n"]) -> dict[str, float]:
    """Gini coefficient, and shares of the most frequent; at least one item counts as the top."""
    rising, size, total = np.sort(values), len(values), int(values.sum())
    weighted = float((rising * np.arange(1, size + 1)).sum())
    return {
        "gini": 2 * weighted / (size * total) - (size + 1) / size,
        "top_1_percent": int(rising[size - max(1, -(-size // 100)) :].sum()) / total,
        "top_10_percent": int(rising[size - max(1, -(-size // 10)) :].sum()) / total,
    }


def _largest_user(histories: Histories) -> dict[str, Any]:
    user = int(histories.lengths.argmax())
    events = int(histories.lengths[user])
    return {
        "user": str(histories.users[user]),
        "events": events,
        "share": events / histories.num_events,
    }


def _time(dataset: DatasetFolder) -> dict[str, Any]:
    import polars as pl

    time = pl.col("timestamp")
    whole = [(time % size == 0).all().alias(name) for name, size in _RESOLUTIONS]
    bounds = [time.min().alias("first"), time.max().alias("last")]
    facts = dataset.scan().select(*bounds, *whole).collect(engine="streaming").row(0, named=True)
    hours = dataset.scan().group_by((time // 3600).alias("hour")).agg(pl.len().alias("rows"))
    found = hours.collect(engine="streaming").sort("hour")
    period, rows = _by_period(found["hour"].to_numpy(), found["rows"].to_numpy().astype(np.int64))
    return {
        "first": _moment(facts["first"]),
        "last": _moment(facts["last"]),
        "span_days": (facts["last"] - facts["first"]) / 86_400,
        "resolution": next((name for name, _ in _RESOLUTIONS if facts[name]), "second"),
        "period": period,
        "histogram": rows,
    }


def _by_period(
    hours: Int64[np.ndarray, " h"], rows: Int64[np.ndarray, " h"]
) -> tuple[str, list[dict[str, Any]]]:
    """Rows of each hour, day, month or year: the finest that stays readable; gaps count 0."""
    moments = hours.astype("datetime64[h]")
    for name, unit, most in _PERIODS:
        places = moments.astype(f"datetime64[{unit}]")
        number = (places - places[0]).astype(np.int64)
        if number[-1] < most or name == _PERIODS[-1][0]:
            break
    count = np.zeros(int(number[-1]) + 1, np.int64)
    np.add.at(count, number, rows)
    labels = (places[0] + np.arange(len(count))).astype(str)
    return name, [{"from": str(each), "count": int(rows)} for each, rows in zip(labels, count)]


def _moment(seconds: int) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def _ties(histories: Histories) -> dict[str, float]:
    same = np.diff(histories.time) == 0
    inside = _continues(histories)[1:]
    first = histories.time[histories.offsets[:-1]]
    last = histories.time[histories.offsets[1:] - 1]
    several = histories.lengths >= 2
    return {
        **same_time_ties(histories),
        "consecutive": _share(int((same & inside).sum()), int(inside.sum())),
        "one_time": _share(int(((first == last) & several).sum()), int(several.sum())),
    }


def _repeats(histories: Histories) -> tuple[dict[str, Any], int]:
    """The repeats, and the number of different pairs of a user and an item."""
    continues = _continues(histories)
    # Numbers for pairs and rows: 10^9 users' moments x 10^8 items x 10 kinds still fit in 63 bits.
    pair = np.repeat(np.arange(histories.num_users, dtype=np.int64), histories.lengths)
    pair *= histories.num_items
    pair += histories.item
    consecutive = int((pair[1:] == pair[:-1]).sum())
    targets = pair[LeaveOneOut()(histories).test]
    pair.sort()
    times = np.searchsorted(pair, targets, "right") - np.searchsorted(pair, targets, "left")
    different = _different(pair)
    begins = np.append(True, np.diff(histories.time) != 0) | ~continues
    row = np.cumsum(begins, dtype=np.int64)
    row *= histories.num_items
    row += histories.item
    row *= len(histories.actions)
    row += histories.action
    row.sort()
    return {
        "exact": histories.num_events - _different(row),
        "pairs": histories.num_events - different,
        "consecutive": consecutive,
        "targets": _share(int((times > 1).sum()), len(targets)),
    }, different


def _continues(histories: Histories) -> Bool[np.ndarray, " e"]:
    """Which events have an earlier one in their history."""
    continues = np.ones(histories.num_events, bool)
    continues[histories.offsets[:-1]] = False
    return continues


def _different(rising: Int64[np.ndarray, " n"]) -> int:
    """How many different values a sorted array with at least one element has."""
    return 1 + int((rising[1:] != rising[:-1]).sum())


def _cold(
    dataset: DatasetFolder, histories: Histories, per_item: Int64[np.ndarray, " n"]
) -> dict[str, Any]:
    import polars as pl

    logged = dataset.scan().select(pl.col("item").n_unique()).collect(engine="streaming").item()
    split = LeaveOneOut()(histories)
    trained = training_items(histories, split)
    last = histories.item[histories.offsets[1:] - 1]
    only_last = (per_item > 0) & (per_item == np.bincount(last, minlength=histories.num_items))
    cold_targets = int((~trained[histories.item[split.test]]).sum())
    return {
        "never_logged": histories.num_items - logged,
        "only_last": int(only_last.sum()),
        "untrained": int(((per_item > 0) & ~trained).sum()),
        "targets": _share(cold_targets, len(split.test)),
        "short_users": int((histories.lengths < SMALLEST_HISTORY).sum()),
    }


def _events(dataset: DatasetFolder) -> list[dict[str, Any]] | None:
    import polars as pl

    if "event" not in dataset.scan().collect_schema().names():
        return None
    kinds = dataset.scan().group_by(pl.col("event").fill_null("")).agg(pl.len().alias("rows"))
    found = dict(kinds.collect(engine="streaming").sort("event").iter_rows())
    grades = dataset.manifest.get("grades", ())
    used = dataset.manifest.get("history_events") or tuple(found)
    order = {name: place for place, name in enumerate(grades)}
    total = sum(found.values())
    return [
        {
            "event": name,
            "rows": rows,
            "share": rows / total,
            "grade": order.get(name),
            "in_histories": name in used,
        }
        for name, rows in sorted(found.items(), key=lambda each: (order.get(each[0], -1), -each[1]))
    ]


def _values(dataset: DatasetFolder) -> dict[str, Any] | None:
    import polars as pl

    if "value" not in dataset.scan().collect_schema().names():
        return None
    value = pl.col("value")
    row = dataset.scan().select(
        value.count().alias("rows"),
        value.min().alias("min"),
        value.mean().alias("mean"),
        value.max().alias("max"),
    )
    facts = row.collect(engine="streaming").row(0, named=True)
    return facts if facts["rows"] else None


def _pages(dataset: DatasetFolder, histories: Histories) -> dict[str, Any] | None:
    if "page" not in dataset.scan().collect_schema().names():
        return None
    try:
        pages = prepare_pages(dataset, histories)
    except DataError as error:
        return {"error": str(error)}
    return page_summary(pages)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
