import json

import jaxtyping
import numpy as np
import pytest
from small_logs import distinct, histories_of

from jaxrec.data.dataset import DataError, write_dataset
from jaxrec.data.histories import prepare
from jaxrec.data.page_rules import assign_pages
from jaxrec.data.pages import Pages, check_pages, history_ends, page_summary, prepare_pages

GRADES = ("exposed", "click", "order")


def dataset_of(folder, rows, names, **options):
    """A dataset folder of rows of named columns."""
    columns = {name: list(column) for name, column in zip(names.split(), zip(*rows))}
    items = {"item": sorted(set(columns["item"]))}
    return write_dataset(folder, columns, items, name="n", source="s", licence="l", **options)


def small(folder, **options):
    """Two pages of user u around an event of its own, and a page of v, who never answers."""
    rows = [
        ("u", "a", 10, "exposed", "u:1", 0, 0.5),
        ("u", "b", 10, "click", "u:1", 1, 2.0),
        ("u", "c", 15, "order", None, None, None),
        ("u", "c", 20, "exposed", "u:2", 2, None),
        ("u", "a", 21, "order", "u:2", 1, 3.0),
        ("u", "b", 22, "exposed", "u:2", 0, 4.0),
        ("v", "d", 5, "exposed", "v:1", 0, 1.0),
        ("u", "a", 22, "click", "u:2", 7, 9.0),
    ]
    options = {"history_events": GRADES[1:], "grades": GRADES, "page_rule": "by hand", **options}
    return dataset_of(folder, rows, "user item timestamp event page position value", **options)


def random_dataset(folder, seed, rows=600):
    random = np.random.default_rng(seed)
    import polars as pl

    log = pl.DataFrame(
        {
            "user": random.choice(list("abcdefgh"), rows),
            "item": random.choice([f"i{number}" for number in range(30)], rows),
            "timestamp": random.integers(0, 900, rows),
            "event": random.choice(list(GRADES), rows, p=(0.7, 0.2, 0.1)),
            "value": random.normal(size=rows),
        }
    )
    log = assign_pages(log, "gap:4,max:9")
    off = pl.Series(random.random(rows) < 0.2)
    log = log.with_columns(pl.when(~off).then("page"), pl.when(~off).then("position"))
    return write_dataset(
        folder,
        log,
        {"item": [f"i{number}" for number in range(30)]},
        name="n",
        source="s",
        licence="l",
        grades=GRADES,
        history_events=GRADES[1:],
        page_rule="visits",
    )


def pages_by_hand(dataset, histories):
    """Every page as (user, time, [(item, position, grade, value)], history), by plain loops."""
    pages = {}
    for number, row in enumerate(dataset.interactions().to_dicts()):
        if row["page"] is not None:
            pages.setdefault(row["page"], []).append((number, row))
    known = histories.items.tolist()
    found = []
    for rows in pages.values():
        time = min(row["timestamp"] for _, row in rows)
        user = rows[0][1]["user"]
        items = {}
        for _, row in sorted(rows, key=lambda pair: (pair[1]["position"], pair[0])):
            if row["item"] not in known:
                continue
            each = items.setdefault(row["item"], {"place": row["position"], "grade": -1})
            if (grade := GRADES.index(row["event"])) > each["grade"]:
                each.update(grade=grade, value=row["value"])
        history = []
        if user in histories.users.tolist():
            own = histories.history(histories.users.tolist().index(user))
            for position in range(own.start, own.stop):
                if histories.time[position] < time:
                    history.append(position)
        else:
            user = "?"
        exposures = [
            (known.index(item), each["place"], each["grade"], each["value"])
            for item, each in sorted(items.items(), key=lambda pair: pair[1]["place"])
        ]
        if exposures:
            found.append((time, rows[0][0], user, exposures, history))
    return [page[:1] + page[2:] for page in sorted(found, key=lambda page: page[:2])]


