import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_logs import histories_of, write_log

from jaxrec.data.dataset import DataError
from jaxrec.data.grouping import k_core, order_events, parse_ties
from jaxrec.data.histories import Histories, check_rows, prepare, same_time_ties

# user, item, time: unsorted, with ties in time and items out of the order of the log
ROWS = [("b", 3, 5), ("a", 2, 9), ("a", 1, 9), ("a", 3, 1), ("b", 1, 5), ("b", 2, 5)]


def as_lists(histories):
    return {
        str(user): [str(histories.items[row]) for row in histories.item[histories.history(index)]]
        for index, user in enumerate(histories.users)
    }


def test_events_are_grouped_and_sorted(tmp_path):
    histories = prepare(write_log(tmp_path / "d", ROWS, items=[3, 2, 1, 8]))
    assert histories.users.tolist() == ["b", "a"]
    assert histories.items.tolist() == ["3", "2", "1", "8"]
    assert as_lists(histories) == {"b": ["3", "1", "2"], "a": ["3", "2", "1"]}
    assert histories.time.tolist() == [5, 5, 5, 1, 9, 9]
    assert histories.lengths.tolist() == [3, 3]
    assert histories.actions == ("interaction",)
    assert histories.time_origin == 1


def test_tie_policies(tmp_path):
    dataset = write_log(tmp_path / "d", ROWS, items=[3, 2, 1])
    by_item = prepare(dataset, ties="item")
    assert as_lists(by_item) == {"b": ["3", "2", "1"], "a": ["3", "2", "1"]}
    first, again = (as_lists(prepare(dataset, ties="shuffle:3")) for _ in range(2))
    assert first == again
    assert sorted(first["b"]) == ["1", "2", "3"]
    orders = {tuple(as_lists(prepare(dataset, ties=f"shuffle:{n}"))["b"]) for n in range(40)}
    assert len(orders) == 6
    assert {as_lists(prepare(dataset, ties=f"shuffle:{n}"))["a"][0] for n in range(20)} == {"3"}


@pytest.mark.parametrize("ties", ["random", "shuffle", "shuffle:-1", "shuffle:x", "file:1", ""])
def test_unknown_tie_policies(ties):
    with pytest.raises(DataError, match="tie policy"):
        parse_ties(ties)


def reference_order(user, time, item, ties, seed):
    rank = np.arange(len(user))
    if ties == "shuffle":
        rank = np.random.default_rng(seed).permutation(rank)
    middle = item if ties == "item" else np.zeros_like(item)
    keys = list(zip(user.tolist(), time.tolist(), middle.tolist(), rank.tolist()))
    return sorted(range(len(user)), key=keys.__getitem__)


events = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=40
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(events, st.sampled_from(["file", "item", "shuffle"]), st.integers(0, 99))
def test_order_equals_a_plain_sort(rows, ties, seed):
    user, item, time = (np.array(column) for column in zip(*rows))
    found = order_events(
        user.astype(np.int32), time.astype(np.int64), item.astype(np.int32), ties=ties, seed=seed
    )
    assert found.tolist() == reference_order(user, time, item, ties, seed)


@pytest.mark.parametrize("ties", ["file", "item", "shuffle"])
@pytest.mark.parametrize(("users", "span"), [(3, 2**40), (3, 2**62), (2**30, 2**40), (5, 4)])
def test_order_where_user_time_and_place_do_not_fit_one_number(ties, users, span):
    rng = np.random.default_rng(users % 97)
    count = 3000
    user = rng.integers(0, users, count).astype(np.int32)
    user[: count // 2] %= 3
    time = rng.integers(0, span, count) // 2**3
    # Clusters that differ in their last bits alone, and true ties.
    time[::3] = span // 2**4 + rng.integers(0, 4, len(time[::3]))
    item = rng.integers(0, 50, count).astype(np.int32)
    found = order_events(user, time, item, ties=ties, seed=1)
    tie = {
        "file": np.arange(count),
        "item": item,
        "shuffle": np.random.default_rng(1).permutation(np.arange(count)),
    }[ties]
    assert found.tolist() == np.lexsort((np.arange(count), tie, time, user)).tolist()


def reference_core(rows, min_user, min_item):
    kept = list(range(len(rows)))
    while True:
        users = [rows[each][0] for each in kept]
        items = [rows[each][1] for each in kept]
        fewer = [
            each
            for each in kept
            if users.count(rows[each][0]) >= min_user and items.count(rows[each][1]) >= min_item
        ]
        if fewer == kept:
            return kept
        kept = fewer


@settings(max_examples=60, deadline=None, derandomize=True)
@given(events, st.integers(0, 4), st.integers(0, 4))
def test_k_core_equals_the_plain_loop(rows, min_user, min_item):
    user, item, _ = (np.array(column, np.int32) for column in zip(*rows))
    keep = k_core(user, item, min_user=min_user, min_item=min_item)
    assert np.flatnonzero(keep).tolist() == reference_core(rows, min_user, min_item)


def test_filtered_items_leave_the_catalogue_only_with_a_limit(tmp_path):
    rows = [("a", 1, 1), ("a", 2, 2), ("b", 1, 1), ("b", 2, 2), ("c", 3, 1)]
    dataset = write_log(tmp_path / "d", rows, items=[1, 9, 2, 3])
    assert prepare(dataset, min_user=2).items.tolist() == ["1", "9", "2", "3"]
    core = prepare(dataset, min_user=2, min_item=2)
    assert core.items.tolist() == ["1", "2"]
    assert as_lists(core) == {"a": ["1", "2"], "b": ["1", "2"]}
    with pytest.raises(DataError, match="no event is left"):
        prepare(dataset, min_user=9)
    with pytest.raises(DataError, match="min_user=-1"):
        prepare(dataset, min_user=-1)


def test_events_of_a_history_are_chosen(tmp_path):
    kinds = ["seen", "buy", "seen", "click", "seen", "buy"]
    dataset = write_log(tmp_path / "d", ROWS, event=kinds)
    everything = prepare(dataset)
    assert everything.actions == ("buy", "click", "seen")
    assert [everything.actions[each] for each in everything.action] == [
        *("seen", "seen", "buy"),
        *("click", "buy", "seen"),
    ]
    chosen = prepare(dataset, events=("click", "buy"))
    assert chosen.actions == ("click", "buy")
    assert as_lists(chosen) == {"a": ["3", "2"], "b": ["2"]}
    assert chosen.action.tolist() == [0, 1, 1]
    with pytest.raises(DataError, match=r"no event .'like'."):
        prepare(dataset, events=("like",))
    with pytest.raises(DataError, match="no column 'event'"):
        prepare(write_log(tmp_path / "e", ROWS), events=("click",))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=8))
