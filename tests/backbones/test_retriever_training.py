"""Retrievers as something to train: gradients, and options that must not change them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_world import check_slopes, make_events, random_params, with_rubbish

from jaxrec import parallel
from jaxrec.backbones.bert4rec import Bert4Rec
from jaxrec.backbones.caser import Caser
from jaxrec.backbones.gru4rec import Gru4Rec
from jaxrec.backbones.sasrec import SasRec
from jaxrec.decoding import UserItemVectors, retrieve
from jaxrec.objectives.cloze import Cloze
from jaxrec.objectives.item_softmax import ItemSoftmax
from jaxrec.types import Tables, TokenSpace

# One vector more than items, so that a mesh divides SASRec's table.
ITEMS = 39
SPACE = TokenSpace((ITEMS,))
TABLES = Tables(jnp.arange(ITEMS, dtype=jnp.int32)[:, None])
NETWORKS = {
    "sasrec": SasRec(width=8, length=8, dropout=0.0),
    "sasrec as published": SasRec(width=8, length=8, dropout=0.0, norms="query"),
    "bert4rec": Bert4Rec(width=8, length=8, dropout=0.0, attention_dropout=0.0),
    "gru4rec": Gru4Rec(layers=2, width=8, hidden=16, dropout=0.0),
    "caser": Caser(window=3, width=8, horizontal=4, vertical=2, dropout=0.0),
}
TWINS = ("sasrec as published", "bert4rec")
"""Networks of the same layers as `sasrec`: what the layers decide is left to slow tests."""


def twins_slow(names):
    """Names for a parametrised test of the layers."""
    marked = dict.fromkeys(TWINS, (pytest.mark.slow,))
    return [pytest.param(name, marks=marked.get(name, ())) for name in names]


BATCH = make_events([[3, 9, 27], [5, 8]], [[1, 2, 4, 6]], [[4]], [[7, 7, 7, 7]], length=6)
KEY = jax.random.key(3)
"""Of the events that the cloze task hides."""


def dropping(network):
    """The same network with every dropout it has."""
    rates = [name for name in ("dropout", "attention_dropout") if hasattr(network, name)]
    return dataclasses.replace(network, **dict.fromkeys(rates, 0.3))


def mean_loss(network, params, batch, key=None):
    """Loss per event; a key switches on dropout."""
    objective = Cloze(last=0.5) if isinstance(network, Bert4Rec) else ItemSoftmax()

    def apply(params, tables, batch, inner):
        del inner
        return network.forward(params, tables, batch, SPACE, key=key)

    total, weight, _ = objective(apply, params, TABLES, batch, KEY)
    return total / weight


loss_and_slope = functools.partial(jax.jit, static_argnums=0)(
    jax.value_and_grad(mean_loss, argnums=1)
)


def answer(network, params, batch):
    vectors = UserItemVectors(
        network.user_vectors(params, TABLES, batch, SPACE),
        network.item_vectors(params, TABLES, SPACE),
    )
    return retrieve(vectors, k=5, block=16)


def assert_trees_close(ours, expected, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), ours, expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_the_loss(name):
    """Central differences along random directions; nothing flows from padding."""
    network = NETWORKS[name]
    params = random_params(network, space=SPACE)
    # A small step, for the kinks of ReLU.
    slopes = check_slopes(lambda there: loss_and_slope(network, there, BATCH), params, step=0.0025)
    assert_trees_close(loss_and_slope(network, params, with_rubbish(BATCH))[1], slopes, 1e-6)


@pytest.mark.parametrize(
    "name", twins_slow(name for name in NETWORKS if hasattr(NETWORKS[name], "remat"))
)
def test_remat_and_unroll_change_nothing_not_even_the_dropout(name):
    network = dropping(NETWORKS[name])
    params = random_params(network, space=SPACE)
    expected = loss_and_slope(network, params, BATCH, KEY)
    changed = dataclasses.replace(network, remat=True, unroll=2)
    assert_trees_close(loss_and_slope(changed, params, BATCH, KEY), expected, 1e-5)
    assert changed.axes(SPACE) == network.axes(SPACE)


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_stays_close_to_float32(name):
    network = NETWORKS[name]
    params = random_params(network, scale=0.1, space=SPACE)
    short = dataclasses.replace(network, dtype="bfloat16")

    def scores(network):
        states, items = network.forward(params, TABLES, BATCH, SPACE)
        assert states.dtype == items.dtype == network.dtype
        inside = np.asarray(BATCH.segment) > 0
        return np.asarray(states, np.float32)[inside] @ np.asarray(items, np.float32).T

    ours, expected = scores(short), scores(network)
    # 8 bits of mantissa in about ten roundings one after another
    assert np.abs(ours - expected).max() < 0.03 * np.abs(expected).max()
    slopes = jax.eval_shape(jax.grad(lambda p: mean_loss(short, p, BATCH)), params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize("name", twins_slow(NETWORKS))
def test_sharded_equals_single_device(name):
    network = NETWORKS[name]
    params = random_params(network, space=SPACE)
    expected = loss_and_slope(network, params, BATCH), answer(network, params, BATCH)
    mesh = parallel.make_mesh(parallel.MeshShape(2, 2, 2))
    shardings = parallel.shardings(network.axes(SPACE), params, mesh)
    assert "fsdp" in {name for leaf in jax.tree.leaves(shardings) for name in leaf.spec}
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings)
        batch = jax.device_put(BATCH, parallel.rows_sharding(mesh))
        ours = (
            loss_and_slope(network, placed, batch),
            jax.jit(answer, static_argnums=0)(network, placed, batch),
        )
    assert_trees_close(ours, expected, 1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_lowers_for_accelerators(name, platform):
    network = dataclasses.replace(dropping(NETWORKS[name]), dtype="bfloat16")
    params = random_params(network, space=SPACE)

    def train(params):
        return jax.grad(lambda p: mean_loss(network, p, BATCH, KEY))(params)

    for function in (train, lambda params: answer(network, params, BATCH)):
        lowered = jax.jit(function).trace(params).lower(lowering_platforms=(platform,))
        assert "dot_general" in lowered.as_text()
