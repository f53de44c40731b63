"""What all encoders of behaviour promise: no leak, no trace of items that nobody had."""

import dataclasses
import json

import numpy as np
import pytest
from behaviour_logs import encode, random_lists, sequences_of

from jaxrec.backbones.sasrec import SasRec
from jaxrec.data.dataset import read_dataset
from jaxrec.data.histories import Histories, prepare
from jaxrec.data.splits import LeaveOneOut, Split
from jaxrec.data.synthetic import SyntheticWorld
from jaxrec.pipeline.stages import training_sequences
from jaxrec.recipe import from_json, to_json
from jaxrec.representation import Cooccurrence, HashedTfidf, ItemVectors, Precomputed
from jaxrec.representation.aligned import Aligned
from jaxrec.representation.als import Als
from jaxrec.representation.encoder import (
    Encoder,
    constant_vector,
    encode_items,
    has_behaviour,
    interactions,
    keep_known,
)
from jaxrec.representation.fused import Fused
from jaxrec.representation.lightgcn import LightGcn
from jaxrec.representation.pairs import NextPairs
from jaxrec.representation.sasrec_table import SasRecTable
from jaxrec.representation.steps import L2
from jaxrec.representation.swing import SwingPairs

ITEMS = 50
LEARNERS = [
    LightGcn(dimension=4, batch=16, steps=3),
    Als(dimension=4, iterations=2),
    SasRecTable(SasRec(layers=1, width=4, heads=1, length=8), rows=4, steps=3),
]
ENCODERS = [*LEARNERS, Cooccurrence(dimension=4)]
NAMES = [type(encoder).__name__ for encoder in ENCODERS]


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Training sequences of one log four times: as it is, its held-out items permuted, its
    held-out events deleted, and its training items permuted."""
    folder = tmp_path_factory.mktemp("world") / "d"
    SyntheticWorld(items=ITEMS, users=60).write(folder)
    histories = prepare(read_dataset(folder))
    split = LeaveOneOut()(histories)
    held = np.sort(np.concatenate([split.validation, split.test]))
    rng = np.random.default_rng(0)

    def permuted(positions):
        item = np.array(histories.item)
        item[positions] = rng.permutation(item[positions])
        return dataclasses.replace(histories, item=item)

    kept = np.setdiff1d(np.arange(histories.num_events), held)
    deleted = Histories(
        offsets=np.searchsorted(kept, histories.offsets).astype(np.int64),
        **{name: np.asarray(getattr(histories, name))[kept] for name in ("item", "time", "action")},
        users=histories.users,
        items=histories.items,
    )
    nothing = np.zeros(0, np.int64)
    return {
        "plain": training_sequences(histories, split),
        "permuted": training_sequences(permuted(held), split),
        "deleted": training_sequences(deleted, Split(deleted.offsets[1:], nothing, nothing, "all")),
        "trained": training_sequences(permuted(kept), split),
    }


def vectors_of(encoder, sequences, items=ITEMS, seed=0):
    mask = np.ones(items, bool)
    return encoder.encode([], table={}, fit_mask=mask, seed=seed, sequences=sequences)


@pytest.mark.parametrize("encoder", ENCODERS, ids=NAMES)
def test_held_out_events_change_nothing(encoder, logs):
    assert isinstance(encoder, Encoder)
    plain = vectors_of(encoder, logs["plain"])
    assert plain.dtype == np.float32
    np.testing.assert_array_equal(plain, vectors_of(encoder, logs["permuted"]))
    np.testing.assert_array_equal(plain, vectors_of(encoder, logs["deleted"]))
    # The same change of training items does reach it: the comparison above can fail.
    assert not np.array_equal(plain, vectors_of(encoder, logs["trained"]))


@pytest.mark.parametrize("pairs", [SwingPairs(), NextPairs()])
def test_pairs_are_those_of_training_events(pairs, logs):
    plain = pairs(logs["plain"], ITEMS)
    np.testing.assert_array_equal(plain, pairs(logs["permuted"], ITEMS))
    np.testing.assert_array_equal(plain, pairs(logs["deleted"], ITEMS))
    assert not np.array_equal(plain, pairs(logs["trained"], ITEMS))


@pytest.mark.parametrize("encoder", LEARNERS, ids=NAMES[:3])
def test_items_that_nobody_had_shape_nothing_and_are_counted(encoder, logs):
    alone, known = keep_known(logs["plain"], ITEMS)
    vectors = vectors_of(encoder, alone, known.sum())
    # Three more items, the first, one in the middle and the last, are had by nobody.
    place = np.setdiff1d(np.arange(known.sum() + 3), [0, 5, known.sum() + 2])
    spread = alone._replace(item=place[alone.item].astype(np.int32))
    found = encode_items(
        encoder, [], table={}, fit_mask=np.ones(len(place) + 3, bool), seed=0, sequences=spread
    )
    np.testing.assert_array_equal(found.vectors[place], vectors)
    np.testing.assert_array_equal(np.flatnonzero(~found.unknown), place)
    for item in (0, 5, len(place) + 2):
        np.testing.assert_array_equal(found.vectors[item], constant_vector(4))
    assert found.facts["n_without_behaviour"] == 3


@pytest.mark.parametrize("encoder", LEARNERS, ids=NAMES[:3])
def test_equal_seeds_give_equal_vectors(encoder, logs):
    first = vectors_of(encoder, logs["plain"], seed=3)
    np.testing.assert_array_equal(first, vectors_of(encoder, logs["plain"], seed=3))
    assert not np.array_equal(first, vectors_of(encoder, logs["plain"], seed=4))
    with pytest.raises(ValueError, match=f"{type(encoder).__name__} learns from training events"):
        encode(encoder, [[]], 3)


def test_the_report_has_what_the_encoder_tells():
    stage = ItemVectors(Als(dimension=3, iterations=2))
    report = stage({"item": list("abcde")}, None, 0, sequences_of([[0, 1, 3], [1, 3]])).report
    assert report["n_without_behaviour"] == 2
    assert len(report["fit_objective"]) == 2
    json.dumps(report)


def test_interactions_count_every_event():
    lists = random_lists()
    expected = np.zeros((30, 12))
    for user, each in enumerate(lists):
        for item in each:
            expected[user, item] += 1
    sequences = sequences_of(lists)
    before = sequences.item.copy()
    found = interactions(sequences, 12)
    np.testing.assert_array_equal(found.toarray(), expected)
    assert found.nnz == (expected > 0).sum(), "each pair is stored once"
    np.testing.assert_array_equal(sequences.item, before)
    np.testing.assert_array_equal(has_behaviour(sequences, 13), [*(expected.sum(0) > 0), False])


def test_known_items_keep_their_order():
    sequences, known = keep_known(sequences_of([[4, 2], [], [4, 7]]), 9)
    np.testing.assert_array_equal(sequences.item, [1, 0, 1, 2])
    np.testing.assert_array_equal(np.flatnonzero(known), [2, 4, 7])


def test_what_an_encoder_of_text_cannot_know_is_unknown():
    texts = ["red nail polish", "", "hair dryer"]
    mask = np.ones(3, bool)
    given = {"table": {}, "fit_mask": mask, "seed": 0}
    found = encode_items(HashedTfidf(dimension=2), texts, **given)
    np.testing.assert_array_equal(found.unknown, [False, True, False])
    assert found.facts == {}
    # A single number is always equal to itself, which says nothing.
    assert not encode_items(HashedTfidf(dimension=1), texts, **given).unknown.any()


@pytest.mark.parametrize(
    "encoder",
    [
        *LEARNERS,
        Aligned(HashedTfidf(8), NextPairs(2, 3), width=4),
        Fused((Als(), Precomputed("v.npy", missing="mean", mask="m.npy")), (1.0, 0.5)),
        Fused((Als(), HashedTfidf()), steps=((), (L2(),))),
    ],
    ids=lambda encoder: type(encoder).__name__,
)
def test_nested_components_survive_the_recipe_file(encoder):
    stage = ItemVectors(encoder)
    assert from_json(json.loads(json.dumps(to_json(stage)))) == stage
    assert hash(stage) == hash(from_json(to_json(stage)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LightGcn(layers=-1), "layers >= 0"),
        (lambda: LightGcn(initial_scale=0.0), "initial_scale > 0"),
        (lambda: Als(regularisation=0.0), "regularisation > 0"),
        (lambda: Als(iterations=0), "iterations >= 1"),
        (lambda: SasRecTable(rows=0), "rows and steps >= 1"),
        (lambda: SwingPairs(max_users=1), "max_users >= 2"),
        (lambda: NextPairs(window=0), "positive numbers"),
    ],
)
def test_impossible_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
