"""PQ and OPQ: a plain numpy PQ, and the invariants of METHODS T7."""

import dataclasses
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.parallel import make_mesh, rows_sharding
from jaxrec.recipe import from_json, to_json
from jaxrec.tokenization import Quantizer, kmeans
from jaxrec.tokenization.product_quantization import (
    ProductKMeans,
    ProductState,
    allocate_variances,
    best_rotation,
    principal_rotation,
)
from tests.tokenization.test_kmeans import slow_lloyd

KEY = jax.random.key(0)


def correlated(rows=600, width=12, seed=0):
    """Gaussian vectors whose first block has nearly all there is to tell, in a turned frame."""
    generator = np.random.default_rng(seed)
    axes = np.linalg.qr(generator.normal(size=(width, width)))[0]
    spread = np.geomspace(4, 0.1, width)
    return (3 + (generator.normal(size=(rows, width)) * spread) @ axes).astype(np.float32)


VECTORS = correlated()
PLAIN = ProductKMeans(parts=4, codes=16)
TURNED = ProductKMeans(parts=4, codes=16, rotation="learnt", alternations=12)


@functools.cache
def fitted(quantizer):
    """Its state after VECTORS, fitted when a test first asks for it."""
    return quantizer.fit(KEY, VECTORS)


@functools.cache
def coded(quantizer):
    """Its codes of VECTORS."""
    return np.asarray(quantizer.encode(fitted(quantizer), VECTORS))


def slow_encode(state, vectors):
    """Part by part, point by point, by the definition."""
    centred = np.asarray(vectors, np.float64) - np.asarray(state.offset, np.float64)
    if state.rotation is not None:
        centred = centred @ np.asarray(state.rotation, np.float64)
    codes = []
    for part, book in enumerate(state.codebooks):
        width = book.shape[1]
        block = centred[:, part * width : (part + 1) * width]
        distances = ((block[:, None] - np.asarray(book, np.float64)) ** 2).sum(-1)
        codes.append(distances.argmin(1))
    return np.stack(codes, 1)


def distortion(quantizer, state, vectors):
    decoded = np.asarray(quantizer.decode(state, quantizer.encode(state, vectors)), np.float64)
    return float(((vectors - decoded) ** 2).sum())


def assert_equal_states(left, right):
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(one, other)


def test_it_is_a_quantizer_and_survives_the_recipe_file():
    assert isinstance(PLAIN, Quantizer)
    other = ProductKMeans(parts=8, rotation="learnt", start="pca")
    assert from_json(json.loads(json.dumps(to_json(other)))) == other
    assert hash(other) == hash(dataclasses.replace(other))
    assert PLAIN.reads == ()


@pytest.mark.parametrize("quantizer", [PLAIN, TURNED])
def test_encoding_equals_the_slow_reference(quantizer):
    state = fitted(quantizer)
    for vectors in (VECTORS, correlated(rows=100, seed=7)):
        codes = np.asarray(quantizer.encode(state, vectors))
        np.testing.assert_array_equal(codes, slow_encode(state, vectors))
        assert codes.dtype == np.int32
    assert quantizer.sizes(state) == (16,) * 4


def test_ties_go_to_the_lowest_code_in_every_part():
    book = jnp.asarray([[1, 0], [-1, 0], [0, 1], [1, 0]], jnp.float32)
    state = ProductState(jnp.zeros(4), None, (book, book[::-1]))
    grid = np.array(list(itertools.product((-2, -1, 0, 1, 2), repeat=4)), np.float32)
    quantizer = ProductKMeans(parts=2, codes=4)
    np.testing.assert_array_equal(quantizer.encode(state, grid), slow_encode(state, grid))


