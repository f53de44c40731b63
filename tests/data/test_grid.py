"""GRID's records as Parquet shards."""

import polars as pl
import pytest

from jaxrec.data.dataset import DataError, read_dataset
from jaxrec.data.datasets.grid import GridFiles


def write_shards(root, **folders):
    """Parquet files 0, 1, ... of each folder; `root_` is the folder itself."""
    root.mkdir(exist_ok=True)
    for name, frames in folders.items():
        folder = root if name == "root_" else root / name
        folder.mkdir(exist_ok=True)
        for number, columns in enumerate(frames):
            pl.DataFrame(columns).write_parquet(folder / f"part-{number}.parquet")
    return str(root)


def written(source, folder):
    source.write(folder)
    return read_dataset(folder)


ITEMS = [
    {"id": [10, 2], "text": [b"Title: ten", b"Title: caf\xc3\xa9"], "embedding": [[0.5], [1.5]]},
    {"id": [0, 1], "text": [b"zero", None], "embedding": [[0.0], [2.5]]},
]


def test_parts_and_items(tmp_path):
    path = write_shards(
        tmp_path / "beauty",
        training=[
            {"user_id": [7, 3], "sequence_data": [[1], [2, 2]]},
            {"user_id": [9], "sequence_data": [[0, 1, 2]]},
        ],
        evaluation=[{"user_id": [7, 3], "sequence_data": [[1, 2], [2, 2, 0]]}],
        testing=[{"user_id": [3, 7], "sequence_data": [[2, 2, 0, 10], [1, 2, 1]]}],
        items=ITEMS,
    )
    dataset = written(GridFiles(path), tmp_path / "d")
    # The longest row of each user, users in the order of the files.
    assert dataset.interactions().rows() == [
        ("7", "1", 0),
        ("7", "2", 1),
        ("7", "1", 2),
        ("3", "2", 0),
        ("3", "2", 1),
        ("3", "0", 2),
        ("3", "10", 3),
        ("9", "0", 0),
        ("9", "1", 1),
        ("9", "2", 2),
    ]
    assert dataset.items().columns == ["item", "text"]
    assert dataset.items().rows() == [
        ("0", "zero"),
        ("1", None),
        ("2", "Title: caf\u00e9"),
        ("10", "Title: ten"),
    ]
    assert dataset.manifest["time_unit"] == "order"
    assert dataset.manifest["name"] == "beauty"
    only = written(GridFiles(path, part="training", name="x"), tmp_path / "e")
    assert only.manifest["counts"] == {"interactions": 6, "users": 3, "items": 4}
    before = GridFiles(path).fingerprint()
    assert sorted(before) == [
        "evaluation/part-0.parquet",
        "items/part-0.parquet",
        "items/part-1.parquet",
        "testing/part-0.parquet",
        "training/part-0.parquet",
        "training/part-1.parquet",
    ]
    write_shards(tmp_path / "beauty", items=[ITEMS[1]])
    assert GridFiles(path).fingerprint() != before


def test_one_folder_and_lists_of_one(tmp_path):
    """A TFRecord's features are lists, whatever they hold."""
    path = write_shards(
        tmp_path / "a",
        root_=[
            {"user_id": [[1], [2]], "sequence_data": [[5], [6, 5]]},
            {"item_id": [[6], [5]], "text": [[b"six"], [b"five"]], "price": [1.5, None]},
        ],
    )
    dataset = written(GridFiles(path), tmp_path / "d")
    assert dataset.interactions().rows() == [("1", "5", 0), ("2", "6", 0), ("2", "5", 1)]
    assert dataset.items().rows() == [("5", "five", None), ("6", "six", 1.5)]


def test_without_items(tmp_path):
    shards = [{"user_id": ["u"], "sequence_data": [["b", "10", "9"]]}]
    dataset = written(GridFiles(write_shards(tmp_path / "a", test=shards)), tmp_path / "d")
    assert dataset.items()["item"].to_list() == ["9", "10", "b"]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({"training": [{"user": [1], "sequence_data": [[1]]}]}, "has no column 'user_id'"),
        ({"training": [{"user_id": [1], "items": [[1]]}]}, "has no column 'sequence_data'"),
        ({"training": [{"user_id": [1], "sequence_data": ["1 2"]}]}, "must be a list of item"),
        ({"training": [{"user_id": [None], "sequence_data": [[1]]}]}, "have no 'user'"),
        ({"training": [{"user_id": [1], "sequence_data": [[1, None]]}]}, "have no 'item'"),
        (
            {
                "training": [{"user_id": [1, 2], "sequence_data": [[1], [2]]}],
                "testing": [{"user_id": [1, 2], "sequence_data": [[3, 1], [2, 1]]}],
            },
            r"histories of 1 user\(s\) do not continue one another, for example '1'",
        ),
        (
            {
                "training": [{"user_id": [1], "sequence_data": [[1]]}],
                "items": [{"number": [1], "text": ["a"]}],
            },
            "has no column 'id'",
        ),
        (
            {
                "training": [{"user_id": [1], "sequence_data": [[1]]}],
                "items": [{"id": [1, 1], "text": ["a", "b"]}],
            },
            "occur more than once",
        ),
        (
            {
                "training": [{"user_id": [1], "sequence_data": [[1]]}],
                "items": [{"id": [1], "text": [b"\xff"]}],
            },
            "cannot be read",
        ),
        ({"items": ITEMS}, r"no Parquet file of histories"),
        ({}, r"no Parquet file of histories"),
    ],
)
def test_bad_shards(tmp_path, folders, message):
    with pytest.raises(DataError, match=message):
        GridFiles(write_shards(tmp_path / "a", **folders)).write(tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_tfrecords_are_refused_with_a_way_out(tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "part-0.tfrecord.gz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"TFRecords, which need TensorFlow.*write each record"):
        GridFiles(str(tmp_path)).write(tmp_path / "d")


def test_files_that_are_damaged_or_absent(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        GridFiles(str(tmp_path / "x")).write(tmp_path / "d")
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "0.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"0\.parquet cannot be read"):
        GridFiles(str(tmp_path)).write(tmp_path / "d")
    with pytest.raises(DataError, match="looked in the folder itself and in testing"):
        GridFiles(str(tmp_path), part="testing").write(tmp_path / "d")
