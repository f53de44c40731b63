"""Balanced residual k-means: even levels that encoding reproduces, and what is left unbalanced."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.recipe import from_json, to_json
from jaxrec.tokenization.balanced_residual_kmeans import BalancedResidualKMeans, BalancedState
from jaxrec.tokenization.quantizer import Quantizer
from jaxrec.tokenization.residual_kmeans import ResidualState

KEY = jax.random.key(0)
SMALL = BalancedResidualKMeans(levels=3, codes=16, iterations=10)
LAST = BalancedResidualKMeans(levels=3, codes=16, iterations=10, balanced_levels=(2,))


def crowded(rows=650, width=12, seed=0):
    """Groups of very different sizes."""
    generator = np.random.default_rng(seed)
    middles = generator.normal(size=(30, width)) * 2
    groups = (30 * generator.random(rows) ** 3).astype(int)
    return (middles[groups] + 0.5 * generator.normal(size=(rows, width))).astype(np.float32)


VECTORS = crowded()


@functools.cache
def fitted(quantizer):
    """Its state after VECTORS, fitted when a test first asks for it."""
    return quantizer.fit(KEY, VECTORS)


@functools.cache
def coded(quantizer):
    """Its codes of VECTORS."""
    return np.asarray(quantizer.encode(fitted(quantizer), VECTORS))


def spread(codes, size=16):
    return [np.ptp(np.bincount(column, minlength=size)) for column in np.asarray(codes).T]


def slow_encode(state, vectors, normalise=False):
    """Level by level, point by point, by the definition."""
    codes = []
    for vector in np.asarray(vectors, np.float64):
        residual, row = vector - np.asarray(state.plain.offset, np.float64), []
        for codebook, prices in zip(state.plain.codebooks, state.prices):
            if normalise and np.linalg.norm(residual) > 0:
                residual = residual / np.linalg.norm(residual)
            book = np.asarray(codebook, np.float64)
            row.append(int(np.argmin(((residual - book) ** 2).sum(1) + np.asarray(prices))))
            residual = residual - book[row[-1]]
        codes.append(row)
    return np.array(codes)


def test_it_is_a_quantizer_and_survives_the_recipe_file():
    assert isinstance(SMALL, Quantizer)
    for quantizer in (SMALL, LAST, BalancedResidualKMeans(codes=(8, 4, 2), method="greedy")):
        assert from_json(json.loads(json.dumps(to_json(quantizer)))) == quantizer
        assert hash(quantizer) == hash(from_json(to_json(quantizer)))


def test_encoding_the_fitted_rows_is_even_at_every_level():
    assert spread(coded(SMALL)) == [1, 1, 1]  # 650 = 40 * 16 + 10
    unbalanced = SMALL.unbalanced
    plain = unbalanced.encode(unbalanced.fit(KEY, VECTORS), VECTORS)
    assert min(spread(plain)) > 10
    report = SMALL.report(fitted(SMALL))
    assert report["fit_rows_off_balance"] == [0, 0, 0]
    assert report["fit_fewest_rows"] == [40, 40, 40]
    assert report["fit_most_rows"] == [41, 41, 41]
    assert report["fit_unused_codes"] == [0, 0, 0]
    assert report["balanced_levels"] == [0, 1, 2]
    assert report["quantizer"] == "BalancedResidualKMeans"
    json.dumps(report)


def test_encoding_equals_the_slow_reference():
    np.testing.assert_array_equal(coded(SMALL), slow_encode(fitted(SMALL), VECTORS))
    assert coded(SMALL).dtype == np.int32
    new = crowded(rows=100, seed=7)
    np.testing.assert_array_equal(SMALL.encode(fitted(SMALL), new), slow_encode(fitted(SMALL), new))
    np.testing.assert_array_equal(SMALL.encode(fitted(SMALL), VECTORS[5:6])[0], coded(SMALL)[5])


def test_ties_go_to_the_lowest_code_at_every_level():
    grid = np.array(list(itertools.product((-2, -1, 0, 1, 2), repeat=3)), np.float32)
    books = ([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [1, 0, 0]], [[0, 0, 1], [0, 0, -1], [0, 0, 0]])
    prices = ([1, 0, 2, 1], [0, 2, 1])
    state = BalancedState(
        ResidualState(
            jnp.zeros(3), tuple(jnp.asarray(book, jnp.float32) for book in books), jnp.ones(2)
        ),
        tuple(jnp.asarray(each, jnp.float32) for each in prices),
    )
    quantizer = BalancedResidualKMeans(levels=2, codes=(4, 3))
    np.testing.assert_array_equal(quantizer.encode(state, grid), slow_encode(state, grid))


def test_equal_vectors_have_equal_codes_even_where_balance_would_part_them():
    copies = np.concatenate([VECTORS[:550], np.repeat(VECTORS[:1], 100, 0)])
    state = SMALL.fit(KEY, copies)
    codes = np.asarray(SMALL.encode(state, copies))
    assert (codes[550:] == codes[0]).all()
    # At most 41 of the 101 equal rows can be where an even assignment has them.
    assert min(SMALL.report(state)["fit_rows_off_balance"]) >= 60
    assert min(SMALL.report(state)["fit_most_rows"]) >= 101


def test_only_chosen_levels_are_balanced():
    state = LAST.fit(KEY, VECTORS)
    codes = np.asarray(LAST.encode(state, VECTORS))
    plain = LAST.unbalanced
    same = plain.fit(KEY, VECTORS)
    np.testing.assert_array_equal(codes[:, :2], np.asarray(plain.encode(same, VECTORS))[:, :2])
    for level in (0, 1):
        np.testing.assert_allclose(state.plain.codebooks[level], same.codebooks[level], atol=1e-5)
        np.testing.assert_array_equal(state.prices[level], np.zeros(16))
    assert np.ptp(state.prices[2]) > 0
    first, second, third = spread(codes)
    assert min(first, second) > 10
    assert third == 1
    assert LAST.report(state)["fit_most_rows"][2] == 41


def test_greedy_learns_other_centroids_and_codes_are_even_all_the_same():
    greedy = BalancedResidualKMeans(levels=3, codes=16, iterations=10, method="greedy")
    state = greedy.fit(KEY, VECTORS)
    assert spread(greedy.encode(state, VECTORS)) == [1, 1, 1]
    # From the same start: what differs is the way.
    assert np.abs(state.plain.codebooks[0] - fitted(SMALL).plain.codebooks[0]).max() > 0.1
    assert greedy.report(state)["method"] == "greedy"


def test_squared_error_falls_with_every_level():
    errors = [((VECTORS - VECTORS.mean(0)) ** 2).sum()]
    for levels in (1, 2, 3):
        decoded = np.asarray(SMALL.decode(fitted(SMALL), coded(SMALL)[:, :levels]))
        errors.append(((VECTORS - decoded) ** 2).sum())
    assert all(after < before for before, after in itertools.pairwise(errors))
    np.testing.assert_allclose(fitted(SMALL).plain.trace.before, errors[:-1], rtol=1e-4)
    np.testing.assert_allclose(fitted(SMALL).plain.trace.after, errors[1:], rtol=1e-4)


def test_decoding_is_the_sum_of_codewords():
    books = [np.asarray(book) for book in fitted(SMALL).plain.codebooks]
    expected = np.asarray(fitted(SMALL).plain.offset) + sum(
        book[coded(SMALL)[:, level]] for level, book in enumerate(books)
    )
    np.testing.assert_allclose(SMALL.decode(fitted(SMALL), coded(SMALL)), expected, atol=1e-6)


def test_normalised_residuals_follow_the_definition():
    quantizer = BalancedResidualKMeans(levels=3, codes=16, iterations=10, normalise_residuals=True)
    state = quantizer.fit(KEY, VECTORS)
    codes = np.asarray(quantizer.encode(state, VECTORS))
    np.testing.assert_array_equal(codes, slow_encode(state, VECTORS, normalise=True))
    assert spread(codes) == [1, 1, 1]
    residual = VECTORS - np.asarray(state.plain.offset)
    for level, book in enumerate(state.plain.codebooks):
        lengths = np.linalg.norm(residual, axis=1, keepdims=True)
        np.testing.assert_allclose(state.plain.scales[level], lengths.mean(), rtol=1e-4)
        residual = residual / lengths - np.asarray(book)[codes[:, level]]


def test_rows_without_weight_do_not_matter():
    live = np.arange(650) % 3 > 0
    weights = live.astype(np.float32)
    state = SMALL.fit(KEY, VECTORS, {"weights": weights})
    assert max(spread(np.asarray(SMALL.encode(state, VECTORS))[live])) <= 1
    report = SMALL.report(state)
    assert report["fit_fewest_rows"] == [27, 27, 27]  # of 433 = 27 * 16 + 1
    assert report["fit_rows_off_balance"] == [0, 0, 0]
    other = SMALL.fit(KEY, np.where(live[:, None], VECTORS, 1e3), {"weights": weights})
    for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(other)):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-4)


def test_equal_keys_give_equal_states():
    again = SMALL.fit(KEY, VECTORS)
    for left, right in zip(jax.tree.leaves(fitted(SMALL)), jax.tree.leaves(again)):
        np.testing.assert_array_equal(left, right)


def test_arrays_bring_the_state_back():
    arrays = SMALL.to_arrays(fitted(SMALL))
    names = [f"{name}_{level}" for name in ("codebook", "prices") for level in range(3)]
    assert sorted(arrays) == sorted(["offset", "scales", *names])
    back = SMALL.from_arrays(arrays)
    np.testing.assert_array_equal(SMALL.encode(back, VECTORS), coded(SMALL))
    np.testing.assert_array_equal(
        SMALL.decode(back, coded(SMALL)), SMALL.decode(fitted(SMALL), coded(SMALL))
    )
    assert "fit_most_rows" not in SMALL.report(back)
    for absent in ("codebook_2", "prices_1"):
        with pytest.raises(ValueError, match=f"lacks {absent}"):
            SMALL.from_arrays({name: arrays[name] for name in arrays if name != absent})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"levels": 0}, "levels >= 1"),
        ({"codes": (4, 4)}, r"levels=3, codes=\(4, 4\)"),
        ({"iterations": 0}, "iterations >= 1"),
        ({"tolerance": 1.0}, "tolerance < 1"),
        ({"balanced_levels": (3,)}, r"some of the levels 0 to 2, got \(3,\)"),
        ({"balanced_levels": ()}, "ResidualKMeans balances none"),
        ({"method": "best"}, r"(?s)method.*'best'"),
    ],
)
def test_bad_hyper_parameters(fields, message):
    with pytest.raises((ValueError, TypeError), match=message):
        BalancedResidualKMeans(**fields)


def test_bad_input():
    with pytest.raises(ValueError, match="width 5 do not fit a quantizer of width 12"):
        SMALL.encode(fitted(SMALL), np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match=r"level 1 has codes 16..16, outside 0..15"):
        SMALL.decode(fitted(SMALL), np.array([[0, 16, 0]]))
    with pytest.raises(ValueError, match="got pairs"):
        SMALL.fit(KEY, VECTORS, {"pairs": 1})
