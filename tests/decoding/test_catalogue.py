"""The trie of arrays against a dictionary of prefixes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_toys import example, random_codes
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.decoding import build_catalogue
from jaxrec.decoding.catalogue import children, node_at
from jaxrec.types import TokenSpace


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    items=st.integers(1, 40),
    shape=st.sampled_from(["uniform", "chain", "skewed", "full"]),
    seed=st.integers(0, 10**6),
)
def test_round_trip_against_a_dictionary(sizes, items, shape, seed):
    rng = np.random.default_rng(seed)
    codes, space = random_codes(rng, tuple(sizes), items, shape), TokenSpace(tuple(sizes))
    order = rng.integers(0, 3, len(codes))
    catalogue = build_catalogue(codes, space, order)
    item, start, stop = (np.asarray(x) for x in (catalogue.item, catalogue.start, catalogue.stop))
    child, last_code = np.asarray(catalogue.child), np.asarray(catalogue.code)

    prefixes: dict[tuple, list[int]] = {}
    ranked = sorted(range(len(codes)), key=lambda i: (tuple(codes[i]), order[i], i))
    for i in ranked:
        for depth in range(space.levels + 1):
            prefixes.setdefault(tuple(codes[i, :depth].tolist()), []).append(i)

    seen = {(): 0}
    frontier = [((), 0)]
    while frontier:  # walk the arrays from the root and meet every prefix once
        prefix, node = frontier.pop()
        assert item[start[node] : stop[node]].tolist() == prefixes[prefix]
        if len(prefix) == space.levels:
            continue
        for code, below in enumerate(child[node].tolist()):
            assert (below >= 0) == ((*prefix, code) in prefixes)
            if below >= 0:
                assert last_code[below] == code
                seen[(*prefix, code)] = below
                frontier.append(((*prefix, code), below))
    assert seen.keys() == prefixes.keys()
    assert sorted(seen.values()) == list(range(len(prefixes))) == list(range(len(start)))
    by_depth = [sum(len(p) == d for p in prefixes) for d in range(space.levels + 1)]
    assert catalogue.nodes == tuple(by_depth)
    leaves = [group for p, group in prefixes.items() if len(p) == space.levels]
    assert catalogue.max_group == max(map(len, leaves))
    fanout = [
        max((child[seen[p]] >= 0).sum() for p in seen if len(p) == d) for d in range(space.levels)
    ]
    assert list(catalogue.fanout) == fanout
    np.testing.assert_array_equal(np.asarray(catalogue.row)[item], np.arange(len(codes)))
    # Nodes are numbered in sorted order, depth by depth.
    assert [seen[p] for p in sorted(prefixes, key=lambda p: (len(p), p))] == list(range(len(seen)))


def test_nodes_of_rows_and_children_of_dead_beams():
    catalogue, codes, _ = example()
    rows = jnp.arange(catalogue.items)
    for depth in range(5):
        node = np.asarray(node_at(catalogue, rows, depth))
        assert (np.asarray(catalogue.start)[node] <= rows).all()
        assert (np.asarray(catalogue.stop)[node] > rows).all()
        if depth:
            expected = codes[np.asarray(catalogue.item), depth - 1]
            np.testing.assert_array_equal(np.asarray(catalogue.code)[node], expected)
    assert (np.asarray(children(catalogue, jnp.full((1, 2), -1))) == -1).all()


def test_order_ranks_inside_a_group_only():
    codes = np.array([[1, 1], [0, 0], [1, 1], [1, 1]])
    space = TokenSpace((2, 2))
    assert build_catalogue(codes, space).item.tolist() == [1, 0, 2, 3]
    popularity = np.array([5, 99, 7, 5])
    assert build_catalogue(codes, space, -popularity).item.tolist() == [1, 2, 0, 3]


def test_is_a_pytree_with_static_shape_numbers():
    catalogue, _, _ = example()
    leaves, tree = jax.tree.flatten(catalogue)
    assert len(leaves) == 6
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.int32 for leaf in leaves)
    assert tree == jax.tree.structure(example()[0])
    shapes = jax.eval_shape(lambda index: index, catalogue)  # what ahead-of-time lowering passes
    assert jax.tree.structure(shapes) == tree
    jax.jit(lambda index: index.item + 1).lower(shapes).compile()
    again = jax.tree.unflatten(tree, leaves)
    assert (again.nodes, again.fanout, again.space) == (
        catalogue.nodes,
        catalogue.fanout,
        catalogue.space,
    )


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


def test_bad_order_and_budget():
    codes, space = np.zeros((3, 2), int), TokenSpace((3, 4))
    with pytest.raises(ValueError, match="one number per item"):
        build_catalogue(codes, space, np.zeros(2))
    # Two inner nodes (root, one prefix) x 4 codes x 4 bytes.
    with pytest.raises(ValueError, match="need 32 bytes, above the budget of 31"):
        build_catalogue(codes, space, budget_bytes=31)
    build_catalogue(codes, space, budget_bytes=32)