def test_ragged_round_trip(tmp_path_factory, lists):
    folder = tmp_path_factory.mktemp("ragged") / "h"
    histories = histories_of(lists, num_items=10)
    histories.save(folder)
    loaded = Histories.load(folder)
    assert [loaded.item[loaded.history(user)].tolist() for user in range(len(lists))] == lists
    assert loaded.users.tolist() == histories.users.tolist()
    assert loaded.items.tolist() == histories.items.tolist()


def test_saved_histories_are_mapped_and_checked(tmp_path):
    histories = histories_of([[0, 1, 2], [2]], time_unit="order")
    histories.save(tmp_path / "h")
    loaded = Histories.load(tmp_path / "h")
    assert isinstance(loaded.item, np.memmap)
    assert not loaded.item.flags.writeable
    assert loaded.time_unit == "order"
    manifest = json.loads((tmp_path / "h" / "manifest.json").read_text())
    assert manifest["counts"] == {"users": 2, "items": 3, "events": 4}
    assert manifest["same_time_ties"] == {"tied": 0.0, "changed_by_shuffle": 0.0}
    np.save(tmp_path / "h" / "item.npy", np.array([0, 1, 2, 9], np.int32))
    with pytest.raises(DataError, match=r"item\.npy is missing, or is not the file"):
        Histories.load(tmp_path / "h")
    (tmp_path / "h" / "manifest.json").unlink()
    with pytest.raises(DataError, match="does not exist"):
        Histories.load(tmp_path / "h")


def test_impossible_histories_are_refused():
    good = histories_of([[0, 1], [1]])
    fields = {name: getattr(good, name) for name in good.__dataclass_fields__}
    with pytest.raises(DataError, match="rise from 0 to 3"):
        Histories(**{**fields, "offsets": np.array([0, 3, 2])})
    with pytest.raises(DataError, match="name item 0 or 1, but there are 1"):
        check_rows(Histories(**{**fields, "items": np.array(["x"])}))
    with pytest.raises(DataError, match="order of time"):
        check_rows(Histories(**{**fields, "time": np.array([5, 4, 0])}))
    check_rows(Histories(**{**fields, "time": np.array([4, 5, 0])}))


def test_ids_are_found():
    histories = histories_of([[2, 0], [1]], num_items=12)
    assert histories.find_items(["i10", "i2", "nobody", "i0"]).tolist() == [10, 2, -1, 0]
    assert histories.find_users(np.array(["u1", "u"])).tolist() == [1, -1]
    assert histories.find_items([]).tolist() == []
    assert histories.user_of(np.array([0, 1, 2])).tolist() == [0, 0, 1]


def test_tie_shares():
    histories = histories_of([[0, 1, 2], [0, 1], [3], []], times=[[1, 5, 5], [1, 2], [7], []])
    # Of three users with events one ends in a tie of two, which a shuffle swaps half the time.
    assert same_time_ties(histories) == {
        "tied": pytest.approx(1 / 3),
        "changed_by_shuffle": pytest.approx(1 / 6),
    }


@pytest.mark.real_data
def test_ties_of_beauty(beauty):
    histories = prepare(beauty)
    shares = same_time_ties(histories)
    assert shares["tied"] == pytest.approx(0.4346, abs=1e-4)
    assert shares["changed_by_shuffle"] == pytest.approx(0.2877, abs=1e-4)
    last = histories.offsets[1:] - 1
    shuffled = prepare(beauty, ties="shuffle:0")
    changed = (shuffled.item[last] != histories.item[last]).mean()
    assert changed == pytest.approx(shares["changed_by_shuffle"], abs=0.01)
