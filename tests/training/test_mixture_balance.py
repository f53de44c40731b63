"""Mixtures of experts in training: the loss that `Supervised` adds, and the biases it moves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.backbones.lazy_decoder import LazyDecoder
from jaxrec.backbones.mixture import Mixture, update_biases
from jaxrec.objectives.next_token import NextToken
from jaxrec.parallel import make_mesh, shard_rows
from jaxrec.training.optimizers import AdamW
from jaxrec.training.state import abstract_state, create_state, state_shardings
from jaxrec.training.step import make_train_step
from jaxrec.training.supervised import Supervised, rebalance_of
from jaxrec.types import Events, Tables, TokenSpace

SPACE = TokenSpace((6, 6))
TABLES = Tables(jnp.asarray(np.random.default_rng(0).integers(0, 6, (20, 2)), jnp.int32))
RATE = 0.05


def decoder(balance, **options):
    mixture = Mixture(4, 2, feedforward=8, balance=balance, bias_rate=RATE, **options)
    return LazyDecoder(
        layers=1, width=8, heads=2, mixture=mixture, dense_layers=0, positions=4, dropout=0.0
    )


def batch(seed=0, rows=16, length=5):
    item = np.random.default_rng(seed).integers(0, 20, (rows, length)).astype(np.int32)
    none = np.zeros_like(item)
    weight = np.zeros(item.shape, np.float32)
    weight[:, -1] = 1
    return Events(item, none + 1, none + np.arange(length, dtype=np.int32), none, none, weight)


@functools.partial(jax.jit, static_argnames="model")
def told(model, params, events):
    """Logits and statistics of a batch."""
    return model.forward_with_statistics(params, TABLES, events, SPACE)


def skewed(params):
    """Parameters whose routers prefer the first experts."""

    def skew(path, leaf):
        if path[-1].key != "router":
            return leaf
        return leaf.at[:, 0].set(3.0).at[:, 1].set(2.0)

    params = jax.tree_util.tree_map_with_path(skew, params)
    # All states point the same way, so that the skew is one of experts and not of tokens.
    params["tokens"]["table"] = params["tokens"]["table"] * 0.05 + 0.3
    return params


def trained(model, steps, microbatches=1):
    """Parameters and reports of so many steps with a learning rate of almost nothing."""
    mesh = make_mesh(devices=jax.devices()[:1])
    stage = Supervised(NextToken())
    optimizer = AdamW(learning_rate=1e-12, warmup_steps=0, schedule="constant").build(steps)

    def init(key):
        return skewed(model.init(key, SPACE))

    abstract = abstract_state(init, optimizer, model.axes(SPACE), mesh)
    state = create_state(init, optimizer, jax.random.key(0), abstract)
    first = jax.tree.map(jnp.copy, state.params)
    step = make_train_step(
        stage.loss(model, SPACE),
        optimizer,
        mesh=mesh,
        shardings=state_shardings(abstract),
        microbatches=microbatches,
        rebalance=rebalance_of(model),
    )
    reports = []
    for number in range(steps):
        state, report = step(state, TABLES, shard_rows(batch(number), mesh), jax.random.key(1))
        reports.append({name: float(s / w) for name, (s, w) in report.metrics.items()})
    return first, jax.device_get(state.params), reports


def biases(params):
    return params["layers"]["sparse"]["feedforward"]["bias"]


def test_biases_move_by_the_load_of_the_whole_step():
    model = decoder("bias")
    first, after, _ = trained(model, 1, microbatches=4)
    _, statistics = told(model, first, batch(0))
    expected = update_biases(biases(first), statistics.load, RATE)
    np.testing.assert_allclose(biases(after), expected, atol=1e-7)
    assert set(np.unique(np.abs(biases(after)))) <= {0.0, np.float32(RATE)}


def test_the_balance_loss_counts_once_a_target():
    model = decoder("loss", loss_weight=0.5)
    first, _, (report,) = trained(model, 1)
    logits, statistics = told(model, first, batch(0))
    bare, weight, _ = NextToken()(
        lambda *_: logits, first, TABLES, jax.tree.map(jnp.asarray, batch(0)), None
    )
    extra = float(statistics.loss.sum())
    assert extra > 0.5
    np.testing.assert_allclose(report["loss_balance"], extra, rtol=1e-5)
    np.testing.assert_allclose(report["loss"], float(bare / weight) + extra, rtol=1e-5)


def test_nothing_is_moved_where_nothing_is_balanced_so():
    for model in (
        decoder("loss"),
        decoder("none"),
        dataclasses.replace(decoder("bias"), mixture=None),
    ):
        assert rebalance_of(model) is None
