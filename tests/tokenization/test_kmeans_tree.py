"""The tree of k-means: slow walks over it, and the invariants of METHODS T6."""

import dataclasses
import functools
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.parallel import make_mesh, rows_sharding
from jaxrec.recipe import from_json, to_json
from jaxrec.tokenization import Keep, Quantizer, Reassign, Tokenizer
from jaxrec.tokenization.kmeans_tree import KMeansTree, KMeansTreeState, balanced_levels
from tests.tokenization.test_residual_kmeans import clustered

KEY = jax.random.key(0)
EVEN = KMeansTree(branches=4)
FREE = KMeansTree(branches=4, leaf=10, balanced=False)
VECTORS = clustered(rows=300)
TREES = {"even": EVEN, "free": FREE}
BOTH = pytest.mark.parametrize("name", TREES)


@functools.cache
def grown(name):
    """A tree, and its state after VECTORS; fitted when a test first asks for it."""
    return TREES[name], TREES[name].fit(KEY, VECTORS)


@functools.cache
def coded(name):
    """Its codes of VECTORS."""
    tree, state = grown(name)
    return np.asarray(tree.encode(state, VECTORS))


def slow_walk(state, vectors):
    """Level by level, point by point, by the definition."""
    paths, centroids = [], [np.asarray(each, np.float64) for each in state.centroids]
    children = [np.asarray(each) for each in state.children]
    for vector in np.asarray(vectors, np.float64):
        node, path = 0, []
        for means, starts in zip(centroids, children):
            first, last = starts[node], starts[node + 1]
            path.append(int(((means[first:last] - vector) ** 2).sum(1).argmin()))
            node = first + path[-1]
        paths.append(path)
    return np.array(paths)


def assert_equal_states(left, right):
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(one, other)


@BOTH
def test_it_is_a_quantizer_and_survives_the_recipe_file(name):
    tree, state = grown(name)
    assert isinstance(tree, Quantizer)
    assert from_json(json.loads(json.dumps(to_json(tree)))) == tree
    assert tree.reads == ()
    assert coded(name).dtype == np.int32
    json.dumps(tree.report(state))


@BOTH
def test_children_partition_their_parent_down_to_leaves_of_one_vector(name):
    tree, state = grown(name)
    codes = coded(name)
    assert len(np.unique(codes, axis=0)) == 300
    assert len(state.centroids[-1]) == 300
    for level in range(codes.shape[1]):
        prefixes, node = np.unique(codes[:, : level + 1], axis=0, return_inverse=True)
        # Nodes are numbered in the order of their paths, and the codes of siblings have no gap.
        assert len(prefixes) == len(state.centroids[level])
        siblings = np.diff(np.asarray(state.children[level]))
        parents = np.unique(codes[:, :level], axis=0, return_inverse=True)[1].reshape(-1)
        parents = parents if level else np.zeros(300, int)
        for parent, count in enumerate(siblings):
            found = np.unique(codes[parents == parent, level])
            np.testing.assert_array_equal(found, np.arange(count))
        means = np.stack([VECTORS[node == each].mean(0) for each in range(len(prefixes))])
        np.testing.assert_allclose(state.centroids[level], means, atol=1e-5)
        error = ((VECTORS - means[node]) ** 2).sum()
        np.testing.assert_allclose(state.trace.after[level], error, rtol=1e-4, atol=1e-6)
        mse = tree.report(state)["fit_mse_after"][level]
        np.testing.assert_allclose(mse, error / 300 / 12, rtol=1e-4, atol=1e-6)
    assert tree.sizes(state) == tuple(codes.max(0) + 1)


@pytest.mark.parametrize(
    ("rows", "branches"),
    [(1, 2), (2, 2), (3, 2), (33, 2), (27, 3), (28, 3), (8, 8), (9, 8), (64, 8), (65, 8)],
)
def test_balanced_depth_is_the_least_and_sets_of_a_level_are_even(rows, branches):
    vectors = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
    tree = KMeansTree(branches=branches, iterations=3)
    state = tree.fit(KEY, vectors)
    codes = np.asarray(tree.encode(state, vectors))
    levels = next(levels for levels in itertools.count(1) if branches**levels >= rows)
    assert codes.shape == (rows, levels)
    assert balanced_levels(rows, branches, branches) == levels
    assert len(np.unique(codes, axis=0)) == rows
    for level in range(1, levels):
        counts = np.unique(codes[:, :level], axis=0, return_counts=True)[1]
        assert np.ptp(counts) <= 1
        assert len(counts) == min(branches**level, rows)


