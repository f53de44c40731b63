"""Answers to streams of requests: equal to single answers, in order, in bounded memory."""

import json

import numpy as np
import pytest

from jaxrec.data.errors import DataError
from jaxrec.pipeline.recommend import (
    Answer,
    Refused,
    denied_room,
    recommend_histories,
    recommend_lines,
    recommend_users,
)
from jaxrec.pipeline.run import open_finished
from jaxrec.training.ranking import rank_batch

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def opened(finished, one_device):
    return open_finished(finished)


@pytest.fixture(scope="module")
def histories(opened):
    """40 raw histories of 0 to 60 events, repeats among them."""
    draw = np.random.default_rng(0)
    items = opened.data.histories.items
    sizes = [0, 1, 60, *draw.integers(0, 61, 37).tolist()]
    return [items[draw.integers(0, len(items), size)].tolist() for size in sizes]


def stream(opened, requests, **settings):
    """All answers to requests (JSON values, or lines as they are), and the sizes of the batches."""
    lines = [each if isinstance(each, str) else json.dumps(each) for each in requests]
    batches = list(recommend_lines(opened, enumerate(lines, 1), **{"count": 10} | settings))
    return [each for batch in batches for each in batch], [len(batch) for batch in batches]


def check_equal(one: Answer, other: Answer):
    assert one.history == other.history
    assert [each.item for each in one.recommendations] == [
        each.item for each in other.recommendations
    ]
    np.testing.assert_allclose(
        [each.score for each in one.recommendations],
        [each.score for each in other.recommendations],
        atol=1e-5,
    )


def test_a_stream_gives_what_single_calls_give(opened, histories):
    answers, sizes = stream(opened, histories, rows=8)
    assert sizes == [8] * 5
    assert [each.name for each in answers] == [f"line {number}" for number in range(1, 41)]
    for answer, history in zip(answers, histories):
        (single,) = recommend_histories(opened, [history], count=10)
        check_equal(answer, single)
    at_once = recommend_histories(opened, histories, count=10)
    for answer, other in zip(answers, at_once):
        check_equal(answer, other)


def test_order_holds_over_many_batches(opened):
    users = [str(user) for user in opened.data.histories.users]
    shuffled = np.random.default_rng(1).permutation(users).tolist()
    answers, sizes = stream(opened, [{"user": user} for user in shuffled])
    assert sizes == [128, 128, 44]
    assert [each.name for each in answers] == shuffled
    for answer, single in zip(answers[::50], recommend_users(opened, shuffled[::50], count=10)):
        check_equal(answer, single)


def test_requests_have_their_own_name_count_and_exclusions(opened, histories):
    history = histories[5]
    (plain,) = recommend_histories(opened, [history], count=20)
    best = [each.item for each in plain.recommendations]
    answers, _ = stream(
        opened,
        [
            {"history": history, "id": "one", "count": 1},
            {"history": history, "count": 20},
            {"history": history, "exclude": [best[0], best[2], "no such item"], "count": 3},
        ],
    )
    assert [each.name for each in answers] == ["one", "line 2", "line 3"]
    lists = [[each.item for each in answer.recommendations] for answer in answers]
    assert lists == [best[:1], best, [best[1], best[3], best[4]]]
    assert [each.rank for each in answers[2].recommendations] == [1, 2, 3]
    assert answers[2].unknown == []


def test_a_long_history_is_cut_to_what_the_generator_reads(opened):
    names = opened.data.histories.items.tolist()
    long = [*names[40:60], *names[:16]]
    answers, _ = stream(opened, [long, {"history": long[-16:], "exclude": long[:-16]}])
    assert [each.history_used for each in answers] == [16, 16]
    assert [len(each.history) for each in answers] == [36, 16]
    assert answers[0].recommendations == answers[1].recommendations


def test_what_is_excluded_leaves_fewer_items_or_none(opened):
    names = opened.data.histories.items.tolist()
    answers, _ = stream(
        opened,
        [
            {"history": [], "exclude": names[3:]},
            {"history": names},
            {"history": names[:60] * 3, "exclude": names[62:]},
        ],
    )
    left = [sorted(each.item for each in answer.recommendations) for answer in answers]
    assert left == [names[:3], [], names[60:62]]
    told = [(len(left[0]), 3, len(names) - 3), (0, 0, len(names)), (2, 2, len(names) - 2)]
    for answer, (valid, allowed, filtered) in zip(answers, told):
        candidates = answer.candidates
        assert candidates["valid"] == valid
        assert candidates["allowed"] == allowed
        assert candidates["filtered"] == filtered
        assert 0 <= candidates["grouped"] <= valid


