"""MiniOneRec's sliding windows are laid over one another; what they lack is counted."""

import csv
import gzip
import io
import json
import random

import pytest

from jaxrec.data.dataset import DataError, read_dataset
from jaxrec.data.datasets.minionerec import MiniOneRecFiles, join_windows
from jaxrec.data.histories import prepare

HEADER = [
    "user_id",
    "history_item_title",
    "item_title",
    "history_item_id",
    "item_id",
    "history_item_sid",
    "item_sid",
]
ITEMS = {str(n): {"title": f"Item, {n}", "description": f"['d{n}', \"it's\"]"} for n in range(12)}


def windows(items, width=10):
    """What MiniOneRec writes: for each event but the first, up to `width` before it."""
    return [(items[max(n - width, 0) : n], items[n]) for n in range(1, len(items))]


def table(rows):
    """A table of (user, history, item) rows."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for user, history, item in rows:
        titles = [f"Item, {n}" for n in history]
        writer.writerow([user, titles, f"Item, {item}", history, item, ["<a_1>"], "<a_1>"])
    return text.getvalue()


def write_files(folder, tables, items=ITEMS, category="Toys"):
    folder.mkdir(exist_ok=True)
    (folder / f"{category}.item.json").write_text(json.dumps(items))
    for split, rows in tables.items():
        text = rows if isinstance(rows, str) else table(rows)
        (folder / f"{category}.{split}.csv").write_text(text)
    return str(folder)


def written(source, folder):
    source.write(folder)
    return read_dataset(folder)


def histories_of(dataset):
    grouped = dataset.interactions().group_by("user", maintain_order=True).agg("item")
    return dict(grouped.rows())


@pytest.mark.parametrize("seed", range(20))
def test_windows_give_their_sequence_back(seed):
    draw = random.Random(seed)
    # Few different items, so that repeats inside a window are common.
    items = [str(draw.randrange(30)) for _ in range(draw.randrange(2, 60))]
    rows = windows(items)
    assert join_windows(rows) == (items, 0, 0)
    # Any row may be missing while its neighbours overlap, as long as the last one is there.
    distinct = [f"{n}" for n in range(40)]
    rows = windows(distinct)
    kept = [row for row in rows[:-1] if draw.random() < 0.5] + rows[-1:]
    sequence, gaps, repeats = join_windows(kept)
    assert (repeats, sequence[-1]) == (0, "39")
    if not gaps:
        first = int(sequence[0])
        assert sequence == distinct[first:]


def test_what_cannot_be_joined_is_counted():
    rows = [(["a"], "b"), (["a", "b"], "c"), (["x", "y"], "z"), (["a"], "b"), (["x", "y"], "z")]
    assert join_windows(rows) == (["a", "b", "c", "x", "y", "z"], 1, 2)
    assert join_windows([]) == ([], 0, 0)


def test_three_tables(tmp_path):
    users = {"A0": [3, 1, 1, 2, 5, 4, 6, 7, 8, 9, 10, 11, 3], "A1": [2, 1, 0]}
    rows = [(user, *row) for user, items in users.items() for row in windows(items)]
    splits = {"train": rows[:8], "valid": rows[8:10], "test": rows[10:]}
    source = MiniOneRecFiles(write_files(tmp_path / "a", splits), licence="x")
    dataset = written(source, tmp_path / "d")
    assert histories_of(dataset) == {user: list(map(str, items)) for user, items in users.items()}
    assert dataset.interactions().filter(user="A1")["timestamp"].to_list() == [0, 1, 2]
    assert dataset.items().row(3) == ("3", "Item, 3", "d3 it's")
    assert dataset.manifest["counts"] == {"interactions": 16, "users": 2, "items": 12}
    assert dataset.manifest["time_unit"] == "order"
    assert dataset.manifest["name"] == "Toys"
    assert (
        "joined (0 histories may lack their start, 0 gaps, 0 repeated rows)"
        in (dataset.manifest["source"])
    )
    assert sorted(source.fingerprint()) == ["items", "log 0", "log 1", "log 2"]


def test_the_layout_of_the_repository(tmp_path):
    """Folders train, valid, test and index; the last train row of a user only."""
    root = tmp_path / "Amazon"
    for folder in ("train", "valid", "test", "index"):
        (root / folder).mkdir(parents=True)
    items = [str(n) for n in range(12)]
    rows = [("A7", [int(n) for n in history], int(item)) for history, item in windows(items)]
    name = "Toys_5_2016-10-2018-11.csv"
    (root / "train" / name).write_text(table(rows[8:9]))
    (root / "valid" / f"{name}.gz").write_bytes(gzip.compress(table(rows[9:10]).encode()))
    (root / "test" / name).write_text(table(rows[10:]))
    (root / "index" / "Toys.item.json").write_text(json.dumps(ITEMS))
    dataset = written(MiniOneRecFiles(str(root)), tmp_path / "d")
    assert histories_of(dataset) == {"A7": items}
    (root / "train" / "Toys_other.csv").write_text(table(rows))
    with pytest.raises(DataError, match="has 2 tables of 'Toys'"):
        MiniOneRecFiles(str(root)).fingerprint()


def test_rows_without_train_lose_their_start(tmp_path):
    items = [str(n) for n in range(12)]
    rows = [("A7", [int(n) for n in history], int(item)) for history, item in windows(items)]
    path = write_files(tmp_path / "a", {"test": [*rows[10:], ("A8", [1], 2)]})
    dataset = written(MiniOneRecFiles(path, "Toys"), tmp_path / "d")
    assert histories_of(dataset) == {"A7": items[1:], "A8": ["1", "2"]}
    assert "(1 histories may lack their start, 0 gaps" in dataset.manifest["source"]


def test_sequences_come_before_rows_without_train(tmp_path):
    path = write_files(tmp_path / "a", {"test": [("A7", [1], 2)]})
    lines = '{"user": "A7", "items": [0, 1, 2], "n_test": 1}\n'
    (tmp_path / "a" / "Toys.sequences.jsonl").write_text(lines)
    source = MiniOneRecFiles(path)
    assert histories_of(written(source, tmp_path / "d")) == {"A7": ["0", "1", "2"]}
    assert sorted(source.fingerprint()) == ["items", "log 0"]
    write_files(tmp_path / "a", {"train": [("A7", [5], 0)]})
    assert histories_of(written(source, tmp_path / "e")) == {"A7": ["5", "0", "1", "2"]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("user_id,item_id\nu,1\n", "has no column 'history_item_id'"),
        ("user_id,history_item_id,item_id\n", "has a header and no rows"),
        ('user_id,history_item_id,item_id\nu,"[1, 2",3\n', "row 1 is not a Python literal"),
        ("user_id,history_item_id,item_id\nu,1,3\n", "history_item_id must be a list, got '1'"),
        ("user_id,history_item_id,item_id\nu,,3\n", "row 1 is not a Python literal"),
        ("user_id,history_item_id,item_id\nu,[1.5],3\n", "1.5 is no id"),
        ("user_id,history_item_id,item_id\n,[1],3\n", "None is no id"),
        ("user_id,history_item_id,item_id\nu,[1],\n", "None is no id"),
        ("user_id,history_item_id,item_id\nu,[1],99\n", "not in items.parquet, for example '99'"),
        ("user_id,history_item_id,item_id\nu,[1],2,3,4\n", "more cells than the first line"),
        ("", r"Toys\.train\.csv is empty"),
    ],
)
def test_bad_tables(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        MiniOneRecFiles(write_files(tmp_path / "a", {"train": rows})).write(tmp_path / "d")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"user": "u"}', "line 1: no items"),
        ('{"user": "u", "items": 3}', "must be a list"),
        ("[", "line 1 is not JSON"),
    ],
)
def test_bad_sequences(tmp_path, line, message):
    path = write_files(tmp_path / "a", {})
    (tmp_path / "a" / "Toys.sequences.jsonl").write_text(line)
    with pytest.raises(DataError, match=message):
        MiniOneRecFiles(path).write(tmp_path / "d")


def test_files_that_are_not_there(tmp_path):
    path = write_files(tmp_path / "a", {})
    with pytest.raises(DataError, match="has no log of 'Toys'"):
        MiniOneRecFiles(path).write(tmp_path / "d")
    with pytest.raises(DataError, match="has no log of 'Games'"):
        MiniOneRecFiles(path, "Games").write(tmp_path / "d")
    with pytest.raises(DataError, match="is not a folder"):
        MiniOneRecFiles(str(tmp_path / "b")).write(tmp_path / "d")


def test_descriptions_that_only_look_like_lists(tmp_path):
    items = {"0": {"description": "[sic] a knife"}, "1": {"description": "['a', 'b']"}, "2": {}}
    path = write_files(tmp_path / "a", {"train": [("u", [0], 1)]}, items)
    dataset = written(MiniOneRecFiles(path), tmp_path / "d")
    assert dataset.items()["description"].to_list() == ["[sic] a knife", "a b", ""]


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("category", "counts", "cut"),
    [
        ("Industrial_and_Scientific", (3_285, 3_686, 22_743), 227),
        ("Office_Products", (3_231, 3_459, 22_447), 204),
    ],
)
def test_both_categories(tmp_path, shared_data, category, counts, cut):
    folder = shared_data / "minionerec-amazon2018"
    dataset = written(MiniOneRecFiles(str(folder), category), tmp_path / "d")
    histories = prepare(dataset)
    assert (histories.num_users, histories.num_items, histories.num_events) == counts
    # The rows of valid and test, joined here, are the sequences that were joined before.
    (tmp_path / "rows").mkdir()
    for ending in ("valid.csv.gz", "test.csv.gz", "item.json"):
        name = f"{category}.{ending}"
        (tmp_path / "rows" / name).symlink_to(folder / name)
    joined = written(MiniOneRecFiles(str(tmp_path / "rows")), tmp_path / "e")
    assert histories_of(joined) == histories_of(dataset)
    assert (
        f"({cut} histories may lack their start, 0 gaps, 0 repeated rows)"
        in (joined.manifest["source"])
    )
