"""Vector quantization's parts against numpy, and the gradients that tell residual modes apart."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.tokenization.mlp import apply_mlp, init_mlp
from jaxrec.tokenization.rows import draw_rows, weight_ends, weighted_moments
from jaxrec.tokenization.sinkhorn import sinkhorn_codes
from jaxrec.tokenization.vector_quantization import (
    CodeStatistics,
    ema_codebook,
    first_statistics,
    look_up,
    mapped_codebook,
    nearest_by,
    pick_evenly,
    pick_nearest,
    pick_softly,
    quantize_residuals,
    reset_dead_codes,
    squared_distances,
    update_statistics,
)

KEY = jax.random.key(0)
MODES = ("paper", "per_level_ste", "detach", "ema_cumsum")
GENERATOR = np.random.default_rng(0)
LATENTS = GENERATOR.normal(size=(40, 5)).astype(np.float32)
BOOKS = tuple(
    GENERATOR.normal(size=(k, 5)).astype(np.float32) / (l + 1) for l, k in enumerate((7, 6, 4))
)


def slow_quantize(latents, books):
    """Codes [b, l] and residuals [l + 1, b, d], by the definition in float64."""
    residuals, codes = [np.asarray(latents, np.float64)], []
    for book in books:
        distances = ((residuals[-1][:, None] - np.asarray(book, np.float64)) ** 2).sum(-1)
        codes.append(distances.argmin(1))
        residuals.append(residuals[-1] - book[codes[-1]])
    return np.stack(codes, 1), np.stack(residuals)


@pytest.mark.parametrize("mode", MODES)
def test_codes_residuals_and_losses_equal_the_slow_reference(mode):
    codes, residuals = slow_quantize(LATENTS, BOOKS)
    got = quantize_residuals(jnp.asarray(LATENTS), tuple(map(jnp.asarray, BOOKS)), mode)
    np.testing.assert_array_equal(got.codes, codes)
    np.testing.assert_allclose(np.stack(got.residuals), residuals[:-1], atol=1e-5)
    np.testing.assert_allclose(got.total, LATENTS - residuals[-1], atol=1e-5)
    errors = (residuals[1:] ** 2).sum(-1).T
    np.testing.assert_allclose(got.commitment, errors, rtol=1e-4)
    np.testing.assert_allclose(
        got.codebook, 0 * errors if mode == "ema_cumsum" else errors, rtol=1e-4
    )
    # Lee et al. compare z with cumulative sums; it is the same number.
    sums = np.cumsum([book[codes[:, level]] for level, book in enumerate(BOOKS)], 0)
    np.testing.assert_allclose(got.commitment, ((LATENTS - sums) ** 2).sum(-1).T, rtol=1e-4)


def test_ties_go_to_the_lowest_code():
    books = (jnp.array([[1.0], [-1.0], [1.0]]), jnp.array([[0.0], [0.0]]))
    got = quantize_residuals(jnp.array([[0.0], [2.0], [-2.0]]), books)
    np.testing.assert_array_equal(got.codes, [[0, 0], [0, 0], [1, 0]])


@pytest.mark.parametrize("mode", MODES)
def test_gradients_tell_the_residual_modes_apart(mode):
    """METHODS T3: what the commitment of level 2 moves. r_3 is what level 2 leaves over."""
    codes, residuals = slow_quantize(LATENTS, BOOKS)
    latents, books = jnp.asarray(LATENTS), tuple(map(jnp.asarray, BOOKS))

    def second(part):
        return lambda z, e: jnp.sum(getattr(quantize_residuals(z, e, mode), part)[:, 1])

    to_latents, to_books = jax.grad(second("commitment"), argnums=(0, 1))(latents, books)
    moves_encoder, moves_books = mode != "per_level_ste", mode == "paper"
    np.testing.assert_allclose(to_latents, 2 * residuals[2] * moves_encoder, atol=1e-5)
    expected = np.zeros_like(BOOKS[0])
    np.add.at(expected, codes[:, 0], -2 * residuals[2] * moves_books)
    np.testing.assert_allclose(to_books[0], expected, atol=1e-4)
    np.testing.assert_array_equal(to_books[1], 0)
    # The codebook loss moves its own level alone, and there is none with moving averages.
    to_latents, to_books = jax.grad(second("codebook"), argnums=(0, 1))(latents, books)
    np.testing.assert_array_equal(to_latents, 0)
    np.testing.assert_array_equal(to_books[0], 0)
    expected = np.zeros_like(BOOKS[1])
    np.add.at(expected, codes[:, 1], -2 * residuals[2] * (mode != "ema_cumsum"))
    np.testing.assert_allclose(to_books[1], expected, atol=1e-4)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_distances_and_the_nearest_equal_the_slow_reference(distance):
    vectors, book = LATENTS.astype(np.float64), BOOKS[0].astype(np.float64)
    if distance == "cosine":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        book /= np.linalg.norm(book, axis=1, keepdims=True)
    expected = ((vectors[:, None] - book) ** 2).sum(-1)
    given = jnp.asarray(LATENTS), jnp.asarray(BOOKS[0])
    np.testing.assert_allclose(squared_distances(*given, distance), expected, atol=1e-5)
    np.testing.assert_array_equal(nearest_by(*given, distance), expected.argmin(1))


def test_the_cosine_looks_at_directions_and_ties_go_to_the_lowest_code():
    book = jnp.array([[1.0, 1.0], [0.0, 3.0], [0.0, 0.5]])
    vectors = jnp.array([[0.0, 0.1], [0.0, 40.0], [0.0, 0.0], [2.0, 2.1]])
    np.testing.assert_array_equal(nearest_by(vectors, book, "cosine"), [1, 1, 0, 0])
    np.testing.assert_array_equal(nearest_by(vectors, book), [2, 1, 2, 0])
    slope = jax.grad(lambda x: jnp.sum(squared_distances(x, book, "cosine")))(vectors)
    assert np.isfinite(slope).all()


def test_a_pick_decides_codes_and_codewords_of_every_level():
    got = quantize_residuals(
        jnp.asarray(LATENTS),
        tuple(map(jnp.asarray, BOOKS)),
        pick=partial(pick_nearest, distance="cosine"),
    )
    residual = LATENTS.astype(np.float64)
    for level, book in enumerate(BOOKS):
        unit = book / np.linalg.norm(book, axis=1, keepdims=True)
        codes = (residual @ unit.T).argmax(1)
        np.testing.assert_array_equal(got.codes[:, level], codes)
        residual = residual - book[codes]
        np.testing.assert_allclose(got.commitment[:, level], (residual**2).sum(1), rtol=1e-4)


def test_an_even_pick_shares_the_batch_out_and_a_level_of_zero_takes_the_nearest():
    residuals, book = jnp.asarray(LATENTS), jnp.asarray(BOOKS[2])
    pick = partial(pick_evenly, epsilons=(0.0, 0.003), iterations=100)
    codes, codewords = pick(residuals, book, 1)
    plan = sinkhorn_codes(squared_distances(residuals, book), epsilon=0.003, iterations=100)
    np.testing.assert_array_equal(codes, plan)
    np.testing.assert_allclose(np.bincount(codes, minlength=4), 10, atol=2)
    np.testing.assert_array_equal(codewords, book[codes])
    np.testing.assert_array_equal(pick(residuals, book, 0)[0], nearest_by(residuals, book))
    assert np.bincount(nearest_by(residuals, book), minlength=4).max() > 12
    # The plan of the cosine is another one, and looks at directions only.
    by_angle = partial(pick, level=1, distance="cosine")
    np.testing.assert_array_equal(by_angle(residuals, book)[0], by_angle(2 * residuals, book)[0])
    assert (np.asarray(by_angle(residuals, book)[0]) != codes).any()


def test_a_soft_pick_mixes_codewords_and_moves_vectors_and_codebook():
    residuals, book = jnp.asarray(LATENTS[:6]), jnp.asarray(BOOKS[0])
    noise = np.asarray(jax.random.gumbel(jax.random.fold_in(KEY, 1), (6, 7)), np.float64)

    def slow(x, e):
        logits = np.exp((noise - ((x[:, None] - e) ** 2).sum(-1)) / 0.8)
        return logits / logits.sum(1, keepdims=True) @ e

    pick = partial(pick_softly, level=1, key=KEY, temperature=0.8)
    codes, codewords = pick(residuals, book)
    np.testing.assert_array_equal(codes, nearest_by(residuals, book))
    doubles = LATENTS[:6].astype(np.float64), BOOKS[0].astype(np.float64)
    np.testing.assert_allclose(codewords, slow(*doubles), rtol=1e-4, atol=1e-5)
    mix = GENERATOR.normal(size=(6, 5))
    slopes = jax.grad(lambda x, e: jnp.sum(pick(x, e)[1] * mix), argnums=(0, 1))(residuals, book)
    for number, slope in enumerate(slopes):
        step = [np.zeros_like(each) for each in doubles]
        step[number][3, 2] = 1e-6
        high, low = (
            slow(*(each + sign * move for each, move in zip(doubles, step))) for sign in (1, -1)
        )
        np.testing.assert_allclose(
            slope[3, 2], ((high - low) * mix).sum() / 2e-6, rtol=1e-3, atol=1e-4
        )


def test_a_mapped_codebook_is_moved_by_its_map_alone():
    book, linear = jnp.asarray(BOOKS[0]), jnp.asarray(GENERATOR.normal(size=(5, 5)), jnp.float32)
    np.testing.assert_allclose(
        mapped_codebook(book, linear), BOOKS[0] @ linear, rtol=1e-4, atol=1e-5
    )
    slopes = jax.grad(lambda e, w: jnp.sum(mapped_codebook(e, w)), argnums=(0, 1))(book, linear)
    np.testing.assert_array_equal(slopes[0], 0)
    expected = np.tile(BOOKS[0].sum(0)[:, None], (1, 5))
    np.testing.assert_allclose(slopes[1], expected, rtol=1e-4, atol=1e-5)


def test_looking_up_has_the_gradient_of_indexing():
    book, codes = jnp.asarray(BOOKS[0]), jnp.array([3, 3, 0, 6])
    pulled = jax.grad(lambda e: jnp.sum(look_up(e, codes) ** 3))(book)
    np.testing.assert_allclose(pulled, jax.grad(lambda e: jnp.sum(e[codes] ** 3))(book), rtol=1e-5)
    np.testing.assert_array_equal(look_up(book, codes), BOOKS[0][[3, 3, 0, 6]])


def test_moving_averages_equal_numpy():
    counts, sums = np.full(7, 40 / 7), BOOKS[0] * (40 / 7)
    statistics = first_statistics(jnp.asarray(BOOKS[0]), 40)
    for _ in range(3):
        batch, codes = GENERATOR.normal(size=(40, 5)), GENERATOR.integers(0, 7, 40)
        counts = 0.9 * counts + 0.1 * np.bincount(codes, minlength=7)
        added = np.stack([batch[codes == code].sum(0) for code in range(7)])
        sums = 0.9 * sums + 0.1 * added
        statistics = update_statistics(
            statistics, jnp.asarray(batch, jnp.float32), jnp.asarray(codes, jnp.int32), 0.9
        )
    np.testing.assert_allclose(statistics.counts, counts, rtol=1e-5)
    smoothed = (counts + 0.01) / (counts.sum() + 7 * 0.01) * counts.sum()
    book = ema_codebook(statistics, epsilon=0.01)
    np.testing.assert_allclose(book, sums / smoothed[:, None], rtol=1e-4, atol=1e-5)


def test_moving_means_approach_the_means_geometrically():
    points, codes = jnp.asarray(LATENTS), jnp.arange(40, dtype=jnp.int32) % 4
    means = np.stack([LATENTS[code::4].mean(0) for code in range(4)])
    statistics = first_statistics(jnp.zeros((4, 5)), 40)
    for step in range(1, 21):
        statistics = update_statistics(statistics, points, codes, 0.9)
        np.testing.assert_allclose(ema_codebook(statistics), means * (1 - 0.9**step), atol=1e-5)


@pytest.mark.parametrize(("share", "used"), [(0.05, 16), (0.0, 1)])
def test_dead_codes_come_to_life_on_a_planted_mixture(share, used):
    middles = 10 * GENERATOR.normal(size=(16, 6))
    points = middles[np.arange(1600) % 16] + 0.1 * GENERATOR.normal(size=(1600, 6))
    # One code among the points, fifteen out of reach.
    book = jnp.full((16, 6), 1e3).at[0].set(0.0)
    statistics = first_statistics(book, 128)
    for step in range(150):
        key = jax.random.fold_in(KEY, step)
        batch = jnp.asarray(points[GENERATOR.integers(0, 1600, 128)], jnp.float32)
        codes = quantize_residuals(batch, (book,)).codes[:, 0]
        statistics = update_statistics(statistics, batch, codes, 0.9)
        book, statistics, _ = reset_dead_codes(
            key, ema_codebook(statistics), statistics, batch, share * 128 / 16
        )
    codes = quantize_residuals(jnp.asarray(points, jnp.float32), (book,)).codes
    assert len(np.unique(codes)) == used


def test_a_reset_moves_dead_codes_onto_different_vectors_and_leaves_the_others():
    batch, book = jnp.asarray(LATENTS), jnp.asarray(BOOKS[0])
    counts = jnp.array([0.1, 9, 9, 0.2, 9, 0.0, 0.3])
    before = CodeStatistics(counts, book * counts[:, None])
    after, statistics, moved = reset_dead_codes(KEY, book, before, batch, 0.3)
    dead = np.array([0, 3, 5])
    alive = np.array([1, 2, 4, 6])
    assert int(moved) == 3
    np.testing.assert_array_equal(after[alive], book[alive])
    np.testing.assert_array_equal(statistics.sums[alive], before.sums[alive])
    distances = np.linalg.norm(np.asarray(after)[dead, None] - LATENTS, axis=-1)
    assert distances.min(1).max() < 0.1
    assert len(set(distances.argmin(1))) == 3
    np.testing.assert_allclose(statistics.counts[dead], 40 / 7, rtol=1e-6)
    np.testing.assert_allclose(statistics.sums[dead], after[dead] * 40 / 7, rtol=1e-5)


def test_a_small_batch_kills_no_code_that_has_its_share():
    book = jax.random.normal(KEY, (64, 5))
    statistics = first_statistics(book, 8)  # an eighth of a row each
    moved = reset_dead_codes(KEY, book, statistics, jnp.asarray(LATENTS[:8]), 0.1 * 8 / 64)[2]
    assert int(moved) == 0
    after, _, moved = reset_dead_codes(KEY, book, statistics, jnp.asarray(LATENTS[:8]), 1.0)
    assert int(moved) == 64  # more codes than rows: rows serve several codes, told apart by noise
    assert len(np.unique(np.asarray(after), axis=0)) == 64


def test_a_batch_takes_one_row_of_every_part():
    rows = draw_rows(KEY, weight_ends(np.ones(64)), 64)
    np.testing.assert_array_equal(rows, np.arange(64))
    weights = np.array([0.0, 1.0, 0.0, 3.0, 4.0, 0.0])
    ends = weight_ends(weights)
    drawn = [draw_rows(jax.random.key(seed), ends, 4) for seed in range(500)]
    counts = np.bincount(np.concatenate(drawn), minlength=6)
    np.testing.assert_allclose(counts / 2000, weights / 8, atol=0.03)
    assert not counts[weights == 0].any()


def test_moments_of_weighted_rows_far_from_zero():
    points = np.column_stack([LATENTS[:, 0] + 1e3, LATENTS[:, 1] * 1e-3, np.full(40, 0.3)])
    weights = np.arange(40) % 3
    mean, scale = weighted_moments(
        jnp.asarray(points, jnp.float32), jnp.asarray(weights, jnp.float32)
    )
    expected = np.average(points, axis=0, weights=weights)
    variance = np.average((points - expected) ** 2, axis=0, weights=weights)
    np.testing.assert_allclose(mean, expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(scale[:2], np.sqrt(variance[:2]), rtol=1e-4)
    assert float(scale[2]) == 1.0


def test_the_perceptron_equals_numpy_and_keeps_unit_variance():
    layers = init_mlp(KEY, (300, 400, 200))
    rows = GENERATOR.normal(size=(500, 300)).astype(np.float32)
    (first, first_bias), (second, second_bias) = jax.tree.map(np.asarray, layers)
    expected = np.maximum(rows @ first + first_bias, 0) @ second + second_bias
    np.testing.assert_allclose(apply_mlp(layers, jnp.asarray(rows)), expected, atol=1e-4)
    assert abs(expected.var() - 1) < 0.1
