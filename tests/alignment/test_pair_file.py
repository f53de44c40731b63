"""Pairs from a file: there and back, in order, and everything that is refused."""

import numpy as np
import pytest
from test_contexts import log, row_of

from jaxrec.alignment.pair_file import PairFile, PairTable, load_pairs, save_pairs
from jaxrec.data.errors import DataError
from jaxrec.data.splits import LeaveOneOut, training_positions

HISTORIES = log()
SPLIT = LeaveOneOut()(HISTORIES)
TRAINING = training_positions(HISTORIES, SPLIT)


def pairs(count=11, rejected=3):
    random = np.random.default_rng(0)
    position = random.choice(TRAINING, count, replace=False)
    items = HISTORIES.num_items
    chosen = random.integers(0, items, count, dtype=np.int32)
    other = (chosen[:, None] + random.integers(1, items, (count, rejected))) % items
    other[2, 1:] = -1
    gap = random.random((count, rejected)).astype(np.float32)
    return PairTable(position, chosen, other.astype(np.int32), gap)


def test_there_and_back(tmp_path):
    table = pairs()
    save_pairs(tmp_path / "pairs.npz", table)
    for name, ours in load_pairs(tmp_path / "pairs.npz", HISTORIES, SPLIT)._asdict().items():
        expected = getattr(table, name)
        assert ours.dtype == expected.dtype
        np.testing.assert_array_equal(ours, expected)


def test_wider_numbers_are_narrowed(tmp_path):
    table = pairs()
    wide = PairTable(*(array.astype(f"{array.dtype.kind}8") for array in table))
    save_pairs(tmp_path / "pairs.npz", wide)
    found = load_pairs(tmp_path / "pairs.npz", HISTORIES, SPLIT)
    for ours, expected in zip(found, table):
        assert ours.dtype == expected.dtype
        np.testing.assert_array_equal(ours, expected)


def test_batches_hold_every_pair_with_its_history(tmp_path):
    table, path = pairs(), str(tmp_path / "pairs.npz")
    save_pairs(path, table)
    feed = PairFile(path, length=5, rows=4)
    stream, seen = feed(HISTORIES, SPLIT, seed=1), set()
    while stream.epoch < 1:
        batch = next(stream)
        assert batch.events.item.shape == (4, 5)
        for row, target in enumerate(batch.target.tolist()):
            # Every event has its own item, so the target tells which pair it is.
            pair = int(np.flatnonzero(table.position == target)[0])
            seen.add(pair)
            assert batch.chosen[row] == table.chosen[pair]
            np.testing.assert_array_equal(batch.rejected[row], table.rejected[pair])
            np.testing.assert_array_equal(batch.gap[row], table.gap[pair])
            for name, expected in row_of(HISTORIES, target, 5).items():
                np.testing.assert_array_equal(getattr(batch.events, name)[row], expected, name)
    assert seen == set(range(11))
    assert feed.batch_shape == (4, 5)
    state, following = stream.get_state(), next(stream).target.tolist()
    again = feed(HISTORIES, SPLIT, seed=1)
    again.set_state(state)
    assert next(again).target.tolist() == following
    # Another content is another feed, whatever its name.
    save_pairs(path, table._replace(gap=table.gap + 1))
    with pytest.raises(DataError, match="pairs was"):
        feed(HISTORIES, SPLIT, seed=1).set_state(state)


HELD_OUT = int(SPLIT.validation[0])


def broken(**changes):
    table = pairs()
    return table._replace(
        **{name: change(getattr(table, name)) for name, change in changes.items()}
    )


def put(index, value):
    def change(array):
        array = array.copy()
        array[index] = value
        return array

    return change


REFUSED = {
    "held out": (broken(position=put(3, HELD_OUT)), "a position is no training event"),
    "test": (broken(position=put(0, int(SPLIT.test[0]))), "a position is no training event"),
    "nowhere": (broken(position=put(0, -1)), "a position is no training event"),
    "chosen": (broken(chosen=put(1, HISTORIES.num_items)), "not a row of the catalogue"),
    "none chosen": (broken(chosen=put(1, -1)), "not a row of the catalogue"),
    "rejected": (broken(rejected=put((1, 1), HISTORIES.num_items)), "not a row of the catalogue"),
    "below": (broken(rejected=put((1, 1), -2)), "not a row of the catalogue"),
    "one item": (broken(rejected=put((5, 2), pairs().chosen[5])), r"in 1 pair\(s\) both sides"),
    "rows": (broken(chosen=lambda array: array[1:]), "need one number a pair"),
    "no pair": (broken(**dict.fromkeys(PairTable._fields, lambda a: a[:0])), "at least one"),
    "number": (broken(position=lambda array: array[0]), "need one number a pair"),
    "gap": (broken(gap=lambda array: array[:, 1:]), r"one shape \[pairs, n\]"),
    "flat": (broken(rejected=lambda a: a[:, 0], gap=lambda a: a[:, 0]), r"one shape \[pairs, n\]"),
    "none rejected": (
        broken(rejected=lambda a: a[:, :0], gap=lambda a: a[:, :0]),
        r"one shape \[pairs, n\]",
    ),
    "fractions": (broken(chosen=lambda array: array.astype(np.float32)), "whole numbers"),
    "not finite": (broken(gap=put((0, 0), np.nan)), "a gap is not finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, name):
    table, message = REFUSED[name]
    save_pairs(tmp_path / "pairs.npz", table)
    with pytest.raises(DataError, match=message):
        load_pairs(tmp_path / "pairs.npz", HISTORIES, SPLIT)


def test_files_that_hold_no_pairs(tmp_path):
    path = tmp_path / "pairs.npz"
    with pytest.raises(DataError, match=r"pairs\.npz holds no pairs"):
        load_pairs(path, HISTORIES, SPLIT)
    save_pairs(path, pairs())
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:-30], bytes(damaged)):
        path.write_bytes(content)
        with pytest.raises(DataError, match="holds no pairs"):
            load_pairs(path, HISTORIES, SPLIT)
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="holds no pairs"):
        load_pairs(path, HISTORIES, SPLIT)
    with open(path, "wb") as file:
        np.savez(file, position=pairs().position)
    with pytest.raises(DataError, match=r"holds no pairs .*chosen"):
        load_pairs(path, HISTORIES, SPLIT)


@pytest.mark.parametrize("size", [{"length": 0}, {"rows": 0}])
def test_impossible_sizes(size):
    with pytest.raises(ValueError, match="PairFile needs length >= 1 and rows >= 1"):
        PairFile("pairs.npz", **size)
