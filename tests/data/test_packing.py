import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_logs import distinct, histories_of, segments_of

from jaxrec.data.dataset import DataError
from jaxrec.data.packing import (
    FlatEvents,
    Places,
    Windows,
    flat_events,
    lay_events,
    one_a_row,
    pack_prefix,
    training_windows,
)
from jaxrec.data.splits import LeaveOneOut, Split


def all_training(histories):
    none = np.zeros(0, np.int64)
    return Split(histories.offsets[1:].copy(), none, none, "all")


def test_windows_of_a_long_history():
    histories = distinct([10, 0, 3])
    windows = training_windows(histories, all_training(histories), length=4, context=1)
    assert windows.begin.tolist() == [0, 3, 6, 10]
    assert windows.size.tolist() == [4, 4, 4, 3]
    assert windows.context.tolist() == [0, 1, 1, 0]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=6),
    st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))),
)
def test_every_training_event_is_the_target_of_one_window(lengths, shape):
    length, context = shape
    histories = distinct(lengths)
    split = LeaveOneOut()(histories)
    windows = training_windows(histories, split, length=length, context=context)
    targets = []
    for begin, size, reread, user in zip(*windows):
        assert histories.offsets[user] <= begin < histories.offsets[user + 1]
        assert size - reread >= 1
        assert size <= length
        owner = histories.user_of(np.array([begin, begin + size - 1]))
        assert owner[0] == owner[1]
        assert begin + size <= split.train_end[owner[0]]
        # Only the first window of a history has nothing to read again.
        assert reread == (0 if begin == histories.offsets[owner[0]] else context)
        targets += range(begin + reread, begin + size)
    expected = [
        position
        for user in range(histories.num_users)
        for position in range(histories.offsets[user], split.train_end[user])
    ]
    assert targets == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.integers(1, 5),
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.integers(1, n), min_size=1, max_size=60))
    ),
)
def test_packed_windows_fit_and_do_not_overlap(rows, case):
    length, sizes = case
    places = pack_prefix(np.array(sizes), rows=rows, length=length)
    count = len(places.row)
    assert count >= 1
    cells = np.zeros((rows, length), int)
    for size, row, column in zip(sizes, places.row, places.column):
        assert column + size <= length
        cells[row, column : column + size] += 1
    assert cells.max() == 1
    for row in range(rows):
        here = places.segment[places.row == row]
        assert sorted(here.tolist()) == list(range(1, len(here) + 1))
        # Segments of a row stand one after the other from its first column on: right padding.
        assert (np.diff(cells[row]) <= 0).all()
    again = pack_prefix(np.array(sizes), rows=rows, length=length)
    assert all(np.array_equal(one, other) for one, other in zip(places, again))
    if sum(sizes) <= length:
        assert count == len(sizes)


def test_packing_is_tight():
    sizes = np.random.default_rng(0).geometric(1 / 9, 4000).clip(1, 64)
    used = len(pack_prefix(sizes, rows=64, length=64).row)
    assert sizes[:used].sum() > 0.97 * 64 * 64


def test_laid_events_in_full():
    flat = FlatEvents(
        item=np.array([7, 8, 9, 4], np.int32),
        time=np.array([100, 110, 130, 105]),
        action=np.array([0, 1, 0, 2], np.int32),
        origin=100,
    )
    windows = Windows(np.array([1, 3]), np.array([2, 1]), np.array([1, 0]))
    places = Places(np.array([1, 1]), np.array([0, 2]), np.array([1, 2], np.int32))
    batch = lay_events(flat, windows, places, rows=2, width=4)
    assert batch.item.tolist() == [[0, 0, 0, 0], [8, 9, 4, 0]]
    assert batch.segment.tolist() == [[0, 0, 0, 0], [1, 1, 2, 0]]
    assert batch.position.tolist() == [[0, 0, 0, 0], [0, 1, 0, 0]]
    assert batch.time.tolist() == [[0, 0, 0, 0], [10, 30, 5, 0]]
    assert batch.action.tolist() == [[0, 0, 0, 0], [1, 0, 2, 0]]
    assert batch.weight.tolist() == [[0, 0, 0, 0], [0, 1, 1, 0]]
    assert batch.item.dtype == np.int32
    assert batch.weight.dtype == np.float32


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=20))
def test_packed_content_equals_unpacked(sizes):
    histories = distinct(sizes)
    flat = flat_events(histories)
    windows = Windows(histories.offsets[:-1], histories.lengths, np.zeros(len(sizes), np.int64))
    places = pack_prefix(histories.lengths, rows=len(sizes), length=8)
    assert len(places.row) == len(sizes)
    packed = lay_events(flat, windows, places, rows=len(sizes), width=8)
    unpacked = lay_events(flat, windows, one_a_row(len(sizes)), rows=len(sizes), width=8)
    assert sorted(segments_of(packed)) == sorted(segments_of(unpacked))


def test_times_that_do_not_fit_are_an_error():
    fits = histories_of([[0, 1]], [[5, 5 + 2**31 - 1]])
    assert flat_events(fits).origin == 5
    with pytest.raises(DataError, match="milliseconds"):
        flat_events(histories_of([[0, 1]], [[5, 5 + 2**31]]))
