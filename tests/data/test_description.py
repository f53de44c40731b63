import collections
import copy
import datetime
import itertools
import json
import re

import numpy as np
import polars as pl
import pytest
from small_logs import log_of, write_log

from jaxrec.data.advice import advise
from jaxrec.data.dataset import DataError, read_dataset, write_dataset
from jaxrec.data.datasets.recbole import RecBoleFiles
from jaxrec.data.description import bin_edges, describe
from jaxrec.data.text_coverage import text_coverage

DAY = 86_400
YEAR_2020 = 1_577_836_800


def random_rows(seed, events=400, users=40, items=30, times=25):
    """Rows with many ties, duplicates and repeats, some users with a single event."""
    rng = np.random.default_rng(seed)
    user = np.minimum(rng.geometric(0.08, events), users)
    item = np.minimum(rng.geometric(0.1, events), items)
    time = YEAR_2020 + DAY * rng.integers(0, times, events)
    return list(zip(user.tolist(), item.tolist(), time.tolist()))


def slow(rows):
    """The numbers of a log without kinds, in obvious Python."""
    histories = collections.defaultdict(list)
    for place, (user, item, time) in enumerate(rows):
        histories[user].append((time, place, item))
    ordered = [sorted(each) for each in histories.values()]
    items = [[item for _, _, item in each] for each in ordered]
    times = [[time for time, _, _ in each] for each in ordered]
    tests = [each for each in items if len(each) >= 3]
    short = [each for each in items if len(each) < 3]
    trained = {item for each in tests for item in each[:-2]} | {i for each in short for i in each}
    last = collections.Counter(each[-1] for each in items)
    counts = collections.Counter(item for _, item, _ in rows)
    neighbours = [pair for each in times for pair in itertools.pairwise(each)]
    several = [each for each in times if len(each) >= 2]
    at_end = [each.count(each[-1]) for each in times]
    return {
        "lengths": sorted(map(len, items)),
        "per_item": sorted(counts.values()),
        "tied": np.mean([count > 1 for count in at_end]),
        "changed_by_shuffle": np.mean([1 - 1 / count for count in at_end]),
        "consecutive": np.mean([a == b for a, b in neighbours]),
        "one_time": np.mean([len(set(each)) == 1 for each in several]),
        "repeats": {
            "exact": len(rows) - len(set(rows)),
            "pairs": len(rows) - len({(user, item) for user, item, _ in rows}),
            "consecutive": sum(a == b for each in items for a, b in itertools.pairwise(each)),
            "targets": np.mean([each[-1] in each[:-1] for each in tests]),
        },
        "cold": {
            "never_logged": 0,
            "only_last": sum(counts[item] == last[item] for item in counts),
            "untrained": len(set(counts) - trained),
            "targets": np.mean([each[-1] not in trained for each in tests]),
            "short_users": len(short),
        },
    }


