"""Sharded == single: the same run on a 2x2x2 mesh and on one device."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxrec.parallel import MeshShape, make_mesh
from jaxrec.pipeline import stages
from jaxrec.pipeline.run import open_run
from jaxrec.recipe import replace
from jaxrec.training.ranking import Ranker
from jaxrec.training.supervised import RankingValidation, StageContext, ranked_batches

STEPS = 6


@pytest.mark.parametrize("history", ["merged", pytest.param("flat", marks=pytest.mark.slow)])
def test_loss_curve_and_answers_do_not_depend_on_the_mesh(small, tmp_path, history):
    recipe = replace(small, "stages.0.fit", dataclasses.replace(
        small.stages[0].fit, steps=STEPS, validate_every=STEPS, checkpoint_every=STEPS,
        log_every=1,
    ))  # fmt: skip
    shape = {"history": history, "dropout": 0.0, "item_buckets": 128 if history == "merged" else 0}
    recipe = replace(recipe, "generator", dataclasses.replace(recipe.generator, **shape))
    recipe = dataclasses.replace(recipe, name=f"mesh-{history}")
    meshes = {
        "single": make_mesh(devices=jax.devices()[:1]),
        "sharded": make_mesh(MeshShape(data=2, fsdp=2, tensor=2)),
    }
    losses, scores, items = {}, {}, {}
    with open_run(recipe, tmp_path) as place:
        data = stages.prepare_data(recipe, place)
        vectors = stages.make_vectors(recipe, place, data)
        tokens = stages.make_tokens(recipe, place, data, vectors)
    for name, mesh in meshes.items():
        context = context_of(recipe, data, tokens, mesh, tmp_path / name)
        result = recipe.stages[0].run(context)
        losses[name] = [row["loss"] for row in result.history if "loss" in row]
        answers = answers_of(context, result.params, data)
        scores[name], items[name] = answers.scores, answers.items
    assert len(losses["single"]) == STEPS
    np.testing.assert_allclose(losses["sharded"], losses["single"], rtol=1e-5)
    np.testing.assert_allclose(scores["sharded"], scores["single"], atol=1e-5, rtol=0)
    # Equal up to items whose scores tie within rounding.
    assert (items["sharded"] == items["single"]).mean() > 0.99


def context_of(recipe, data, tokens, mesh, folder):
    from jaxrec.pipeline.run import index_of

    tables, catalogue = index_of(data, tokens)
    return StageContext(
        generator=recipe.generator,
        space=tokens.ids.space,
        tables=tables,
        catalogue=catalogue,
        ranker=Ranker(recipe.generator, tokens.ids.space, recipe.decoding, mesh),
        histories=data.histories,
        split=data.split,
        history=recipe.evaluation.history,
        rows=64,
        mesh=mesh,
        folder=folder,
        writers=(),
        seed=0,
        manifest={},
    )


def answers_of(context, params, data):
    positions = RankingValidation(context, 100).positions()
    batches = ranked_batches(
        data.histories, positions, history=context.history, rows=context.rows, mask_seen=True
    )
    return context.ranker(params, context.tables, context.catalogue, batches, cases=len(positions))
