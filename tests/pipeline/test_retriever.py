"""Retrievers go the way of every recipe: trained, judged, mixed, resumed, asked."""

import dataclasses
import json

import numpy as np
import pytest

from jaxrec.backbones.bert4rec import Bert4Rec
from jaxrec.backbones.decoder import Decoder
from jaxrec.backbones.sasrec import SasRec
from jaxrec.backbones.t5 import T5
from jaxrec.cli import main
from jaxrec.data.pipeline import UserCentric
from jaxrec.decoding import BeamSearch, InnerProduct
from jaxrec.evaluation.mixture import ChosenWeight
from jaxrec.evaluation.ranks import read_ranks
from jaxrec.evaluation.report import read_report
from jaxrec.objectives.cloze import Cloze
from jaxrec.objectives.item_softmax import ItemSoftmax
from jaxrec.objectives.next_token import NextToken
from jaxrec.pipeline.checks import (
    check_decoding,
    check_positions,
    check_recipe,
    check_supervision,
)
from jaxrec.pipeline.recommend import recommend_histories
from jaxrec.pipeline.run import open_finished, run
from jaxrec.recipe import from_json, load_recipe, replace, to_json
from jaxrec.representation import NoVectors
from jaxrec.tokenization import ItemIds


@pytest.fixture(scope="module")
def recipe(small):
    """The small world, by a retriever."""
    made = dataclasses.replace(
        replace(small, "stages.0.objective", ItemSoftmax()),
        name="retriever",
        items=NoVectors(),
        tokenizer=ItemIds(),
        generator=SasRec(layers=1, width=32, heads=2, length=64, dropout=0.1),
        decoding=InnerProduct(k=50),
    )
    return replace(made, "evaluation.mix_transitions", True)


@pytest.fixture(scope="module")
def folder(recipe, tmp_path_factory):
    return run(recipe, runs=tmp_path_factory.mktemp("runs"))


def test_the_report_names_a_retriever_and_its_mix(folder):
    report = read_report(folder)
    rows = {(row["method"], row["level"], row["seen_masked"]): row for row in report["rows"]}
    assert ("retriever", "item", True) in rows
    assert not [key for key in rows if key[1] == "sid" or key[0] == "generator"]
    best = rows["retriever", "item", True]["metrics"]["ndcg@10"]
    assert best > 2 * rows["popularity", "item", True]["metrics"]["ndcg@10"]
    mix = json.loads((folder / "report.json").read_text())["mix"]
    curve = mix["validation_ndcg@10"]
    assert curve[f"{mix['weight']:.1f}"] == max(curve.values())
    assert rows["retriever + transitions", "item", True]["metrics"]["recall@10"] > 0
    assert ("retriever + transitions", "item", False) not in rows
    assert {each["method"] for each in report["comparisons"]} == {"retriever"}


def mixed_of(opened, histories, **counters):
    """The mix of a finished run on a log, and with counters, that may differ from the run's own."""
    from jaxrec.evaluation.cases import case_histories
    from jaxrec.pipeline import mixing
    from jaxrec.pipeline.judge import baselines

    model, split = opened.model, opened.data.split
    positions = np.asarray(split.test)
    return mixing.mix_with_transitions(
        mixing.Retrieval(
            model.params, model.tables, model.ranker, histories, opened.recipe.evaluation
        ),
        split,
        baselines(histories, split) | counters,
        case_histories(np.asarray(histories.offsets), np.asarray(histories.item), positions),
        positions,
        seed=0,
    )


def test_weight_zero_is_the_retriever_itself(folder, monkeypatch):
    """Ranks by probabilities equal ranks in the list of inner products."""
    from jaxrec.pipeline import mixing

    opened = open_finished(folder)
    monkeypatch.setattr(mixing, "choose_weight", lambda *_, **__: ChosenWeight(0.0, {0.0: 1.0}))
    mixed = mixed_of(opened, opened.data.histories)
    listed = read_ranks(folder).of("retriever", "item", True)
    within = listed > 0
    np.testing.assert_array_equal(mixed.ranks[within], listed[within])
    assert np.all((mixed.ranks[~within] > 50) | (mixed.ranks[~within] == 0))


@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_the_weight_is_chosen_by_validation_and_nothing_of_the_test(folder, held_out):
    """Permuted test items leave every number of the choice as it is; permuted answers do not."""
    opened = open_finished(folder)
    histories, where = opened.data.histories, np.asarray(getattr(opened.data.split, held_out))
    item = np.asarray(histories.item).copy()
    item[where] = np.random.default_rng(0).permutation(item[where])
    plain = mixed_of(opened, histories)
    changed = mixed_of(opened, dataclasses.replace(histories, item=item))
    assert (plain.report == changed.report) == (held_out == "test")
    assert not np.array_equal(plain.ranks, changed.ranks)


