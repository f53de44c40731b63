"""RQ-VAE: a plain VQ-VAE in numpy, residual k-means as its special case, and METHODS T3's tests."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.parallel import make_mesh, rows_sharding
from jaxrec.recipe import from_json, to_json
from jaxrec.tokenization import (
    Quantizer,
    ResidualKMeans,
    RqVae,
    SemanticIds,
    Tokenizer,
    quality_report,
    rqvae,
    rqvae_training,
)
from jaxrec.tokenization.contrastive_quantization import ReconstructionContrast
from jaxrec.tokenization.gradient_modes import rotate, straight_through
from jaxrec.tokenization.letter import LetterCollaborative, LetterDiversity
from jaxrec.tokenization.mlp import Layer, init_mlp
from jaxrec.tokenization.rqvae import RqVaeState
from jaxrec.tokenization.rqvae_network import RqVaeParams, quantize_rows, rqvae_loss
from jaxrec.tokenization.vector_quantization import nearest_by, pick_softly
from jaxrec.training import AdamW
from tests.tokenization.test_residual_kmeans import clustered

KEY = jax.random.key(0)
MODES = ("paper", "per_level_ste", "detach", "ema_cumsum")
FAST = AdamW(learning_rate=1e-2, warmup_steps=5)
SMALL = RqVae(levels=2, codes=16, hidden=(24,), latent=6, steps=100, batch=128, optimizer=FAST)
VECTORS = clustered(rows=400)
STATE = SMALL.fit(KEY, VECTORS)
CODES = np.asarray(SMALL.encode(STATE, VECTORS))


def assert_equal_states(left, right):
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(one, other)


def explained(quantizer, state, vectors, levels=None):
    codes = np.asarray(quantizer.encode(state, vectors))[:, :levels]
    errors = (vectors - np.asarray(quantizer.decode(state, codes))) ** 2
    return 1 - errors.sum() / ((vectors - vectors.mean(0)) ** 2).sum()


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


def test_it_is_a_quantizer_and_survives_the_recipe_file():
    assert isinstance(SMALL, Quantizer)
    other = RqVae(
        levels=2,
        codes=(8, 4),
        residual_mode="detach",
        optimizer=AdamW(weight_decay=0.1),
        sinkhorn=(0.0, 0.003),
        regularizers=(LetterCollaborative(0.02), LetterDiversity()),
    )
    assert from_json(json.loads(json.dumps(to_json(other)))) == other
    assert hash(SMALL) == hash(dataclasses.replace(SMALL))


def test_training_lowers_both_errors_and_decodes_better_level_by_level():
    trace = STATE.trace
    assert trace.reconstruction.shape == (100,)
    assert trace.reconstruction[-10:].mean() < 0.5 * trace.reconstruction[:10].mean()
    first, both = explained(SMALL, STATE, VECTORS, 1), explained(SMALL, STATE, VECTORS)
    assert 0.2 < first < both
    assert both > 0.5


def test_the_reported_loss_is_that_of_the_batch():
    """One step on a batch that is all rows, at rate 0: the fit's start is its end."""
    quantizer = dataclasses.replace(
        SMALL,
        steps=1,
        batch=400,
        standardise=False,
        reduction="sum",
        optimizer=AdamW(learning_rate=0.0),
    )
    state = quantizer.fit(KEY, VECTORS)
    decoded = np.asarray(quantizer.decode(state, quantizer.encode(state, VECTORS)))
    error = ((VECTORS - decoded) ** 2).sum(1).mean()
    np.testing.assert_allclose(state.trace.reconstruction[0], error, rtol=1e-4)
    np.testing.assert_array_equal(state.mean, np.zeros(12))
    np.testing.assert_array_equal(state.scale, np.ones(12))


