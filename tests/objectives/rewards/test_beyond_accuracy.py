"""Diversity and novelty against loops over pairs and items."""

import jax
import numpy as np
import pytest

from jaxrec.objectives.rewards import Diversity, Novelty
from jaxrec.objectives.rewards.beyond_accuracy import vector_distances

distances = jax.jit(vector_distances)
call = jax.jit(lambda reward, drawn, key=None: reward(drawn, key), static_argnums=0)


def mean_distance(drawn, distance):
    """Every pair of valid rollouts, one by one."""
    valid = np.asarray(drawn.valid)
    found = np.zeros(valid.shape)
    for row in range(len(valid)):
        for i in np.flatnonzero(valid[row]):
            others = [distance(row, i, j) for j in np.flatnonzero(valid[row]) if j != i]
            found[row, i] = np.mean(others) if others else 0.0
    return found


def test_distances_of_codes_are_the_loop(drawn):
    codes = np.asarray(drawn.codes)
    expected = mean_distance(drawn, lambda row, i, j: np.mean(codes[row, i] != codes[row, j]))
    np.testing.assert_allclose(call(Diversity(), drawn), expected, rtol=1e-5, atol=1e-7)


def test_distances_of_vectors_are_the_loop(drawn):
    vectors = np.asarray(drawn.features["vectors"], np.float64)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    items = np.asarray(drawn.items)
    expected = mean_distance(
        drawn, lambda row, i, j: 1 - vectors[items[row, i]] @ vectors[items[row, j]]
    )
    np.testing.assert_allclose(call(Diversity("vectors"), drawn), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("feature", [None, "vectors"])
def test_alone_or_all_alike_is_not_diverse(feature, drawn):
    alone = np.zeros_like(drawn.valid)
    alone[:, 1] = True
    alike = drawn._replace(
        items=np.full_like(drawn.items, 4), codes=np.ones_like(drawn.codes), valid=~alone
    )
    np.testing.assert_array_equal(call(Diversity(feature), drawn._replace(valid=alone)), 0)
    np.testing.assert_allclose(call(Diversity(feature), alike), 0, atol=1e-6)


def test_opposites_are_farthest_and_no_direction_is_at_right_angles():
    valid = np.ones((1, 2), bool)
    opposite = np.array([[[3.0, 0.0], [-0.1, 0.0]]])
    np.testing.assert_allclose(distances(opposite, valid), 2.0, rtol=1e-6)
    nowhere = np.array([[[0.0, 0.0], [1.0, 1.0]]])
    np.testing.assert_allclose(distances(nowhere, valid), 1.0, rtol=1e-6)


def test_novelty_is_the_surprise_at_the_item(drawn):
    counts = np.asarray(drawn.features["popularity"], np.float64)
    found = np.asarray(call(Novelty(0.5), drawn))
    for row, place in np.argwhere(drawn.valid):
        share = (counts[int(drawn.items[row, place])] + 0.5) / (counts.sum() + 0.5 * len(counts))
        np.testing.assert_allclose(found[row, place], -np.log2(share), rtol=1e-5)


def test_even_shares_are_the_bits_of_the_catalogue(drawn):
    even = drawn._replace(features={"popularity": np.full(32, 7)}, items=drawn.items + 2)
    np.testing.assert_allclose(call(Novelty(), even)[drawn.valid], 5.0, rtol=1e-6)


def test_the_rarer_the_newer(drawn):
    counts = np.array([100, 20, 4, 1, 0, 0])
    items = np.broadcast_to(np.arange(6), (4, 6))
    drawn = drawn._replace(
        features={"popularity": counts}, items=items, valid=np.ones((4, 6), bool)
    )
    found = np.asarray(call(Novelty(), drawn)[0])
    assert np.all(np.diff(found)[:-1] > 0)
    assert found[4] == found[5]
    np.testing.assert_allclose(found[5], np.log2(131), rtol=1e-6)  # log2((125 + 6) / 1)
