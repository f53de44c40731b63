"""FSQ as a quantizer: its fit, its codes, its state, and the tests of METHODS T9."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.parallel import make_mesh, rows_sharding
from jaxrec.recipe import from_json, to_json
from jaxrec.tokenization import Quantizer, Tokenizer, fsq
from jaxrec.tokenization.fsq import Fsq, FsqState, fsq_loss
from jaxrec.tokenization.fsq_grid import digits_of_codes
from jaxrec.tokenization.mlp import Layer, init_mlp
from jaxrec.tokenization.rqvae_network import RqVaeParams
from jaxrec.training import AdamW
from tests.tokenization.test_fsq_grid import slow_bound
from tests.tokenization.test_residual_kmeans import clustered

KEY = jax.random.key(0)
SMALL = Fsq(
    grid=((5, 4, 3), (8, 5)),
    hidden=(24,),
    steps=200,
    batch=128,
    optimizer=AdamW(learning_rate=1e-2, warmup_steps=5),
)
VECTORS = clustered(rows=400)


@functools.cache
def fitted(quantizer):
    """Its state after VECTORS, fitted when a test first asks for it."""
    return quantizer.fit(KEY, VECTORS)


@functools.cache
def coded(quantizer):
    """Its codes of VECTORS."""
    return np.asarray(quantizer.encode(fitted(quantizer), VECTORS))


def assert_equal_states(left, right):
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(one, other)


def slow_scalars(state, vectors):
    """Latent scalars before rounding, in float64: the bound of the encoder's output."""
    (w1, b1), (w2, b2) = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.params[0])
    rows = (np.asarray(vectors, np.float64) - np.asarray(state.mean)) / np.asarray(state.scale)
    latents = np.maximum(rows @ w1 + b1, 0) @ w2 + b2
    return np.array([list(map(slow_bound, row, (5, 4, 3, 8, 5))) for row in latents])


def squared_error(quantizer, state, codes):
    return float(((VECTORS - np.asarray(quantizer.decode(state, codes))) ** 2).mean())


def test_gradients_of_the_decoder_agree_with_differences():
    params = RqVaeParams(init_mlp(KEY, (12, 9, 5)), init_mlp(jax.random.key(1), (5, 9, 12)), ())
    rows = jnp.asarray(VECTORS[:20])
    loss = jax.jit(fsq_loss, static_argnums=2)
    gradients = jax.jit(jax.grad(fsq_loss), static_argnums=2)(params, rows, SMALL.grid)
    direction = jax.tree.map(np.sign, gradients.decoder)
    slope = sum(np.abs(each).sum() for each in jax.tree.leaves(gradients.decoder))

    def moved(step):
        decoder = jax.tree.map(
            lambda leaf, way: np.float32(leaf + step * way), params.decoder, direction
        )
        return float(loss(params._replace(decoder=decoder), rows, SMALL.grid))

    np.testing.assert_allclose((moved(1e-3) - moved(-1e-3)) / 2e-3, slope, rtol=1e-3)
    # The encoder has no differences to compare with, it must not be left out.
    assert min(np.abs(each).max() for each in jax.tree.leaves(gradients.encoder)) > 0


def test_identity_networks_round_the_vectors():
    """With z = x the codes are the grid cells, and the decoder gives their middles back."""
    identity = (Layer(jnp.eye(2), jnp.zeros(2)),)
    quantizer = Fsq(grid=((5,), (4,)), hidden=())
    state = FsqState(jnp.zeros(2), jnp.ones(2), RqVaeParams(identity, identity, ()))
    vectors = np.array([[0, 0], [9, 9], [-9, -9], [0.6, -0.6]], np.float32)
    codes = quantizer.encode(state, vectors)
    np.testing.assert_array_equal(codes, [[2, 2], [4, 3], [0, 0], [3, 1]])
    middles = [[0, 0], [1, 0.5], [-1, -1], [0.5, -0.5]]
    np.testing.assert_array_equal(quantizer.decode(state, codes), middles)


def test_encoding_equals_the_slow_reference():
    scalars = slow_scalars(fitted(SMALL), VECTORS)
    digits = np.ceil(scalars - 0.5).astype(int) + np.array([2, 2, 1, 4, 2])
    expected = np.stack(
        [digits[:, 0] + 5 * digits[:, 1] + 20 * digits[:, 2], digits[:, 3] + 8 * digits[:, 4]], 1
    )
    # float32 may fall on the other side of a half.
    is_clear = (np.abs(scalars - np.floor(scalars) - 0.5) > 1e-4).all(1)
    assert is_clear.mean() > 0.95
    np.testing.assert_array_equal(coded(SMALL)[is_clear], expected[is_clear])
    assert coded(SMALL).dtype == np.int32
    assert SMALL.sizes(fitted(SMALL)) == (60, 40)


