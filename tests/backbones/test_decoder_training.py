"""The decoder as something to train: gradients, options that must not change it, its schema."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_world import (
    SPACE,
    check_slopes,
    forward,
    loss_and_slope,
    make_events,
    mean_loss,
    random_params,
    with_rubbish,
)

from jaxrec import parallel
from jaxrec.backbones.decoder import Decoder
from jaxrec.objectives.next_token import next_token_loss
from jaxrec.types import TokenSpace

TINY = Decoder(layers=2, width=8, heads=2, dropout=0.0)
SHAPES = {
    "merged": dataclasses.replace(TINY, item_buckets=5),
    "flat": dataclasses.replace(TINY, history="flat"),
}
BATCH = make_events([[3, 9, 27], [5, 8]], [[1, 2, 4, 6]], [[4]], [[7, 7, 7, 7]], length=6)


def assert_trees_close(ours, expected, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), ours, expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_the_loss(shape, world):
    """Central differences along random directions, as `check_grads` does, on one compilation."""
    decoder = SHAPES[shape]
    params = random_params(decoder)
    slopes = check_slopes(lambda there: loss_and_slope(decoder, there, world.tables, BATCH), params)
    assert_trees_close(
        loss_and_slope(decoder, params, world.tables, with_rubbish(BATCH))[1], slopes, 1e-6
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_remat_and_unroll_change_nothing_not_even_the_dropout(shape, world):
    decoder = dataclasses.replace(SHAPES[shape], dropout=0.3)
    params, key = random_params(decoder), jax.random.key(5)
    expected = loss_and_slope(decoder, params, world.tables, BATCH, key)
    changed = dataclasses.replace(decoder, remat=True, unroll=2)
    ours = loss_and_slope(changed, params, world.tables, BATCH, key)
    assert_trees_close(ours, expected, 1e-5)
    assert changed.axes(SPACE) == decoder.axes(SPACE)


@pytest.mark.parametrize("shape", SHAPES)
def test_dropout_follows_its_key(shape, world):
    decoder = dataclasses.replace(SHAPES[shape], dropout=0.3)
    params = random_params(decoder)

    def run(key, decoder=decoder):
        return np.asarray(forward(decoder, params, world.tables, BATCH, key=key))

    off = run(None)
    for key in (None, jax.random.key(1)):  # no key, no dropout; no rate, no dropout
        np.testing.assert_array_equal(off, run(key, SHAPES[shape]))
    np.testing.assert_array_equal(run(jax.random.key(1)), run(jax.random.key(1)))
    assert (
        len(
            {
                values.tobytes()
                for values in (off, *map(run, jax.random.split(jax.random.key(2), 3)))
            }
        )
        == 4
    )


def test_equal_heads_are_multi_head_attention(world):
    """Two key-value heads, each copied for its two queries, are four heads."""
    grouped = Decoder(width=16, heads=4, kv_heads=2, dropout=0.0)
    params = random_params(grouped)
    copied = jax.tree.map(lambda x: x, params)
    for name in ("key", "value"):
        kernel = params["history"]["blocks"]["attention"][name]
        copied["history"]["blocks"]["attention"][name] = jnp.repeat(kernel, 2, axis=2)
    full = dataclasses.replace(grouped, kv_heads=4)
    expected = forward(grouped, params, world.tables, BATCH)
    ours = forward(full, copied, world.tables, BATCH)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_stays_close_to_float32(shape, world):
    decoder = dataclasses.replace(SHAPES[shape], width=32)
    params = random_params(decoder, scale=0.1)
    short = dataclasses.replace(decoder, dtype="bfloat16")
    ours = forward(short, params, world.tables, BATCH)
    expected = forward(decoder, params, world.tables, BATCH)
    assert ours.dtype == jnp.float32
    legal = np.asarray(expected) > -1e8
    # 8 bits of mantissa in about ten roundings one after another: some 2 % of logits around 1
    error = np.abs(np.asarray(ours) - np.asarray(expected))[legal]
    assert error.max() < 0.03 * np.abs(np.asarray(expected)[legal]).max()
    slope = jax.grad(lambda p: mean_loss(short, p, world.tables, BATCH))
    slopes = jax.eval_shape(slope, params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(slopes))


SCHEMA = {
    "merged": {
        "head/feedforward_0/down": ((16, 8), ("mlp", "embed")),
        "head/feedforward_0/gate": ((8, 16), ("embed", "mlp")),
        "head/feedforward_0/up": ((8, 16), ("embed", "mlp")),
        "head/level": ((3, 8), (None, "embed")),
        "head/norm/scale": ((8,), ("embed",)),
        "head/norm_0/scale": ((8,), ("embed",)),
        "head/output/kernel": ((3, 8, 7), (None, "embed", "vocab")),
        "head/project/kernel": ((8, 8), ("embed", None)),
        "merge/items/table": ((5, 8), ("vocab", "embed")),
        "merge/norm/scale": ((8,), ("embed",)),
        "merge/project/kernel": ((8, 8), ("embed", None)),
    },
    "flat": {"head/kernel": ((3, 8, 7), (None, "embed", "vocab"))},
}
SHARED = {
    "history/blocks/attention/key": ((2, 8, 2, 4), ("layers", "embed", "kv_heads", None)),
    "history/blocks/attention/output": ((2, 2, 4, 8), ("layers", "heads", None, "embed")),
    "history/blocks/attention/query": ((2, 8, 2, 4), ("layers", "embed", "heads", None)),
    "history/blocks/attention/value": ((2, 8, 2, 4), ("layers", "embed", "kv_heads", None)),
    "history/blocks/attention_norm/scale": ((2, 8), ("layers", "embed")),
    "history/blocks/feedforward/down": ((2, 16, 8), ("layers", "mlp", "embed")),
    "history/blocks/feedforward/gate": ((2, 8, 16), ("layers", "embed", "mlp")),
    "history/blocks/feedforward/up": ((2, 8, 16), ("layers", "embed", "mlp")),
    "history/blocks/feedforward_norm/scale": ((2, 8), ("layers", "embed")),
    "history/norm/scale": ((8,), ("embed",)),
    "tokens/table": ((17, 8), ("vocab", "embed")),
}


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, tuple))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@pytest.mark.parametrize("shape", SHAPES)
def test_parameter_paths_shapes_and_axes_are_the_schema(shape):
    """Checkpoints depend on these names: a change here breaks every saved model."""
    decoder = SHAPES[shape]
    params, axes = by_path(random_params(decoder)), by_path(decoder.axes(SPACE))
    expected = SCHEMA[shape] | SHARED
    assert {path: (leaf.shape, axes[path]) for path, leaf in params.items()} == expected
    assert {leaf.dtype.name for leaf in params.values()} == {"float32"}
    assert decoder.parameters(SPACE) == sum(leaf.size for leaf in params.values())


def test_init_has_its_scales_also_when_it_lands_on_shards():
    decoder, space, key = Decoder(layers=3), TokenSpace((64, 64)), jax.random.key(0)
    params = decoder.init(key, space)
    for path, leaf in by_path(params).items():
        if path.endswith("scale"):
            assert np.all(np.asarray(leaf) == 1.0)
            continue
        narrow = path.endswith(("attention/output", "down"))
        layers = 1 if path.startswith("head") else 3
        expected = 0.02 / np.sqrt(2 * layers) if narrow else 0.02
        assert abs(float(np.asarray(leaf).std()) / expected - 1) < 0.2, path
    query = np.asarray(params["history"]["blocks"]["attention"]["query"])
    assert np.any(query[0] != query[1])
    mesh = parallel.make_mesh(parallel.MeshShape(2, 2, 2))
    shardings = parallel.shardings(decoder.axes(space), params, mesh)
    with jax.set_mesh(mesh):
        make = jax.jit(lambda key: decoder.init(key, space), out_shardings=shardings)
        assert_trees_close(make(key), params, 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_sharded_equals_single_device(shape, world):
    decoder = SHAPES[shape]
    params = random_params(decoder)
    expected = loss_and_slope(decoder, params, world.tables, BATCH)
    mesh = parallel.make_mesh(parallel.MeshShape(2, 2, 2))
    shardings = parallel.shardings(decoder.axes(SPACE), params, mesh)
    split = {name for leaf in jax.tree.leaves(shardings) for name in leaf.spec}
    assert {"fsdp", "tensor"} <= split
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings)
        batch = jax.device_put(BATCH, parallel.rows_sharding(mesh))
        ours = loss_and_slope(decoder, placed, world.tables, batch)
    assert_trees_close(ours, expected, 1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_sharded_steps_equal_single_device(shape, world):
    decoder = SHAPES[shape]
    params = random_params(decoder)
    batch = make_events([[3, 9, 27]], [[1, 2]], [[]], [[7]], length=3)
    codes = jnp.array([[1, 2]] * 4, jnp.int32)

    def decode(params, batch):
        cache = decoder.prefill(params, world.tables, batch, SPACE)
        first, cache = decoder.step(params, cache, 0 * codes, 0 * codes, 0, SPACE)
        second, cache = decoder.step(params, cache, codes, codes - 1, 1, SPACE)
        third, _ = decoder.step(params, cache, codes, 2 - codes, 2, SPACE)
        return first, second, third

    expected = jax.jit(decode)(params, batch)
    mesh = parallel.make_mesh(parallel.MeshShape(2, 2, 2))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, parallel.shardings(decoder.axes(SPACE), params, mesh))
        ours = jax.jit(decode)(placed, jax.device_put(batch, parallel.rows_sharding(mesh)))
    assert_trees_close(ours, expected, 1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_flops_formula_against_the_compiler(shape, world):
    """On an unrolled program: of a scan the compiler counts the body once."""
    decoder = Decoder(width=128, heads=4, dropout=0.0, history=shape, unroll=2)
    space = TokenSpace((256, 256, 256, 256))
    params = jax.eval_shape(lambda: decoder.init(jax.random.key(0), space))
    codes = jnp.zeros((40, 4), jnp.int32)
    batch = make_events(*[[[1, 2, 3]]] * 4, length=32)

    def whole(params):
        logits = decoder.forward(
            params, dataclasses.replace(world.tables, codes=codes), batch, space
        )
        return next_token_loss(logits, codes[batch.item], batch.weight)[0]

    counted = jax.jit(jax.grad(whole)).lower(params).cost_analysis()["flops"]
    assert abs(decoder.flops(space, 4, 32) / counted - 1) < 0.1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 65}, "width=65 does not divide into heads=4"),
        ({"kv_heads": 3}, "kv_heads=3 must divide heads=4"),
        ({"history": "both"}, "choose one of merged, flat"),
        ({"history": "flat", "item_buckets": 8}, "needs history='merged'"),
        ({"item_buckets": -1}, "must not be negative"),
        ({"dropout": 1.5}, "dropout=1.5"),
        ({"width": 12, "heads": 4}, "choose width / heads even"),
        ({"dtype": "int8"}, "choose one of float32, bfloat16"),
    ],
)
def test_refuses_impossible_decoders(options, words):
    with pytest.raises(ValueError, match=words):
        Decoder(**options)


def test_defaults():
    assert Decoder().stack.feedforward == 176  # 8/3 * 64 = 170.7
    assert Decoder(width=128).stack.feedforward == 336  # 341.3
    assert Decoder().stack.kv_heads == 4
    assert hash(Decoder()) == hash(Decoder())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_lowers_for_accelerators(shape, platform, world):
    decoder = dataclasses.replace(SHAPES[shape], dropout=0.1, dtype="bfloat16", remat=True)
    params = random_params(decoder)

    def train(params, key):
        return jax.grad(lambda p: mean_loss(decoder, p, world.tables, BATCH, key))(params)

    def decode(params, level):
        cache = decoder.prefill(params, world.tables, BATCH, SPACE)
        codes = jnp.zeros((4, 3), jnp.int32)
        first, cache = decoder.step(params, cache, codes, codes, 0, SPACE)
        return first, decoder.step(params, cache, codes, codes, level, SPACE)

    for function, extra in ((train, jax.random.key(0)), (decode, jnp.int32(1))):
        lowered = jax.jit(function).trace(params, extra).lower(lowering_platforms=(platform,))
        assert "dot_general" in lowered.as_text()
