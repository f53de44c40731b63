import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_logs import distinct, histories_of

from jaxrec.data.cases import case_batches, history_batches
from jaxrec.data.splits import LeaveOneOut


def answers(batches):
    """Case -> (its history, its target, its user), read from live rows."""
    found = {}
    for batch in batches:
        for row in np.flatnonzero(batch.live):
            events = batch.events
            here = events.segment[row] == 1
            # One segment from the first column on, right padding, no target among the events.
            assert np.array_equal(here, np.arange(len(here)) < here.sum())
            assert np.array_equal(events.position[row][here], np.arange(here.sum()))
            assert not events.weight.any()
            case = int(batch.case[row])
            assert case not in found
            target, user = int(batch.target[row]), int(batch.user[row])
            found[case] = (events.item[row][here].tolist(), target, user)
        dead = ~batch.live
        assert (batch.case[dead] == -1).all()
        assert (batch.user[dead] == -1).all()
        assert (batch.events.segment[dead] == 0).all()
    return found


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=8),
    st.integers(1, 9),
    st.integers(1, 5),
    st.lists(st.integers(1, 12), max_size=3),
    st.randoms(use_true_random=False),
)
def test_cases_are_the_events_before_a_position(lengths, length, rows, buckets, random):
    histories = distinct(lengths)
    positions = list(range(histories.num_events))
    random.shuffle(positions)
    positions = np.array(positions, np.int64)
    batches = list(
        case_batches(histories, positions, length=length, rows=rows, buckets=tuple(buckets))
    )
    found = answers(batches)
    assert sorted(found) == list(range(len(positions)))
    for case, position in enumerate(positions.tolist()):
        user = int(histories.user_of(np.array([position]))[0])
        begin = max(int(histories.offsets[user]), position - length)
        assert found[case] == (list(range(begin, position)), position, user)
    widths = {batch.events.item.shape[1] for batch in batches}
    assert widths <= {*buckets, length}
    assert max(widths, default=0) <= length
    assert all(batch.events.item.shape[0] == rows for batch in batches)


def test_buckets_waste_less():
    histories = distinct(np.random.default_rng(0).geometric(1 / 9, 500) + 2)
    test = LeaveOneOut()(histories).test

    def cells(buckets):
        batches = case_batches(histories, test, length=64, rows=32, buckets=buckets)
        return sum(batch.events.item.size for batch in batches)

    assert cells((8, 16, 32)) < 0.4 * cells(())


def test_no_cases_no_batches():
    histories = distinct([3])
    assert list(case_batches(histories, np.zeros(0, np.int64), length=4, rows=2)) == []


def test_bad_cases():
    histories = distinct([3])
    with pytest.raises(ValueError, match="the log has 3 events"):
        next(case_batches(histories, np.array([3]), length=4, rows=2))
    with pytest.raises(ValueError, match="must all be positive"):
        next(case_batches(histories, np.array([1]), length=4, rows=2, buckets=(0,)))


def test_times_count_from_the_first_event_of_the_log():
    histories = histories_of([[0, 1, 2], [1, 2]], [[1000, 1010, 1020], [990, 1030]])
    batch = next(case_batches(histories, np.array([2, 4]), length=4, rows=2))
    assert batch.events.time.tolist() == [[10, 20, 0, 0], [0, 0, 0, 0]]


def test_events_of_cases_know_their_user_and_those_given_by_hand_do_not():
    histories = histories_of([[0, 1, 2], [1, 2]])
    batch = next(case_batches(histories, np.array([2, 4]), length=4, rows=2))
    assert batch.events.user.tolist() == [[0, 0, -1, -1], [1, -1, -1, -1]]
    batch = next(history_batches([[0, 1]], num_items=3, length=4, rows=1))
    assert batch.events.user.tolist() == [[-1] * 4]


def test_histories_given_by_hand():
    batches = list(
        history_batches(
            [np.array([3, 1, 2]), [], [4]],
            num_items=5,
            length=2,
            rows=2,
            times=[[100, 110, 120], [], [130]],
            time_origin=90,
            actions=[[1, 0, 1], [], [2]],
        )
    )
    assert answers(batches) == {0: ([1, 2], -1, -1), 1: ([], -1, -1), 2: ([4], -1, -1)}
    assert batches[0].events.time.tolist() == [[20, 30], [0, 0]]
    assert batches[0].events.action.tolist() == [[0, 1], [0, 0]]
    # An empty history is a live row of padding.
    assert batches[0].live.tolist() == [True, True]
    assert batches[0].events.segment.tolist() == [[1, 1], [0, 0]]
    assert batches[1].live.tolist() == [True, False]


def test_bad_histories_given_by_hand():
    with pytest.raises(ValueError, match=r"item 5 is not a row of the catalogue, 0\.\.4"):
        list(history_batches([[1, 5]], num_items=5, length=4, rows=2))
    with pytest.raises(ValueError, match="item -1 is not a row"):
        list(history_batches([[-1]], num_items=5, length=4, rows=2))
    with pytest.raises(ValueError, match="times must have one value for each event"):
        list(history_batches([[1, 2]], num_items=5, length=4, rows=2, times=[[1]]))
    with pytest.raises(ValueError, match="68 years"):
        list(history_batches([[1]], num_items=5, length=4, rows=2, times=[[2**33]]))
