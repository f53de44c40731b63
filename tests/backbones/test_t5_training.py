"""T5 as something to train: gradients, options that must not change it, its schema, its costs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from decoder_world import SPACE, check_slopes, forward, random_params
from test_t5 import BASE, SHAPES, histories_of, rows_of

from jaxrec import parallel
from jaxrec.backbones.attention import unscaled_attention
from jaxrec.backbones.dropout import draw_kept
from jaxrec.backbones.t5 import T5
from jaxrec.objectives.next_token import NextToken, next_token_loss
from jaxrec.types import Tables, TokenSpace

BATCH = rows_of([[3, 9, 27], [5], [1, 2, 4, 6], []], [8, 7, 30, 2], [3, -1, 5, 3])
USER = SHAPES["user and separator"]


@functools.partial(jax.jit, static_argnums=0)
def loss_and_slope(t5, params, tables, batch, key=None):
    """Mean loss of the rows, by the objective that training uses, and its gradient."""

    def loss(params):
        def apply(params, tables, batch, key):
            return t5.forward(params, tables, batch, SPACE, key=key)

        total, weight, _ = NextToken()(apply, params, tables, batch, key)
        return total / weight

    return jax.value_and_grad(loss)(params)


def assert_trees_close(ours, expected, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), ours, expected)


@pytest.mark.parametrize("shape", ["v1.1", "user and separator"])
def test_gradients_are_those_of_the_loss(shape, world):
    t5 = SHAPES[shape]
    check_slopes(
        lambda there: loss_and_slope(t5, there, world.tables, BATCH), random_params(t5), step=0.004
    )


def test_only_the_last_event_of_a_row_is_answered_for(world):
    """Weights of other events, which a causal decoder would be trained on, change nothing."""
    params = random_params(USER)
    ours = loss_and_slope(USER, params, world.tables, BATCH)[0]
    everything = dataclasses.replace(BATCH, weight=np.ones_like(BATCH.weight))
    assert loss_and_slope(USER, params, world.tables, everything)[0] == ours


def test_remat_and_unroll_change_nothing_not_even_the_dropout(world):
    t5 = dataclasses.replace(USER, dropout=0.3)
    params, key = random_params(t5), jax.random.key(5)
    expected = loss_and_slope(t5, params, world.tables, BATCH, key)
    changed = dataclasses.replace(t5, remat=True, unroll=2)
    assert_trees_close(loss_and_slope(changed, params, world.tables, BATCH, key), expected, 1e-5)
    assert changed.axes(SPACE) == t5.axes(SPACE)


def test_dropout_follows_its_key(world):
    t5 = dataclasses.replace(BASE, dropout=0.3)
    outer = dataclasses.replace(t5, inner_dropout=False)
    params = random_params(t5)

    def run(key, t5=t5):
        return np.asarray(forward(t5, params, world.tables, BATCH, key=key))

    off, keys = run(None), jax.random.split(jax.random.key(2), 2)
    np.testing.assert_array_equal(off, run(keys[0], BASE))  # no rate, no dropout
    np.testing.assert_array_equal(run(keys[0]), run(keys[0]))
    drawn = (off, run(keys[0]), run(keys[1]), run(keys[0], outer))
    assert len({values.tobytes() for values in drawn}) == 4


def test_dropout_of_probabilities_keeps_the_mean():
    random = np.random.default_rng(0)
    q, k, v = (jnp.asarray(random.normal(size=(1, 5, 2, 4)), jnp.float32) for _ in range(3))
    q, k, v = (jnp.tile(each, (4000, 1, 1, 1)) for each in (q, k, v))
    mask = jnp.arange(5)[None, None, None] < 4
    plain = unscaled_attention(q[:1], k[:1], v[:1], mask=mask)
    kept = draw_kept(jax.random.key(0), (4000, 2, 5, 5), 0.25)
    drawn = unscaled_attention(q, k, v, mask=mask, kept=kept, rate=0.25)
    # each draw is off by up to 1, so 4000 of them by some 0.016, and five deviations are 0.08
    np.testing.assert_allclose(drawn.mean(0, keepdims=True), plain, atol=0.08)
    assert float(jnp.abs(drawn[0] - plain[0]).max()) > 0.1


def test_bfloat16_stays_close_to_float32(world):
    t5 = dataclasses.replace(BASE, width=32)
    params = random_params(t5, scale=0.1)
    short = dataclasses.replace(t5, dtype="bfloat16")
    ours = np.asarray(forward(short, params, world.tables, BATCH))
    expected = np.asarray(forward(t5, params, world.tables, BATCH))
    assert ours.dtype == np.float32
    legal = expected > -1e8
    # 8 bits of mantissa in about ten roundings one after another: some 2 % of the largest logit
    assert np.abs(ours - expected)[legal].max() < 0.03 * np.abs(expected[legal]).max()


def attention_schema(place, layers):
    wide = ((layers, 16, 3, 4), ("layers", "embed", "heads", None))
    return {
        f"{place}/key": wide,
        f"{place}/output": ((layers, 3, 4, 16), ("layers", "heads", None, "embed")),
        f"{place}/query": wide,
        f"{place}/value": wide,
        f"{place}_norm/scale": ((layers, 16), ("layers", "embed")),
    }


def stack_schema(place, layers):
    return {
        f"{place}/bias/table": ((8, 3), (None, "heads")),
        **attention_schema(f"{place}/blocks/attention", layers),
        f"{place}/blocks/feedforward/down": ((layers, 24, 16), ("layers", "mlp", "embed")),
        f"{place}/blocks/feedforward/up": ((layers, 16, 24), ("layers", "embed", "mlp")),
        f"{place}/blocks/feedforward_norm/scale": ((layers, 16), ("layers", "embed")),
        f"{place}/norm/scale": ((16,), ("embed",)),
    }


SHARED = {
    **stack_schema("encoder", 2),
    **stack_schema("decoder", 3),
    **attention_schema("decoder/blocks/cross_attention", 3),
}
SCHEMA = {
    "v1.0": {"tokens/table": ((17, 16), ("vocab", "embed"))},
    "v1.1": {
        "tokens/table": ((17, 16), ("vocab", "embed")),
        "output/kernel": ((3, 16, 7), (None, "embed", "vocab")),
        "encoder/blocks/feedforward/gate": ((2, 16, 24), ("layers", "embed", "mlp")),
        "decoder/blocks/feedforward/gate": ((3, 16, 24), ("layers", "embed", "mlp")),
    },
    "user and separator": {"tokens/table": ((17 + 7 + 1, 16), ("vocab", "embed"))},
}


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, tuple))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@pytest.mark.parametrize("shape", SHAPES)
def test_parameter_paths_shapes_and_axes_are_the_schema(shape):
    """Checkpoints depend on these names: a change here breaks every saved model."""
    t5 = SHAPES[shape]
    params, axes = by_path(random_params(t5)), by_path(t5.axes(SPACE))
    expected = SCHEMA[shape] | SHARED
    assert {path: (leaf.shape, axes[path]) for path, leaf in params.items()} == expected
    assert {leaf.dtype.name for leaf in params.values()} == {"float32"}
    assert t5.parameters(SPACE) == sum(leaf.size for leaf in params.values())


def test_tiger_has_4_85_million_parameters():
    """METHODS B1: the stated sizes do not give the 13 million that the paper states."""
    tiger, space = T5(user_buckets=2000), TokenSpace((256, 256, 256, 256))
    assert tiger.parameters(space) == 4_459_648 + 387_328
    shapes = jax.eval_shape(functools.partial(tiger.init, space=space), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 4_846_976


def test_init_has_the_published_scales_also_when_it_lands_on_shards():
    t5 = T5(layers=2, width=64, heads=2, head_size=16, feedforward=128, gated=True, tied=False)
    space, key = TokenSpace((64, 64)), jax.random.key(0)
    params = t5.init(key, space)
    scales = {"table": 64, "key": 64, "value": 64, "up": 64, "gate": 64, "kernel": 64,
              "query": 64 * 16, "output": 2 * 16, "down": 128}  # fmt: skip
    for path, leaf in by_path(params).items():
        name = path.rsplit("/", 1)[-1]
        if name == "scale":
            assert np.all(np.asarray(leaf) == 1.0)
            continue
        expected = 1.0 if path == "tokens/table" else scales[name] ** -0.5
        # 64 numbers of the bias table know their scale to some 9 %, the others better
        assert abs(float(np.asarray(leaf).std()) / expected - 1) < 0.25, path
    query = np.asarray(params["encoder"]["blocks"]["attention"]["query"])
    assert np.any(query[0] != query[1])
    mesh = parallel.make_mesh(parallel.MeshShape(2, 2, 2))
    shardings = parallel.shardings(t5.axes(space), params, mesh)
    with jax.set_mesh(mesh):
        make = jax.jit(lambda key: t5.init(key, space), out_shardings=shardings)
        assert_trees_close(make(key), params, 1e-5)


def test_sharded_equals_single_device(world):
    t5 = dataclasses.replace(USER, heads=4)  # three would not divide
    params = random_params(t5)
    histories = histories_of([[3, 9, 27], [1, 2], [], [7]], [3, 4, 5, -1], length=3)
    codes = jnp.array([[1, 2]] * 4, jnp.int32)

    @jax.jit
    def everything(params, batch, histories):
        cache = t5.prefill(params, world.tables, histories, SPACE)
        first, cache = t5.step(params, cache, 0 * codes, 0 * codes, 0, SPACE)
        second, _ = t5.step(params, cache, codes, codes - 1, 1, SPACE)
        return loss_and_slope(t5, params, world.tables, batch), (first, second)

    expected = everything(params, BATCH, histories)
    mesh = parallel.make_mesh(parallel.MeshShape(2, 2, 2))
    shardings = parallel.shardings(t5.axes(SPACE), params, mesh)
    assert {"fsdp", "tensor"} <= {name for leaf in jax.tree.leaves(shardings) for name in leaf.spec}
    with jax.set_mesh(mesh):
        by_row = parallel.rows_sharding(mesh)
        placed = jax.device_put((BATCH, histories), by_row)
        ours = everything(jax.device_put(params, shardings), *placed)
    assert_trees_close(ours, expected, 2e-5)


@pytest.mark.parametrize("options", [{}, {"gated": True, "separator": True, "user_buckets": 9}])
def test_flops_formula_against_the_compiler(options, world):
    """On an unrolled program: of a scan the compiler counts the body once."""
    t5 = T5(layers=2, dropout=0.0, unroll=2, **options)
    space = TokenSpace((256, 256, 256, 256))
    params = jax.eval_shape(lambda: t5.init(jax.random.key(0), space))
    tables = Tables(jnp.zeros((40, 4), jnp.int32))
    batch = rows_of([[1, 2, 3]] * 4, [5] * 4, [1] * 4, length=16)

    def whole(params):
        logits = t5.forward(params, tables, batch, space)
        return next_token_loss(logits, tables.codes[batch.item[:, -1:]], jnp.ones((4, 1)))[0]

    counted = jax.jit(jax.grad(whole)).lower(params).cost_analysis()["flops"]
    assert abs(t5.flops(space, 4, 16) / counted - 1) < 0.1


def test_learns_histories_by_heart(world):
    """32 histories and their targets: more than 99 % exact after 200 steps."""
    random = np.random.default_rng(0)
    histories = [random.integers(0, 40, 1 + n % 5).tolist() for n in range(32)]
    histories = [[n, *history[1:]] for n, history in enumerate(histories)]
    batch = rows_of(histories, random.integers(0, 40, 32).tolist())
    t5 = T5(layers=1, width=32, heads=2, head_size=16, feedforward=64, dropout=0.0)
    optimizer = optax.adam(5e-3)

    @jax.jit
    def train(params):
        def one(state, _):
            params, moments = state
            loss, slope = loss_and_slope(t5, params, world.tables, batch)
            updates, moments = optimizer.update(slope, moments)
            return (optax.apply_updates(params, updates), moments), loss

        return jax.lax.scan(one, (params, optimizer.init(params)), length=200)

    (params, _), losses = train(t5.init(jax.random.key(0), SPACE))
    answers = forward(t5, params, world.tables, batch)[:, 0].argmax(-1)
    exact = (np.asarray(answers) == world.codes[batch.item[:, -1]]).all(-1).mean()
    assert exact > 0.99, losses[-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 0}, "width=0 must be at least 1"),
        ({"decoder_layers": 0}, "layers=0 must be at least 1"),
        ({"user_buckets": -1}, "user_buckets=-1"),
        ({"dropout": 1.5}, "dropout=1.5"),
        ({"distance_buckets": 6}, "multiple of 4"),
        ({"max_distance": 16}, "must exceed half of"),
        ({"initial_factor": 0.0}, "must exceed 0"),
        ({"dtype": "int8"}, "choose one of float32, bfloat16"),
    ],
)
def test_refuses_impossible_networks(options, words):
    with pytest.raises(ValueError, match=words):
        T5(**options)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_lowers_for_accelerators(platform, world):
    t5 = dataclasses.replace(USER, dropout=0.1, dtype="bfloat16", remat=True)
    params, histories = random_params(t5), histories_of([[3, 9], [], [7], [5]])

    def train(params, key):
        return loss_and_slope(t5, params, world.tables, BATCH, key)[1]

    def decode(params, level):
        cache = t5.prefill(params, world.tables, histories, SPACE)
        codes = jnp.zeros((4, 3), jnp.int32)
        first, cache = t5.step(params, cache, codes, codes, 0, SPACE)
        return first, t5.step(params, cache, codes, codes, level, SPACE)

    for function, extra in ((train, jax.random.key(0)), (decode, jnp.int32(1))):
        lowered = jax.jit(function).trace(params, extra).lower(lowering_platforms=(platform,))
        assert "dot_general" in lowered.as_text()
