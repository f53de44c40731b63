"""Training that begins with an import, and goes out again."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.backbones.decoder import Decoder
from jaxrec.interop.huggingface import export_weights, import_weights
from jaxrec.interop.huggingface_config import read_config
from jaxrec.interop.imported import (
    imported_component,
    inspect_source,
    load_imported,
    write_imported,
)
from jaxrec.interop.pretrained import Pretrained
from jaxrec.objectives.response_tokens import ResponseTokens
from jaxrec.parallel import MeshShape, make_mesh, shard_rows, shardings
from jaxrec.pipeline.checks import check_start
from jaxrec.recipe import Recipe
from jaxrec.training.optimizers import AdamW
from jaxrec.training.state import abstract_state, create_state, state_shardings
from jaxrec.training.step import make_train_step
from jaxrec.training.supervised import Supervised
from jaxrec.types import Tables, TextBatch, TokenSpace

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "huggingface"
SPACE = TokenSpace((7, 5, 3))
TABLES = Tables(jnp.asarray(np.random.default_rng(0).integers(0, 3, (20, 3)), jnp.int32))
MESH = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))


@pytest.fixture(scope="module", params=["qwen2", "qwen3"])
def imported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imports") / request.param
    write_imported(inspect_source(GOLDEN / request.param), folder)
    return folder


def placed(model):
    """Shardings of its parameters with rows for codes."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), SPACE))
    return shardings(model.axes(SPACE), shapes, MESH)


@functools.partial(jax.jit, static_argnames=("model", "space"))
def logits_of(model, params, batch, space):
    found = model.forward(params, TABLES, batch, space)
    return found.states @ found.kernel


def text(rows=8, length=12, codes=True):
    random = np.random.default_rng(1)
    token = random.integers(0, 20, (rows, length)).astype(np.int32)
    item = np.full_like(token, -1)
    if codes:
        item[:, 6:9], token[:, 6:9] = 4, np.arange(3)
    none = np.zeros_like(token)
    weight = (np.arange(length) > 5) * np.ones((rows, 1))
    return TextBatch(token, item, none + 1, none + np.arange(length, dtype=np.int32),
                     weight.astype(np.float32))  # fmt: skip


def test_it_begins_with_the_import_and_rows_among_the_others(imported):
    model, before = load_imported(imported)
    start = Pretrained(str(imported))(model, SPACE, jax.random.key(0), placed(model))
    rows = before["tokens"]["table"].shape[0]
    table = np.asarray(start["tokens"]["table"])
    np.testing.assert_array_equal(table[:rows], before["tokens"]["table"])
    assert table.shape[0] == rows + 15 == model.tokens(SPACE)
    old = np.asarray(before["tokens"]["table"])
    spread = (table[rows:] - old.mean(0)) / old.std(0)
    assert 0.8 < spread.std() < 1.2  # 15 rows of some numbers each
    assert start["layers"]["blocks"]["feedforward"]["gate"].sharding.mesh.shape["tensor"] == 2
    # What it says of text is what the import says, over the words that both have.
    plain = TokenSpace((1,))
    batch = jax.tree.map(jnp.asarray, text(codes=False))
    ours = logits_of(model, start, batch, SPACE)[..., :rows]
    theirs = logits_of(model, before, batch, plain)[..., :rows]
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_trained_exported_and_imported_again_it_says_the_same(imported, tmp_path):
    model = imported_component(imported)
    optimizer = AdamW(learning_rate=1e-2, warmup_steps=0).build(3)

    def init(key):
        return model.init(key, SPACE)

    abstract = abstract_state(init, optimizer, model.axes(SPACE), MESH)
    start = functools.partial(Pretrained(str(imported)), model, SPACE)
    state = create_state(init, optimizer, jax.random.key(0), abstract, start)
    step = make_train_step(
        Supervised(ResponseTokens()).loss(model, SPACE),
        optimizer,
        mesh=MESH,
        shardings=state_shardings(abstract),
    )
    losses = []
    for _ in range(3):
        state, report = step(state, TABLES, shard_rows(text(), MESH), jax.random.key(1))
        total, weight = report.metrics["loss"]
        losses.append(float(total / weight))
    assert losses[-1] < losses[0]
    trained = jax.device_get(state.params)
    export_weights(state.params, model, tmp_path / "out", dtype="float32")
    again = read_config(tmp_path / "out")
    params = import_weights(tmp_path / "out", again)
    assert again.text_vocabulary == model.tokens(SPACE)
    # Codes are words now: the same tokens, by number.
    batch = jax.tree.map(jnp.asarray, text())
    numbers = model.text_tokens(TABLES, batch, SPACE)
    words = dataclasses.replace(batch, token=numbers, item=jnp.full_like(batch.item, -1))
    ours = logits_of(model, jax.tree.map(jnp.asarray, trained), batch, SPACE)
    theirs = logits_of(again, params, words, TokenSpace((1,)))
    np.testing.assert_array_equal(ours, theirs)


def test_another_network_is_refused_before_any_work(imported, tmp_path):
    model = imported_component(imported)
    start = Pretrained(str(imported))
    start.check(dataclasses.replace(model, dropout=0.1, dtype="bfloat16", remat=True))
    with pytest.raises(ValueError, match=r"layers is \d+ there and \d+ here"):
        start.check(dataclasses.replace(model, layers=model.layers + 1))
    with pytest.raises(ValueError, match="the generator is a Decoder"):
        start.check(Decoder())
    with pytest.raises(ValueError, match=r"it has no imported\.json"):
        Pretrained(str(tmp_path)).check(model)
    with pytest.raises(ValueError, match="choose one of mean, spread"):
        Pretrained(str(imported), rows="codebook")


def test_a_recipe_checks_where_it_starts(small, imported):
    stage = Supervised(ResponseTokens(), start=Pretrained(str(imported)))
    recipe: Recipe = dataclasses.replace(small, stages=(stage, stage))
    with pytest.raises(ValueError, match="the generator is a Decoder"):
        check_start(recipe, 0)
    check_start(dataclasses.replace(recipe, generator=imported_component(imported)), 0)
    with pytest.raises(ValueError, match=r"set it on stages\.0"):
        check_start(recipe, 1)
    check_start(small, 0)
