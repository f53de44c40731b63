"""LightGCN against dense matrices and a plain matrix factorisation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from behaviour_logs import encode, random_lists, sequences_of

from jaxrec.representation.lightgcn import (
    LightGcn,
    build_graph,
    draw_triples,
    find_absent,
    smooth,
)

LISTS = [*random_lists(users=9, items=7, seed=1), list(range(7))]
USERS, ITEMS = 10, 8  # nobody has item 7, and the last user has all others
RNG = np.random.default_rng(2)
VECTORS = RNG.normal(size=(USERS + ITEMS, 3)).astype(np.float32)


def dense_adjacency(nodes):
    """D^(-1/2) A D^(-1/2) written out; rows of isolated nodes are 0."""
    a = np.zeros((nodes, nodes))
    for user, each in enumerate(LISTS):
        for item in each:
            a[user, USERS + item] = a[USERS + item, user] = 1
    degree = a.sum(0)
    half = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1)), 0)
    return half[:, None] * a * half


def dense_smooth(vectors, layers):
    matrix = dense_adjacency(len(vectors))
    powers = [np.linalg.matrix_power(matrix, power) for power in range(layers + 1)]
    return sum(powers) @ vectors / (layers + 1)


def test_smoothing_is_the_mean_of_powers_of_the_dense_matrix():
    graph = build_graph(sequences_of(LISTS), ITEMS)
    assert (np.diff(graph.target) >= 0).all()
    for layers in (0, 1, 3):
        found = smooth(jnp.asarray(VECTORS), graph, layers)
        np.testing.assert_allclose(found, dense_smooth(VECTORS, layers), atol=1e-6)
    np.testing.assert_array_equal(smooth(jnp.asarray(VECTORS), graph, 0), VECTORS)
    # An isolated node keeps its share of itself and hears of nobody.
    np.testing.assert_array_equal(dense_adjacency(USERS + ITEMS)[-1], 0)
    np.testing.assert_allclose(smooth(jnp.asarray(VECTORS), graph, 3)[-1], VECTORS[-1] / 4)


def test_the_gradient_of_smoothing_is_right():
    graph = build_graph(sequences_of(LISTS), ITEMS)
    slope = RNG.normal(size=VECTORS.shape).astype(np.float32)
    found = jax.grad(lambda x: jnp.sum(smooth(x, graph, 2) * slope))(jnp.asarray(VECTORS))
    np.testing.assert_allclose(found, dense_smooth(slope, 2), atol=1e-6)


def test_every_absent_item_has_one_rank():
    graph = build_graph(sequences_of(LISTS), ITEMS)
    absent = [sorted(set(range(ITEMS)) - set(each)) for each in LISTS]
    user = np.repeat(np.arange(USERS), [len(each) for each in absent])
    rank = np.concatenate([np.arange(len(each)) for each in absent])
    found = find_absent(graph, *(jnp.asarray(each, jnp.int32) for each in (user, rank)))
    np.testing.assert_array_equal(found, np.concatenate(absent))


def test_triples_are_drawn_evenly_and_never_from_what_the_user_had():
    graph = build_graph(sequences_of(LISTS), 7)
    user, item, absent, counts = map(np.asarray, draw_triples(graph, jax.random.key(0), 20_000, 7))
    pairs = {(user, item) for user, each in enumerate(LISTS) for item in each}
    assert set(zip(user.tolist(), item.tolist())) == pairs
    assert not set(zip(user[counts].tolist(), absent[counts].tolist())) & pairs
    np.testing.assert_array_equal(counts, user != 9)  # who has everything lacks nothing
    share = np.unique(user * 100 + item, return_counts=True)[1] / 20_000
    np.testing.assert_allclose(share, 1 / len(pairs), rtol=0.2)
    few = user == next(u for u, each in enumerate(LISTS) if 2 <= len(set(each)) <= 4)
    drawn = np.unique(absent[few], return_counts=True)[1] / few.sum()
    np.testing.assert_allclose(drawn, 1 / len(drawn), rtol=0.25)


def factorise(model, sequences, seed):
    """The same draws; smoothing, gradients and Adam by hand. Item vectors, and every loss."""
    start_key, train_key = jax.random.split(jax.random.key(seed))
    nodes = USERS + ITEMS - 1
    start = jax.random.normal(start_key, (nodes, model.dimension)) * model.initial_scale
    raw = np.asarray(start, np.float64)
    graph, first, second, losses = build_graph(sequences, 7), 0.0, 0.0, []
    decay = model.regularisation
    for step in range(1, model.steps + 1):
        key = jax.random.fold_in(train_key, step - 1)
        user, item, absent, counts = map(np.asarray, draw_triples(graph, key, model.batch, 7))
        x, loss = dense_smooth(raw, model.layers), 0.0
        slope, shrink = np.zeros_like(x), np.zeros_like(x)
        for u, i, j in zip(user[counts], USERS + item[counts], USERS + absent[counts]):
            gap = x[u] @ (x[i] - x[j])
            loss += np.log1p(np.exp(-gap)) + decay / 2 * (raw[[u, i, j]] ** 2).sum()
            pull = -1 / (1 + np.exp(gap))
            slope[u] += pull * (x[i] - x[j])
            slope[i] += pull * x[u]
            slope[j] -= pull * x[u]
            shrink[[u, i, j]] += decay * raw[[u, i, j]]
        losses.append(loss / counts.sum())
        # The matrix of smoothing is symmetric: it is its own transpose.
        slope = (dense_smooth(slope, model.layers) + shrink) / counts.sum()
        first = 0.5 * first + 0.5 * slope
        second = 0.75 * second + 0.25 * slope**2
        rate = model.optimizer.learning_rate
        raw -= rate * (first / (1 - 0.5**step)) / (np.sqrt(second / (1 - 0.75**step)) + 1e-8)
    return dense_smooth(raw, model.layers)[USERS:], losses


@pytest.mark.parametrize("layers", [0, 2])
def test_training_is_that_of_plain_loops(layers):
    """Without layers, that of plain matrix factorisation: nothing smooths anything there."""
    adam = dataclasses.replace(LightGcn().optimizer, b1=0.5, b2=0.75)
    model = LightGcn(3, layers, regularisation=0.1, batch=32, steps=10, optimizer=adam)
    found = encode(model, LISTS, 7, seed=3)
    expected, losses = factorise(model, sequences_of(LISTS), 3)
    np.testing.assert_allclose(found.vectors, expected, atol=2e-5)
    np.testing.assert_allclose(found.facts["fit_loss"], losses, rtol=1e-5)
    assert np.abs(expected).max() > 0.1
    assert losses[-1] < losses[0]
