import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_logs import distinct, histories_of

from jaxrec.data.dataset import DataError
from jaxrec.data.splits import (
    LeaveOneOut,
    TemporalSplit,
    UserRatio,
    case_users,
    ranges,
    training_counts,
    training_items,
    training_positions,
)


def test_leave_one_out():
    histories = distinct([5, 3, 2, 1, 0, 4])
    split = LeaveOneOut()(histories)
    assert training_counts(histories, split).tolist() == [3, 1, 2, 1, 0, 2]
    assert split.validation.tolist() == [3, 6, 13]
    assert split.test.tolist() == [4, 7, 14]
    assert case_users(histories, split.test).tolist() == [0, 1, 5]
    assert training_positions(histories, split).tolist() == [0, 1, 2, 5, 8, 9, 10, 11, 12]
    assert np.flatnonzero(~training_items(histories, split)).tolist() == [3, 4, 6, 7, 13, 14]


def test_temporal_cuts():
    times = [[0, 1, 8], [2, 3, 4, 9], [5, 6, 7]]
    histories = histories_of([[0, 1, 2], [0, 1, 2, 3], [4, 5, 6]], times)
    split = TemporalSplit(0.2, 0.2)(histories)
    # Ten events at times 0..9: two test (8, 9), two validate (6, 7).
    assert histories.time[split.test].tolist() == [8, 9]
    assert histories.time[split.validation].tolist() == [6, 7]
    assert training_counts(histories, split).tolist() == [2, 3, 1]
    assert split.name == "temporal(0.2, 0.2)"


def test_temporal_ties_go_to_the_later_part():
    histories = histories_of([list(range(10))], [[0, 1, 2, 3, 4, 5, 5, 5, 5, 5]])
    split = TemporalSplit(0.0, 0.2)(histories)
    assert split.test.tolist() == [5, 6, 7, 8, 9]
    assert split.validation.tolist() == []
    assert training_counts(histories, split).tolist() == [5]


def test_a_temporal_split_without_test_or_of_nothing():
    histories = histories_of([list(range(10))])
    split = TemporalSplit(0.0, 0.0)(histories)
    assert (len(split.validation), len(split.test)) == (0, 0)
    assert training_counts(histories, split).tolist() == [10]
    with pytest.raises(DataError, match="no event is earlier"):
        TemporalSplit()(histories_of([list(range(10))], [[7] * 10]))
    with pytest.raises(DataError, match="only an order"):
        TemporalSplit()(histories_of([list(range(10))], time_unit="order"))


def test_user_ratio():
    histories = distinct([30, 10, 5, 3, 2, 1])
    split = UserRatio(0.1, 0.2)(histories)
    assert training_counts(histories, split).tolist() == [21, 7, 3, 1, 2, 1]
    users = case_users(histories, split.validation)
    assert np.bincount(users, minlength=6).tolist() == [3, 1, 1, 1, 0, 0]
    users = case_users(histories, split.test)
    assert np.bincount(users, minlength=6).tolist() == [6, 2, 1, 1, 0, 0]
    assert split.validation[:3].tolist() == [21, 22, 23]
    assert split.test[:6].tolist() == [24, 25, 26, 27, 28, 29]


def test_user_ratio_without_validation():
    histories = distinct([10])
    split = UserRatio(0.0, 0.3)(histories)
    assert split.validation.tolist() == []
    assert split.test.tolist() == [7, 8, 9]


@pytest.mark.parametrize("component", [TemporalSplit, UserRatio])
@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.1), (0.0, 1.0)])
def test_impossible_shares(component, shares):
    with pytest.raises(ValueError, match="leave a rest to train"):
        component(*shares)


shares = st.floats(0, 0.45)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(st.integers(0, 30), max_size=12), min_size=1, max_size=8),
    st.sampled_from(["loo", "temporal", "ratio"]),
    shares,
    shares,
)
def test_nothing_leaks(times, kind, validation, test):
    times = [sorted(each) for each in times]
    histories = histories_of([[0] * len(each) for each in times], times)
    split_with = {
        "loo": LeaveOneOut(),
        "temporal": TemporalSplit(validation, test),
        "ratio": UserRatio(validation, test),
    }[kind]
    try:
        split = split_with(histories)
    except DataError:
        assert kind == "temporal"
        return
    training = training_positions(histories, split)
    parts = [set(part.tolist()) for part in (training, split.validation, split.test)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert (np.diff(split.validation) > 0).all()
    assert (np.diff(split.test) > 0).all()
    # Inside a history: training first, then validation, then test.
    for user in range(histories.num_users):
        owned = range(histories.history(user).start, histories.history(user).stop)
        order = [next(k for k in range(3) if each in parts[k]) for each in owned]
        assert order == sorted(order)
    if kind == "temporal":
        time = histories.time
        for earlier, later in ((training, split.validation), (training, split.test)):
            if len(earlier) and len(later):
                assert time[earlier].max() < time[later].min()
        if len(split.validation) and len(split.test):
            assert time[split.validation].max() < time[split.test].min()
    if kind == "ratio":
        assert (training_counts(histories, split)[histories.lengths > 0] >= 1).all()


def test_ranges():
    starts, counts = np.array([5, 9, 2]), np.array([2, 0, 3])
    assert ranges(starts, counts).tolist() == [5, 6, 2, 3, 4]
    assert ranges(np.array([], np.int64), np.array([], np.int64)).tolist() == []
