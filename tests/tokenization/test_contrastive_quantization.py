"""Contrasts of quantized vectors: closed forms, and pairs that training brings together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.tokenization import RqVae
from jaxrec.tokenization.contrastive_quantization import (
    QuantizedPairs,
    ReconstructionContrast,
    reconstruction_contrast,
)
from jaxrec.tokenization.regularizers import Regularizer, Seen, pairs_of
from jaxrec.tokenization.vector_quantization import quantize_residuals
from jaxrec.training import AdamW

KEY = jax.random.key(0)
GENERATOR = np.random.default_rng(0)
VECTORS = GENERATOR.normal(size=(12, 4)).astype(np.float32)
BOOKS = (jnp.asarray(GENERATOR.normal(size=(5, 4)), jnp.float32),)


def seen(rows, decoded=VECTORS):
    points = jnp.asarray(VECTORS)
    quantized = quantize_residuals(points[rows], BOOKS)
    return Seen(
        jnp.asarray(rows),
        points[rows],
        jnp.asarray(decoded)[rows],
        quantized,
        quantized.total,
        BOOKS,
        lambda others: quantize_residuals(points[others], BOOKS).total,
    )


def cosines(left, right):
    left = left / np.linalg.norm(left, axis=1, keepdims=True)
    return left @ (right / np.linalg.norm(right, axis=1, keepdims=True)).T


def test_orthogonal_vectors_that_come_back_have_the_closed_form():
    for batch, temperature in ((3, 1.0), (8, 0.1), (8, 1e6)):
        eye = jnp.eye(8)[:batch]
        total, count = reconstruction_contrast(eye, 3 * eye, jnp.arange(batch), temperature)
        expected = np.log(1 + (batch - 1) * np.exp(-1 / temperature))
        np.testing.assert_allclose(total / count, expected, rtol=1e-5, atol=1e-6)


def test_the_reconstruction_contrast_compares_the_batch_with_what_came_of_it():
    decoded = GENERATOR.normal(size=(12, 4)).astype(np.float32)
    rows = np.array([0, 3, 5, 3])
    logits = cosines(VECTORS[rows], decoded[rows]) / 0.3
    losses = []
    for i in range(4):
        columns = [j for j in range(4) if j == i or rows[j] != rows[i]]
        losses.append(np.log(np.exp(logits[i, columns]).sum()) - logits[i, i])
    got = ReconstructionContrast(temperature=0.3).loss((), (), seen(rows, decoded), KEY)
    np.testing.assert_allclose(got, np.mean(losses), rtol=1e-5)


def test_pairs_are_contrasted_by_their_sums_of_codewords():
    part = QuantizedPairs(temperature=0.5, batch=6)
    # No item in two pairs: a row of the batch is either the same pair again or a negative.
    pairs = np.arange(12, dtype=np.int32).reshape(6, 2)
    head, memory = part.start(KEY, {"pairs": pairs}, jnp.ones(12), BOOKS)
    given = seen(np.arange(4))
    got = float(part.loss(head, memory, given, KEY))
    drawn = pairs[np.asarray(jax.random.randint(KEY, (6,), 0, 6))]
    sums = np.asarray(given.sums_of(jnp.arange(12)), np.float64)
    logits = cosines(sums[drawn[:, 0]], sums[drawn[:, 1]]) / 0.5
    losses = []
    for i in range(6):
        columns = [j for j in range(6) if j == i or drawn[j, 0] != drawn[i, 0]]
        losses.append(np.log(np.exp(logits[i, columns]).sum()) - logits[i, i])
    np.testing.assert_allclose(got, np.mean(losses), rtol=1e-4)
    assert got != float(part.loss(head, memory, given, jax.random.key(1)))


def test_pairs_with_rows_that_do_not_count_are_left_out():
    pairs = np.array([[0, 1], [1, 2], [3, 4], [5, 0]])
    weights = jnp.asarray([1.0, 1, 0, 1, 1, 0])
    np.testing.assert_array_equal(pairs_of({"pairs": pairs}, weights), [[0, 1], [3, 4]])


def test_training_brings_the_codes_of_pairs_together():
    """Pairs of vectors that have nothing in common end up under the same first code more often."""
    generator = np.random.default_rng(1)
    vectors = generator.normal(size=(200, 12)).astype(np.float32)
    pairs = np.arange(200, dtype=np.int32).reshape(100, 2)
    quantizer = RqVae(
        levels=1,
        codes=8,
        hidden=(64,),
        latent=6,
        steps=150,
        batch=200,
        optimizer=AdamW(learning_rate=1e-2, warmup_steps=5),
        regularizers=(QuantizedPairs(weight=1.0, temperature=0.3, batch=64),),
    )
    state = quantizer.fit(KEY, vectors, {"pairs": pairs})
    codes = np.asarray(quantizer.encode(state, vectors))[:, 0]
    by_chance = ((np.bincount(codes) / 200) ** 2).sum()
    assert (codes[pairs[:, 0]] == codes[pairs[:, 1]]).mean() > by_chance + 0.15
    assert by_chance < 0.25


@pytest.mark.parametrize("part", [ReconstructionContrast(), QuantizedPairs()])
def test_both_are_regularizers(part):
    assert isinstance(part, Regularizer)
    assert RqVae(regularizers=(part,)).reads == part.reads


def test_bad_input():
    with pytest.raises(ValueError, match=r"pairs must be integers \[m, 2\], got float64 \(3, 2\)"):
        pairs_of({"pairs": np.zeros((3, 2))}, jnp.ones(4))
    with pytest.raises(ValueError, match=r"pairs name rows 0..4, outside 0..3"):
        pairs_of({"pairs": np.array([[0, 4], [1, 2]])}, jnp.ones(4))
    with pytest.raises(ValueError, match="1 pairs join rows that count"):
        pairs_of({"pairs": np.array([[0, 3], [1, 2]])}, jnp.array([0.0, 1, 1, 1]))
    with pytest.raises(ValueError, match=r"ReconstructionContrast.temperature is 0.0"):
        ReconstructionContrast(temperature=0.0)
    with pytest.raises(ValueError, match=r"QuantizedPairs.temperature is -1.0"):
        QuantizedPairs(temperature=-1.0)
    with pytest.raises(ValueError, match="needs two pairs"):
        QuantizedPairs(batch=1)
