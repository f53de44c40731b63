import datetime

import numpy as np
import polars as pl
import pytest

from jaxrec.data.dataset import DataError
from jaxrec.data.page_rules import (
    PageRule,
    assign_pages,
    count_cut,
    paged,
    parse_page_rule,
    request_page,
)

RULES = ("second", "gap:0", "gap:7", "gap:40", "day", "day:+8", "day:-4.5", "request:request")


def random_log(seed, rows=400):
    """Few users and times, so that everything collides; distinct in (user, timestamp, item)."""
    random = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "user": random.choice(["a", "b", "a:1", "b+1"], rows),
            "item": random.choice(["x", "y", "z"], rows),
            "timestamp": random.integers(0, 3000, rows) * random.choice([1, 400], rows),
            "request": random.choice(["1", "2", "1:2", "3+1", "", None], rows).tolist(),
        }
    )
    return frame.unique(["user", "item", "timestamp"], maintain_order=True)


def pages_by_hand(frame, rule):
    """(page members, place on it) of each row, by plain loops."""
    rule = parse_page_rule(rule)
    rows = list(enumerate(frame.to_dicts()))
    if rule.kind != "request":
        rows.sort(key=lambda pair: (pair[1]["timestamp"], pair[1]["item"], pair[0]))
    pages, of, last = {}, {}, {}
    for number, row in rows:
        user, time = row["user"], row["timestamp"]
        if rule.kind == "request":
            key = row["request"] or None
        elif rule.kind == "second":
            key = time
        elif rule.kind == "day":
            zone = datetime.timezone(datetime.timedelta(hours=rule.hours))
            key = datetime.datetime.fromtimestamp(time, zone).date()
        else:
            before = last.get(user)
            key = time if before is None or time - before[0] > rule.seconds else before[1]
            last[user] = (time, key)
        if key is not None:
            pages.setdefault((user, key), []).append(number)
            of[number] = (user, key)
    result = []
    for number in range(frame.height):
        if number not in of:
            result.append((None, None))
            continue
        members = pages[of[number]]
        place = members.index(number)
        part = place // rule.longest if rule.longest else 0
        if rule.longest:
            members = members[part * rule.longest : (part + 1) * rule.longest]
        result.append((tuple(members), members.index(number)))
    return result


def pages_found(frame):
    """The same, of a frame that has `page` and `position`."""
    members = {}
    for number, (page, place) in enumerate(frame.select("page", "position").rows()):
        members.setdefault(page, []).append((place, number))
    named = {
        page: tuple(number for _, number in sorted(each))
        for page, each in members.items()
        if page is not None
    }
    return [
        (None if page is None else named[page], place)
        for page, place in frame.select("page", "position").rows()
    ]


@pytest.mark.parametrize("limit", ["", ",max:1", ",max:3"])
@pytest.mark.parametrize("rule", RULES)
def test_pages_are_what_plain_loops_find(rule, limit):
    for seed in range(3):
        frame = random_log(seed)
        paged_frame = assign_pages(frame, rule + limit)
        assert paged_frame.drop("page", "position").equals(frame)
        assert pages_found(paged_frame) == pages_by_hand(frame, rule + limit)


@pytest.mark.parametrize("rule", [rule for rule in RULES if not rule.startswith("request")])
def test_the_order_of_rows_does_not_matter(rule):
    frame = random_log(7).with_row_index("row")
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=3)
    expected = assign_pages(frame, rule + ",max:4")
    assert assign_pages(shuffled, rule + ",max:4").sort("row").equals(expected)


@pytest.mark.parametrize("rule", RULES)
def test_pages_never_mix_users(rule):
    found = assign_pages(random_log(1), rule).filter(pl.col("page").is_not_null())
    assert found.group_by("page").agg(pl.col("user").n_unique())["user"].max() == 1
    places = found.group_by("page").agg(pl.col("position").sort())["position"].to_list()
    assert all(each == list(range(len(each))) for each in places)


def test_a_gap_of_no_time_is_a_second():
    frame = random_log(2)
    assert assign_pages(frame, "gap:0").equals(assign_pages(frame, "second"))


def test_a_wider_gap_only_joins_pages():
    frame = random_log(3)
    narrow, wide = (assign_pages(frame, rule)["page"] for rule in ("gap:5", "gap:50"))
    together = pl.DataFrame({"narrow": narrow, "wide": wide}).group_by("narrow")
    assert together.agg(pl.col("wide").n_unique())["wide"].max() == 1
    assert wide.n_unique() < narrow.n_unique()


