"""GBPO: the golden table, the slope of a binary cross-entropy, and the trap."""

import doctest

import jax.numpy as jnp
import numpy as np
import policy_groups as world
import pytest

from jaxrec.objectives import gbpo
from jaxrec.objectives.gbpo import GBPO, bounded_old

# (probability, old probability, advantage) and the slope in log pi (METHODS O20)
TABLE = [
    (0.5, 0.1, 1.0, 1.0),
    (0.1, 0.5, 1.0, 0.2),
    (0.01, 0.001, -1.0, -0.0101),
    (0.6, 0.7, -1.0, -0.857),
    (0.9, 0.05, -1.0, -9.0),
]
PLACES = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]


def golden():
    """The table as the first codes of groups of five, the rest masked."""
    group = world.pairs([(0.5, 0.5)] * 4, [(0.5, 0.5)] * 4)
    group.valid[:] = False
    for place, (chance, old, advantage, _) in zip(PLACES, TABLE):
        group.log_probs[(*place, 0)], group.behaviour[(*place, 0)] = np.log(chance), np.log(old)
        group.rewards[place], group.valid[place] = advantage, True
    return group


def test_the_golden_table():
    (total, weight, metrics), slope = world.answer(GBPO("item"), golden())
    members = [2, 2, 2, 2, 1]
    found = [-n * float(slope[(*place, 0)]) for n, place in zip(members, PLACES)]
    np.testing.assert_allclose(found, [row[3] for row in TABLE], rtol=1e-3)
    # The loss is linear in pi, so that its value is that of the slopes.
    np.testing.assert_allclose(total, -(0.6 - 0.4336 - 9.0), rtol=1e-3)
    assert float(weight) == 3
    np.testing.assert_allclose(metrics["coefficient_positives"], (1.2, 2), rtol=1e-5)
    np.testing.assert_allclose(metrics["coefficient_negatives"], (9.867, 3), rtol=1e-3)


def test_a_bad_rollout_has_the_slope_of_a_binary_cross_entropy():
    """`d/dlog p of -log(1 - p)` = p / (1 - p), of every p that was rarer when it was drawn."""
    group = world.draw(1)
    group = group._replace(
        rewards=0 * group.rewards - 1, behaviour=np.full_like(group.behaviour, -30.0)
    )
    _, slope = world.answer(GBPO(), group)
    chance = np.exp(group.log_probs.astype(np.float64))
    np.testing.assert_allclose(15 * slope, chance / (1 - chance), rtol=1e-4)


def slow(level):
    """The formula of the module for one group, in float64."""

    def losses(live, row):
        out = []
        for i, advantage in enumerate(row.rewards):
            ours, frozen, old = live[i], row.log_probs[i], row.behaviour[i]
            if level == "item":
                ours, frozen, old = (x.sum(keepdims=True) for x in (ours, frozen, old))
            bound = np.exp(frozen) if advantage >= 0 else 1 - np.exp(frozen)
            out.append(-np.mean(advantage * np.exp(ours) / np.maximum(np.exp(old), bound)))
        return np.array(out)

    return losses


@pytest.mark.parametrize("level", ["token", "item"])
def test_is_the_definition(level):
    group = world.draw(7)
    group.valid[0, 3:] = group.valid[1, 1:] = group.valid[2] = False
    group.rewards[0] = np.sign(group.rewards[0])
    group.rewards[0, 2] = 0
    world.check_against(GBPO(level), slow(level), group)


def test_good_rollouts_are_bounded_and_bad_ones_are_finite_at_certainty():
    group = world.draw(2, apart=6.0)
    (_, _, metrics), _ = world.answer(GBPO(), group._replace(rewards=np.abs(group.rewards)))
    assert float(metrics["coefficient_positives"][0]) <= 3 * np.abs(group.rewards).sum()
    for certain in (0.0, 1e-7):  # by rounding above 0
        ours = jnp.full((1, 1, 1), certain)
        old = bounded_old(ours, jnp.full((1, 1, 1), -2.0), -jnp.ones((1, 1)))
        np.testing.assert_allclose(old, -2.0)
    group.log_probs[:] = 0.0
    (total, _, _), slope = world.answer(GBPO(), group)
    assert np.isfinite(total)
    assert np.isfinite(slope).all()


def test_the_trap_of_item_probabilities():
    """Three codes of probability .01: the item is pushed down by a millionth, a code by .01."""
    group = world.draw(3)
    chances = np.full_like(group.log_probs, np.log(0.01))
    group = group._replace(
        log_probs=chances, behaviour=chances, rewards=np.full_like(group.rewards, -1.0)
    )
    (_, _, token), slope = world.answer(GBPO("token"), group)
    (_, _, item), tiny = world.answer(GBPO("item"), group)
    mean = [
        float(m["coefficient_negatives"][0] / m["coefficient_negatives"][1]) for m in (token, item)
    ]
    np.testing.assert_allclose(mean, [1 / 99, 1e-6], rtol=1e-4)
    np.testing.assert_allclose(5 * tiny, 1e-6, rtol=1e-4)
    np.testing.assert_allclose(15 * slope, 1 / 99, rtol=1e-4)


def test_nobody_else_of_the_group_matters():
    """Rewards are advantages: equal ones are not zero, and groups may be of one."""
    group = world.draw(4)
    group.rewards[:] = 1.0
    (_, _, metrics), slope = world.answer(GBPO(), group)
    assert np.all(np.asarray(slope) < 0)
    assert np.array(metrics["zero_advantage_groups"]).tolist() == [0, 4]
    group.rewards[0] = 0.0
    (_, _, metrics), slope = world.answer(GBPO(), group)
    np.testing.assert_array_equal(slope[0], 0)
    assert np.array(metrics["zero_advantage_groups"]).tolist() == [1, 4]


def test_refuses_an_unknown_level():
    with pytest.raises((ValueError, TypeError), match=r"(?s)word.*token.*item"):
        GBPO("word")


def test_examples_in_the_documentation():
    result = doctest.testmod(gbpo)
    assert (result.attempted, result.failed) == (3, 0)
