"""The token merger: what is merged, where it stands, and what it is at first."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.backbones.layers import Stack, apply_module, logical_axes, unbox
from jaxrec.backbones.token_merger import TokenMerger, merge_tokens, plan_merge
from jaxrec.types import TokenSpace

SPACE = TokenSpace((7, 5, 3), specials=("PAD", "BOS", "SEP"))
BOS, SEP, WIDTH = 1, 2, 4


def item(*codes):
    return [first + code for first, code in zip(SPACE.offsets, codes)]


# a prompt of two items and a separator, then a target; a short prompt; half an item; padding
FIRST = [BOS, *item(6, 0, 2), SEP, *item(0, 4, 1)]
TARGET = item(3, 3, 0)
SECOND = [BOS, *item(1, 1, 1)]
CUT = [*item(2, 2, 2)[1:], *item(4, 4, 2), *item(5, 0, 0)[:2]]


def make_rows(*rows, length=20):
    """Tokens, segments and what is prompt; a row is a list of (tokens, whether prompt, segment)."""
    tokens = np.full((len(rows), length), item(0, 0, 0)[0], np.int32)  # padding looks like a code
    segment, prompt = np.zeros_like(tokens), np.ones(tokens.shape, bool)
    for row, parts in enumerate(rows):
        at = 0
        for part, is_prompt, number in parts:
            here = slice(at, at + len(part))
            tokens[row, here], segment[row, here], prompt[row, here] = part, number, is_prompt
            at += len(part)
    return jnp.asarray(tokens), jnp.asarray(segment), jnp.asarray(prompt)


PACKED = [(FIRST, True, 1), (TARGET, False, 1), (SECOND, True, 2), (CUT[:3], True, 3)]
ROWS = make_rows(PACKED, PACKED[:2], PACKED[2:3], [(CUT, True, 1)])
plan = jax.jit(functools.partial(plan_merge, space=SPACE))
merge = jax.jit(merge_tokens)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def reference(vectors, tokens, segment, prompt, kernel, bias):
    """One row in numpy: (vector, segment, position) of every merged token."""
    answer, at, place = [], 0, {}
    while at < len(tokens):
        run = range(at, at + 3)
        whole = run[-1] < len(tokens) and all(
            SPACE.offsets[level] <= tokens[s] < SPACE.offsets[level] + SPACE.sizes[level]
            and segment[s] == segment[at]
            and prompt[s]
            for level, s in enumerate(run)
        )
        if segment[at]:
            x = vectors[at]
            if whole:
                x = np.concatenate([vectors[s] for s in run]) @ kernel.reshape(-1, WIDTH) + bias
            answer.append((x, segment[at], place.setdefault(segment[at], 0)))
            place[segment[at]] += 1
        at += 3 if whole else 1
    return answer


def test_equals_the_numpy_reference():
    vectors, kernel, bias = random(4, 20, WIDTH), random(3, WIDTH, WIDTH, seed=1), random(WIDTH)
    found = plan(*ROWS)
    merged = merge(vectors, found, kernel, bias)
    for row in range(4):
        inputs = [np.asarray(array[row]) for array in (vectors, *ROWS)]
        expected = reference(*inputs, np.asarray(kernel), np.asarray(bias))
        count = len(expected)
        x, segment, position = zip(*expected)
        np.testing.assert_allclose(merged[row, :count], np.stack(x), atol=1e-5)
        assert found.segment[row].tolist() == [*segment, *[0] * (20 - count)]
        assert found.position[row].tolist() == [*position, *[0] * (20 - count)]


def test_positions_are_consecutive_after_merging():
    """BOS item SEP item, then a target of three codes: eight tokens of prompt became four."""
    found = plan(*ROWS)
    assert found.position[1].tolist() == [0, 1, 2, 3, 4, 5, 6, *[0] * 13]
    assert found.is_item[1].tolist() == [False, True, False, True, *[False] * 16]
    assert found.source[1, :7].tolist() == [0, 1, 4, 5, 8, 9, 10]
    # the cut item stays as it is, in front and at the end
    assert found.is_item[3].tolist() == [False, False, True, *[False] * 17]
    assert found.segment[3].tolist() == [1] * 5 + [0] * 15
    assert found.metadata.position is found.position


def test_first_matrix_alone_gives_the_prompt_of_first_codes():
    """W = [I 0 0]: an item is its first code."""
    tokens, segment, prompt = ROWS
    table = random(SPACE.vocabulary, WIDTH)
    kernel = jnp.zeros((3, WIDTH, WIDTH)).at[0].set(jnp.eye(WIDTH))
    found = plan(tokens, segment, prompt)
    merged = merge(table[tokens], found, kernel, jnp.zeros(WIDTH))
    firsts = [BOS, item(6)[0], SEP, item(0)[0], *TARGET]
    np.testing.assert_allclose(merged[1, :7], table[jnp.array(firsts)], atol=1e-6)


def test_packed_equals_unpacked():
    vectors, kernel, bias = random(4, 20, WIDTH), random(3, WIDTH, WIDTH, seed=1), random(WIDTH)
    vectors = vectors.at[1, :11].set(vectors[0, :11]).at[2, :4].set(vectors[0, 11:15])
    found = plan(*ROWS)
    merged = merge(vectors, found, kernel, bias)
    alone = jnp.concatenate([merged[1, :7], merged[2, :2]])
    np.testing.assert_allclose(merged[0, :9], alone, atol=1e-6)
    together = jnp.concatenate([found.position[1, :7], found.position[2, :2]])
    np.testing.assert_array_equal(found.position[0, :9], together)
    assert found.segment[0, :9].tolist() == [1] * 7 + [2] * 2


def test_items_do_not_reach_across_segments_or_into_targets():
    whole = item(1, 2, 0)
    rows = make_rows(
        [(whole[:2], True, 1), (whole[2:], True, 2)],
        [(whole[:2], True, 1), (whole[2:], False, 1)],
        [(whole[::-1], True, 1)],
        length=3,
    )
    found = plan(*rows)
    assert not np.any(np.asarray(found.is_item))
    assert found.segment.tolist() == [[1, 1, 2], [1, 1, 1], [1, 1, 1]]
    assert found.position.tolist() == [[0, 1, 0], [0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_levels_are_those_of_the_space(levels):
    space = TokenSpace((5,) * levels)
    tokens = jnp.asarray([[1, *[first + 3 for first in space.offsets]]], jnp.int32)
    ones = jnp.ones_like(tokens)
    found = plan_merge(tokens, ones, ones > 0, space, length=2)
    assert found.is_item.tolist() == [[False, True]]
    vectors = random(1, levels + 1, WIDTH)
    module = TokenMerger(STACK, levels)
    params = unbox(module.init(jax.random.key(0), vectors, found))["params"]
    merged = apply_module(module, params, vectors, found)
    np.testing.assert_allclose(merged[0, 0], vectors[0, 0], rtol=1e-6)
    np.testing.assert_allclose(merged[0, 1], vectors[0, 1:].mean(0), atol=1e-6)  # the first W


STACK = Stack(layers=1, width=WIDTH, heads=1, kv_heads=1, head_size=2, feedforward=4)


def test_gradients_reach_what_is_read():
    """Weights by finite differences; vectors that no kept token reads have none."""
    kernel, bias, probe = random(3, WIDTH, WIDTH, seed=1), random(WIDTH), random(4, 20, WIDTH)
    vectors, found = random(4, 20, WIDTH, seed=2), plan(*ROWS)

    @jax.jit
    def slopes(vectors, kernel, bias):
        def loss(vectors, kernel, bias):
            live = (found.segment > 0)[..., None]
            return jnp.sum(jnp.where(live, merge_tokens(vectors, found, kernel, bias), 0) * probe)

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(vectors, kernel, bias)

    start, (of_vectors, of_kernel, of_bias) = slopes(vectors, kernel, bias)
    step = random(3, WIDTH, WIDTH, seed=3)  # the loss is linear in W and in b
    moved, _ = slopes(vectors, kernel + step, bias)
    np.testing.assert_allclose(moved - start, jnp.sum(of_kernel * step), rtol=1e-4)
    moved, _ = slopes(vectors, kernel, bias + 1)
    np.testing.assert_allclose(moved - start, jnp.sum(of_bias), rtol=1e-3)
    reached = np.any(np.asarray(of_vectors) != 0, axis=-1)
    np.testing.assert_array_equal(reached, np.asarray(ROWS[1]) > 0)


def test_schema():
    vectors, found = jnp.zeros((4, 20, WIDTH)), plan(*ROWS)
    module = TokenMerger(STACK, 3)
    boxed = jax.eval_shape(lambda: module.init(jax.random.key(0), vectors, found)["params"])
    assert logical_axes(boxed) == {"kernel": (None, "embed", None), "bias": ("embed",)}
    shapes = jax.tree.map(lambda leaf: leaf.shape, unbox(boxed))
    assert shapes == {"kernel": (3, WIDTH, WIDTH), "bias": (WIDTH,)}


def test_bfloat16_stays_bfloat16():
    vectors, found = random(4, 20, WIDTH).astype(jnp.bfloat16), plan(*ROWS)
    assert merge(vectors, found, random(3, WIDTH, WIDTH), random(WIDTH)).dtype == jnp.bfloat16