def test_names_of_pages():
    frame = pl.DataFrame(
        {
            "user": ["u", "u", "u", "v"],
            "item": ["b", "a", "c", "a"],
            "timestamp": [100, 100, 170, 86_399],
            "request": ["r:1", "r:1", "r+2", None],
        }
    )
    assert assign_pages(frame, "gap:70")["page"].to_list() == ["u:100"] * 3 + ["v:86399"]
    assert assign_pages(frame, "gap:70")["position"].to_list() == [1, 0, 2, 0]
    assert assign_pages(frame, "gap:69,max:1")["page"].to_list() == [
        "u:100+1",
        "u:100",
        "u:170",
        "v:86399",
    ]
    assert assign_pages(frame, "day:+0.001")["page"].to_list() == ["u:1970-01-01"] * 3 + [
        "v:1970-01-02"
    ]
    requests = assign_pages(frame, "request:request")
    assert requests["page"].to_list() == ["u:r%3A1", "u:r%3A1", "u:r%2B2", None]
    assert requests["position"].to_list() == [0, 1, 0, None]
    assert (
        frame.select(request_page("user", "request"))
        .to_series()
        .equals(requests["page"], null_equal=True, check_names=False)
    )


def test_a_request_keeps_places_that_it_has():
    frame = pl.DataFrame({"user": ["u"] * 3, "id": [4, 4, 4], "position": [7, 2, 5]})
    assert assign_pages(frame, "request:id")["position"].to_list() == [2, 0, 1]


def test_lazy_and_grouped_logs_get_the_same_pages():
    frame = random_log(4)
    expected = assign_pages(frame, "gap:40,max:3")
    assert assign_pages(frame.lazy(), "gap:40,max:3").collect().equals(expected)
    key = ["user", "timestamp", "item"]
    for rows in (10, 10_000):
        with paged(frame.lazy(), parse_page_rule("gap:40,max:3"), "here", rows=rows) as found:
            assert found.collect().sort(key).equals(expected.sort(key))
            assert count_cut(found, parse_page_rule("gap:40,max:3")) == count_cut(
                expected, parse_page_rule("gap:40,max:3")
            )


def test_pages_that_were_cut_are_counted():
    frame = pl.DataFrame(
        {"user": ["u"] * 7 + ["v"] * 2, "item": list("abcdefgab"), "timestamp": [5] * 9}
    )
    for limit, expected in ((1, 2), (2, 1), (3, 1), (6, 1), (7, 0)):
        rule = parse_page_rule(f"second,max:{limit}")
        assert count_cut(assign_pages(frame, rule), rule) == expected
    assert count_cut(frame, parse_page_rule("second")) == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("request:session", "pages are requests: a user's rows with the same session"),
        ("second", "pages are seconds: a user's exposures of the same second"),
        (
            "gap:600",
            "pages are visits: a user's consecutive exposures, neighbours at most 600 s apart",
        ),
        ("day", "pages are days: a user's exposures of one day (UTC)"),
        ("day:-4.5", "pages are days: a user's exposures of one day (UTC-4.5)"),
    ],
)
def test_rules_are_read_back_and_described(text, sentence):
    rule = parse_page_rule(text)
    assert str(rule) == text
    assert rule.describe() == sentence
    limited = parse_page_rule(f"{text},max:20")
    assert str(limited) == f"{text},max:20"
    assert limited.describe(3) == f"{sentence}; pages of more than 20 are cut there (3 were longer)"


def test_a_zone_without_offset_is_utc():
    assert parse_page_rule("day:+0") == PageRule("day")
    assert str(parse_page_rule("day:8")) == "day:+8"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gap",
        "gap:",
        "gap:-5",
        "gap:1.5",
        "gap:x",
        "second:3",
        "day:",
        "day:noon",
        "day:nan",
        "day:+15",
        "request",
        "request:",
        "session:600",
        "gap:600,max:0",
        "gap:600,max:x",
        "gap:600,max:-1",
        "gap:\N{SUPERSCRIPT TWO}",
    ],
)
def test_what_is_no_rule(text):
    with pytest.raises(DataError, match="Use request:COLUMN, second, gap:SECONDS"):
        parse_page_rule(text)


@pytest.mark.parametrize(
    "fields", [{"kind": "week"}, {"kind": "gap", "seconds": -1}, {"kind": "day", "column": "x"}]
)
def test_a_rule_made_by_hand_is_checked(fields):
    with pytest.raises(DataError, match="page rule"):
        PageRule(**fields)


def test_missing_columns():
    frame = pl.DataFrame({"user": ["u"], "item": ["a"], "time": [3]})
    with pytest.raises(DataError, match=r"page rule gap:5 has no column 'timestamp'.*Perhaps"):
        assign_pages(frame, "gap:5")
    with pytest.raises(DataError, match="no column 'session'"):
        assign_pages(frame, "request:session")
