"""Published semantic IDs: read, matched to a catalogue, judged, written."""

import gzip
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxrec.recipe import from_json, to_json
from jaxrec.tokenization import ExtraDigit, Keep, Reassign, SemanticIds, quality_report
from jaxrec.tokenization.capacity import Capacity
from jaxrec.tokenization.published import PublishedIds, read_index, write_index
from jaxrec.tokenization.random_last import RandomLast

CODES = {"0": (3, 1), "1": (0, 4), "2": (3, 1), "3": (2, 0)}
INDEX = {item: [f"<a_{first}>", f"<b_{second}>"] for item, (first, second) in CODES.items()}
VECTORS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
KEY = jax.random.key(0)


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


@pytest.fixture
def index(tmp_path):
    return write(tmp_path / "A.index.json", INDEX)


def test_a_catalogue_in_its_own_order(index, tmp_path):
    order = np.array([2, 1, 0])
    ids, report = PublishedIds(index)(KEY, VECTORS[:3], items=["2", "3", "0"], order=order)
    # Items 2 and 0 share (3, 1); item 0 (row 2) is served first and takes digit 0.
    assert ids.codes.tolist() == [[3, 1, 1], [2, 0, 0], [3, 1, 0]]
    # The sizes are those of the whole file: codes up to 3 and 4. Four digits: 1.5 x 2, as 2 ** 2.
    assert ids.space.sizes == (4, 5, 4)
    assert ids.space.has_extra_digit
    assert ids.as_text("2") == "<a_3><b_1><c_1>"
    assert report["fit"]["n_index_items"] == 4
    assert report["fit"]["n_unused_items"] == 1
    assert report["quality"] == quality_report(
        np.array([[3, 1], [2, 0], [3, 1]]), (4, 5), vectors=VECTORS[:3]
    )
    assert report["collisions"]["policy"] == "ExtraDigit"
    assert (report["collisions"]["n_sids"], report["collisions"]["max_bucket"]) == (2, 2)
    assert report["final"] == {
        "sizes": [4, 5, 4],
        "has_extra_digit": True,
        "is_unique": True,
        "space_id": ids.space_id,
        "assignment_id": ids.assignment_id,
    }
    assert json.loads(json.dumps(report)) == report
    ids.save(tmp_path / "ids")
    back = SemanticIds.load(tmp_path / "ids")
    assert (back.space_id, back.assignment_id) == (ids.space_id, ids.assignment_id)
    np.testing.assert_array_equal(back.codes, ids.codes)


def test_without_vectors_and_with_collisions_kept(index):
    ids, report = PublishedIds(index, collisions=Keep())(items=["0", "1", "2"])
    assert ids.codes.tolist() == [[3, 1], [0, 4], [3, 1]]
    assert ids.space.sizes == (4, 5)
    assert not report["final"]["is_unique"]
    assert "alignment" not in report["quality"]


def test_they_are_judged_by_events_and_categories_too(index):
    events = SimpleNamespace(offsets=np.array([0, 3]), item=np.array([0, 2, 1]))
    quality = PublishedIds(index)(
        items=["0", "1", "2"], sequences=events, categories=["x", "y", "x"]
    )[1]["quality"]
    assert (quality["behaviour"]["n_pairs"], quality["behaviour"]["overlap"]) == (2, 0.5)
    assert quality["categories"]["prefixes"][1]["purity"] == 1.0
    assert "neighbourhood" not in quality  # there are no codebooks


def test_colliding_items_may_draw_other_last_codes(index):
    ids, report = PublishedIds(index, collisions=RandomLast())(items=["0", "1", "2"])
    assert ids.codes[:2].tolist() == [[3, 1], [0, 4]]
    assert ids.codes[2, 0] == 3
    assert report["final"]["is_unique"]
    assert report["collisions"]["changed_rows"] == [2]


