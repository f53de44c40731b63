"""Item-kNN against sets, double loops and full sorts."""

import math

import numpy as np
import pytest

from jaxrec.evaluation import item_knn, untrained
from jaxrec.evaluation.cases import CaseHistories, case_histories
from jaxrec.evaluation.item_knn import UNIT, count_neighbours
from jaxrec.evaluation.ranking import ranks_from_scores, top_from_scores
from jaxrec.evaluation.untrained import UntrainedRanker

ITEMS = 25


def slow_neighbours(offsets, count_end, item, neighbours, shrinkage):
    """(popularity, neighbours of each item with their similarity), word by word."""
    owned = [item[a:b].tolist() for a, b in zip(offsets[:-1], count_end)]
    popularity = [sum(events.count(i) for events in owned) for i in range(ITEMS)]
    users = [{u for u, events in enumerate(owned) if i in events} for i in range(ITEMS)]
    kept = []
    for i in range(ITEMS):
        similar = {}
        for j in range(ITEMS):
            if j != i and users[i] & users[j]:
                norm = math.sqrt(len(users[i]) * len(users[j])) + shrinkage
                similar[j] = round(len(users[i] & users[j]) / norm / UNIT)
        order = sorted(similar, key=lambda j: (-similar[j], -popularity[j], j))
        kept.append({j: similar[j] for j in order[:neighbours]})
    return popularity, kept


def slow_order(history, popularity, kept, masked):
    def key(i):
        return -sum(kept[j].get(i, 0) for j in set(history)), -popularity[i], i

    return sorted((i for i in range(ITEMS) if not (masked and i in history)), key=key)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("neighbours", "shrinkage"), [(2, 0.0), (100, 0.0), (4, 3.5)])
def test_ranks_and_lists_equal_a_full_sort(make_log, masked, neighbours, shrinkage, monkeypatch):
    monkeypatch.setattr(untrained, "BLOCK", 7)
    log = make_log(5)
    offsets, _, item = log
    popularity, kept = slow_neighbours(*log, neighbours, shrinkage)
    counter = count_neighbours(*log, num_items=ITEMS, neighbours=neighbours, shrinkage=shrinkage)
    assert isinstance(counter, UntrainedRanker)
    assert counter.popularity.tolist() == popularity
    for i in range(ITEMS):
        row = slice(counter.offsets[i], counter.offsets[i + 1])
        mine = zip(counter.neighbour[row].tolist(), counter.similarity[row].tolist())
        assert list(mine) == list(kept[i].items())

    histories = case_histories(offsets, item, np.arange(len(item)))
    told = [item[a:b].tolist() for a, b in zip(histories.start, histories.end)]
    orders = [slow_order(history, popularity, kept, masked) for history in told]
    expected = [1 + o.index(t) if t in o else 0 for o, t in zip(orders, item.tolist())]
    ranks = counter.ranks(histories, item, seen_masked=masked)
    assert ranks.tolist() == expected
    for k in (1, 6, ITEMS + 2):
        top = counter.top_items(histories, k, seen_masked=masked)
        lists = [row[good].tolist() for row, good in zip(top.items, top.valid)]
        assert lists == [order[:k] for order in orders]

    dense = counter.scores(histories)
    seen = histories if masked else None
    np.testing.assert_array_equal(ranks_from_scores(dense, item, seen=seen), ranks)
    np.testing.assert_array_equal(top_from_scores(dense, ITEMS + 2, seen=seen).scores, top.scores)


def test_similarity_is_the_cosine_of_the_columns(make_log):
    offsets, count_end, item = make_log(6)
    owns = np.zeros((len(count_end), ITEMS))
    for user, (begin, end) in enumerate(zip(offsets[:-1], count_end)):
        owns[user, item[begin:end]] = 1
    norm = np.linalg.norm(owns, axis=0)
    expected = owns.T @ owns / np.maximum(np.outer(norm, norm), 1)
    np.fill_diagonal(expected, 0)
    counter = count_neighbours(offsets, count_end, item, ITEMS)
    got = np.zeros((ITEMS, ITEMS))
    got[np.repeat(np.arange(ITEMS), np.diff(counter.offsets)), counter.neighbour] = (
        counter.similarity * UNIT
    )
    np.testing.assert_allclose(got, expected, atol=UNIT)
    assert (got > 0).sum() > ITEMS


