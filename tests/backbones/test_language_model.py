"""The language model: its text against numpy, its answers against its text."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_reference import run_layers
from decoder_world import (
    SPACE,
    first_step,
    forward,
    later_step,
    make_events,
    prefill,
    random_params,
    with_rubbish,
)

from jaxrec.backbones.language_model import LanguageModel
from jaxrec.backbones.prompts import Prompt, lay_prompts
from jaxrec.data.text_tokenizer import TextTokenizer
from jaxrec.types import TextBatch, TokenSpace

TINY = LanguageModel(
    layers=2,
    width=12,
    heads=4,
    kv_heads=2,
    head_size=4,
    feedforward=16,
    rope_base=1e4,
    prompt=Prompt(before="ab", between=",", after="=>"),
)
QWEN2 = dataclasses.replace(TINY, attention_bias=True)
QWEN3 = dataclasses.replace(TINY, query_key_norm=True, tied=False)
CODES = TINY.text_vocabulary
"""Row of the first code."""


@pytest.fixture(scope="module", params=[QWEN2, QWEN3], ids=["qwen2", "qwen3"])
def model(request):
    return request.param


def make_text(*rows, length):
    """Rows of examples; an example is a list of text tokens and of (item, level)."""
    arrays = np.zeros((4, len(rows), length), np.int32)
    token, item, segment, position = arrays
    item[:], token[:], position[:] = 7, 2, 9  # rubbish
    for row, examples in enumerate(rows):
        at = 0
        for number, example in enumerate(examples, start=1):
            for index, each in enumerate(example):
                item[row, at], token[row, at] = each if isinstance(each, tuple) else (-1, each)
                segment[row, at], position[row, at] = number, index
                at += 1
    return TextBatch(*map(jnp.asarray, arrays), jnp.asarray(segment > 0, jnp.float32))


@functools.partial(jax.jit, static_argnames=("model", "space"))
def text_logits(model, params, tables, batch, space=SPACE):
    found = model.forward(params, tables, batch, space)
    return found.states @ found.kernel


def spell(codes, example):
    """Rows of the token table of an example."""
    offsets = [CODES, CODES + 7, CODES + 12]
    return [offsets[each[1]] + codes[each] if isinstance(each, tuple) else each for each in example]


def reference(model, params, rows):
    """Logits of one text, by loops."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    table = params["tokens"]["table"]
    states = run_layers(model, params["layers"], [table[row] for row in rows])
    return np.stack(states) @ (table.T if model.tied else params["output"]["kernel"])


EXAMPLE = [65, (3, 0), (3, 1), (3, 2), 44, 255, (39, 0)]
OTHER = [(5, 2), 0, 17]


def test_text_equals_the_numpy_reference(model, world):
    params = random_params(model)
    found = text_logits(model, params, world.tables, make_text([EXAMPLE], length=9))
    expected = reference(model, params, spell(world.codes, EXAMPLE))
    np.testing.assert_allclose(found[0, :7], expected, atol=2e-5, rtol=1e-5)
    assert found.shape == (1, 9, CODES + 15)


def test_examples_of_a_row_do_not_meet(model, world):
    params = random_params(model)
    batch = make_text([EXAMPLE, OTHER], [OTHER], length=12)
    found = np.asarray(text_logits(model, params, world.tables, batch))
    alone = np.asarray(text_logits(model, params, world.tables, make_text([OTHER], length=12)))
    np.testing.assert_allclose(found[0, 7:10], alone[0, :3], atol=1e-5)
    np.testing.assert_allclose(found[1, :3], alone[0, :3], atol=1e-5)
    assert np.abs(found[0, 7] - found[0, 0]).max() > 0.1


def test_an_answer_continues_the_text_of_its_prompt(model, world):
    """Histories are answered as the text that the prompt spells, over the codes of the level."""
    params = random_params(model)
    rows = [[3, 8, 1], [2, 30]]
    events = make_right_aligned(rows, length=4)
    logits = np.asarray(forward(model, params, world.tables, events))
    for row, items in enumerate(rows):
        *history, target = [[(item, level) for level in range(3)] for item in items]
        text = [97, 98, *history[0]]
        for each in history[1:]:
            text += [44, *each]
        text += [61, 62, *target[:2]]
        expected = reference(model, params, spell(world.codes, text))[-3:]
        for level, (start, size) in enumerate(((0, 7), (7, 5), (12, 3))):
            found = logits[row, 0, level]
            wanted = expected[level, CODES + start : CODES + start + size]
            np.testing.assert_allclose(found[:size], wanted, atol=2e-5)
            assert np.all(found[size:] == -1e9)


def make_right_aligned(rows, length):
    """Rows whose last column is the target, as `TargetCentric` gives them."""
    events = make_events(*[[row] for row in rows], length=length)
    index = np.stack([np.roll(np.arange(length), length - len(row)) for row in rows])
    return jax.tree.map(lambda array: jnp.take_along_axis(array, jnp.asarray(index), 1), events)


