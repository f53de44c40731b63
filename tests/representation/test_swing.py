"""Pairs of items against slow loops."""

import itertools

import numpy as np
import pytest
from behaviour_logs import random_lists, sequences_of

from jaxrec.representation import swing
from jaxrec.representation.pairs import NextPairs, top_pairs
from jaxrec.representation.swing import SwingPairs, swing_pairs


def slow_swing(lists, items, alpha):
    """The formula, user by user."""
    sets = [set(each) for each in lists]
    scores = np.zeros((items, items))
    for i, j in itertools.permutations(range(items), 2):
        both = [user for user, had in enumerate(sets) if i in had and j in had]
        for u, v in itertools.permutations(both, 2):
            scores[i, j] += 1 / (alpha + len(sets[u] & sets[v]))
    return scores


def slow_top(scores, per_item):
    """Pairs in which one is among the best of the other; ties to the lowest id."""
    pairs = set()
    for i, row in enumerate(scores):
        order = sorted((-round(score, 9), j) for j, score in enumerate(row) if score > 0 and j != i)
        pairs |= {(min(i, j), max(i, j)) for _, j in order[:per_item]}
    return sorted(pairs)


@pytest.mark.parametrize("alpha", [0.5, 3.0])
def test_swing_is_the_formula(alpha, monkeypatch):
    monkeypatch.setattr(swing, "_BLOCK_NUMBERS", 40)  # several blocks of items
    lists = random_lists(users=25, items=10, seed=4)
    expected = slow_swing(lists, 10, alpha)
    pairs, scores = swing_pairs(sequences_of(lists), 10, alpha=alpha, top=10)
    np.testing.assert_allclose(scores, [expected[i, j] for i, j in pairs], atol=1e-9)
    assert pairs.tolist() == [list(each) for each in slow_top(expected, 10)]
    assert pairs.dtype == np.int32


def test_a_pair_needs_to_be_among_the_best_of_one_of_its_items():
    lists = random_lists(users=40, items=10, seed=5)
    expected = slow_swing(lists, 10, 1.0)
    pairs = SwingPairs(per_item=2)(sequences_of(lists), 10)
    assert [tuple(each) for each in pairs.tolist()] == slow_top(expected, 2)
    assert len(pairs) < len(slow_top(expected, 10))


def test_two_users_who_share_two_items_are_one_over_alpha_plus_two_each_way():
    pairs, scores = swing_pairs(sequences_of([[0, 1, 2, 2], [1, 0, 3], [4]]), 5, alpha=1.0)
    assert pairs.tolist() == [[0, 1]]
    np.testing.assert_allclose(scores, [2 / 3])
    none, _ = swing_pairs(sequences_of([[0, 1], [2, 3]]), 4)
    assert none.shape == (0, 2)


def test_of_a_popular_item_the_users_with_the_shortest_histories_are_read():
    lists = [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [0, 1], [1, 0]]
    pairs, scores = swing_pairs(sequences_of(lists), 5, max_users=2)
    found = {tuple(pair): score for pair, score in zip(pairs.tolist(), scores)}
    # Two users each way who share two items, not those who share five.
    assert found[0, 1] == pytest.approx(2 / 3)
    # Items 2, 3 and 4 have no more users than two; from there, 0 and 1 are partners.
    assert found[0, 2] == found[3, 4] == pytest.approx(2 / 6)
    pairs, scores = swing_pairs(sequences_of(lists), 5)
    assert scores[pairs.tolist().index([0, 1])] == pytest.approx(2 / 6 + 10 / 3)


def test_equal_scores_go_to_the_lowest_ids():
    from scipy import sparse

    scores = sparse.csr_matrix(np.ones((4, 4)))
    pairs, _ = top_pairs(scores, 1)
    assert pairs.tolist() == [[0, 1], [0, 2], [0, 3]]


def test_the_larger_direction_of_a_pair_counts():
    from scipy import sparse

    scores = sparse.csr_matrix(np.array([[0, 1.0, 0], [3, 0, 2], [0, 0, 0]]))
    pairs, values = top_pairs(scores, 5)
    assert pairs.tolist() == [[0, 1], [1, 2]]
    np.testing.assert_array_equal(values, [3, 2])


@pytest.mark.parametrize("window", [1, 3])
def test_next_pairs_are_counted_neighbours(window):
    lists = random_lists(users=40, items=8, seed=6)
    counts = np.zeros((8, 8))
    for each in lists:
        for first, second in itertools.combinations(range(len(each)), 2):
            if second - first <= window and each[first] != each[second]:
                counts[each[first], each[second]] += 1
                counts[each[second], each[first]] += 1
    pairs = NextPairs(window, per_item=2)(sequences_of(lists), 8)
    assert [tuple(each) for each in pairs.tolist()] == slow_top(counts, 2)
