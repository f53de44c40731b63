import json
import subprocess
import sys
import zipfile

import pytest

from jaxrec.data.dataset import DataError, item_table, read_dataset
from jaxrec.data.datasets import movielens
from jaxrec.data.datasets.canonical import CanonicalFolder
from jaxrec.data.datasets.movielens import MovieLens100K
from jaxrec.data.datasets.recbole import RecBoleFiles
from jaxrec.data.datasets.sequences import SequenceFiles
from jaxrec.data.histories import prepare
from jaxrec.files import file_hash

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
ITEM = (
    'item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n1\t"One"\t\tA B\n'
)


def write_atomic(folder, inter=INTER + "u\t1\t3.5\t20.7\nv\t1\t4\t10\n", item=ITEM):
    folder.mkdir(exist_ok=True)
    (folder / "ml-100k.inter").write_text(inter)
    if item is not None:
        (folder / "ml-100k.item").write_text(item)
    return str(folder)


def write_sequences(folder, sequences, items, timestamps=None):
    folder.mkdir(exist_ok=True)
    (folder / "sequences.txt").write_text(sequences)
    (folder / "items.jsonl").write_text(items)
    if timestamps is not None:
        (folder / "timestamps.txt").write_text(timestamps)
    return str(folder)


def written(source, folder):
    source.write(folder)
    return read_dataset(folder)


def test_recbole_files(tmp_path):
    source = RecBoleFiles(
        write_atomic(tmp_path / "a"), "ml-100k", item_columns=(("movie_title", "title"),)
    )
    dataset = written(source, tmp_path / "d")
    assert dataset.interactions().rows() == [("u", "1", 20, 3.5), ("v", "1", 10, 4.0)]
    assert item_table(dataset, ["1"], ("title", "class")) == {
        "item": ["1"],
        "title": ['"One"'],
        "class": ["A B"],
    }
    before = source.fingerprint()
    write_atomic(tmp_path / "a", inter=INTER + "u\t1\t3.5\t21\n")
    assert source.fingerprint() != before


def test_recbole_without_items_and_times(tmp_path):
    path = write_atomic(
        tmp_path / "a",
        "user_id:token\titem_id:token\nu\t7\nv\t8\nu\t9\n",
        item=None,
    )
    dataset = written(RecBoleFiles(path, "ml-100k"), tmp_path / "d")
    assert dataset.interactions()["timestamp"].to_list() == [0, 0, 1]
    assert dataset.items()["item"].to_list() == ["7", "8", "9"]
    assert dataset.manifest["time_unit"] == "order"


@pytest.mark.parametrize(
    ("inter", "message"),
    [
        ("user_id\titem_id:token\nu\t1\n", "header cell.*no type"),
        ("user:token\titem_id:token\nu\t1\n", "has no column 'user_id'"),
        (INTER + "u\t1\tgood\t3\n", "a float column holds text"),
        (INTER + "u\t1\t3\t3\t9\t9\n", "more cells than the first line"),
        (INTER + "u\t1\t3\t\n", "have no 'timestamp'"),
        (INTER + "u\t2\t3\t5\n", "not in items.parquet"),
    ],
)
def test_bad_recbole_files(tmp_path, inter, message):
    with pytest.raises(DataError, match=message):
        RecBoleFiles(write_atomic(tmp_path / "a", inter), "ml-100k").write(tmp_path / "d")


def test_recbole_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"x\.inter does not exist"):
        RecBoleFiles(str(tmp_path), "x").write(tmp_path / "d")
    with pytest.raises(DataError, match=r"x\.inter does not exist"):
        RecBoleFiles(str(tmp_path), "x").fingerprint()


def test_sequence_files(tmp_path):
    items = [
        {"item_id": 2, "title": "B", "categories": [["X", "Y"], ["Z"]], "price": 3},
        {"item_id": 1, "brands": ["p", "q"], "price": None},
    ]
    source = SequenceFiles(
        write_sequences(
            tmp_path / "a",
            "u1 2 1\nu2 2\n\n",
            "\n".join(map(json.dumps, items)),
            "u1 100 90\nu2 5\n",
        )
    )
    dataset = written(source, tmp_path / "d")
    assert dataset.interactions().rows() == [("u1", "2", 100), ("u1", "1", 90), ("u2", "2", 5)]
    assert dataset.manifest["name"] == "a"
    assert dataset.manifest["time_unit"] == "s"
    assert dataset.items().columns == ["item", "title", "categories", "price", "brands"]
    assert item_table(dataset, ["1", "2"]) == {
        "item": ["1", "2"],
        "title": ["", "B"],
        "categories": ["", "X > Y; Z"],
        "price": ["", "3"],
        "brands": ["p, q", ""],
    }
    assert prepare(dataset).items.tolist() == ["2", "1"]
    assert sorted(source.fingerprint()) == ["items.jsonl", "sequences.txt", "timestamps.txt"]


def test_sequence_files_without_times_have_an_order_only(tmp_path):
    path = write_sequences(tmp_path / "a", "u 1 2 1\n", '{"item_id": 1}\n{"item_id": 2}\n')
    dataset = written(SequenceFiles(path), tmp_path / "d")
    assert dataset.interactions()["timestamp"].to_list() == [0, 1, 2]
    assert dataset.manifest["time_unit"] == "order"
    assert prepare(dataset).time_unit == "order"


