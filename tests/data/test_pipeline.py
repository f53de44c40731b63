import json
import subprocess
import sys
import time

import numpy as np
import pytest
from small_logs import distinct, segments_of

from jaxrec.data.dataset import DataError
from jaxrec.data.histories import Histories
from jaxrec.data.order import ShuffledBlocks
from jaxrec.data.packing import training_windows
from jaxrec.data.pipeline import TargetCentric, UserCentric
from jaxrec.data.splits import LeaveOneOut, TemporalSplit, UserRatio, training_positions

LENGTHS = np.random.default_rng(1).geometric(1 / 9, 60).clip(1, 50).tolist()
COMPONENTS = [
    UserCentric(length=8, rows=4),
    UserCentric(length=8, rows=4, context=3),
    TargetCentric(length=5, rows=6),
    TargetCentric(length=5, rows=6, min_history=2),
    TargetCentric(length=9, rows=6, buckets=(2, 5), lookahead=4),
]


def prepared(split=None):
    histories = distinct(LENGTHS)
    return histories, (split or LeaveOneOut())(histories)


def same(first, second):
    return all(
        np.array_equal(getattr(first, name), getattr(second, name))
        for name in first.__dataclass_fields__
    )


def one_epoch(stream):
    """Batches until every number of the first epoch was drawn."""
    batches = []
    while stream.epoch < 1:
        batches.append(next(stream))
    return batches


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("split", [LeaveOneOut(), TemporalSplit(0.2, 0.1), UserRatio(0.1, 0.2)])
def test_training_batches_hold_training_events_only_and_all_of_them(component, split):
    histories, parts = prepared(split)
    histories = Histories(
        **{
            **{name: getattr(histories, name) for name in histories.__dataclass_fields__},
            # Global times in the order of positions, so that every split holds something out.
            "time": np.random.default_rng(0).permutation(histories.num_events).astype(np.int64),
        }
    )
    order = np.concatenate(
        [
            histories.offsets[user] + np.argsort(histories.time[histories.history(user)])
            for user in range(histories.num_users)
        ]
    )
    histories = Histories(
        **{
            **{name: getattr(histories, name) for name in histories.__dataclass_fields__},
            "time": histories.time[order],
        }
    )
    parts = split(histories)
    training = set(training_positions(histories, parts).tolist())
    held_out = {*parts.validation.tolist(), *parts.test.tolist()}
    assert held_out
    seen, targets = set(), set()
    for batch in one_epoch(component(histories, parts, seed=3)):
        seen |= set(batch.item[batch.segment > 0].tolist())
        targets |= set(batch.item[batch.weight > 0].tolist())
    assert not seen & held_out
    assert seen <= training
    if getattr(component, "min_history", 0) == 0:
        assert targets == training


@pytest.mark.parametrize("context", [0, 3])
def test_packed_epoch_equals_the_plain_windows(context):
    histories, split = prepared()
    component = UserCentric(length=8, rows=4, context=context)
    stream = component(histories, split, seed=9)
    found = [segment for batch in one_epoch(stream) for segment in segments_of(batch)]
    windows = training_windows(histories, split, length=8, context=context)
    drawn = ShuffledBlocks(len(windows.size), seed=9).take(0, stream.get_state()["next"])
    expected = []
    for number in drawn.tolist():
        begin, size, reread, _ = (int(column[number]) for column in windows)
        expected.append(
            (
                tuple(range(begin, begin + size)),
                tuple(range(size)),
                (0.0,) * reread + (1.0,) * (size - reread),
            )
        )
    assert sorted(found) == sorted(expected)


def test_target_centric_rows():
    histories, split = prepared()
    stream = TargetCentric(length=5, rows=6, min_history=1)(histories, split, seed=0)
    targets = []
    for batch in one_epoch(stream):
        assert batch.item.shape == (6, 6)
        # Right-aligned: the target is the last column, whatever the history.
        assert np.all(batch.weight[:, -1] == 1)
        assert np.all(np.diff(batch.segment, axis=1) >= 0)
        for items, positions, weights in segments_of(batch):
            target = items[-1]
            user = int(histories.user_of(np.array([target]))[0])
            history = range(max(int(histories.offsets[user]), target - 5), target)
            assert items == (*history, target)
            assert positions == tuple(range(len(items)))
            assert weights == (0.0,) * len(history) + (1.0,)
            targets.append(target)
    expected = set(training_positions(histories, split).tolist())
    assert set(targets) == expected - set(histories.offsets[:-1].tolist())
    assert len(targets) - len(set(targets)) < 6


def bucketed(**options):
    return TargetCentric(length=9, rows=6, min_history=1, buckets=(4, 2), **options)


