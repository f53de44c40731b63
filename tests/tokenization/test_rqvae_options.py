"""What published RQ-VAEs disagree about: every option trains, and does what it says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rqvae_world import (
    BEHAVIOUR,
    KEY,
    KNOWN,
    SMALL,
    VECTORS,
    assert_equal_states,
    coded,
    explained,
    fitted,
)

from jaxrec.tokenization import ResidualKMeans, RqVae, rqvae, rqvae_training
from jaxrec.tokenization.contrastive_quantization import ReconstructionContrast
from jaxrec.tokenization.letter import LetterCollaborative, LetterDiversity
from jaxrec.training import AdamW

SIMVQ = dataclasses.replace(
    SMALL,
    residual_mode="per_level_ste",
    gradient="rotation",
    distance="cosine",
    codebook="simvq",
    dead_below=0.0,
)
GUMBEL = dataclasses.replace(SMALL, residual_mode="detach", gradient="gumbel", annealing="linear")
UNEVEN = dataclasses.replace(
    SMALL,
    codes=(16, 5),
    residual_mode="ema_cumsum",
    sinkhorn=(0.0, 0.01),
    sinkhorn_iterations=20,
)


@pytest.mark.parametrize("quantizer", [SIMVQ, GUMBEL, UNEVEN])
def test_the_options_train_and_their_states_come_back(quantizer):
    state, codes = fitted(quantizer), coded(quantizer)
    assert explained(quantizer, state, VECTORS) > 0.4
    assert np.abs(state.params.codebooks[0] - fitted(SMALL).params.codebooks[0]).max() > 1e-4
    assert min(quantizer.report(state)["fit_utilisation"]) > 0.7
    back = quantizer.from_arrays(quantizer.to_arrays(state))
    np.testing.assert_array_equal(quantizer.encode(back, VECTORS), codes)
    np.testing.assert_array_equal(quantizer.decode(back, codes), quantizer.decode(state, codes))


def test_levels_may_differ_in_size():
    state, codes = fitted(UNEVEN), coded(UNEVEN)
    assert UNEVEN.sizes(state) == (16, 5)
    assert codes[:, 1].max() == 4
    unused = [size - len(np.unique(codes[:, level])) for level, size in enumerate((16, 5))]
    assert UNEVEN.report(state)["fit_unused_codes"] == unused


def test_encoding_goes_by_the_distance_of_the_training():
    other = dataclasses.replace(SIMVQ, distance="euclidean")
    assert (np.asarray(other.encode(fitted(SIMVQ), VECTORS)) != coded(SIMVQ)).any()


def test_simvq_moves_all_codes_of_a_level_by_one_linear_map():
    state = fitted(SIMVQ)
    # 16 codes in 6 dimensions cannot by chance.
    still = dataclasses.replace(SIMVQ, optimizer=AdamW(learning_rate=0.0), steps=1)
    for first, last in zip(still.fit(KEY, VECTORS).params.codebooks, state.params.codebooks):
        first, last = np.asarray(first, np.float64), np.asarray(last, np.float64)
        _, errors, _, _ = np.linalg.lstsq(first, last, rcond=None)
        assert errors.sum() < 1e-8 * (last**2).sum()
        assert np.abs(last - first).max() > 0.01
    # Not even weight decay moves the codes themselves.
    training = rqvae_training.start_training(SIMVQ, state.params, 128)
    before = [np.array(book) for book in state.params.codebooks]
    ends, steps = rqvae.weight_ends(np.ones(400)), jnp.arange(50)
    points = jnp.asarray(VECTORS)
    training, _ = rqvae_training.run_steps(SIMVQ, 128, training, KEY, steps, points, ends)
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
    assert_equal_states(state.params, fitted(SMALL).params)
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
    assert explained(quantizer, state, VECTORS) < explained(SMALL, fitted(SMALL), VECTORS)


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
