"""Scoring the whole catalogue against scoring every item by itself."""

import functools

import jax
import numpy as np
import pytest
from decoding_toys import QUICK, TableModel, decode, example, random_codes, reference_scores, roomy
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.decoding import BeamSearch, ExactScoring, build_catalogue, exact_scores, leaf_scores
from jaxrec.parallel import MeshShape, make_mesh, replicated, rows_sharding
from jaxrec.types import TokenSpace

ROWS = (3, 17)


@functools.cache
def scorer(block: int, mask: str):
    """`exact_scores` with its numbers bound."""
    return functools.partial(exact_scores, block=block, mask=mask)


@settings(max_examples=80, deadline=None)
@given(
    shape=st.sampled_from(["uniform", "chain", "skewed", "full"]),
    how=st.sampled_from([(1, "after_softmax"), (5, "before_softmax"), (999, "after_softmax")]),
    seed=st.integers(0, 10**6),
)
def test_scores_of_all_items(shape, how, seed):
    sizes, items, (block, mask) = (3, 3, 3, 3), 50, how
    codes = random_codes(np.random.default_rng(seed), sizes, items, shape)
    model = TableModel(TokenSpace(sizes))
    catalogue = roomy(codes, model.space)
    scores = decode(scorer(block, mask), model, ROWS, catalogue)
    for row, history in enumerate(ROWS):
        reference = reference_scores(model, history, codes, set(range(items)), mask)
        expected = [reference[item] for item in range(items)]
        np.testing.assert_allclose(scores[row], expected, atol=2e-5)


@pytest.mark.parametrize("block", [2, 20])
def test_scores_without_room_to_grow(block):
    catalogue, codes, model = example(items=90, shape="skewed")
    scores = decode(scorer(block, "after_softmax"), model, ROWS[:1], catalogue)
    reference = reference_scores(model, ROWS[0], codes, set(range(90)), "after_softmax")
    np.testing.assert_allclose(scores[0], [reference[item] for item in range(90)], atol=2e-5)


def test_before_softmax_is_a_distribution_over_leaves_and_after_is_less():
    catalogue, _, model = example(sizes=(5, 4), items=10)
    before = functools.partial(leaf_scores, mask="before_softmax")
    inside = np.exp(decode(before, model, ROWS, catalogue)).sum(axis=1)
    np.testing.assert_allclose(inside, 1, atol=1e-5)
    assert (np.exp(decode(leaf_scores, model, ROWS, catalogue)).sum(axis=1) < 0.9).all()


@pytest.mark.parametrize("mask", ["after_softmax", "before_softmax"])
def test_exact_equals_an_exhaustive_beam(mask):
    catalogue, _, model = example(sizes=(5, 4, 5), items=100)
    beams = decode(BeamSearch(500, 30, mask), model, ROWS, catalogue)
    exact = decode(ExactScoring(30, 3, mask), model, ROWS, catalogue)
    np.testing.assert_array_equal(beams.items, exact.items)
    np.testing.assert_allclose(beams.scores, exact.scores, atol=1e-5)


def test_more_asked_for_than_there_is():
    catalogue, codes, model = example(items=9)
    ranked = decode(ExactScoring(20), model, ROWS, catalogue)
    assert ranked.valid.sum(axis=1).tolist() == [9, 9]
    assert sorted(ranked.items[0, :9].tolist()) == list(range(len(codes)))


def test_memory_follows_the_block_not_the_catalogue():
    space = TokenSpace((32, 32, 32))
    codes = random_codes(np.random.default_rng(0), space.sizes, 20000, "uniform")
    catalogue, model = build_catalogue(codes, space), TableModel(space)
    cache, (arrays, tree) = model.prefill(ROWS), jax.tree.flatten(catalogue)

    def temporary(block):
        def run(cache, arrays):
            whole = jax.tree.unflatten(tree, arrays)
            return leaf_scores(model.functions(cache), whole, block=block)

        program = jax.jit(run).lower(cache, arrays).compile(QUICK)
        return program.memory_analysis().temp_size_in_bytes

    assert temporary(32) < temporary(2000) / 2


def test_sharded_batch_equals_one_device():
    catalogue, _, model = example(items=200)
    decoder, rows = ExactScoring(9, 8), np.arange(16)
    expected = decode(decoder, model, rows, catalogue)
    mesh = make_mesh(MeshShape(data=8))
    cache = jax.device_put(model.prefill(rows), rows_sharding(mesh))
    everywhere = jax.device_put(catalogue, replicated(mesh))
    with jax.set_mesh(mesh):
        run = jax.jit(lambda cache, catalogue: decoder(model.functions(cache), catalogue))
        ranked = run(cache, everywhere)
    np.testing.assert_array_equal(ranked.items, expected.items)
    np.testing.assert_allclose(ranked.scores, expected.scores, atol=1e-6)


def test_bad_arguments():
    with pytest.raises(ValueError, match="block=0"):
        ExactScoring(block=0)
    with pytest.raises(ValueError, match="k=0"):
        ExactScoring(k=0)
