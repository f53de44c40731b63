"""ECPO: the golden table, its bound, and what it shares with GRPO."""

import doctest

import numpy as np
import policy_groups as world
import pytest

from jaxrec.objectives import ecpo
from jaxrec.objectives.ecpo import ECPO
from jaxrec.objectives.grpo import GRPO

SIGNS = ECPO(ddof=0, epsilon=0.0)
"""Advantages of a pair are then exactly +1 and -1."""
# (probability, old probability), what is maximised, its slope in log pi (METHODS O19)
BAD = [
    ((0.2, 0.1), -1.3, -1.3),
    ((0.05, 0.1), -0.8, 0.0),
    ((0.9, 0.001), -1.3, -1.3),
    ((0.125, 0.1), -1.25, -1.25),
]
GOOD = [
    ((0.2, 0.1), 1.2, 0.0),
    ((0.05, 0.1), 0.5, 0.5),
    ((0.9, 0.001), 1.2, 0.0),
    ((0.11, 0.1), 1.1, 1.1),
]


def test_the_golden_table():
    group = world.pairs([row[0] for row in GOOD], [row[0] for row in BAD])
    (total, _, metrics), slope = world.answer(SIGNS, group)
    np.testing.assert_allclose(-2 * slope[:, 0, 0], [row[2] for row in GOOD], rtol=1e-5)
    np.testing.assert_allclose(-2 * slope[:, 1, 0], [row[2] for row in BAD], rtol=1e-5)
    gained = sum(row[1] for row in GOOD + BAD)
    np.testing.assert_allclose(total, -gained / 2, rtol=1e-5)
    assert np.array(metrics["early_clipped"]).tolist() == [2, 8]
    assert np.array(metrics["clipped"]).tolist() == [3, 8]


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_each_value_of_the_table(place):
    """Against a partner that gains exactly 1: one that has not moved."""
    still = [(0.1, 0.1)] * 4
    for table, sign in ((GOOD, 1), (BAD, -1)):
        rows = [table[place][0]] * 4
        group = world.pairs(*((rows, still) if sign > 0 else (still, rows)))
        (total, weight, _), _ = world.answer(SIGNS, group)
        np.testing.assert_allclose(-2 * total / weight + sign, table[place][1], rtol=1e-5)


def test_good_rollouts_are_those_of_grpo():
    group = world.draw(1, apart=1.0)
    group.rewards[:] = np.where(group.rewards > 0, 1, -1)
    for level in ("token", "item"):
        ours, slope = world.answer(ECPO(ratio_level=level), group)
        theirs, expected = world.answer(GRPO(kl=0.0, ratio_level=level), group)
        good = group.rewards > group.rewards.mean(1, keepdims=True)
        np.testing.assert_array_equal(np.asarray(slope)[good], np.asarray(expected)[good])
        assert np.abs(np.asarray(slope)[good]).max() > 0.02
        assert float(ours[0]) < float(theirs[0])
        np.testing.assert_array_equal(ours[2]["clipped"], theirs[2]["clipped"])


def slow(objective):
    """The formula of the module for one group, in float64."""
    most = 1 + objective.clip + objective.delta

    def losses(live, row):
        advantages = world.normalised(row, objective.ddof, objective.epsilon)
        out = []
        for i, advantage in enumerate(advantages):
            ours, frozen, old = live[i], row.log_probs[i], row.behaviour[i]
            if objective.ratio_level == "item":
                ours, frozen, old = (x.sum(keepdims=True) for x in (ours, frozen, old))
            ratio = np.exp(ours) / np.maximum(np.exp(frozen) / most, np.exp(old))
            kept = np.clip(ratio, 1 - objective.clip, 1 + objective.clip)
            out.append(-np.mean(np.minimum(ratio * advantage, kept * advantage)))
        return np.array(out)

    return losses


@pytest.mark.parametrize("level", ["token", "item"])
def test_is_the_definition(level):
    group = world.draw(7)
    group.valid[0, 3:] = group.valid[1, 1:] = group.valid[2] = False
    for objective in (ECPO(ratio_level=level), ECPO(0.4, 0.3, level, ddof=0, epsilon=0.5)):
        world.check_against(objective, slow(objective), group)


def test_no_slope_exceeds_the_bound():
    group = world.draw(2, apart=6.0)
    group.log_probs[0, 0], group.behaviour[0, 0], group.rewards[0, 0] = -1e-3, -300.0, -9.0
    (total, _, _), slope = world.answer(ECPO(), group)
    assert np.isfinite(total)
    advantages = (group.rewards - group.rewards.mean(1, keepdims=True)) / (
        group.rewards.std(1, ddof=1, keepdims=True)
    )
    assert np.all(np.abs(5 * slope) <= 1.3001 * np.abs(advantages)[..., None])
    np.testing.assert_allclose(5 * slope[0, 0], -1.3 * advantages[0, 0], rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clip": 1.0}, r"ECPO needs clip in \(0, 1\) and delta > 0, got 1.0 and 0.1"),
        ({"delta": 0.0}, "delta > 0"),
        ({"ddof": 3}, "ECPO needs ddof 0 or 1"),
        ({"ratio_level": "word"}, "(?s)word.*token.*item"),
    ],
)
def test_refuses_unknown_options(options, words):
    # The type checker of the tests may come first where the field is a Literal.
    with pytest.raises((ValueError, TypeError), match=words):
        ECPO(**options)


def test_examples_in_the_documentation():
    result = doctest.testmod(ecpo)
    assert (result.attempted, result.failed) == (3, 0)
