"""Anybody's table: the same log in every form, columns found and named, every fault one error."""

import gzip
import json

import numpy as np
import polars as pl
import pytest

from jaxrec.commands.data_import import formats, main, reader
from jaxrec.data import tables
from jaxrec.data.dataset import read_dataset
from jaxrec.data.datasets.tables import TableFiles
from jaxrec.data.errors import DataError

ROWS = [("ann", "i,1", 20), ("bob", "i2", 10), ("ann", "i2", 5)]
CSV = 'user_id,item_id,timestamp\nann,"i,1",20\nbob,i2,10\nann,i2,5\n'


def written(folder, path, **options):
    TableFiles(str(path), **options).write(folder)
    return read_dataset(folder)


def put(folder, name, content):
    path = folder / name
    content = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


FORMS = {
    "log.csv": CSV,
    "log.csv.gz": CSV,
    "log.tsv": "user_id\titem_id\ttimestamp\nann\ti,1\t20\nbob\ti2\t10\nann\ti2\t5\n",
    "log.jsonl": "".join(
        json.dumps({"user_id": u, "item_id": i, "timestamp": t, "more": [1]}) + "\n"
        for u, i, t in ROWS
    ),
}
FORMS["log.jsonl.gz"] = FORMS["log.jsonl"]


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_log_reads_the_same(tmp_path, name):
    dataset = written(tmp_path / "d", put(tmp_path, name, FORMS[name]))
    assert dataset.interactions().rows() == ROWS
    assert dataset.items().rows() == [("i,1",), ("i2",)]
    assert "user: user_id, item: item_id, time: timestamp in s" in dataset.manifest["source"]


def test_parquet_with_numbers_for_ids_and_dates_for_times(tmp_path):
    frame = pl.DataFrame({"uid": [7, 8], "Item": [1, 2], "ts": [20, 10]})
    frame = frame.with_columns(pl.from_epoch("ts"))
    frame.write_parquet(tmp_path / "log.parquet")
    dataset = written(tmp_path / "d", tmp_path / "log.parquet")
    assert dataset.interactions().rows() == [("7", "1", 20), ("8", "2", 10)]


def test_named_columns_events_pages_and_values(tmp_path):
    text = "who;what;when;kind;score;request;slot\na;x;2020-01-01T00:00:10Z;click;0.5;r1;1\n"
    text += "a;y;2020-01-01T00:00:10Z;exposed;;r1;0\n"
    dataset = written(
        tmp_path / "d",
        put(tmp_path, "log.csv", text),
        user="who",
        item="what",
        time="when",
        event="kind",
        value="score",
        page="request:request",
        position="slot",
        separator=";",
        grades=("exposed", "click"),
        history_events=("click",),
    )
    expected = ("user", "item", "timestamp", "event", "value", "page", "position")
    assert sorted(dataset.interactions().select(expected).rows()) == [
        ("a", "x", 1577836810, "click", 0.5, "a:r1", 1),
        ("a", "y", 1577836810, "exposed", None, "a:r1", 0),
    ]
    assert dataset.manifest["grades"] == ["exposed", "click"]
    assert dataset.manifest["history_events"] == ["click"]
    rule = dataset.manifest["page_rule"]
    assert rule == "pages are requests: a user's rows with the same request"


def test_pages_by_a_gap_in_time(tmp_path):
    path = put(tmp_path, "log.csv", "user,item,time\nu,a,0\nu,b,5\nu,c,90\nv,a,6\n")
    dataset = written(tmp_path / "d", path, page="gap:10")
    pages = dataset.interactions().sort("user", "timestamp")
    assert pages["position"].to_list() == [0, 1, 0, 0]
    assert pages["page"].n_unique() == 3
    assert "at most 10 s apart" in dataset.manifest["page_rule"]