@pytest.mark.parametrize("tokens", [1, 2])
def test_decoding_puts_missing_tokens_in_the_middle(tokens):
    digits = np.concatenate(
        [
            np.asarray(digits_of_codes(jnp.asarray(coded(SMALL)[:, 0]), (5, 4, 3))) - [2, 2, 1],
            np.asarray(digits_of_codes(jnp.asarray(coded(SMALL)[:, 1]), (8, 5))) - [4, 2],
        ],
        1,
    ) / [2, 2, 1, 4, 2]
    if tokens == 1:
        digits[:, 3:] = 0
    (v1, c1), (v2, c2) = jax.tree.map(np.asarray, fitted(SMALL).params.decoder)
    expected = (np.maximum(digits @ v1 + c1, 0) @ v2 + c2) * fitted(SMALL).scale + fitted(
        SMALL
    ).mean
    np.testing.assert_allclose(
        SMALL.decode(fitted(SMALL), coded(SMALL)[:, :tokens]), expected, atol=1e-4
    )


def test_it_is_a_quantizer_and_survives_the_recipe_file():
    assert isinstance(SMALL, Quantizer)
    other = Fsq(grid=((8, 5), (4,)), optimizer=AdamW(weight_decay=0.1))
    assert from_json(json.loads(json.dumps(to_json(other)))) == other
    assert hash(SMALL) == hash(dataclasses.replace(SMALL))
    assert Fsq().sizes(fitted(SMALL)) == (15_360,) * 4
    assert Fsq().reads == ()


def test_training_lowers_the_error_far_below_that_of_random_codes():
    losses = np.asarray(fitted(SMALL).trace.reconstruction)
    assert losses.shape == (200,)
    assert losses[-10:].mean() < 0.5 * losses[:10].mean()
    error = squared_error(SMALL, fitted(SMALL), coded(SMALL))
    assert error < 0.4 * VECTORS.var(0).mean()
    generator = np.random.default_rng(2)
    for shuffled in (
        coded(SMALL)[generator.permutation(400)],
        generator.integers(0, (60, 40), (400, 2)),
    ):
        assert error < 0.2 * squared_error(SMALL, fitted(SMALL), shuffled)


def test_the_reported_loss_is_that_of_the_batch():
    """One step on a batch that is all rows, at rate 0: the fit's start is its end."""
    still = AdamW(learning_rate=0.0)
    quantizer = dataclasses.replace(SMALL, steps=1, batch=400, standardise=False, optimizer=still)
    state = quantizer.fit(KEY, VECTORS)
    error = squared_error(quantizer, state, quantizer.encode(state, VECTORS))
    np.testing.assert_allclose(state.trace.reconstruction[0], error, rtol=1e-4)
    np.testing.assert_array_equal(state.mean, np.zeros(12))
    np.testing.assert_array_equal(state.scale, np.ones(12))


def test_the_report_counts_codes_and_values_in_use():
    report = SMALL.report(fitted(SMALL))
    used = [len(np.unique(column)) for column in coded(SMALL).T]
    assert report["fit_used_codes"] == used
    assert report["fit_utilisation"] == [used[0] / 60, used[1] / 40]
    digits = np.asarray(digits_of_codes(jnp.asarray(coded(SMALL)[:, 1]), (8, 5)))
    values = [len(np.unique(digits[:, 0])) / 8, len(np.unique(digits[:, 1])) / 5]
    assert report["fit_scalar_utilisation"][3:] == values
    assert min(report["fit_scalar_utilisation"]) > 0.7
    few = dataclasses.replace(
        fitted(SMALL), trace=dataclasses.replace(fitted(SMALL).trace, rows=jnp.int32(50))
    )
    reachable = SMALL.report(few)["fit_utilisation_of_reachable"]
    assert reachable == [used[0] / 50, used[1] / 40]
    json.dumps(report)


def test_equal_keys_give_equal_states_however_the_steps_are_dispatched(monkeypatch):
    other = SMALL.fit(jax.random.key(1), VECTORS)
    assert (
        np.abs(other.params.encoder[0].weight - fitted(SMALL).params.encoder[0].weight).max() > 1e-3
    )
    monkeypatch.setattr(fsq, "_STEPS_PER_DISPATCH", 40)
    assert_equal_states(SMALL.fit(KEY, VECTORS), fitted(SMALL))


def test_encoding_is_deterministic_and_blocked(monkeypatch):
    monkeypatch.setattr(fsq, "block_rows", lambda codes: 64)
    np.testing.assert_array_equal(SMALL.encode(fitted(SMALL), VECTORS), coded(SMALL))
    np.testing.assert_array_equal(SMALL.encode(fitted(SMALL), VECTORS[5:6])[0], coded(SMALL)[5])


def test_the_units_of_a_dimension_do_not_matter():
    units = np.float32(2.0) ** np.arange(-6, 6)  # powers of two: the same digits
    scaled = SMALL.fit(KEY, VECTORS * units)
    np.testing.assert_array_equal(SMALL.encode(scaled, VECTORS * units), coded(SMALL))
    expected = SMALL.decode(fitted(SMALL), coded(SMALL)) * units
    np.testing.assert_array_equal(SMALL.decode(scaled, coded(SMALL)), expected)


