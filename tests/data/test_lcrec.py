"""LC-Rec's inter.json and item.json."""

import json

import pytest

from jaxrec.data.dataset import DataError, read_dataset
from jaxrec.data.datasets.lcrec import LcRecFiles
from jaxrec.data.histories import prepare


def write_files(folder, inter, item=None, name="A"):
    folder.mkdir(exist_ok=True)
    text = inter if isinstance(inter, str) else json.dumps(inter)
    (folder / f"{name}.inter.json").write_text(text)
    if item is not None:
        (folder / f"{name}.item.json").write_text(json.dumps(item))
    return str(folder)


def test_with_items(tmp_path):
    item = {
        "2": {"title": "C", "brand": "x", "categories": "p,q"},
        "0": {"title": "A"},
        "1": {"title": "B"},
    }
    source = LcRecFiles(write_files(tmp_path / "a", {"0": [1, 0, 1], "5": [0]}, item))
    source.write(tmp_path / "d")
    dataset = read_dataset(tmp_path / "d")
    assert dataset.interactions().rows() == [
        ("0", "1", 0),
        ("0", "0", 1),
        ("0", "1", 2),
        ("5", "0", 0),
    ]
    # The catalogue is all of item.json, item 2 without events included.
    assert dataset.items().rows() == [
        ("2", "C", "x", "p,q"),
        ("0", "A", "", ""),
        ("1", "B", "", ""),
    ]
    assert dataset.manifest["time_unit"] == "order"
    assert dataset.manifest["name"] == "A"
    assert sorted(source.fingerprint()) == ["A.inter.json", "A.item.json"]


def test_without_items_and_one_of_several(tmp_path):
    path = write_files(tmp_path / "a", {"u": ["10", 9, 2]})
    write_files(tmp_path / "a", {"u": [1]}, name="B")
    with pytest.raises(DataError, match="of A, B; choose one with name"):
        LcRecFiles(path).write(tmp_path / "d")
    source = LcRecFiles(path, "A")
    source.write(tmp_path / "d")
    assert read_dataset(tmp_path / "d").items()["item"].to_list() == ["2", "9", "10"]
    assert sorted(source.fingerprint()) == ["A.inter.json"]


@pytest.mark.parametrize(
    ("inter", "item", "message"),
    [
        ({"u": []}, None, "history of user 'u' must be a list of at least one item"),
        ({"u": "ab"}, None, "history of user 'u' must be a list"),
        ({"u": [1.5]}, None, "1.5 is no id"),
        ({"u": [None]}, None, "None is no id"),
        ({"": [1]}, None, "is no id"),
        ({}, None, "holds not one history"),
        ("[1]", None, "is not a JSON object but list"),
        ('{"u": [1]', None, "is not JSON"),
        ("", None, r"A\.inter\.json is empty"),
        ({"u": [1]}, {"0": {}}, "not in items.parquet, for example '1'"),
        ({"u": [1]}, {"1": "title"}, "item '1' must be an object"),
    ],
)
def test_bad_files(tmp_path, inter, item, message):
    with pytest.raises(DataError, match=message):
        LcRecFiles(write_files(tmp_path / "a", inter, item)).write(tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match=r"X\.inter\.json does not exist"):
        LcRecFiles(str(tmp_path), "X").write(tmp_path / "d")
    with pytest.raises(DataError, match=r"has no file \*\.inter\.json"):
        LcRecFiles(str(tmp_path)).fingerprint()


@pytest.mark.real_data
def test_instruments(tmp_path, shared_data):
    LcRecFiles(str(shared_data / "letter-instruments")).write(tmp_path / "d")
    histories = prepare(read_dataset(tmp_path / "d"))
    assert (histories.num_users, histories.num_items, histories.num_events) == (
        24_772,
        9_922,
        206_153,
    )
    assert histories.items[:3].tolist() == ["0", "1", "2"]
    assert histories.time_unit == "order"
