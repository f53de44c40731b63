"""P5's sequential_data.txt, datamaps.json and metadata."""

import gzip
import json

import pytest

from jaxrec.data.dataset import DataError, read_dataset
from jaxrec.data.datasets.p5 import P5Files
from jaxrec.data.histories import prepare

MAPS = {
    "user2id": {"A1": "1", "A2": "2"},
    "item2id": {"B01": "1", "B02": "2", "B03": "10"},
    "id2user": {"1": "A1", "2": "A2"},
    "id2item": {"1": "B01", "2": "B02", "10": "B03"},
}
META = [
    {"asin": "B03", "title": "Chef's knife", "categories": [["Home", "Knives"]], "price": 9.5},
    {"asin": "B99", "title": "Other"},
]


def write_files(folder, sequences="1 1 2 1\n2 10 2\n\n", maps=MAPS, meta=None, name="meta.json.gz"):
    folder.mkdir(exist_ok=True)
    (folder / "sequential_data.txt").write_text(sequences)
    (folder / "negative_samples.txt").write_text("1 2\n")
    if maps is not None:
        (folder / "datamaps.json").write_text(json.dumps(maps))
    if meta is not None:
        text = "".join(f"{row!r}\n" for row in meta).encode()
        (folder / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    return str(folder)


@pytest.mark.parametrize("name", ["meta.json.gz", "meta_data.json.gz", "meta.json"])
def test_with_metadata(tmp_path, name):
    source = P5Files(write_files(tmp_path / "beauty", meta=META, name=name))
    source.write(tmp_path / "d")
    dataset = read_dataset(tmp_path / "d")
    assert dataset.interactions().rows() == [
        ("1", "1", 0),
        ("1", "2", 1),
        ("1", "1", 2),
        ("2", "10", 0),
        ("2", "2", 1),
    ]
    items = dataset.items()
    assert items.select("item", "asin", "title", "categories", "price").rows() == [
        ("1", "B01", None, None, None),
        ("2", "B02", None, None, None),
        ("10", "B03", "Chef's knife", "Home > Knives", 9.5),
    ]
    assert dataset.manifest["name"] == "beauty"
    assert dataset.manifest["time_unit"] == "order"
    assert "describes 1 of 3 items" in dataset.manifest["source"]
    assert sorted(source.fingerprint()) == ["datamaps.json", name, "sequential_data.txt"]


def test_without_metadata_and_without_maps(tmp_path):
    P5Files(write_files(tmp_path / "a")).write(tmp_path / "d")
    assert read_dataset(tmp_path / "d").items().rows() == [
        ("1", "B01"),
        ("2", "B02"),
        ("10", "B03"),
    ]
    only = {"item2id": MAPS["item2id"]}
    P5Files(write_files(tmp_path / "b", maps=only)).write(tmp_path / "e")
    assert read_dataset(tmp_path / "e").items().rows() == [
        ("1", "B01"),
        ("2", "B02"),
        ("10", "B03"),
    ]
    source = P5Files(write_files(tmp_path / "c", maps=None), name="x")
    source.write(tmp_path / "f")
    assert read_dataset(tmp_path / "f").items().rows() == [("1",), ("2",), ("10",)]
    assert sorted(source.fingerprint()) == ["sequential_data.txt"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"sequences": "1 1\n1 2\n"}, "user '1' has two histories"),
        ({"sequences": "1\n"}, "history of user '1' must be a list of at least one item"),
        ({"sequences": ""}, r"sequential_data\.txt is empty"),
        ({"sequences": "1 7\n"}, r"does not know 1 item\(s\) of sequential_data.txt.*'7'"),
        ({"maps": {"a": 1}}, "has neither 'id2item' nor 'item2id'"),
        ({"maps": {"id2item": {"1": None, "2": "b", "10": "c"}}}, "None is no id"),
        ({"maps": None, "meta": META}, r"datamaps\.json, which tells .* is missing"),
        ({"meta": [{"title": "x"}]}, "line 1: no 'asin'"),
    ],
)
def test_bad_files(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        P5Files(write_files(tmp_path / "a", **files)).write(tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_text_that_is_not_utf8(tmp_path):
    path = write_files(tmp_path / "a")
    (tmp_path / "a" / "sequential_data.txt").write_bytes(b"1 1\n2 \xff\n")
    with pytest.raises(DataError, match="line 2 is not UTF-8"):
        P5Files(path).write(tmp_path / "d")


@pytest.mark.real_data
def test_beauty(tmp_path, shared_data):
    """The sequences of Amazon-2014 Beauty are P5's file under another name."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "sequential_data.txt").symlink_to(
        shared_data / "amazon2014-beauty" / "sequences.txt"
    )
    P5Files(str(tmp_path / "a")).write(tmp_path / "d")
    histories = prepare(read_dataset(tmp_path / "d"))
    assert (histories.num_users, histories.num_items, histories.num_events) == (
        22_363,
        12_101,
        198_502,
    )
    assert histories.items[[0, 1, -1]].tolist() == ["1", "2", "12101"]
