"""RQ-VAE as a quantizer: its fit, its codes, its state, and what collapses (METHODS T3)."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rqvae_world import (
    BEHAVIOUR,
    KEY,
    SMALL,
    VECTORS,
    assert_equal_states,
    coded,
    explained,
    fitted,
)

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
)
from jaxrec.tokenization.letter import LetterCollaborative, LetterDiversity
from jaxrec.training import AdamW
from tests.tokenization.test_residual_kmeans import clustered


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
    trace = fitted(SMALL).trace
    assert trace.reconstruction.shape == (100,)
    assert trace.reconstruction[-10:].mean() < 0.5 * trace.reconstruction[:10].mean()
    first, both = (
        explained(SMALL, fitted(SMALL), VECTORS, 1),
        explained(SMALL, fitted(SMALL), VECTORS),
    )
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


def test_equal_keys_give_equal_states():
    """However the steps are dispatched: see the regularizers in test_rqvae_options.py."""
    assert_equal_states(SMALL.fit(KEY, VECTORS), fitted(SMALL))
    other = SMALL.fit(jax.random.key(1), VECTORS)
    assert np.abs(other.params.codebooks[0] - fitted(SMALL).params.codebooks[0]).max() > 1e-3


def test_encoding_is_deterministic_and_blocked(monkeypatch):
    np.testing.assert_array_equal(SMALL.encode(fitted(SMALL), VECTORS), coded(SMALL))
    assert coded(SMALL).dtype == np.int32
    monkeypatch.setattr(rqvae, "block_rows", lambda codes: 64)
    np.testing.assert_array_equal(SMALL.encode(fitted(SMALL), VECTORS), coded(SMALL))
    np.testing.assert_array_equal(SMALL.encode(fitted(SMALL), VECTORS[5:6])[0], coded(SMALL)[5])


def test_the_units_of_a_dimension_do_not_matter():
    units = np.float32(2.0) ** np.arange(-6, 6)  # powers of two: the same digits
    scaled = SMALL.fit(KEY, VECTORS * units)
    np.testing.assert_array_equal(SMALL.encode(scaled, VECTORS * units), coded(SMALL))
    expected = SMALL.decode(fitted(SMALL), coded(SMALL)) * units
    np.testing.assert_array_equal(SMALL.decode(scaled, coded(SMALL)), expected)


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


def test_codebooks_start_from_a_sample_of_the_rows(monkeypatch):
    class Stop(Exception):
        """Enough has been seen."""

    def started(quantizer):
        seen = {}

        def stop(self, key, vectors, aux):
            seen.update(latents=np.asarray(vectors), weights=np.asarray(aux["weights"]))
            raise Stop

        monkeypatch.setattr(ResidualKMeans, "fit", stop)
        with pytest.raises(Stop):
            quantizer.fit(KEY, VECTORS, {"weights": np.arange(400) < 300})
        return seen["latents"], seen["weights"]

    (every, given), (some, weights) = (
        started(SMALL),
        started(dataclasses.replace(SMALL, start_rows=100)),
    )
    assert (len(every), given.sum()) == (400, 300)
    assert some.shape == (100, 6)
    assert (weights == 1).all()
    gaps = np.abs(some[:, None] - every[:300]).max(-1)
    assert gaps.min(1).max() < 1e-5  # rows that have weight
    assert len(np.unique(gaps.argmin(1))) > 90  # from all parts of them


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

    heavy, even = errors(state), errors(fitted(SMALL))
    assert heavy[:200].sum() / heavy[200:].sum() < even[:200].sum() / even[200:].sum()


def test_sharded_rows_give_the_fit_of_one_device():
    sharded = jax.device_put(jnp.asarray(VECTORS), rows_sharding(make_mesh()))
    trace = SMALL.fit(KEY, sharded).trace
    # Rounding differs, and training amplifies it: only the first steps are comparable.
    first = fitted(SMALL).trace.reconstruction[:5]
    np.testing.assert_allclose(trace.reconstruction[:5], first, rtol=1e-3)
    np.testing.assert_array_equal(SMALL.encode(fitted(SMALL), sharded), coded(SMALL))


def test_arrays_bring_the_state_back():
    arrays = SMALL.to_arrays(fitted(SMALL))
    back = SMALL.from_arrays(arrays)
    assert_equal_states(back, dataclasses.replace(fitted(SMALL), trace=None))
    np.testing.assert_array_equal(SMALL.encode(back, VECTORS), coded(SMALL))
    np.testing.assert_array_equal(
        SMALL.decode(back, coded(SMALL)), SMALL.decode(fitted(SMALL), coded(SMALL))
    )
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


def test_bad_input():
    bad = VECTORS.copy()
    bad[3, 2] = np.nan
    with pytest.raises(ValueError, match="1 of 400 vectors have non-finite"):
        SMALL.fit(KEY, bad)
    with pytest.raises(ValueError, match="width 5 do not fit a quantizer of width 12"):
        SMALL.encode(fitted(SMALL), np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match=r"level 1 has codes 16..16, outside 0..15"):
        SMALL.decode(fitted(SMALL), np.array([[0, 16]]))
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