def test_the_fit_is_that_of_a_plain_numpy_pq_from_equal_starts():
    quantizer = dataclasses.replace(PLAIN, iterations=3, tolerance=0.0)
    state = quantizer.fit(KEY, VECTORS)
    centred = jnp.asarray(VECTORS) - state.offset
    for part in range(4):
        block = centred[:, 3 * part : 3 * part + 3]
        key = jax.random.fold_in(jax.random.fold_in(KEY, part), 0)  # the first and only run
        start = kmeans.start_centroids(key, block, jnp.ones(600), 16)
        book, codes, inertia = slow_lloyd(block, start, iterations=3)
        np.testing.assert_allclose(state.codebooks[part], book, atol=1e-4)
        np.testing.assert_allclose(state.trace.after[part], inertia, rtol=1e-4)
        np.testing.assert_array_equal(quantizer.encode(state, VECTORS)[:, part], codes)


def test_the_rotation_is_orthogonal_and_the_reported_errors_are_true():
    rotation = np.asarray(fitted(TURNED).rotation, np.float64)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(12), atol=1e-5)
    assert np.abs(rotation - np.eye(12)).max() > 0.1
    for quantizer, state in ((PLAIN, fitted(PLAIN)), (TURNED, fitted(TURNED))):
        error = distortion(quantizer, state, VECTORS)
        np.testing.assert_allclose(state.trace.turns[-1], error, rtol=1e-4)
        np.testing.assert_allclose(state.trace.after.sum(), error, rtol=1e-4)
        report = quantizer.report(state)
        np.testing.assert_allclose(report["fit_mse_turns"][-1], error / 600 / 12, rtol=1e-4)
        np.testing.assert_allclose(np.mean(report["fit_mse_parts"]), error / 600 / 12, rtol=1e-4)
        np.testing.assert_allclose(report["fit_mse_before"], VECTORS.var(0).mean(), rtol=1e-4)
        json.dumps(report)


def test_distortion_falls_over_the_alternations_from_that_of_plain_pq():
    turns = np.asarray(fitted(TURNED).trace.turns)
    assert turns.shape == (13,)
    assert (np.diff(turns) <= 1e-5 * turns[0]).all()
    np.testing.assert_allclose(turns[0], fitted(PLAIN).trace.turns[0], rtol=1e-6)
    assert turns[-1] < 0.8 * turns[0]


def test_principal_axes_are_a_better_start_for_gaussian_vectors():
    quantizer = dataclasses.replace(TURNED, start="pca", alternations=0)
    state = quantizer.fit(KEY, VECTORS)
    assert distortion(quantizer, state, VECTORS) < 0.8 * distortion(PLAIN, fitted(PLAIN), VECTORS)
    rotation = np.asarray(state.rotation, np.float64)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(12), atol=1e-5)
    centred = VECTORS - VECTORS.mean(0, dtype=np.float64)
    covariance = rotation.T @ (centred.T @ centred / 600) @ rotation
    variances = np.diag(covariance)
    np.testing.assert_allclose(covariance, np.diag(variances), atol=1e-3)
    products = np.log(variances).reshape(4, 3).sum(1)
    assert np.ptp(products) < 0.2 * np.ptp(np.log(np.sort(variances)).reshape(4, 3).sum(1))


def test_variances_are_allocated_by_hand():
    # Products: 9 | 8 | 8 * 4 | 9 * 2 | ... with room for two a part, whatever the units.
    for unit in (1e-9, 1.0, 1e9):
        places = allocate_variances(np.array([9.0, 8.0, 4.0, 2.0]) * unit, 2)
        assert places.tolist() == [0, 3, 1, 2]
    assert allocate_variances(np.array([5.0, 0.0, 0.0, 0.0]), 2).tolist() == [0, 3, 1, 2]
    assert allocate_variances(np.zeros(4), 2).tolist() == [0, 1, 2, 3]
    assert allocate_variances(np.array([3.0, 2.0, 1.0]), 1).tolist() == [0, 1, 2]


