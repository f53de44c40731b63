"""The training step: exact accumulation, guarded updates, sharding, abstract lowering."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.parallel import replicated, shard_rows
from jaxrec.training.optimizers import AdamW
from jaxrec.training.state import abstract_state, create_state, state_shardings
from jaxrec.training.step import accumulate_gradients, lower_train_step, make_train_step
from training.toys import AXES, batch, init, make_loss, same, tables

# Compiling is what these tests cost, so they share one loss without noise and few programs.
LOSS = make_loss(0.0)
gradients = jax.jit(accumulate_gradients, static_argnums=(0, 5))
ADAM = AdamW(learning_rate=0.03, warmup_steps=2).build(20)


def start(mesh, loss=None, optimizer=ADAM, **settings):
    abstract = abstract_state(init, optimizer, AXES, mesh)
    state = create_state(init, optimizer, jax.random.key(0), abstract)
    step = make_train_step(
        loss or LOSS, optimizer, mesh=mesh, shardings=state_shardings(abstract), **settings
    )
    return step, state, *jax.device_put((tables(), jax.random.key(1)), replicated(mesh))


def test_gradient_is_that_of_the_mean_by_autodiff():
    params, key, numbers = jax.jit(init)(jax.random.key(0)), jax.random.key(1), batch(0)

    def mean(params):
        total, weight, _ = LOSS(params, tables(), numbers, key)
        return total / weight

    grads, total, weight, metrics = gradients(LOSS, params, tables(), numbers, key)
    value, expected = jax.jit(jax.value_and_grad(mean))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads, expected)
    assert float(total / weight) == pytest.approx(float(value), rel=1e-6)
    assert float(weight) == numbers["weight"].sum() == float(metrics["accuracy"][1])


def test_microbatches_give_the_gradient_of_the_whole_batch():
    # The weights differ between parts; a mean of means would be off by far more than 1e-6.
    params, key, numbers = jax.jit(init)(jax.random.key(0)), jax.random.key(1), batch(1)
    numbers["weight"] = np.array([5, 0, 1, 0, 0, 9, 1, 2], np.float32)
    whole = gradients(LOSS, params, tables(), numbers, key)
    cut = gradients(LOSS, params, tables(), numbers, key, 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), cut, whole)


def test_microbatches_draw_different_dropout():
    def loss(params, tables, batch, key):
        return params * 0 + jax.random.uniform(key), jnp.ones(()), {}

    one = gradients(loss, jnp.ones(()), None, np.zeros(4), jax.random.key(0), 1)[1]
    four = gradients(loss, jnp.ones(()), None, np.zeros(4), jax.random.key(0), 4)[1]
    keys = [jax.random.fold_in(jax.random.key(0), part) for part in range(4)]
    assert float(one) == float(jax.random.uniform(keys[0]))
    np.testing.assert_allclose(four, sum(float(jax.random.uniform(key)) for key in keys), rtol=1e-6)


def test_rows_must_divide():
    with pytest.raises(ValueError, match=r"8 rows.*3 micro-batches"):
        gradients(LOSS, jax.jit(init)(jax.random.key(0)), tables(), batch(0), jax.random.key(0), 3)


def test_step_is_the_optax_update(one):
    step, state, table, key = start(one)
    params, optimizer_state = jax.device_get((state.params, state.optimizer_state))
    state, report = step(state, table, shard_rows(batch(0), one), key)
    grads, total, weight, _ = gradients(
        LOSS, params, tables(), batch(0), jax.random.fold_in(key, 0)
    )
    updates, _ = jax.jit(ADAM.update)(grads, optimizer_state, params)
    expected = optax.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params, expected)
    assert int(state.step) == 1
    assert report.finite.tolist() == [True]
    assert float(report.metrics["loss"][0]) == pytest.approx(float(total), rel=1e-6)
    assert float(report.metrics["loss"][1]) == float(weight)
    assert float(report.metrics["gradient_norm"][0]) == pytest.approx(
        float(optax.tree.norm(grads)), rel=1e-5
    )


def test_state_is_donated_and_weight_zero_changes_nothing(one):
    step, first, table, key = start(one)
    state, _ = step(first, table, shard_rows(batch(0), one), key)  # momentum is no longer zero
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first.params))
    before = jax.device_get(state)
    empty = {**batch(1), "weight": np.zeros(8, np.float32)}
    after, report = step(state, table, shard_rows(empty, one), key)
    assert same(before.params, after.params)
    assert same(before.optimizer_state, after.optimizer_state)
    assert int(after.step) == 2
    assert report.finite.tolist() == [True]
    assert float(report.metrics["loss"][1]) == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_that_is_not_finite_is_not_made(one, value):
    step, state, table, key = start(one)
    before = jax.device_get(state)
    bad = {**batch(0), "weight": np.full(8, value, np.float32)}
    after, report = step(state, table, shard_rows(bad, one), key)
    assert report.finite.tolist() == [False]
    assert same(before.params, after.params)
    assert same(before.optimizer_state, after.optimizer_state)


def test_a_gradient_that_is_not_finite_is_seen_though_the_loss_is(one):
    def loss(params, tables, batch, key):
        # sqrt at 0: value 0, derivative infinite.
        return jnp.sqrt((params["output"] * 0).sum()), jnp.ones(()), {}

    step, state, table, key = start(one, loss)
    _, report = step(state, table, shard_rows(batch(0), one), key)
    assert np.isfinite(float(report.metrics["loss"][0]))
    assert report.finite.tolist() == [False]


def test_several_steps_per_call_are_the_same_steps(one):
    step, state, table, key = start(one)
    reports = []
    for index in range(3):
        state, report = step(state, table, shard_rows(batch(index), one), key)
        reports.append(report)
    step, many, table, key = start(one, steps_per_call=3)
    stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *(batch(i) for i in range(3)))
    stacked["weight"][1] = np.nan
    good = jax.tree.map(lambda *arrays: np.stack(arrays), *(batch(i) for i in range(3)))
    many, report = step(many, table, shard_rows(good, one, axis=1), key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), many, state)
    assert report.finite.tolist() == [True] * 3
    total = sum(float(each.metrics["loss"][0]) for each in reports)
    assert float(report.metrics["loss"][0]) == pytest.approx(total, rel=1e-6)
    assert float(report.metrics["gradient_norm"][1]) == 3.0
    _, report = step(many, table, shard_rows(stacked, one, axis=1), key)
    assert report.finite.tolist() == [True, False, True]


def test_cube_with_microbatches_equals_one_device_without(one, cube):
    curves, ends = [], []
    for mesh, parts in ((one, 1), (cube, 2)):
        step, state, table, key = start(mesh, microbatches=parts)
        curve = []
        for index in range(12):
            state, report = step(state, table, shard_rows(batch(index), mesh), key)
            curve.append(float(report.metrics["loss"][0] / report.metrics["loss"][1]))
        curves.append(curve)
        ends.append(jax.device_get(state))
    np.testing.assert_allclose(*curves, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *ends)
    shards = {shard.data.shape for shard in state.params["dense"]["kernel"].addressable_shards}
    assert shards == {(4, 8)}


def test_optimizer_state_lies_like_the_parameters(cube):
    abstract = abstract_state(init, ADAM, AXES, cube)
    assert abstract.params["embedding"].sharding.spec == jax.P("tensor", "fsdp")
    for moments in (abstract.optimizer_state[1].mu, abstract.optimizer_state[1].nu):
        assert state_shardings(moments) == state_shardings(abstract.params)
    assert abstract.optimizer_state[1].count.sharding.spec == jax.P()
    state = create_state(init, ADAM, jax.random.key(0), abstract)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == state_shardings(abstract)


def test_initial_state_is_the_same_on_every_mesh(one, cube):
    states = [
        create_state(init, ADAM, jax.random.key(0), abstract_state(init, ADAM, AXES, mesh))
        for mesh in (one, cube)
    ]
    assert same(*map(jax.device_get, states))


def test_axes_must_fit_the_parameters(one):
    wrong = {**AXES, "output": ("embed",)}
    with pytest.raises(ValueError, match=r"output.*\(16, 16\)"):
        abstract_state(init, ADAM, wrong, one)
    with pytest.raises(ValueError, match="more"):
        abstract_state(init, ADAM, {**AXES, "more": ("embed",)}, one)


def test_lowers_without_arrays(cube):
    abstract = abstract_state(init, ADAM, AXES, cube)
    step = make_train_step(
        LOSS, ADAM, mesh=cube, shardings=state_shardings(abstract), microbatches=2
    )
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch(0))
    lowered = lower_train_step(step, abstract, tables(), shapes, mesh=cube)
    compiled = lowered.compile()
    assert "all-reduce" in compiled.as_text()
    assert compiled.memory_analysis().argument_size_in_bytes > 0
    inputs = compiled.input_shardings[0]
    assert inputs[2]["item"].spec == jax.P(("data", "fsdp"))


def test_reserved_metric_names_are_refused(one):
    def loss(params, tables, batch, key):
        return jnp.zeros(()), jnp.ones(()), {"loss": (jnp.zeros(()), jnp.ones(()))}

    step, state, table, key = start(one, loss)
    with pytest.raises(ValueError, match=r"may not report.*loss"):
        step(state, table, shard_rows(batch(0), one), key)


def test_counts_are_checked(one):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        start(one, microbatches=0)


def test_state_is_a_pytree_with_names(one):
    abstract = abstract_state(init, ADAM, AXES, one)
    paths = jax.tree_util.tree_leaves_with_path(abstract)
    names = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths}
    assert {"step", "params/dense/kernel", "optimizer_state/1/mu/embedding"} <= names
