"""Rewards for being right or nearly: loops, the dynamic programme, known answers."""

import jax
import numpy as np
import pytest

from jaxrec.objectives.rewards import CommonSubsequence, ExactMatch, LevelCredit, PrefixMatch
from jaxrec.objectives.rewards.matches import common_subsequence, level_credit, matching_prefix

credit = jax.jit(level_credit, static_argnames="prefix_only")
call = jax.jit(lambda reward, drawn, key=None: reward(drawn, key), static_argnums=0)


def prefix_of(codes, goal):
    """Levels that agree before the first that does not."""
    depth = 0
    while depth < len(goal) and codes[depth] == goal[depth]:
        depth += 1
    return depth


def subsequence_of(left, right):
    """The textbook table."""
    left, right = ([x for x in each if x >= 0] for each in (left, right))
    table = np.zeros((len(left) + 1, len(right) + 1), int)
    for i, x in enumerate(left):
        for j, y in enumerate(right):
            table[i + 1, j + 1] = (
                table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
            )
    return table[-1, -1]


def test_an_exact_match_is_the_item_and_nothing_else(drawn):
    found = call(ExactMatch(), drawn)
    for row in range(4):
        for place in range(6):
            hit = drawn.valid[row, place] and drawn.items[row, place] == drawn.target[row]
            assert found[row, place] == float(hit and drawn.target[row] >= 0)
    assert float(found[0, 0]) == 1.0


def test_an_item_of_the_same_codes_is_no_match(drawn):
    other = drawn._replace(items=drawn.items * 0 + 9, target=drawn.target * 0 + 8)
    twins = other._replace(codes=np.broadcast_to(other.target_codes[:, None], other.codes.shape))
    np.testing.assert_array_equal(call(ExactMatch(), twins)[0], 0)
    np.testing.assert_array_equal(call(PrefixMatch(), twins)[0], drawn.valid[0].astype(np.float32))


def test_prefixes_are_graded_by_the_table(drawn):
    values = (-2.0, 0.25, 0.5, 3.0)
    found = call(PrefixMatch(values), drawn)
    depths = jax.jit(matching_prefix)(drawn.codes, drawn.target_codes)
    seen = set()
    for row in range(4):
        for place in range(6):
            depth = prefix_of(drawn.codes[row, place], drawn.target_codes[row])
            assert depth == int(depths[row, place])
            counts = bool(drawn.valid[row, place]) and int(drawn.target[row]) >= 0
            assert float(found[row, place]) == (values[depth] if counts else 0.0)
            seen.add(depth)
    assert {0, 1, 3} <= seen


def test_a_level_after_a_wrong_one_counts_only_for_parallel_codes():
    codes = np.array([[[5, 6, 7], [5, 0, 7], [0, 6, 7], [5, 6, 0], [0, 0, 0]]])
    goal, weights = np.array([[5, 6, 7]]), np.array([4.0, 2.0, 2.0])
    np.testing.assert_array_equal(
        credit(codes, goal, weights), np.array([[1.0, 0.5, 0.0, 0.75, 0.0]])
    )
    np.testing.assert_array_equal(
        credit(codes, goal, weights, prefix_only=False),
        np.array([[1.0, 0.75, 0.5, 0.75, 0.0]]),
    )


def test_the_default_levels_fall_by_half(drawn):
    codes = drawn.codes.copy()
    codes[0] = drawn.target_codes[0]
    codes[0, 0, 2] = codes[0, 2, 1] = 9
    found = call(LevelCredit(), drawn._replace(codes=codes, valid=drawn.valid | True))[0]
    np.testing.assert_allclose(found[:3], [6 / 7, 1.0, 4 / 7], rtol=1e-6)


def test_credit_rises_with_every_level():
    goal = np.zeros((1, 4), np.int32)
    depths = np.array([[[0] * depth + [1] * (4 - depth) for depth in range(5)]])
    found = credit(depths, goal, np.array([1.0, 1.0, 3.0, 0.5]))[0]
    assert np.all(np.diff(found) > 0)
    np.testing.assert_allclose(found[-1], 1.0)


@pytest.mark.parametrize("reward", [PrefixMatch((0.0, 1.0)), LevelCredit((1.0, 1.0))])
def test_the_number_of_levels_must_fit(reward, drawn):
    with pytest.raises(ValueError, match="rollouts have 3"):
        call(reward, drawn)


def test_the_scan_is_the_textbook_table():
    random = np.random.default_rng(1)
    left = random.integers(-1, 4, (200, 7)).astype(np.int32)
    right = random.integers(-1, 4, (200, 5)).astype(np.int32)
    found = jax.jit(common_subsequence)(left, right)
    expected = [subsequence_of(*pair) for pair in zip(left, right)]
    np.testing.assert_array_equal(found, expected)
    assert set(expected) >= {1, 2, 3, 4}
    np.testing.assert_array_equal(jax.jit(common_subsequence)(right, left), expected)


def test_lists_are_measured_by_the_longer_one(drawn):
    truth = np.array([[4, 5, 6, -1]] * 3 + [[-1] * 4])
    lists = np.full((4, 6, 5), -1, np.int32)
    lists[:, 0, :3] = 4, 5, 6  # the true list
    lists[:, 1, :3] = 6, 5, 4  # one in order
    lists[:, 2] = 4, 1, 5, 2, 6  # three of five
    lists[:, 3, :2] = 4, 6  # two of three
    drawn = drawn._replace(lists=lists, truth=truth, valid=np.ones((4, 6), bool))
    found = call(CommonSubsequence(), drawn)
    np.testing.assert_allclose(found[0], [1.0, 1 / 3, 3 / 5, 2 / 3, 0.0, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(found[3], 0.0)