def test_every_residual_mode_trains_to_other_codebooks():
    states = [STATE]
    for mode in MODES[1:]:
        quantizer = dataclasses.replace(SMALL, residual_mode=mode)
        states.append(quantizer.fit(KEY, VECTORS))
        assert explained(quantizer, states[-1], VECTORS) > 0.5
    for one, other in itertools.combinations(states, 2):
        assert np.abs(one.params.codebooks[0] - other.params.codebooks[0]).max() > 1e-4


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


@pytest.mark.parametrize(
    ("gradient", "through"), [("straight_through", straight_through), ("rotation", rotate)]
)
def test_the_reconstruction_reaches_the_encoder_from_the_sum_of_all_levels(gradient, through):
    identity = (Layer(jnp.eye(6), jnp.zeros(6)),)
    params = RqVaeParams(identity, identity, STATE.params.codebooks)
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


def test_gumbel_moves_codebooks_by_the_reconstruction_and_cools_down():
    quantizer = dataclasses.replace(SMALL, gradient="gumbel", temperature=(2.0, 0.1))
    picks = [rqvae_training.training_pick(quantizer, KEY, jnp.asarray(step)) for step in (0, 99)]
    for pick, temperature in zip(picks, (2.0, 0.1)):
        residuals, book = jnp.asarray(VECTORS[:20, :6]), STATE.params.codebooks[0]
        expected = pick_softly(residuals, book, 1, key=KEY, temperature=temperature)
        np.testing.assert_allclose(pick(residuals, book, 1)[1], expected[1], rtol=1e-4, atol=1e-5)

    def reconstruction(books, pick, gradient):
        params = STATE.params._replace(codebooks=books)
        rows = jnp.asarray(VECTORS[:20])
        return rqvae_loss(params, rows, pick=pick, gradient=gradient)[1].reconstruction

    slope = jax.grad(reconstruction)(STATE.params.codebooks, picks[0], "gumbel")
    assert min(np.abs(each).max() for each in slope) > 1e-3
    # Straight through there is none, whatever the codewords are.
    slope = jax.grad(reconstruction)(STATE.params.codebooks, picks[0], "straight_through")
    assert max(np.abs(each).max() for each in slope) == 0


def test_the_even_assignment_is_that_of_the_levels_that_ask_for_it():
    quantizer = dataclasses.replace(SMALL, sinkhorn=(0.0, 0.003))
    pick = rqvae_training.training_pick(quantizer, KEY, jnp.asarray(0))
    residuals, book = jnp.asarray(VECTORS[:128, :6]), STATE.params.codebooks[0]
    nearest = nearest_by(residuals, book)
    np.testing.assert_array_equal(pick(residuals, book, 0)[0], nearest)
    counts, uneven = (
        np.bincount(each, minlength=16) for each in (pick(residuals, book, 1)[0], nearest)
    )
    assert counts.std() < 0.5 * uneven.std()