def test_the_weight_is_chosen_with_a_counter_that_has_not_seen_the_answers(folder):
    from jaxrec.evaluation.baselines import Transitions
    from jaxrec.pipeline.judge import baselines
    from jaxrec.pipeline.mixing import TESTED, TUNED

    opened = open_finished(folder)
    histories, split = opened.data.histories, opened.data.split
    plain = mixed_of(opened, histories)
    training_only = baselines(histories, split)["transitions"]
    assert isinstance(training_only, Transitions)
    assert plain.report == mixed_of(opened, histories, **{TESTED: training_only}).report
    assert plain.report == mixed_of(opened, histories, **{TUNED: training_only}).report


def test_probabilities_are_those_of_the_trained_temperature(folder):
    """A softmax of scores over a temperature, by hand."""
    from jaxrec.pipeline.mixing import Retrieval

    opened = open_finished(folder)
    model, evaluation = opened.model, opened.recipe.evaluation
    positions = np.asarray(opened.data.split.test)[:5]

    def shares(temperature):
        retrieval = Retrieval(
            model.params,
            model.tables,
            model.ranker,
            opened.data.histories,
            evaluation,
            temperature,
        )
        return np.concatenate(list(retrieval.probabilities(positions))).astype(np.float64)

    plain, warm = shares(1.0), shares(2.5)
    expected = plain ** (1 / 2.5)
    np.testing.assert_allclose(warm, expected / expected.sum(1, keepdims=True), rtol=1e-4)


def test_the_training_record_tells_its_cost(folder, recipe):
    (stage,) = json.loads((folder / "report.json").read_text())["training"]["stages"]
    rows, length = recipe.stages[0].feed.batch_shape
    space = ItemIds()(items=[str(item) for item in range(120)])[0].space
    softmax = 6 * rows * length * 120 * 32
    network = recipe.generator.flops(space, rows, length)
    assert stage["flops"] == stage["last_step"] * (network + softmax)
    assert stage["validations"] == 2
    assert stage["validation_cases"] == 300


def test_a_finished_retriever_answers(folder):
    opened = open_finished(folder)
    names = [str(item) for item in opened.data.histories.items]
    (answer,) = recommend_histories(opened, [names[:3]], count=5)
    listed = [each.item for each in answer.recommendations]
    assert len(set(listed)) == 5
    assert not set(listed) & set(names[:3])


def test_its_answers_speak_of_inner_products(folder, capsys):
    item = str(open_finished(folder).data.histories.items[0])
    assert main(["recommend", str(folder), "--history", item, "--reasons"]) == 0
    shown = capsys.readouterr().out
    assert "inner product" in shown
    assert "semantic" not in shown
    assert "log-probability" not in shown


def test_the_recipe_survives_json(recipe):
    assert from_json(json.loads(json.dumps(to_json(recipe)))) == recipe


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("decoding", BeamSearch(width=50, k=50), r"SasRec is a retriever.*use InnerProduct"),
        ("generator", Decoder(), r"Decoder is a generator of semantic IDs.*use BeamSearch"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_work(recipe, field, value, message):
    with pytest.raises(ValueError, match=message):
        check_recipe(replace(recipe, field, value))


@pytest.mark.parametrize(
    ("generator", "field", "value", "message"),
    [
        (T5(), "stages.0.feed", UserCentric(), "answers for the last event.*use TargetCentric"),
        (Bert4Rec(), "stages.0.objective", ItemSoftmax(), r"use Cloze\(...\)"),
        (SasRec(), "stages.0.objective", Cloze(), "an objective that masks nothing"),
        (SasRec(), "stages.0.objective", NextToken(), "another over items"),
    ],
)
def test_what_would_train_on_its_own_answers_is_refused(recipe, generator, field, value, message):
    with pytest.raises(ValueError, match=message):
        check_supervision(replace(replace(recipe, "generator", generator), field, value))


def test_positions_that_were_never_trained_are_refused(recipe):
    check_positions(replace(recipe, "evaluation.history", 31))
    with pytest.raises(ValueError, match=r"use feed\.length=33 or more"):
        check_positions(replace(recipe, "evaluation.history", 32))
    with pytest.raises(ValueError, match=r"generator\.length=8 is less"):
        check_positions(replace(recipe, "generator.length", 8))


def test_every_config_passes_the_checks(root):
    for path in sorted((root / "configs").glob("*.py")):
        recipe = load_recipe(path)
        check_decoding(recipe)
        check_supervision(recipe)
        check_positions(recipe)


def test_a_tokenizer_and_a_mix_are_refused_likewise(recipe, small):
    with pytest.raises(ValueError, match="use ItemIds"):
        check_recipe(dataclasses.replace(recipe, tokenizer=small.tokenizer))
    with pytest.raises(ValueError, match="mix_transitions needs a retriever"):
        check_recipe(replace(small, "evaluation.mix_transitions", True))