def test_every_target_comes_once_an_epoch_also_in_buckets():
    histories, split = prepared()
    stream = bucketed(lookahead=5)(histories, split, seed=0)
    plain = TargetCentric(length=9, rows=6, min_history=1)(histories, split, seed=0)
    targets = []
    for epoch in (1, 2, 3):
        while stream.epoch < epoch:
            batch = next(stream)
            targets += batch.item[:, -1].tolist()
            width = batch.item.shape[1] - 1
            assert width in (2, 4, 9)
            # Some history needs the width, and none was cut short of its nine events.
            longest = int((batch.segment[:, :-1] > 0).sum(1).max())
            assert {2: 0, 4: 2, 9: 4}[width] < max(longest, 1) <= width
    drawn = [each for _ in range(len(targets) // 6) for each in next(plain).item[:, -1].tolist()]
    # The same targets; those of an epoch lie in its own batches, up to the one that two share.
    assert sorted(targets) == sorted(drawn)
    count = stream.numbers_per_epoch
    assert len(set(targets[: -(-count // 6) * 6])) == count


def test_histories_do_not_depend_on_buckets():
    histories, split = prepared()
    rows = {}
    for component in (bucketed(), TargetCentric(length=9, rows=6, min_history=1)):
        stream = component(histories, split, seed=0)
        found = [row for batch in one_epoch(stream) for row in segments_of(batch)]
        rows[component] = {items[-1]: items for items, *_ in found}
    first, second = rows.values()
    assert first == second


def test_buckets_save_padding():
    histories, split = prepared()

    def padding(component):
        batches = one_epoch(component(histories, split, seed=0))
        cells = sum(batch.segment[:, :-1].size for batch in batches)
        return 1 - sum(int((batch.segment[:, :-1] > 0).sum()) for batch in batches) / cells

    plain = padding(TargetCentric(length=9, rows=6, min_history=1))
    assert padding(bucketed(lookahead=16)) < 0.6 * plain


def test_batches_of_all_widths_are_mixed():
    """Whoever trains on sorted lengths forgets the short histories while he sees the long ones."""
    lengths = np.random.default_rng(0).geometric(1 / 9, 2000).clip(2, 50)
    histories = distinct(lengths)
    component = TargetCentric(length=20, rows=64, buckets=(2, 4, 8), lookahead=16)
    stream = component(histories, LeaveOneOut()(histories), seed=0)
    widths = np.array([next(stream).item.shape[1] for _ in range(16 * 6)]).reshape(6, 16)
    assert all(len(set(block)) >= 3 for block in widths.tolist())
    assert len({tuple(block) for block in widths.tolist()}) == 6
    assert any(np.any(np.diff(block) < 0) for block in widths)


def test_events_know_their_user():
    histories, split = prepared()
    for component in COMPONENTS:
        batch = next(component(histories, split, seed=0))
        there = batch.segment > 0
        # Every event of these logs has its own item, the flat position.
        expected = histories.user_of(batch.item[there].astype(np.int64))
        assert batch.user[there].tolist() == expected.tolist()
        assert np.all(batch.user[~there] == -1)


@pytest.mark.parametrize("component", COMPONENTS)
def test_equal_seeds_equal_batches(component):
    histories, split = prepared()
    first, again, other = (component(histories, split, seed=seed) for seed in (1, 1, 2))
    batches = [next(first) for _ in range(30)]
    assert all(same(batch, next(again)) for batch in batches)
    assert not all(same(batch, next(other)) for batch in batches)


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_restored_position_continues_exactly(component):
    histories, split = prepared()
    stream = component(histories, split, seed=4)
    batches, states = [], []
    for _ in range(120):
        states.append(json.loads(json.dumps(stream.get_state())))
        batches.append(next(stream))
    assert stream.epoch > 1
    for start in [0, *np.random.default_rng(0).integers(1, 110, 6).tolist()]:
        resumed = component(histories, split, seed=4)
        if start % 2:
            next(resumed)
        resumed.set_state(states[start])
        assert resumed.get_state() == states[start]
        for batch in batches[start : start + 10]:
            assert same(batch, next(resumed))
    # The same stream may also be turned back.
    stream.set_state(states[7])
    assert same(next(stream), batches[7])


def test_a_position_of_another_pipeline_is_refused():
    histories, split = prepared()
    state = UserCentric(length=8, rows=4)(histories, split, seed=0).get_state()
    others = {
        "rows": (UserCentric(length=8, rows=8), {"seed": 0}, histories),
        "length": (UserCentric(length=9, rows=4), {"seed": 0}, histories),
        "seed": (UserCentric(length=8, rows=4), {"seed": 1}, histories),
        "hosts": (UserCentric(length=8, rows=4), {"seed": 0, "hosts": 2}, histories),
        "pipeline": (TargetCentric(length=8, rows=4), {"seed": 0}, histories),
        "events": (UserCentric(length=8, rows=4), {"seed": 0}, distinct([*LENGTHS, 4])),
        # As many events, but others.
        "checksum": (UserCentric(length=8, rows=4), {"seed": 0}, distinct(LENGTHS[::-1])),
    }
    for key, (component, options, log) in others.items():
        stream = component(log, LeaveOneOut()(log), **options)
        with pytest.raises(DataError, match=f"{key} was .* and is"):
            stream.set_state(state)
    stream = UserCentric(length=8, rows=4)(histories, split, seed=0)
    with pytest.raises(DataError, match="no position in it"):
        stream.set_state({"fingerprint": stream.fingerprint})


@pytest.mark.parametrize("component", [UserCentric(length=8, rows=6), TargetCentric(5, 6)])
def test_hosts_share_the_epoch(component):
    histories, split = prepared()
    alone = component(histories, split, seed=0)
    streams = [component(histories, split, seed=0, host=host, hosts=3) for host in range(3)]
    assert sum(stream.numbers_per_epoch for stream in streams) == alone.numbers_per_epoch
    targets = []
    for stream in streams:
        batches = one_epoch(stream)
        assert batches[0].item.shape[0] == 2
        targets.append({int(each) for b in batches for each in b.item[b.weight > 0]})
        # More epochs bring nothing of the others.
        while stream.epoch < 2:
            batch = next(stream)
            assert {int(each) for each in batch.item[batch.weight > 0]} <= targets[-1]
    assert set.union(*targets) == set(training_positions(histories, split).tolist())
    assert sum(map(len, targets)) == len(set.union(*targets))


def test_impossible_settings():
    histories, split = prepared()
    for bad, message in (
        (lambda: UserCentric(length=0), "must both be positive"),
        (lambda: TargetCentric(rows=0), "must both be positive"),
        (lambda: UserCentric(length=4, context=4), r"must be in 0\.\.3"),
        (lambda: TargetCentric(min_history=-1), "min_history=-1"),
        (lambda: TargetCentric(length=8, buckets=(4, 8)), r"must lie in 1\.\.7"),
        (lambda: TargetCentric(lookahead=0), "lookahead=0"),
        (
            lambda: TargetCentric(buckets=(4,))(histories, split, seed=0, hosts=2),
            "on 2 hosts .* Set buckets",
        ),
        (lambda: UserCentric()(histories, split, seed=-1), "seed -1"),
        (lambda: UserCentric()(histories, split, seed=0, host=2, hosts=2), "host 2 is not"),
        (lambda: UserCentric(rows=7)(histories, split, seed=0, hosts=2), "do not divide"),
    ):
        with pytest.raises(ValueError, match=message):
            bad()
    few = distinct([1])
    with pytest.raises(DataError, match=r"1 training window.* 2 host"):
        UserCentric()(few, LeaveOneOut()(few), seed=0, host=0, hosts=2)


def test_a_log_smaller_than_a_batch():
    histories = distinct([2, 1])
    stream = UserCentric(length=4, rows=8)(histories, LeaveOneOut()(histories), seed=0)
    batch = next(stream)
    assert batch.item.shape == (8, 4)
    assert set(batch.item[batch.weight > 0].tolist()) == {0, 1, 2}
    assert stream.epoch > 1


def test_prepared_data_needs_no_polars(tmp_path):
    distinct(LENGTHS).save(tmp_path / "h")
    code = (
        "import sys, jaxrec.data as data\n"
        f"histories = data.Histories.load({str(tmp_path / 'h')!r})\n"
        "split = data.LeaveOneOut()(histories)\n"
        "next(data.UserCentric()(histories, split, seed=0))\n"
        "next(data.case_batches(histories, split.test, length=8, rows=4))\n"
        "assert not {'polars', 'flax', 'tyro'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_packing_is_fast():
    lengths = np.random.default_rng(0).geometric(1 / 5, 22_000) + 4
    histories = distinct(lengths)
    stream = UserCentric()(histories, LeaveOneOut()(histories), seed=0)
    next(stream)
    start, events = time.process_time(), 0
    for _ in range(40):
        events += int((next(stream).segment > 0).sum())
    rate = events / (time.process_time() - start)
    # About 500,000 a second of processor time were measured; the limit leaves room for slow ones.
    assert rate > 60_000
