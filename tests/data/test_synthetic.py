import numpy as np
import pytest

from jaxrec.data.dataset import item_table, read_dataset
from jaxrec.data.histories import prepare
from jaxrec.data.splits import LeaveOneOut, training_counts
from jaxrec.data.synthetic import SyntheticWorld
from jaxrec.files import folder_hash

SMALL = SyntheticWorld(items=60, users=300, categories=3, subcategories=2, mean_events=8.0, seed=1)


def written(world, folder):
    world.write(folder)
    return read_dataset(folder)


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    world = SyntheticWorld()
    histories = prepare(written(world, tmp_path_factory.mktemp("world") / "d"))
    return world, histories


def test_the_bayes_hit_rate_is_what_held_out_targets_show(default):
    world, histories = default
    split = LeaveOneOut()(histories)
    for cases in (split.validation, split.test):
        last, target = histories.item[cases - 1], histories.item[cases]
        expected = world.bayes_hit_rate(last)
        ranking = world.bayes_ranking(last, 50)
        for k, rate in expected.items():
            found = (ranking[:, :k] == target[:, None]).any(axis=1).mean()
            # Four standard errors of a mean of at most this variance.
            assert abs(found - rate) < 4 * np.sqrt(rate * (1 - rate) / len(cases)), k


def test_popularity_is_far_below_the_best(default):
    world, histories = default
    split = LeaveOneOut()(histories)
    popular = np.argsort(-world.hierarchy.popularity)[:10]
    popularity = np.isin(histories.item[split.test], popular).mean()
    best = world.bayes_hit_rate(histories.item[split.test - 1])[10]
    assert popularity < 0.3 * best < best < 0.9


def test_transitions_are_those_of_the_matrix(default):
    world, histories = default
    matrix = world.transition(np.arange(world.items, dtype=np.int32))
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, rtol=1e-12)
    inner = np.delete(np.arange(histories.num_events - 1), histories.offsets[1:-1] - 1)
    first, second = histories.item[inner], histories.item[inner + 1]
    tree, count = world.hierarchy, len(inner)
    rest = 1 - world.successor - world.stay
    for found, expected in (
        (second == tree.successor[first], matrix[first, tree.successor[first]].mean()),
        (
            tree.subcategory[second] == tree.subcategory[first],
            np.where(tree.subcategory[first][:, None] == tree.subcategory, matrix[first], 0)
            .sum(axis=1)
            .mean(),
        ),
        (second == 7, matrix[first, 7].mean()),
    ):
        assert abs(found.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / count)
    row = matrix[3]
    outside = tree.subcategory != tree.subcategory[3]
    outside[tree.successor[3]] = False
    np.testing.assert_allclose(row[outside], rest * tree.popularity[outside])


def test_first_events_follow_popularity(default):
    world, histories = default
    first = np.bincount(histories.item[histories.offsets[:-1]], minlength=world.items)
    likely = np.argsort(-world.hierarchy.popularity)[:50]
    expected = world.hierarchy.popularity[likely].sum()
    found = first[likely].sum() / world.users
    assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / world.users)


def test_bayes_ranking_is_the_sorted_matrix():
    last = np.array([5, 0, 5, 59], np.int32)
    matrix = SMALL.transition(last)
    ranking = SMALL.bayes_ranking(last, 4)
    for row, items in zip(matrix, ranking):
        assert items.tolist() == sorted(range(60), key=lambda item: (-row[item], item))[:4]
    rates = SMALL.bayes_hit_rate(last, (1, 60, 100))
    assert rates[1] == pytest.approx(matrix.max(axis=1).mean())
    assert rates[60] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(1.0)


def test_lengths_and_shape_of_the_world(default):
    world, histories = default
    assert (histories.num_users, histories.num_items) == (2000, 500)
    assert histories.lengths.min() == 5
    # The excess is geometric with mean 7: standard deviation sqrt(7 * 8).
    assert abs(histories.lengths.mean() - 12) < 4 * np.sqrt(56 / 2000)
    assert training_counts(histories, LeaveOneOut()(histories)).min() == 3
    assert histories.items.tolist() == world.item_ids()
    assert histories.item.tolist() == world.sequences()[0].tolist()
    gaps = np.diff(histories.time)
    assert (np.delete(gaps, histories.offsets[1:-1] - 1) > 0).all()