@pytest.mark.parametrize(
    "fields",
    [
        {"gradient": "rotation", "distance": "cosine", "codebook": "simvq", "dead_below": 0.0},
        {"gradient": "gumbel", "annealing": "linear", "residual_mode": "detach"},
        {"sinkhorn": (0.0, 0.01), "sinkhorn_iterations": 20},
    ],
)
def test_the_options_train_and_their_states_come_back(fields):
    quantizer = dataclasses.replace(SMALL, **fields)
    state = quantizer.fit(KEY, VECTORS)
    assert explained(quantizer, state, VECTORS) > 0.4
    assert np.abs(state.params.codebooks[0] - STATE.params.codebooks[0]).max() > 1e-4
    assert min(quantizer.report(state)["fit_utilisation"]) > 0.7
    back = quantizer.from_arrays(quantizer.to_arrays(state))
    codes = quantizer.encode(state, VECTORS)
    np.testing.assert_array_equal(quantizer.encode(back, VECTORS), codes)
    np.testing.assert_array_equal(quantizer.decode(back, codes), quantizer.decode(state, codes))
    if quantizer.distance == "cosine":
        other = dataclasses.replace(quantizer, distance="euclidean")
        assert (np.asarray(other.encode(state, VECTORS)) != codes).any()
    if quantizer.codebook == "simvq":
        # All codes of a level moved by one linear map: 16 of them in 6 dimensions cannot by chance.
        still = dataclasses.replace(quantizer, optimizer=AdamW(learning_rate=0.0), steps=1)
        for first, last in zip(still.fit(KEY, VECTORS).params.codebooks, state.params.codebooks):
            first, last = np.asarray(first, np.float64), np.asarray(last, np.float64)
            _, errors, _, _ = np.linalg.lstsq(first, last, rcond=None)
            assert errors.sum() < 1e-8 * (last**2).sum()
            assert np.abs(last - first).max() > 0.01
        # Not even weight decay moves the codes themselves.
        training = rqvae_training.start_training(quantizer, state.params, 128)
        before = [np.array(book) for book in state.params.codebooks]
        ends, steps = rqvae.weight_ends(np.ones(400)), jnp.arange(50)
        points = jnp.asarray(VECTORS)
        training, _ = rqvae_training.run_steps(quantizer, 128, training, KEY, steps, points, ends)
        for one, other in zip(training.trained.networks.codebooks, before):
            np.testing.assert_array_equal(one, other)


def test_residual_networks_start_as_residual_k_means_and_get_better():
    """RQ-KMeans+: before the first step codes and vectors are those of residual k-means."""
    plus = dataclasses.replace(SMALL, residual_networks=True, latent=12, standardise=False)
    still = dataclasses.replace(plus, optimizer=AdamW(learning_rate=0.0), steps=1)
    start_key = jax.random.split(KEY)[0]
    means = ResidualKMeans(2, 16, iterations=rqvae._START_ITERATIONS)
    fitted = means.fit(jax.random.split(start_key, 4)[3], VECTORS)
    codes = means.encode(fitted, VECTORS)
    state = still.fit(KEY, VECTORS)
    np.testing.assert_array_equal(still.encode(state, VECTORS), codes)
    np.testing.assert_allclose(
        still.decode(state, codes), means.decode(fitted, codes), rtol=1e-4, atol=1e-5
    )
    trained = plus.fit(KEY, VECTORS)
    assert explained(plus, trained, VECTORS) > explained(still, state, VECTORS) + 0.01
    assert np.abs(trained.params.encoder[0].weight - state.params.encoder[0].weight).max() > 1e-3
    with pytest.raises(ValueError, match="whose width is 12, and latent is 6; set latent=12"):
        dataclasses.replace(plus, latent=6).fit(KEY, VECTORS)


KNOWN = np.arange(400) % 3 > 0
BEHAVIOUR = np.where(KNOWN[:, None], clustered(rows=400, width=8, seed=7), np.nan)


def test_regularizers_of_no_weight_change_nothing():
    parts = (
        LetterCollaborative(0.0),
        LetterDiversity(0.0, clusters=4),
        ReconstructionContrast(0.0),
    )
    quantizer = dataclasses.replace(SMALL, regularizers=parts)
    assert quantizer.reads == ("collaborative", "has_behaviour")
    aux = {"collaborative": BEHAVIOUR, "has_behaviour": KNOWN}
    state = quantizer.fit(KEY, VECTORS, aux)
    assert_equal_states(state.params, STATE.params)
    report = quantizer.report(state)
    first = {
        name: report[f"fit_{name}_loss"][0] for name in ("LetterCollaborative", "LetterDiversity")
    }
    assert all(0.5 < each < 20 for each in first.values())


