"""Schedules against their formulas, AdamW against its textbook update, the decay mask."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.training.optimizers import AdamW, decay_mask

TOTAL, WARM, PEAK = 50, 10, 0.3


def formula(schedule, t, f):
    if t < WARM:
        return PEAK * (t + 1) / WARM
    s = min(1.0, (t - WARM) / (TOTAL - WARM))
    return (
        PEAK
        * {
            "cosine": f + (1 - f) * (1 + math.cos(math.pi * s)) / 2,
            "linear": f + (1 - f) * (1 - s),
            "constant": 1.0,
            "inverse_sqrt": max(f, math.sqrt(WARM / (t + 1))),
        }[schedule]
    )


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "inverse_sqrt"])
@pytest.mark.parametrize("final", [0.0, 0.4])
def test_rate_is_the_formula(schedule, final):
    adam = AdamW(PEAK, warmup_steps=WARM, schedule=schedule, final_fraction=final)
    steps = np.arange(80)
    rates = adam.rate(steps, TOTAL)
    np.testing.assert_allclose(rates, [formula(schedule, t, final) for t in steps], atol=1e-7)


def test_rate_without_warmup_starts_at_the_peak():
    assert float(AdamW(PEAK, warmup_steps=0).rate(0, TOTAL)) == pytest.approx(PEAK)
    assert float(AdamW(PEAK, warmup_steps=0, schedule="inverse_sqrt").rate(3, TOTAL)) == (
        pytest.approx(PEAK / 2)
    )


def test_update_is_adamw_by_hand():
    adam = AdamW(0.1, warmup_steps=4, schedule="linear", weight_decay=0.05, b1=0.8, b2=0.9)
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, -2.0)}
    transformation = adam.build(8)
    state, update = transformation.init(params), jax.jit(transformation.update)
    generator, rates = np.random.default_rng(0), adam.rate(np.arange(6), 8)
    by_hand = {name: np.asarray(leaf) for name, leaf in params.items()}
    means, squares = ({name: np.zeros(leaf.shape) for name, leaf in params.items()} for _ in "ab")
    for step in range(6):
        grads = {name: generator.normal(size=leaf.shape) for name, leaf in params.items()}
        norm = math.sqrt(sum((leaf**2).sum() for leaf in grads.values()))
        updates, state = update(
            jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), grads), state, params
        )
        params = jax.tree.map(jnp.add, params, updates)
        for name, decay in (("kernel", 0.05), ("bias", 0.0)):
            clipped = grads[name] / max(1.0, norm)
            mean = means[name] = 0.8 * means[name] + 0.2 * clipped
            square = squares[name] = 0.9 * squares[name] + 0.1 * clipped**2
            direction = (mean / (1 - 0.8 ** (step + 1))) / (
                np.sqrt(square / (1 - 0.9 ** (step + 1))) + 1e-8
            )
            rate = float(rates[step])
            by_hand[name] = by_hand[name] - rate * (direction + decay * by_hand[name])
            np.testing.assert_allclose(params[name], by_hand[name], rtol=1e-5)


def test_no_clipping_when_off():
    params = {"w": jnp.zeros((2, 2))}
    transformation = AdamW(weight_decay=0.0, clip_norm=0.0).build(10)
    state = transformation.init(params)
    _, state = transformation.update({"w": jnp.full((2, 2), 1e3)}, state, params)
    np.testing.assert_allclose(state[0].mu["w"], 100.0, rtol=1e-6)


def test_decay_mask_goes_by_rank_and_name():
    square, vector = np.ones((3, 2)), np.ones(2)
    params = {
        "embedding": square,
        "shift": vector,
        "layers": {
            "attention_norm": {"scale": square},
            "RMSNorm_0": {"weight": square},
            "feed_forward": {"kernel": square, "bias": square},
            "upscale": {"kernel": square},
        },
    }
    assert decay_mask(params, AdamW().no_decay) == {
        "embedding": True,
        "shift": False,
        "layers": {
            "attention_norm": {"scale": False},
            "RMSNorm_0": {"weight": False},
            "feed_forward": {"kernel": True, "bias": False},
            "upscale": {"kernel": True},
        },
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schedule": "triangle"}, r"(?s)triangle.*cosine"),
        ({"b1": 1.0}, r"\[0, 1\)"),
        ({"final_fraction": 1.5}, "1.5"),
        ({"warmup_steps": -1}, "warmup_steps.*-1"),
        ({"clip_norm": -1.0}, "clip_norm"),
    ],
)
def test_impossible_settings_are_refused(change, words):
    # The type checker of the tests may come first where the field is a Literal.
    with pytest.raises((ValueError, TypeError), match=words):
        AdamW(**change)
