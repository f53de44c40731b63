import gzip
import json

import numpy as np
import pytest

from jaxrec.data.dataset import DataError, read_dataset
from jaxrec.data.datasets.trivago import CLICKOUT, ENGAGED, Trivago
from jaxrec.data.histories import prepare
from jaxrec.data.pages import check_pages, page_summary, prepare_pages

COLUMNS = (
    *("user_id", "session_id", "timestamp", "step", "action_type", "reference", "platform"),
    *("city", "device", "current_filters", "impressions", "prices"),
)
IMAGE, SEARCH = ENGAGED[0], ENGAGED[-1]


def act(user, session, time, step, action, reference="", shown="", prices=None):
    prices = prices if prices is not None else "|".join("9" for _ in shown.split("|") if shown)
    city = '"Oslo, Norway"'
    row = (user, session, time, step, action, reference, "NO", city, "mobile", "", shown, prices)
    return ",".join(map(str, row))


ACTIONS = [
    act("u", "s", 10, 1, "search for destination", "Oslo"),
    act("u", "s", 11, 2, IMAGE, "2"),
    act("u", "s", 12, 3, IMAGE, "2"),
    act("u", "s", 13, 4, SEARCH, "8"),
    act("u", "s", 14, 5, CLICKOUT, "1", "1|2|12", "50|60|"),
    act("u", "s", 15, 6, IMAGE, "12"),
    act("u", "s", 16, 7, CLICKOUT, "3", "1|2|12"),
    act("u", "s", 17, 8, IMAGE, "1"),
    act("v", "t", 20, 1, CLICKOUT, "", "5|6"),
]
PAGE = {
    "user": "u",
    "session": "s",
    "timestamp": 14,
    "step": 5,
    "exposed": ["1", 2, "12"],
    "prices": [50, 60.5, None],
    "engaged_since_last_clickout": {"2": {"image": 2}, "8": {"search": 1}},
    "clicked": "1",
    "city": "Oslo, Norway",
    "platform": "NO",
    "device": "mobile",
}