def test_the_space_is_the_content_of_the_file(tmp_path, index):
    def space(path, **fields):
        return PublishedIds(path, **fields)(items=["1", "3"])[0].space_id

    first = space(index)
    backwards = write(tmp_path / "b.json", dict(reversed(INDEX.items())))
    texts = write(tmp_path / "c.json", {item: "".join(sid) for item, sid in INDEX.items()})
    assert space(backwards) == space(texts) == first
    assert PublishedIds(index)(items=["0", "1"])[0].space_id == first
    changed = write(tmp_path / "d.json", INDEX | {"0": ["<a_3>", "<b_2>"]})
    assert space(changed) != first
    assert space(index, sizes=(4, 8)) != first
    assert PublishedIds(index).fingerprint() != PublishedIds(backwards).fingerprint()


def test_shift(tmp_path, index):
    ids, report = PublishedIds(index, shift=1, collisions=Keep())(items=["1", "4"])
    assert ids.codes.tolist() == [[3, 1], [2, 0]]
    assert report["quality"]["advice"] == []
    with pytest.raises(ValueError, match=r"for 1 of 2 items \(shift 0\), .* '4'.*With shift=1 it"):
        PublishedIds(index)(items=["1", "4"])
    _, report = PublishedIds(index)(items=["1", "3"])
    assert "set shift=1" in report["quality"]["advice"][-1]
    with pytest.raises(ValueError, match="keys look like '0', '1', '2'"):
        PublishedIds(index, shift=1)(items=["B00", "B01"])


def test_sid_texts_and_a_number_for_colliding_items_only(tmp_path):
    content = {"x": {"sid": "SID_005_003", "title": "X"}, "y": {"sid": "SID_005_003_002"}}
    path = write(tmp_path / "sid_map.json", content)
    with pytest.raises(ValueError, match=r"'x' has 2, 'y' has 3\..*levels=2"):
        PublishedIds(path)(items=["x"])
    ids, _ = PublishedIds(path, levels=2)(items=["x", "y"])
    assert ids.codes.tolist() == [[5, 3, 0], [5, 3, 1]]
    with pytest.raises(ValueError, match=r"equally many levels \(levels=3\)"):
        PublishedIds(path, levels=3)(items=["x"])


