"""Residual k-means: the invariants of METHODS T4, and a slow reference of encoding."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.parallel import make_mesh, rows_sharding
from jaxrec.recipe import from_json, to_json
from jaxrec.tokenization import Quantizer, ResidualKMeans
from jaxrec.tokenization.residual_kmeans import ResidualState

KEY = jax.random.key(0)
SMALL = ResidualKMeans(levels=3, codes=16)


def clustered(rows=800, width=12, seed=0):
    generator = np.random.default_rng(seed)
    middles = generator.normal(size=(40, width)) * 2
    noise = generator.normal(size=(rows, width))
    return (middles[generator.integers(0, 40, rows)] + 0.5 * noise).astype(np.float32)


VECTORS = clustered()


@functools.cache
def fitted(quantizer):
    """Its state after VECTORS, fitted when a test first asks for it."""
    return quantizer.fit(KEY, VECTORS)


@functools.cache
def coded(quantizer):
    """Its codes of VECTORS."""
    return np.asarray(quantizer.encode(fitted(quantizer), VECTORS))


def slow_encode(state, vectors, normalise=False):
    """Level by level, point by point, by the definition."""
    codes = []
    for vector in np.asarray(vectors, np.float64):
        residual, row = vector - np.asarray(state.offset, np.float64), []
        for codebook in state.codebooks:
            if normalise and np.linalg.norm(residual) > 0:
                residual = residual / np.linalg.norm(residual)
            distances = ((residual - np.asarray(codebook, np.float64)) ** 2).sum(1)
            row.append(int(np.argmin(distances)))
            residual = residual - np.asarray(codebook, np.float64)[row[-1]]
        codes.append(row)
    return np.array(codes)


def adjusted_rand_index(left, right):
    """1 for equal partitions, about 0 for unrelated ones (Hubert and Arabie)."""

    def pairs(counts):
        return (counts * (counts - 1) / 2).sum()

    table = np.zeros((left.max() + 1, right.max() + 1))
    np.add.at(table, (left, right), 1)
    rows, columns = pairs(table.sum(1)), pairs(table.sum(0))
    expected = rows * columns / pairs(np.array([len(left)]))
    return (pairs(table) - expected) / ((rows + columns) / 2 - expected)


def test_it_is_a_quantizer_and_survives_the_recipe_file():
    assert isinstance(SMALL, Quantizer)
    uneven = ResidualKMeans(levels=2, codes=(8, 4))
    assert from_json(json.loads(json.dumps(to_json(uneven)))) == uneven
    assert hash(uneven) == hash(ResidualKMeans(levels=2, codes=(8, 4)))


def test_encoding_equals_the_slow_reference():
    np.testing.assert_array_equal(coded(SMALL), slow_encode(fitted(SMALL), VECTORS))
    assert coded(SMALL).dtype == np.int32
    new = clustered(rows=100, seed=7)
    np.testing.assert_array_equal(SMALL.encode(fitted(SMALL), new), slow_encode(fitted(SMALL), new))


def test_ties_go_to_the_lowest_code_at_every_level():
    grid = np.array(list(itertools.product((-2, -1, 0, 1, 2), repeat=3)), np.float32)
    state = ResidualState(
        offset=jnp.zeros(3),
        codebooks=(
            jnp.asarray([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [1, 0, 0]], jnp.float32),
            jnp.asarray([[0, 0, 1], [0, 0, -1], [0, 0, 0]], jnp.float32),
        ),
        scales=jnp.ones(2),
    )
    quantizer = ResidualKMeans(levels=2, codes=(4, 3))
    np.testing.assert_array_equal(quantizer.encode(state, grid), slow_encode(state, grid))


def test_encoding_is_deterministic_and_row_by_row():
    np.testing.assert_array_equal(SMALL.encode(fitted(SMALL), VECTORS), coded(SMALL))
    again = SMALL.fit(KEY, VECTORS)
    for left, right in zip(jax.tree.leaves(fitted(SMALL)), jax.tree.leaves(again)):
        np.testing.assert_array_equal(left, right)
    np.testing.assert_array_equal(SMALL.encode(fitted(SMALL), VECTORS[5:6])[0], coded(SMALL)[5])


def test_squared_error_falls_with_every_level():
    errors = [((VECTORS - VECTORS.mean(0)) ** 2).sum()]
    for levels in (1, 2, 3):
        decoded = np.asarray(SMALL.decode(fitted(SMALL), coded(SMALL)[:, :levels]))
        errors.append(((VECTORS - decoded) ** 2).sum())
    assert all(after < before for before, after in itertools.pairwise(errors))
    np.testing.assert_allclose(fitted(SMALL).trace.before, errors[:-1], rtol=1e-4)
    np.testing.assert_allclose(fitted(SMALL).trace.after, errors[1:], rtol=1e-4)


def test_decoding_is_the_sum_of_codewords():
    books = [np.asarray(book) for book in fitted(SMALL).codebooks]
    expected = np.asarray(fitted(SMALL).offset) + sum(
        book[coded(SMALL)[:, level]] for level, book in enumerate(books)
    )
    np.testing.assert_allclose(SMALL.decode(fitted(SMALL), coded(SMALL)), expected, atol=1e-6)


def test_translation_moves_the_offset_and_nothing_else():
    moved = SMALL.fit(KEY, VECTORS + np.float32(64))  # a power of two loses few digits
    np.testing.assert_array_equal(SMALL.encode(moved, VECTORS + np.float32(64)), coded(SMALL))
    np.testing.assert_allclose(moved.offset, fitted(SMALL).offset + 64, atol=1e-3)
    for left, right in zip(moved.codebooks, fitted(SMALL).codebooks):
        np.testing.assert_allclose(left, right, atol=1e-3)


def test_rotation_rotates_the_codebooks_and_nothing_else():
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0].astype(np.float32)
    turned = SMALL.fit(KEY, VECTORS @ rotation)
    np.testing.assert_array_equal(SMALL.encode(turned, VECTORS @ rotation), coded(SMALL))
    for left, right in zip(turned.codebooks, fitted(SMALL).codebooks):
        np.testing.assert_allclose(left, right @ rotation, atol=1e-4)


def test_a_planted_hierarchy_is_recovered():
    generator = np.random.default_rng(4)
    coarse, fine = generator.normal(size=(16, 12)) * 10, generator.normal(size=(16, 12))
    first, second = generator.integers(0, 16, 800), generator.integers(0, 16, 800)
    vectors = coarse[first] + fine[second] + 0.02 * generator.normal(size=(800, 12))
    quantizer = ResidualKMeans(levels=2, codes=16, restarts=4)
    for seed in range(3):
        state = quantizer.fit(jax.random.key(seed), vectors)
        codes = np.asarray(quantizer.encode(state, vectors))
        assert adjusted_rand_index(codes[:, 0], first) == 1.0
        assert adjusted_rand_index(codes[:, 1], second) == 1.0


def test_error_is_within_two_percent_of_slow_lloyd_from_equal_starts():
    from jaxrec.tokenization import kmeans
    from tests.tokenization.test_kmeans import slow_lloyd  # the same reference

    points = jnp.asarray(VECTORS)
    start = kmeans.start_parallel(KEY, points, jnp.ones(800), 16)
    ours = float(kmeans.lloyd(points, start).inertia)
    theirs = slow_lloyd(points, start, iterations=50)[2]
    assert abs(ours / theirs - 1) < 0.02


def test_levels_may_differ_in_size():
    quantizer = ResidualKMeans(levels=2, codes=(16, 5))
    state = quantizer.fit(KEY, VECTORS)
    assert quantizer.sizes(state) == (16, 5)
    codes = np.asarray(quantizer.encode(state, VECTORS))
    assert codes.max(0).tolist() == [15, 4]
    assert quantizer.report(state)["fit_unused_codes"] == [0, 0]


def test_more_codes_than_rows_are_capped_and_reported():
    quantizer = ResidualKMeans(levels=2, codes=64)
    few = np.repeat(clustered(rows=10), 80, 0)
    state = quantizer.fit(KEY, few)
    assert quantizer.sizes(state)[0] == 10
    report = quantizer.report(state)
    assert report["capped_levels"] == [0, 1]
    assert report["codes_asked"] == [64, 64]
    np.testing.assert_allclose(
        quantizer.decode(state, quantizer.encode(state, few)), few, atol=1e-5
    )
    json.dumps(report)


def test_constant_vectors_give_one_code_a_level():
    constant = np.full((800, 12), 0.3, np.float32)
    state = SMALL.fit(KEY, constant)
    assert SMALL.sizes(state) == (1, 1, 1)
    np.testing.assert_array_equal(SMALL.encode(state, constant), np.zeros((800, 3)))


def test_normalised_residuals_follow_the_definition():
    quantizer = ResidualKMeans(levels=3, codes=16, normalise_residuals=True)
    state = quantizer.fit(KEY, VECTORS)
    codes = np.asarray(quantizer.encode(state, VECTORS))
    np.testing.assert_array_equal(codes, slow_encode(state, VECTORS, normalise=True))
    # The scales are the mean lengths of the residuals that each level was given.
    residual = VECTORS - np.asarray(state.offset)
    for level, book in enumerate(state.codebooks):
        lengths = np.linalg.norm(residual, axis=1, keepdims=True)
        np.testing.assert_allclose(state.scales[level], lengths.mean(), rtol=1e-4)
        residual = residual / lengths - np.asarray(book)[codes[:, level]]
    one = ((VECTORS - np.asarray(quantizer.decode(state, codes[:, :1]))) ** 2).mean()
    assert one < VECTORS.var(0).mean()


def test_weights_count():
    weights = np.where(np.arange(800) < 400, 1.0, 0.0).astype(np.float32)
    state = SMALL.fit(KEY, VECTORS, {"weights": weights})
    np.testing.assert_allclose(state.offset, VECTORS[:400].mean(0), atol=1e-5)
    changed = np.where(weights[:, None] > 0, VECTORS, 1e3).astype(np.float32)
    other = SMALL.fit(KEY, changed, {"weights": weights})
    for left, right in zip(state.codebooks, other.codebooks):
        np.testing.assert_allclose(left, right, atol=1e-4)


def test_sharded_rows_give_the_codes_of_one_device():
    sharded = jax.device_put(jnp.asarray(VECTORS), rows_sharding(make_mesh()))
    state = SMALL.fit(KEY, sharded)
    np.testing.assert_array_equal(SMALL.encode(state, sharded), coded(SMALL))
    for left, right in zip(state.codebooks, fitted(SMALL).codebooks):
        np.testing.assert_allclose(left, right, atol=1e-5)


def test_arrays_bring_the_state_back():
    arrays = SMALL.to_arrays(fitted(SMALL))
    assert sorted(arrays) == ["codebook_0", "codebook_1", "codebook_2", "offset", "scales"]
    back = SMALL.from_arrays(arrays)
    np.testing.assert_array_equal(SMALL.encode(back, VECTORS), coded(SMALL))
    np.testing.assert_array_equal(
        SMALL.decode(back, coded(SMALL)), SMALL.decode(fitted(SMALL), coded(SMALL))
    )
    assert "fit_iterations" not in SMALL.report(back)
    with pytest.raises(ValueError, match="lacks codebook_2"):
        SMALL.from_arrays({name: arrays[name] for name in arrays if name != "codebook_2"})


def test_states_are_pytrees():
    doubled = jax.tree.map(lambda leaf: leaf * 2, fitted(SMALL))
    np.testing.assert_array_equal(doubled.offset, fitted(SMALL).offset * 2)
    assert len(jax.tree.leaves(fitted(SMALL))) == 1 + 3 + 1 + 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"levels": 0}, "levels >= 1"),
        ({"codes": 0}, "positive number of codes"),
        ({"codes": (4, 4)}, r"levels=3, codes=\(4, 4\)"),
        ({"iterations": 0}, "iterations >= 1"),
        ({"restarts": 0}, "restarts >= 1"),
        ({"tolerance": 1.0}, "tolerance < 1"),
    ],
)
def test_bad_hyper_parameters(fields, message):
    with pytest.raises(ValueError, match=message):
        ResidualKMeans(**fields)


def test_bad_input():
    bad = VECTORS.copy()
    bad[3, 2] = np.nan
    with pytest.raises(ValueError, match="1 of 800 vectors have non-finite"):
        SMALL.fit(KEY, bad)
    with pytest.raises(ValueError, match="non-empty matrix"):
        SMALL.fit(KEY, np.zeros((0, 3), np.float32))
    with pytest.raises(ValueError, match="width 5 do not fit a quantizer of width 12"):
        SMALL.encode(fitted(SMALL), np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match=r"level 1 has codes 16..16, outside 0..15"):
        SMALL.decode(fitted(SMALL), np.array([[0, 16, 0]]))
    with pytest.raises(ValueError, match="codes must be integers"):
        SMALL.decode(fitted(SMALL), np.zeros((2, 4), np.int32))
    with pytest.raises(ValueError, match="one entry a row"):
        SMALL.fit(KEY, VECTORS, {"weights": np.ones(3)})
    with pytest.raises(ValueError, match="one must be positive"):
        SMALL.fit(KEY, VECTORS, {"weights": np.zeros(800)})
    with pytest.raises(ValueError, match="got pairs"):
        SMALL.fit(KEY, VECTORS, {"pairs": 1})


def test_rows_of_the_host_and_of_the_device_give_one_fit():
    """More rows than one piece, and no multiple of it: the host's come over in pieces."""
    points = np.random.default_rng(0).normal(size=(2**16 + 77, 4)).astype(np.float32)
    quantizer = ResidualKMeans(1, 8, iterations=3)
    one, other = quantizer.fit(KEY, points), quantizer.fit(KEY, jnp.asarray(points))
    np.testing.assert_array_equal(one.codebooks[0], other.codebooks[0])
    np.testing.assert_allclose(one.offset, points.mean(0), atol=1e-5)
