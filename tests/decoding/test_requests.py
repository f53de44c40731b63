"""Many random requests with random filters: every answer is an item, allowed, and named once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_toys import QUICK, TableModel, random_codes

from jaxrec.decoding import BeamSearch, Filters, Sampling, build_catalogue
from jaxrec.types import TokenSpace

SPACE = TokenSpace((6, 5, 4))
ITEMS, BATCH, LISTED = 90, 5000, 24
MODEL = TableModel(SPACE)


@functools.cache
def program(decoder):
    """Decodes a batch of random requests; one program a decoder and shape of trie."""

    def run(cache, catalogue, filters, key):
        return decoder(MODEL.functions(cache), catalogue, filters, key)

    return jax.jit(run, compiler_options=QUICK)


def requests(random, batch):
    """Deny- and allow-lists of different lengths; some deny everything, some allow one."""
    keep = random.random((batch, 1)) ** 2
    denied = np.where(random.random((batch, ITEMS)) < keep, np.arange(ITEMS), -1)
    listed = random.integers(-1, ITEMS + 5, (batch, LISTED))
    listed = np.where(random.random((batch, LISTED)) < random.random((batch, 1)), listed, -1)
    return denied.astype(np.int32), listed.astype(np.int32)


def check(ranked, live, codes, exhaustive):
    """No answer that is not live, none twice, none missing where the search saw everything."""
    items, valid = np.asarray(ranked.items), np.asarray(ranked.valid)
    rows = np.arange(len(items))[:, None]
    assert live[rows, np.maximum(items, 0)][valid].all()
    assert (items[~valid] == -1).all()
    ordered = np.sort(np.where(valid, items, -1 - np.arange(items.shape[1])), axis=1)
    assert (np.diff(ordered, axis=1) != 0).all()
    assert (np.diff(valid.astype(int), axis=1) <= 0).all()
    np.testing.assert_array_equal(valid[:, 0], live.any(axis=1))
    if exhaustive:
        expected = np.minimum(live.sum(axis=1), items.shape[1])
        np.testing.assert_array_equal(valid.sum(axis=1), expected)


def run(count, seed):
    """Requests in batches over tries of four shapes, by three decoders in turn."""
    random = np.random.default_rng(seed)
    shapes, decoders = (
        ["uniform", "skewed", "full", "chain"],
        [BeamSearch(4, 10), BeamSearch(200, ITEMS, "before_softmax"), Sampling(6)],
    )
    for number in range(-(-count // BATCH)):
        shape, decoder = shapes[number % 4], decoders[number % 3]
        codes = random_codes(np.random.default_rng(number % 4), SPACE.sizes, ITEMS, shape)
        catalogue = build_catalogue(codes, SPACE)
        denied, listed = requests(random, BATCH)
        allowed = random.random(ITEMS) < random.choice([0.05, 0.5, 1.0])
        live = np.broadcast_to(allowed, (BATCH, ITEMS)).copy()
        rows, places = np.nonzero(denied >= 0)
        live[rows, denied[rows, places]] = False
        filters = Filters(jnp.asarray(allowed), jnp.asarray(denied))
        if number % 2:
            inside = np.zeros((BATCH, ITEMS + 5), bool)
            rows, places = np.nonzero(listed >= 0)
            inside[rows, listed[rows, places]] = True
            live &= inside[:, :ITEMS]
            filters = Filters(filters.allowed, filters.denied, jnp.asarray(listed))
        cache = MODEL.prefill(random.integers(0, 2**31, BATCH))
        ranked = program(decoder)(cache, catalogue, filters, jax.random.key(number))
        check(ranked, live, codes, exhaustive=number % 3 == 1)


def test_sixty_thousand_requests():
    run(60_000, seed=0)


@pytest.mark.slow
def test_a_million_requests():
    run(1_000_000, seed=1)
