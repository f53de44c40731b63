"""The baselines reproduce known numbers on Amazon-2014, to the last printed digit.

Leave-one-out, whole catalogue, history = everything before the last item, seen items masked, ties
by the popularity that was counted and then the lower item. File order, where the days' order leaks,
and `shuffle:SEED`. Columns: R@5 N@5 R@10 N@10; the shuffled ones R@10 N@10.
"""

import numpy as np
import pytest

from jaxrec.data.dataset import write_dataset
from jaxrec.data.histories import prepare
from jaxrec.evaluation.baselines import count_popularity, count_transitions, popularity_baseline
from jaxrec.evaluation.cases import case_histories
from jaxrec.evaluation.item_knn import count_neighbours
from jaxrec.evaluation.metrics import rank_metrics
from jaxrec.evaluation.ranking import ranks_in_lists
from jaxrec.evaluation.second_order import count_second_order

pytestmark = pytest.mark.real_data

COLUMNS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
GOLDEN = {
    "beauty": {
        "counts": (22363, 12101, 198502),
        "popularity": (0.0075, 0.0041, 0.0115, 0.0055),
        "transitions": (0.0513, 0.0389, 0.0668, 0.0439),
        "with_validation": (0.0596, 0.0451, 0.0757, 0.0503),
        # First measured here; no outside number is known.
        "order_2": (0.0591, 0.0442, 0.0757, 0.0496),
        "item_knn": (0.0426, 0.0301, 0.0622, 0.0364),
        "shuffled": [(0.0609, 0.0368), (0.0615, 0.0376), (0.0629, 0.0385)],
        "bands": ((0.0595, 0.0625), (0.0355, 0.0385)),
    },
    "sports": {
        "counts": (35598, 18357, 296337),
        "popularity": (0.0057, 0.0041, 0.0091, 0.0052),
        "transitions": (0.0285, 0.0207, 0.0369, 0.0234),
        "with_validation": (0.0309, 0.0227, 0.0410, 0.0259),
        "order_2": (0.0307, 0.0221, 0.0408, 0.0254),
        "item_knn": (0.0259, 0.018, 0.0356, 0.0211),
        "shuffled": [(0.0349, 0.0207), (0.0354, 0.0213), (0.0358, 0.0213)],
        "bands": ((0.0335, 0.0365), (0.0205, 0.0215)),
    },
}


@pytest.fixture(scope="module", params=sorted(GOLDEN))
def log(request, shared_data):
    path = shared_data / f"amazon2014-{request.param}" / "sequences.txt"
    lines = [line.split()[1:] for line in path.read_text().splitlines()]
    offsets = np.concatenate([[0], np.cumsum([len(line) for line in lines])])
    item = np.array([int(token) - 1 for line in lines for token in line], np.int32)
    return GOLDEN[request.param], offsets, item


def rounded(ranks):
    metrics = rank_metrics(ranks, cutoffs=(5, 10))
    return tuple(round(metrics[name], 4) for name in COLUMNS)


def test_baselines_give_the_known_numbers(log):
    golden, offsets, item = log
    num_items = int(item.max()) + 1
    assert (len(offsets) - 1, num_items, len(item)) == golden["counts"]

    ends = offsets[1:]
    targets = item[ends - 1]
    histories = case_histories(offsets, item, ends - 1)
    popularity = popularity_baseline(count_popularity(offsets, ends - 2, item, num_items))
    transitions = count_transitions(offsets, ends - 2, item, num_items)
    with_validation = count_transitions(offsets, ends - 1, item, num_items)

    ranks = transitions.ranks(histories, targets, seen_masked=True)
    assert rounded(ranks) == golden["transitions"]
    assert rounded(popularity.ranks(histories, targets, seen_masked=True)) == golden["popularity"]
    assert (
        rounded(with_validation.ranks(histories, targets, seen_masked=True))
        == golden["with_validation"]
    )

    top = transitions.top_items(histories, 10, seen_masked=True)
    in_list = ranks_in_lists(top.items, top.valid, targets)
    np.testing.assert_array_equal(in_list, np.where(ranks <= 10, ranks, 0))


@pytest.mark.parametrize("name", ["order_2", "item_knn"])
def test_the_other_counters_give_the_recorded_numbers(log, name):
    golden, offsets, item = log
    count = {"order_2": count_second_order, "item_knn": count_neighbours}[name]
    ends = offsets[1:] - 1
    counter = count(offsets, ends, item, int(item.max()) + 1)
    ranks = counter.ranks(case_histories(offsets, item, ends), item[ends], seen_masked=True)
    assert rounded(ranks) == golden[name]


def dated_log(path, folder):
    """The dataset folder of sequences.txt and timestamps.txt, items by number and without texts."""
    events = {}
    for column, file in (("item", "sequences.txt"), ("timestamp", "timestamps.txt")):
        lines = [line.split() for line in (path / file).read_text().splitlines()]
        events["user"] = [line[0] for line in lines for _ in line[1:]]
        events[column] = [int(word) for line in lines for word in line[1:]]
    items = {"item": [str(number + 1) for number in range(max(events["item"]))]}
    events["item"] = [str(number) for number in events["item"]]
    return write_dataset(folder, events, items, name="dated", source="Amazon-2014", licence="")


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_shuffled_days_cost_the_counter_its_lead(name, shared_data, tmp_path):
    """Validation item counted. Transitions in file order are partly the order of the raw dump."""
    golden = GOLDEN[name]
    dataset = dated_log(shared_data / f"amazon2014-{name}", tmp_path / "log")
    found = []
    for seed in range(3):
        histories = prepare(dataset, ties=f"shuffle:{seed}")
        offsets, item, ends = histories.offsets, histories.item, histories.offsets[1:] - 1
        counter = count_transitions(offsets, ends, item, histories.num_items)
        cases = case_histories(offsets, item, ends)
        found.append(rounded(counter.ranks(cases, item[ends], seen_masked=True))[2:])
    assert found == golden["shuffled"]
    # Independent measurements, over three shuffles of their own, gave .060-.061 and .036-.038 on
    # Beauty, .034-.036 and .021 on Sports. On Beauty one seed is worth .0012 and .0009 (standard
    # deviation of seeds 0 to 15, whose means are .0616 and .0376): the mean of three fits both.
    for value, (low, high) in zip(np.mean(found, axis=0), golden["bands"]):
        assert low <= value <= high
    for honest in found:
        assert all(np.array(honest) < 0.9 * np.array(golden["with_validation"][2:]))
