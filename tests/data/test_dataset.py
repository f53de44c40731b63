import json

import numpy as np
import polars as pl
import pytest
from small_logs import log_of, write_log

from jaxrec.data.dataset import (
    DataError,
    item_table,
    read_dataset,
    titles,
    write_dataset,
)

ROWS = [("a", 1, 10), ("a", 2, 20), ("b", 1, 5)]
NAMES = {"name": "t", "source": "test", "licence": "none"}


def write(folder, log=None, items=None, **options):
    log = log_of(ROWS) if log is None else log
    items = {"item": ["1", "2"]} if items is None else items
    return write_dataset(folder, log, items, **NAMES, **options)


def test_round_trip_with_optional_columns(tmp_path):
    log = log_of(ROWS, event=["x", "y", "x"], page=["p", "p", "q"], value=[1.0, 2.5, 3.0])
    log["position"] = np.array([0, 1, 0], np.int32)
    write(tmp_path / "d", log, history_events=("x",))
    dataset = read_dataset(tmp_path / "d")
    frame = dataset.interactions()
    assert frame["timestamp"].to_list() == [10, 20, 5]
    assert frame.schema["position"] == pl.Int64
    assert frame["value"].to_list() == [1.0, 2.5, 3.0]
    manifest = dataset.manifest
    assert manifest["counts"] == {"interactions": 3, "users": 2, "items": 2}
    assert manifest["schema_version"] == 1
    assert manifest["time_unit"] == "s"
    assert manifest["history_events"] == ["x"]
    assert manifest["licence"] == "none"


@pytest.mark.parametrize(
    ("log", "items", "message"),
    [
        ({"user": ["a"], "item": ["1"]}, None, "has no column 'timestamp'"),
        (log_of([("a", 1, 1.5)]), None, "'timestamp' is Float64, and must be Int64"),
        ({"user": [1], "item": ["1"], "timestamp": [1]}, None, "'user' is Int64, and must be"),
        (log_of([("a", 1, -4)]), None, "earliest timestamp is -4"),
        (log_of([("a", 1, 1), ("a", 7, 1)]), None, r"1 item\(s\) of the log .* '7'"),
        (log_of([("a", 1, None), ("a", 1, 3)]), None, "1 row.s. have no 'timestamp'"),
        (None, {"item": ["1", "2", "1"]}, r"1 item id\(s\) occur more than once, .* '1'"),
        (None, {"name": ["1", "2"]}, "items.parquet has no column 'item'"),
        (None, {"item": [1, 2]}, "'item' is Int64, and must be String"),
        (log_of(ROWS, page=[1, 2, 3]), None, "'page' is Int64, and must be String"),
    ],
)
def test_bad_tables_are_named_and_nothing_is_written(tmp_path, log, items, message):
    with pytest.raises(DataError, match=message):
        write(tmp_path / "d", log, items)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_log_is_an_error(tmp_path):
    empty = pl.DataFrame(schema={"user": pl.String, "item": pl.String, "timestamp": pl.Int64})
    with pytest.raises(DataError, match="the log is empty"):
        write(tmp_path / "d", empty)


def test_unknown_time_unit_and_history_events(tmp_path):
    with pytest.raises(DataError, match="time_unit 'ms'"):
        write(tmp_path / "d", time_unit="ms")
    with pytest.raises(DataError, match="no column event"):
        write(tmp_path / "d", history_events=("clicked",))
    with pytest.raises(DataError, match=r"\['x'\]"):
        write(tmp_path / "d", log_of(ROWS, event=["x"] * 3), history_events=("clicked",))


def test_a_failed_write_leaves_the_old_folder(tmp_path):
    write(tmp_path / "d")
    with pytest.raises(DataError):
        write(tmp_path / "d", log_of([("a", 9, 1)]))
    assert read_dataset(tmp_path / "d").interactions().height == 3
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


@pytest.mark.parametrize("name", ["interactions.parquet", "items.parquet", "dataset.json"])
def test_a_missing_file_is_named(tmp_path, name):
    write(tmp_path / "d")
    (tmp_path / "d" / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        read_dataset(tmp_path / "d")


def test_a_changed_file_is_noticed(tmp_path):
    write(tmp_path / "d")
    with (tmp_path / "d" / "items.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match="SHA-256"):
        read_dataset(tmp_path / "d")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema version 2"),
        ({"counts": {"interactions": 4, "users": 2, "items": 2}}, "holds"),
        ({"sha256": {}}, "sha256 is .* which it cannot be"),
    ],
)
def test_a_manifest_that_disagrees_is_an_error(tmp_path, change, message):
    path = write(tmp_path / "d").path + "/dataset.json"
    with open(path) as file:
        manifest = json.load(file)
    with open(path, "w") as file:
        json.dump({**manifest, **change}, file)
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path / "d")


def test_a_manifest_without_keys_or_json(tmp_path):
    write(tmp_path / "d")
    (tmp_path / "d" / "dataset.json").write_text("{}")
    with pytest.raises(DataError, match="lacks schema_version"):
        read_dataset(tmp_path / "d")
    (tmp_path / "d" / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="not readable as JSON"):
        read_dataset(tmp_path / "d")


def test_item_table_is_text_in_the_order_asked_for(tmp_path):
    items = {
        "item": ["1", "2", "3"],
        "title": ["One", None, "  Three \n x"],
        "tags": [["a", "b"], [], None],
        "paths": [[["a", "b"], ["c"]], [["d"]], []],
        "year": [1995.0, None, 2000.5],
    }
    folder = write(tmp_path / "d", items=items)
    table = item_table(folder, np.array(["3", "1", "2"]))
    assert table == {
        "item": ["3", "1", "2"],
        "title": ["Three x", "One", ""],
        "tags": ["", "a, b", ""],
        "paths": ["", "a > b; c", "d"],
        "year": ["2000.5", "1995", ""],
    }
    assert list(item_table(folder.path, ["2"], columns=("year",))) == ["item", "year"]
    assert titles(folder, ["2", "1"]) == ["2", "One"]
    with pytest.raises(DataError, match=r"does not have 1 item.*'9'"):
        item_table(folder, ["1", "9"])
    with pytest.raises(DataError, match="no column 'brand'"):
        item_table(folder, ["1"], columns=("brand",))


def test_titles_are_ids_where_items_have_none(tmp_path):
    assert titles(write_log(tmp_path / "d", ROWS), ["2", "1"]) == ["2", "1"]
