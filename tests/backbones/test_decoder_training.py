"""The decoder as something to train: gradients, options that must not change it, its schema."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_world import SPACE, make_events
from jax.test_util import check_grads

from jaxrec import parallel
from jaxrec.backbones.decoder import Decoder
from jaxrec.objectives.next_token import next_token_loss
from jaxrec.types import TokenSpace

TINY = Decoder(layers=2, width=8, heads=2, dropout=0.0, initial_scale=0.3)
SHAPES = {
    "merged": dataclasses.replace(TINY, item_buckets=5),
    "flat": dataclasses.replace(TINY, history="flat"),
}
BATCH = make_events([[3, 9, 27], [5, 8]], [[1, 2, 4, 6]], length=6)


def loss(decoder, params, tables, batch=BATCH, key=None):
    logits = decoder.forward(params, tables, batch, SPACE, key=key)
    total, weight = next_token_loss(logits, tables.codes[batch.item], batch.weight)
    return total / weight


def loss_and_slope(decoder, params, tables, **options):
    return jax.jit(lambda p: jax.value_and_grad(lambda q: loss(decoder, q, tables, **options))(p))(
        params
    )


def assert_trees_close(ours, expected, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), ours, expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_the_loss(shape, world):
    decoder = dataclasses.replace(SHAPES[shape], layers=1)
    params = decoder.init(jax.random.key(0), SPACE)
    function = jax.jit(lambda p: loss(decoder, p, world.tables))
    # float32 differences of a loss around 5: an error of 1e-3 in the directional derivative
    check_grads(
        lambda p: function(jax.tree.map(jnp.asarray, p)),
        (params,),
        order=1,
        modes=["rev"],
        eps=3e-3,
        atol=1e-2,
        rtol=1e-2,
    )
    slopes = jax.grad(function)(params)
    for path, slope in jax.tree_util.tree_leaves_with_path(slopes):
        assert np.all(np.isfinite(slope)) and np.any(slope != 0), path


@pytest.mark.parametrize("shape", SHAPES)
def test_remat_and_unroll_change_nothing(shape, world):
    decoder = SHAPES[shape]
    params = decoder.init(jax.random.key(0), SPACE)
    expected = loss_and_slope(decoder, params, world.tables)
    for change in ({"remat": True}, {"unroll": 2}):
        changed = dataclasses.replace(decoder, **change)
        assert_trees_close(loss_and_slope(changed, params, world.tables), expected, 1e-5)
        assert jax.tree.structure(changed.init(jax.random.key(0), SPACE)) == jax.tree.structure(
            params
        )


def test_remat_repeats_the_same_dropout(world):
    decoder = dataclasses.replace(SHAPES["merged"], dropout=0.3)
    params, key = decoder.init(jax.random.key(0), SPACE), jax.random.key(5)
    expected = loss_and_slope(decoder, params, world.tables, key=key)
    ours = loss_and_slope(dataclasses.replace(decoder, remat=True), params, world.tables, key=key)
    assert_trees_close(ours, expected, 1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_dropout_follows_its_key(shape, world):
    decoder = dataclasses.replace(SHAPES[shape], dropout=0.3)
    params = decoder.init(jax.random.key(0), SPACE)
    run = jax.jit(lambda key: loss(decoder, params, world.tables, key=key))
    off = loss(decoder, params, world.tables)
    assert off == loss(SHAPES[shape], params, world.tables)  # no key, no dropout
    assert run(jax.random.key(1)) == run(jax.random.key(1))
    values = {float(run(jax.random.key(seed))) for seed in range(4)} | {float(off)}
    assert len(values) == 5


def test_equal_heads_are_multi_head_attention(world):
    """Two key-value heads, each copied for its two queries, are four heads."""
    grouped = Decoder(width=16, heads=4, kv_heads=2, dropout=0.0, initial_scale=0.3)
    params = grouped.init(jax.random.key(0), SPACE)
    copied = jax.tree.map(lambda x: x, params)
    for name in ("key", "value"):
        kernel = params["history"]["blocks"]["attention"][name]
        copied["history"]["blocks"]["attention"][name] = jnp.repeat(kernel, 2, axis=2)
    full = dataclasses.replace(grouped, kv_heads=4)
    assert full == dataclasses.replace(full, kv_heads=4) and full.stack.kv_heads == 4
    expected = grouped.forward(params, world.tables, BATCH, SPACE)
    ours = full.forward(copied, world.tables, BATCH, SPACE)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_stays_close_to_float32(shape, world):
    decoder = dataclasses.replace(SHAPES[shape], width=32, initial_scale=0.1)
    params = decoder.init(jax.random.key(0), SPACE)
    short = dataclasses.replace(decoder, dtype="bfloat16")
    ours = short.forward(params, world.tables, BATCH, SPACE)
    expected = decoder.forward(params, world.tables, BATCH, SPACE)
    assert ours.dtype == jnp.float32
    legal = np.asarray(expected) > -1e8
    # 8 bits of mantissa in about ten roundings one after another: some 2 % of logits around 1
    error = np.abs(np.asarray(ours) - np.asarray(expected))[legal]
    assert error.max() < 0.03 * np.abs(np.asarray(expected)[legal]).max()
    slopes = jax.grad(lambda p: loss(short, p, world.tables))(params)
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
    params, axes = by_path(decoder.init(jax.random.key(0), SPACE)), by_path(decoder.axes(SPACE))
    expected = SCHEMA[shape] | SHARED
    assert {path: (leaf.shape, axes[path]) for path, leaf in params.items()} == expected
    assert {leaf.dtype.name for leaf in params.values()} == {"float32"}
    assert decoder.parameters(SPACE) == sum(leaf.size for leaf in params.values())


def test_initial_scales():
    decoder = Decoder(layers=3, width=128)
    params = by_path(decoder.init(jax.random.key(0), TokenSpace((64, 64))))
    for path, leaf in params.items():
        if path.endswith("scale"):
            assert np.all(np.asarray(leaf) == 1.0)
            continue
        narrow = path.endswith(("attention/output", "down"))
        layers = 1 if path.startswith("head") else 3
        expected = 0.02 / np.sqrt(2 * layers) if narrow else 0.02
        assert abs(float(leaf.std()) / expected - 1) < 0.1, path
    blocks = params["history/blocks/attention/query"]
    assert np.any(np.asarray(blocks[0]) != np.asarray(blocks[1]))


@pytest.mark.parametrize("shape", SHAPES)
def test_sharded_equals_single_device(shape, world):
    decoder = dataclasses.replace(SHAPES[shape], width=16, heads=4, kv_heads=2)
    params = decoder.init(jax.random.key(0), SPACE)
    rows = [[[3, 9, 27], [5, 8]], [[1, 2]], [[4]], [[7, 7, 7, 7]]]
    batch = make_events(*rows, length=6)
    expected = loss_and_slope(decoder, params, world.tables, batch=batch)
    mesh = parallel.make_mesh(parallel.MeshShape(2, 2, 2))
    shardings = parallel.shardings(decoder.axes(SPACE), params, mesh)
    split = {name for leaf in jax.tree.leaves(shardings) for name in leaf.spec}
    assert {"fsdp", "tensor"} <= split
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings)
        rows_of = parallel.shard_rows(jax.tree.map(np.asarray, batch), mesh)
        ours = jax.jit(jax.value_and_grad(lambda p, b: loss(decoder, p, world.tables, b)))(
            placed, rows_of
        )
        made = jax.jit(lambda key: decoder.init(key, SPACE), out_shardings=shardings)(
            jax.random.key(0)
        )
    assert_trees_close(ours, expected, 1e-5)
    assert_trees_close(made, params, 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_sharded_steps_equal_single_device(shape, world):
    decoder = dataclasses.replace(SHAPES[shape], width=16, heads=4, kv_heads=2)
    params = decoder.init(jax.random.key(0), SPACE)
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
        ours = jax.jit(decode)(placed, parallel.shard_rows(jax.tree.map(np.asarray, batch), mesh))
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

    counted = jax.jit(jax.grad(whole)).lower(params).compile().cost_analysis()["flops"]
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