def pages_found(pages, histories):
    found = []
    for page in range(pages.num_pages):
        own = pages.page(page)
        columns = (pages.item, pages.position, pages.grade, pages.value)
        user = pages.user[page]
        found.append(
            (
                pages.time[page],
                histories.users[user] if user >= 0 else "?",
                list(zip(*(each[own].tolist() for each in columns))),
                list(range(*pages.history(page, histories).indices(histories.num_events))),
            )
        )
    return found


def test_pages_of_a_small_log(tmp_path):
    dataset = small(tmp_path / "d")
    histories = prepare(dataset)
    pages = prepare_pages(dataset, histories)
    assert histories.items.tolist() == list("abcd")
    assert pages.offsets.tolist() == [0, 1, 3, 6]
    assert pages.time.tolist() == [5, 10, 20]
    assert pages.user.tolist() == [-1, 0, 0]
    # Of page u:2 the item a, shown twice, keeps its first place and its order.
    assert pages.item.tolist() == [3, 0, 1, 1, 0, 2]
    assert pages.position.tolist() == [0, 0, 1, 0, 1, 2]
    assert pages.grade.tolist() == [0, 0, 1, 0, 2, 0]
    np.testing.assert_array_equal(pages.value, np.float32([1.0, 0.5, 2.0, 4.0, 3.0, np.nan]))
    # The history of u: b at 10, c at 15, a at 21, a at 22.
    assert histories.item[histories.history(0)].tolist() == [1, 2, 0, 0]
    assert pages.history_end.tolist() == [0, 0, 2]
    assert pages.history(2, histories) == slice(0, 2)
    assert pages.history(0, histories) == slice(0, 0)
    assert pages.strongest.tolist() == [0, 1, 2]
    assert (pages.unknown_items, pages.empty_pages, pages.repeats) == (0, 0, 1)
    assert pages.rule == "by hand"
    check_pages(pages, histories)


def test_the_summary_of_a_small_log(tmp_path):
    dataset = small(tmp_path / "d")
    assert page_summary(prepare_pages(dataset, prepare(dataset))) == {
        "pages": 3,
        "users": 1,
        "exposures": 6,
        "unknown_items": 0,
        "empty_pages": 0,
        "repeats": 1,
        "pages_of_unknown_users": 1,
        "mean_size": 2.0,
        "median_size": 2.0,
        "max_size": 3,
        "graded": {"exposed": 4, "click": 1, "order": 1},
        "strongest": {"exposed": 1 / 3, "click": 1 / 3, "order": 1 / 3},
        "positives_per_page": 2 / 3,
        "rule": "by hand",
    }


@pytest.mark.parametrize("min_item", [0, 10])
@pytest.mark.parametrize("seed", range(4))
def test_pages_are_what_plain_loops_find(tmp_path, seed, min_item):
    dataset = random_dataset(tmp_path / "d", seed)
    histories = prepare(dataset, min_item=min_item)
    pages = prepare_pages(dataset, histories)
    assert (pages.unknown_items > 0) == (min_item > 0)
    assert pages.repeats > 0 or min_item
    check_pages(pages, histories)
    expected = [
        (time, user, [(*rest, np.float32(value)) for *rest, value in exposures], history)
        for time, user, exposures, history in pages_by_hand(dataset, histories)
    ]
    assert pages_found(pages, histories) == expected


def test_what_is_left_out_is_counted(tmp_path):
    rows = [
        ("u", "a", 1, "click", None),
        ("u", "a", 2, "click", None),
        ("u", "b", 3, "exposed", "p"),
        ("u", "a", 4, "exposed", "q"),
        ("u", "b", 4, "exposed", "q"),
        ("u", "a", 4, "exposed", "q"),
    ]
    dataset = dataset_of(
        tmp_path / "d",
        rows,
        "user item timestamp event page",
        grades=GRADES,
        history_events=("click",),
    )
    pages = prepare_pages(dataset, prepare(dataset, min_item=1))
    assert (pages.unknown_items, pages.empty_pages, pages.repeats) == (2, 1, 1)
    assert pages.item.tolist() == [0]
    assert pages.position.tolist() == [0]
    assert pages.rule == "pages are the values of the column page"


