"""Versions of an index: new items beside old ones that never move, and their lineage."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxrec.tokenization import ExtraDigit, Keep, Reassign, ResidualKMeans, SemanticIds, Tokenizer
from jaxrec.tokenization.capacity import Capacity
from jaxrec.tokenization.extend import (
    compare_versions,
    extend,
    lineage,
    open_quantizer,
    remove,
)
from jaxrec.tokenization.next_nearest import NextNearest
from jaxrec.tokenization.random_last import RandomLast
from jaxrec.tokenization.sinkhorn_last import SinkhornLast
from jaxrec.types import TokenSpace

VECTORS = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)
VECTORS[100:105] = VECTORS[:5]  # new items that are twins of old ones
OLD, NEW = VECTORS[:100], VECTORS[100:]
OLD_ITEMS = [f"old {row}" for row in range(100)]
NEW_ITEMS = [f"a new item, {row}" for row in range(20)]
QUANTIZER = ResidualKMeans(levels=2, codes=16, iterations=5)
POLICIES = [
    ExtraDigit(),
    Reassign(),
    NextNearest(),
    RandomLast(),
    Capacity(2),
    SinkhornLast(leftovers=Reassign()),
    Keep(),
]


def make(policy):
    return Tokenizer(QUANTIZER, policy)(jax.random.key(0), OLD, items=OLD_ITEMS)[0]


@pytest.fixture(scope="module")
def digits():
    return make(ExtraDigit())


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_new_items_get_ids_and_old_ones_keep_theirs(policy, tmp_path):
    ids = make(policy)
    new, report = extend(ids, QUANTIZER, policy, NEW, NEW_ITEMS)
    assert new.items.tolist() == OLD_ITEMS + NEW_ITEMS
    np.testing.assert_array_equal(new.codes[:100], ids.codes)
    assert (new.space, new.space_id, new.quantizer) == (ids.space, ids.space_id, ids.quantizer)
    assert new.parent == ids.assignment_id != new.assignment_id
    unique = not isinstance(policy, Keep | Capacity)
    assert new.summary()["is_unique"] == report["final"]["is_unique"] == unique
    # Where the policy changed nothing a new item has the quantizer's own codes.
    codes = np.asarray(QUANTIZER.encode(open_quantizer(ids, QUANTIZER)[0], NEW))
    free = np.setdiff1d(np.arange(20), report["collisions"]["changed_rows"])
    assert len(free) >= 5
    np.testing.assert_array_equal(new.codes[100:, :2][free], codes[free])
    old = {tuple(row) for row in ids.codes[:, :2].tolist()}
    assert report["n_old_ids_shared"] == sum(tuple(row) in old for row in codes.tolist()) >= 5
    assert (report["n_old"], report["n_new"]) == (100, 20)
    assert json.loads(json.dumps(report)) == report
    new.save(tmp_path)
    assert SemanticIds.load(tmp_path).assignment_id == new.assignment_id


def test_digits_go_on_in_the_order_of_serving(digits):
    order = np.arange(20)[::-1]
    twins = np.repeat(OLD[:1], 2, axis=0)
    with_twins, _ = extend(digits, QUANTIZER, ExtraDigit(), twins, ["x", "y"], order=order[-2:])
    bucket = digits.codes[0, :2]
    before = (digits.codes[:, :2] == bucket).all(1).sum()
    assert with_twins.codes[100:].tolist() == [[*bucket, before + 1], [*bucket, before]]


def test_two_steps_give_the_codes_of_one(digits):
    once, _ = extend(digits, QUANTIZER, ExtraDigit(), NEW, NEW_ITEMS)
    half, _ = extend(digits, QUANTIZER, ExtraDigit(), NEW[:9], NEW_ITEMS[:9])
    twice, _ = extend(half, QUANTIZER, ExtraDigit(), NEW[9:], NEW_ITEMS[9:])
    np.testing.assert_array_equal(twice.codes, once.codes)
    assert twice.parent == half.assignment_id
    assert twice.assignment_id != once.assignment_id  # another history


def test_a_full_bucket_is_named(digits):
    capacity = digits.space.sizes[-1]
    twins = np.repeat(OLD[:1], capacity, axis=0)
    message = rf"\({digits.codes[0, 0]}, {digits.codes[0, 1]}\) holds \d+ items and would get"
    with pytest.raises(ValueError, match=f"{message} {capacity} more.*capacity {capacity}"):
        extend(digits, QUANTIZER, ExtraDigit(), twins, [str(n) for n in range(capacity)])


def test_removed_items_make_room(digits):
    gone = remove(digits, ["old 7", "old 3"])
    assert gone.items.tolist() == [item for item in OLD_ITEMS if item not in ("old 3", "old 7")]
    np.testing.assert_array_equal(gone.codes, np.delete(digits.codes, [3, 7], axis=0))
    assert (gone.parent, gone.space_id) == (digits.assignment_id, digits.space_id)
    back, _ = extend(gone, QUANTIZER, ExtraDigit(), OLD[[3]], ["old 3"])
    assert back.codes_of(["old 3"]).tolist() == digits.codes_of(["old 3"]).tolist()
    with pytest.raises(ValueError, match="no semantic ID, among them 'nobody'"):
        remove(digits, ["nobody"])
    with pytest.raises(ValueError, match="all 100 items would be removed"):
        remove(digits, OLD_ITEMS)
    with pytest.raises(ValueError, match="no item to remove"):
        remove(digits, [])


def test_what_differs_between_versions(digits):
    new, _ = extend(remove(digits, ["old 3"]), QUANTIZER, ExtraDigit(), NEW[:2], NEW_ITEMS[:2])
    told = compare_versions(digits, new)
    assert told == {
        "added": NEW_ITEMS[:2],
        "removed": ["old 3"],
        "moved": [],
        "n_kept": 99,
        "same_space": True,
        "is_child": False,
    }
    assert json.loads(json.dumps(told)) == told
    codes = new.codes.copy()
    codes[[0, 5]] = codes[[5, 0]]
    moved = dataclasses.replace(new, codes=codes, parent=digits.assignment_id)
    told = compare_versions(digits, moved)
    assert (told["moved"], told["n_kept"], told["is_child"]) == (["old 0", "old 6"], 97, True)
    other = compare_versions(digits, make(Keep()))
    assert (other["same_space"], other["n_kept"], other["moved"]) == (False, 0, OLD_ITEMS)


def test_lineage_from_the_oldest_version_at_hand(digits, tmp_path):
    second, _ = extend(digits, QUANTIZER, ExtraDigit(), NEW[:2], NEW_ITEMS[:2])
    third = remove(second, ["old 0"])
    other = remove(second, ["old 1"])
    for name, ids in {"a": digits, "b": second, "c": third, "d": other}.items():
        ids.save(tmp_path / name)
    paths = {name: tmp_path / name for name in "abcd"}
    chain = lineage(paths["c"], [paths["d"], paths["b"], paths["a"]])
    assert [folder for folder, _ in chain] == [str(paths[name]) for name in "abc"]
    assert [ids.assignment_id for _, ids in chain][:2] == [digits.assignment_id, third.parent]
    assert chain[0][1].parent == ""
    assert [folder for folder, _ in lineage(paths["c"], [paths["a"]])] == [str(paths["c"])]
    with pytest.raises(ValueError, match="does not exist"):
        lineage(paths["c"], [tmp_path / "e"])
    strange = dataclasses.replace(third, space=TokenSpace((16, 16, 64), has_extra_digit=True))
    strange.save(tmp_path / "e")
    with pytest.raises(ValueError, match="different token spaces"):
        lineage(tmp_path / "e", paths.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"items": ["x", "old 4", "old 9"]}, "2 of 3 items are in the index already.*'old 4'"),
        ({"items": ["x", "y", "x"]}, "1 new items are named more than once, among them 'x'"),
        ({"items": []}, "at least one id"),
        ({"items": ["x", "y"]}, "2 item ids for 3 vectors"),
        ({"vectors": NEW[:3, :2]}, "width 2 do not fit a quantizer of width 4"),
        ({"vectors": np.full((3, 4), np.inf)}, "3 of 3 vectors have non-finite numbers"),
        ({"quantizer": ResidualKMeans(levels=3)}, "lacks codebook_2"),
        ({"quantizer": ResidualKMeans(levels=1)}, r"has levels of \(16,\) codes, and the index"),
        ({"quantizer": ExtraDigit()}, "made by ResidualKMeans, and ExtraDigit was given"),
        ({"policy": Keep()}, "last an extra digit; give the policy"),
        ({"order": np.array([0, 0, 1])}, "order must list each of the 3 rows once"),
    ],
)
def test_bad_input(digits, arguments, message):
    good = {
        "quantizer": QUANTIZER,
        "policy": ExtraDigit(),
        "vectors": NEW[:3],
        "items": ["x", "y", "z"],
        "order": None,
    }
    with pytest.raises(ValueError, match=message):
        extend(digits, **(good | arguments))


def test_a_policy_that_changes_the_space_is_refused():
    with pytest.raises(
        ValueError, match=r"makes IDs of levels \(16, 16, .*give the collision policy"
    ):
        extend(
            make(Keep()),
            QUANTIZER,
            lambda codes, **_: ExtraDigit()(codes, sizes=(16, 16)),
            NEW,
            NEW_ITEMS,
        )
