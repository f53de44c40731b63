"""Our metrics against RecBole's, written again from their definitions (arXiv:2011.01731).

RecBole's evaluator knows no ranks. It looks at the matrix `pos_index` (is the item at this place of
the list one of the user's true items?) and at `pos_len` (how many true items the user has), and
every metric is a matrix with one column a cutoff. With one true item a case the numbers must be
ours to the last bit, from our lists alone.
"""

import numpy as np
import pytest

from jaxrec.evaluation.baselines import count_transitions
from jaxrec.evaluation.cases import case_histories
from jaxrec.evaluation.item_knn import count_neighbours
from jaxrec.evaluation.metrics import per_case_metrics, rank_metrics
from jaxrec.evaluation.recommendations import write_recommendations
from jaxrec.evaluation.second_order import count_second_order

ITEMS = 25
LENGTH = 20
CUTOFFS = (1, 5, 10, 20)


def recbole_metrics(lists, truth):
    """Columns K = 1 .. k of every metric, float64[c, k].

    Args:
        lists: recommended items, best first; -1 where a list is short.
        truth: set of true items of each case.
    """
    pos_index = np.array([[item in true for item in row] for row, true in zip(lists, truth)])
    pos_len = np.array([len(true) for true in truth])[:, None]
    place = np.arange(1, pos_index.shape[1] + 1)
    hits = np.cumsum(pos_index, axis=1)
    discount = 1 / np.log2(place + 1)
    ideal = np.cumsum(discount)[np.minimum(pos_len, place) - 1]
    first = np.where(pos_index.any(axis=1), pos_index.argmax(axis=1) + 1, np.inf)[:, None]
    return {
        "hit": (hits > 0).astype(float),
        "recall": hits / pos_len,
        "precision": hits / place,
        "ndcg": np.cumsum(np.where(pos_index, discount, 0), axis=1) / ideal,
        "mrr": np.where(first <= place, 1 / first, 0),
    }


def assert_parity(lists, targets, ranks):
    theirs = recbole_metrics(lists.tolist(), [{target} for target in targets.tolist()])
    ours = per_case_metrics(ranks, CUTOFFS)
    for cutoff in CUTOFFS:
        column = {name: values[:, cutoff - 1] for name, values in theirs.items()}
        for name in ("recall", "ndcg", "mrr"):
            np.testing.assert_array_equal(ours[f"{name}@{cutoff}"], column[name])
            mean = rank_metrics(ranks, CUTOFFS)[f"{name}@{cutoff}"]
            assert mean == column[name].mean()
        np.testing.assert_array_equal(ours[f"recall@{cutoff}"], column["hit"])
        np.testing.assert_array_equal(ours[f"recall@{cutoff}"] / cutoff, column["precision"])
    assert 0 < ours["recall@10"].mean() < 1


def test_the_definitions_by_hand():
    got = recbole_metrics([[7, 3, 9], [1, 2, -1]], [{3, 9}, {5}])
    np.testing.assert_allclose(got["recall"], [[0, 0.5, 1], [0, 0, 0]])
    np.testing.assert_allclose(got["precision"], [[0, 1 / 2, 2 / 3], [0, 0, 0]])
    np.testing.assert_allclose(got["mrr"], [[0, 1 / 2, 1 / 2], [0, 0, 0]])
    second, third = 1 / np.log2(3), 1 / np.log2(4)
    np.testing.assert_allclose(
        got["ndcg"][0], [0, second / (1 + second), (second + third) / (1 + second)]
    )


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("count", [count_transitions, count_second_order, count_neighbours])
@pytest.mark.parametrize("seed", range(3))
def test_random_worlds(make_log, seed, count, masked):
    offsets, count_end, item = make_log(seed)
    counter = count(offsets, count_end, item, ITEMS)
    positions = np.flatnonzero(np.arange(len(item)) >= np.repeat(count_end, np.diff(offsets)))
    histories = case_histories(offsets, item, positions)
    ranks = counter.ranks(histories, item[positions], seen_masked=masked)
    top = counter.top_items(histories, LENGTH, seen_masked=masked)
    assert_parity(top.items, item[positions], ranks)


def read_lists(folder, users, names):
    """The lists of the file that a run leaves, as catalogue rows, -1 where a list is short."""
    import polars as pl

    table = pl.read_parquet(folder / "recommendations.parquet")
    row = {user: number for number, user in enumerate(users)}
    number = {name: place for place, name in enumerate(names)}
    lists = np.full((len(users), int(table["rank"].max())), -1)
    for user, rank, item in table.select("user", "rank", "item").iter_rows():
        lists[row[user], rank - 1] = number[item]
    return lists


def test_the_file_of_a_run_gives_the_same(make_log, tmp_path):
    offsets, count_end, item = make_log(4)
    counter = count_transitions(offsets, count_end, item, ITEMS)
    users = np.flatnonzero(np.diff(offsets) > 1)
    positions = offsets[users + 1] - 1
    histories = case_histories(offsets, item, positions)
    top = counter.top_items(histories, LENGTH, seen_masked=True)
    names = [f"item {i}" for i in range(ITEMS)]
    write_recommendations(tmp_path, users.astype(str), names, *top)
    lists = read_lists(tmp_path, users.astype(str), names)
    np.testing.assert_array_equal(lists, top.items)
    ranks = counter.ranks(histories, item[positions], seen_masked=True)
    assert_parity(lists, item[positions], ranks)


@pytest.mark.real_data
def test_beauty(shared_data):
    path = shared_data / "amazon2014-beauty/sequences.txt"
    lines = [line.split()[1:] for line in path.read_text().splitlines()]
    offsets = np.concatenate([[0], np.cumsum([len(line) for line in lines])])
    item = np.array([int(token) - 1 for line in lines for token in line], np.int32)
    positions = offsets[1:] - 1
    counter = count_transitions(offsets, positions, item, int(item.max()) + 1)
    histories = case_histories(offsets, item, positions)
    ranks = counter.ranks(histories, item[positions], seen_masked=True)
    top = counter.top_items(histories, LENGTH, seen_masked=True)
    assert_parity(top.items, item[positions], ranks)