@pytest.mark.parametrize(
    ("sequences", "timestamps", "items", "message"),
    [
        ("u 1\nu 1\n", None, '{"item_id": 1}', "user 'u' has two lines"),
        ("u\n", None, '{"item_id": 1}', "user 'u' names no item"),
        ("u 1 1\n", "u 5\n", '{"item_id": 1}', "another number of times .* 'u'"),
        ("u 1\n", "v 5\n", '{"item_id": 1}', "same order"),
        ("u 1\n", "u x\n", '{"item_id": 1}', "times are whole seconds"),
        ("u 1\n", None, '{"id": 1}', "line 1: no 'item_id' among"),
        ("u 1\n", None, "[1]", "line 1 is not a JSON object"),
        ("u 1\n", None, '{"item_id"', "line 1 is not JSON"),
        ("u 3\n", None, '{"item_id": 1}', "not in items.parquet, for example '3'"),
        ("", None, '{"item_id": 1}', "sequences.txt is empty"),
    ],
)
def test_bad_sequence_files(tmp_path, sequences, timestamps, items, message):
    path = write_sequences(tmp_path / "a", sequences, items, timestamps)
    with pytest.raises(DataError, match=message):
        SequenceFiles(path).write(tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_sequence_files_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match=r"sequences\.txt does not exist"):
        SequenceFiles(str(tmp_path)).write(tmp_path / "d")


def test_a_canonical_folder_is_checked_and_copied(tmp_path):
    source = RecBoleFiles(write_atomic(tmp_path / "a"), "ml-100k")
    first = written(source, tmp_path / "d")
    second = written(CanonicalFolder(str(tmp_path / "d")), tmp_path / "e")
    assert second.manifest == first.manifest
    assert CanonicalFolder(first.path).fingerprint() == first.manifest["sha256"]
    with pytest.raises(DataError, match="not a dataset folder"):
        CanonicalFolder(str(tmp_path)).write(tmp_path / "f")


@pytest.fixture
def fake_wheel(tmp_path, monkeypatch):
    wheel = tmp_path / "wheels" / movielens.WHEEL
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        for suffix, content in (("inter", INTER + "u\t1\t3.5\t20\n"), ("item", ITEM)):
            archive.writestr(f"recbole/dataset_example/ml-100k/ml-100k.{suffix}", content)
    monkeypatch.setattr(movielens, "WHEEL_SHA256", file_hash(wheel))
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
    return wheel


def pip_that(monkeypatch, act):
    calls = []

    def run(command, **options):
        calls.append(command)
        return act(command)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_movielens_from_a_wheel(tmp_path, fake_wheel):
    dataset = written(MovieLens100K(str(fake_wheel)), tmp_path / "d")
    assert item_table(dataset, ["1"]) == {
        "item": ["1"],
        "title": ['"One"'],
        "year": [""],
        "genres": ["A B"],
    }
    assert "GroupLens" in dataset.manifest["licence"]


def test_movielens_is_fetched_once_by_pip(tmp_path, fake_wheel, monkeypatch):
    def download(command):
        destination = command[command.index("--dest") + 1]
        (tmp_path / destination / movielens.WHEEL).write_bytes(fake_wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    calls = pip_that(monkeypatch, download)
    MovieLens100K().write(tmp_path / "d")
    MovieLens100K().write(tmp_path / "e")
    assert len(calls) == 1
    assert calls[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "recbole==1.2.1"} <= set(calls[0])
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [movielens.WHEEL]
    assert MovieLens100K().fingerprint() == MovieLens100K(str(fake_wheel)).fingerprint()


def test_movielens_offline_says_what_to_do(tmp_path, fake_wheel, monkeypatch):
    def fail(command):
        return subprocess.CompletedProcess(command, 1, "", "x\nERROR: No matching distribution")

    pip_that(monkeypatch, fail)
    with pytest.raises(DataError, match=r"No matching distribution.*MovieLens100K\(path=") as error:
        MovieLens100K().write(tmp_path / "d")
    assert str(tmp_path / "cache") in str(error.value)


def test_another_wheel_is_refused(tmp_path, fake_wheel, monkeypatch):
    fake_wheel.write_bytes(fake_wheel.read_bytes() + b"x")
    with pytest.raises(DataError, match="SHA-256"):
        MovieLens100K(str(fake_wheel)).write(tmp_path / "d")
    with pytest.raises(DataError, match="does not exist"):
        MovieLens100K(str(tmp_path / "nowhere")).fingerprint()


@pytest.mark.slow
def test_the_real_wheel(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
    counts = written(MovieLens100K(), tmp_path / "d").manifest["counts"]
    assert counts == {"interactions": 100_000, "users": 943, "items": 1682}


@pytest.mark.real_data
def test_movielens_counts(tmp_path, shared_data):
    dataset = written(MovieLens100K(str(shared_data / "movielens-100k")), tmp_path / "d")
    histories = prepare(dataset)
    assert (histories.num_users, histories.num_items, histories.num_events) == (943, 1682, 100_000)
    table = item_table(dataset, histories.items[:1])
    assert table["title"] == ["Toy Story"]
    assert table["year"] == ["1995"]
    core = prepare(dataset, min_user=5, min_item=5)
    # Items with fewer than five ratings; every user has twenty or more.
    assert (core.num_users, core.num_items) == (943, 1349)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "counts", "unit"),
    [
        # The path of Beauty, with half as many lines again.
        pytest.param("amazon2014-sports", (35_598, 18_357, 296_337), "s", marks=pytest.mark.slow),
        ("movielens-1m", (6_040, 3_416, 994_083), "order"),
    ],
)
def test_sequence_counts(tmp_path, shared_data, name, counts, unit):
    check_counts(written(SequenceFiles(str(shared_data / name)), tmp_path / "d"), counts, unit)


@pytest.mark.real_data
def test_sequence_counts_of_beauty(beauty):
    check_counts(beauty, (22_363, 12_101, 198_502), "s")


def check_counts(dataset, counts, unit):
    histories = prepare(dataset)
    assert (histories.num_users, histories.num_items, histories.num_events) == counts
    assert histories.time_unit == unit
    assert histories.items[:2].tolist() == ["1", "2"]