@pytest.mark.parametrize("seed", range(5))
def test_the_numbers_equal_slow_python(tmp_path, seed):
    rows = random_rows(seed)
    found, wanted = describe(write_log(tmp_path / "d", rows)), slow(rows)
    for name in ("tied", "changed_by_shuffle", "consecutive", "one_time"):
        assert found["ties"][name] == pytest.approx(wanted[name]), name
    assert found["repeats"] == pytest.approx(wanted["repeats"])
    assert found["cold"] == pytest.approx(wanted["cold"])
    assert wanted["repeats"]["exact"] > 0
    assert wanted["cold"]["short_users"] > 0
    for name, values in (
        ("history_length", wanted["lengths"]),
        ("events_per_item", wanted["per_item"]),
    ):
        spread = found[name]
        assert (spread["min"], spread["max"]) == (values[0], values[-1])
        assert spread["mean"] == pytest.approx(np.mean(values))
        assert spread["median"] == np.median(values)
        for place, value in spread["percentiles"].items():
            at_most = [each for each in values if each <= value]
            assert len(at_most) >= len(values) * int(place) / 100, place
            assert sum(each < value for each in values) < len(values) * int(place) / 100, place
        for entry in spread["histogram"]:
            inside = [each for each in values if entry["from"] <= each <= entry["to"]]
            assert entry["count"] == len(inside)
        assert sum(entry["count"] for entry in spread["histogram"]) == len(values)
    rising = wanted["per_item"]
    differences = np.abs(np.subtract.outer(rising, rising)).mean()
    assert found["events_per_item"]["gini"] == pytest.approx(differences / (2 * np.mean(rising)))
    top = max(1, -(-len(rising) // 10))
    share = sum(rising[-top:]) / sum(rising)
    assert found["events_per_item"]["top_10_percent"] == pytest.approx(share)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_counts_and_the_largest_user(tmp_path):
    rows = [("a", "x", 1), ("a", "y", 2), ("a", "x", 3), ("b", "x", 9)]
    found = describe(write_log(tmp_path / "d", rows, items=["x", "y", "z", "w"]))
    assert found["counts"] == {
        "rows": 4,
        "events": 4,
        "users": 2,
        "users_without_history": 0,
        "items": 4,
        "items_with_events": 2,
        "density": 3 / 8,
    }
    assert found["largest_user"] == {"user": "a", "events": 3, "share": 0.75}
    assert found["cold"]["never_logged"] == 2
    assert found["dataset"]["name"] == "t"


@pytest.mark.parametrize("low", [0, 1, 2, 7, 23, 150, 4096])
@pytest.mark.parametrize("width", [0, 1, 15, 40, 900, 123_456, 10**12])
def test_bins_cover_all_counts_and_are_few(low, width):
    edges = bin_edges(low, low + width)
    assert edges == sorted(set(edges))
    assert edges[0] <= low < edges[1]
    assert edges[-2] <= low + width < edges[-1]
    assert len(edges) - 1 <= 20 + 6 * max(0, len(str(width)) - 3)


def test_time_is_told_in_utc_and_counted_by_month(tmp_path):
    moments = ["2019-01-31 23:59:59", "2019-02-01 00:00:00", "2019-02-28 12:00:00", "2019-05-01"]
    times = [
        int(datetime.datetime.fromisoformat(f"{each}+00:00").timestamp()) for each in moments[:3]
    ]
    times.append(int(datetime.datetime(2019, 5, 1, tzinfo=datetime.UTC).timestamp()))
    rows = [("a", f"i{place}", time) for place, time in enumerate(times)]
    time = describe(write_log(tmp_path / "d", rows))["time"]
    assert time["first"] == "2019-01-31 23:59:59"
    assert time["last"] == "2019-05-01 00:00:00"
    assert time["span_days"] == pytest.approx(89 + 1 / DAY)
    assert time["resolution"] == "second"
    assert time["period"] == "day"
    assert len(time["histogram"]) == 91
    assert time["histogram"][1] == {"from": "2019-02-01", "count": 1}
    assert time["histogram"][2] == {"from": "2019-02-02", "count": 0}
    later = describe(write_log(tmp_path / "e", [*rows, ("b", "i0", times[0] + 400 * DAY)]))["time"]
    assert later["period"] == "month"
    counts = {each["from"]: each["count"] for each in later["histogram"]}
    assert len(counts) == 15
    assert counts["2019-01"] == 1
    assert counts["2019-02"] == 2
    assert counts["2019-03"] == 0
    assert counts["2020-03"] == 1


@pytest.mark.parametrize(
    ("step", "resolution", "period", "bins"),
    [
        (DAY, "day", "day", 6),
        (3600, "hour", "hour", 6),
        (60, "minute", "hour", 1),
        (7, "second", "hour", 1),
        (365 * DAY, "day", "month", 60),
        (10 * 365 * DAY, "day", "year", 50),
    ],
)
def test_the_unit_that_holds_all_times_is_found(tmp_path, step, resolution, period, bins):
    rows = [("a", f"i{place}", YEAR_2020 // 2 // DAY * DAY + place * step) for place in range(6)]
    time = describe(write_log(tmp_path / "d", rows))["time"]
    assert (time["resolution"], time["period"]) == (resolution, period)
    assert len(time["histogram"]) == bins
    assert sum(each["count"] for each in time["histogram"]) == 6


def test_a_log_without_a_clock_has_no_times(tmp_path):
    log = log_of([("a", "x", 0), ("a", "y", 1)])
    dataset = write_dataset(
        tmp_path / "d",
        log,
        {"item": ["x", "y"]},
        name="t",
        source="",
        licence="",
        time_unit="order",
    )
    found = describe(dataset)
    assert found["time"] is None
    assert found["ties"]["tied"] == 0.0


def test_kinds_values_and_histories(tmp_path):
    rows = [("a", "x", 1), ("a", "x", 1), ("a", "x", 2), ("b", "y", 3), ("b", "z", 3)]
    dataset = write_dataset(
        tmp_path / "d",
        log_of(
            rows,
            event=["view", "buy", "view", "view", None],
            value=[1.0, 4.0, None, 4.0, None],
        ),
        {"item": ["x", "y", "z"]},
        name="t",
        source="",
        licence="",
        history_events=("buy",),
        grades=("view", "buy"),
    )
    found = describe(dataset)
    kinds = [(e["event"], e["rows"], e["grade"], e["in_histories"]) for e in found["events"]]
    assert kinds == [("", 1, None, False), ("view", 3, 0, False), ("buy", 1, 1, True)]
    assert [each["share"] for each in found["events"]] == [0.2, 0.6, 0.2]
    assert found["values"] == {"rows": 3, "min": 1.0, "mean": 3.0, "max": 4.0}
    counts = found["counts"]
    assert (counts["rows"], counts["events"], counts["users_without_history"]) == (5, 1, 1)
    assert counts["items_with_events"] == 1
    assert found["cold"]["never_logged"] == 0


def test_events_of_two_kinds_at_one_time_are_no_duplicates(tmp_path):
    rows = [("a", "x", 1)] * 4
    found = describe(write_log(tmp_path / "d", rows, event=["view", "buy", "view", "view"]))
    assert found["repeats"]["exact"] == 2
    assert found["repeats"]["pairs"] == 3


def test_pages_are_summed_up_or_the_reason_is_told(tmp_path):
    rows = [("a", "x", 1), ("a", "y", 1), ("a", "x", 5), ("b", "y", 6)]
    given = {"name": "t", "source": "", "licence": "", "page_rule": "pages are requests"}
    log = log_of(rows, event=["exposed", "click", "exposed", "exposed"], page=["1", "1", "2", "3"])
    items = {"item": ["x", "y"]}
    dataset = write_dataset(
        tmp_path / "d", log, items, **given, grades=("exposed", "click"), history_events=("click",)
    )
    pages = describe(dataset)["pages"]
    assert (pages["pages"], pages["exposures"], pages["rule"]) == (3, 4, "pages are requests")
    assert pages["strongest"] == {"exposed": pytest.approx(2 / 3), "click": pytest.approx(1 / 3)}
    found = describe(write_dataset(tmp_path / "e", log, items, **given))
    assert "does not declare its grades" in found["pages"]["error"]
    assert any("does not declare its grades" in each for each in found["advice"])


def with_items(folder, **columns):
    size = len(next(iter(columns.values())))
    items = pl.DataFrame({"item": [f"i{row}" for row in range(size)], **columns})
    return write_dataset(
        folder, log_of([("a", "i0", 1)]), items, name="t", source="", licence="none"
    )


def test_text_coverage(tmp_path):
    dataset = with_items(
        tmp_path / "d",
        title=["Red nail polish", "Red nail polish", "  ", None, "Soap"],
        categories=[[["Beauty", "Nails"], ["Gifts"]], [], None, [[None]], [["Bath"]]],
        tags=[["a b", "c"], None, [], None, None],
        url=["http://1", "http://2", "http://3", "http://4", None],
        brand=["Acme", "Acme", None, None, None],
        price=[1.0, None, None, None, 3.0],
    )
    found = text_coverage(dataset)
    columns = {each.pop("name"): each for each in found["columns"]}
    assert columns == {
        "title": {"filled": 0.6, "median_words": 3, "median_characters": 15, "shared": 2},
        "categories": {"filled": 0.4, "median_words": 2, "median_characters": 11, "shared": 0},
        "tags": {"filled": 0.2, "median_words": 3, "median_characters": 5, "shared": 0},
        "brand": {"filled": 0.4, "median_words": 1, "median_characters": 4, "shared": 2},
    }
    assert found["other_columns"] == [
        {"name": "url", "type": "ids", "filled": 0.8},
        {"name": "price", "type": "Float64", "filled": 0.4},
    ]
    assert found["items_without_text"] == 2
    assert found["shared_titles"] == 2


def test_items_without_columns_have_no_text(tmp_path):
    found = text_coverage(with_items(tmp_path / "d", price=[1.0, 2.0]))
    assert found["columns"] == []
    assert found["items_without_text"] == 2
    assert found["shared_titles"] is None
    empty = text_coverage(
        with_items(tmp_path / "e", title=pl.Series([None, None], dtype=pl.String))
    )
    assert empty["columns"][0]["median_words"] is None
    assert empty["items_without_text"] == 2


def test_what_makes_no_histories_is_said(tmp_path):
    write_log(tmp_path / "d", [("a", "x", 1)], event=["view"])
    manifest = json.loads((tmp_path / "d/dataset.json").read_text())
    manifest["history_events"] = ["buy"]
    (tmp_path / "d/dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="no event of the log belongs to a history"):
        describe(read_dataset(tmp_path / "d", verify=False))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Numbers of a log that deserves no advice."""
    rows = [
        (user, (user + step) % 20, YEAR_2020 + 1000 * user + step)
        for user in range(30)
        for step in range(8)
    ]
    items = {"item": [str(row) for row in range(20)], "title": [f"Tool {row}" for row in range(20)]}
    dataset = write_dataset(
        tmp_path_factory.mktemp("sound") / "d",
        log_of(rows),
        items,
        name="t",
        source="",
        licence="",
    )
    return describe(dataset)


def changed(numbers, path, value):
    numbers = copy.deepcopy(numbers)
    *parents, last = path.split(".")
    place = numbers
    for name in parents:
        place = place[name]
    place[last] = value
    return numbers


def test_a_sound_log_gets_no_advice(sound):
    assert sound["advice"] == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("time.span_days", 0.0, "All events have the same time"),
        ("time.last", "1970-03-02 00:00:00", "The last event is of 1970-03-02"),
        ("ties.tied", 0.21, "The last event of 21% of the users shares its time"),
        ("repeats.exact", 24, r"24 events \(10.0%\) are exact duplicates"),
        ("largest_user", {"user": "bot", "events": 90, "share": 0.3}, "User 'bot' has 30%"),
        ("cold.short_users", 15, r"15 users \(50%\) have fewer than 3 events"),
        ("repeats.targets", 0.4, "40% of the last events are items that the user had before"),
        ("cold.targets", 0.25, "25% of leave-one-out's tests ask for an item without"),
        ("text.items_without_text", 5, r"5 items \(25%\) have no text"),
        ("text.items_without_text", 20, "No item has text"),
        (
            "text.columns",
            [{"median_words": 1}, {"median_words": None}],
            "Texts of the items are single words",
        ),
        ("text.shared_titles", 4, r"4 items \(20%\) share their title"),
        ("cold.never_logged", 10, "10 of 20 items have no event"),
        ("pages", {"error": "It is broken."}, "cannot be used as it is: It is broken."),
        ("pages", {"pages": 3}, "does not say how pages were formed"),
    ],
)
def test_every_advice_is_given_where_it_applies(sound, path, value, said):
    advice = advise(changed(sound, path, value))
    assert any(re.search(said, each) for each in advice), advice


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("ties.tied", 0.2),
        ("repeats.exact", 0),
        ("largest_user", {"user": "u", "events": 60, "share": 0.25}),
        ("cold.short_users", 6),
        ("repeats.targets", 0.05),
        ("cold.targets", 0.05),
        ("text.items_without_text", 1),
        ("text.shared_titles", None),
        ("text.columns", [{"median_words": 1}, {"median_words": 2}]),
        ("text.columns", []),
        ("cold.never_logged", 4),
        ("time", None),
    ],
)
def test_no_advice_is_given_at_its_limit(sound, path, value):
    assert advise(changed(sound, path, value)) == []


def test_one_time_is_said_once(sound):
    same = changed(changed(sound, "time.span_days", 0.0), "ties.tied", 1.0)
    assert len(advise(same)) == 1


def test_beauty_has_its_known_numbers(beauty):
    found = describe(beauty)
    counts = found["counts"]
    assert (counts["users"], counts["items"], counts["events"]) == (22_363, 12_101, 198_502)
    assert counts["density"] == pytest.approx(198_502 / (22_363 * 12_101))
    assert found["history_length"]["min"] == found["events_per_item"]["min"] == 5
    assert found["ties"]["consecutive"] == pytest.approx(0.44, abs=0.005)
    assert found["ties"]["changed_by_shuffle"] == pytest.approx(0.29, abs=0.005)
    assert found["time"]["resolution"] == "day"
    assert found["time"]["last"] == "2014-07-23 00:00:00"
    assert found["repeats"]["pairs"] == 0
    assert [each["name"] for each in found["text"]["other_columns"]] == ["asin"]
    assert len(found["advice"]) == 1
    assert "--data.ties shuffle:0" in found["advice"][0]


def test_movielens_has_its_known_numbers(shared_data, tmp_path):
    RecBoleFiles(str(shared_data / "movielens-100k"), "ml-100k").write(tmp_path / "d")
    found = describe(read_dataset(tmp_path / "d"))
    counts = found["counts"]
    assert (counts["users"], counts["items"], counts["events"]) == (943, 1_682, 100_000)
    assert found["history_length"]["min"] == 20
    assert found["history_length"]["max"] == 737
    assert found["largest_user"]["user"] == "405"
    assert found["events_per_item"]["max"] == 583
    assert (found["time"]["first"][:10], found["time"]["last"][:10]) == ("1997-09-20", "1998-04-22")
    assert found["values"]["mean"] == pytest.approx(3.52986)
    assert found["repeats"] == {"exact": 0, "pairs": 0, "consecutive": 0, "targets": 0.0}
