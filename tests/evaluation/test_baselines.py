"""The sparse baselines against dictionaries and full sorts."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from jaxrec.evaluation import untrained
from jaxrec.evaluation.baselines import (
    count_popularity,
    count_transitions,
    popularity_baseline,
)
from jaxrec.evaluation.cases import CaseHistories, case_histories
from jaxrec.evaluation.ranking import item_priority, ranks_from_scores, top_from_scores
from jaxrec.evaluation.untrained import popularity_scores

ITEMS, USERS = 25, 60


@pytest.fixture
def world():
    generator = np.random.default_rng(11)
    lengths = generator.integers(0, 12, USERS)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    # A skewed catalogue: many ties, many repeats, and items that never occur.
    item = (generator.random(offsets[-1]) ** 3 * (ITEMS - 3)).astype(np.int32)
    count_end = offsets[:-1] + generator.integers(0, lengths + 1)
    return offsets, count_end, item


def slow_counts(offsets, count_end, item):
    popularity, follows = Counter(), Counter()
    for begin, end in zip(offsets[:-1], count_end):
        events = item[begin:end].tolist()
        popularity.update(events)
        follows.update(pairwise(events))
    return popularity, follows


def slow_order(history, popularity, follows, masked):
    last = history[-1] if history else None
    candidates = [i for i in range(ITEMS) if not (masked and i in history)]
    return sorted(candidates, key=lambda i: (-follows[last, i], -popularity[i], i))


def test_counts_equal_dictionaries(world):
    popularity, follows = slow_counts(*world)
    counter = count_transitions(*world, num_items=ITEMS)
    assert counter.popularity.tolist() == [popularity[i] for i in range(ITEMS)]
    table = {
        (source, int(counter.successor[z])): int(counter.count[z])
        for source in range(ITEMS)
        for z in range(counter.offsets[source], counter.offsets[source + 1])
    }
    assert table == dict(follows)
    assert count_popularity(*world, num_items=ITEMS).sum() == (world[1] - world[0][:-1]).sum()


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("kind", ["transitions", "popularity"])
def test_ranks_and_lists_equal_a_full_sort(world, masked, kind, monkeypatch):
    monkeypatch.setattr(untrained, "BLOCK", 7)
    offsets, _, item = world
    popularity, follows = slow_counts(*world)
    baseline = count_transitions(*world, num_items=ITEMS)
    if kind == "popularity":
        baseline, follows = popularity_baseline(baseline.popularity), Counter()
    positions = np.arange(len(item))
    histories = case_histories(offsets, item, positions)
    told = [item[a:b].tolist() for a, b in zip(histories.start, histories.end)]
    orders = [slow_order(history, popularity, follows, masked) for history in told]
    expected = [1 + o.index(t) if t in o else 0 for o, t in zip(orders, item.tolist())]
    ranks = baseline.ranks(histories, item, seen_masked=masked)
    assert ranks.tolist() == expected

    for k in (1, 6, ITEMS + 2):
        top = baseline.top_items(histories, k, seen_masked=masked)
        lists = [row[good].tolist() for row, good in zip(top.items, top.valid)]
        assert lists == [order[:k] for order in orders]
        assert np.isneginf(top.scores[~top.valid]).all()

    dense = baseline.scores(histories)
    seen = histories if masked else None
    np.testing.assert_array_equal(ranks_from_scores(dense, item, seen=seen), ranks)
    np.testing.assert_array_equal(top_from_scores(dense, ITEMS + 2, seen=seen).scores, top.scores)


def test_scores_are_whole_counts_plus_a_fraction():
    log, offsets = np.array([0, 1, 0, 1, 0, 2]), np.array([0, 6])
    counter = count_transitions(offsets, np.array([6]), log, num_items=4)
    history = CaseHistories(np.array([0]), np.array([1]), log)
    np.testing.assert_allclose(counter.scores(history), [[3 / 4, 2 + 2 / 4, 1 + 1 / 4, 0]])
    np.testing.assert_allclose(popularity_scores(np.array([3, 2, 1, 0])), [0.75, 0.5, 0.25, 0])


def test_ties_follow_popularity_then_the_lower_item(world):
    baseline = popularity_baseline(np.array([4, 9, 4, 9]))
    empty = CaseHistories(np.array([0]), np.array([0]), np.array([0]))
    assert baseline.top_items(empty, 4, seen_masked=True).items.tolist() == [[1, 3, 0, 2]]
    assert item_priority(baseline.popularity).tolist() == [2, 0, 3, 1]


def test_transitions_do_not_cross_users():
    log, offsets = np.array([0, 1, 2, 3]), np.array([0, 2, 2, 4])
    counter = count_transitions(offsets, np.array([2, 2, 4]), log, num_items=4)
    assert counter.offsets.tolist() == [0, 1, 1, 2, 2]
    assert counter.successor.tolist() == [1, 3]


def test_an_empty_log_gives_popularity_zero():
    counter = count_transitions(np.array([0]), np.zeros(0, int), np.zeros(0, np.int32), num_items=3)
    empty = CaseHistories(np.array([0]), np.array([0]), np.zeros(0, np.int32))
    assert counter.top_items(empty, 2, seen_masked=True).items.tolist() == [[0, 1]]


def test_wrong_input_is_refused(world):
    offsets, count_end, item = world
    with pytest.raises(ValueError, match="for user 0"):
        count_popularity(offsets, count_end + 100, item, ITEMS)
    counter = count_transitions(offsets, count_end, item, ITEMS)
    history = CaseHistories(np.array([0]), np.array([1]), item)
    with pytest.raises(ValueError, match="rows 0 to 24"):
        counter.ranks(history, np.array([25]), seen_masked=True)
    with pytest.raises(ValueError, match="k=0"):
        counter.top_items(history, 0, seen_masked=True)
