"""The supervised stage of LC-Rec and MiniOneRec as a recipe, with a tiny language model."""

import dataclasses
import json

import numpy as np
import polars as pl
import pytest

from jaxrec.backbones.language_model import LanguageModel
from jaxrec.data.instruction_feed import Instructions
from jaxrec.data.instructions import FUSION, ITEM_TO_TITLE, SEQUENTIAL, TITLE_TO_ITEM
from jaxrec.data.pipeline import TargetCentric, UserCentric
from jaxrec.decoding.beam import BeamSearch
from jaxrec.objectives.next_token import NextToken
from jaxrec.objectives.response_tokens import ResponseTokens
from jaxrec.pipeline.checks import check_supervision
from jaxrec.pipeline.recommend import recommend_histories, recommend_users
from jaxrec.pipeline.run import open_finished, run
from jaxrec.recipe import Evaluation, load_recipe, replace
from jaxrec.training.loop import FitOptions
from jaxrec.training.optimizers import AdamW
from jaxrec.training.supervised import Supervised

pytestmark = pytest.mark.usefixtures("one_device")

TINY = LanguageModel(
    layers=2, width=32, heads=2, kv_heads=1, head_size=16, feedforward=64, attention_bias=True
)
FEED = Instructions(
    tasks=(SEQUENTIAL, TITLE_TO_ITEM, ITEM_TO_TITLE, FUSION), length=160, rows=16, history=8
)


def stage(steps, feed=FEED):
    return Supervised(
        ResponseTokens(),
        feed=feed,
        optimizer=AdamW(learning_rate=5e-3, warmup_steps=5),
        fit=FitOptions(
            steps=steps,
            validate_every=steps,
            checkpoint_every=steps,
            log_every=steps // 4,
            microbatches=2,
        ),
        validation_cases=40,
    )


def losses(folder, name="loss_codes"):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row[name] for row in map(json.loads, lines) if name in row]


@pytest.fixture(scope="module")
def trained(small, one_device, tmp_path_factory):
    recipe = dataclasses.replace(
        small,
        name="language",
        generator=TINY,
        stages=(stage(40),),
        decoding=BeamSearch(width=10, k=10),
        evaluation=Evaluation(cutoffs=(10,), history=8, rows=64, max_cases=64, bootstrap=20),
    )
    return run(recipe, runs=tmp_path_factory.mktemp("runs"))


def test_a_language_model_learns_codes_and_titles(trained):
    codes, text = losses(trained), losses(trained, "loss_text")
    assert codes[-1] < codes[0] - 0.5
    assert text[-1] < text[0] - 0.5


@pytest.fixture(scope="module")
def opened(trained):
    return open_finished(trained)


def test_it_answers_with_real_items(trained, opened):
    lists = pl.read_parquet(trained / "recommendations.parquet")
    items = set(opened.data.histories.items.tolist())
    assert lists.group_by("user").len()["len"].unique().to_list() == [10]
    assert lists.group_by("user").agg(pl.col("item").n_unique())["item"].unique().to_list() == [10]
    assert set(lists["item"]) <= items


def test_a_finished_run_opens_and_answers(opened):
    histories = opened.data.histories
    items = [str(each) for each in histories.items[histories.item[histories.history(5)]]]
    (by_user,) = recommend_users(opened, [str(histories.users[5])], count=10)
    (by_history,) = recommend_histories(opened, [items], count=10)
    assert by_history.recommendations == by_user.recommendations
    assert len({each.item for each in by_user.recommendations} - set(items)) == 10


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"feed": UserCentric()}, "do not go together"),
        ({"objective": NextToken()}, "do not go together"),
        ({"objective": NextToken(), "feed": UserCentric()}, "use TargetCentric"),
    ],
)
def test_what_does_not_go_together_is_refused(small, change, words):
    recipe = dataclasses.replace(
        small, generator=TINY, stages=(dataclasses.replace(stage(40), **change),)
    )
    with pytest.raises(ValueError, match=words):
        check_supervision(recipe)


def test_other_networks_do_not_read_text(small):
    with pytest.raises(ValueError, match="do not go together"):
        check_supervision(dataclasses.replace(small, stages=(stage(40),)))
    histories = dataclasses.replace(stage(40), objective=NextToken(), feed=TargetCentric())
    check_supervision(dataclasses.replace(small, generator=TINY, stages=(histories,)))


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("name", ["lc_rec", "mini_onerec"])
def test_the_recipes_run_on_beauty(name, root, shared_data, tmp_path):
    recipe = load_recipe(root / f"configs/{name}.py")
    for field, value in {
        "data.source.path": str(shared_data / "amazon2014-beauty"),
        "generator": TINY,
        "stages.0": stage(16, dataclasses.replace(recipe.stages[0].feed, length=192, rows=16)),
        "decoding": BeamSearch(width=10, k=10),
        "evaluation": Evaluation(cutoffs=(10,), history=4, rows=32, max_cases=32, bootstrap=10),
    }.items():
        recipe = replace(recipe, field, value)
    folder = run(recipe, runs=tmp_path)
    codes = losses(folder)
    assert np.isfinite(codes).all()
    assert codes[-1] < codes[0]
