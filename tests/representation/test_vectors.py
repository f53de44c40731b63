"""The representation stage as a whole: composition, leak contract, report."""

import json

import numpy as np
import pytest

from jaxrec.recipe import from_json, to_json
from jaxrec.representation import (
    L2,
    PCA,
    HashedTfidf,
    ItemVectors,
    Precomputed,
    Standardise,
    TextFields,
    Whiten,
    WordLlama,
)
from jaxrec.representation.vectors import count_constant_rows, count_duplicate_rows

TABLE = {
    "item": ["1", "2", "3", "4", "5"],
    "title": ["red nail polish", "hair dryer", "", "red nail polish", "lip balm"],
    "class": [["nails"], [], [], ["nails"], ["lips", "care"]],
}


def test_default_is_wordllama_of_titles_at_unit_length():
    vectors, report, _ = ItemVectors()(TABLE)
    assert vectors.shape == (5, 256)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert report == {
        "n_items": 5,
        "dimension": 256,
        "encoder": "WordLlama",
        "surrogate": False,
        "text_fields": ["title"],
        "steps": ["L2"],
        "fit_on": "all_items",
        "n_fitted_rows": 5,
        "n_empty": 1,
        "n_duplicate_texts": 1,
        "n_constant_rows": 1,
        "n_duplicate_rows": 1,
    }
    json.dumps(report)


def test_steps_run_in_order_and_their_states_map_new_items():
    stage = ItemVectors(HashedTfidf(dimension=4), steps=(L2(), PCA(3), Standardise()))
    vectors, report, states = stage(TABLE)
    assert report["surrogate"]
    again = HashedTfidf(dimension=4).encode(
        stage.text.write(TABLE), table=TABLE, fit_mask=np.ones(5, bool), seed=0
    )
    for step, state in zip(stage.steps, states):
        again = step.apply(state, again)
    np.testing.assert_array_equal(again, vectors)


def test_unseen_items_shape_nothing_when_fitted_on_train_items():
    mask = np.array([True, True, False, True, True])
    changed = {name: list(column) for name, column in TABLE.items()}
    changed["title"][2] = "a wholly different thing"
    for encoder in (HashedTfidf(dimension=3), WordLlama(64)):
        stage = ItemVectors(encoder, steps=(Whiten(2, eps=1e-6),), fit_on="train_items")
        before, report, _ = stage(TABLE, mask)
        after = stage(changed, mask).vectors
        np.testing.assert_array_equal(before[mask], after[mask])
        assert not np.array_equal(before[2], after[2])
        assert report["n_fitted_rows"] == 4
        leaky = ItemVectors(encoder, steps=(Whiten(2, eps=1e-6),))
        assert not np.array_equal(leaky(TABLE).vectors[mask], leaky(changed).vectors[mask])


def test_precomputed_needs_no_text(tmp_path):
    np.save(tmp_path / "v.npy", np.eye(5, 3, dtype=np.float32))
    stage = ItemVectors(Precomputed(str(tmp_path / "v.npy"), surrogate=True), steps=())
    vectors, report, _ = stage({"item": TABLE["item"]})
    np.testing.assert_array_equal(vectors, np.eye(5, 3))
    assert report["surrogate"]
    assert report["n_empty"] == 0
    assert report["n_duplicate_rows"] == 1  # rows 3 and 4 are zeros
    assert report["n_constant_rows"] == 2
    before = stage.fingerprint()
    np.save(tmp_path / "v.npy", np.eye(5, 4, dtype=np.float32))
    assert len(before) == 64
    assert stage.fingerprint() != before
    assert ItemVectors().fingerprint() == ""


def test_errors_are_clear():
    with pytest.raises(ValueError, match="no column 'brand'"):
        ItemVectors(text=TextFields(("brand",)))(TABLE)
    with pytest.raises(ValueError, match="fit_on must be one of"):
        ItemVectors(fit_on="train")
    with pytest.raises(ValueError, match="got no mask"):
        ItemVectors(fit_on="train_items")(TABLE)
    with pytest.raises(ValueError, match=r"of shape \(4,\)"):
        ItemVectors(fit_on="train_items")(TABLE, np.ones(4, bool))
    with pytest.raises(ValueError, match="no columns"):
        ItemVectors()({})
    with pytest.raises(ValueError, match="no rows"):
        ItemVectors()({"title": []})


def test_counts_of_equal_rows():
    rows = np.array([[0.0, 1.0], [-0.0, 1.0], [2.0, 2.0], [0.0, 1.0]], np.float32)
    assert count_duplicate_rows(rows) == 2
    assert count_constant_rows(rows) == 1


def test_a_stage_survives_the_recipe_file(tmp_path):
    stage = ItemVectors(HashedTfidf(8), TextFields(("title", "class")), (L2(), PCA(2)))
    assert from_json(json.loads(json.dumps(to_json(stage)))) == stage
    file = ItemVectors(Precomputed("v.npy", ids=("a", "b")))
    assert from_json(json.loads(json.dumps(to_json(file)))) == file


@pytest.mark.real_data
def test_movielens_titles_and_genres(shared_data):
    lines = (shared_data / "movielens-100k" / "ml-100k.item").read_text().splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    table = {"title": [row[1] for row in rows], "class": [row[3].split(" ") for row in rows]}
    vectors, report, _ = ItemVectors(text=TextFields(("title", "class")))(table)
    assert vectors.shape == (1682, 256)
    assert report["n_empty"] == 0
    repeated = len(rows) - len({(row[1], row[3]) for row in rows})
    assert report["n_duplicate_rows"] == report["n_duplicate_texts"] == repeated == 21
