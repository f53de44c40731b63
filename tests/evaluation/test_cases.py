"""Ranges of the flat log against lists made by hand."""

import numpy as np
import pytest

from jaxrec.evaluation.cases import CaseHistories, case_histories, expand_ranges

OFFSETS = np.array([0, 3, 3, 7])
ITEM = np.array([5, 6, 7, 8, 9, 8, 4], np.int32)


def test_history_is_everything_of_the_user_before_the_target():
    histories = case_histories(OFFSETS, ITEM, np.array([2, 3, 6]))
    told = [ITEM[a:b].tolist() for a, b in zip(histories.start, histories.end)]
    assert told == [[5, 6], [], [8, 9, 8]]
    assert histories.last_items().tolist() == [6, -1, 8]
    case, item = histories.pairs()
    assert list(zip(case.tolist(), item.tolist())) == [(0, 5), (0, 6), (2, 8), (2, 9), (2, 8)]


def test_rows_are_the_same_cases():
    histories = case_histories(OFFSETS, ITEM, np.array([2, 3, 6]))
    assert histories.rows(1, 3).last_items().tolist() == [-1, 8]
    assert histories.rows(2, 99).num_cases == 1


def test_expand_ranges_against_python():
    generator = np.random.default_rng(0)
    start = generator.integers(0, 50, 20)
    end = start + generator.integers(0, 6, 20)
    expected = [(i, p) for i, (a, b) in enumerate(zip(start, end)) for p in range(a, b)]
    row, position = expand_ranges(start, end)
    assert list(zip(row.tolist(), position.tolist())) == expected


def test_no_case_at_all():
    empty = case_histories(OFFSETS, ITEM, np.zeros(0, np.int64))
    assert empty.num_cases == 0
    assert len(empty.pairs()[0]) == 0


def test_positions_outside_the_log_are_refused():
    with pytest.raises(ValueError, match="the log has 7 events"):
        case_histories(OFFSETS, ITEM, np.array([7]))
    with pytest.raises(ValueError, match="History 0 is events 4 to 3"):
        CaseHistories(np.array([4]), np.array([3]), ITEM)