def test_a_log_without_events_has_exposures_only(tmp_path):
    rows = [("u", "b", 3, "p"), ("u", "a", 3, "p"), ("v", "a", 1, None)]
    dataset = dataset_of(tmp_path / "d", rows, "user item timestamp page")
    pages = prepare_pages(dataset, prepare(dataset))
    assert pages.grades == ("exposed",)
    assert pages.grade.tolist() == [0, 0]
    assert pages.item.tolist() == [1, 0]
    assert pages.history_end.tolist() == [0]
    assert np.isnan(pages.value).all()


def test_a_row_without_event_has_the_weakest_grade(tmp_path):
    rows = [("u", "b", 3, "p", None), ("u", "a", 3, "p", "click")]
    dataset = dataset_of(
        tmp_path / "d", rows, "user item timestamp page event", grades=("click", "order")
    )
    assert prepare_pages(dataset, prepare(dataset)).grade.tolist() == [0, 0]


def test_the_order_of_the_log_does_not_change_histories_of_pages(tmp_path):
    """Pages of one time keep the log's order; with distinct times nothing depends on it."""
    rows = [
        ("u", item, 10 * page + place, "click", f"u:{page}", place)
        for page in range(5)
        for place, item in enumerate("abc")
    ]
    names = "user item timestamp event page position"
    options = {"grades": GRADES, "history_events": ("click",)}
    ordered = dataset_of(tmp_path / "d", rows, names, **options)
    turned = dataset_of(tmp_path / "e", rows[::-1], names, **options)
    one, two = (prepare_pages(each, prepare(each)) for each in (ordered, turned))
    for name in ("offsets", "item", "grade", "position", "user", "time", "history_end"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.history_end.tolist() == [0, 3, 6, 9, 12]


def test_saved_pages_come_back(tmp_path):
    dataset = small(tmp_path / "d")
    pages = prepare_pages(dataset, prepare(dataset))
    pages.save(tmp_path / "p")
    loaded = Pages.load(tmp_path / "p")
    for field in Pages.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(loaded, field), getattr(pages, field))
    assert isinstance(loaded.item, np.memmap)
    assert page_summary(loaded) == page_summary(pages)


def test_changed_and_missing_files(tmp_path):
    dataset = small(tmp_path / "d")
    prepare_pages(dataset, prepare(dataset)).save(tmp_path / "p")
    manifest = json.loads((tmp_path / "p/manifest.json").read_text())
    np.save(tmp_path / "p/grade.npy", np.zeros(6, np.int32))
    with pytest.raises(DataError, match=r"grade\.npy is missing, or is not the file"):
        Pages.load(tmp_path / "p")
    assert Pages.load(tmp_path / "p", verify=False).grade.tolist() == [0] * 6
    (tmp_path / "p/time.npy").unlink()
    with pytest.raises(DataError, match=r"time\.npy is missing"):
        Pages.load(tmp_path / "p", verify=False)
    (tmp_path / "p/manifest.json").write_text(json.dumps({**manifest, "format_version": 9}))
    with pytest.raises(DataError, match="format version 9; this jaxrec reads version 1"):
        Pages.load(tmp_path / "p")
    (tmp_path / "p/manifest.json").write_text("[]")
    with pytest.raises(DataError, match="format version None"):
        Pages.load(tmp_path / "p")
    with pytest.raises(DataError, match="does not exist"):
        Pages.load(tmp_path / "nowhere")


def test_logs_that_have_no_pages(tmp_path):
    plain = dataset_of(tmp_path / "a", [("u", "a", 1)], "user item timestamp")
    with pytest.raises(DataError, match="has no pages: its log has no column 'page'"):
        prepare_pages(plain, prepare(plain))
    rows = [("u", "a", 1, "click", "p")]
    undeclared = dataset_of(tmp_path / "b", rows, "user item timestamp event page")
    with pytest.raises(DataError, match="does not declare its grades"):
        prepare_pages(undeclared, prepare(undeclared))


