"""HSTU for ranking: the action at an item, and candidates beside each other as one at a time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from decoder_world import check_slopes, make_events, random_params, with_rubbish
from hstu_reference import ranking_logits

from jaxrec import parallel
from jaxrec.backbones.hstu_ranking import HstuRanker
from jaxrec.types import Tables, TokenSpace

ITEMS = 40
SPACE = TokenSpace((ITEMS,))
TABLES = Tables(jnp.arange(ITEMS, dtype=jnp.int32)[:, None])
RANKER = HstuRanker(actions=3, width=12, heads=2, length=7, value_size=8, dropout=0.0)
HISTORIES = [[3, 9, 27, 14], [5, 5], [8, 1, 30, 2, 17]]
ACTIONS = [[0, 2, 1, 1], [2, 2], [1, 0, 0, 2, 1]]
TIMES = [[0, 60, 3600, 3600], [7, 86400], [100, 101, 10**6, 10**7, 10**8]]
CANDIDATES = np.array([[4, 9, -1, 27, 0], [5, 39, 5, 40, 1], [2, 8, 17, 30, 6], [1, 2, 3, 4, -1]])


def make_batch(*rows, length):
    """Rows of numbers of histories, with their actions and times; the rest is padding."""
    batch = make_events(*[[HISTORIES[index] for index in row] for row in rows], length=length)
    action, time = (np.full(batch.item.shape, rubbish, np.int32) for rubbish in (1, 123))
    for row, indices in enumerate(rows):
        for array, values in ((action, ACTIONS), (time, TIMES)):
            flat = [each for index in indices for each in values[index]]
            array[row, : len(flat)] = flat
    return dataclasses.replace(batch, action=jnp.asarray(action), time=jnp.asarray(time))


BATCH = make_batch([0, 1, 2], [0], [1], [2], length=12)
ASKED = make_batch([0], [1], [2], [], length=5)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(ranker, params, batch, key=None):
    return ranker.forward(params, TABLES, batch, SPACE, key=key)


@functools.partial(jax.jit, static_argnames=("ranker", "block"))
def scores_of(params, batch, items, time=None, *, ranker=RANKER, block=64):
    return ranker.score_candidates(params, TABLES, batch, items, SPACE, time=time, block=block)


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.value_and_grad, argnums=1)
def loss_and_slope(ranker, params, batch):
    """Binary cross-entropy of every kind of action."""
    logits = ranker.forward(params, TABLES, batch, SPACE, key=jax.random.key(1))
    wanted = jax.nn.one_hot(batch.action, ranker.actions)
    losses = optax.sigmoid_binary_cross_entropy(logits, wanted).sum(-1)
    return jnp.sum(losses * batch.weight) / jnp.sum(batch.weight)


def plain(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


@pytest.fixture(scope="module")
def params():
    return random_params(RANKER, space=SPACE)


def test_equals_the_published_formulas(params):
    """Packed and alone, and padding is not read."""
    logits = logits_of(RANKER, params, BATCH)
    rubbish = logits_of(RANKER, params, with_rubbish(BATCH))
    at = 0
    for row, (history, actions, times) in enumerate(zip(HISTORIES, ACTIONS, TIMES), start=1):
        expected = ranking_logits(RANKER, plain(params), history, actions, times)
        ours = logits[0, at : at + len(history)]
        np.testing.assert_allclose(ours, expected, atol=1e-5)
        np.testing.assert_allclose(logits[row, : len(history)], expected, atol=1e-5)
        np.testing.assert_array_equal(rubbish[row, : len(history)], logits[row, : len(history)])
        at += len(history)


def test_an_action_is_predicted_from_its_item_and_earlier_actions(params):
    def moved(**change):
        other = logits_of(RANKER, params, dataclasses.replace(BATCH, **change))
        return np.abs(np.asarray(other - logits_of(RANKER, params, BATCH)))[3, :5].max(-1) > 0

    own = moved(action=BATCH.action.at[3, 2].set(2))
    np.testing.assert_array_equal(own, [False, False, False, True, True])
    item = moved(item=BATCH.item.at[3, 2].set(11))
    np.testing.assert_array_equal(item, [False, False, True, True, True])


@pytest.mark.parametrize("time", [None, [4000, 86500, 10**8 + 5, 9]])
def test_candidates_beside_each_other_equal_one_at_a_time(params, time):
    """And equal the history with one more event, whatever its action."""
    items = jnp.asarray(CANDIDATES, jnp.int32)
    ours = scores_of(params, ASKED, items, None if time is None else jnp.asarray(time), block=2)
    for row in range(4):
        history, actions, times = (
            [*HISTORIES, []][row], [*ACTIONS, []][row], [*TIMES, [0]][row]
        )  # fmt: skip
        asked = times[-1] if time is None else time[row]
        for place, item in enumerate(CANDIDATES[row]):
            if not 0 <= item < ITEMS:
                assert np.all(np.asarray(ours)[row, place] == -np.inf)
                continue
            when = [*times[: len(history)], asked]
            expected = ranking_logits(RANKER, plain(params), [*history, item], [*actions, 0], when)[
                -1
            ]
            np.testing.assert_allclose(ours[row, place], expected, atol=1e-5)


def test_candidates_do_not_see_each_other_and_blocks_change_nothing(params):
    items = jnp.asarray(CANDIDATES, jnp.int32)
    expected = scores_of(params, ASKED, items)
    np.testing.assert_allclose(scores_of(params, ASKED, items, block=2), expected, atol=1e-6)
    order = np.array([3, 0, 4, 2, 1])
    moved = scores_of(params, ASKED, items[:, order])
    np.testing.assert_allclose(moved, expected[:, order], atol=1e-6)
    others = scores_of(params, ASKED, items.at[:, 1:].set(13))
    np.testing.assert_array_equal(others[:, 0], expected[:, 0])
    rubbish = scores_of(params, with_rubbish(ASKED), items)
    np.testing.assert_array_equal(rubbish, expected)


def test_gradients_reach_every_parameter_and_none_comes_from_padding(params):
    slopes = check_slopes(lambda there: loss_and_slope(RANKER, there, BATCH), params)
    rubbish = loss_and_slope(RANKER, params, with_rubbish(BATCH))[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), rubbish, slopes)


def test_sharded_with_blocks_and_remat_equals_plain(params):
    expected = loss_and_slope(RANKER, params, BATCH)
    changed = dataclasses.replace(RANKER, block=5, remat=True, unroll=2)
    mesh = parallel.make_mesh(parallel.MeshShape(2, 2, 2))
    shardings = parallel.shardings(changed.axes(SPACE), params, mesh)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings)
        batch = jax.device_put(BATCH, parallel.rows_sharding(mesh))
        ours = loss_and_slope(changed, placed, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, expected)


def test_the_names_and_shapes_of_parameters_are_frozen():
    """They are the schema of checkpoints; and they follow the formula."""
    shapes = jax.eval_shape(lambda: RANKER.init(jax.random.key(0), SPACE))
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    assert found == {
        "actions/table": (3, 12),
        "head/bias": (3,),
        "head/kernel": (12, 3),
        "items/table": (40, 12),
        "positions/table": (16, 12),
        "layers/blocks/gate": (2, 12, 2, 8),
        "layers/blocks/value": (2, 12, 2, 8),
        "layers/blocks/query": (2, 12, 2, 6),
        "layers/blocks/key": (2, 12, 2, 6),
        "layers/blocks/output": (2, 2, 8, 12),
        "layers/blocks/output_bias": (2, 12),
        "layers/blocks/position_bias": (2, 31),
        "layers/blocks/time_bias": (2, 129),
    }
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == RANKER.parameters(SPACE)
    ranks = jax.tree.map(lambda leaf, names: leaf.ndim == len(names), shapes, RANKER.axes(SPACE))
    assert all(jax.tree.leaves(ranks))


def test_flops_agree_with_the_compiler():
    ranker = HstuRanker(actions=40, width=64, length=16, dropout=0.0, unroll=2)
    params = jax.eval_shape(lambda: ranker.init(jax.random.key(0), SPACE))
    batch = make_events(*[[list(range(12))]] * 4, length=12)
    counted = logits_of.lower(ranker, params, batch).compile().cost_analysis()["flops"]
    assert ranker.flops(SPACE, 4, 12) / 3 == pytest.approx(counted, rel=0.1)


def test_dropout_needs_a_key_and_16_bits_stay_close(params):
    quiet = logits_of(RANKER, params, BATCH)
    dropped = dataclasses.replace(RANKER, dropout=0.3)
    np.testing.assert_array_equal(logits_of(dropped, params, BATCH), quiet)
    one, two = (logits_of(dropped, params, BATCH, jax.random.key(n)) for n in (0, 1))
    assert np.abs(np.asarray(one - two)).max() > 1e-2
    short = logits_of(dataclasses.replace(RANKER, dtype="bfloat16"), params, BATCH)
    assert short.dtype == jnp.float32
    inside = np.asarray(BATCH.segment) > 0
    assert np.abs(np.asarray(short - quiet))[inside].max() < 0.05 * np.abs(quiet).max()


def test_learns_a_rule_that_needs_item_and_history():
    """The action is whether the item was there before; every batch is new."""
    random = np.random.default_rng(0)
    params, optimizer = random_params(RANKER, scale=0.1, space=SPACE), optax.adam(1e-2)
    state, update = jax.jit(optimizer.init)(params), jax.jit(optimizer.update)

    def draw():
        items = random.integers(0, 6, (4, 12))
        seen = [[item in row[:at] for at, item in enumerate(row)] for row in items]
        batch = make_events(*[[row.tolist()] for row in items], length=12)
        return dataclasses.replace(batch, action=jnp.asarray(seen, jnp.int32))

    for _ in range(300):
        _, slopes = loss_and_slope(RANKER, params, draw())
        updates, state = update(slopes, state)
        params = jax.tree.map(np.add, params, updates)
    batch = draw()
    found = np.argmax(logits_of(RANKER, params, batch), -1)
    assert np.mean(found == np.asarray(batch.action)) > 0.95


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": 0}, "actions=0"),
        ({"length": 0}, "length=0"),
        ({"width": 10, "heads": 4}, "multiple of heads"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        HstuRanker(**change)


def test_impossible_questions_are_refused(params):
    items = jnp.zeros((3, 2), jnp.int32)
    with pytest.raises(ValueError, match="one list of candidates a history"):
        RANKER.score_candidates(params, TABLES, ASKED, items, SPACE)
    with pytest.raises(ValueError, match="block=0"):
        RANKER.score_candidates(params, TABLES, ASKED, items[:1], SPACE, block=0)
    with pytest.raises(ValueError, match="use tokenizer=ItemIds"):
        RANKER.init(jax.random.key(0), TokenSpace((4, 4)))