def test_wide_deny_lists_change_no_answer(opened, histories, monkeypatch):
    """Narrow and wide requests mixed, with batches cut down to a few rows for the wide ones."""
    plain, _ = stream(opened, histories, rows=64)
    monkeypatch.setattr("jaxrec.pipeline.recommend.WIDEST", 32)
    assert {denied_room(len(set(history)), 16) for history in histories} == {32, 256}
    narrow, _ = stream(opened, histories, rows=64)
    for one, other in zip(plain, narrow):
        check_equal(one, other)


def test_nothing_is_compiled_anew_for_another_batch(opened, histories):
    short = [history[:30] for history in histories]
    before = rank_batch._cache_size()
    stream(opened, short[:24], rows=24)  # a shape that no other test has
    programs = rank_batch._cache_size()
    assert programs == before + 1
    requests = [{"history": history, "count": 1 + len(history) % 20} for history in short]
    answers, sizes = stream(opened, [*requests * 3, {"user": "u1"}], rows=24)
    assert (len(answers), len(sizes)) == (121, 6)
    assert rank_batch._cache_size() == programs
    # Deny-lists of any width up to eight times the first room share one more program.
    stream(opened, histories, rows=24)
    assert rank_batch._cache_size() == programs + 1


def test_one_batch_is_read_at_a_time(opened):
    read = []

    def lines():
        for number in range(1, 101):
            read.append(number)
            yield number, "[]"

    batches = recommend_lines(opened, lines(), count=1, rows=8)
    assert not read
    for batch in (1, 2):
        assert len(next(batches)) == 8
        assert read[-1] == 8 * batch
    batches.close()


BAD = [["u"], "{", {"usr": 1}, {"user": "nobody"}, {"history": [], "count": 21}, {"history": 3}]


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_line_stops_after_the_answers_before_it(opened, bad):
    bad = bad if isinstance(bad, str) else json.dumps(bad)
    batches = recommend_lines(
        opened, enumerate(["[]"] * 10 + [bad, "[]"], 1), count=1, rows=8, source="a file"
    )
    assert [len(next(batches)), len(next(batches))] == [8, 2]
    with pytest.raises(DataError, match=r"^a file, line 11: \S"):
        next(batches)


def test_a_bad_first_line_stops_at_once(opened):
    with pytest.raises(DataError, match="requests, line 1: it is not JSON"):
        next(recommend_lines(opened, [(1, "{")], count=1))


def test_bad_lines_are_passed_over_where_asked(opened):
    requests = [each for bad in BAD for each in (bad, [])]
    answers, sizes = stream(opened, requests, skip=True, rows=8)
    assert sizes == [8, 4]
    assert [type(each) for each in answers] == [Refused, Answer] * len(BAD)
    assert [each.line for each in answers[::2]] == [1, 3, 5, 7, 9, 11]
    assert "count=21 is not possible: this run decodes 1 to 20" in answers[8].error
    assert stream(opened, ["{"] * 9, skip=True, rows=8)[1] == [8, 1]


def test_a_source_that_breaks_leaves_the_answers_before_it(opened):
    def lines():
        yield 1, "[]"
        raise DataError("the file is cut off")

    batches = recommend_lines(opened, lines(), count=1)
    assert len(next(batches)) == 1
    with pytest.raises(DataError, match="cut off"):
        next(batches)


def test_nobody_asks(opened):
    assert stream(opened, []) == ([], [])
    assert recommend_users(opened, [], count=5) == []


def test_repeated_items_are_fine(opened):
    name = str(opened.data.histories.items[4])
    (answer,) = recommend_histories(opened, [[name] * 5], count=5)
    assert len(answer.history) == answer.history_used == 5
    assert name not in {each.item for each in answer.recommendations}
    (kept,) = recommend_histories(opened, [[name] * 5], count=20, keep_seen=True)
    assert len({each.item for each in kept.recommendations}) == 20