def test_blocks_change_nothing(make_log, monkeypatch):
    log = make_log(7)
    whole = count_neighbours(*log, num_items=ITEMS, neighbours=3)
    monkeypatch.setattr(item_knn, "PAIRS", 5)
    parts = count_neighbours(*log, num_items=ITEMS, neighbours=3)
    for name in ("popularity", "offsets", "neighbour", "similarity"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


def test_by_hand():
    # Users {0, 1}, {0, 1, 2}, {2, 3}: cos(0, 1) = 1, cos(0, 2) = 1/2, cos(2, 3) = 1/sqrt(2).
    log, offsets = np.array([0, 1, 1, 0, 1, 2, 2, 3]), np.array([0, 3, 6, 8])
    counter = count_neighbours(offsets, offsets[1:], log, num_items=5)
    history = CaseHistories(np.array([3, 7]), np.array([4, 8]), log)
    top = counter.top_items(history, 5, seen_masked=True)
    # Item 1 was taken three times, yet repeats do not count in a cosine; they count in popularity.
    assert top.items.tolist() == [[1, 2, 3, 4, -1], [2, 1, 0, 4, -1]]
    np.testing.assert_allclose(
        top.scores[:, :2] * UNIT, [[1, 1 / 2], [1 / math.sqrt(2), 0]], atol=2 * UNIT
    )
    shrunk = count_neighbours(offsets, offsets[1:], log, num_items=5, shrinkage=2.0)
    row = slice(shrunk.offsets[0], shrunk.offsets[1])
    assert shrunk.neighbour[row].tolist() == [1, 2]
    np.testing.assert_allclose(shrunk.similarity[row] * UNIT, [2 / 4, 1 / 4], atol=UNIT)


def test_sums_of_the_same_terms_tie_in_any_order():
    # Items 0, 1, 2 with different similarities to 3 and, permuted, to 4.
    generator = np.random.default_rng(0)
    similarity = generator.integers(1, 2**24, 3)
    counter = item_knn.ItemNeighbours(
        popularity=np.array([1, 1, 1, 1, 2]),
        offsets=np.array([0, 2, 4, 6, 6, 6]),
        neighbour=np.array([3, 4] * 3, np.int32),
        similarity=np.ravel([[similarity[j], similarity[(j + 1) % 3]] for j in range(3)]),
    )
    log = np.array([0, 1, 2, 2, 1, 0])
    histories = CaseHistories(np.array([0, 3]), np.array([3, 6]), log)
    candidates = counter.candidates(histories)
    assert candidates.strength.tolist() == [int(similarity.sum())] * 4
    # Item 4 is the more popular one.
    assert counter.top_items(histories, 2, seen_masked=True).items.tolist() == [[4, 3], [4, 3]]


def test_an_empty_log_and_an_empty_history_give_popularity(make_log):
    none = np.zeros(0, np.int32)
    counter = count_neighbours(np.array([0]), np.zeros(0, int), none, num_items=3)
    empty = CaseHistories(np.array([0]), np.array([0]), none)
    assert counter.top_items(empty, 2, seen_masked=True).items.tolist() == [[0, 1]]
    counter = count_neighbours(*make_log(8), num_items=ITEMS)
    by_popularity = np.argsort(-counter.popularity, kind="stable")
    assert counter.top_items(empty, 9, seen_masked=True).items.tolist() == [
        by_popularity[:9].tolist()
    ]


def test_wrong_input_is_refused(make_log):
    offsets, count_end, item = make_log(0)
    with pytest.raises(ValueError, match="for user 0"):
        count_neighbours(offsets, count_end + 100, item, ITEMS)
    with pytest.raises(ValueError, match="neighbours=0"):
        count_neighbours(offsets, count_end, item, ITEMS, neighbours=0)
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="shrinkage"):
            count_neighbours(offsets, count_end, item, ITEMS, shrinkage=wrong)
