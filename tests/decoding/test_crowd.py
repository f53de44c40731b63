"""Children of very different nodes, looked up as a crowd, and selections by blocks."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_toys import (
    QUICK,
    TableModel,
    check_ranked,
    random_codes,
    reference_beam,
    roomy,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_filters import KINDS, random_filters

from jaxrec.decoding import TrieShape, beam_search, build_catalogue
from jaxrec.decoding.crowd import crowd_pays
from jaxrec.decoding.ranking import top_k_of_blocks
from jaxrec.types import TokenSpace

ROWS = (3, 17)
SIZES = (3, 70, 40)


def always(catalogue, level, beams):
    """A crowd wherever one can be."""
    return catalogue.shape.kinds[level] == "slots"


@functools.cache
def program(width, k, mask):
    """A search that looks every level up as a crowd; one program for all catalogues of a shape."""
    model = TableModel(TokenSpace(SIZES))

    def run(cache, catalogue, filters):
        with mock.patch("jaxrec.decoding.beam.crowd_pays", always):
            return beam_search(
                model.functions(cache), catalogue, filters, width=width, k=k, mask=mask
            )

    return jax.jit(run, compiler_options=QUICK)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from(["uniform", "skewed", "chain"]),
    kind=st.sampled_from(KINDS),
    mask=st.sampled_from(["after_softmax", "before_softmax"]),
    seed=st.integers(0, 10**6),
)
def test_a_crowd_is_what_python_lists_are(shape, kind, mask, seed):
    random = np.random.default_rng(seed)
    codes = random_codes(random, SIZES, 150, shape)
    model = TableModel(TokenSpace(SIZES))
    catalogue = roomy(codes, model.space)
    filters, live = random_filters(random, 150, kind)
    ranked = program(9, 20, mask)(model.prefill(ROWS), catalogue, filters)
    for row in range(2):
        expected = reference_beam(model, ROWS[row], codes, live[row], mask, 9)
        check_ranked(ranked, row, expected, 20)


def test_popular_prefixes_are_looked_up_as_a_crowd():
    """The layout that is chosen by itself, in a catalogue with a few wide nodes, is exact."""
    random, space = np.random.default_rng(0), TokenSpace((40, 2000, 30))
    share = 1 / np.arange(1, 401) ** 0.3
    first = np.minimum(random.geometric(0.4, 6000) - 1, 39)
    codes = np.stack(
        [first, random.choice(400, 6000, p=share / share.sum()), random.integers(0, 30, 6000)], 1
    )
    codes = np.unique(codes, axis=0)
    catalogue, model, width = build_catalogue(codes, space), TableModel(space), 30
    assert catalogue.shape.kinds[1] == "slots"
    assert crowd_pays(catalogue, 1, width)
    assert not crowd_pays(catalogue, 2, 2)
    ranked = beam_search(model.functions(model.prefill((5,))), catalogue, width=width, k=width)
    expected = reference_beam(model, 5, codes, set(range(len(codes))), "after_softmax", width)
    check_ranked(ranked, 0, expected, width)


def test_what_few_nodes_may_have_bounds_what_they_have():
    random, space = np.random.default_rng(1), TokenSpace((50, 60, 8))
    codes = random_codes(random, space.sizes, 900, "skewed")
    shape = build_catalogue(codes, space).shape
    for depth in range(3):
        _, owner = np.unique(codes[:, :depth], axis=0, return_inverse=True)
        pairs = np.unique(np.c_[owner.reshape(-1), codes[:, depth]], axis=0)
        children = np.sort(np.bincount(pairs[:, 0]))[::-1]
        for count in range(1, len(children) + 3):
            most, bound = children[:count].sum(), shape.most_children(depth, count)
            assert most <= bound
            if count & (count - 1) == 0 and count <= len(children):
                assert most == bound
    unknown = TrieShape((1, 10, 40), ("slots", "slots"), (10, 6), 1)
    assert unknown.most_children(1, 7) == 42
    assert unknown.most_children(1, 70) == 60


@pytest.mark.parametrize("k", [1, 9, 40])
def test_a_selection_by_blocks_is_a_selection(k):
    """Also among equal values, where the lower place comes first."""
    random = np.random.default_rng(0)
    for high, blocks in ((4, 300), (30, 300), (10**6, 300), (4, 30)):
        values = random.integers(0, high, (3, blocks, 32)).astype(np.float32)
        # Few are above 0, so that equal values stand in blocks of different maxima.
        values[2] *= random.random((blocks, 32)) < 0.02
        values[1, random.integers(0, blocks, 250)] = -np.inf
        best, place = top_k_of_blocks(jnp.asarray(values), k)
        expected, where = jax.lax.top_k(values.reshape(3, -1), k)
        np.testing.assert_array_equal(best, expected)
        np.testing.assert_array_equal(place, where)
