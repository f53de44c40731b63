"""GRPO: the definition written out, the clip by hand, and what it is on-policy."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import policy_groups as world
import pytest

from jaxrec.objectives import grpo
from jaxrec.objectives.grpo import DAPO, DR_GRPO, GRPO, MINIONEREC, ONEREC_THINK
from jaxrec.objectives.reinforce import Reinforce


def slow(objective):
    """The formula of the module for one group, in float64."""
    high = objective.clip if objective.clip_high is None else objective.clip_high

    def losses(live, row):
        advantages = world.normalised(
            row, objective.ddof, objective.epsilon, objective.scale_by_std
        )
        out = []
        for i, advantage in enumerate(advantages):
            old = row.log_probs[i] if objective.on_policy else row.behaviour[i]
            gap = live[i] - old
            gap = gap if objective.ratio_level == "token" else gap.sum(keepdims=True)
            terms = [
                min(r * advantage, np.clip(r, 1 - objective.clip, 1 + high) * advantage)
                for r in np.exp(gap)
            ]
            d = row.reference[i] - live[i]
            kl = {"k1": -d, "k2": d**2 / 2, "k3": np.exp(d) - d - 1}[objective.kl_estimator]
            reduce = np.mean if objective.length_normalised else np.sum
            out.append(objective.kl * reduce(kl) - reduce(terms))
        return np.array(out)

    return losses


@pytest.mark.parametrize(
    "objective",
    [
        MINIONEREC,
        ONEREC_THINK,
        DR_GRPO,
        DAPO,
        GRPO(0.1, 0.5, 0.7, "k1", ddof=0, epsilon=0.3),
        GRPO(kl=0.7, kl_estimator="k2", length_normalised=False),
        GRPO(kl=0.7, ratio_level="item"),
    ],
    ids=str,
)
def test_is_the_definition(objective):
    group = world.draw(7)
    group.valid[0, 3:] = group.valid[1, 1:] = group.valid[2] = False
    world.check_against(objective, slow(objective), group)


GOOD = [(0.2, 0.1), (0.05, 0.1), (0.11, 0.1), (0.1, 0.1)]
BAD = [(0.2, 0.1), (0.05, 0.1), (0.11, 0.1), (0.1, 0.1)]
SIGNS = GRPO(kl=0.0, ddof=0, epsilon=0.0, ratio_level="item")
"""Advantages of a pair are then exactly +1 and -1."""


def test_the_clip_by_hand():
    """Twice as likely, half, a tenth more, the same: what is maximised, and its slope."""
    (total, weight, metrics), slope = world.answer(SIGNS, world.pairs(GOOD, BAD))
    gained = np.array([1.2, 0.5, 1.1, 1.0]) + np.array([-2.0, -0.8, -1.1, -1.0])
    np.testing.assert_allclose(total, -gained.sum() / 2, rtol=1e-5)
    np.testing.assert_allclose(-2 * slope[:, 0, 0], [0, 0.5, 1.1, 1], rtol=1e-5)
    np.testing.assert_allclose(-2 * slope[:, 1, 0], [-2, 0, -1.1, -1], rtol=1e-5)
    assert float(weight) == 4
    assert np.array(metrics["clipped"]).tolist() == [2, 8]


def test_the_upper_clip_is_its_own():
    raised = GRPO(kl=0.0, ddof=0, epsilon=0.0, ratio_level="item", clip_high=1.5)
    (_, _, metrics), slope = world.answer(raised, world.pairs(GOOD, BAD))
    np.testing.assert_allclose(-2 * slope[:, 0, 0], [2, 0.5, 1.1, 1], rtol=1e-5)
    np.testing.assert_allclose(-2 * slope[:, 1, 0], [-2, 0, -1.1, -1], rtol=1e-5)
    assert np.array(metrics["clipped"]).tolist() == [1, 8]


def test_a_first_step_is_reinforce_with_a_baseline():
    group = world.draw(8)
    group = group._replace(behaviour=group.log_probs)
    for objective in (DR_GRPO, GRPO(kl=0.0, scale_by_std=False, ratio_level="item")):
        _, ours = world.answer(objective, group)
        _, theirs = world.answer(Reinforce("mean"), group)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
    # And the ratio that is 1 by definition gives it for rollouts of any age.
    _, ours = world.answer(GRPO(kl=0.0, on_policy=True), world.draw(8))
    _, theirs = world.answer(GRPO(kl=0.0), group)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_affine_rewards_change_nothing():
    group = world.draw(9)
    free = GRPO(epsilon=0.0, kl=0.1)
    ours, slope = world.answer(free, group)
    moved, same = world.answer(free, group._replace(rewards=5 * group.rewards - 3))
    np.testing.assert_allclose(ours[:2], moved[:2], rtol=1e-4)
    np.testing.assert_allclose(slope, same, rtol=1e-4, atol=1e-6)


def test_the_length_is_a_constant_factor():
    group = world.draw(10)
    mean, sum_ = (GRPO(kl=0.5, length_normalised=each) for each in (True, False))
    (ours, _, _), slope = world.answer(mean, group)
    (theirs, _, _), tripled = world.answer(sum_, group)
    np.testing.assert_allclose(3 * ours, theirs, rtol=1e-5)
    np.testing.assert_allclose(3 * slope, tripled, rtol=1e-5)


def test_the_divergence_pulls_towards_the_reference():
    group = world.draw(11)
    group = group._replace(rewards=0 * group.rewards)
    _, slope = world.answer(GRPO(kl=0.5), group)
    np.testing.assert_array_equal(np.sign(slope), np.sign(group.log_probs - group.reference))
    settled = group._replace(reference=group.log_probs)
    (total, _, metrics), slope = world.answer(GRPO(kl=0.5), settled)
    assert float(total) == float(metrics["kl"][0]) == 0
    np.testing.assert_array_equal(slope, 0)


def test_the_published_settings():
    assert MINIONEREC.on_policy
    assert (MINIONEREC.kl, MINIONEREC.ddof, MINIONEREC.epsilon) == (1e-3, 1, 1e-4)
    assert (ONEREC_THINK.kl, ONEREC_THINK.clip, ONEREC_THINK.on_policy) == (1e-3, 0.2, False)
    assert (DAPO.clip, DAPO.clip_high, DAPO.kl) == (0.2, 0.28, 0)


def test_compiles():
    group = jax.tree.map(jnp.asarray, world.draw(12))
    compiled = jax.jit(lambda objective, group: objective(group), static_argnums=0)
    world.same(compiled(GRPO(), group), GRPO()(group))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clip": 0.0}, r"clip in \(0, 1\), clip_high > 0 and kl >= 0, got 0.0, None and 0.001"),
        ({"clip": 1.0}, r"clip in \(0, 1\)"),
        ({"clip_high": 0.0}, "clip_high > 0"),
        ({"kl": -1.0}, "kl >= 0"),
        ({"kl_estimator": "k4"}, "(?s)k4.*k1.*k2.*k3"),
        ({"ddof": 2}, "GRPO needs ddof 0 or 1 and epsilon >= 0, got 2 and 0.0001"),
        ({"epsilon": -1e-9}, "epsilon >= 0"),
        ({"ratio_level": "code"}, "(?s)code.*token.*item"),
    ],
)
def test_refuses_unknown_options(options, words):
    # The type checker of the tests may come first where the field is a Literal.
    with pytest.raises((ValueError, TypeError), match=words):
        GRPO(**options)


def test_examples_in_the_documentation():
    result = doctest.testmod(grpo)
    assert (result.attempted, result.failed) == (6, 0)