def test_procrustes_finds_a_planted_rotation_and_beats_every_other_one():
    generator = np.random.default_rng(2)
    points = generator.normal(size=(80, 5)).astype(np.float32)
    planted = np.linalg.qr(generator.normal(size=(5, 5)))[0]
    weights = jnp.asarray(generator.random(80), jnp.float32)
    turned = jnp.asarray(points @ planted, jnp.float32)
    np.testing.assert_allclose(
        best_rotation(jnp.asarray(points), turned, weights), planted, atol=1e-5
    )
    noisy = np.asarray(turned) + generator.normal(size=(80, 5))

    def error(rotation):
        return (np.asarray(weights)[:, None] * (points @ rotation - noisy) ** 2).sum()

    found = np.asarray(best_rotation(jnp.asarray(points), jnp.asarray(noisy, jnp.float32), weights))
    for _ in range(200):
        near = np.linalg.qr(np.eye(5) + 0.05 * generator.normal(size=(5, 5)))[0]
        near *= np.sign(np.diag(near))
        assert error(found) <= error(found @ near)


def test_a_rotation_of_the_vectors_does_not_change_what_opq_achieves():
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0]
    quantizer = dataclasses.replace(TURNED, start="pca")
    errors = []
    for vectors in (VECTORS, (VECTORS @ turn).astype(np.float32)):
        errors.append(distortion(quantizer, quantizer.fit(KEY, vectors), vectors))
    np.testing.assert_allclose(*errors, rtol=0.02)
    plain = PLAIN.fit(KEY, (VECTORS @ turn).astype(np.float32))
    assert abs(float(plain.trace.turns[-1] / fitted(PLAIN).trace.turns[-1]) - 1) > 0.02


def test_as_many_codes_as_different_blocks_leave_no_error():
    generator = np.random.default_rng(3)
    corners = generator.normal(size=(16, 4, 3))
    drawn = generator.integers(0, 16, (600, 4))
    vectors = corners[drawn, np.arange(4)].reshape(600, 12).astype(np.float32)
    state = dataclasses.replace(PLAIN, codes=64).fit(KEY, vectors)
    assert PLAIN.sizes(state) == (16,) * 4
    assert distortion(PLAIN, state, vectors) < 1e-8
    # The codes are the blocks.
    for part, column in enumerate(np.asarray(PLAIN.encode(state, vectors)).T):
        assert len({*zip(column.tolist(), drawn[:, part].tolist())}) == 16


@pytest.mark.parametrize("rotation", ["none", "learnt"])
def test_few_vectors_and_constant_ones_are_capped_and_reported(rotation):
    quantizer = dataclasses.replace(TURNED, rotation=rotation, alternations=3)
    few = np.repeat(correlated(rows=10), 60, 0)
    state = quantizer.fit(KEY, few)
    assert quantizer.sizes(state) == (10,) * 4
    assert quantizer.report(state)["capped_levels"] == [0, 1, 2, 3]
    assert quantizer.report(state)["codes_asked"] == [16] * 4
    assert distortion(quantizer, state, few) < 1e-6
    constant = np.full((600, 12), 0.3, np.float32)
    state = quantizer.fit(KEY, constant)
    assert quantizer.sizes(state) == (1,) * 4
    np.testing.assert_array_equal(quantizer.encode(state, constant), np.zeros((600, 4)))
    np.testing.assert_allclose(quantizer.decode(state, np.zeros((1, 4), int)), constant[:1])


def test_constant_blocks_gain_codes_when_the_rotation_fills_them():
    half = VECTORS.copy()
    half[:, 6:] = 1.0
    assert PLAIN.sizes(PLAIN.fit(KEY, half)) == (16, 16, 1, 1)
    few = dataclasses.replace(TURNED, alternations=3)
    identity = few.fit(KEY, half)  # Procrustes finds nothing to gain from a block of zeros
    assert (np.diff(identity.trace.turns) <= 1e-5 * identity.trace.turns[0]).all()
    state = dataclasses.replace(few, start="pca").fit(KEY, half)
    assert PLAIN.sizes(state) == (16,) * 4
    # Six directions over four parts; rounding in an empty part would be no reason for codes.
    line = np.outer(np.linspace(-1, 1, 600), np.ones(12)).astype(np.float32)
    assert sorted(PLAIN.sizes(dataclasses.replace(few, start="pca").fit(KEY, line))) == [
        1,
        1,
        1,
        16,
    ]


