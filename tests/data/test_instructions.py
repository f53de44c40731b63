"""Instructions: templates, proportions, and batches read back as the texts they were made of."""

import json

import numpy as np
import pytest
from small_logs import histories_of

from jaxrec.data.dataset import DataError
from jaxrec.data.instruction_feed import Instructions, ItemTexts
from jaxrec.data.instructions import (
    ITEM_TO_TITLE,
    LC_REC,
    MINI_ONEREC,
    SEQUENTIAL,
    TITLE_TO_ITEM,
    Task,
    schedule,
)
from jaxrec.data.splits import LeaveOneOut
from jaxrec.data.text_tokenizer import TextTokenizer

TITLES = ["soap", "brush", "", "mask", "oil", "comb"]
KINDS = ["wash", "hair", "hair", "face", "", "hair"]
ITEMS = ItemTexts({"title": TITLES, "categories": KINDS}, levels=2)
LISTS = [[0, 1, 2, 3, 4], [5, 1, 0, 3], [2, 4, 5]]  # the last two events are held out


def feed_of(*tasks, **options):
    return Instructions(tasks=tasks, **{"length": 64, "rows": 4, "history": 3, **options})


def stream_of(feed, items=ITEMS, **options):
    histories = histories_of(LISTS)
    return feed(histories, LeaveOneOut()(histories), **{"seed": 0, **options}, items=items)


def read_back(batch):
    """Every example of a batch as (prompt, answer), codes as `<item.level>`."""
    found = []
    for row in range(batch.token.shape[0]):
        for segment in range(1, int(batch.segment[row].max()) + 1):
            here = np.flatnonzero(batch.segment[row] == segment)
            np.testing.assert_array_equal(batch.position[row, here], np.arange(len(here)))
            learnt = batch.weight[row, here] > 0
            assert not learnt[0]
            assert np.all(np.diff(learnt.astype(int)) >= 0)
            texts = ["", ""]
            for column, answer in zip(here, learnt.astype(int)):
                token, item = batch.token[row, column], batch.item[row, column]
                texts[answer] += chr(token) if item < 0 else f"<{item}.{token}>"
            found.append(tuple(texts))
    assert np.all(batch.weight[batch.segment == 0] == 0)
    return found


def examples_of(feed, batches=6):
    stream = stream_of(feed)
    return [each for _ in range(batches) for each in read_back(next(stream))]


def test_a_sequence_asks_for_the_next_item_and_learns_nothing_else():
    task = Task("t", ("Had {history}; next ",), "{item}")
    expected = {
        ("Had <0.0><0.1>; next ", "<1.0><1.1>\n"),
        ("Had <0.0><0.1>, <1.0><1.1>; next ", "<2.0><2.1>\n"),
        ("Had <5.0><5.1>; next ", "<1.0><1.1>\n"),
    }  # the events held out, and those without a history, are no targets
    assert set(examples_of(feed_of(task))) == expected


def test_columns_are_written_and_missing_values_left_out():
    task = Task("t", ("Had {history:title}; next ",), "{item:categories} {item}")
    found = set(examples_of(feed_of(task, between=" & ", end=".")))
    assert found == {
        ("Had soap; next ", "hair <1.0><1.1>."),
        ("Had soap & brush; next ", "hair <2.0><2.1>."),
        ("Had comb; next ", "hair <1.0><1.1>."),
    }


def test_items_are_told_by_their_text_unless_it_is_missing():
    found = set(examples_of(feed_of(TITLE_TO_ITEM)))
    named = [item for item, title in enumerate(TITLES) if title]
    for item in named:
        assert any(answer == f"<{item}.0><{item}.1>\n" for _, answer in found)
    assert not any("<2.0>" in answer for _, answer in found)
    prompts = {prompt for prompt, _ in found}
    assert {"The item called oil is ", "Find oil: "} & prompts
    back = examples_of(feed_of(ITEM_TO_TITLE))
    assert ("The title of <3.0><3.1> is ", "mask\n") in back


def test_tasks_come_in_the_proportion_of_their_weights():
    light, heavy = Task("a", ("a{item}",), "x"), Task("b", ("b{item}",), "x", weight=3.0)
    found = examples_of(feed_of(light, heavy), batches=30)
    share = np.mean([prompt.startswith("b") for prompt, _ in found])
    assert len(found) > 500
    assert abs(share - 0.75) < 0.01
    published = (65.73, 24.30, 4.94, 5.03)  # OneRec-Think's mixture
    tasks = tuple(Task(str(w), ("x",), "y", weight=w) for w in published)
    counts = np.bincount(schedule(tasks), minlength=4)
    np.testing.assert_allclose(counts / 10, published, atol=0.1)


