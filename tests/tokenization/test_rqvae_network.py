"""The network of an RQ-VAE: a plain VQ-VAE in numpy, and residual k-means as its special case."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rqvae_world import KEY, SMALL, VECTORS, assert_equal_states, fitted

from jaxrec.tokenization import ResidualKMeans, RqVae, rqvae, rqvae_training
from jaxrec.tokenization.gradient_modes import rotate, straight_through
from jaxrec.tokenization.mlp import Layer, init_mlp
from jaxrec.tokenization.rqvae import RqVaeState
from jaxrec.tokenization.rqvae_network import RqVaeParams, quantize_rows, rqvae_loss
from jaxrec.tokenization.vector_quantization import nearest_by, pick_softly

MODES = ("paper", "per_level_ste", "detach", "ema_cumsum")


def vq_vae(params, rows, beta, reduction):
    """Loss and gradients of a VQ-VAE with one hidden layer, by hand in float64."""
    to_numpy = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    ((w1, b1), (w2, b2)), ((v1, c1), (v2, c2)), (book,) = to_numpy
    rows = rows.astype(np.float64)
    hidden = np.maximum(rows @ w1 + b1, 0)
    latents = hidden @ w2 + b2
    codes = ((latents[:, None] - book) ** 2).sum(-1).argmin(1)
    quantized = book[codes]
    inner = np.maximum(quantized @ v1 + c1, 0)
    decoded = inner @ v2 + c2
    a = 1 / len(rows) / (rows.shape[1] if reduction == "mean" else 1)
    b = 1 / len(rows) / (book.shape[1] if reduction == "mean" else 1)
    gap = latents - quantized
    loss = a * ((rows - decoded) ** 2).sum() + (1 + beta) * b * (gap**2).sum()

    d_decoded = 2 * a * (decoded - rows)
    d_inner = d_decoded @ v2.T * (inner > 0)
    # Straight through: what reaches the codeword goes on to the latent vector.
    d_latents = d_inner @ v1.T + 2 * beta * b * gap
    d_hidden = d_latents @ w2.T * (hidden > 0)
    d_book = np.zeros_like(book)
    np.add.at(d_book, codes, -2 * b * gap)
    gradients = RqVaeParams(
        encoder=(
            Layer(rows.T @ d_hidden, d_hidden.sum(0)),
            Layer(hidden.T @ d_latents, d_latents.sum(0)),
        ),
        decoder=(
            Layer(quantized.T @ d_inner, d_inner.sum(0)),
            Layer(inner.T @ d_decoded, d_decoded.sum(0)),
        ),
        codebooks=(d_book,),
    )
    return loss, gradients


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("mode", MODES)
def test_one_level_is_a_plain_vq_vae(mode, reduction):
    generator = np.random.default_rng(3)
    params = RqVaeParams(
        encoder=init_mlp(jax.random.key(1), (12, 9, 5)),
        decoder=init_mlp(jax.random.key(2), (5, 9, 12)),
        codebooks=(jnp.asarray(generator.normal(size=(8, 5)), jnp.float32),),
    )
    rows = VECTORS[:50]
    loss, expected = vq_vae(params, rows, 0.3, reduction)
    (value, parts), gradients = jax.value_and_grad(rqvae_loss, has_aux=True)(
        params, jnp.asarray(rows), residual_mode=mode, reduction=reduction, beta=0.3
    )
    if mode == "ema_cumsum":  # the codebook follows means and has neither loss nor gradient
        np.testing.assert_allclose(
            parts.quantization * 1.3 / 0.3, loss - parts.reconstruction, rtol=1e-4
        )
        expected = expected._replace(codebooks=(np.zeros((8, 5)),))
    else:
        np.testing.assert_allclose(value, loss, rtol=1e-5)
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())


def test_identity_networks_with_the_codebooks_of_k_means_are_residual_k_means():
    means = ResidualKMeans(levels=3, codes=16)
    fitted = means.fit(KEY, VECTORS)
    identity = (Layer(jnp.eye(12), jnp.zeros(12)),)
    quantizer = RqVae(levels=3, codes=16, hidden=(), latent=12)
    state = RqVaeState(
        mean=fitted.offset,
        scale=jnp.ones(12),
        params=RqVaeParams(identity, identity, fitted.codebooks),
    )
    codes = means.encode(fitted, VECTORS)
    np.testing.assert_array_equal(quantizer.encode(state, VECTORS), codes)
    for levels in (1, 2, 3):
        decoded = means.decode(fitted, codes[:, :levels])
        np.testing.assert_allclose(quantizer.decode(state, codes[:, :levels]), decoded, atol=1e-5)


@pytest.mark.parametrize(
    ("gradient", "through"), [("straight_through", straight_through), ("rotation", rotate)]
)
def test_the_reconstruction_reaches_the_encoder_from_the_sum_of_all_levels(gradient, through):
    identity = (Layer(jnp.eye(6), jnp.zeros(6)),)
    params = RqVaeParams(identity, identity, fitted(SMALL).params.codebooks)
    latents = jnp.asarray(VECTORS[:30, :6])
    total = quantize_rows(params, latents)[0].total
    upstream = jnp.asarray(np.random.default_rng(4).normal(size=(30, 6)), jnp.float32)
    for mode in MODES:

        def summed(z, mode=mode):
            return quantize_rows(params, z, residual_mode=mode, gradient=gradient)[1]

        value, pull = jax.vjp(summed, latents)
        np.testing.assert_array_equal(value, total)
        expected = jax.vjp(lambda z: through(z, total), latents)[1](upstream)[0]
        np.testing.assert_allclose(pull(upstream)[0], expected, rtol=1e-5)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_training_descends_the_loss_of_its_settings(reduction):
    weights = {"beta": 0.4, "reconstruction_weight": 2.0, "quantization_weight": 0.3}
    points, rows = jnp.asarray(VECTORS), jnp.arange(3, 60)
    found = []
    for mode in MODES:
        quantizer = dataclasses.replace(SMALL, residual_mode=mode, reduction=reduction, **weights)
        trained = rqvae_training.start_training(quantizer, fitted(SMALL).params, 57).trained
        loss = partial(rqvae_training._loss, quantizer, (), points, rows, KEY, jnp.int32(0))
        gradients, _ = jax.grad(loss, has_aux=True)(trained)
        expected, _ = jax.grad(rqvae_loss, has_aux=True)(
            trained.networks, points[rows], residual_mode=mode, reduction=reduction, **weights
        )
        assert_equal_states(gradients.networks, expected)
        found.append(np.concatenate([np.ravel(each) for each in jax.tree.leaves(gradients)]))
    for one, other in itertools.combinations(found, 2):
        assert np.abs(one - other).max() > 1e-4


def test_moving_mean_codebooks_equal_numpy_after_a_step():
    quantizer = dataclasses.replace(SMALL, residual_mode="ema_cumsum", steps=1, decay=0.9)
    params = RqVaeParams(
        encoder=init_mlp(jax.random.key(1), (12, 24, 6)),
        decoder=init_mlp(jax.random.key(2), (6, 24, 12)),
        codebooks=(jax.random.normal(KEY, (16, 6)),),
    )
    quantizer = dataclasses.replace(quantizer, levels=1, dead_below=0.0)
    book = np.asarray(params.codebooks[0], np.float64)
    (w1, b1), (w2, b2) = jax.tree.map(np.asarray, params.encoder)
    latents = np.maximum(VECTORS @ w1 + b1, 0) @ w2 + b2
    codes = ((latents[:, None] - book) ** 2).sum(-1).argmin(1)
    counts = 0.9 * 400 / 16 + 0.1 * np.bincount(codes, minlength=16)
    sums = 0.9 * 400 / 16 * book
    np.add.at(sums, codes, 0.1 * latents)
    ends = rqvae.weight_ends(np.ones(400))
    trained, _, _ = rqvae_training.train(quantizer, KEY, params, jnp.asarray(VECTORS), ends, 400)
    np.testing.assert_allclose(trained.codebooks[0], sums / counts[:, None], rtol=1e-3, atol=1e-4)


def test_gumbel_moves_codebooks_by_the_reconstruction_and_cools_down():
    quantizer = dataclasses.replace(SMALL, gradient="gumbel", temperature=(2.0, 0.1))
    picks = [rqvae_training.training_pick(quantizer, KEY, jnp.asarray(step)) for step in (0, 99)]
    for pick, temperature in zip(picks, (2.0, 0.1)):
        residuals, book = jnp.asarray(VECTORS[:20, :6]), fitted(SMALL).params.codebooks[0]
        expected = pick_softly(residuals, book, 1, key=KEY, temperature=temperature)
        np.testing.assert_allclose(pick(residuals, book, 1)[1], expected[1], rtol=1e-4, atol=1e-5)

    def reconstruction(books, pick, gradient):
        params = fitted(SMALL).params._replace(codebooks=books)
        rows = jnp.asarray(VECTORS[:20])
        return rqvae_loss(params, rows, pick=pick, gradient=gradient)[1].reconstruction

    def slope_of(gradient):
        loss = partial(reconstruction, pick=picks[0], gradient=gradient)
        return jax.jit(jax.grad(loss))(fitted(SMALL).params.codebooks)

    slope = slope_of("gumbel")
    assert min(np.abs(each).max() for each in slope) > 1e-3
    # Straight through there is none, whatever the codewords are.
    slope = slope_of("straight_through")
    assert max(np.abs(each).max() for each in slope) == 0


def test_the_even_assignment_is_that_of_the_levels_that_ask_for_it():
    quantizer = dataclasses.replace(SMALL, sinkhorn=(0.0, 0.003))
    pick = rqvae_training.training_pick(quantizer, KEY, jnp.asarray(0))
    residuals, book = jnp.asarray(VECTORS[:128, :6]), fitted(SMALL).params.codebooks[0]
    nearest = nearest_by(residuals, book)
    np.testing.assert_array_equal(pick(residuals, book, 0)[0], nearest)
    counts, uneven = (
        np.bincount(each, minlength=16) for each in (pick(residuals, book, 1)[0], nearest)
    )
    assert counts.std() < 0.5 * uneven.std()