def test_constant_vectors_share_their_codes_and_decode_to_themselves():
    constant = np.full((400, 12), 0.3, np.float32)
    state = SMALL.fit(KEY, constant)
    codes = np.asarray(SMALL.encode(state, constant))
    assert len(np.unique(codes, axis=0)) == 1
    assert state.trace.used.tolist() == [1, 1]
    np.testing.assert_allclose(SMALL.decode(state, codes), constant, atol=0.02)


def test_rows_without_weight_change_nothing():
    weights = (np.arange(400) < 300).astype(np.float32)
    padded = np.where(weights[:, None] > 0, VECTORS, 1e6).astype(np.float32)
    state = SMALL.fit(KEY, VECTORS, {"weights": weights})
    assert_equal_states(SMALL.fit(KEY, padded, {"weights": weights}), state)
    np.testing.assert_allclose(state.mean, VECTORS[:300].mean(0), atol=1e-5)
    np.testing.assert_allclose(state.scale, VECTORS[:300].std(0), rtol=1e-5)
    assert int(state.trace.rows) == 300
    # Two rows have two codes at most; padding would have a third, its own.
    two = dataclasses.replace(SMALL, steps=1)
    trace = two.fit(KEY, padded, {"weights": np.where(np.arange(400) < 2, 1.0, 0.0)}).trace
    assert trace.used.tolist() == [2, 2]


def test_weights_count():
    weights = np.where(np.arange(400) < 200, 5.0, 1.0)
    state = SMALL.fit(KEY, VECTORS, {"weights": weights})
    np.testing.assert_allclose(state.mean, np.average(VECTORS, axis=0, weights=weights), atol=1e-5)

    def errors(fitted):
        decoded = np.asarray(SMALL.decode(fitted, SMALL.encode(fitted, VECTORS)))
        return ((VECTORS - decoded) ** 2).sum(1)

    heavy, even = errors(state), errors(fitted(SMALL))
    assert heavy[:200].sum() / heavy[200:].sum() < even[:200].sum() / even[200:].sum()


def test_sharded_rows_give_the_codes_of_one_device():
    sharded = jax.device_put(jnp.asarray(VECTORS), rows_sharding(make_mesh()))
    np.testing.assert_array_equal(SMALL.encode(fitted(SMALL), sharded), coded(SMALL))


def test_arrays_bring_the_state_back():
    arrays = SMALL.to_arrays(fitted(SMALL))
    back = SMALL.from_arrays(arrays)
    assert_equal_states(back, dataclasses.replace(fitted(SMALL), trace=None))
    np.testing.assert_array_equal(SMALL.encode(back, VECTORS), coded(SMALL))
    np.testing.assert_array_equal(
        SMALL.decode(back, coded(SMALL)), SMALL.decode(fitted(SMALL), coded(SMALL))
    )
    assert "fit_used_codes" not in SMALL.report(back)
    with pytest.raises(ValueError, match="lacks decoder_1_bias"):
        SMALL.from_arrays({name: arrays[name] for name in arrays if name != "decoder_1_bias"})
    with pytest.raises(ValueError, match=r"encoder_0_weight has shape \(12, 24\).*\(12, 25\)"):
        dataclasses.replace(SMALL, hidden=(25,)).from_arrays(arrays)


def test_the_tokenizer_takes_it():
    items = [f"item {row}" for row in range(400)]
    ids, report = Tokenizer(SMALL)(KEY, VECTORS, items=items)
    np.testing.assert_array_equal(ids.codes[:, :2], coded(SMALL))
    assert report["final"]["is_unique"]
    assert report["fit"]["grid"] == [[5, 4, 3], [8, 5]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grid": ()}, "at least one token"),
        ({"grid": ((8, 8), ())}, "at least one scalar"),
        ({"grid": ((8, 1),)}, r"2\.\.256 values, got grid=\(\(8, 1\),\)"),
        ({"grid": ((257,),)}, r"2\.\.256 values"),
        ({"grid": ((256,) * 4,)}, r"more than 2\^31 - 1 codes"),
        ({"hidden": (512, 0)}, r"every hidden width >= 1, got 2000, 1024 and \(512, 0\)"),
        ({"steps": 0}, "steps, batch"),
        ({"batch": 0}, "steps, batch"),
    ],
)
def test_bad_hyper_parameters(fields, message):
    with pytest.raises(ValueError, match=message):
        Fsq(**fields)


def test_bad_input():
    bad = VECTORS.copy()
    bad[3, 2] = np.nan
    with pytest.raises(ValueError, match="1 of 400 vectors have non-finite"):
        SMALL.fit(KEY, bad)
    with pytest.raises(ValueError, match="width 5 do not fit a quantizer of width 12"):
        SMALL.encode(fitted(SMALL), np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match=r"level 1 has codes 40..40, outside 0..39"):
        SMALL.decode(fitted(SMALL), np.array([[0, 40]]))
    with pytest.raises(ValueError, match="got pairs"):
        SMALL.fit(KEY, VECTORS, {"pairs": 1})
    wild = dataclasses.replace(SMALL, optimizer=AdamW(learning_rate=1e30, warmup_steps=0))
    with pytest.raises(ValueError, match=r"no longer finite after step \d+; lower the learning"):
        wild.fit(KEY, VECTORS)