def test_a_codebook_grows_where_the_block_has_more_to_tell():
    from jaxrec.tokenization.product_quantization import _grow

    block = jnp.asarray(VECTORS[:, :3])
    ones, total = jnp.ones(600), jnp.sum(block**2)
    one = kmeans.fit_kmeans(KEY, block, 1)
    grown = _grow(one, block, ones, 16, total)
    assert grown.shape == (16, 3)
    fit = kmeans.lloyd(block, grown, iterations=1)
    assert int(fit.unused) == 0
    assert float(fit.inertia) < 0.6 * float(one.inertia)
    assert _grow(one, jnp.zeros((600, 3)), ones, 16, total).shape == (1, 3)


@pytest.mark.parametrize("quantizer", [PLAIN, TURNED])
def test_a_prefix_leaves_the_other_parts_at_their_mean(quantizer):
    state = fitted(quantizer)
    codes = np.asarray(quantizer.encode(state, VECTORS))
    rotation = np.eye(12) if state.rotation is None else np.asarray(state.rotation, np.float64)
    errors = [((VECTORS - VECTORS.mean(0)) ** 2).sum()]
    for parts in (1, 2, 3, 4):
        expected = np.zeros((600, 12))
        for part in range(parts):
            book = np.asarray(state.codebooks[part])
            expected[:, 3 * part : 3 * part + 3] = book[codes[:, part]]
        expected = expected @ rotation.T + np.asarray(state.offset)
        decoded = np.asarray(quantizer.decode(state, codes[:, :parts]))
        np.testing.assert_allclose(decoded, expected, atol=1e-5)
        errors.append(((VECTORS - decoded) ** 2).sum())
    assert all(after < before for before, after in itertools.pairwise(errors))


def test_translation_moves_the_offset_and_nothing_else():
    moved = PLAIN.fit(KEY, VECTORS + np.float32(64))
    np.testing.assert_array_equal(PLAIN.encode(moved, VECTORS + np.float32(64)), coded(PLAIN))
    np.testing.assert_allclose(moved.offset, fitted(PLAIN).offset + 64, atol=1e-3)


def test_equal_keys_give_equal_states_and_rows_are_encoded_one_by_one():
    assert_equal_states(TURNED.fit(KEY, VECTORS), fitted(TURNED))
    other = PLAIN.fit(jax.random.key(1), VECTORS)
    assert np.abs(other.codebooks[0] - fitted(PLAIN).codebooks[0]).max() > 1e-3
    np.testing.assert_array_equal(PLAIN.encode(fitted(PLAIN), VECTORS[5:6])[0], coded(PLAIN)[5])


@pytest.mark.parametrize("start", ["identity", "pca"])
def test_rows_without_weight_change_nothing(start):
    quantizer = dataclasses.replace(TURNED, start=start, alternations=3)
    weights = (np.arange(600) < 400).astype(np.float32)
    padded = np.where(weights[:, None] > 0, VECTORS, 1e6).astype(np.float32)
    state = quantizer.fit(KEY, VECTORS, {"weights": weights})
    assert_equal_states(quantizer.fit(KEY, padded, {"weights": weights}), state)
    np.testing.assert_allclose(state.offset, VECTORS[:400].mean(0), atol=1e-5)


def test_weights_count():
    weights = np.where(np.arange(600) < 300, 9.0, 1.0).astype(np.float32)
    axes = np.asarray(
        principal_rotation(jnp.asarray(VECTORS - VECTORS.mean(0)), jnp.asarray(weights), 1)
    )
    centred = VECTORS - VECTORS.mean(0)
    covariance = axes.T @ (centred.T * weights) @ centred @ axes / weights.sum()
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-3)
    state = TURNED.fit(KEY, VECTORS, {"weights": weights})

    def errors(fitted):
        decoded = np.asarray(TURNED.decode(fitted, TURNED.encode(fitted, VECTORS)))
        return ((VECTORS - decoded) ** 2).sum(1)

    heavy, even = errors(state), errors(fitted(TURNED))
    np.testing.assert_allclose(state.trace.turns[-1], (weights * heavy).sum(), rtol=1e-4)
    assert heavy[:300].sum() / heavy[300:].sum() < 0.9 * even[:300].sum() / even[300:].sum()


