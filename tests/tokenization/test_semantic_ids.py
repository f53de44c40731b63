"""The artefact: both directions, the two hashes, and files that are whole or refused."""

import dataclasses
import io
import json

import numpy as np
import pytest

from jaxrec.tokenization import SemanticIds, codes_as_text, codes_from_text
from jaxrec.types import TokenSpace

IDS = SemanticIds(
    codes=np.array([[1, 2, 0], [0, 3, 0], [1, 2, 1], [1, 0, 0]]),
    space=TokenSpace((2, 4, 2), has_extra_digit=True),
    items=np.array(["b", "a", "film 7", "ü"]),
    quantizer="ResidualKMeans",
    state={"offset": np.zeros(3, np.float32), "codebook_0": np.ones((2, 3), np.float32)},
)


GOLDEN_SPACE = "93a22416ce0ead61"
GOLDEN_ASSIGNMENT = "c1f577f504df779a"


def change(**fields):
    return dataclasses.replace(IDS, **fields)


def test_items_have_codes_and_codes_have_items():
    assert IDS.codes_of(["film 7", "b"]).tolist() == [[1, 2, 1], [1, 2, 0]]
    assert IDS.rows_of(["ü", "a"]).tolist() == [3, 1]
    for item in IDS.items.tolist():
        assert IDS.items_of(IDS.codes_of([item])) == [[item]]
    assert IDS.num_items == 4
    assert IDS.semantic_levels == 2


def test_prefixes_name_all_items_below_them_in_catalogue_order():
    assert IDS.items_of([[1]]) == [["b", "film 7", "ü"]]
    assert IDS.items_of([[1, 2], [0, 0], [0, 3]]) == [["b", "film 7"], [], ["a"]]
    assert IDS.items_of(np.zeros((1, 0), int)) == [["b", "a", "film 7", "ü"]]
    assert IDS.items_of([[1, 2, 9], [-1, 0, 0]]) == [[], []]


def test_prefix_lookup_equals_a_search_through_all_rows():
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 3, (200, 3))
    ids = SemanticIds(codes, TokenSpace((3, 3, 3)), np.arange(200).astype(str), "any", {})
    for levels in (1, 2, 3):
        queries = generator.integers(0, 3, (20, levels))
        for query, found in zip(queries, ids.items_of(queries)):
            rows = np.flatnonzero((codes[:, :levels] == query).all(1))
            assert found == [str(row) for row in rows]


def test_unknown_items_are_named():
    with pytest.raises(ValueError, match=r"1 of 2 items have no semantic ID, among them 'c'"):
        IDS.codes_of(["b", "c"])
    with pytest.raises(ValueError, match="integer codes"):
        IDS.items_of([1, 2, 0])


def test_ids_read_and_write_as_text():
    assert IDS.as_text("film 7") == "<a_1><b_2><c_1>"
    assert codes_as_text([12, 7, 201, 0]) == "<a_12><b_7><c_201><d_0>"
    assert codes_from_text("<a_12><b_7><c_201><d_0>").tolist() == [12, 7, 201, 0]
    many = np.arange(60)
    assert codes_as_text(many).startswith("<a_0>")
    assert codes_as_text(many)[-12:] == "<bg_58><bh_59>"[-12:]
    np.testing.assert_array_equal(codes_from_text(codes_as_text(many)), many)
    for wrong in ("", "<b_1>", "<a_1><c_2>", "<a_1> <b_2>", "<a_-1>", "<a_01>", "x<a_1>"):
        with pytest.raises(ValueError, match="is no semantic ID"):
            codes_from_text(wrong)


def test_the_space_is_levels_sizes_and_quantizer():
    space = IDS.space_id
    assert len(space) == 64
    assert change(items=np.array(["x", "y", "z", "w"])).space_id == space
    assert change(codes=IDS.codes[::-1]).space_id == space
    assert change(parent="p").space_id == space
    reordered = {name: IDS.state[name] for name in reversed(IDS.state)}
    assert change(state=reordered).space_id == space
    for other in (
        change(space=TokenSpace((2, 4, 4), has_extra_digit=True)),
        change(space=TokenSpace((2, 4, 2))),
        change(quantizer="Other"),
        change(state={**IDS.state, "offset": np.full(3, 1e-7, np.float32)}),
        change(state={"offset": IDS.state["offset"]}),
    ):
        assert other.space_id != space