@pytest.mark.parametrize(
    ("times", "unit"),
    [
        (["1600000000", "1600000001.9"], "s"),
        (["1600000000000", "1600000001999"], "ms"),
        (["1600000000000000", "1600000001999999"], "us"),
        (["1600000000000000000", "1600000001999999999"], "ns"),
        (["2020-09-13 12:26:40", "2020-09-13 12:26:41.9"], "iso"),
    ],
)
def test_the_unit_of_time_is_seen(tmp_path, times, unit):
    text = "user,item,time\n" + "".join(f"u,i,{time}\n" for time in times)
    dataset = written(tmp_path / "d", put(tmp_path, "log.csv", text))
    assert dataset.interactions()["timestamp"].to_list() == [1_600_000_000, 1_600_000_001]
    assert f"time in {unit}" in dataset.manifest["source"]


def test_a_table_whose_first_line_is_data(tmp_path):
    path = put(tmp_path, "u.tsv", "ann\ti1\t3\t20\nbob\ti2\t4\t10\n")
    names = ("user", "item", "stars", "time")
    dataset = written(tmp_path / "d", path, names=names, value="stars")
    assert dataset.interactions().rows() == [("ann", "i1", 20, 3.0), ("bob", "i2", 10, 4.0)]


def test_a_strptime_format(tmp_path):
    path = put(tmp_path, "log.csv", "user,item,time\nu,i,11/12/2019 2:14:46 PM\n")
    dataset = written(tmp_path / "d", path, time_unit="%m/%d/%Y %I:%M:%S %p")
    assert dataset.interactions()["timestamp"].to_list() == [1573568086]


def test_without_times_the_rows_are_the_order(tmp_path):
    path = put(tmp_path, "log.csv", "user,item\nu,a\nv,a\nu,b\n")
    dataset = written(tmp_path / "d", path)
    assert dataset.interactions()["timestamp"].to_list() == [0, 0, 1]
    assert dataset.manifest["time_unit"] == "order"
    path = put(tmp_path, "timed.csv", CSV)
    assert written(tmp_path / "e", path, time="none").manifest["time_unit"] == "order"


def test_a_pattern_joins_files_in_the_order_of_their_names(tmp_path):
    for name, user in (("part-2.csv", "b"), ("part-1.csv", "a"), ("part-3.csv", "c")):
        put(tmp_path, name, f"user,item,time\n{user},x,1\n")
    source = TableFiles(str(tmp_path / "part-*.csv"))
    source.write(tmp_path / "d")
    dataset = read_dataset(tmp_path / "d")
    assert dataset.interactions()["user"].to_list() == ["a", "b", "c"]
    assert dataset.manifest["name"] == "part"
    assert list(source.fingerprint()) == ["part-1.csv", "part-2.csv", "part-3.csv"]


@pytest.mark.parametrize("all_items", [False, True])
def test_items_come_from_their_own_table(tmp_path, all_items):
    log = put(tmp_path, "log.csv", "user,item,time\nu,2,1\nu,3,2\n")
    items = put(tmp_path, "items.csv", 'item,name,price\n1,One,3\n2,"Two, too",\n3,,1\n')
    dataset = written(tmp_path / "d", log, items=str(items), title="name", all_items=all_items)
    expected = [("2", "Two, too", None), ("3", None, "1")]
    assert dataset.items().rows() == ([("1", "One", "3")] if all_items else []) + expected
    assert dataset.items().columns == ["item", "title", "price"]


def test_items_as_json_lines_and_without_metadata(tmp_path):
    log = put(tmp_path, "log.csv", "user,item,time\nu,2,1\nu,3,2\n")
    items = put(tmp_path, "items.jsonl", '{"item_id": 2, "title": "Two", "tags": ["a", "b"]}\n')
    dataset = written(tmp_path / "d", log, items=str(items))
    assert dataset.items().rows() == [("2", "Two", ["a", "b"]), ("3", None, None)]


