"""GRPO-SR: calibration, the likelihood of what was liked, and GRPO where both are off."""

import doctest

import jax.numpy as jnp
import numpy as np
import policy_groups as world
import pytest

from jaxrec.objectives import grpo_sr
from jaxrec.objectives.grpo import GRPO
from jaxrec.objectives.grpo_sr import GRPOSR, calibrate_positives


def calibrated(row):
    """Rewards of one group whose rollouts are all valid."""
    return np.array([row.rewards.max() if p else r for p, r in zip(row.positive, row.rewards)])


def slow(objective):
    """The formula of the module for one group, in float64."""

    def losses(live, row):
        rewards = calibrated(row)
        advantages = world.normalised(row, objective.ddof, objective.epsilon, rewards=rewards)
        liked = live[row.positive].sum(-1)
        nll = -liked.mean() if len(liked) else 0.0
        ratio = np.exp(live) / np.exp(row.log_probs)
        return -np.mean(ratio, axis=-1) * advantages + objective.nll * nll

    return losses


@pytest.mark.parametrize("objective", [GRPOSR(), GRPOSR(0.0), GRPOSR(0.7, ddof=0, epsilon=0.3)])
def test_is_the_definition(objective):
    group = world.draw(7)
    group.valid[0, 3:] = group.valid[1, 1:] = group.valid[2] = False
    group.positive[0, :2] = [True, False]
    group.positive[3] = False
    world.check_against(objective, slow(objective), group)


def test_calibration():
    group = world.draw(1)
    group.valid[0, np.argmax(group.rewards[0])] = False
    group.positive[1] = False
    arrays = [jnp.asarray(x) for x in (group.rewards, group.positive, group.valid)]
    found = np.asarray(calibrate_positives(*arrays))
    for b, keep in enumerate(group.valid):
        best = group.rewards[b][keep].max()
        expected = np.where(group.positive[b] & keep, best, group.rewards[b])
        np.testing.assert_array_equal(found[b], expected)
    twice = calibrate_positives(jnp.asarray(found), *arrays[1:])
    np.testing.assert_array_equal(found, twice)


def test_a_calibrated_positive_is_never_below_its_group():
    """So that its slope in the policy term never pushes it down."""
    group = world.draw(2)
    group.rewards[0][group.positive[0]] = -100.0
    assert group.positive.any(1).sum() >= 3
    _, slope = world.answer(GRPOSR(0.0), group)
    slope = np.asarray(slope)
    assert np.all(slope[group.positive] <= 0)
    _, uncalibrated = world.answer(GRPO(on_policy=True), group)
    assert np.all(np.asarray(uncalibrated)[0][group.positive[0]] > 0)


def test_without_positives_and_likelihood_it_is_grpo_on_policy():
    group = world.draw(3)
    group.positive[:] = False
    ours, slope = world.answer(GRPOSR(0.0), group)
    theirs, expected = world.answer(GRPO(on_policy=True, kl=0.0), group)
    np.testing.assert_allclose(ours[:2], theirs[:2], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


def test_groups_gated_to_zero_teach_by_likelihood_alone():
    """The slope is that of the weighted negative log-likelihood of the positives."""
    group = world.draw(4)
    group.rewards[:2] = 0.0
    group.positive[0], group.positive[1] = [True, False, True, False, False], False
    (total, _, metrics), slope = world.answer(GRPOSR(0.5), group)
    np.testing.assert_allclose(slope[0, [0, 2]], -0.5 / 2, rtol=1e-6)
    np.testing.assert_array_equal(slope[0, [1, 3, 4]], 0)
    np.testing.assert_array_equal(slope[1], 0)
    assert np.array(metrics["gated_groups"]).tolist() == [2, 4]
    assert np.array(metrics["zero_advantage_groups"]).tolist() == [2, 4]
    some = group.positive.any(1)
    nll = sum(-group.log_probs[b][group.positive[b]].sum(-1).mean() for b in np.flatnonzero(some))
    np.testing.assert_allclose(metrics["nll"], (nll, some.sum()), rtol=1e-5)
    np.testing.assert_allclose(metrics["positive_groups"], (some.sum(), 4))
    # Whatever the advantages, the value of the policy term is their mean: 0.
    np.testing.assert_allclose(total, 0.5 * nll, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nll": -0.1}, "GRPOSR needs nll >= 0, got -0.1"),
        ({"ddof": 2}, "GRPOSR needs ddof 0 or 1"),
    ],
)
def test_refuses_impossible_numbers(options, words):
    with pytest.raises(ValueError, match=words):
        GRPOSR(**options)


def test_examples_in_the_documentation():
    result = doctest.testmod(grpo_sr)
    assert (result.attempted, result.failed) == (3, 0)
