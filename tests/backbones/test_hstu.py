"""HSTU: equal to the published formulas, blind to what it may not know, and able to learn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from decoder_world import check_slopes, make_events, random_params, with_rubbish
from hstu_reference import retrieval_states

from jaxrec import parallel
from jaxrec.backbones.hstu import Hstu
from jaxrec.backbones.hstu_layers import HstuLayers, plain_norm, unit_norm
from jaxrec.backbones.layers import apply_module
from jaxrec.backbones.masks import TokenMetadata
from jaxrec.objectives.item_sampled import ItemSampledSoftmax
from jaxrec.types import Tables, TokenSpace

ITEMS = 39  # one vector more, so that a mesh divides the table
SPACE = TokenSpace((ITEMS,))
TABLES = Tables(jnp.arange(ITEMS, dtype=jnp.int32)[:, None])
SMALL = Hstu(width=12, length=9, dropout=0.0)
NETWORKS = {
    "one head": SMALL,
    "heads of other sizes": dataclasses.replace(SMALL, heads=2, query_size=4, value_size=8),
    "no bias": dataclasses.replace(SMALL, position_bias=False, time_bias=False),
}
DROPPED = dataclasses.replace(NETWORKS["heads of other sizes"], dropout=0.3)
HISTORIES = [[3, 9, 27, 14], [5, 5], [8, 1, 30, 2, 17]]
TIMES = [[0, 60, 3600, 3600], [7, 86400], [100, 101, 10**6, 10**7, 10**8]]


def with_times(batch, *rows):
    """The batch with the times of its histories, one after another in every row."""
    time = np.full(batch.item.shape, 123, np.int32)
    for row, histories in enumerate(rows):
        flat = [each for history in histories for each in history]
        time[row, : len(flat)] = flat
    return dataclasses.replace(batch, time=jnp.asarray(time))


BATCH = with_times(
    make_events(HISTORIES, *[[history] for history in HISTORIES], length=12),
    TIMES,
    *[[times] for times in TIMES],
)


@functools.partial(jax.jit, static_argnums=0)
def states_of(network, params, batch, key=None):
    return network.forward(params, TABLES, batch, SPACE, key=key)[0]


def loss(network, params, batch):
    """Loss per event; what is dropped and the negatives are always the same."""
    objective = ItemSampledSoftmax(negatives=8, temperature=0.2)

    def apply(params, tables, batch, key):
        return network.forward(params, tables, batch, SPACE, key=key)

    total, weight, _ = objective(apply, params, TABLES, batch, jax.random.key(3))
    return total / weight


loss_and_slope = functools.partial(jax.jit, static_argnums=0)(jax.value_and_grad(loss, argnums=1))


@functools.partial(jax.jit, static_argnums=0)
def answer(network, params, batch):
    """Vectors of users and items."""
    users = network.user_vectors(params, TABLES, batch, SPACE)
    return users, network.item_vectors(params, TABLES, SPACE)


def assert_trees_close(ours, expected, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), ours, expected)


def plain(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_published_formulas(name):
    """Packed and alone, and padding is not read."""
    network = NETWORKS[name]
    params = random_params(network, space=SPACE)
    states = states_of(network, params, BATCH)
    np.testing.assert_allclose(np.linalg.norm(states[0, :11], axis=-1), 1.0, atol=1e-6)
    rubbish = states_of(network, params, with_rubbish(BATCH))
    at = 0
    for row, (history, times) in enumerate(zip(HISTORIES, TIMES), start=1):
        expected = retrieval_states(network, plain(params), history, times)
        ours = states[0, at : at + len(history)]
        np.testing.assert_allclose(ours, expected, atol=1e-5)
        np.testing.assert_allclose(states[row, : len(history)], expected, atol=1e-5)
        np.testing.assert_array_equal(rubbish[row, : len(history)], states[row, : len(history)])
        at += len(history)


def test_gradients_are_those_of_the_published_formulas():
    """Central differences of the float64 transcription along one direction a parameter."""
    network, history, times = NETWORKS["heads of other sizes"], HISTORIES[2], TIMES[2]
    params, random = random_params(network, space=SPACE), np.random.default_rng(0)
    weights = random.normal(size=(len(history), network.width))
    batch = with_times(make_events([history], length=5), [times])

    @jax.jit
    @jax.grad
    def slopes_of(params):
        return jnp.sum(states_of(network, params, batch)[0] * weights)

    exact = plain(params)
    for path, slope in jax.tree_util.tree_leaves_with_path(slopes_of(params)):
        direction = random.normal(size=slope.shape)

        def moved(by, path=path, direction=direction):
            there = jax.tree_util.tree_map_with_path(
                lambda place, leaf: leaf + by * direction if place == path else leaf, exact
            )
            return (retrieval_states(network, there, history, times) * weights).sum()

        expected = (moved(1e-6) - moved(-1e-6)) / 2e-6
        assert abs(expected) > 1e-3, path
        np.testing.assert_allclose((slope * direction).sum(), expected, atol=1e-4, rtol=1e-4)


def test_gradients_of_the_loss_reach_every_parameter_and_none_comes_from_padding():
    params = random_params(DROPPED, space=SPACE)
    slopes = check_slopes(lambda there: loss_and_slope(DROPPED, there, BATCH), params)
    assert_trees_close(loss_and_slope(DROPPED, params, with_rubbish(BATCH))[1], slopes, 1e-6)
    read = np.abs(np.asarray(slopes["layers"]["blocks"]["position_bias"]))
    assert np.all(read[:, SMALL.length + 1 :] == 0), "the future is never read"


def test_an_event_is_predicted_from_what_came_before_and_its_own_time():
    params = random_params(SMALL, space=SPACE)

    def moved(**change):
        other = states_of(SMALL, params, dataclasses.replace(BATCH, **change))
        return np.abs(np.asarray(other - states_of(SMALL, params, BATCH)))[3].max(-1)

    gap = moved(item=BATCH.item.at[3, 2].set(11))
    np.testing.assert_array_equal(gap[:5] > 1e-4, [False] * 3 + [True] * 2)
    assert np.all(gap[:3] == 0)
    gap = moved(time=BATCH.time.at[3, 2].set(10**5))
    np.testing.assert_array_equal(gap[:5] > 1e-5, [False] * 2 + [True] * 3)
    assert np.all(gap[:2] == 0)
    # The vector at the start happened with the first event: moving that, one moves the start.
    assert np.all(moved(time=BATCH.time.at[3, 0].set(0))[1:5] > 1e-5)


def test_only_differences_of_time_matter():
    params = random_params(SMALL, space=SPACE)
    later = dataclasses.replace(BATCH, time=BATCH.time + 10**8)
    np.testing.assert_array_equal(states_of(SMALL, params, later), states_of(SMALL, params, BATCH))
    for name, flag in (("one head", "time_bias"), ("no bias", None)):
        network = NETWORKS[name]
        network = dataclasses.replace(network, time_bias=False) if flag else network
        params = random_params(network, space=SPACE)
        timeless = dataclasses.replace(BATCH, time=jnp.zeros_like(BATCH.time))
        np.testing.assert_array_equal(
            states_of(network, params, timeless), states_of(network, params, BATCH)
        )


def test_the_normaliser_is_a_constant_of_the_network():
    """Wider rows change nothing, another `length` does: weights are divided by it."""
    params = random_params(NETWORKS["no bias"], space=SPACE)
    narrow = with_times(make_events([HISTORIES[0]], length=4), [TIMES[0]])
    np.testing.assert_allclose(
        states_of(NETWORKS["no bias"], params, narrow)[0],
        states_of(NETWORKS["no bias"], params, BATCH)[1, :4],
        atol=1e-6,
    )
    longer = dataclasses.replace(NETWORKS["no bias"], length=500)
    gap = states_of(longer, params, narrow) - states_of(NETWORKS["no bias"], params, narrow)
    assert np.abs(np.asarray(gap)).max() > 1e-3


def test_users_continue_their_history_at_its_last_time_and_items_have_length_one():
    params = random_params(SMALL, space=SPACE)
    asked = with_times(
        make_events(*[[history] for history in HISTORIES], [[]], length=7),
        *[[times] for times in TIMES],
    )
    users, items = answer(SMALL, params, with_rubbish(asked))
    for row, (history, times) in enumerate(zip([*HISTORIES, []], [*TIMES, []])):
        last = times[-1] if times else 0
        longer = retrieval_states(SMALL, plain(params), [*history, 0], [*times, last])
        np.testing.assert_allclose(users[row], longer[-1], atol=1e-5)
    table = np.asarray(params["items"]["table"])[:ITEMS]
    expected = table / np.linalg.norm(table, axis=-1, keepdims=True)
    np.testing.assert_allclose(items, expected, atol=1e-6)


def test_norms():
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32) + 4
    normed, unit = (np.asarray(jax.jit(norm)(x)) for norm in (plain_norm, unit_norm))
    np.testing.assert_allclose(normed.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(normed.std(-1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=-1), 1, atol=1e-6)
    for norm in (plain_norm, unit_norm):
        slopes = jax.jit(jax.value_and_grad(lambda x, norm=norm: norm(x).sum()))
        value, slope = slopes(jnp.zeros(4))
        assert value == 0
        assert np.all(np.isfinite(slope))
    np.testing.assert_allclose(jax.jit(unit_norm)(jnp.full(4, 1e-8)), 1e-2, rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_and_axes_follow_the_formula(name):
    network = NETWORKS[name]
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), SPACE))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == network.parameters(SPACE)
    axes = network.axes(SPACE)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, names: a.ndim == len(names), params, axes)))


def test_the_published_sizes_are_the_defaults():
    """ML-1M: items and positions x 50, then per layer 5 x 50^2 weights, 50 biases, two tables."""
    space = TokenSpace((3416,))
    assert Hstu().parameters(space) == (3417 + 201) * 50 + 2 * (5 * 2500 + 50 + 401 + 129)
    large = Hstu(layers=8, heads=2)
    assert large.stack.head_sizes == (25, 25)
    params, again = (Hstu().init(jax.random.key(0), TokenSpace((400,))) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, again, params)
    block = params["layers"]["blocks"]
    for leaf, deviation in (
        (params["items"]["table"], 0.02),
        (params["positions"]["table"], 50**-0.5),
        (block["query"], 0.02),
        (block["output"], (2 / 100) ** 0.5),  # Glorot
    ):
        assert np.std(leaf) == pytest.approx(deviation, rel=0.05)


def test_the_names_and_shapes_of_parameters_are_frozen():
    """They are the schema of checkpoints."""
    network = NETWORKS["heads of other sizes"]
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), SPACE))
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    assert found == {
        "items/table": (40, 12),
        "positions/table": (10, 12),
        "layers/blocks/gate": (2, 12, 2, 8),
        "layers/blocks/value": (2, 12, 2, 8),
        "layers/blocks/query": (2, 12, 2, 4),
        "layers/blocks/key": (2, 12, 2, 4),
        "layers/blocks/output": (2, 2, 8, 12),
        "layers/blocks/output_bias": (2, 12),
        "layers/blocks/position_bias": (2, 19),
        "layers/blocks/time_bias": (2, 129),
    }
    without = jax.eval_shape(lambda: NETWORKS["no bias"].init(jax.random.key(0), SPACE))
    assert not {"position_bias", "time_bias"} & set(without["layers"]["blocks"])


def test_flops_agree_with_the_compiler():
    """Forward pass of straight-line code; element-wise work is left out of the formula."""
    network = Hstu(
        width=64, heads=2, query_size=16, length=16, dropout=0.0, time_bias=False, unroll=2
    )
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), SPACE))
    batch = make_events(*[[list(range(16))]] * 4, length=16)
    counted = states_of.lower(network, params, batch).compile().cost_analysis()["flops"]
    assert network.flops(SPACE, 4, 16) / 3 == pytest.approx(counted, rel=0.1)


def test_dropout_needs_a_key_and_follows_it():
    dropped = dataclasses.replace(SMALL, dropout=0.3)
    params = random_params(SMALL, space=SPACE)
    quiet = states_of(SMALL, params, BATCH)
    np.testing.assert_array_equal(states_of(dropped, params, BATCH), quiet)
    one, two, again = (states_of(dropped, params, BATCH, jax.random.key(n)) for n in (0, 1, 0))
    np.testing.assert_array_equal(one, again)
    assert np.abs(np.asarray(one - two)).max() > 1e-2
    # And the layers by themselves, behind the dropout of the input.
    layers, tokens = HstuLayers(dropped.stack), TokenMetadata(BATCH.segment, BATCH.position)
    timed = dataclasses.replace(tokens, labels={"time": BATCH.time})

    @jax.jit
    def run(keys):
        return apply_module(layers, params["layers"], one, timed, timed, None, keys)[0]

    first, second = (run(jax.random.split(jax.random.key(n), 2)) for n in (0, 1))
    assert np.abs(np.asarray(first - second)).max() > 1e-2


def test_bfloat16_stays_close_to_float32():
    params = random_params(SMALL, scale=0.2, space=SPACE)
    short = dataclasses.replace(SMALL, dtype="bfloat16")
    states = states_of(short, params, BATCH)
    assert states.dtype == short.item_vectors(params, TABLES, SPACE).dtype == jnp.bfloat16
    inside = np.asarray(BATCH.segment) > 0
    exact = np.asarray(states_of(SMALL, params, BATCH))[inside]
    # 8 bits of mantissa in about ten roundings one after another, of numbers below 1
    assert np.abs(np.asarray(states, np.float32)[inside] - exact).max() < 0.03
    slopes = jax.eval_shape(jax.grad(lambda p: loss(short, p, BATCH)), params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(slopes))


def test_shards_blocks_remat_and_unroll_change_nothing_not_even_the_dropout():
    changed = dataclasses.replace(DROPPED, block=5, remat=True, unroll=2)
    assert changed.axes(SPACE) == DROPPED.axes(SPACE)
    params = random_params(DROPPED, space=SPACE)
    expected = loss_and_slope(DROPPED, params, BATCH)
    mesh = parallel.make_mesh(parallel.MeshShape(2, 2, 2))
    shardings = parallel.shardings(DROPPED.axes(SPACE), params, mesh)
    spread = {name for leaf in jax.tree.leaves(shardings) for name in leaf.spec}
    assert {"fsdp", "tensor"} <= spread
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings)
        batch = jax.device_put(BATCH, parallel.rows_sharding(mesh))
        ours = loss_and_slope(changed, placed, batch)
    assert_trees_close(ours, expected, 1e-5)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_lowers_for_accelerators(platform):
    network = dataclasses.replace(SMALL, dtype="bfloat16", dropout=0.3, block=5, remat=True)
    params = random_params(network, space=SPACE)

    def train(params):
        return jax.grad(lambda p: loss(network, p, BATCH))(params)

    lowered = jax.jit(train).trace(params).lower(lowering_platforms=(platform,))
    assert "dot_general" in lowered.as_text()


def test_learns_what_only_time_tells():
    """An item is followed by its neighbour within a minute, and by another one after a day."""
    random = np.random.default_rng(0)
    network = Hstu(width=32, length=8, dropout=0.0)
    items, times = np.zeros((64, 8), np.int32), np.zeros((64, 8), np.int32)
    items[:, 0] = random.integers(0, ITEMS, 64)
    for event in range(1, 8):
        soon = random.random(64) < 0.5
        items[:, event] = (items[:, event - 1] + np.where(soon, 1, 7)) % ITEMS
        times[:, event] = times[:, event - 1] + np.where(soon, 30, 90_000)
    batch = with_times(
        make_events(*[[row.tolist()] for row in items], length=8), *[[row] for row in times]
    )
    params = network.init(jax.random.key(0), SPACE)
    optimizer = optax.adam(1e-2)

    def loss(params):
        states, vectors = network.forward(params, TABLES, batch, SPACE)
        scores = states[:, 1:] @ vectors.T
        losses = optax.softmax_cross_entropy_with_integer_labels(scores / 0.05, batch.item[:, 1:])
        return losses.mean(), scores

    @jax.jit
    def step(params, state):
        slopes, scores = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(slopes, state)
        return optax.apply_updates(params, updates), state, scores

    state = jax.jit(optimizer.init)(params)
    for _ in range(60):
        params, state, scores = step(params, state)
    assert np.mean(np.argmax(scores, -1) == items[:, 1:]) > 0.95


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "multiple of heads, or give query_size"),
        ({"length": 0}, "length=0"),
        ({"block": 0}, "block=0 must be at least 1"),
        ({"dropout": 1.0}, "between 0 and 0.99"),
        ({"dtype": "float16"}, "choose one of float32, bfloat16"),
        ({"initial_scale": 0.0}, "must exceed 0"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Hstu(**change)
    assert Hstu(heads=3, query_size=8, value_size=8).stack.head_sizes == (8, 8)
