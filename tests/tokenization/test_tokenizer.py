"""The tokenization stage: composition, determinism, leak contract, real titles."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxrec.recipe import from_json, to_json
from jaxrec.representation import ItemVectors, TextFields
from jaxrec.tokenization import (
    ExtraDigit,
    Keep,
    Reassign,
    ResidualKMeans,
    SemanticIds,
    Tokenizer,
    popularity_order,
)

KEY = jax.random.key(0)
VECTORS = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
VECTORS[7] = VECTORS[3]
SEEN = VECTORS[:300]
ITEMS = [f"item {row}" for row in range(400)]
SMALL = ResidualKMeans(levels=2, codes=20, iterations=10)


def test_ids_reports_and_files_agree(tmp_path):
    order = popularity_order(np.arange(300) % 13)
    ids, report = Tokenizer(SMALL)(KEY, SEEN, items=ITEMS[:300], order=order)
    assert report["final"]["is_unique"]
    assert report["final"]["sizes"] == list(ids.space.sizes)
    assert ids.space.has_extra_digit
    assert ids.semantic_levels == 2
    assert report["collisions"]["policy"] == "ExtraDigit"
    assert report["quality"]["duplicates"]["n_duplicate_rows"] == 1
    assert report["fit"]["n_fitted_rows"] == 300
    assert json.loads(json.dumps(report)) == report
    # The row served first in a bucket has digit 0: row 7 (popularity 7) comes before row 3.
    assert ids.codes[7, 2] < ids.codes[3, 2]
    ids.save(tmp_path)
    back = SemanticIds.load(tmp_path)
    assert back.space_id == report["final"]["space_id"]
    assert back.assignment_id == report["final"]["assignment_id"]
    # The saved state encodes items as the fitted one did.
    state = SMALL.from_arrays(back.state)
    np.testing.assert_array_equal(SMALL.encode(state, SEEN), ids.codes[:, :2])


def test_equal_keys_give_equal_ids():
    first, _ = Tokenizer(SMALL)(KEY, SEEN, items=ITEMS[:300])
    again, _ = Tokenizer(SMALL)(KEY, SEEN, items=ITEMS[:300])
    other, _ = Tokenizer(SMALL)(jax.random.key(1), SEEN, items=ITEMS[:300])
    assert first.assignment_id == again.assignment_id
    assert first.space_id != other.space_id


@pytest.mark.parametrize("policy", [Reassign(), Reassign(moves="cheapest"), Keep()])
def test_policies_share_the_quantizers_codes(policy):
    kept, _ = Tokenizer(SMALL, Keep())(KEY, SEEN, items=ITEMS[:300])
    ids, report = Tokenizer(SMALL, policy)(KEY, SEEN, items=ITEMS[:300])
    assert ids.space.sizes == (20, 20)
    assert ids.space_id == kept.space_id
    assert report["final"]["is_unique"] == (policy != Keep())
    untouched = np.setdiff1d(np.arange(300), report["collisions"]["changed_rows"])
    np.testing.assert_array_equal(ids.codes[untouched], kept.codes[untouched])


def test_unseen_items_shape_nothing_when_fitted_on_train_items():
    mask = np.arange(400) % 4 != 0
    changed = VECTORS.copy()
    changed[~mask] += 3
    before, report = Tokenizer(SMALL)(
        KEY, VECTORS, items=ITEMS, train_mask=mask, fit_on="train_items"
    )
    after, _ = Tokenizer(SMALL)(KEY, changed, items=ITEMS, train_mask=mask, fit_on="train_items")
    assert report["fit"]["fit_on"] == "train_items"
    assert report["fit"]["n_fitted_rows"] == 300
    np.testing.assert_array_equal(before.codes[mask, :2], after.codes[mask, :2])
    for name in before.state:
        np.testing.assert_array_equal(before.state[name], after.state[name])


def test_errors_and_recipe_file():
    with pytest.raises(ValueError, match="3 item ids for 400 vectors"):
        Tokenizer(SMALL)(KEY, VECTORS, items=ITEMS[:3])
    with pytest.raises(ValueError, match="got no mask"):
        Tokenizer(SMALL)(KEY, VECTORS, items=ITEMS, fit_on="train_items")
    with pytest.raises(ValueError, match="fit_on must be one of"):
        Tokenizer(SMALL)(KEY, VECTORS, items=ITEMS, fit_on="all")
    stage = Tokenizer(SMALL, ExtraDigit(capacity=8))
    assert from_json(json.loads(json.dumps(to_json(stage)))) == stage


def test_a_quantizer_is_one_dataclass():
    """What docs tell a reader to write: nothing to register, nothing to inherit."""

    @dataclasses.dataclass(frozen=True)
    class FirstSign:
        schema_version = 1

        def fit(self, key, vectors, aux=None):
            return {"width": np.asarray(vectors.shape[1])}

        def encode(self, state, vectors):
            return np.asarray(vectors[:, :2] > 0, np.int32)

        def decode(self, state, codes):
            decoded = np.zeros((len(codes), int(state["width"])), np.float32)
            decoded[:, : codes.shape[1]] = np.asarray(codes) * 2 - 1
            return decoded

        def sizes(self, state):
            return (2, 2)

        def report(self, state):
            return {"quantizer": "FirstSign"}

        def to_arrays(self, state):
            return state

        def from_arrays(self, arrays):
            return dict(arrays)

    ids, report = Tokenizer(FirstSign())(KEY, VECTORS, items=ITEMS)
    np.testing.assert_array_equal(ids.codes[:, 0], VECTORS[:, 0] > 0)
    assert report["final"]["is_unique"]


@pytest.mark.real_data
def test_movielens_uses_every_code(shared_data):
    lines = (shared_data / "movielens-100k" / "ml-100k.item").read_text().splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    table = {"title": [row[1] for row in rows], "class": [row[3].split(" ") for row in rows]}
    vectors = ItemVectors(text=TextFields(("title", "class")))(table).vectors
    quantizer = ResidualKMeans(levels=2, codes=64)
    ids, report = Tokenizer(quantizer)(KEY, vectors, items=[row[0] for row in rows])
    assert [level["utilisation"] for level in report["quality"]["levels"]] == [1.0, 1.0]
    assert report["final"]["is_unique"]
    cosines = [row["cosine"] for row in report["quality"]["alignment"]]
    assert cosines[0] < cosines[1] < cosines[2]
    toy_story = ids.items.tolist().index("1")
    assert ids.items_of(ids.codes[[toy_story]]) == [["1"]]
