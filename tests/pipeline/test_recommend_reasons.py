"""Reasons against slow loops over codes and events."""

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest

from jaxrec.pipeline.reasons import LAST, MOST_SHARED, explainer, items_under, title_of
from jaxrec.pipeline.recommend import recommend_histories, recommend_users
from jaxrec.pipeline.run import open_finished
from jaxrec.tokenization.semantic_ids import codes_as_text


@pytest.fixture(scope="module")
def opened(finished):
    return open_finished(finished)


@pytest.fixture(scope="module")
def explain(opened):
    return explainer(opened.data, opened.tokens.ids)


@pytest.fixture(scope="module")
def follows(opened):
    """How often b directly followed a in training, counted one by one."""
    histories, counts = opened.data.histories, Counter()
    for user in range(histories.num_users):
        begin, end = histories.offsets[user], opened.data.split.train_end[user]
        events = histories.item[begin:end].tolist()
        counts.update(itertools.pairwise(events))
    return counts


def shared(one, other):
    length = 0
    while length < len(one) and one[length] == other[length]:
        length += 1
    return length


def slow_reasons(opened, follows, used, item):
    """(kind, facts) of all reasons but the score, by loops."""
    names, titles = opened.data.histories.items.tolist(), opened.data.titles
    codes = [tuple(row[:-1]) for row in opened.tokens.ids.codes.tolist()]
    assert opened.tokens.ids.space.has_extra_digit
    newest = []
    for each in reversed(used):
        if each not in newest:
            newest.append(each)
    found = [("seen", {})] if item in newest else []
    others = [each for each in newest if each != item]
    for levels in (2, 1):
        for each in others:
            if shared(codes[item], codes[each]) == levels:
                prefix = codes[item][:levels]
                facts = {
                    "prefix": codes_as_text(prefix),
                    "levels": levels,
                    "item": names[each],
                    "title": titles[each],
                    "items_under": sum(row[:levels] == prefix for row in codes),
                }
                found.append(("shared_prefix", facts))
    found = found[: MOST_SHARED + (item in newest)]
    counts = [follows[each, item] for each in newest[:LAST]]
    if max(counts, default=0):
        source = newest[counts.index(max(counts))]
        facts = {"item": names[source], "title": titles[source], "count": max(counts)}
        found.append(("transition", facts))
    popularity = opened.data.popularity.tolist()
    if popularity[item] == 0:
        return [*found, ("cold", {})]
    place = 1 + sum(each > popularity[item] for each in popularity)
    facts = {"place": place, "of": len(names), "events": popularity[item]}
    return [*found, ("popularity", facts)]


@pytest.mark.parametrize("keep_seen", [False, True])
def test_reasons_are_what_slow_loops_find(opened, explain, follows, keep_seen):
    histories, kinds = opened.data.histories, Counter()
    users = [str(user) for user in histories.users[:60]]
    answers = recommend_users(opened, users, count=20, keep_seen=keep_seen, explain=explain)
    for user, answer in enumerate(answers):
        used = histories.item[histories.history(user)].tolist()[-16:]
        assert answer.history_used == len(used)
        for each in answer.recommendations:
            score, *others = each.reasons
            assert score.facts == {"log_probability": each.score}
            (item,) = histories.find_items([each.item]).tolist()
            assert [(why.kind, why.facts) for why in others] == slow_reasons(
                opened, follows, used, item
            )
            kinds.update(why.kind for why in others)
    expected = {"shared_prefix", "transition", "popularity"} | ({"seen"} if keep_seen else set())
    assert expected <= set(kinds)


def test_a_cold_item_is_called_one(opened, follows):
    """Nothing is cold in the log of the fixture, so training is taken from one item."""
    cold = np.array([5])
    popularity = np.where(np.arange(120) == 5, 0, opened.data.popularity)
    data = dataclasses.replace(opened.data, popularity=popularity)
    (reasons,) = explainer(data, opened.tokens.ids)(np.array([7]), cold, np.array([-1.5]))
    assert [why.kind for why in reasons][-1] == "cold"
    assert reasons[-1].text == "nobody in training had this item"


def test_the_texts_claim_no_cause(opened, explain):
    (answer,) = recommend_users(opened, ["u1"], count=20, explain=explain)
    texts = {why.kind: why.text for each in answer.recommendations for why in each.reasons}
    assert texts["score"].startswith("log-probability -")
    assert texts["shared_prefix"].startswith("shares <a_")
    assert texts["shared_prefix"].endswith("of 120 items are under it")
    assert texts["transition"].startswith("statistic, not the model's reason: ")
    assert " in training it came directly after " in texts["transition"]
    assert texts["popularity"].startswith("statistic: number ")
    everything = " ".join(why.text for each in answer.recommendations for why in each.reasons)
    assert "because" not in everything


def test_an_empty_history_has_no_shared_codes(opened, explain):
    (answer,) = recommend_histories(opened, [[]], count=20, explain=explain)
    kinds = {why.kind for each in answer.recommendations for why in each.reasons}
    assert kinds <= {"score", "popularity", "cold"}


def test_no_reasons_where_nobody_asked(opened):
    (answer,) = recommend_histories(opened, [[]], count=3)
    assert [each.reasons for each in answer.recommendations] == [[], [], []]


def test_items_under_a_prefix_against_a_loop():
    codes = np.random.default_rng(0).integers(0, 4, (200, 3)).astype(np.int32)
    rows = codes.tolist()
    slow = [[sum(each[:s] == row[:s] for each in rows) for s in (1, 2, 3)] for row in rows]
    assert items_under(codes).tolist() == slow


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("Plain  title", "Plain  title"),
        ("two\nlines\tand a tab\r\n", "two lines and a tab"),
        ("a\x1b[31mred\x00", "a [31mred"),
        ("d\u2028e\x85f", "d e f"),
        ("می\u200cخواهم é 👩‍🚀", "می\u200cخواهم é 👩‍🚀"),
    ],
)
def test_titles_are_one_line(title, shown):
    assert title_of(["", title], 1) == shown