def write_actions(folder, rows=ACTIONS, metadata=None):
    folder.mkdir(exist_ok=True)
    (folder / "train.csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    if metadata is not None:
        (folder / "item_metadata.csv").write_text(metadata)
    return str(folder)


def write_pages(path, *pages):
    path.write_text("\n".join(json.dumps(page) for page in pages) + "\n")
    return str(path)


def written(source, folder):
    source.write(folder)
    return read_dataset(folder)


EXPECTED = [
    ("u", "8", 13, "engaged", None, None, None, None),
    ("u", "1", 17, "engaged", None, None, None, None),
    ("u", "3", 16, "clickout", None, None, None, None),
    ("u", "1", 14, "clickout", "u:s 5", 0, 2.0, 50.0),
    ("u", "2", 14, "engaged", "u:s 5", 1, 1.0, 60.0),
    ("u", "12", 14, "exposed", "u:s 5", 2, 0.0, None),
    ("u", "1", 16, "exposed", "u:s 7", 0, 0.0, 9.0),
    ("u", "2", 16, "exposed", "u:s 7", 1, 0.0, 9.0),
    ("u", "12", 16, "engaged", "u:s 7", 2, 1.0, 9.0),
]
NAMES = ["user", "item", "timestamp", "event", "page", "position", "value", "price"]


def test_the_original_actions(tmp_path):
    metadata = "item_id,properties\n1,Pool|Bar\n77,Spa\n"
    source = Trivago(write_actions(tmp_path / "a", metadata=metadata))
    dataset = written(source, tmp_path / "d")
    assert dataset.interactions(NAMES).rows() == EXPECTED
    assert dataset.interactions(["session", "city", "platform", "device"]).row(-1) == (
        "s",
        "Oslo, Norway",
        "NO",
        "mobile",
    )
    assert dict(dataset.items().rows())["1"] == "Pool, Bar"
    assert sorted(dataset.items()["item"]) == ["1", "12", "2", "3", "8"]
    assert dataset.manifest["page_rule"] == (
        "pages are requests: a user's rows with the same session and step (the list of a clickout)"
    )
    assert dataset.manifest["grades"] == ["exposed", "engaged", "clickout"]
    assert sorted(source.fingerprint()) == ["item_metadata.csv", "train.csv"]
    assert Trivago(str(tmp_path / "a/train.csv")).fingerprint() == source.fingerprint()
    histories = prepare(dataset)
    pages = prepare_pages(dataset, histories)
    assert [histories.item[pages.history(page, histories)].size for page in (0, 1)] == [1, 3]


def test_pages_in_json(tmp_path):
    dataset = written(Trivago(write_pages(tmp_path / "p.jsonl", PAGE)), tmp_path / "d")
    assert dataset.interactions(NAMES).rows() == [
        ("u", "8", 14, "engaged", None, None, None, None),
        ("u", "1", 14, "clickout", "u:s 5", 0, 2.0, 50.0),
        ("u", "2", 14, "engaged", "u:s 5", 1, 1.0, 60.5),
        ("u", "12", 14, "exposed", "u:s 5", 2, 0.0, None),
    ]
    assert dataset.items().columns == ["item"]


def test_a_click_outside_the_list(tmp_path):
    page = {**PAGE, "clicked": "8", "prices": None}
    dataset = written(Trivago(write_pages(tmp_path / "p.jsonl", page)), tmp_path / "d")
    assert dataset.interactions(["item", "event", "price"]).rows()[0] == ("8", "clickout", None)
    nothing = {**PAGE, "clicked": None, "engaged_since_last_clickout": None, "step": 6}
    dataset = written(Trivago(write_pages(tmp_path / "p.jsonl", PAGE, nothing)), tmp_path / "e")
    assert dataset.interactions()["event"].to_list()[-3:] == ["exposed"] * 3


def sessions_by_hand(rows):
    """Exposures and events without page of random actions, by plain loops."""
    alone, shown, open_items = [], [], {}
    for user, session, time, step, action, item, listed in rows:
        seen = open_items.setdefault((user, session), {})
        if action != CLICKOUT:
            seen.setdefault(item, time)
            continue
        if item not in listed:
            alone.append((user, item, time, "clickout"))
        alone += [(user, each, at, "engaged") for each, at in seen.items() if each not in listed]
        for place, each in enumerate(listed):
            event = "clickout" if each == item else "engaged" if each in seen else "exposed"
            shown.append((user, each, time, event, f"{user}:{session} {step}", place))
        seen.clear()
    for (user, _), seen in open_items.items():
        alone += [(user, item, at, "engaged") for item, at in seen.items()]
    return sorted(alone), shown


@pytest.mark.parametrize("seed", range(3))
def test_actions_are_joined_as_plain_loops_join_them(tmp_path, seed):
    random = np.random.default_rng(seed)
    steps, rows = {}, []
    for time in range(300):
        user = random.choice(["u", "v"])
        session = f"{user}{random.integers(3)}"
        step = steps[session] = steps.get(session, 0) + 1
        action = random.choice([IMAGE, SEARCH, CLICKOUT], p=(0.4, 0.3, 0.3))
        item = str(random.integers(1, 15))
        listed = random.choice(np.arange(1, 15), 5, replace=False).astype(str).tolist()
        rows.append((user, session, time, step, action, item, listed))
    text = [act(*row[:6], "|".join(row[6]) if row[4] == CLICKOUT else "") for row in rows]
    dataset = written(Trivago(write_actions(tmp_path / "a", text)), tmp_path / "d")
    alone, shown = sessions_by_hand(rows)
    log = dataset.interactions(["user", "item", "timestamp", "event", "page", "position"]).rows()
    assert sorted(row[:4] for row in log if row[4] is None) == alone
    assert [row for row in log if row[4] is not None] == shown


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [act("u", "s", 1, 1, CLICKOUT, "1", "1|2", "5")],
            "step 1 of session 's' has another number",
        ),
        (
            [act("u", "s", 1, 1, CLICKOUT, "1", "1|2", "")],
            "step 1 of session 's' has another number",
        ),
        ([act("u", "s", 1, "x", CLICKOUT, "1", "1|2")], "cannot be read"),
        ([act("u", "s", "now", 1, CLICKOUT, "1", "1|2")], "cannot be read"),
        ([act("u", "s", 1, 1, CLICKOUT, "1", "1|2", "5|cheap")], "cannot be read"),
        ([act("", "s", 1, 1, CLICKOUT, "1", "1|2")], "have no 'user'"),
        ([act("u", "s", 1, 1, CLICKOUT, "1", "1|")], "have no 'item'"),
        ([act("u", "s", -1, 1, CLICKOUT, "1", "1")], "earliest timestamp is -1"),
        ([act("u", "s", 1, 1, "search for poi", "x")], "the log is empty"),
    ],
)
def test_bad_actions(tmp_path, rows, message):
    path = write_actions(tmp_path / "a", rows)
    with pytest.raises(DataError, match=message):
        Trivago(path).write(tmp_path / "d")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user": None}, "line 1: the page has no 'user'"),
        ({"exposed": None}, "has no 'exposed'"),
        ({"timestamp": "14"}, "timestamp and step must be whole numbers"),
        ({"timestamp": True}, "timestamp and step must be whole numbers"),
        ({"step": 2**70}, "timestamp and step must be whole numbers"),
        ({"timestamp": -5}, "earliest timestamp is -5"),
        ({"timestamp": 10**12}, "latest timestamp"),
        ({"exposed": []}, "exposed must be a list of ids"),
        ({"exposed": ["1", None]}, "exposed must be a list of ids"),
        ({"exposed": "1"}, "exposed must be a list of ids"),
        ({"prices": [1]}, "prices must be a list of 3 numbers"),
        ({"prices": [1, 2, "3"]}, "prices must be a list of 3 numbers"),
        ({"prices": [1, 2, float("nan")]}, "prices must be a list of 3 numbers"),
        ({"clicked": ["1"]}, "clicked an id"),
        ({"engaged_since_last_clickout": ["1"]}, "must be an object"),
    ],
)
def test_bad_pages_in_json(tmp_path, change, message):
    path = write_pages(tmp_path / "p.jsonl", {**PAGE, **change})
    with pytest.raises(DataError, match=message):
        Trivago(path).write(tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_bad_files(tmp_path):
    with pytest.raises(DataError, match=r"train\.csv does not exist"):
        Trivago(str(tmp_path)).write(tmp_path / "d")
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(json.dumps(PAGE).encode() * 50)[:-20])
    with pytest.raises(DataError, match=r"p\.jsonl\.gz"):
        Trivago(str(tmp_path / "p.jsonl.gz")).write(tmp_path / "d")
    (tmp_path / "p.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match="line 1 is not a JSON object"):
        Trivago(str(tmp_path / "p.jsonl")).write(tmp_path / "d")
    path = write_actions(tmp_path / "a", metadata="item_id,properties\n1,a\n1,b\n")
    with pytest.raises(DataError, match="item '1' has two rows"):
        Trivago(path).write(tmp_path / "d")
    (tmp_path / "a/train.csv").write_text("user_id,session_id\nu,s\n")
    with pytest.raises(DataError, match="has no column 'timestamp', 'step'"):
        Trivago(path).write(tmp_path / "d")


@pytest.mark.real_data
def test_the_real_pages(tmp_path, shared_data):
    source = Trivago(str(shared_data / "trivago/pages-2018-11-07.jsonl.gz"))
    dataset = written(source, tmp_path / "d")
    # 156,762 exposures, and 998 hotels that were engaged with and are on no list.
    assert dataset.manifest["counts"] == {"interactions": 157_760, "users": 3399, "items": 64_657}
    histories = prepare(dataset)
    assert (histories.num_users, histories.num_events) == (3399, 9315)
    pages = prepare_pages(dataset, histories)
    check_pages(pages, histories)
    summary = page_summary(pages)
    assert (summary["pages"], summary["users"], summary["exposures"]) == (6842, 3399, 156_762)
    assert summary["graded"] == {"exposed": 148_445, "engaged": 1475, "clickout": 6842}
    assert (summary["median_size"], summary["max_size"], summary["repeats"]) == (25.0, 25, 0)
