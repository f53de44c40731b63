"""Given items, scored one beside another, against the whole catalogue."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from decoding_toys import decode, example

from jaxrec.decoding import Filters, exact_scores, score_items

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


def test_bad_arguments():
    catalogue, _, model = example()
    functions = model.functions(model.prefill(ROWS))
    with pytest.raises(ValueError, match="one list of candidates per request"):
        score_items(functions, catalogue, jnp.zeros((3, 1), jnp.int32))
    with pytest.raises(ValueError, match="block=0"):
        score_items(functions, catalogue, jnp.zeros((2, 1), jnp.int32), block=0)