def test_regularizers_lower_their_losses_and_equal_keys_give_equal_states(monkeypatch):
    parts = (LetterCollaborative(1.0), LetterDiversity(0.1, clusters=4, every=30))
    quantizer = dataclasses.replace(SMALL, regularizers=parts)
    aux = {"collaborative": BEHAVIOUR, "has_behaviour": KNOWN}
    state = quantizer.fit(KEY, VECTORS, aux)
    losses = np.asarray(state.trace.regularization)
    assert losses.shape == (100, 2)
    assert (losses[-10:].mean(0) < losses[:10].mean(0) - 0.05).all()
    # What the rows without behaviour have there does not matter; nor do the dispatches.
    monkeypatch.setattr(rqvae_training, "_STEPS_PER_DISPATCH", 25)
    other = {"collaborative": np.nan_to_num(BEHAVIOUR, nan=5.0), "has_behaviour": KNOWN}
    assert_equal_states(quantizer.fit(KEY, VECTORS, other), state)


def test_a_contrast_may_take_the_place_of_the_squared_error():
    contrast = ReconstructionContrast()
    quantizer = dataclasses.replace(SMALL, regularizers=(contrast,), reconstruction_weight=0.0)
    state = quantizer.fit(KEY, VECTORS)
    losses = np.asarray(state.trace.regularization)[:, 0]
    assert losses[-10:].mean() < losses[:10].mean() - 0.5
    decoded = np.asarray(quantizer.decode(state, quantizer.encode(state, VECTORS)))
    points, decoded = ((each - state.mean) / state.scale for each in (VECTORS, decoded))
    lengths = np.linalg.norm(points, axis=1) * np.linalg.norm(decoded, axis=1)
    # Directions come back; lengths, which nothing asks for, need not.
    assert ((points * decoded).sum(1) / lengths).mean() > 0.6
    assert explained(quantizer, state, VECTORS) < explained(SMALL, STATE, VECTORS)


def test_equal_keys_give_equal_states_however_the_steps_are_dispatched(monkeypatch):
    assert_equal_states(SMALL.fit(KEY, VECTORS), STATE)
    other = SMALL.fit(jax.random.key(1), VECTORS)
    assert np.abs(other.params.codebooks[0] - STATE.params.codebooks[0]).max() > 1e-3
    monkeypatch.setattr(rqvae_training, "_STEPS_PER_DISPATCH", 25)
    assert_equal_states(SMALL.fit(KEY, VECTORS), STATE)


def test_encoding_is_deterministic_and_blocked(monkeypatch):
    np.testing.assert_array_equal(SMALL.encode(STATE, VECTORS), CODES)
    assert CODES.dtype == np.int32
    monkeypatch.setattr(rqvae, "block_rows", lambda codes: 64)
    np.testing.assert_array_equal(SMALL.encode(STATE, VECTORS), CODES)
    np.testing.assert_array_equal(SMALL.encode(STATE, VECTORS[5:6])[0], CODES[5])


def test_the_units_of_a_dimension_do_not_matter():
    units = np.float32(2.0) ** np.arange(-6, 6)  # powers of two: the same digits
    scaled = SMALL.fit(KEY, VECTORS * units)
    np.testing.assert_array_equal(SMALL.encode(scaled, VECTORS * units), CODES)
    expected = SMALL.decode(STATE, CODES) * units
    np.testing.assert_array_equal(SMALL.decode(scaled, CODES), expected)


def test_vectors_far_from_zero_with_little_variance_use_their_codes():
    """The collapse of METHODS T2: unit vectors that differ by a hundredth."""
    generator = np.random.default_rng(5)
    vectors = generator.normal(size=12) + 0.01 * generator.normal(size=(400, 12))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    state = SMALL.fit(KEY, vectors)
    assert min(SMALL.report(state)["fit_utilisation"]) > 0.9
    assert explained(SMALL, state, vectors) > 0.3


