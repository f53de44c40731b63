"""Every flag is printed, and none can hold nonsense."""

import dataclasses
import json

import pytest

from jaxrec.evaluation.protocol import Protocol


def test_every_flag_reaches_the_reader(protocol):
    text = " ".join(protocol.describe())
    for told in (
        "toy <log> & co",
        "200 users",
        "90 items",
        "4,100 events",
        "at least 5",
        "leave-one-out",
        "200 test cases",
        "as the log lists them",
        "whole catalogue",
        "are masked",
        "last 50 events",
        "beam search of width 20",
        "A hit is the item itself",
        "training events",
        "validation ndcg@10",
        "seed 3",
        "No part of the method is a surrogate",
    ):
        assert told in text, told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tie_policy": "shuffle:7"}, "at random (seed 7)"),
        ({"tie_policy": "item"}, "by item"),
        ({"candidates": "sampled:100"}, "itself and 100 sampled items"),
        ({"seen_masked": False}, "stay candidates"),
        ({"history_cap": None}, "the whole history"),
        ({"beam_width": None, "decoder": "exact scoring"}, "by exact scoring."),
        ({"level": "sid"}, "semantic codes; another item with the same codes counts"),
        ({"surrogate": "random vectors for the text encoder"}, "Surrogate: random vectors"),
        ({"min_user": 0, "min_item": 0}, "nothing filtered out"),
        ({"part": "validation"}, "200 validation cases"),
    ],
)
def test_each_flag_changes_the_sentences(protocol, change, told):
    changed = dataclasses.replace(protocol, **change)
    assert told in " ".join(changed.describe())
    assert told not in " ".join(protocol.describe())


def test_survives_json(protocol):
    assert Protocol.from_dict(json.loads(json.dumps(protocol.to_dict()))) == protocol


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tie_policy": "shuffle"}, "shuffle:SEED"),
        ({"candidates": "sampled"}, "sampled:N"),
        ({"level": "items"}, "'item', 'sid'"),
        ({"part": "train"}, "'test', 'validation'"),
        ({"beam_width": 0}, "beam_width must be at least 1"),
        ({"num_cases": -1}, "num_cases is a count"),
    ],
)
def test_nonsense_is_refused(protocol, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(protocol, **change)


def test_a_file_with_other_fields_is_refused(protocol):
    fields = protocol.to_dict()
    with pytest.raises(ValueError, match=r"Unknown protocol fields \['beams'\]"):
        Protocol.from_dict(fields | {"beams": 3})
    del fields["dataset"]
    with pytest.raises(ValueError, match=r"lacks \['dataset'\]"):
        Protocol.from_dict(fields)