def test_sharded_rows_give_the_codes_and_the_rotation_of_one_device():
    sharded = jax.device_put(jnp.asarray(VECTORS), rows_sharding(make_mesh()))
    np.testing.assert_array_equal(
        TURNED.encode(fitted(TURNED), sharded), slow_encode(fitted(TURNED), VECTORS)
    )
    near = jnp.asarray(VECTORS @ np.asarray(fitted(TURNED).rotation))
    rotation = best_rotation(sharded, near, jnp.ones(600))
    np.testing.assert_allclose(rotation, fitted(TURNED).rotation, atol=1e-4)


@pytest.mark.parametrize("quantizer", [PLAIN, TURNED])
def test_arrays_bring_the_state_back(quantizer):
    state = fitted(quantizer)
    arrays = quantizer.to_arrays(state)
    assert ("rotation" in arrays) == (quantizer is TURNED)
    back = quantizer.from_arrays(arrays)
    assert_equal_states(back, dataclasses.replace(state, trace=None))
    codes = quantizer.encode(state, VECTORS)
    np.testing.assert_array_equal(quantizer.encode(back, VECTORS), codes)
    np.testing.assert_array_equal(quantizer.decode(back, codes), quantizer.decode(state, codes))
    assert "fit_mse_turns" not in quantizer.report(back)
    with pytest.raises(ValueError, match="a ProductKMeans of 3 parts"):
        dataclasses.replace(quantizer, parts=3).from_arrays(arrays)
    other = PLAIN if quantizer is TURNED else TURNED
    with pytest.raises(ValueError, match=f"rotation '{other.rotation}'"):
        other.from_arrays(arrays)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parts": 0}, "parts, codes and iterations >= 1"),
        ({"codes": 0}, "parts, codes and iterations >= 1"),
        ({"iterations": 0}, "parts, codes and iterations >= 1"),
        ({"alternations": -1}, "alternations >= 0"),
        ({"rotation": "random"}, r"(?s)rotation.*'random'.*none.*learnt"),
        ({"rotation": "learnt", "start": "ica"}, r"(?s)start.*'ica'.*identity.*pca"),
        ({"start": "pca"}, "start 'pca' turns the vectors, but rotation is 'none'"),
        ({"tolerance": 1.0}, "tolerance < 1"),
    ],
)
def test_bad_hyper_parameters(fields, message):
    # The type checker of the tests may come first where the field is a Literal.
    with pytest.raises((ValueError, TypeError), match=message):
        ProductKMeans(**fields)


def test_bad_input():
    with pytest.raises(ValueError, match=r"width 10 cannot be cut into 4.*width 8 or 12"):
        PLAIN.fit(KEY, np.ones((5, 10), np.float32))
    with pytest.raises(ValueError, match=r"width 3 cannot be cut into 4.*to width 4\."):
        PLAIN.fit(KEY, np.ones((5, 3), np.float32))
    with pytest.raises(ValueError, match="non-empty matrix"):
        PLAIN.fit(KEY, np.zeros((0, 4), np.float32))
    with pytest.raises(ValueError, match="width 8 do not fit a quantizer of width 12"):
        PLAIN.encode(fitted(PLAIN), np.zeros((2, 8), np.float32))
    with pytest.raises(ValueError, match=r"level 1 has codes 16..16, outside 0..15"):
        PLAIN.decode(fitted(PLAIN), np.array([[0, 16, 0, 0]]))
    with pytest.raises(ValueError, match="got pairs"):
        PLAIN.fit(KEY, VECTORS, {"pairs": 1})
