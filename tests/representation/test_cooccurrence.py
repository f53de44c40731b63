"""Vectors of behaviour: counts by an obvious loop, closed forms, no leak of what is held out."""

import dataclasses
import itertools

import numpy as np
import pytest

from jaxrec.data.dataset import read_dataset
from jaxrec.data.histories import prepare
from jaxrec.data.splits import LeaveOneOut
from jaxrec.data.synthetic import SyntheticWorld
from jaxrec.pipeline.stages import training_sequences
from jaxrec.representation import Cooccurrence, Encoder, TrainingSequences
from jaxrec.representation.cooccurrence import pair_counts, positive_information
from jaxrec.representation.encoder import constant_vector


def sequences_of(lists):
    return TrainingSequences(
        np.cumsum([0, *map(len, lists)]).astype(np.int64),
        np.array([item for each in lists for item in each], np.int32),
    )


def encode(lists, items, seed=0, **options):
    encoder = Cooccurrence(**options)
    mask = np.ones(items, bool)
    return encoder.encode([], table={}, fit_mask=mask, seed=seed, sequences=sequences_of(lists))


@pytest.mark.parametrize("window", [1, 2, 5])
def test_counts_equal_the_plain_loop(window):
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 6, length).tolist() for length in (0, 1, 2, 7, 9)]
    expected = np.zeros((6, 6))
    for each in lists:
        for first, second in itertools.combinations(range(len(each)), 2):
            if second - first <= window and each[first] != each[second]:
                expected[each[first], each[second]] += 1
                expected[each[second], each[first]] += 1
    found = pair_counts(sequences_of(lists), 6, window).toarray()
    np.testing.assert_array_equal(found, expected)


def test_information_is_the_formula_and_symmetric():
    from scipy import sparse

    counts = np.array([[0, 3, 1], [3, 0, 0], [1, 0, 2]], float)
    found = positive_information(sparse.csr_matrix(counts)).toarray()
    share = counts.sum(1)
    for i, j in itertools.product(range(3), repeat=2):
        expected = 0.0
        if counts[i, j]:
            expected = max(0.0, np.log(counts[i, j] * counts.sum() / (share[i] * share[j])))
        assert found[i, j] == pytest.approx(expected)
    np.testing.assert_array_equal(found, found.T)


def test_a_full_set_of_directions_gives_back_the_information():
    rng = np.random.default_rng(1)
    lists = [rng.integers(0, 8, 12).tolist() for _ in range(20)]
    vectors = encode(lists, 8, dimension=8).astype(np.float64)
    information = positive_information(pair_counts(sequences_of(lists), 8, 3)).toarray()
    # Rows of U S^(1/2): their Gram matrix is |M| = (M M)^(1/2), which has the same singular values.
    energies, directions = np.linalg.eigh(information @ information)
    absolute = (directions * np.sqrt(np.maximum(energies, 0))) @ directions.T
    np.testing.assert_allclose(vectors @ vectors.T, absolute, atol=1e-5)


def test_two_groups_that_never_meet_are_apart():
    rng = np.random.default_rng(2)
    lists = [(rng.integers(0, 5, 10) + 5 * (user % 2)).tolist() for user in range(60)]
    vectors = encode(lists, 11, dimension=4)
    assert isinstance(Cooccurrence(), Encoder)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, encode(lists, 11, dimension=4))
    np.testing.assert_array_equal(vectors[10], constant_vector(4))
    unit = vectors[:10] / np.linalg.norm(vectors[:10], axis=1, keepdims=True)
    assert np.abs(unit[:5] @ unit[5:].T).max() < 1e-4


def test_training_events_are_needed():
    with pytest.raises(ValueError, match="learns from training events"):
        encode([[]], 3)
    with pytest.raises(ValueError, match="positive numbers"):
        Cooccurrence(window=0)


def test_held_out_events_do_not_leak(tmp_path):
    SyntheticWorld(items=50, users=60).write(tmp_path / "d")
    histories = prepare(read_dataset(tmp_path / "d"))
    split = LeaveOneOut()(histories)
    other = np.array(histories.item)
    for positions in (split.validation, split.test):
        other[positions] = (other[positions] + 7) % histories.num_items
    first = training_sequences(histories, split)
    second = training_sequences(dataclasses.replace(histories, item=other), split)
    np.testing.assert_array_equal(first.item, second.item)
    assert first.offsets[-1] == len(first.item) == len(other) - 2 * histories.num_users