def test_titles_come_from_the_tree(tmp_path):
    dataset = written(SMALL, tmp_path / "d")
    table = item_table(dataset, SMALL.item_ids())
    assert len(set(table["title"])) == 60
    for title, brand, leaf in zip(table["title"], table["brand"], table["subcategory"]):
        assert title.startswith(f"{brand} ")
        assert f" {leaf} " in title
    tree = SMALL.hierarchy
    for column, numbers in (
        ("category", tree.category),
        ("subcategory", tree.subcategory),
        ("brand", tree.brand),
    ):
        pairs = set(zip(table[column], numbers.tolist()))
        assert len({name for name, _ in pairs}) == len(pairs) == len(set(numbers.tolist()))
    assert len({(leaf, root) for leaf, root in zip(tree.subcategory, tree.category)}) == 6
    assert (tree.category[tree.successor] == tree.category).all()
    assert (tree.successor != np.arange(60)).all()


def test_large_worlds_have_distinct_names():
    world = SyntheticWorld(items=2000, users=1, categories=20, subcategories=10, brands=5)
    frame = world.item_frame()
    assert len(set(frame["category"])) == 20
    assert len(set(frame["subcategory"])) == 200
    assert len(set(frame["title"])) == 2000


def test_equal_worlds_write_equal_folders(tmp_path):
    SMALL.write(tmp_path / "a")
    SyntheticWorld(**SMALL.fingerprint()).write(tmp_path / "b")
    assert folder_hash(tmp_path / "a") == folder_hash(tmp_path / "b")
    other = SyntheticWorld(**{**SMALL.fingerprint(), "seed": 2})
    assert (other.sequences()[0][:50] != SMALL.sequences()[0][:50]).any()


def test_pages(tmp_path):
    world = SyntheticWorld(**{**SMALL.fingerprint(), "page_size": 6, "order_rate": 0.4})
    dataset = written(world, tmp_path / "d")
    log = dataset.interactions()
    events = 0
    for (_, page), rows in log.group_by(["user", "page"], maintain_order=True):
        assert rows["timestamp"].n_unique() == 1, page
        assert rows["item"].n_unique() == rows.height <= 6
        assert rows["position"].to_list() == list(range(rows.height))
        assert (rows["event"] != "exposed").sum() == 1
        events += 1
    histories = prepare(dataset)
    assert histories.actions == ("clicked", "ordered")
    assert histories.num_events == events
    # The pages show the same users as the world without pages.
    assert histories.item.tolist() == SMALL.sequences()[0].tolist()
    ordered = (histories.action == 1).mean()
    assert abs(ordered - 0.4) < 4 * np.sqrt(0.24 / events)
    assert log.height / events > 4
    everything = prepare(dataset, events=("exposed", "clicked", "ordered"))
    assert everything.num_events == log.height


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"items": 30}, "30 items for 20 subcategories"),
        ({"users": 0}, "start at 1"),
        ({"successor": 0.7, "stay": 0.4}, "together are at most 1"),
        ({"mean_events": 3.0}, "must be at least"),
        ({"page_size": 501}, r"page_size=501 must be in 0\.\.500"),
        ({"order_rate": 1.5}, "order_rate=1.5"),
    ],
)
def test_impossible_worlds(fields, message):
    with pytest.raises(ValueError, match=message):
        SyntheticWorld(**fields)


def test_a_world_of_fixed_lengths_and_successors_only():
    world = SyntheticWorld(users=50, mean_events=5.0, successor=1.0, stay=0.0)
    items, lengths = world.sequences()
    assert (lengths == 5).all()
    rows = items.reshape(50, 5)
    for step in range(4):
        assert (rows[:, step + 1] == world.hierarchy.successor[rows[:, step]]).all()
    assert world.bayes_hit_rate(rows[:, -1])[1] == pytest.approx(1.0)


def test_pages_without_orders_keep_their_actions(tmp_path):
    world = SyntheticWorld(**{**SMALL.fingerprint(), "page_size": 3, "order_rate": 0.0})
    histories = prepare(written(world, tmp_path / "d"))
    assert histories.actions == ("clicked", "ordered")
    assert not histories.action.any()
