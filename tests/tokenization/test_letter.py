"""LETTER's losses: closed forms, slow references, and what their gradients pull together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.tokenization import RqVae
from jaxrec.tokenization.letter import (
    LetterCollaborative,
    LetterDiversity,
    cluster_codewords,
    collaborative_loss,
    diversity_loss,
    draw_positives,
)
from jaxrec.tokenization.regularizers import Regularizer, Seen
from jaxrec.tokenization.vector_quantization import quantize_residuals

KEY = jax.random.key(0)
GENERATOR = np.random.default_rng(0)
SUMMED = GENERATOR.normal(size=(7, 4)).astype(np.float32)
BEHAVIOUR = GENERATOR.normal(size=(7, 4)).astype(np.float32)
KNOWN = np.array([True, True, False, True, True, False, True])
ROWS = np.array([3, 9, 1, 4, 9, 2, 8])
BOOK = GENERATOR.normal(size=(12, 4)).astype(np.float32)


def slow_collaborative(summed, behaviour, known, rows):
    """Row by row, over the columns that are there."""
    total = 0.0
    for i in np.flatnonzero(known):
        columns = [j for j in np.flatnonzero(known) if j == i or rows[j] != rows[i]]
        logits = {j: float(summed[i] @ behaviour[j]) for j in columns}
        total += np.log(sum(np.exp(each) for each in logits.values())) - logits[i]
    return total


def slow_diversity(book, codes, positives):
    total = 0.0
    for code, positive in zip(codes, positives):
        logits = {j: float(book[code] @ book[j]) for j in range(len(book)) if j != code}
        total += np.log(sum(np.exp(each) for each in logits.values())) - logits[positive]
    return total


def slope(function, at, index):
    step = np.zeros_like(at)
    step[index] = 1e-5
    return (function(at + step) - function(at - step)) / 2e-5


def test_the_collaborative_loss_equals_the_slow_reference_and_its_slope():
    known, rows = jnp.asarray(KNOWN), jnp.asarray(ROWS)
    total, count = collaborative_loss(jnp.asarray(SUMMED), jnp.asarray(BEHAVIOUR), known, rows)
    doubles = SUMMED.astype(np.float64), BEHAVIOUR.astype(np.float64)
    np.testing.assert_allclose(total, slow_collaborative(*doubles, KNOWN, ROWS), rtol=1e-5)
    assert float(count) == 5
    slopes = jax.grad(lambda z, h: collaborative_loss(z, h, known, rows)[0], argnums=(0, 1))(
        jnp.asarray(SUMMED), jnp.asarray(BEHAVIOUR)
    )
    to_z = slope(lambda z: slow_collaborative(z, doubles[1], KNOWN, ROWS), doubles[0], (1, 2))
    to_h = slope(lambda h: slow_collaborative(doubles[0], h, KNOWN, ROWS), doubles[1], (3, 0))
    np.testing.assert_allclose([slopes[0][1, 2], slopes[1][3, 0]], [to_z, to_h], rtol=1e-3)
    # Rows without behaviour move nothing and are moved by nothing.
    for each in slopes:
        np.testing.assert_array_equal(np.asarray(each)[~KNOWN], 0)


def test_identical_rows_cost_the_logarithm_of_their_number():
    same = jnp.ones((8, 4))
    total, count = collaborative_loss(same, same, jnp.ones(8, bool), jnp.arange(8))
    np.testing.assert_allclose(total / count, np.log(8), rtol=1e-6)
    none, nobody = collaborative_loss(same, same, jnp.zeros(8, bool), jnp.arange(8))
    assert (float(none), float(nobody)) == (0, 0)


def seen(books, latents, rows):
    quantized = quantize_residuals(latents, books)
    return Seen(rows, latents, latents, quantized, latents, books, lambda others: latents[others])


def test_behaviour_of_another_width_goes_through_a_trained_map():
    wide = GENERATOR.normal(size=(7, 9)).astype(np.float32)
    wide[~KNOWN] = np.nan
    aux = {"collaborative": wide, "has_behaviour": KNOWN}
    books, weights = (jnp.asarray(BOOK),), jnp.ones(7)
    part = LetterCollaborative()
    head, memory = part.start(KEY, aux, weights, books)
    assert head.shape == (9, 4)
    given = seen(books, jnp.asarray(SUMMED), jnp.arange(7))
    mapped = np.where(KNOWN[:, None], np.nan_to_num(wide) @ np.asarray(head), 0)
    expected = slow_collaborative(SUMMED, mapped, KNOWN, np.arange(7)) / 5
    np.testing.assert_allclose(part.loss(head, memory, given, KEY), expected, rtol=1e-4)
    assert np.abs(jax.grad(part.loss)(head, memory, given, KEY)).max() > 1e-3
    same = {"collaborative": BEHAVIOUR, "has_behaviour": KNOWN}
    assert part.start(KEY, same, weights, books)[0] == ()


def test_the_diversity_loss_equals_the_slow_reference_and_its_slope():
    codes, positives = np.array([0, 3, 3, 11, 5]), np.array([4, 1, 2, 0, 5])
    has = np.array([True, True, True, True, False])

    def loss(book):
        return diversity_loss(
            book, jnp.asarray(codes, jnp.int32), jnp.asarray(positives, jnp.int32), jnp.asarray(has)
        )

    total, count = loss(jnp.asarray(BOOK))
    book = BOOK.astype(np.float64)
    np.testing.assert_allclose(total, slow_diversity(book, codes[has], positives[has]), rtol=1e-5)
    assert float(count) == 4
    got = jax.grad(lambda each: loss(each)[0])(jnp.asarray(BOOK))
    for index in ((3, 1), (4, 0), (7, 2)):
        expected = slope(lambda e: slow_diversity(e, codes[has], positives[has]), book, index)
        np.testing.assert_allclose(got[index], expected, rtol=1e-3, atol=1e-5)


def test_diversity_pulls_groups_together_and_pushes_others_away():
    """Two groups of two: against the gradient, inner products rise inside and fall across."""
    book = jnp.array([[1.0, 0.2], [1.0, -0.2], [-1.0, 0.2], [-1.0, -0.2]])
    codes, positives = jnp.arange(4, dtype=jnp.int32), jnp.array([1, 0, 3, 2], jnp.int32)
    down = -jax.grad(lambda e: diversity_loss(e, codes, positives, jnp.ones(4, bool))[0])(book)
    change = np.asarray(book @ down.T + down @ book.T)
    inside = np.array([change[0, 1], change[2, 3]])
    across = np.array([change[0, 2], change[0, 3], change[1, 2], change[1, 3]])
    assert (inside > 0.1).all()
    assert (across < -0.1).all()


def test_clusters_are_near_codewords_in_groups_of_even_size():
    middles = 10 * GENERATOR.normal(size=(4, 6))
    book = middles[np.arange(32) % 4] + 0.1 * GENERATOR.normal(size=(32, 6))
    groups = np.asarray(cluster_codewords(KEY, jnp.asarray(book, jnp.float32), 4))
    for each in range(4):
        assert len(set(groups[each::4])) == 1
    np.testing.assert_array_equal(np.bincount(groups), [8] * 4)
    # One heap of points and a few others: the heap is shared out all the same.
    skewed = GENERATOR.normal(size=(40, 6)) * np.where(np.arange(40) < 34, 0.1, 5.0)[:, None]
    sizes = np.bincount(cluster_codewords(KEY, jnp.asarray(skewed, jnp.float32), 4), minlength=4)
    np.testing.assert_array_equal(sizes, [10] * 4)
    few = np.bincount(cluster_codewords(KEY, jnp.asarray(book[:5], jnp.float32), 10))
    assert sorted(few) == [2, 3]


def test_positives_are_all_others_of_the_group_equally_often():
    groups = jnp.array([1, 0, 1, 1, 2, 0], jnp.int32)
    codes = jnp.asarray(np.repeat(np.arange(6), 600), jnp.int32)
    drawn, has = map(np.asarray, draw_positives(KEY, groups, codes))
    drawn, has = drawn.reshape(6, 600), has.reshape(6, 600)
    np.testing.assert_array_equal(has.all(1), [True, True, True, True, False, True])
    others = {0: [2, 3], 1: [5], 2: [0, 3], 3: [0, 2], 4: [4], 5: [1]}
    for code, expected in others.items():
        assert sorted(set(drawn[code])) == expected
        counts = np.bincount(drawn[code], minlength=6)[expected]
        np.testing.assert_allclose(counts / 600, 1 / len(expected), atol=0.08)


def test_the_groups_are_renewed_every_so_many_updates():
    part = LetterDiversity(clusters=3, every=10)
    books = (jnp.asarray(BOOK), jnp.asarray(BOOK[:5]))
    _, memory = part.start(KEY, {}, jnp.ones(7), books)
    fresh = part.renew(memory, jnp.asarray(20), KEY, books)
    assert [len(np.unique(each)) for each in fresh] == [3, 2]
    kept = part.renew(memory, jnp.asarray(21), KEY, books)
    for one, other in zip(kept, memory):
        np.testing.assert_array_equal(one, other)
    given = seen(books, jnp.asarray(SUMMED), jnp.arange(7))
    expected = []
    for level, (book, groups) in enumerate(zip(books, fresh)):
        codes = given.quantized.codes[:, level]
        positives, has = draw_positives(jax.random.fold_in(KEY, level), groups, codes)
        pairs = np.asarray(codes)[np.asarray(has)], np.asarray(positives)[np.asarray(has)]
        expected.append(slow_diversity(np.asarray(book, np.float64), *pairs) / len(pairs[0]))
    np.testing.assert_allclose(part.loss((), fresh, given, KEY), np.mean(expected), rtol=1e-5)


@pytest.mark.parametrize("part", [LetterCollaborative(), LetterDiversity()])
def test_both_are_regularizers(part):
    assert isinstance(part, Regularizer)
    assert RqVae(regularizers=(part,)).reads == part.reads


def test_bad_input():
    part, books, weights = LetterCollaborative(), (jnp.asarray(BOOK),), jnp.ones(7)

    def start(vectors, known):
        part.start(KEY, {"collaborative": vectors, "has_behaviour": known}, weights, books)

    with pytest.raises(
        ValueError, match=r"collaborative must be a matrix \[7, width\], got \(3, 4"
    ):
        start(BEHAVIOUR[:3], KNOWN)
    with pytest.raises(ValueError, match=r"has_behaviour must be bool.*got int32 \(7,\)"):
        start(BEHAVIOUR, KNOWN.astype(np.int32))
    with pytest.raises(ValueError, match="0 rows that count have behaviour"):
        start(BEHAVIOUR, np.zeros(7, bool))
    with pytest.raises(ValueError, match="5 rows that count have behaviour, 1 of them"):
        start(np.where(np.arange(7)[:, None] == 4, np.inf, BEHAVIOUR), KNOWN)
    with pytest.raises(ValueError, match="clusters >= 2 and every >= 1, got 1 and 50"):
        LetterDiversity(clusters=1)
    with pytest.raises(ValueError, match="got 10 and 0"):
        LetterDiversity(every=0)
