"""Lists of items: against Python lists of lists, and against every permutation there is."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_toys import (
    QUICK,
    TableModel,
    decode,
    example,
    random_codes,
    reference_beam,
    reference_scores,
    reference_step,
    reference_trie,
    roomy,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_filters import random_filters

from jaxrec.decoding import (
    BeamSearch,
    Filters,
    ListBeams,
    build_catalogue,
    list_beams,
    prepare_filters,
)
from jaxrec.types import TokenSpace

ROWS = (3, 17)
SIZES = (3, 4, 3)


@functools.cache
def program(length, width, k, mask, sizes=SIZES):
    """One program per numbers and shapes."""
    model = TableModel(TokenSpace(sizes))

    def run(cache, catalogue, filters):
        return list_beams(
            *(model.functions(cache), catalogue, filters),
            length=length,
            width=width,
            k=k,
            mask=mask,
        )

    return jax.jit(run, compiler_options=QUICK)


def reference_lists(model, row, codes, live, mask, width, length):
    """Beams of lists in plain Python: [(items, scores up to each)], the best first."""
    paths = [tuple(int(code) for code in each) for each in codes]
    lists = [((), ())]
    for _ in range(length):
        beams = [(scores[-1] if scores else 0.0, items, scores, ()) for items, scores in lists]
        for _ in range(codes.shape[1]):
            grown = []
            for rank, (score, items, scores, prefix) in enumerate(beams):
                trie = reference_trie(codes, live - set(items))
                written = [(item, paths[item]) for item in items]
                follow = reference_step(model, row, prefix, trie, mask, written)
                for code, gain in follow.items():
                    state = (score + gain, items, scores, (*prefix, code))
                    grown.append((-(score + gain), rank, code, state))
            beams = [state for _, _, _, state in sorted(grown)[:width]]
        if not beams:
            break
        lists = []
        for score, items, scores, prefix in beams:
            item = min(i for i in live - set(items) if paths[i] == prefix)
            lists.append(((*items, item), (*scores, score)))
    return lists


def check_lists(found, row, expected, k, length):
    """One row of an answer equals a reference."""
    for place in range(k):
        items, scores = expected[place] if place < len(expected) else ((), ())
        valid = np.arange(length) < len(items)
        np.testing.assert_array_equal(found.valid[row, place], valid)
        np.testing.assert_array_equal(found.items[row, place][valid], items)
        np.testing.assert_array_equal(found.items[row, place][~valid], -1)
        np.testing.assert_allclose(found.scores[row, place][valid], scores, atol=3e-5)
        assert np.all(np.asarray(found.scores[row, place])[~valid] == -np.inf)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["allowed", "both", "listed", "domains"]),
    shape=st.sampled_from(["uniform", "skewed", "chain"]),
    mask=st.sampled_from(["after_softmax", "before_softmax"]),
    seed=st.integers(0, 10**6),
)
def test_equals_lists_in_python(kind, shape, mask, seed):
    random = np.random.default_rng(seed)
    codes = random_codes(random, SIZES, 14, shape)
    catalogue = roomy(codes, TokenSpace(SIZES))
    filters, live = random_filters(random, 14, kind)
    model, length, width, k = TableModel(TokenSpace(SIZES)), 4, 5, 6
    found = program(length, width, k, mask)(model.prefill(ROWS), catalogue, filters)
    for row in range(2):
        expected = reference_lists(model, ROWS[row], codes, live[row], mask, width, length)
        check_lists(found, row, expected if expected != [((), ())] else [], k, length)


@pytest.mark.parametrize("mask", ["after_softmax", "before_softmax"])
def test_wide_beams_know_every_permutation(mask):
    """All lists of three out of five items, scored one by one; renormalised they sum to 1."""
    codes = np.array([[0, 1], [1, 0], [1, 1], [1, 2], [2, 2]])
    space = TokenSpace((3, 3))
    model, catalogue, live = TableModel(space), build_catalogue(codes, space), set(range(5))
    count = 5 * 4 * 3
    found = program(3, 100, 100, mask, (3, 3))(model.prefill((3,)), catalogue, None)
    expected = {}
    for items in itertools.permutations(range(5), 3):
        total, written = 0.0, []
        for item in items:
            trie = reference_trie(codes, live - {done for done, _ in written})
            path = tuple(codes[item].tolist())
            for depth in range(2):
                step = reference_step(model, 3, path[:depth], trie, mask, written)
                total += step[path[depth]]
            written.append((item, path))
        expected[items] = total
    lists = [tuple(each) for each in np.asarray(found.items[0, :count]).tolist()]
    assert set(lists) == set(expected)
    assert not found.valid[0, count:].any()
    scores = np.asarray(found.scores[0, :count, -1])
    np.testing.assert_allclose(scores, [expected[each] for each in lists], atol=3e-5)
    assert np.all(np.diff(scores) <= 0)
    if mask == "before_softmax":
        assert math.isclose(np.exp(scores).sum(), 1.0, abs_tol=1e-4)


def test_a_list_of_one_is_a_beam_search():
    catalogue, codes, model = example(sizes=SIZES, items=20)
    found = program(1, 4, 4, "after_softmax")(model.prefill(ROWS), catalogue, None)
    for row in range(2):
        beams = reference_beam(model, ROWS[row], codes, set(range(20)), "after_softmax", 4)
        leaders = {tuple(codes[item].tolist()): item for item, _ in reversed(beams)}
        np.testing.assert_array_equal(found.items[row, :, 0], list(leaders.values())[::-1])
    scores = reference_scores(model, 3, codes, set(range(20)), "after_softmax")
    items = np.asarray(found.items[0, :, 0]).tolist()
    np.testing.assert_allclose(found.scores[0, :, 0], [scores[i] for i in items], atol=3e-5)


def test_the_component_gives_the_best_list():
    catalogue, _, model = example(sizes=SIZES, items=20)
    lists = program(4, 5, 6, "before_softmax")(model.prefill(ROWS), catalogue, None)
    ranked = decode(ListBeams(4, 5, "before_softmax"), model, ROWS, catalogue)
    np.testing.assert_array_equal(ranked.items, lists.items[:, 0])
    np.testing.assert_array_equal(ranked.scores, lists.scores[:, 0])
    assert ranked.valid.all()
    assert all(len(set(row)) == 4 for row in np.asarray(ranked.items).tolist())


def test_prepared_filters_serve():
    catalogue, _, model = example(sizes=SIZES, items=20)
    filters = Filters(jnp.arange(20) % 3 > 0, jnp.array([[1, 4], [-1, 2]], jnp.int32))
    run = program(4, 5, 6, "after_softmax")
    prepared = prepare_filters(catalogue, filters, 2)
    found, again = (run(model.prefill(ROWS), catalogue, each) for each in (filters, prepared))
    np.testing.assert_array_equal(found.items, again.items)


def test_what_cannot_be_listed_is_refused():
    catalogue, _, model = example(sizes=SIZES, items=20)
    functions = model.functions(model.prefill(ROWS))
    with pytest.raises(ValueError, match="length=0"):
        list_beams(functions, catalogue, length=0)
    with pytest.raises(ValueError, match="k=0"):
        ListBeams(k=0)
    with pytest.raises(ValueError, match=r"writes one item.*`extend`"):
        list_beams(functions._replace(extend=None), catalogue, length=2)
    one = list_beams(functions._replace(extend=None), catalogue, length=1, width=2)
    alone = BeamSearch(2, 1)(functions, catalogue)
    np.testing.assert_array_equal(one.items[:, 0, :1], alone.items)