@pytest.mark.parametrize("settled", [0.2, 1.0])
def test_resets_make_a_planted_mixture_use_every_code(settled):
    generator = np.random.default_rng(6)
    middles = 5 * generator.normal(size=(16, 12))
    vectors = middles[np.arange(400) % 16] + 0.1 * generator.normal(size=(400, 12))
    slower = AdamW(learning_rate=5e-3, warmup_steps=20)
    quantizer = dataclasses.replace(
        SMALL, levels=1, steps=400, decay=0.9, settled=settled, optimizer=slower
    )
    for seed in range(2):
        report = quantizer.report(quantizer.fit(jax.random.key(seed), vectors))
        if settled == 1.0:  # no step may reset: codes die, and stay dead
            assert report["fit_resets"] == [0]
            assert report["fit_utilisation"][0] < 0.9
        else:
            assert report["fit_resets"][0] > 0
            assert report["fit_utilisation"] == [1.0]


def test_levels_may_differ_in_size_and_start_from_a_sample_of_the_rows():
    quantizer = dataclasses.replace(SMALL, codes=(16, 5), start_rows=100)
    state = quantizer.fit(KEY, VECTORS)
    assert quantizer.sizes(state) == (16, 5)
    assert explained(quantizer, state, VECTORS) > 0.4
    codes = np.asarray(quantizer.encode(state, VECTORS))
    assert codes[:, 1].max() == 4
    unused = [size - len(np.unique(codes[:, level])) for level, size in enumerate((16, 5))]
    assert quantizer.report(state)["fit_unused_codes"] == unused


def test_more_codes_than_rows_are_capped_and_reported():
    few = np.repeat(clustered(rows=10), 40, 0)
    state = SMALL.fit(KEY, few)
    assert SMALL.sizes(state)[0] == 10
    report = SMALL.report(state)
    assert report["capped_levels"] == [0, 1]
    assert report["codes_asked"] == [16, 16]
    assert report["codes"] == list(SMALL.sizes(state))
    json.dumps(report)


def test_constant_vectors_give_one_code_a_level_and_themselves():
    constant = np.full((400, 12), 0.3, np.float32)
    state = SMALL.fit(KEY, constant)
    assert SMALL.sizes(state) == (1, 1)
    codes = SMALL.encode(state, constant)
    np.testing.assert_array_equal(codes, np.zeros((400, 2)))
    np.testing.assert_allclose(SMALL.decode(state, codes), constant, atol=0.02)


def test_rows_without_weight_change_nothing():
    weights = (np.arange(400) < 300).astype(np.float32)
    padded = np.where(weights[:, None] > 0, VECTORS, 1e6).astype(np.float32)
    state = SMALL.fit(KEY, VECTORS, {"weights": weights})
    assert_equal_states(SMALL.fit(KEY, padded, {"weights": weights}), state)
    np.testing.assert_allclose(state.mean, VECTORS[:300].mean(0), atol=1e-5)
    np.testing.assert_allclose(state.scale, VECTORS[:300].std(0), rtol=1e-5)


def test_weights_count():
    weights = np.where(np.arange(400) < 200, 5.0, 1.0)
    state = SMALL.fit(KEY, VECTORS, {"weights": weights})
    np.testing.assert_allclose(state.mean, np.average(VECTORS, axis=0, weights=weights), atol=1e-5)

    def errors(fitted):
        decoded = np.asarray(SMALL.decode(fitted, SMALL.encode(fitted, VECTORS)))
        return ((VECTORS - decoded) ** 2).sum(1)

    heavy, even = errors(state), errors(STATE)
    assert heavy[:200].sum() / heavy[200:].sum() < even[:200].sum() / even[200:].sum()


def test_sharded_rows_give_the_fit_of_one_device():
    sharded = jax.device_put(jnp.asarray(VECTORS), rows_sharding(make_mesh()))
    trace = SMALL.fit(KEY, sharded).trace
    # Rounding differs, and training amplifies it: only the first steps are comparable.
    first = STATE.trace.reconstruction[:5]
    np.testing.assert_allclose(trace.reconstruction[:5], first, rtol=1e-3)
    np.testing.assert_array_equal(SMALL.encode(STATE, sharded), CODES)