BAD = {
    "no such file": ("lag.csv", None, {}, "Perhaps you meant .*log.csv"),
    "an empty file": ("e.csv", "", {}, r"e.csv is empty \(0 bytes\)"),
    "only a header": ("e.csv", "user,item,time\n", {}, "the log is empty"),
    "an unknown ending": ("log.xls", "x", {}, "does not say what kind of table"),
    "no usual column": ("e.csv", "a,b\n1,2\n", {}, "usual name for users.*--user COLUMN"),
    "a misspelt column": (
        "e.csv",
        "user,item,time\nu,i,1\n",
        {"user": "usr"},
        "no column 'usr'.*Perhaps 'usr' is 'user'",
    ),
    "a time that is text": (
        "e.csv",
        "user,item,time\nu,i,1\nu,i,soon\n",
        {"time_unit": "s"},
        "soon",
    ),
    "a date that is none": ("e.csv", "user,item,time\nu,i,2020-13-45\n", {}, "not a date such as"),
    "an unknown unit": ("e.csv", CSV, {"time_unit": "h"}, "time unit 'h' is unknown"),
    "a negative time": ("e.csv", "user,item,time\nu,i,-5\n", {}, "earliest timestamp is -5"),
    "milliseconds read as seconds": (
        "e.csv",
        "user,item,time\nu,i,1600000000000\n",
        {"time_unit": "s"},
        "the year 2100.*milliseconds.*--time-unit ms",
    ),
    "a user that is missing": ("e.csv", "user,item,time\n,i,5\n", {}, "1 row.* no 'user'"),
    "an item that is missing": ("e.csv", "user,item,time\nu,,5\nu,,6\n", {}, "2 row.* no 'item'"),
    "a time that is missing": ("e.csv", "user,item,time\nu,i,\n", {}, "1 row.* no 'timestamp'"),
    "another encoding": ("e.csv", "user,item,time\nü,i,5\n".encode("latin-1"), {}, "not UTF-8"),
    "too many cells": ("e.csv", "user,item,time\nu,i,5,6\n", {}, "more cells than the first line"),
    "lines that are not JSON": ("e.jsonl", '{"user": 1, "item": 2}\nnope\n', {}, "e.jsonl"),
    "a folder": (".", None, {}, "does not say|is a folder"),
    "a value that is not finite": (
        "e.csv",
        "user,item,time,v\nu,i,1,nan\n",
        {"value": "v"},
        "not finite",
    ),
    "a value that is text": ("e.csv", "user,item,time,v\nu,i,1,x\n", {"value": "v"}, "'?x'?"),
    "events that are no grades": (
        "e.csv",
        "user,item,time,kind\nu,i,1,buy\n",
        {"event": "kind", "grades": ("view",)},
        "grades .* must name every event.*'buy'",
    ),
    "history events that are none": (
        "e.csv",
        "user,item,time,kind\nu,i,1,buy\n",
        {"event": "kind", "history_events": ("order",)},
        "name no event of the log",
    ),
    "a page rule that is none": ("log.csv", None, {"page": "session"}, "no such rule"),
    "a request that is no column": ("log.csv", None, {"page": "request:r"}, "no column 'r'"),
    "a pattern without files": ("none-*.csv", None, {}, "no file matches"),
    "a title that is no column": (
        "e.csv",
        "user,item,time\nu,i,1\n",
        {"items": "log.csv", "title": "name"},
        "no column 'name'",
    ),
    "items named twice": (
        "e.csv",
        "user,item,time\nu,i,1\n",
        {"items": "twice.csv"},
        "occur more than once, for example 'i'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables(tmp_path, case, monkeypatch):
    name, content, options, message = BAD[case]
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "log.csv", CSV)
    put(tmp_path, "twice.csv", "item,title\ni,A\ni,B\n")
    if content is not None:
        put(tmp_path, name, content)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match=message):
        written(tmp_path / "d", name, **options)
    assert sorted(tmp_path.iterdir()) == before