def test_a_history_that_does_not_fit_loses_its_oldest_events():
    task = Task("t", ("{history} ",), "{item}")
    whole = ("<0.0><0.1>, <1.0><1.1> ", "<2.0><2.1>\n")  # 2 + 2 + 2 + 1 and 2 + 1 tokens
    assert whole in examples_of(feed_of(task, length=10))
    cut = examples_of(feed_of(task, length=9))
    assert whole not in cut
    assert ("<1.0><1.1> ", "<2.0><2.1>\n") in cut
    assert ("<1.0><1.1> ", "<2.0><2.1>\n") in examples_of(feed_of(task, history=1))
    with pytest.raises(ValueError, match="takes 6 tokens with a single event"):
        next(stream_of(feed_of(task, length=5)))


def test_long_texts_are_cut():
    found = examples_of(feed_of(ITEM_TO_TITLE, text_tokens=2))
    assert {answer for _, answer in found} == {"so\n", "br\n", "ma\n", "oi\n", "co\n"}


@pytest.mark.parametrize("tasks", [LC_REC, MINI_ONEREC], ids=["lc_rec", "mini_onerec"])
def test_the_published_mixtures_have_examples_of_every_task(tasks):
    found = examples_of(feed_of(*tasks, length=160), batches=3)
    assert all(answer.endswith("\n") for _, answer in found)
    opening = {prompt.split(" ")[0] for prompt, _ in found}
    assert len(opening) >= 4


def test_a_stream_goes_on_where_it_stood():
    feed = feed_of(*LC_REC, length=160)
    stream = stream_of(feed)
    for _ in range(3):
        next(stream)
    state = json.loads(json.dumps(stream.get_state()))
    expected = [next(stream) for _ in range(3)]
    resumed = stream_of(feed)
    resumed.set_state(state)
    for each in expected:
        other = next(resumed)
        for name in ("token", "item", "segment", "position", "weight"):
            np.testing.assert_array_equal(getattr(each, name), getattr(other, name))
    with pytest.raises(DataError, match="between was ', ' and is '; '"):
        stream_of(feed_of(*LC_REC, length=160, between="; ")).set_state(state)


def test_hosts_share_the_examples():
    feed = feed_of(TITLE_TO_ITEM, rows=4)
    found = [
        {answer for _ in range(3) for _, answer in read_back(next(stream))}
        for stream in (stream_of(feed, host=host, hosts=2) for host in (0, 1))
    ]
    assert found[0] | found[1] == {f"<{item}.0><{item}.1>\n" for item in (0, 1, 3, 4, 5)}
    assert next(stream_of(feed, host=1, hosts=2)).token.shape == (2, 64)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Task("t", ("{items}",), "x"), "unknown field {items}"),
        (lambda: Task("t", ("{item:a b}",), "x"), "unknown field"),
        (lambda: Task("t", (), "x"), "at least one prompt"),
        (lambda: Task("t", ("x",), "y", weight=0.0), "must be positive"),
        (lambda: Instructions(tasks=()), "at least one task"),
        (lambda: Instructions(length=0), "length=0 must be positive"),
        (lambda: stream_of(feed_of(Task("t", ("{item:brand}",), "x"))), "read the item column"),
        (
            lambda: stream_of(feed_of(TITLE_TO_ITEM), ItemTexts({"title": [""] * 6}, 2)),
            "has no example",
        ),
    ],
)
def test_impossible_instructions_are_refused(make, words):
    with pytest.raises((ValueError, DataError), match=words):
        make()


def test_a_tokenizer_file_is_used_as_it_is(tmp_path):
    import tokenizers

    words = {"soap": 0, "brush": 1, "Find": 2, ":": 3, "<unk>": 4}
    model = tokenizers.models.WordLevel(words, unk_token="<unk>")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer(str(tmp_path))
    assert tokenizer.encode(["Find soap:", "brush oil"]) == [[2, 0, 3], [1, 4]]
    assert tokenizer.vocabulary == 5
    assert tokenizer.decode([2, 0]) == "Find soap"
    assert len(tokenizer.fingerprint()) == 64
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is no tokenizer"):
        TextTokenizer(str(tmp_path / "tokenizer.json") + "").encode(["x"])


def test_the_first_question_of_the_sequence_task_is_what_answers_are_asked_by():
    from jaxrec.backbones.prompts import Prompt

    assert SEQUENTIAL.prompts[0] == Prompt().before + "{history}" + Prompt().after
    assert Prompt().between == Instructions().between