def test_steps_continue_what_forward_computes(model, world):
    params = random_params(model)
    rows = [[3, 8, 1], [2, 30], [9]]
    whole = np.asarray(forward(model, params, world.tables, make_right_aligned(rows, length=4)))
    history = with_rubbish(make_events(*[[row[:-1]] for row in rows], length=3))
    cache = prefill(model, params, world.tables, history)
    codes = jnp.asarray(world.codes[[row[-1] for row in rows]])
    stay = jnp.zeros((3, 2), jnp.int32)
    both = jnp.stack([codes, (codes + 1) % jnp.array([7, 5, 3])], axis=1)  # two beams
    found, cache = first_step(model, params, cache, stay, stay)
    np.testing.assert_allclose(found[:, 0], whole[:, 0, 0], atol=1e-5)
    for level in (1, 2):
        parents = stay if level == 1 else jnp.array([[1, 0]] * 3)
        chosen = both[..., level - 1][:, :: 1 if level == 1 else -1]
        found, cache = later_step(model, params, cache, chosen, parents, jnp.int32(level))
        beam = level - 1  # at level 2 the beams have changed places
        np.testing.assert_allclose(found[:, beam], whole[:, 0, level], atol=1e-5)
        assert np.abs(found[:, 1 - beam] - found[:, beam]).max() > 0.01


def test_prompts_are_laid_without_holes_in_their_positions():
    events = make_right_aligned([[3, 8], []], length=3)
    codes = jnp.arange(2 * 3 * 2, dtype=jnp.int32).reshape(2, 3, 2) + 500
    laid = lay_prompts(Prompt(before="ab", between=",", after="=>"), events, codes)
    spelt = [np.asarray(laid.tokens[row])[np.asarray(laid.exists[row])].tolist() for row in (0, 1)]
    assert spelt[0] == [97, 98, 502, 503, 44, 504, 505, 61, 62]
    assert spelt[1] == [97, 98, 61, 62]
    for row, length in enumerate((9, 4)):
        exists = np.asarray(laid.exists[row])
        np.testing.assert_array_equal(np.asarray(laid.position[row])[exists], np.arange(length))
    assert laid.tokens.shape[1] == Prompt("ab", ",", "=>").length(3, 2)


def test_what_an_unknown_user_is_told_depends_on_nothing(model, world):
    params = random_params(model)
    empty = make_events([[]], [[]], length=3)
    cache = prefill(model, params, world.tables, empty)
    short = prefill(model, params, world.tables, make_events([[]], length=1))
    np.testing.assert_allclose(cache.user[0], short.user[0], atol=1e-5)


def test_parameters_and_flops_are_counted(world):
    for model in (TINY, QWEN2, QWEN3):
        shapes = jax.eval_shape(lambda model=model: model.init(jax.random.key(0), SPACE))
        assert model.parameters(SPACE) == sum(leaf.size for leaf in jax.tree.leaves(shapes))
    model = LanguageModel(layers=2, width=128, head_size=32, feedforward=384, unroll=2)
    batch = make_text([[1] * 64], [[2] * 64], length=64)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), SPACE))

    def whole(params):
        found = model.forward(params, world.tables, batch, SPACE)
        return jnp.sum(jax.nn.logsumexp(found.states @ found.kernel, axis=-1))

    counted = jax.jit(jax.grad(whole)).lower(params).cost_analysis()["flops"]
    assert abs(model.flops(SPACE, 2, 64) / counted - 1) < 0.1


def test_the_schema_of_its_checkpoints():
    model = dataclasses.replace(QWEN3, attention_bias=True)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), SPACE))
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    blocks = {
        "attention/query": (12, 4, 4),
        "attention/key": (12, 2, 4),
        "attention/value": (12, 2, 4),
        "attention/output": (4, 4, 12),
        "attention/query_bias": (4, 4),
        "attention/key_bias": (2, 4),
        "attention/value_bias": (2, 4),
        "attention/query_norm/scale": (4,),
        "attention/key_norm/scale": (4,),
        "attention_norm/scale": (12,),
        "feedforward/gate": (12, 16),
        "feedforward/up": (12, 16),
        "feedforward/down": (16, 12),
        "feedforward_norm/scale": (12,),
    }
    assert found == {
        "tokens/table": (271, 12),
        "layers/norm/scale": (12,),
        "output/kernel": (12, 271),
        **{f"layers/blocks/{name}": (2, *shape) for name, shape in blocks.items()},
    }
    axes = model.axes(SPACE)
    assert axes["tokens"]["table"] == ("vocab", "embed")
    assert axes["layers"]["blocks"]["attention"]["query_bias"] == ("layers", "heads", None)


def test_codes_need_not_be_equally_many(world):
    space = TokenSpace((7, 5, 3, 9))
    params = random_params(TINY, space=space)
    codes = np.concatenate([world.codes, np.arange(40)[:, None] % 9], axis=1).astype(np.int32)
    tables = dataclasses.replace(world.tables, codes=jnp.asarray(codes))
    logits = forward(TINY, params, tables, make_right_aligned([[3, 1]], length=2), space=space)
    assert np.all(np.asarray(logits[0, 0, 3]) > -1e8)
    assert np.all(np.asarray(logits[0, 0, 2, 3:]) == -1e9)


def test_impossible_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="kv_heads=3 must divide heads=4"):
        LanguageModel(kv_heads=3)
    with pytest.raises(ValueError, match="text_vocabulary=0"):
        LanguageModel(text_vocabulary=0)
    with pytest.raises(ValueError, match=r"Prompt.after must not be empty"):
        Prompt(after="")
    with pytest.raises(ValueError, match="there is no tokenizer at"):
        Prompt(tokenizer=TextTokenizer(str(tmp_path))).tokens()
