"""Filtered decoding equals filtering the exhaustive list."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_toys import (
    QUICK,
    TableModel,
    check_ranked,
    decode,
    example,
    random_codes,
    ranked_reference,
    reference_beam,
    reference_scores,
    roomy,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.decoding import (
    BeamSearch,
    ExactScoring,
    Filters,
    build_catalogue,
    exact_scores,
    prepare_filters,
)
from jaxrec.decoding.children import live_children
from jaxrec.decoding.filters import PreparedFilters, live_before, live_leaves
from jaxrec.types import TokenSpace

ROWS = (3, 17)


KINDS = ("allowed", "denied", "both", "listed", "all", "domains")


def random_filters(rng, items: int, kind: str) -> tuple[Filters, list[set[int]]]:
    """Filters and the items that each of two requests may get. The first two parts are always
    there, so that examples share a program."""
    allowed, denied = np.ones(items, bool), np.full((2, 2 * items), -1)
    if kind in ("allowed", "both", "all"):
        allowed = rng.random(items) < rng.choice([0.0, 0.2, 0.7])
    if kind in ("denied", "both", "all"):
        denied = random_lists(rng, items)
    live = [{i for i in range(items) if allowed[i] and i not in denied[row]} for row in range(2)]
    if kind == "domains":
        return domain_filters(rng, items)
    filters = Filters(jnp.asarray(allowed), denied=jnp.asarray(denied, jnp.int32))
    if kind not in ("listed", "all"):
        return filters, live
    listed = random_lists(rng, items)
    live = [here & set(row.tolist()) for here, row in zip(live, listed)]
    return dataclasses.replace(filters, listed=jnp.asarray(listed, jnp.int32)), live


def domain_filters(rng, items: int) -> tuple[Filters, list[set[int]]]:
    """Three masks that may overlap, a domain for each request that may not exist, deny-lists."""
    masks = rng.random((3, items)) < rng.choice([0.0, 0.2, 0.7], (3, 1))
    domain, denied = rng.integers(-1, 4, 2), random_lists(rng, items)
    live = [set(), set()]
    for row in range(2):
        if 0 <= domain[row] < 3:
            live[row] = set(np.flatnonzero(masks[domain[row]]).tolist()) - set(denied[row].tolist())
    lists = jnp.asarray(denied, jnp.int32)
    return Filters(jnp.asarray(masks), lists, domain=jnp.asarray(domain, jnp.int32)), live


def random_lists(rng, items: int) -> np.ndarray:
    """Two lists of items, with repetitions and items that do not exist."""
    lists = rng.integers(-1, items + 2, (2, 2 * items))
    return np.where(rng.random(lists.shape) < rng.choice([0.1, 0.9]), lists, -1)


@settings(max_examples=120, deadline=None)
@given(
    shape=st.sampled_from(["uniform", "chain", "skewed", "full"]),
    kind=st.sampled_from(KINDS),
    mask=st.sampled_from(["after_softmax", "before_softmax"]),
    decoder=st.sampled_from(["beam", "exact"]),
    layout=st.sampled_from(["slots", "dense"]),
    seed=st.integers(0, 10**6),
)
def test_filtered_equals_the_filtered_list(shape, kind, mask, decoder, layout, seed):
    sizes, items, rng = (2, 4, 4), 24, np.random.default_rng(seed)
    codes = random_codes(rng, sizes, items, shape)
    order = rng.integers(0, 3, items)
    model = TableModel(TokenSpace(sizes))
    catalogue = roomy(codes, model.space, order, layout)
    filters, live = random_filters(rng, items, kind)
    run = BeamSearch(200, items, mask) if decoder == "beam" else ExactScoring(items, 2, mask)
    ranked = decode(run, model, ROWS, catalogue, filters)
    for row in range(2):
        scores = reference_scores(model, ROWS[row], codes, live[row], mask)
        check_ranked(ranked, row, ranked_reference(scores, codes, order), items)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    mask=st.sampled_from(["after_softmax", "before_softmax"]),
    seed=st.integers(0, 10**6),
)
def test_narrow_filtered_beams_meet_no_dead_end(kind, mask, seed):
    sizes, width = (5, 4, 5), 4
    codes = random_codes(np.random.default_rng(seed), sizes, 60, "uniform")
    model = TableModel(TokenSpace(sizes))
    filters, live = random_filters(np.random.default_rng(seed), 60, kind)
    catalogue = roomy(codes, model.space)
    ranked = decode(BeamSearch(width, 10, mask), model, ROWS, catalogue, filters)
    for row in range(2):
        expected = reference_beam(model, ROWS[row], codes, live[row], mask, width)
        check_ranked(ranked, row, expected, 10)
        if live[row]:  # a beam that ran into a dead end would have left nothing
            assert bool(ranked.valid[row, 0])


@pytest.mark.parametrize("kind", ["allowed", "denied"])
def test_one_part_alone(kind):
    catalogue, codes, model = example(sizes=(3, 4), items=40)
    both, live = random_filters(np.random.default_rng(1), 40, kind)
    filters = Filters(both.allowed) if kind == "allowed" else Filters(denied=both.denied)
    for decoder in (BeamSearch(200, 40), ExactScoring(40, 4)):
        ranked = decode(decoder, model, ROWS, catalogue, filters)
        for row in range(2):
            scores = reference_scores(model, ROWS[row], codes, live[row], "after_softmax")
            check_ranked(ranked, row, ranked_reference(scores, codes), 40)


prepare = jax.jit(prepare_filters, static_argnums=2, compiler_options=QUICK)
count_before = jax.jit(live_before, compiler_options=QUICK)
find_children = jax.jit(live_children, static_argnums=3, compiler_options=QUICK)
find_leaves = jax.jit(live_leaves, static_argnums=2, compiler_options=QUICK)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    layout=st.sampled_from(["slots", "dense"]),
    seed=st.integers(0, 10**6),
)
def test_live_counts_against_counting(kind, layout, seed):
    space = TokenSpace((3, 4, 2))
    codes = random_codes(np.random.default_rng(seed), space.sizes, 30, "skewed")
    catalogue = roomy(codes, space, kind=layout)
    filters, live = random_filters(np.random.default_rng(seed), 30, kind)
    prepared = prepare(catalogue, filters, 2)
    item = np.asarray(catalogue.item)
    alive = np.array([[int(i) in live[row] for i in item] for row in range(2)])
    rows = jnp.broadcast_to(jnp.arange(31, dtype=jnp.int32), (2, 31))
    expected = np.concatenate([np.zeros((2, 1)), alive.cumsum(axis=1)], axis=1)
    np.testing.assert_array_equal(count_before(prepared, rows), expected)
    ranges = {(): (0, 30)}
    for row, path in enumerate(codes[item].tolist()):
        for depth in range(1, 4):
            first, _ = ranges.get(tuple(path[:depth]), (row, row))
            ranges[tuple(path[:depth])] = (first, row + 1)
    has = {
        prefix: expected[:, stop] > expected[:, start] for prefix, (start, stop) in ranges.items()
    }
    for level in range(3):
        here = sorted(prefix for prefix in ranges if len(prefix) == level)
        node = jnp.arange(len(here), dtype=jnp.int32)
        found = find_children(catalogue, prepared, jnp.stack([node, node]), level)
        for row in range(2):
            for prefix, beam in zip(here, range(len(here))):
                places = np.flatnonzero(found.exists[row, beam])
                follow = places if found.code is None else np.asarray(found.code)[row, beam, places]
                below = [p for p in ranges if p[:-1] == prefix and len(p) == level + 1]
                assert follow.tolist() == sorted(p[-1] for p in below if has[p][row])
    leaves = sorted(prefix for prefix in ranges if len(prefix) == 3)
    alive_leaves = np.zeros((2, catalogue.leaves), bool)
    alive_leaves[:, : len(leaves)] = np.stack([has[leaf] for leaf in leaves], axis=1)
    np.testing.assert_array_equal(find_leaves(catalogue, prepared, 2), alive_leaves)


def test_denied_and_disallowed_is_counted_once():
    codes = np.array([[0, 0], [0, 0], [0, 1]])
    catalogue = build_catalogue(codes, TokenSpace((2, 2)))
    filters = Filters(jnp.array([False, True, True]), jnp.array([[0, 0, -1, 7]], jnp.int32))
    prepared = prepare(catalogue, filters, 1)
    assert count_before(prepared, jnp.arange(4)[None]).tolist() == [[0, 0, 1, 2]]
    ranked = decode(BeamSearch(5, 3), TableModel(TokenSpace((2, 2))), (1,), catalogue, filters)
    assert sorted(ranked.items[0].tolist()) == [-1, 1, 2]


def test_swapping_a_mask_does_not_recompile_and_prepared_filters_serve():
    catalogue, codes, model = example(sizes=(3, 4))
    traces = []

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(cache, filters):
        traces.append(1)
        return BeamSearch(8, 10)(model.functions(cache), catalogue, filters)

    cache = model.prefill(ROWS)
    for seed in range(3):
        allowed = jnp.asarray(np.random.default_rng(seed).random(len(codes)) < 0.5)
        items = run(cache, Filters(allowed)).items
        assert np.asarray(allowed)[np.asarray(items)[np.asarray(items) >= 0]].all()
    assert len(traces) == 1
    prepared = prepare_filters(catalogue, Filters(allowed), 2)
    np.testing.assert_array_equal(run(cache, prepared).items, items)


def test_nothing_allowed_gives_nothing():
    catalogue, codes, model = example(sizes=(3, 4))
    everyone = jnp.tile(jnp.arange(len(codes), dtype=jnp.int32), (2, 1))
    for filters in (
        Filters(jnp.zeros(len(codes), bool), jnp.full_like(everyone, -1)),
        Filters(jnp.ones(len(codes), bool), everyone),
    ):
        for decoder in (BeamSearch(4, 5, "before_softmax"), ExactScoring(5, 3)):
            ranked = decode(decoder, model, ROWS, catalogue, filters)
            assert not ranked.valid.any()
            assert (ranked.items == -1).all()
            assert (ranked.scores == -jnp.inf).all()
        assert (decode(exact_scores, model, ROWS, catalogue, filters) == -jnp.inf).all()


def test_filters_that_leave_nothing_are_refused_where_they_can_be_read():
    catalogue, _, model = example(sizes=(3, 4))
    functions = model.functions(model.prefill(ROWS))
    everyone = jnp.arange(catalogue.items, dtype=jnp.int32)
    half = jnp.stack([everyone, jnp.full_like(everyone, -1)])
    for filters in (
        Filters(jnp.zeros(catalogue.items, bool)),
        Filters(denied=half),
        Filters(listed=half[::-1]),
        Filters(jnp.ones((2, catalogue.items), bool), domain=jnp.array([2, 0])),
    ):
        count = 2 if filters.domain is None and filters.allowed is not None else 1
        with pytest.raises(ValueError, match=rf"leave {count} of 2 requests nothing.* request 0:"):
            BeamSearch(2, 2)(functions, catalogue, filters)


def test_an_empty_deny_list_costs_nothing():
    catalogue, _, _ = example()
    prepared = prepare_filters(catalogue, Filters(denied=jnp.zeros((2, 0), jnp.int32)), 2)
    assert prepared == PreparedFilters()


def test_filters_of_another_size_are_refused():
    catalogue, _, model = example()
    with pytest.raises(ValueError, match="one flag per item"):
        decode(BeamSearch(2, 2), model, ROWS, catalogue, Filters(jnp.ones(3, bool)))
    for name in ("denied", "listed"):
        lists = Filters(**{name: jnp.full((5, 1), -1)})
        with pytest.raises(ValueError, match=f"filters.{name} has 5 rows.*one list per request"):
            decode(BeamSearch(2, 2), model, ROWS, catalogue, lists)
    masks = jnp.ones((3, catalogue.items), bool)
    for filters in (Filters(masks), Filters(masks[0], domain=jnp.zeros(2, jnp.int32))):
        with pytest.raises(ValueError, match=r"give it with masks of shape \[masks, 60\]"):
            decode(BeamSearch(2, 2), model, ROWS, catalogue, filters)