def test_an_empty_column_of_pages(tmp_path):
    import polars as pl

    log = pl.DataFrame(
        {"user": ["u"], "item": ["a"], "timestamp": [1], "page": pl.Series([None], dtype=pl.String)}
    )
    dataset = write_dataset(tmp_path / "d", log, {"item": ["a"]}, name="", source="", licence="")
    with pytest.raises(DataError, match="column 'page' is empty in every row"):
        prepare_pages(dataset, prepare(dataset))


def test_a_page_of_two_users(tmp_path):
    rows = [("u", "a", 1, "p"), ("v", "a", 1, "p")]
    dataset = dataset_of(tmp_path / "d", rows, "user item timestamp page")
    with pytest.raises(DataError, match=r"1 page.s. have exposures of several users.*'u', 'v'"):
        prepare_pages(dataset, prepare(dataset))


@pytest.mark.parametrize("place", [-1, 2**31])
def test_places_that_are_none(tmp_path, place):
    rows = [("u", "a", 1, "p", place)]
    dataset = dataset_of(tmp_path / "d", rows, "user item timestamp page position")
    with pytest.raises(DataError, match="places on a page are counted from 0"):
        prepare_pages(dataset, prepare(dataset))


def test_histories_of_another_log(tmp_path):
    dataset = small(tmp_path / "d")
    with pytest.raises(DataError, match="not one of 7 exposures shows an item of the histories"):
        prepare_pages(dataset, histories_of([[0, 1]]))
    pages = prepare_pages(dataset, prepare(dataset))
    with pytest.raises(DataError, match="pages name item 0 or 3, but there are 1"):
        check_pages(pages, histories_of([[0]]))
    with pytest.raises(DataError, match="first of page 2, does not end where it begins"):
        check_pages(pages, histories_of([[0, 1, 2, 3]], times=[[30, 31, 32, 33]]))


def test_ends_of_history_are_what_a_loop_finds():
    random = np.random.default_rng(0)
    lengths = [0, 1, 7, 0, 64, 3]
    times = [np.sort(random.integers(0, 20, size)) for size in lengths]
    histories = histories_of([[0] * size for size in lengths], times=times)
    user = random.integers(-1, 6, 500).astype(np.int32)
    time = random.integers(-1, 22, 500)
    expected = [
        0 if each < 0 else histories.offsets[each] + int((times[each] < limit).sum())
        for each, limit in zip(user, time)
    ]
    assert history_ends(histories, user, time).tolist() == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grade": np.zeros(3, np.int32)}, "are no exposures"),
        ({"user": np.zeros(1, np.int32)}, "are no pages"),
        ({"offsets": np.array([0, 2, 2, 4])}, "rise from 0 to 4; no page is empty"),
        ({"offsets": np.array([0, 2, 3])}, "must be 3 numbers"),
    ],
)
def test_arrays_that_do_not_fit(change, message, monkeypatch):
    # The tests' checks of shapes would speak first; users do not have them.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    arrays = {
        "offsets": np.array([0, 2, 4]),
        "item": np.zeros(4, np.int32),
        "grade": np.zeros(4, np.int32),
        "position": np.zeros(4, np.int32),
        "value": np.zeros(4, np.float32),
        "user": np.zeros(2, np.int32),
        "time": np.zeros(2, np.int64),
        "history_end": np.zeros(2, np.int64),
    }
    Pages(**arrays, grades=GRADES, rule="")
    with pytest.raises(DataError, match=message):
        Pages(**{**arrays, **change}, grades=GRADES, rule="")


def test_distinct_histories_have_no_pages_of_their_own():
    assert history_ends(distinct([3]), np.zeros(1, np.int32), np.array([2])).tolist() == [2]