def test_larger_leaves_are_numbered_in_the_order_of_rows():
    tree = KMeansTree(branches=4, leaf=20)
    state = tree.fit(KEY, VECTORS)
    assert tree.sizes(state) == (4, 4, 19)
    codes = np.asarray(tree.encode(state, VECTORS))
    for prefix in np.unique(codes[:, :2], axis=0):
        mine = (codes[:, :2] == prefix).all(1)
        np.testing.assert_array_equal(codes[mine, 2], np.arange(mine.sum()))


def test_shallow_leaves_of_free_trees_are_padded_with_zeros():
    tree, state = grown("free")
    codes = coded("free")
    counts = [np.diff(np.asarray(starts)) for starts in state.children]
    assert len(counts) > balanced_levels(300, 4, 10)
    node, was_alone = np.zeros(300, int), np.zeros(300, bool)
    for level, (starts, count) in enumerate(zip(state.children, counts)):
        sizes = np.bincount(node, minlength=len(count))
        assert (codes[was_alone, level] == 0).all()
        assert (count[sizes > 10] <= 4).all()
        np.testing.assert_array_equal(count[sizes <= 10], sizes[sizes <= 10])
        node = np.asarray(starts)[node] + codes[:, level]
        was_alone = np.bincount(node)[node] == 1
    assert (codes[:, -1] == 0).any()
    assert was_alone.all()
    assert tree.report(state)["nodes"] == [len(level) for level in state.centroids]


@BOTH
def test_vectors_that_share_more_codes_are_more_alike(name):
    codes = coded(name)
    units = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    cosine = units @ units.T
    shared = np.cumprod(codes[:, None] == codes[None], -1).sum(-1)
    pairs = np.triu_indices(300, 1)
    means = [cosine[pairs][shared[pairs] == depth].mean() for depth in range(4)]
    assert all(after > before + 0.02 for before, after in itertools.pairwise(means))


@BOTH
def test_new_vectors_walk_to_the_nearest_child(name):
    tree, state = grown(name)
    new = clustered(rows=100, seed=7)
    np.testing.assert_array_equal(tree.encode(state, new), slow_walk(state, new))
    mixed = np.concatenate([new[:5], VECTORS[:5], new[5:10]])
    expected = np.concatenate(
        [slow_walk(state, new[:5]), coded(name)[:5], slow_walk(state, new[5:10])]
    )
    np.testing.assert_array_equal(tree.encode(state, mixed), expected)
    # Walks end at leaves, and balance moved some fitted rows away from where they would walk.
    walked = slow_walk(state, VECTORS)
    assert {*map(tuple, walked.tolist())} <= {*map(tuple, coded(name).tolist())}
    if name == "even":
        assert (walked != coded(name)).any()


def test_ties_go_to_the_lowest_child():
    means = jnp.asarray([[1, 0], [-1, 0], [0, 1]], jnp.float32)
    leaves = jnp.asarray([[1, 1], [1, -1], [-1, 0], [0, 1]], jnp.float32)
    children = (jnp.asarray([0, 3], jnp.int32), jnp.asarray([0, 2, 3, 4], jnp.int32))
    state = KMeansTreeState((means, leaves), children)
    grid = np.array(list(itertools.product((-2, -1, 0, 1, 2), repeat=2)), np.float32)
    known = {(1, 1): (0, 0), (1, -1): (0, 1), (-1, 0): (1, 0), (0, 1): (2, 0)}
    expected = [
        known.get(tuple(row), path) for row, path in zip(grid.tolist(), slow_walk(state, grid))
    ]
    np.testing.assert_array_equal(KMeansTree(branches=3).encode(state, grid), expected)


