"""The trie of arrays against a dictionary of prefixes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_toys import example, random_codes, roomy
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.decoding import build_catalogue, shape_for
from jaxrec.decoding.catalogue import (
    Catalogue,
    code_of,
    first_child,
    first_row,
    leaf_of,
    parent_of,
)
from jaxrec.decoding.children import child_at, live_children
from jaxrec.decoding.filters import PreparedFilters
from jaxrec.types import TokenSpace


def dictionary(codes: np.ndarray, order: np.ndarray) -> dict[tuple, list[int]]:
    """Items below every prefix, in catalogue order; prefixes of a depth in sorted order."""
    prefixes: dict[tuple, list[int]] = {}
    for i in sorted(range(len(codes)), key=lambda i: (tuple(codes[i]), order[i], i)):
        for depth in range(codes.shape[1] + 1):
            prefixes.setdefault(tuple(codes[i, :depth].tolist()), []).append(i)
    return prefixes


def check_against(catalogue: Catalogue, codes: np.ndarray, order: np.ndarray) -> None:
    """Every number of every prefix, from the tables."""
    prefixes, levels = dictionary(codes, order), codes.shape[1]
    depths = [[p for p in prefixes if len(p) == depth] for depth in range(levels + 1)]
    for depth, here in enumerate(depths):
        number = {prefix: i for i, prefix in enumerate(here)}
        nodes = jnp.arange(len(here), dtype=jnp.int32)
        last = [prefix[-1] if prefix else 0 for prefix in here]
        assert code_of(catalogue, depth, nodes).tolist() == last
        if depth:
            above = {prefix: i for i, prefix in enumerate(depths[depth - 1])}
            parents = [above[prefix[:-1]] for prefix in here]
            assert parent_of(catalogue, depth, nodes).tolist() == parents
        if depth == levels:
            break
        below = {prefix: i for i, prefix in enumerate(depths[depth + 1])}
        children = [[below[p] for p in depths[depth + 1] if p[:-1] == prefix] for prefix in here]
        firsts = [*(each[0] for each in children), len(below)]
        asked = jnp.arange(len(here) + 1, dtype=jnp.int32)
        assert first_child(catalogue, depth, asked).tolist() == firsts
        found = live_children(catalogue, PreparedFilters(), nodes[None], depth)
        for prefix, node in number.items():
            places = np.flatnonzero(found.exists[0, node])
            at = child_at(
                catalogue, depth, jnp.full((1, len(places)), node), jnp.asarray(places[None])
            )
            assert at[0].tolist() == children[node]
            follow = places if found.code is None else np.asarray(found.code)[0, node, places]
            assert [(*prefix, int(code)) for code in follow] == [
                depths[depth + 1][c] for c in at[0]
            ]
    leaves, bounds = depths[-1], np.cumsum([0, *(len(prefixes[leaf]) for leaf in depths[-1])])
    asked = jnp.arange(len(leaves) + 1, dtype=jnp.int32)
    assert first_row(catalogue, asked).tolist() == bounds.tolist()
    rows = jnp.arange(len(codes), dtype=jnp.int32)
    assert catalogue.item_at(rows).tolist() == [i for leaf in leaves for i in prefixes[leaf]]
    assert catalogue.row_of(catalogue.item_at(rows)).tolist() == rows.tolist()
    owner = np.repeat(np.arange(len(leaves)), np.diff(bounds))
    assert leaf_of(catalogue, rows).tolist() == owner.tolist()


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    items=st.integers(1, 40),
    shape=st.sampled_from(["uniform", "chain", "skewed", "full"]),
    layout=st.sampled_from(["tight", "slots", "dense", "growing"]),
    seed=st.integers(0, 10**6),
)
def test_round_trip_against_a_dictionary(sizes, items, shape, layout, seed):
    rng = np.random.default_rng(seed)
    codes, space = random_codes(rng, tuple(sizes), items, shape), TokenSpace(tuple(sizes))
    order = rng.integers(0, 3, len(codes))
    if layout == "tight":
        catalogue = build_catalogue(codes, space, order)
    elif layout == "growing":
        catalogue = build_catalogue(codes, space, order, shape=shape_for(codes, space))
    else:
        catalogue = roomy(codes, space, order, layout)
    check_against(catalogue, codes, order)
    if layout == "tight":
        prefixes = dictionary(codes, order)
        depths = [[p for p in prefixes if len(p) == depth] for depth in range(len(sizes) + 1)]
        assert catalogue.shape.nodes == tuple(map(len, depths))
        assert catalogue.shape.max_group == max(len(prefixes[leaf]) for leaf in depths[-1])
        most = [
            max(sum(p[:-1] == prefix for p in depths[depth + 1]) for prefix in depths[depth])
            for depth in range(len(sizes))
        ]
        assert catalogue.shape.fanout == tuple(most)


def test_many_children_before_a_base_and_wide_codes():
    """Tables of two bytes, several words of bits, and codes beyond one byte."""
    rng = np.random.default_rng(0)
    space = TokenSpace((70, 300, 60))
    codes = np.unique(rng.integers(0, space.sizes, (9000, 3)), axis=0)
    catalogue = build_catalogue(codes, space)
    assert catalogue.shape.kinds == ("full", "dense", "slots")
    assert catalogue.item is None, "sorted codes need no table of items"
    assert catalogue.code.dtype == jnp.uint16
    for depth in (1, 2):
        node = jnp.arange(catalogue.shape.nodes[depth], dtype=jnp.int32)
        prefixes, start = np.unique(codes[:, :depth], axis=0, return_index=True)
        np.testing.assert_array_equal(code_of(catalogue, depth, node), prefixes[:, -1])
        deeper = np.unique(codes[:, : depth + 1], axis=0)
        first = np.searchsorted(deeper[:, 0] * 300 + deeper[:, 1] * (depth > 1),
                                codes[start, 0] * 300 + codes[start, 1] * (depth > 1))  # fmt: skip
        np.testing.assert_array_equal(first_child(catalogue, depth, node), first)
    node = jnp.asarray(rng.integers(0, 70, (1, 40)), jnp.int32)
    found = live_children(catalogue, PreparedFilters(), node, 1)
    place = jnp.argmax(jnp.where(found.exists, jnp.arange(300), -1), axis=-1)  # the last child
    last = first_child(catalogue, 1, node + 1) - 1
    np.testing.assert_array_equal(child_at(catalogue, 1, node, place), last)


def test_an_index_of_the_shape_of_another_needs_no_new_program():
    space, rng = TokenSpace((6, 6, 6)), np.random.default_rng(0)
    codes = random_codes(rng, space.sizes, 80, "uniform")
    shape = shape_for(codes, space, room=0.5)
    old = build_catalogue(codes, space, shape=shape, items=100)
    more = np.concatenate([codes, random_codes(rng, space.sizes, 9, "uniform")])
    new = build_catalogue(more, space, shape=shape, items=100)
    assert jax.tree.structure(old) == jax.tree.structure(new)
    for one, two in zip(jax.tree.leaves(old), jax.tree.leaves(new)):
        assert (one.shape, one.dtype) == (two.shape, two.dtype)
    check_against(new, more, np.zeros(len(more)))
    fewer = build_catalogue(codes[:70], space, shape=shape, items=100)
    check_against(fewer, codes[:70], np.zeros(70))
    assert (np.asarray(fewer.item)[70:] == -1).all()
    assert (np.asarray(fewer.row)[70:] == 100).all()


def test_what_outgrows_its_shape_is_refused():
    space = TokenSpace((6, 6))
    codes = np.array([[0, 0], [1, 1], [2, 2]])
    shape = shape_for(codes, space, room=0.0)
    many = np.array([[i, i] for i in range(6)])
    with pytest.raises(ValueError, match="6 prefixes of 1 codes"):
        build_catalogue(many, space, shape=shape)
    with pytest.raises(ValueError, match="5 items share a semantic ID"):
        build_catalogue(codes[[0] * 5], space, shape=shape)
    tight = build_catalogue(codes, space).shape
    assert tight.kinds == ("dense", "chain")
    with pytest.raises(ValueError, match="shape_for"):
        build_catalogue(np.array([[0, 0], [0, 1], [2, 2]]), space, shape=tight)
    with pytest.raises(ValueError, match="no place for the 3 items"):
        build_catalogue(codes, space, items=2)
    with pytest.raises(ValueError, match=r"room=-0\.1"):
        shape_for(codes, space, room=-0.1)


def test_dead_beams_have_no_children():
    catalogue, _, _ = example()
    for level in range(4):
        dead = jnp.full((1, 2), -1, jnp.int32)
        assert not live_children(catalogue, PreparedFilters(), dead, level).exists.any()


def test_bytes_an_item():
    """Chains and small integers keep the tables small; `benchmarks/decoding.py` has ten million."""
    rng = np.random.default_rng(0)
    wide = TokenSpace((64,) * 8)
    codes = np.unique(rng.integers(0, 64, (10000, 8)), axis=0)
    catalogue = build_catalogue(codes, wide)
    assert "chain" in catalogue.shape.kinds
    # A byte for a code, of seven depths; three tables of starts that are not whole chains.
    assert 10.0 < catalogue.bytes / len(codes) < 11.0


def test_order_ranks_inside_a_group_only():
    codes = np.array([[1, 1], [0, 0], [1, 1], [1, 1]])
    space = TokenSpace((2, 2))
    assert build_catalogue(codes, space).item.tolist() == [1, 0, 2, 3]
    popularity = np.array([5, 99, 7, 5])
    assert build_catalogue(codes, space, -popularity).item.tolist() == [1, 2, 0, 3]


def test_is_a_pytree_with_static_shape_numbers():
    catalogue, _, _ = example()
    leaves, tree = jax.tree.flatten(catalogue)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert tree == jax.tree.structure(example()[0])
    shapes = jax.eval_shape(lambda index: index, catalogue)  # what ahead-of-time lowering passes
    assert jax.tree.structure(shapes) == tree
    jax.jit(lambda index: index.item + 1).lower(shapes).compile()
    again = jax.tree.unflatten(tree, leaves)
    assert (again.shape, again.space, again.items) == (
        catalogue.shape,
        catalogue.space,
        catalogue.items,
    )
    assert catalogue.bytes == sum(np.asarray(leaf).nbytes for leaf in leaves)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((0, 2), int), "empty"),
        (np.zeros((3, 3), int), "columns"),
        (np.zeros(3, int), "columns"),
        (np.zeros((3, 2)), "integers"),
        (np.array([[0, 0], [0, 4]]), r"item 1: code 4 at level 1, where 0 \.\. 3"),
        (np.array([[0, 0], [-1, 0]]), "item 1: code -1 at level 0"),
    ],
)
def test_bad_codes_are_named(codes, message):
    with pytest.raises(ValueError, match=message):
        build_catalogue(codes, TokenSpace((3, 4)))


def test_a_bad_order_is_refused():
    with pytest.raises(ValueError, match="one number per item"):
        build_catalogue(np.zeros((3, 2), int), TokenSpace((3, 4)), np.zeros(2))