def test_a_truncated_gz_is_an_error(tmp_path):
    rows = "".join(f"u{n},i{n * 7919 % 1000},{n}\n" for n in range(5000))
    whole = gzip.compress(("user,item,time\n" + rows).encode())
    (tmp_path / "log.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"log\.csv\.gz"):
        written(tmp_path / "d", tmp_path / "log.csv.gz")
    lines = tmp_path / "lines.txt.gz"
    lines.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"lines\.txt\.gz cannot be read"):
        list(tables.text_lines(lines))


def test_lines_tell_where_the_encoding_breaks(tmp_path):
    path = put(tmp_path, "a.txt", b"\xef\xbb\xbfone\r\ntwo\ncaf\xe9\n")
    lines = tables.text_lines(path)
    assert [next(lines), next(lines)] == [(1, "one"), (2, "two")]
    with pytest.raises(DataError, match=r"line 3 is not UTF-8 \(byte 0xe9 at place 3"):
        next(lines)


def test_json_that_says_two_things(tmp_path):
    path = put(tmp_path, "a.json", '{"1": ["a"], "2": [], "1": ["b"]}')
    with pytest.raises(DataError, match="names '1' twice"):
        tables.json_object(path)
    columns = tables.columns_of([{"id": 1, "n": 10**400, "m": 2}, {"id": 2, "m": 2.5}], "id")
    assert columns == {"item": ["1", "2"], "n": [str(10**400), ""], "m": [2.0, 2.5]}


def test_compression_that_python_lacks_is_said(tmp_path):
    with pytest.raises(DataError, match="decompress it with `unzstd`"):
        next(tables.text_lines(put(tmp_path, "a.txt.zst", b"x")))


def test_spilled_batches_come_back_in_order():
    rows = [(number, str(number)) for number in range(10)]
    batches = tables.batched(rows, ("n", "text"), size=3)
    with tables.spilled(batches, {"n": pl.Int64, "text": pl.String}) as frame:
        assert frame.collect().rows() == rows
    with tables.spilled([], {"n": pl.Int64}) as frame:
        assert frame.collect().height == 0


def test_import_finds_every_format(tmp_path, capsys):
    names = formats()
    assert "tables" in names
    assert {reader(name).__module__.rsplit(".", 1)[1] for name in names} == set(names)
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in names:
        assert f"  {name} " in shown


def test_import_writes_a_folder_once(tmp_path, capsys):
    path, out = put(tmp_path, "log.csv", CSV), tmp_path / "d"
    assert main([str(path), "--out", str(out)]) == 0
    assert "3 events of 2 users with 2 items" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"already holds a dataset.*--replace"):
        main(["tables", str(path), "--out", str(out)])
    assert main(["tables", str(path), "--out", str(out), "--time", "none", "--replace"]) == 0
    assert "no clock" in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("mine")
    with pytest.raises(ValueError, match="is not a dataset folder; it is left as it is"):
        main([str(path), "--out", str(tmp_path / "other"), "--replace"])
    with pytest.raises(ValueError, match="Perhaps you meant 'tables'"):
        main(["tabels", str(path), "--out", str(out)])


def test_a_large_log_is_written_in_the_order_of_its_rows(tmp_path):
    # More rows than one batch of the streaming engine: nothing is reordered on the way.
    rng = np.random.default_rng(0)
    rows = 300_000
    frame = pl.DataFrame({"user": rng.integers(0, 999, rows), "item": rng.integers(0, 99, rows)})
    frame = frame.with_columns(time=np.arange(rows))
    frame.write_csv(tmp_path / "log.csv")
    dataset = written(tmp_path / "d", tmp_path / "log.csv")
    assert dataset.interactions()["timestamp"].to_list() == list(range(rows))
    assert dataset.items()["item"].to_list() == [
        str(each) for each in frame["item"].unique(maintain_order=True)
    ]
