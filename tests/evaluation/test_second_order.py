"""Order-2 transitions against dictionaries and full sorts."""

from collections import Counter

import numpy as np
import pytest

from jaxrec.evaluation import untrained
from jaxrec.evaluation.baselines import count_transitions
from jaxrec.evaluation.cases import CaseHistories, case_histories
from jaxrec.evaluation.ranking import ranks_from_scores, top_from_scores
from jaxrec.evaluation.second_order import count_second_order
from jaxrec.evaluation.untrained import UntrainedRanker

ITEMS = 8
"""Few, so that pairs of items come back and order 2 has something to say."""


def slow_counts(offsets, count_end, item):
    """Counts of sequences of one, two and three items, in plain loops."""
    counts = Counter()
    for begin, end in zip(offsets[:-1], count_end):
        events = item[begin:end].tolist()
        for place in range(len(events)):
            for size in (1, 2, 3):
                if place + 1 >= size:
                    counts[tuple(events[place + 1 - size : place + 1])] += 1
    return counts


def slow_order(history, counts, masked):
    def key(i):
        two = counts[(*history[-2:], i)] if len(history) > 1 else 0
        one = counts[(history[-1], i)] if history else 0
        return -two, -one, -counts[(i,)], i

    return sorted((i for i in range(ITEMS) if not (masked and i in history)), key=key)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_ranks_and_lists_equal_a_full_sort(make_log, seed, masked, monkeypatch):
    monkeypatch.setattr(untrained, "BLOCK", 7)
    log = make_log(seed, ITEMS)
    offsets, _, item = log
    counts = slow_counts(*log)
    counter = count_second_order(*log, num_items=ITEMS)
    assert isinstance(counter, UntrainedRanker)
    histories = case_histories(offsets, item, np.arange(len(item)))
    told = [item[a:b].tolist() for a, b in zip(histories.start, histories.end)]
    orders = [slow_order(history, counts, masked) for history in told]
    expected = [1 + o.index(t) if t in o else 0 for o, t in zip(orders, item.tolist())]
    ranks = counter.ranks(histories, item, seen_masked=masked)
    assert ranks.tolist() == expected
    # The two orders differ here, so that a counter that ignores order 2 would fail.
    assert (ranks != counter.first.ranks(histories, item, seen_masked=masked)).any()

    for k in (1, 3, ITEMS + 2):
        top = counter.top_items(histories, k, seen_masked=masked)
        lists = [row[good].tolist() for row, good in zip(top.items, top.valid)]
        assert lists == [order[:k] for order in orders]

    dense = counter.scores(histories)
    seen = histories if masked else None
    np.testing.assert_array_equal(ranks_from_scores(dense, item, seen=seen), ranks)
    np.testing.assert_array_equal(top_from_scores(dense, ITEMS + 2, seen=seen).scores, top.scores)


def test_counts_equal_dictionaries(make_log):
    log = make_log(3, ITEMS)
    counts = slow_counts(*log)
    counter = count_second_order(*log, num_items=ITEMS)
    table = {
        (*divmod(int(pair), ITEMS), int(counter.successor[z])): int(counter.count[z])
        for q, pair in enumerate(counter.pairs)
        for z in range(counter.offsets[q], counter.offsets[q + 1])
    }
    assert table == {key: count for key, count in counts.items() if len(key) == 3}
    assert max(table.values()) > 1
    np.testing.assert_array_equal(
        counter.first.count, count_transitions(*log, num_items=ITEMS).count
    )


def test_one_order_2_count_beats_any_order_1_count():
    # After 0, 1 came 2 once; after 1 came 3 five times, never after 0, 1.
    users = [[0, 1, 2], *[[4, 1, 3]] * 5]
    offsets = np.cumsum([0, *map(len, users)])
    log = np.concatenate(users)
    counter = count_second_order(offsets, offsets[1:], log, num_items=5)
    pairs = np.array([0, 1, 4, 1, 1, 0])
    histories = CaseHistories(np.array([0, 2, 1, 4]), np.array([2, 4, 2, 6]), pairs)
    top = counter.top_items(histories, 2, seen_masked=False)
    # In order: 0, 1; then 4, 1; then 1 alone: order 1; then 1, 0, a pair never seen: order 1 of 0.
    assert top.items.tolist() == [[2, 3], [3, 2], [3, 2], [1, 3]]
    # Strengths are 1 * (5 + 1) + 1 and 5; popularity is 1, 6, 1, 5, 5 of 6.
    np.testing.assert_allclose(top.scores[0], [7 + 1 / 7, 5 + 5 / 7])


def test_triples_do_not_cross_users_nor_the_end_of_counting():
    log, offsets = np.array([0, 1, 2, 3, 0, 1, 4]), np.array([0, 2, 4, 7])
    counter = count_second_order(offsets, np.array([2, 4, 6]), log, num_items=5)
    assert len(counter.pairs) == len(counter.count) == 0
    history = CaseHistories(np.array([4]), np.array([6]), log)
    assert counter.top_items(history, 3, seen_masked=True).items.tolist() == [[2, 3, 4]]
    whole = count_second_order(offsets, np.array([2, 4, 7]), log, num_items=5)
    assert whole.top_items(history, 3, seen_masked=True).items.tolist() == [[4, 2, 3]]


def test_an_empty_log_gives_popularity_zero():
    none = np.zeros(0, np.int32)
    counter = count_second_order(np.array([0]), np.zeros(0, int), none, num_items=3)
    empty = CaseHistories(np.array([0]), np.array([0]), none)
    assert counter.top_items(empty, 2, seen_masked=True).items.tolist() == [[0, 1]]


def test_wrong_input_is_refused(make_log):
    offsets, count_end, item = make_log(0)
    with pytest.raises(ValueError, match="for user 0"):
        count_second_order(offsets, count_end + 100, item, 25)
    counter = count_second_order(offsets, count_end, item, 25)
    history = CaseHistories(np.array([0]), np.array([1]), item)
    with pytest.raises(ValueError, match="rows 0 to 24"):
        counter.ranks(history, np.array([-1]), seen_masked=True)
    with pytest.raises(ValueError, match="k=0"):
        counter.top_items(history, 0, seen_masked=True)
