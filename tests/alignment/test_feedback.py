"""Labelled candidates: against a slow loop, training events only, reproducible and resumable."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from feedback_logs import graded_log, poisoned

from jaxrec.alignment.feedback import Graded, Implicit, grade_numbers, part_users
from jaxrec.data.errors import DataError
from jaxrec.data.splits import LeaveOneOut, UserRatio, training_counts, training_positions

LENGTHS = (9, 2, 30, 1, 5, 14)
GRADED = Graded(tasks=("like", "click"), length=8, candidates=3, rows=4, min_history=0)
IMPLICIT = Implicit(negatives=3, length=8, questions=3, rows=4, min_history=0)


def candidates_of(batches):
    """(row of its batch, candidate, what it sees, labels, weight) of everything that exists."""
    for batch in batches:
        for row, column in np.argwhere(batch.candidates >= 0):
            before = batch.events.item[row, : batch.place[row, column]]
            assert (batch.events.segment[row, : len(before) + 1] == 1).all()
            assert batch.events.position[row, : len(before) + 1].tolist() == [
                *range(len(before) + 1)
            ]
            labels, weight = batch.labels[row, column], batch.weight[row, column]
            yield (batch, row), int(batch.candidates[row, column]), before, labels, weight


@pytest.mark.parametrize("split", [LeaveOneOut(), UserRatio(0.2, 0.2)])
@pytest.mark.parametrize(("least", "since"), [(0, None), (2, None), (0, 21), (4, 21)])
def test_graded_is_the_loop_over_training_events(split, least, since):
    histories = graded_log(LENGTHS)
    split, expected = split(histories), {}
    for user, (start, end) in enumerate(zip(histories.offsets, split.train_end)):
        for position in range(start, end):
            if position - start >= least and (since is None or histories.time[position] >= since):
                grade = histories.actions[histories.action[position]]
                expected[position] = user, [grade == "like", grade in ("click", "like")]
    feedback = dataclasses.replace(GRADED, min_history=least, since=since)
    found = list(candidates_of(feedback.once(histories, split, seed=0)))
    assert sorted(each[1] for each in found) == sorted(expected)
    for _, position, before, labels, weight in found:
        user, wanted = expected[position]
        start = histories.offsets[user]
        # As much history as fits: the row also holds the questions after this one.
        assert before.tolist() == [*range(position - len(before), position)]
        assert len(before) >= min(position - start, feedback.length - feedback.candidates)
        assert position - len(before) >= start
        assert labels.tolist() == wanted
        assert weight.tolist() == [1, 1]


@pytest.mark.parametrize("feedback", [GRADED, IMPLICIT])
def test_what_is_held_out_changes_nothing(feedback):
    histories = graded_log(LENGTHS, distinct=False)
    split = LeaveOneOut()(histories)
    other = poisoned(histories, split)
    streams = [feedback(each, split, seed=1) for each in (histories, other)]
    pairs = itertools.chain(
        zip(*(feedback.once(each, split, seed=1) for each in (histories, other))),
        itertools.islice(zip(*streams), 9),
    )
    for one, two in pairs:
        jax.tree.map(np.testing.assert_array_equal, one, two)
    distinct = graded_log(LENGTHS)
    for batch in feedback.once(distinct, split, seed=1):
        live = batch.events.segment > 0
        shown = np.concatenate([batch.events.item[live], batch.candidates[batch.candidates >= 0]])
        assert np.isin(shown, training_positions(distinct, split)).all()


def test_implicit_tells_what_came_from_what_the_user_never_had():
    histories = graded_log((9, 12, 30, 5), distinct=False, items=40)
    split = LeaveOneOut()(histories)
    trained = [
        set(histories.item[start:end].tolist())
        for start, end in zip(histories.offsets, split.train_end)
    ]
    came, dropped = [], 0
    for batch in IMPLICIT.once(histories, split, seed=0):
        four = batch.candidates.reshape(4, 3, 4)
        labels, weight = (each.reshape(4, 3, 4) for each in (batch.labels, batch.weight))
        place = batch.place.reshape(4, 3, 4)
        assert (place == place[..., :1]).all()
        for row, question in np.ndindex(4, 3):
            here = four[row, question]
            if here[0] < 0:
                assert (here < 0).all()
                assert not weight[row, question].any()
                continue
            user, at = int(batch.events.user[row, 0]), place[row, question, 0]
            came.append((user, int(here[0]), int(batch.events.position[row, at])))
            assert here[0] == batch.events.item[row, at]
            assert labels[row, question].tolist() == [1, 0, 0, 0]
            has = [item in trained[user] for item in here[1:].tolist()]
            assert weight[row, question].tolist() == [1, *(not each for each in has)]
            dropped += sum(has)
            assert all(item in set.union(*trained) for item in here.tolist())
    assert len(came) == training_counts(histories, split).sum()
    assert dropped > 0


@pytest.mark.parametrize("popularity", [0.0, 1.0, 0.5])
def test_items_are_drawn_by_their_popularity(popularity):
    histories = graded_log((4, 400), distinct=False, items=6)
    skewed = np.minimum(histories.item, np.roll(histories.item, 1))
    histories = dataclasses.replace(histories, item=skewed)
    split = LeaveOneOut()(histories)
    feedback = Implicit(negatives=40, popularity=popularity, questions=7, length=8)
    drawn = [
        batch.candidates.reshape(64, 7, 41)[:, :, 1:]
        for batch in feedback.once(histories, split, seed=0)
    ]
    drawn = np.concatenate(drawn).ravel()
    drawn = drawn[drawn >= 0]
    count = np.bincount(histories.item[training_positions(histories, split)], minlength=6)
    share = count**popularity / (count**popularity).sum()
    error = np.sqrt(share * (1 - share) / len(drawn))
    assert (np.abs(np.bincount(drawn, minlength=6) / len(drawn) - share) < 4 * error).all()


@pytest.mark.parametrize("feedback", [GRADED, IMPLICIT])
def test_a_stream_is_reproducible_and_goes_on_where_it_stood(feedback):
    histories = graded_log(LENGTHS)
    split = LeaveOneOut()(histories)
    stream = feedback(histories, split, seed=3)
    drawn = [next(stream) for _ in range(4)]
    state = stream.get_state()
    drawn += [next(stream) for _ in range(5)]
    again = feedback(histories, split, seed=3)
    for one, two in zip(drawn, again):
        jax.tree.map(np.testing.assert_array_equal, one, two)
    again.set_state(state)
    for one, two in zip(drawn[4:], again):
        jax.tree.map(np.testing.assert_array_equal, one, two)
    other = next(feedback(histories, split, seed=4))
    assert not np.array_equal(other.candidates, drawn[0].candidates)
    # Whole epochs ask about every event equally often.
    epoch = stream.numbers_per_epoch
    assert epoch == 20
    twice = itertools.islice(feedback(histories, split, seed=3), 2 * epoch // 4)
    asked = [
        position for _, position, _, labels, _ in candidates_of(twice)
        if feedback is GRADED or labels[0]
    ]  # fmt: skip
    assert sorted(asked) == sorted(2 * training_positions(histories, split).tolist())


def test_every_batch_draws_anew_and_a_restored_one_the_same():
    histories = graded_log((9, 9, 198))
    feedback = dataclasses.replace(IMPLICIT, rows=1, questions=7)
    stream = feedback(histories, LeaveOneOut()(histories), seed=0)
    states, drawn = [], []
    for _ in range(2 * stream.numbers_per_epoch):
        states.append(stream.get_state())
        drawn.append(next(stream).candidates)
    negatives = {tuple(each.reshape(7, 4)[:, 1:].ravel().tolist()) for each in drawn}
    assert len(negatives) == len(drawn)
    stream.set_state(states[3])
    np.testing.assert_array_equal(next(stream).candidates, drawn[3])


def test_a_position_of_other_grades_is_refused():
    histories = graded_log(LENGTHS)
    split = LeaveOneOut()(histories)
    state = GRADED(histories, split, seed=0).get_state()
    relabelled = dataclasses.replace(histories, action=2 - histories.action)
    with pytest.raises(DataError, match="labels was"):
        GRADED(relabelled, split, seed=0).set_state(state)


def test_most_windows_are_drawn_ones_and_the_last_batch_is_filled_up():
    histories = graded_log(LENGTHS)
    split = LeaveOneOut()(histories)
    every = [each[1] for each in candidates_of(GRADED.once(histories, split, seed=0))]
    few = [list(GRADED.once(histories, split, seed=seed, most=5)) for seed in (0, 0, 1)]
    assert [batch.candidates.shape for batch in few[0]] == [(4, 3), (4, 3)]
    assert not few[0][1].weight[1:].any()
    assert not few[0][1].events.segment[1:].any()
    asked = [[each[1] for each in candidates_of(batches)] for batches in few]
    assert asked[0] == asked[1] != asked[2]
    assert set(asked[0]) < set(every)


def test_users_are_parted_and_nothing_held_out_is_in_a_part():
    histories = graded_log((5,) * 30 + (0,) * 5)
    split = LeaveOneOut()(histories)
    parts = part_users(histories, split, share=0.4, seed=0)
    counts = np.stack([training_counts(histories, part) for part in parts])
    np.testing.assert_array_equal(counts.sum(0), training_counts(histories, split))
    assert (counts > 0).sum(1).tolist() == [18, 6, 6]
    assert ((counts > 0).sum(0) <= 1).all()
    assert all(len(part.validation) == len(part.test) == 0 for part in parts)
    other = part_users(histories, split, share=0.4, seed=1)
    assert not np.array_equal(parts.report.train_end, other.report.train_end)
    with pytest.raises(DataError, match=r"2 user\(s\) with training events cannot be parted"):
        part_users(graded_log((5, 5)), LeaveOneOut()(graded_log((5, 5))), share=0.4, seed=0)


def test_bad_settings_are_explained():
    assert grade_numbers(("a", "b", "c"), ("c", "b")).tolist() == [2, 1]
    for tasks in (("exposed",), ("follow", "like")):
        with pytest.raises(DataError, match=r"cannot be told apart on the ladder exposed < click"):
            grade_numbers(("exposed", "click", "like"), tasks)
    with pytest.raises(ValueError, match="needs at least one grade, each once"):
        Graded(tasks=("like", "like"))
    for wrong in ({"candidates": 64}, {"rows": 0}, {"min_history": -1}, {"candidates": 0}):
        with pytest.raises(ValueError, match="fewer than the length=64 of a row"):
            Graded(**wrong)
    for wrong in ({"negatives": 0}, {"popularity": -0.5}):
        with pytest.raises(ValueError, match="must be at least 1 and popularity"):
            Implicit(**wrong)