@BOTH
def test_decoding_gives_the_mean_of_the_node_and_the_vector_at_the_leaf(name):
    tree, state = grown(name)
    codes = coded(name)
    np.testing.assert_array_equal(tree.decode(state, codes), VECTORS)
    for levels in range(1, codes.shape[1]):
        _, node = np.unique(codes[:, :levels], axis=0, return_inverse=True)
        means = np.asarray(state.centroids[levels - 1])[node.reshape(-1)]
        np.testing.assert_array_equal(tree.decode(state, codes[:, :levels]), means)


@BOTH
def test_a_child_that_does_not_exist_decodes_to_the_last_node_on_its_path(name):
    tree, state = grown(name)
    codes, sizes, tried = coded(name), tree.sizes(state), 0
    for level in range(1, codes.shape[1]):
        counts = np.diff(np.asarray(state.children[level]))
        node = int(counts.argmin())
        if counts[node] == sizes[level]:
            continue
        path = np.unique(codes[:, :level], axis=0)[node].tolist()
        expected = state.centroids[level - 1][node]
        # Below a missing node there is nothing either, whatever the later codes say.
        for later in range(codes.shape[1] - level):
            missing = np.array([[*path, sizes[level] - 1, *[0] * later]])
            np.testing.assert_array_equal(tree.decode(state, missing)[0], expected)
            tried += 1
    assert tried >= 3 if name == "free" else tried == 1


def test_equal_vectors_share_a_leaf_and_are_counted():
    rows = np.concatenate([VECTORS[:50], VECTORS[10:20], np.zeros((1, 12), np.float32)])
    rows = np.concatenate([rows, -rows[-1:]])  # minus zero is zero
    state = EVEN.fit(KEY, rows)
    codes = np.asarray(EVEN.encode(state, rows))
    assert len(state.centroids[-1]) == 51
    assert EVEN.report(state)["fit_repeated_rows"] == 11
    np.testing.assert_array_equal(codes[50:60], codes[10:20])
    np.testing.assert_array_equal(codes[61], codes[60])
    assert len(np.unique(codes, axis=0)) == 51
    constant = np.full((300, 12), 0.3, np.float32)
    one = EVEN.fit(KEY, constant)
    assert EVEN.sizes(one) == (1,)
    np.testing.assert_array_equal(EVEN.encode(one, constant), np.zeros((300, 1)))


def test_fitted_vectors_are_known_wherever_they_would_walk():
    means = jnp.asarray([[5, 5], [1, 0]], jnp.float32)
    leaves = jnp.asarray([[0, 0], [10, 10], [1, 0]], jnp.float32)
    children = (jnp.asarray([0, 2], jnp.int32), jnp.asarray([0, 2, 3], jnp.int32))
    state = KMeansTreeState((means, leaves), children)
    rows = np.array([[0, 0], [-0.0, 0], [0, 0.1]], np.float32)  # minus zero is zero
    np.testing.assert_array_equal(EVEN.encode(state, rows), [[0, 0], [0, 0], [1, 0]])


@BOTH
def test_vectors_a_rounding_apart_get_different_codes(name):
    tree = TREES[name]
    near = np.nextafter(np.float32(1), np.float32(2), dtype=np.float32)
    rows = np.array(list(itertools.product((1, near), repeat=6)), np.float32)
    codes = np.asarray(tree.encode(tree.fit(KEY, rows), rows))
    assert len(np.unique(codes, axis=0)) == 64


@BOTH
def test_rows_without_weight_change_nothing_and_weights_move_means(name):
    tree = TREES[name]
    weights = np.where(np.arange(300) < 200, 1.0 + np.arange(300), 0.0).astype(np.float32)
    padded = np.where(weights[:, None] > 0, VECTORS, 1e6).astype(np.float32)
    state = tree.fit(KEY, VECTORS, {"weights": weights})
    assert_equal_states(tree.fit(KEY, padded, {"weights": weights}), state)
    assert_equal_states(tree.fit(KEY, VECTORS[:200], {"weights": weights[:200]}), state)
    codes = np.asarray(tree.encode(state, VECTORS[:200]))
    for code in range(4):
        mine = codes[:, 0] == code
        mean = np.average(VECTORS[:200][mine], axis=0, weights=weights[:200][mine])
        np.testing.assert_allclose(state.centroids[0][code], mean, atol=1e-5)
    # A row given twice weighs twice.
    twice = tree.fit(KEY, np.concatenate([VECTORS, VECTORS[:100]]))
    counts = np.where(np.arange(300) < 100, 2.0, 1.0)
    weighed = tree.fit(KEY, VECTORS, {"weights": counts})
    for one, other in zip(twice.centroids, weighed.centroids):
        np.testing.assert_array_equal(one, other)


