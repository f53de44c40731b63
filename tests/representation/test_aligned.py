"""Alignment: where it starts, what it brings together, and what it may not look at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from behaviour_logs import encode

from jaxrec.objectives.pair_contrast import pair_contrast
from jaxrec.representation import Precomputed
from jaxrec.representation.aligned import Aligned, Head, Together, apply_head, start_head
from jaxrec.representation.encoder import constant_vector
from jaxrec.representation.pairs import NextPairs
from jaxrec.representation.steps import PCA, Standardise
from jaxrec.training.optimizers import AdamW

RNG = np.random.default_rng(0)
ITEMS = 20
CONTENT = RNG.normal(size=(ITEMS, 6)).astype(np.float32)
# Item i is followed by i + 9, whatever its content; the last two items are had by nobody.
LISTS = [[item, item + 9] for item in range(9)] * 3
STILL = AdamW(learning_rate=0.0)


@pytest.fixture
def content(tmp_path):
    np.save(tmp_path / "content.npy", CONTENT)
    return Precomputed(str(tmp_path / "content.npy"))


def aligned(content, **options):
    return Aligned(content, NextPairs(), **{"hidden": 16, "batch": 32, "steps": 1, **options})


def test_it_starts_as_the_content_on_its_principal_directions(content):
    found = encode(aligned(content, width=3, optimizer=STILL), LISTS, ITEMS).vectors
    mask = np.ones(ITEMS, bool)
    rows = Standardise().apply(Standardise().fit(CONTENT, mask), CONTENT)
    expected = PCA(3).apply(PCA(3).fit(rows, mask), rows)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_head_is_its_formula():
    sizes = ((6, 3), (6, 5), 5, (5, 3))
    head = Head(*(jnp.asarray(RNG.normal(size=size), jnp.float32) for size in sizes))
    expected = CONTENT @ head.straight
    expected = expected + np.maximum(CONTENT @ head.up + head.bias, 0) @ head.down
    np.testing.assert_allclose(
        apply_head(head, jnp.asarray(CONTENT)), expected, rtol=1e-4, atol=1e-5
    )


def test_the_loss_is_the_contrast_of_drawn_pairs_either_way_round():
    model = aligned(None, width=3)
    head = start_head(jax.random.key(0), CONTENT, 3, 16)
    pairs = np.array([[item, item + 9] for item in range(9)], np.int32)
    key = jax.random.key(4)
    pair_key, turn_key = jax.random.split(key)
    drawn = pairs[np.asarray(jax.random.randint(pair_key, (32,), 0, 9))]
    turned = np.asarray(jax.random.bernoulli(turn_key, shape=(32, 1)))
    assert 0 < turned.sum() < 32
    drawn = np.where(turned, drawn[:, ::-1], drawn)
    vectors = apply_head(head, jnp.asarray(CONTENT))
    ids = jnp.asarray(drawn[:, 0]), jnp.asarray(drawn[:, 1])
    total, weight = pair_contrast(vectors[ids[0]], vectors[ids[1]], *ids, model.temperature)
    data = Together(jnp.asarray(CONTENT), jnp.asarray(pairs))
    found = jax.jit(model.loss)(head, data, key)
    np.testing.assert_allclose(found, total / weight, rtol=1e-5)


def test_partners_come_together_and_others_go_through_the_same_head(content):
    model = aligned(content, width=6, steps=200, optimizer=AdamW(1e-2))
    found = encode(model, LISTS, ITEMS)
    unit = found.vectors / np.linalg.norm(found.vectors, axis=1, keepdims=True)
    cosines = unit[:9] @ unit[9:18].T
    assert (cosines.argmax(1) == np.arange(9)).all()
    before = CONTENT / np.linalg.norm(CONTENT, axis=1, keepdims=True)
    assert ((before[:9] @ before[9:18].T).argmax(1) == np.arange(9)).mean() < 0.5
    assert found.facts["n_pairs"] == 9
    assert found.facts["n_without_pair"] == 2
    assert found.facts["fit_loss"][-1] < 0.5 * found.facts["fit_loss"][0]
    # An item without a pair that has the content of another one gets its vector too.
    twin = CONTENT.copy()
    twin[19] = twin[4]
    np.save(content.path, twin)
    again = encode(model, LISTS, ITEMS).vectors
    np.testing.assert_array_equal(again[19], again[4])


def test_unknown_items_are_in_no_pair(content, tmp_path):
    np.save(tmp_path / "mask.npy", np.arange(ITEMS) == 2)
    hidden = Precomputed(content.path, missing="mean", mask=str(tmp_path / "mask.npy"))
    found = encode(aligned(hidden, width=4), LISTS, ITEMS)
    assert found.facts["n_pairs"] == 8
    assert found.facts["n_unknown"] == found.facts["n_missing"] == 1
    np.testing.assert_array_equal(found.vectors[2], constant_vector(4))
    changed = CONTENT.copy()
    changed[2] = 1e6
    np.save(content.path, changed)
    np.testing.assert_array_equal(encode(aligned(hidden, width=4), LISTS, ITEMS).vectors,
                                  found.vectors)  # fmt: skip


def test_items_that_may_not_be_fitted_shape_nothing(content):
    mask = np.arange(ITEMS) != 3
    model = aligned(content, width=4)
    before = encode(model, LISTS, ITEMS, mask=mask)
    changed = CONTENT.copy()
    changed[3] *= -5
    np.save(content.path, changed)
    after = encode(model, LISTS, ITEMS, mask=mask)
    np.testing.assert_array_equal(before.vectors[mask], after.vectors[mask])
    assert before.facts["n_pairs"] == 8
    assert not np.array_equal(before.vectors[3], after.vectors[3])


def test_it_is_labelled_as_its_encoder(content):
    assert not aligned(content).surrogate
    assert aligned(Precomputed("x.npy", surrogate=True)).surrogate
    assert not aligned(content).reads_text
    assert aligned(content).fingerprint() == content.fingerprint()


def test_errors_are_clear(content):
    with pytest.raises(ValueError, match="found 9 pairs of items, and none"):
        encode(aligned(content, width=3), LISTS, ITEMS, mask=np.arange(ITEMS) < 9)
    with pytest.raises(ValueError, match="use k <= 6"):
        encode(aligned(content, width=7), LISTS, ITEMS)
    with pytest.raises(ValueError, match="temperature > 0"):
        aligned(content, temperature=0.0)
    with pytest.raises(ValueError, match="batch >= 2"):
        aligned(content, batch=1)