def test_compressed(tmp_path):
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(INDEX).encode()))
    rows, table = read_index(tmp_path / "a.json.gz")
    assert {item: tuple(table[row]) for item, row in rows.items()} == CODES
    assert table.dtype == np.int32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object but list"),
        ("{}", "holds not one semantic ID"),
        ({"0": ["<b_1>", "<a_1>"]}, "item '0': '<b_1><a_1>' is no semantic ID; its levels"),
        ({"0": ["<b_1>"]}, "its levels must be lettered in order"),
        ({"0": ["<a_1>", "<b_x>"]}, "is no semantic ID"),
        ({"0": []}, "is no semantic ID"),
        ({"0": [1, 2]}, r"item '0': '\[1, 2\]' is no semantic ID; it looks like"),
        ({"0": None}, "is no semantic ID"),
        ({"0": {"title": "x"}}, "is no semantic ID"),
        ({"0": "SID_"}, "is no semantic ID"),
        ({"0": ["<a_99999999999>"]}, "is no semantic ID"),
        ({"0": ["<a_2000000>"]}, "code 2000000 is larger than 1048575"),
        ({"0": ["<a_1>"], "1": ["<a_1>", "<b_1>"]}, "'0' has 1, '1' has 2"),
    ],
)
def test_bad_files(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        PublishedIds(write(tmp_path / "a.json", content))(items=["0"])


def test_bad_calls(index, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        PublishedIds(str(tmp_path / "b.json"))(items=["0"])
    with pytest.raises(ValueError, match="does not exist"):
        PublishedIds(str(tmp_path / "b.json")).fingerprint()
    with pytest.raises(ValueError, match="2 item ids for 4 vectors"):
        PublishedIds(index)(KEY, VECTORS, items=["0", "1"])
    with pytest.raises(ValueError, match="non-finite"):
        PublishedIds(index)(KEY, np.full((1, 2), np.nan), items=["0"])
    with pytest.raises(ValueError, match="named more than once"):
        PublishedIds(index)(items=["0", "0"])
    with pytest.raises(ValueError, match=r"at least \(4, 5\) codes, got sizes \(4, 4\)"):
        PublishedIds(index, sizes=(4, 4))(items=["0"])
    with pytest.raises(ValueError, match=r"at least \(4, 5\) codes, got sizes \(4,\)"):
        PublishedIds(index, sizes=(4,))(items=["0"])
    with pytest.raises(ValueError, match="come without codebooks"):
        PublishedIds(index, collisions=Reassign())
    with pytest.raises(ValueError, match="Capacity measures distances with; use ExtraDigit"):
        PublishedIds(index, collisions=Capacity())
    with pytest.raises(ValueError, match="levels and sizes must be positive"):
        PublishedIds(index, sizes=(0,))
    with pytest.raises(ValueError, match="holds 2 items but the extra digit has capacity 1"):
        PublishedIds(index, collisions=ExtraDigit(capacity=1))(items=["0", "2"])


def test_written_and_read_again(tmp_path, index):
    ids, _ = PublishedIds(index)(items=["3", "2", "0"])
    write_index(ids, tmp_path / "ours.json")
    assert json.loads((tmp_path / "ours.json").read_text()) == {
        "3": ["<a_2>", "<b_0>", "<c_0>"],
        "2": ["<a_3>", "<b_1>", "<c_0>"],
        "0": ["<a_3>", "<b_1>", "<c_1>"],
    }
    again, _ = PublishedIds(str(tmp_path / "ours.json"), sizes=ids.space.sizes, collisions=Keep())(
        items=ids.items
    )
    np.testing.assert_array_equal(again.codes, ids.codes)
    assert again.space.sizes == ids.space.sizes
    write_index(ids, tmp_path / "short.json", extra_digit=False)
    third, _ = PublishedIds(str(tmp_path / "short.json"), sizes=(4, 5))(items=ids.items)
    np.testing.assert_array_equal(third.codes, ids.codes)


def test_it_is_a_component_of_a_recipe():
    tokenizer = PublishedIds("x.index.json", shift=1, sizes=(256, 256), collisions=Keep())
    assert from_json(to_json(tokenizer)) == tokenizer


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("file", "shift", "first", "counts"),
    [
        ("amazon2014-beauty/letter.index.json", 1, 1, (12_101, 12_088, 4)),
        ("letter-instruments/Instruments.index.json", 0, 0, (9_922, 9_897, 4)),
        ("minionerec-amazon2018/Industrial_and_Scientific.index.json", 0, 0, (3_686, 3_670, 3)),
        ("minionerec-amazon2018/Office_Products.index.json", 0, 0, (3_459, 3_444, 3)),
    ],
)
def test_published_files(tmp_path, shared_data, file, shift, first, counts):
    items = [str(number) for number in range(first, first + counts[0])]
    source = PublishedIds(str(shared_data / file), shift=shift)
    ids, report = source(items=items)
    assert (ids.num_items, report["collisions"]["n_sids"], ids.semantic_levels) == counts
    assert report["final"]["is_unique"]
    published = json.loads((shared_data / file).read_text())
    for item in (items[0], items[-1]):
        text = "".join(published[str(int(item) - shift)])
        assert ids.as_text(item).startswith(text)
    write_index(ids, tmp_path / "index.json", extra_digit=False)
    ours = json.loads((tmp_path / "index.json").read_text())
    assert [ours[item] for item in items] == [published[str(int(i) - shift)] for i in items]


@pytest.mark.real_data
def test_sid_map(shared_data):
    path = shared_data / "amazon2023-all-beauty" / "sid_map.json"
    items = list(json.loads(path.read_text()))
    ids, report = PublishedIds(str(path), levels=3)(items=items)
    # 479 items, 63 different triples; a number was appended to the 416 that collide.
    assert ids.space.sizes == (32, 30, 30, 128)
    assert (report["collisions"]["n_sids"], report["collisions"]["max_bucket"]) == (63, 72)
