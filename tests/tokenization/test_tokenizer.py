"""The tokenization stage: composition, determinism, leak contract, real titles."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from jaxrec.recipe import from_json, to_json
from jaxrec.representation import ItemVectors, TextFields, WordLlama
from jaxrec.tokenization import (
    ExtraDigit,
    ItemIds,
    Keep,
    PublishedIds,
    Reassign,
    ResidualKMeans,
    SemanticIds,
    Tokenizer,
    popularity_order,
    prefix_overlap,
    prefix_purity,
    successive_pairs,
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


@dataclasses.dataclass(frozen=True)
class Reader(FirstSign):
    """Keeps what its fit was given."""

    reads: tuple[str, ...] = ()
    seen: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    def fit(self, key, vectors, aux=None):
        self.seen.update(aux or {}, vectors=np.asarray(vectors))
        return super().fit(key, vectors)


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """An encoder that says what it was asked."""

    reads_text = False

    def encode(self, texts, *, table, fit_mask, seed, sequences=None):
        assert texts == []
        assert table == {"item": ITEMS[:6]}
        width = np.full(len(fit_mask), len(sequences.item))
        return np.stack([np.arange(len(fit_mask)), fit_mask, width, np.full(6, seed)], 1)

    def fingerprint(self):
        return "of a file"


# Items 1 and 4 are never had.
EVENTS = SimpleNamespace(offsets=np.array([0, 3, 5]), item=np.array([0, 2, 3, 5, 0]))


def pair_finder(sequences, items):
    assert sequences is EVENTS
    assert items == 6
    return np.array([[0, 2], [2, 3], [3, 5], [5, 0]])


def test_behaviour_reaches_the_quantizers_that_read_it():
    reader = Reader(("collaborative", "has_behaviour", "pairs"))
    stage = Tokenizer(reader, collaborative=Behaviour(), pairs=pair_finder)
    stage(KEY, VECTORS[:6], items=ITEMS[:6], sequences=EVENTS)
    seen = reader.seen
    assert set(seen) == {"collaborative", "has_behaviour", "pairs", "vectors"}
    assert seen["collaborative"].dtype == np.float32
    assert seen["collaborative"][:, :3].tolist() == [[row, 1, 5] for row in range(6)]
    assert seen["has_behaviour"].tolist() == [True, False, True, True, False, True]
    assert seen["pairs"].tolist() == [[0, 2], [2, 3], [3, 5], [5, 0]]
    seeds = {seen["collaborative"][0, 3]}
    stage(KEY, VECTORS[:6], items=ITEMS[:6], sequences=EVENTS)
    seeds.add(seen["collaborative"][0, 3])
    assert len(seeds) == 1
    stage(jax.random.key(1), VECTORS[:6], items=ITEMS[:6], sequences=EVENTS)
    assert seen["collaborative"][0, 3] not in seeds
    assert stage.fingerprint() == "of a file"
    assert Tokenizer().fingerprint() == ""


def test_behaviour_of_the_fitted_rows_alone():
    reader = Reader(("collaborative", "has_behaviour", "pairs"))
    mask = np.array([True, False, True, True, False, True])
    Tokenizer(reader, collaborative=Behaviour(), pairs=pair_finder)(
        KEY, VECTORS[:6], items=ITEMS[:6], sequences=EVENTS, train_mask=mask, fit_on="train_items"
    )
    seen = reader.seen
    np.testing.assert_array_equal(seen["vectors"], VECTORS[[0, 2, 3, 5]])
    assert seen["collaborative"][:, :2].tolist() == [[0, 1], [2, 1], [3, 1], [5, 1]]
    assert seen["has_behaviour"].tolist() == [True] * 4
    assert seen["pairs"].tolist() == [[0, 1], [1, 2], [2, 3], [3, 0]]  # numbered anew
    mask[3] = False
    Tokenizer(reader, collaborative=Behaviour(), pairs=pair_finder)(
        KEY, VECTORS[:6], items=ITEMS[:6], sequences=EVENTS, train_mask=mask, fit_on="train_items"
    )
    assert seen["pairs"].tolist() == [[0, 1], [2, 0]]


@pytest.mark.parametrize(
    ("reads", "arguments", "message"),
    [
        (("collaborative",), {}, r"reads vectors of behaviour: set Tokenizer\(collaborative"),
        (("pairs",), {}, r"reads pairs of items: set Tokenizer\(pairs"),
        (
            ("has_behaviour",),
            {"sequences": None},
            "learns from training events, and there are none",
        ),
        (("sound",), {}, "reads sound, which a Tokenizer does not have"),
    ],
)
def test_missing_behaviour_is_named(reads, arguments, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer(Reader(reads))(
            KEY, VECTORS[:6], items=ITEMS[:6], **({"sequences": EVENTS} | arguments)
        )


def test_codes_are_judged_by_events_and_categories_too():
    labels = ["x", "y", "x", "", "y", "x"]
    stage = Tokenizer(Reader(), Keep())
    plain = stage(KEY, VECTORS[:6], items=ITEMS[:6])[1]["quality"]
    found = stage(KEY, VECTORS[:6], items=ITEMS[:6], sequences=EVENTS, categories=labels)
    quality, codes = found[1]["quality"], found[0].codes
    assert quality["behaviour"] == prefix_overlap(codes, successive_pairs(EVENTS))
    assert quality["neighbourhood"]["n_pairs"] == 3
    assert quality["categories"] == prefix_purity(codes, labels)
    shared = set(plain) - {"advice"}
    assert not shared & {"behaviour", "neighbourhood", "categories"}
    assert {name: quality[name] for name in shared} == {name: plain[name] for name in shared}
    # Users of one event each have no item after another.
    alone = SimpleNamespace(offsets=np.array([0, 1, 2]), item=np.array([0, 3]))
    told = stage(KEY, VECTORS[:6], items=ITEMS[:6], sequences=alone)[1]["quality"]
    assert "behaviour" not in told


def test_bad_behaviour():
    with pytest.raises(ValueError, match="reads texts; it must be an encoder of behaviour"):
        Tokenizer(collaborative=WordLlama())
    for pairs, message in (
        (np.array([[0, 6]]), r"pairs name rows 0\.\.6, but there are 6 items"),
        (np.array([[0.0, 1.0]]), "pairs must be integers"),
        (np.array([0, 1]), r"got int64 \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Tokenizer(Reader(("pairs",)), pairs=lambda *_, pairs=pairs: pairs)(
                KEY, VECTORS[:6], items=ITEMS[:6], sequences=EVENTS
            )


def test_bad_vectors_are_refused_or_mended():
    with pytest.raises(ValueError, match="all 5 vectors are equal, so semantic IDs cannot tell"):
        Tokenizer(SMALL)(KEY, np.ones((5, 3)), items=ITEMS[:5])
    holes = VECTORS[:9].copy()
    holes[[2, 4], 0] = np.nan, np.inf
    with pytest.raises(ValueError, match="2 of 9 vectors have non-finite numbers"):
        Tokenizer(SMALL)(KEY, holes, items=ITEMS[:9])
    # Fewer items than codes: as many codes as there are different vectors, and it is reported.
    few, report = Tokenizer(SMALL)(KEY, VECTORS[:9], items=ITEMS[:9])
    assert few.space.sizes[0] == 8  # row 7 is row 3
    assert report["fit"]["capped_levels"] == [0, 1]
    assert report["quality"]["duplicates"]["n_duplicate_rows"] == 1
    alone, _ = Tokenizer(SMALL)(KEY, VECTORS[:1], items=ITEMS[:1])
    assert alone.codes.tolist() == [[0, 0, 0]]


def test_every_tokenizer_takes_the_call_of_the_pipeline(tmp_path):
    (tmp_path / "index.json").write_text(json.dumps(dict.fromkeys(ITEMS[:6], "SID_1_0")))
    call = {
        "items": ITEMS[:6],
        "order": np.arange(6),
        "train_mask": np.ones(6, bool),
        "fit_on": "train_items",
        "sequences": EVENTS,
        "categories": ["x", "y", "x", "", "y", "x"],
    }
    for stage in (
        Tokenizer(Reader()),
        PublishedIds(str(tmp_path / "index.json")),
        ItemIds(),
    ):
        ids, report = stage(KEY, VECTORS[:6], **call)
        assert ids.items.tolist() == ITEMS[:6]
        assert report["final"] == ids.summary()
        assert report["final"]["is_unique"]
    kept = dataclasses.replace(ids, codes=np.array([[0], [1], [2], [3], [4], [4]]))
    assert not kept.summary()["is_unique"]


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
