"""Fast rankings against slow ones that follow the definition word by word."""

import numpy as np
import pytest

from jaxrec.evaluation.cases import CaseHistories, case_histories
from jaxrec.evaluation.metrics import per_case_metrics
from jaxrec.evaluation.ranking import (
    collision_ranks,
    item_priority,
    ranks_from_scores,
    ranks_in_lists,
    sid_ranks,
    top_from_scores,
    without_seen,
)

CASES, ITEMS = 23, 17


def slow_order(scores, priority, seen):
    """Items that may be recommended, best first."""
    open_items = [i for i in range(len(scores)) if i not in seen and scores[i] > -np.inf]
    return sorted(open_items, key=lambda i: (-scores[i], priority[i]))


@pytest.fixture
def world():
    generator = np.random.default_rng(3)
    lengths = generator.integers(1, 9, CASES)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    item = generator.integers(0, ITEMS, offsets[-1])
    positions = offsets[1:] - 1
    # Few distinct scores, so that ties are the rule.
    scores = generator.integers(0, 4, (CASES, ITEMS)).astype(np.float32)
    scores[generator.random((CASES, ITEMS)) < 0.1] = -np.inf
    priority = item_priority(generator.integers(0, 5, ITEMS))
    return scores, item[positions], case_histories(offsets, item, positions), priority


def seen_sets(histories, masked):
    if not masked:
        return [set()] * histories.num_cases
    return [set(histories.item[a:b].tolist()) for a, b in zip(histories.start, histories.end)]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("with_priority", [True, False])
def test_ranks_and_lists_equal_the_slow_reference(world, masked, with_priority):
    scores, targets, histories, priority = world
    given = priority if with_priority else None
    rule = priority if with_priority else np.arange(ITEMS)
    orders = [slow_order(s, rule, seen) for s, seen in zip(scores, seen_sets(histories, masked))]
    expected = [1 + o.index(t) if t in o else 0 for o, t in zip(orders, targets.tolist())]
    seen = histories if masked else None
    got = ranks_from_scores(scores, targets, priority=given, seen=seen, block=5)
    assert got.tolist() == expected

    top = top_from_scores(scores, 30, priority=given, seen=seen, block=5)
    assert [top.items[c][top.valid[c]].tolist() for c in range(CASES)] == orders
    assert (top.items[~top.valid] == -1).all()
    assert np.isneginf(top.scores[~top.valid]).all()
    np.testing.assert_array_equal(ranks_in_lists(top.items, top.valid, targets), got)
    short = top_from_scores(scores, 4, priority=given, seen=seen)
    np.testing.assert_array_equal(short.items, top.items[:, :4])


def test_priority_is_popularity_then_lower_item():
    assert item_priority(np.array([2, 5, 2, 9, 5])).tolist() == [3, 1, 4, 0, 2]


def test_constant_scores_rank_by_the_tie_rule_alone():
    # An evaluator that breaks ties in the target's favour would give rank 1 everywhere.
    targets = np.arange(6)
    ranks = ranks_from_scores(np.zeros((6, 6)), targets)
    assert ranks.tolist() == [1, 2, 3, 4, 5, 6]


def test_nan_and_unknown_targets_are_refused():
    scores = np.array([[0.0, np.nan]])
    with pytest.raises(ValueError, match="NaN"):
        ranks_from_scores(scores, np.array([0]))
    with pytest.raises(ValueError, match="NaN"):
        top_from_scores(scores, 1)
    with pytest.raises(ValueError, match="rows 0 to 1"):
        ranks_from_scores(np.zeros((1, 2)), np.array([2]))
    with pytest.raises(ValueError, match="k=0"):
        top_from_scores(np.zeros((1, 2)), 0)


def test_masking_a_list_afterwards_equals_masking_the_scores(world):
    scores, targets, histories, _ = world
    everything = top_from_scores(scores, ITEMS)
    valid = without_seen(everything.items, everything.valid, histories)
    masked = ranks_from_scores(scores, targets, seen=histories)
    np.testing.assert_array_equal(ranks_in_lists(everything.items, valid, targets), masked)
    assert not without_seen(everything.items, everything.valid & False, histories).any()


def test_without_seen_knows_items_that_no_list_names():
    histories = CaseHistories(np.array([0, 2]), np.array([2, 3]), np.array([90, 1, 2]))
    items = np.array([[1, 2], [1, 2]])
    struck = without_seen(items, np.ones((2, 2), bool), histories)
    assert struck.tolist() == [[False, True], [True, False]]


def slow_sid(items, valid, target, codes, levels):
    """(rank among distinct codes, place of the first item when groups are written out, size)."""
    goal = tuple(codes[target, :levels])
    size = sum(tuple(row[:levels]) == goal for row in codes)
    distinct, place = [], 1
    for item, good in zip(items, valid):
        if not good or tuple(codes[item, :levels]) in distinct:
            continue
        distinct.append(tuple(codes[item, :levels]))
        if distinct[-1] == goal:
            return len(distinct), place, size
        place += sum(tuple(row[:levels]) == distinct[-1] for row in codes)
    return 0, 0, size


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_sid_and_collision_ranks_equal_the_slow_reference(levels):
    generator = np.random.default_rng(5)
    codes = generator.integers(0, 3, (40, 3))
    items = np.stack([generator.permutation(40)[:12] for _ in range(50)])
    valid = generator.random(items.shape) < 0.8
    items[~valid] = -1
    targets = generator.integers(0, 40, 50)
    expected = [slow_sid(i, v, t, codes, levels) for i, v, t in zip(items, valid, targets)]
    ranks = sid_ranks(items, valid, targets, codes, levels)
    first, group = collision_ranks(items, valid, targets, codes, levels)
    assert list(zip(ranks.tolist(), first.tolist(), group.tolist())) == expected
    item_level = ranks_in_lists(items, valid, targets)
    found = item_level > 0
    assert ((ranks[found] > 0) & (ranks[found] <= item_level[found])).all()
    sid = per_case_metrics(ranks, (5,))["recall@5"].mean()
    assert sid >= per_case_metrics(item_level, (5,))["recall@5"].mean()


def test_sid_rank_ignores_the_extra_digit():
    codes = np.array([[1, 1, 0], [1, 1, 1], [2, 1, 0]])
    items, valid = np.array([[2, 0]]), np.ones((1, 2), bool)
    assert sid_ranks(items, valid, np.array([1]), codes, 2).tolist() == [2]
    assert sid_ranks(items, valid, np.array([1]), codes, 3).tolist() == [0]
    with pytest.raises(ValueError, match="semantic_levels=4"):
        sid_ranks(items, valid, np.array([1]), codes, 4)
