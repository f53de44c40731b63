"""REINFORCE: its slope, averaged over everything that can be drawn, is that of what is expected."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import policy_groups as world
import pytest

from jaxrec.objectives.reinforce import Reinforce
from jaxrec.objectives.rollout_groups import ScoredGroup

REWARDS = np.array([1.0, -0.5, 3.0])


def expected_slope(objective, logits, rollouts):
    """Slope in the logits of the loss of a group, averaged over all groups of three items."""
    drawn = np.array(list(itertools.product(range(3), repeat=rollouts)))

    def of_group(log_probs, rewards):
        each, everyone = log_probs[None, :, None], jnp.ones((1, rollouts), bool)
        group = ScoredGroup(each, each, each, rewards[None], everyone, everyone)
        return objective(group)[0]

    def loss(logits):
        log_probs = jax.nn.log_softmax(logits)[drawn]
        chance = jax.lax.stop_gradient(jnp.exp(jnp.sum(log_probs, axis=1)))
        return chance @ jax.vmap(of_group)(log_probs, jnp.asarray(REWARDS)[drawn])

    with jax.enable_x64(True):
        return jax.jit(jax.grad(loss))(jnp.asarray(logits, jnp.float64))


@pytest.mark.parametrize(
    ("objective", "factor"),
    [(Reinforce("leave_one_out", entropy=0.7), 1.0), (Reinforce("mean"), 0.5)],
)
def test_the_slope_is_that_of_the_expectation(objective, factor):
    """Exactly, with the baseline of the others; with that of the group by half, for pairs."""
    logits = np.array([0.3, -0.2, 0.5])
    chance = np.exp(logits) / np.exp(logits).sum()
    value = REWARDS - objective.entropy * np.log(chance)
    expected = -factor * chance * (value - chance @ value)
    found = expected_slope(objective, logits, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def slow(baseline, entropy, batch_mean):
    def losses(live, row):
        rewards = row.rewards - entropy * row.log_probs.sum(-1)
        number = len(rewards)
        if baseline == "mean":
            rewards = rewards - rewards.mean()
        if baseline == "leave_one_out":
            others = (rewards.sum() - rewards) / max(number - 1, 1)
            rewards = rewards - others if number > 1 else 0 * rewards
        if baseline == "batch":
            rewards = rewards - batch_mean
        return -rewards * live.sum(-1)

    return losses


@pytest.mark.parametrize("baseline", ["none", "mean", "leave_one_out", "batch"])
@pytest.mark.parametrize("entropy", [0.0, 0.4])
def test_is_the_definition(baseline, entropy):
    group = world.draw(7)
    group.valid[0, 3:] = group.valid[1, 1:] = group.valid[2] = False
    rewards = (group.rewards - entropy * group.log_probs.sum(-1))[group.valid]
    reference = slow(baseline, entropy, rewards.mean())
    world.check_against(Reinforce(baseline, entropy), reference, group)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"baseline": "median"}, "(?s)median.*none.*mean.*leave_one_out.*batch"),
        ({"entropy": -1.0}, "Reinforce needs entropy >= 0, got -1.0"),
    ],
)
def test_refuses_unknown_options(options, words):
    # The type checker of the tests may come first where the field is a Literal.
    with pytest.raises((ValueError, TypeError), match=words):
        Reinforce(**options)