def test_arrays_bring_the_state_back():
    arrays = SMALL.to_arrays(STATE)
    back = SMALL.from_arrays(arrays)
    assert_equal_states(back, dataclasses.replace(STATE, trace=None))
    np.testing.assert_array_equal(SMALL.encode(back, VECTORS), CODES)
    np.testing.assert_array_equal(SMALL.decode(back, CODES), SMALL.decode(STATE, CODES))
    assert "fit_resets" not in SMALL.report(back)
    with pytest.raises(ValueError, match="lacks decoder_1_bias"):
        SMALL.from_arrays({name: arrays[name] for name in arrays if name != "decoder_1_bias"})
    with pytest.raises(ValueError, match=r"encoder_0_weight has shape \(12, 24\).*\(12, 25\)"):
        dataclasses.replace(SMALL, hidden=(25,)).from_arrays(arrays)
    with pytest.raises(ValueError, match=r"codebook_0 has shape \(16, 6\).*\(8, 6\)"):
        dataclasses.replace(SMALL, codes=8).from_arrays(arrays)


def test_the_tokenizer_saves_it_with_the_ids(tmp_path):
    items = [f"item {row}" for row in range(400)]
    ids, report = Tokenizer(SMALL)(KEY, VECTORS, items=items)
    ids.save(tmp_path / "ids")
    state = SMALL.from_arrays(SemanticIds.load(tmp_path / "ids").state)
    np.testing.assert_array_equal(SMALL.encode(state, VECTORS), ids.codes[:, :2])
    assert report["fit"]["residual_mode"] == SMALL.residual_mode
    json.dumps(report)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"levels": 0}, "levels >= 1"),
        ({"codes": (4, 4)}, r"levels=3, codes=\(4, 4\)"),
        ({"residual_mode": "ste"}, r"(?s)residual_mode.*'ste'.*paper.*ema_cumsum"),
        ({"reduction": "max"}, r"(?s)reduction.*'max'.*mean.*sum"),
        ({"hidden": (512, 0)}, r"every hidden width >= 1, got 32, \d+, 1024 and \(512, 0\)"),
        ({"latent": 0}, "latent, steps, batch"),
        ({"steps": 0}, "latent, steps, batch"),
        ({"start_rows": 200}, "start_rows is 200, fewer than the 256 codes"),
        ({"beta": -0.1}, "beta >= 0"),
        ({"quantization_weight": 0.0}, "quantization_weight > 0"),
        ({"dead_below": 1.0}, "dead_below < 1"),
        ({"settled": 1.1}, "settled <= 1"),
        ({"decay": 1.0}, "decay < 1"),
        ({"reconstruction_weight": -1.0}, "reconstruction_weight >= 0"),
        ({"reconstruction_weight": 0.0}, "nothing to train the decoder by"),
        ({"temperature": (1.0, 0.0)}, "two positive numbers"),
        ({"sinkhorn": (0.0, 0.003)}, r"sinkhorn is \(0.0, 0.003\) for 3 levels"),
        ({"sinkhorn": (0.0, 0.0, -0.1)}, "one epsilon >= 0 a level"),
        ({"sinkhorn_iterations": 0}, "sinkhorn_iterations is 0"),
        ({"regularizers": ("letter",)}, "'letter' is no regularizer"),
        ({"gradient": "gumbel", "residual_mode": "ema_cumsum"}, "gumbel.*follow means"),
        ({"gradient": "gumbel", "sinkhorn": (0.0, 0.0, 0.1)}, "mixes codewords"),
        ({"codebook": "simvq"}, "set dead_below=0"),
        ({"codebook": "simvq", "dead_below": 0.0, "residual_mode": "ema_cumsum"}, "simvq.*means"),
    ],
)
def test_bad_hyper_parameters(fields, message):
    # The type checker of the tests may come first where the field is a Literal.
    with pytest.raises((ValueError, TypeError), match=message):
        RqVae(**fields)


