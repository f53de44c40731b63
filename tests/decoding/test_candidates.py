"""Given items, scored one beside another, against the whole catalogue."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_toys import decode, example

from jaxrec.decoding import (
    Filters,
    exact_scores,
    item_log_probs,
    sample_items,
    score_items,
    stochastic_beams,
)
from jaxrec.decoding.candidates import item_log_probs_under

ROWS = (3, 17)


@functools.cache
def scorer(block, mask):
    def run(functions, catalogue, filters):
        items, filters = filters
        return score_items(functions, catalogue, items, filters, block=block, mask=mask)

    return run


@pytest.mark.parametrize("mask", ["after_softmax", "before_softmax"])
@pytest.mark.parametrize("block", [1, 4, 99])
@pytest.mark.parametrize("shape", ["uniform", "chain", "skewed"])
def test_equals_the_exact_scores_of_the_catalogue(shape, block, mask):
    catalogue, _, model = example(items=60, shape=shape)
    random = np.random.default_rng(0)
    items = random.integers(-1, 62, (2, 11))  # with repetitions and numbers that are no item
    denied = jnp.asarray(random.integers(0, 60, (2, 9)), jnp.int32)
    allowed = jnp.asarray(random.random(60) < 0.8)
    for filters in (None, Filters(allowed, denied)):
        exact = functools.partial(exact_scores, mask=mask)
        whole = np.asarray(decode(exact, model, ROWS, catalogue, filters))
        whole = np.concatenate([whole, np.full((2, 3), -np.inf)], axis=1)  # also for -1
        ours = decode(scorer(block, mask), model, ROWS, catalogue, (jnp.asarray(items), filters))
        expected = np.take_along_axis(whole, items, axis=1)
        np.testing.assert_allclose(ours, expected, atol=2e-5)


@pytest.mark.parametrize("draw", [sample_items, stochastic_beams])
def test_what_was_drawn_has_the_probability_it_was_drawn_with(draw):
    """`before_softmax` is the sampler's distribution, code by code; `after_softmax` the model's."""
    catalogue, codes, model = example(items=60)
    random = np.random.default_rng(0)
    filters = Filters(jnp.asarray(random.random(60) < 0.5), jnp.asarray([[3, 9], [-1, 5]]))

    def sample(functions, catalogue, filters):
        return draw(functions, catalogue, filters, key=jax.random.key(0), count=12, temperature=0.7)

    def score(functions, catalogue, given):
        items, filters = given
        options = {"temperature": 0.7, "block": 5}
        trie = item_log_probs(
            functions, catalogue, items, filters, mask="before_softmax", **options
        )
        return trie, item_log_probs(functions, catalogue, items, filters, **options)

    sampled = decode(sample, model, ROWS, catalogue, filters)
    trie, full = decode(score, model, ROWS, catalogue, (sampled.items, filters))
    assert sampled.valid.all()
    np.testing.assert_allclose(trie, sampled.log_probs, atol=2e-5)
    for row, place in np.ndindex(2, 12):
        path = codes[int(sampled.items[row, place])]
        for level, code in enumerate(path.tolist()):
            logits = model.logits(ROWS[row], tuple(path[:level].tolist())) / 0.7
            expected = logits[code] - np.logaddexp.reduce(logits)
            np.testing.assert_allclose(full[row, place, level], expected, atol=2e-5)


def test_several_modes_at_once_are_one_after_another():
    catalogue, _, model = example(items=60)
    items = jnp.asarray(np.random.default_rng(0).integers(-1, 62, (2, 7)))
    filters = Filters(denied=jnp.asarray([[3, 9], [-1, 5]]))
    masks = ("before_softmax", "as_given", "after_softmax")

    def together(functions, catalogue, given):
        options = {"block": 4, "temperature": 0.7}
        at_once = item_log_probs_under(functions, catalogue, *given, masks=masks, **options)
        each = [
            item_log_probs(functions, catalogue, *given, mask=mask, **options) for mask in masks
        ]
        return at_once, tuple(each)

    at_once, each = decode(together, model, ROWS, catalogue, (items, filters))
    assert len(at_once) == 3
    for ours, expected in zip(at_once, each):
        np.testing.assert_array_equal(ours, expected)
    first, _, last = (np.asarray(scores) for scores in at_once)
    assert (first[np.isfinite(first)] > last[np.isfinite(last)] + 0.01).any()


def test_bad_arguments():
    catalogue, _, model = example()
    functions = model.functions(model.prefill(ROWS))
    with pytest.raises(ValueError, match="one list of candidates per request"):
        score_items(functions, catalogue, jnp.zeros((3, 1), jnp.int32))
    with pytest.raises(ValueError, match="block=0"):
        score_items(functions, catalogue, jnp.zeros((2, 1), jnp.int32), block=0)
    with pytest.raises(ValueError, match="temperature=0"):
        item_log_probs(functions, catalogue, jnp.zeros((2, 1), jnp.int32), temperature=0.0)
    masks = ("after_softmax", "never")
    # The type checker of the tests may come first where the argument is a Literal.
    with pytest.raises((ValueError, TypeError), match=r"(?s)never.*after_softmax"):
        item_log_probs_under(functions, catalogue, jnp.zeros((2, 1), jnp.int32), masks=masks)
