"""The baselines reproduce known numbers on Amazon-2014, to the last printed digit.

File order, leave-one-out, whole catalogue, history = everything before the last item, seen items
masked, ties by training popularity and then the lower item. Columns: R@5 N@5 R@10 N@10.
"""

import numpy as np
import pytest

from jaxrec.evaluation.baselines import count_popularity, count_transitions, popularity_baseline
from jaxrec.evaluation.cases import case_histories
from jaxrec.evaluation.metrics import rank_metrics
from jaxrec.evaluation.ranking import ranks_in_lists

pytestmark = pytest.mark.real_data

COLUMNS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
GOLDEN = {
    "beauty": {
        "counts": (22363, 12101, 198502),
        "popularity": (0.0075, 0.0041, 0.0115, 0.0055),
        "transitions": (0.0513, 0.0389, 0.0668, 0.0439),
        "with_validation": (0.0596, 0.0451, 0.0757, 0.0503),
    },
    "sports": {
        "counts": (35598, 18357, 296337),
        "popularity": (0.0057, 0.0041, 0.0091, 0.0052),
        "transitions": (0.0285, 0.0207, 0.0369, 0.0234),
        "with_validation": (0.0309, 0.0227, 0.0410, 0.0259),
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