def test_bad_input():
    bad = VECTORS.copy()
    bad[3, 2] = np.nan
    with pytest.raises(ValueError, match="1 of 400 vectors have non-finite"):
        SMALL.fit(KEY, bad)
    with pytest.raises(ValueError, match="width 5 do not fit a quantizer of width 12"):
        SMALL.encode(STATE, np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match=r"level 1 has codes 16..16, outside 0..15"):
        SMALL.decode(STATE, np.array([[0, 16]]))
    with pytest.raises(ValueError, match="one entry a row"):
        SMALL.fit(KEY, VECTORS, {"weights": np.ones(3)})
    lettered = dataclasses.replace(SMALL, regularizers=(LetterCollaborative(),))
    for aux in (None, {"collaborative": BEHAVIOUR}):
        with pytest.raises(ValueError, match=r"LetterCollaborative reads.*lacks.*has_behaviour"):
            lettered.fit(KEY, VECTORS, aux)
    with pytest.raises(ValueError, match="got pairs"):
        SMALL.fit(KEY, VECTORS, {"pairs": 1})
    wild = dataclasses.replace(SMALL, optimizer=AdamW(learning_rate=1e30, warmup_steps=0))
    with pytest.raises(
        ValueError, match=r"no longer finite after step 49; lower the learning rate"
    ):
        wild.fit(KEY, VECTORS)


@dataclasses.dataclass(frozen=True)
class Adagrad:
    """The optimizer of TIGER's tokenizer, which collapses on raw vectors (METHODS T3)."""

    learning_rate: float = 0.4

    def build(self, total_steps):
        return optax.adagrad(self.learning_rate)

    def rate(self, step, total_steps):
        return jnp.full(jnp.shape(step), self.learning_rate)


COLLAPSING = {
    "standardise": False,
    "reduction": "sum",
    "dead_below": 0.0,
    "optimizer": Adagrad(),
}


def collapsed_levels(report):
    return sum("has collapsed" in sentence for sentence in report["advice"])


def test_settings_that_collapse_are_told_from_those_that_do_not():
    """Unit vectors that differ little, as text encoders give them (METHODS T2 (vii))."""
    generator = np.random.default_rng(5)
    vectors = generator.normal(size=12) + 0.1 * generator.normal(size=(400, 12))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for fields, collapsed in ((COLLAPSING, 2), ({}, 0)):
        quantizer = dataclasses.replace(SMALL, **fields)
        state = quantizer.fit(KEY, vectors)
        codes = np.asarray(quantizer.encode(state, vectors))
        report = quality_report(codes, quantizer.sizes(state), vectors=vectors)
        assert collapsed_levels(report) == collapsed


@pytest.mark.slow
@pytest.mark.real_data
def test_beauty_uses_every_code_and_loses_fewer_ids_than_k_means(shared_data):
    from jaxrec.data.datasets.sequences import read_item_lines
    from jaxrec.representation import L2, ItemVectors, TextFields, WordLlama

    table = read_item_lines(shared_data / "amazon2014-beauty" / "items.jsonl")
    text = TextFields(("title", "brand_and_categories"))
    vectors = ItemVectors(WordLlama(), text, (L2(),))(dict(table)).vectors
    reports = []
    tight = RqVae(quantization_weight=10.0, optimizer=AdamW(learning_rate=3e-3, weight_decay=1e-4))
    for quantizer in (ResidualKMeans(), tight, RqVae(steps=100, **COLLAPSING)):
        state = quantizer.fit(KEY, vectors)
        codes = np.asarray(quantizer.encode(state, vectors))
        reports.append(quality_report(codes, quantizer.sizes(state), vectors=vectors))
    means, ours, broken = reports
    assert [level["utilisation"] for level in ours["levels"]] == [1.0, 1.0, 1.0]
    assert ours["duplicates"]["lost_ids_distinct"] < 0.05
    assert ours["collisions"]["lost_ids"] < means["collisions"]["lost_ids"]
    assert collapsed_levels(ours) == 0
    assert collapsed_levels(broken) >= 2