@BOTH
def test_equal_keys_give_equal_trees_and_units_do_not_matter(name):
    tree, state = grown(name)
    assert_equal_states(tree.fit(KEY, VECTORS), state)
    other = tree.fit(jax.random.key(1), VECTORS)
    assert np.abs(other.centroids[0] - state.centroids[0]).max() > 1e-3
    scaled = tree.fit(KEY, VECTORS * np.float32(4))  # a power of two: the same digits
    np.testing.assert_array_equal(tree.encode(scaled, VECTORS * np.float32(4)), coded(name))


def test_sharded_rows_give_the_codes_of_one_device():
    tree, state = grown("even")
    new = clustered(rows=304, seed=7)
    sharded = jax.device_put(jnp.asarray(new), rows_sharding(make_mesh()))
    np.testing.assert_array_equal(tree.encode(state, sharded), slow_walk(state, new))


@BOTH
def test_arrays_bring_the_tree_back(name):
    tree, state = grown(name)
    arrays = tree.to_arrays(state)
    back = tree.from_arrays(arrays)
    assert_equal_states(back, dataclasses.replace(state, trace=None))
    np.testing.assert_array_equal(tree.encode(back, VECTORS), coded(name))
    assert "fit_mse_after" not in tree.report(back)
    with pytest.raises(ValueError, match="a KMeansTree of"):
        tree.from_arrays({each: arrays[each] for each in arrays if each != "children_1"})
    with pytest.raises(ValueError, match="a KMeansTree of 1 levels has centroids_0, children_0"):
        tree.from_arrays({})
    with pytest.raises(ValueError, match=r"children_1 must lead from 4 nodes .* damaged"):
        tree.from_arrays({**arrays, "children_1": arrays["children_1"][:-1]})
    with pytest.raises(ValueError, match=r"level 0 has 4..4 children, .* allows 1..3; give"):
        dataclasses.replace(tree, branches=3, leaf=1).from_arrays(arrays)


def test_the_tokenizer_needs_no_policy_unless_vectors_are_equal():
    items = [f"item {row}" for row in range(300)]
    ids, report = Tokenizer(EVEN, Keep())(KEY, VECTORS, items=items)
    assert report["final"]["is_unique"]
    np.testing.assert_array_equal(ids.codes, coded("even"))
    twins = np.concatenate([VECTORS[:270], VECTORS[:30]])
    _, kept = Tokenizer(EVEN, Keep())(KEY, twins, items=items)
    _, moved = Tokenizer(EVEN, Reassign())(KEY, twins, items=items)
    assert not kept["final"]["is_unique"]
    assert moved["final"]["is_unique"]
    json.dumps(kept)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"branches": 1}, "branches >= 2"),
        ({"leaf": 0}, "leaf >= 1"),
        ({"iterations": 0}, "iterations >= 1, got 8, 1 and 0"),
    ],
)
def test_bad_hyper_parameters(fields, message):
    with pytest.raises(ValueError, match=message):
        KMeansTree(**fields)


def test_bad_input():
    tree, state = grown("even")
    bad = VECTORS.copy()
    bad[3, 2] = np.nan
    with pytest.raises(ValueError, match="1 of 300 vectors have non-finite"):
        tree.fit(KEY, bad)
    with pytest.raises(ValueError, match="width 5 do not fit a quantizer of width 12"):
        tree.encode(state, np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match=r"level 1 has codes 4..4, outside 0..3"):
        tree.decode(state, np.array([[0, 4]]))
    with pytest.raises(ValueError, match="got pairs"):
        tree.fit(KEY, VECTORS, {"pairs": 1})
    assert math.prod(tree.sizes(state)) >= 300