def test_the_assignment_is_items_codes_and_parent():
    name = IDS.assignment_id
    assert change().assignment_id == name
    for other in (
        change(items=np.array(["b", "a", "film 8", "ü"])),
        change(codes=IDS.codes[::-1]),
        change(codes=IDS.codes[::-1], items=IDS.items[::-1]),
        change(parent=name),
    ):
        assert other.assignment_id != name
    # Two ids cannot be confused by where one ends and the next begins.
    left = change(items=np.array(["a", "bc", "d", "e"])).assignment_id
    assert left != change(items=np.array(["ab", "c", "d", "e"])).assignment_id


def test_hashes_are_frozen():
    # A change of these values orphans every checkpoint and index: raise SCHEMA_VERSION with it.
    assert IDS.space_id[:16] == GOLDEN_SPACE
    assert IDS.assignment_id[:16] == GOLDEN_ASSIGNMENT


def test_files_bring_everything_back(tmp_path):
    child = change(parent=IDS.assignment_id)
    child.save(tmp_path / "new" / "folder")
    back = SemanticIds.load(tmp_path / "new" / "folder")
    np.testing.assert_array_equal(back.codes, child.codes)
    np.testing.assert_array_equal(back.items, child.items)
    for name, array in child.state.items():
        np.testing.assert_array_equal(back.state[name], array)
        assert back.state[name].dtype == array.dtype
    assert (back.space, back.quantizer, back.parent) == (
        child.space,
        "ResidualKMeans",
        child.parent,
    )
    assert (back.space_id, back.assignment_id) == (child.space_id, child.assignment_id)
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "semantic_ids.json",
        "semantic_ids.npz",
    ]


def test_equal_ids_write_equal_files(tmp_path):
    IDS.save(tmp_path / "a")
    change().save(tmp_path / "b")
    for name in ("semantic_ids.json", "semantic_ids.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_damaged_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        SemanticIds.load(tmp_path)
    IDS.save(tmp_path)
    arrays, manifest = tmp_path / "semantic_ids.npz", tmp_path / "semantic_ids.json"
    whole, content = arrays.read_bytes(), manifest.read_text()
    arrays.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="truncated, corrupted or of another run"):
        SemanticIds.load(tmp_path)
    arrays.unlink()
    with pytest.raises(ValueError, match=r"npz does not exist"):
        SemanticIds.load(tmp_path)
    arrays.write_bytes(whole)
    manifest.write_text(content[:40])
    with pytest.raises(ValueError, match="truncated or corrupted"):
        SemanticIds.load(tmp_path)
    manifest.write_text(content.replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(ValueError, match="schema version 99"):
        SemanticIds.load(tmp_path)
    manifest.write_text(content.replace('"parent": ""', '"parent": "x"'))
    with pytest.raises(ValueError, match="a file was edited"):
        SemanticIds.load(tmp_path)
    edited = json.loads(content)
    del edited["sizes"]
    manifest.write_text(json.dumps(edited))
    with pytest.raises(ValueError, match="lacks sizes"):
        SemanticIds.load(tmp_path)


def rewrite(folder, **arrays):
    """Replaces arrays of a saved artefact, with a manifest that agrees."""
    from jaxrec.files import file_hash

    with np.load(folder / "semantic_ids.npz") as file:
        content = {name: file[name] for name in file.files} | arrays
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    (folder / "semantic_ids.npz").write_bytes(buffer.getvalue())
    manifest = json.loads((folder / "semantic_ids.json").read_text())
    manifest["sha256"] = file_hash(folder / "semantic_ids.npz")
    (folder / "semantic_ids.json").write_text(json.dumps(manifest))


def test_content_is_validated_even_when_checksums_agree(tmp_path):
    IDS.save(tmp_path)
    rewrite(tmp_path, codes=IDS.codes + 1)
    with pytest.raises(ValueError, match=r"codes out of range, first 'b' with \[2, 3, 1\]"):
        SemanticIds.load(tmp_path)
    rewrite(tmp_path, codes=IDS.codes[::-1])
    with pytest.raises(ValueError, match="assignment_id"):
        SemanticIds.load(tmp_path)
    rewrite(tmp_path, codes=IDS.codes, items=np.array(["a", "a", "b", "c"]))
    with pytest.raises(ValueError, match="named more than once, among them a"):
        SemanticIds.load(tmp_path)
    rewrite(tmp_path, items=np.array(["a", {}, "b", "c"], object))
    with pytest.raises(ValueError, match="cannot be read"):  # a pickle is never opened
        SemanticIds.load(tmp_path)


def test_bad_construction():
    with pytest.raises(ValueError, match="do not fit a space of 3 levels"):
        change(codes=IDS.codes[:, :2])
    with pytest.raises(ValueError, match="n item ids"):
        change(items=np.array(["a"]))
    with pytest.raises(ValueError, match="integer codes"):
        change(codes=IDS.codes.astype(float))
