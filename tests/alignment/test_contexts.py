"""Questions that alignment asks, against a slow loop over the log."""

import itertools

import numpy as np
import pytest

from jaxrec.alignment.contexts import Contexts
from jaxrec.data.errors import DataError
from jaxrec.data.histories import Histories
from jaxrec.data.splits import LeaveOneOut, TemporalSplit, training_positions
from jaxrec.types import Events

LENGTHS = np.random.default_rng(1).geometric(1 / 6, 25).clip(1, 20)


def log(lengths=LENGTHS):
    """Histories in which every event has its own item (its flat position), time and action."""
    count = int(np.sum(lengths))
    offsets = np.cumsum([0, *lengths]).astype(np.int64)
    time = np.random.default_rng(0).integers(0, 1000, count)
    for begin, end in itertools.pairwise(offsets):
        time[begin:end].sort()
    return Histories(
        offsets=offsets,
        item=np.arange(count, dtype=np.int32),
        time=time.astype(np.int64),
        action=(np.arange(count) % 3).astype(np.int32),
        users=np.array([f"u{user}" for user in range(len(lengths))]),
        items=np.array([f"i{item}" for item in range(count)]),
        actions=("a", "b", "c"),
    )


def row_of(histories, target, length):
    """Fields of the row that asks about a position."""
    user = int(np.searchsorted(histories.offsets, target, side="right")) - 1
    first = max(int(histories.offsets[user]), target - length)
    fields = {name: np.zeros(length) for name in ("item", "segment", "position", "time", "action")}
    fields |= {"weight": np.zeros(length), "user": np.full(length, -1)}
    for column, position in enumerate(range(first, target)):
        fields["item"][column] = histories.item[position]
        fields["segment"][column] = 1
        fields["position"][column] = column
        fields["time"][column] = histories.time[position] - histories.time.min()
        fields["action"][column] = histories.action[position]
        fields["user"][column] = user
    return fields


def epoch(stream):
    batches = []
    while stream.epoch < 1:
        batches.append(next(stream))
    return batches


@pytest.mark.parametrize("split", [LeaveOneOut(), TemporalSplit(0.2, 0.1)])
@pytest.mark.parametrize("min_history", [0, 1, 4])
def test_equals_a_slow_loop(split, min_history):
    histories = log()
    parts = split(histories)
    feed = Contexts(length=5, rows=6, min_history=min_history)
    allowed, asked = set(training_positions(histories, parts).tolist()), set()
    for batch in epoch(feed(histories, parts, seed=3)):
        assert isinstance(batch.events, Events)
        assert batch.target.dtype == np.int32
        assert batch.events.item.shape == (6, 5)
        for row, target in enumerate(batch.target.tolist()):
            for name, expected in row_of(histories, target, 5).items():
                np.testing.assert_array_equal(getattr(batch.events, name)[row], expected, name)
        asked |= set(batch.target.tolist())
        read = set(batch.events.item[batch.events.segment > 0].tolist())
        assert read | asked <= allowed
    begins = dict(enumerate(histories.offsets.tolist()))
    before = {
        position: position - begins[int(histories.user_of(np.array([position]))[0])]
        for position in allowed
    }
    assert asked == {position for position in allowed if before[position] >= min_history}
    assert feed.batch_shape == (6, 5)
    assert len(asked) < histories.num_events - len(parts.validation)


def test_a_saved_position_goes_on_and_seeds_differ():
    histories = log()
    parts, feed = LeaveOneOut()(histories), Contexts(length=5, rows=6)
    stream = feed(histories, parts, seed=3)
    for _ in range(4):
        next(stream)
    state = stream.get_state()
    expected = [next(stream).target.tolist() for _ in range(9)]
    again = feed(histories, parts, seed=3)
    again.set_state(state)
    assert [next(again).target.tolist() for _ in range(9)] == expected
    other = feed(histories, parts, seed=4)
    assert [next(other).target.tolist() for _ in range(9)] != expected
    with pytest.raises(DataError, match="seed was 3 and is 4"):
        other.set_state(state)
    with pytest.raises(DataError, match="min_history was 1 and is 2"):
        Contexts(length=5, rows=6, min_history=2)(histories, parts, seed=3).set_state(state)


def test_hosts_share_the_questions():
    histories = log()
    parts, feed = LeaveOneOut()(histories), Contexts(length=5, rows=6)
    asked = [
        {
            target
            for batch in epoch(feed(histories, parts, seed=3, host=host, hosts=2))
            for target in batch.target.tolist()
        }
        for host in (0, 1)
    ]
    every = set(feed.positions(histories, parts).tolist())
    assert asked[0] | asked[1] == every
    # A batch that crosses the end of an epoch begins the next one.
    assert abs(len(asked[0]) - len(every) / 2) <= 3
    assert next(feed(histories, parts, seed=3, host=1, hosts=2)).target.shape == (3,)


@pytest.mark.parametrize("size", [{"length": 0}, {"rows": 0}, {"min_history": -1}])
def test_impossible_sizes(size):
    with pytest.raises(ValueError, match="Contexts needs length >= 1, rows >= 1 and min_history"):
        Contexts(**size)


def test_nothing_to_ask():
    histories = log((3, 4, 3))
    parts = LeaveOneOut()(histories)
    with pytest.raises(DataError, match="no training event has 2 events before it"):
        Contexts(min_history=2)(histories, parts, seed=0)
    assert Contexts(min_history=1).positions(histories, parts).tolist() == [4]
    with pytest.raises(ValueError, match="3 rows do not divide over 2 hosts"):
        Contexts(rows=3)(histories, parts, seed=0, hosts=2)
    with pytest.raises(DataError, match="cannot be shared by 2 host"):
        Contexts(rows=2)(histories, parts, seed=0, hosts=2)
