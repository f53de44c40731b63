"""Pointwise attention against its definition, by blocks as at once, and within its memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hstu_reference import bucket, silu

from jaxrec.backbones.masks import TokenMetadata, causal, packed
from jaxrec.backbones.pointwise_attention import (
    RelativeBias,
    pointwise_attention,
    position_bias,
    time_bias,
    time_buckets,
)

SLOTS = 9
BIAS = RelativeBias(
    jnp.asarray(np.random.default_rng(7).normal(size=2 * SLOTS - 1), jnp.float32),
    jnp.asarray(np.random.default_rng(8).normal(size=129), jnp.float32),
)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def tokens(rows, length, seed):
    """Two histories a row and padding full of rubbish; equal positions and times do occur."""
    random = np.random.default_rng(seed)
    segment = np.sort(random.integers(0, 3, (rows, length)), axis=1)[:, ::-1]
    position = random.integers(0, 7, (rows, length))
    time = random.integers(0, 5, (rows, length)) * 10 ** random.integers(0, 7, (rows, length))
    segment, position, time = (jnp.asarray(x, jnp.int32) for x in (segment, position, time))
    return TokenMetadata(segment, position, {"time": time})


@pytest.fixture
def inputs():
    q, k = draw(2, 7, 3, 4), draw(2, 10, 3, 4, seed=1)
    return q, k, draw(2, 10, 3, 5, seed=2), tokens(2, 7, seed=3), tokens(2, 10, seed=4)


@functools.partial(jax.jit, static_argnames=("block", "allow", "ordered", "recompute"))
def attend(q, k, v, query, key, bias=BIAS, block=None, allow=packed, ordered=False, recompute=True):
    return pointwise_attention(
        *(q, k, v, query, key),
        normaliser=SLOTS,
        bias=bias,
        allow=allow,
        block=block,
        ordered=ordered,
        recompute=recompute,
    )


def reference(q, k, v, query, key, bias):
    """The definition, a pair at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    for b, i, j in np.ndindex(q.shape[0], q.shape[1], k.shape[1]):
        here, there = (jax.tree.map(lambda x: int(x[b, n]), of)  # noqa: B023
                       for of, n in ((query, i), (key, j)))  # fmt: skip
        if there.segment == 0 or here.segment != there.segment or there.position > here.position:
            continue
        relative = bias.position[there.position - here.position + SLOTS - 1]
        relative += bias.time[bucket(here.labels["time"] - there.labels["time"])]
        scores = np.einsum("hd,hd->h", q[b, i], k[b, j]) + float(relative)
        out[b, i] += silu(scores)[:, None] / SLOTS * v[b, j]
    return out


def test_equals_the_definition(inputs):
    expected = reference(*inputs, BIAS)
    np.testing.assert_allclose(attend(*inputs), expected, atol=1e-6)
    nothing = np.abs(expected).max((2, 3)) == 0
    assert nothing.any(), "some query sees no key"
    assert np.all(np.asarray(attend(*inputs))[nothing] == 0.0)


def test_one_token_is_a_closed_form():
    """Without a bias a token that sees itself alone gets SiLU(q.k) / n of its value."""
    q, k, v = draw(1, 1, 1, 4), draw(1, 1, 1, 4, seed=1), draw(1, 1, 1, 4, seed=2)
    alone = TokenMetadata(jnp.ones((1, 1), jnp.int32), jnp.zeros((1, 1), jnp.int32))
    ours = pointwise_attention(q, k, v, alone, alone, normaliser=201)
    product = float(jnp.vdot(q, k))
    np.testing.assert_allclose(ours, v * (product / (1 + np.exp(-product)) / 201), rtol=1e-5)


def test_blocks_change_neither_results_nor_gradients(inputs):
    """Seven queries in blocks of three: the last block is filled up."""
    q, k, v, query, key = inputs

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_slopes(block, q, k, v, bias):
        def loss(q, k, v, bias):
            out = attend(q, k, v, query, key, bias, block=block)
            return jnp.sum(jnp.sin(3 * out)), out

        return jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(q, k, v, bias)

    ours, expected = (value_and_slopes(size, q, k, v, BIAS) for size in (3, None))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), ours, expected)
    assert all(np.abs(np.asarray(leaf)).max() > 1e-3 for leaf in jax.tree.leaves(expected[1]))


@pytest.mark.parametrize("recompute", [True, False])
def test_keys_behind_a_block_change_nothing_where_rows_are_in_order(inputs, recompute):
    """Two histories a row, oldest event first; the queries are the last seven of the ten keys."""
    q, k, v, _, _ = inputs
    segment = jnp.array([[1] * 4 + [2] * 5 + [0], [1] * 10], jnp.int32)
    place = jnp.arange(10, dtype=jnp.int32)
    position = place - jnp.array([[0] * 4 + [4] * 5 + [0], [0] * 10], jnp.int32)
    key = TokenMetadata(segment, position, {"time": 60 * jnp.broadcast_to(place, (2, 10))})
    query = key.map(lambda array: array[:, 3:])

    def value_and_slopes(k, v, bias, **options):
        def loss(k, v, bias):
            return jnp.sum(jnp.sin(attend(q, k, v, query, key, bias, **options)))

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(k, v, bias)

    whole = value_and_slopes(k, v, BIAS)
    parts = value_and_slopes(k, v, BIAS, block=3, ordered=True, recompute=recompute)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, parts)
    # Rubbish behind the last query of a block is not even multiplied.
    with_rubbish = v.at[:, 9].set(jnp.nan)
    out = attend(q, k, with_rubbish, query, key, block=3, ordered=True, recompute=recompute)
    assert np.isfinite(out[:, :6]).all()


def test_gradient_flows_exactly_where_the_mask_allows(inputs):
    q, k, v, query, key = inputs
    slopes = jax.jit(jax.jacobian(lambda k, v: attend(q, k, v, query, key)[0].sum((1, 2)), (0, 1)))
    seen = np.asarray(query.segment)[0, :, None] == np.asarray(key.segment)[0]
    seen &= (np.asarray(key.segment)[0] > 0) & (
        np.asarray(key.position)[0] <= np.asarray(query.position)[0, :, None]
    )
    assert 0 < seen.sum() < seen.size
    for slope in slopes(k, v):
        np.testing.assert_array_equal(np.abs(np.asarray(slope)[:, 0]).max((-2, -1)) > 0, seen)


def test_buckets_of_times():
    """Goldens of METHODS B4: 1 s, 2 s, 1 min, 1 h, 1 d, 30 d, 1 y; and the same backwards."""
    seconds = jnp.array([0, 1, 2, 60, 3600, 86400, 30 * 86400, 365 * 86400, 2**31 - 1])
    golden = [0, 0, 2, 13, 27, 37, 49, 57, 71]
    assert time_buckets(seconds).tolist() == golden
    assert time_buckets(-seconds).tolist() == golden
    many = np.arange(1, 200_000)
    expected = np.floor(np.log(many) / 0.301)
    np.testing.assert_array_equal(time_buckets(jnp.asarray(many, jnp.int32)), expected)


def test_tables_are_read_where_the_paper_reads_them():
    table = jnp.arange(7.0)  # n = 4
    query, key = jnp.array([[0], [3]]), jnp.array([[0, 1, 3, 9]])
    assert position_bias(table, query, key).tolist() == [[3, 4, 6, 6], [0, 1, 3, 6]]
    times = jnp.arange(129.0)
    asked, happened = jnp.array([[3600]]), jnp.array([[0, 3540, 3600]])
    assert time_bias(times, asked, happened).tolist() == [[27, 13, 0]]
    assert time_bias(times[:20], asked, happened).tolist() == [[19, 13, 0]]


def test_a_constant_shift_of_time_or_position_changes_nothing(inputs):
    *arrays, query, key = inputs
    later = [
        TokenMetadata(of.segment, of.position + 5, {"time": of.labels["time"] + 10**8})
        for of in (query, key)
    ]
    np.testing.assert_array_equal(attend(*arrays, *later), attend(*arrays, query, key))
    only_keys = attend(*arrays, query, later[1])
    assert np.abs(np.asarray(only_keys - attend(*arrays, query, key))).max() > 1e-3


def test_scores_are_float32_for_16_bit_inputs(inputs):
    q, k, v = (x.astype(jnp.bfloat16) for x in inputs[:3])
    ours = attend(q, k, v, *inputs[3:])
    assert ours.dtype == jnp.bfloat16
    exact = reference(*(np.asarray(x, np.float32) for x in (q, k, v)), *inputs[3:], BIAS)
    # Weights and the sum are rounded once each: 2^-8 of numbers up to 1.
    np.testing.assert_allclose(np.asarray(ours, np.float32), exact, atol=0.01)
    # A score of 100.25, of which bfloat16 knows 100 only, and a bias of -100.
    one = jnp.array([10.0, 0.5], jnp.bfloat16).reshape(1, 1, 1, 2)
    alone = TokenMetadata(*jnp.array([[[1]], [[0]]], jnp.int32))
    bias = RelativeBias(position=jnp.full(3, -100.0))
    rest = pointwise_attention(one, one, one, alone, alone, normaliser=1, bias=bias)
    np.testing.assert_allclose(np.asarray(rest, np.float32)[0, 0, 0, 0], 10 * silu(0.25), rtol=0.01)


def test_blocks_never_hold_all_pairs_forward_or_backward():
    """Memory of the compiled program: twice the row, twice the memory; at once, four times."""
    jax.config.update("jax_disable_most_optimizations", False)

    def memory(length, block):
        zeros = jnp.zeros((1, length), jnp.int32)
        of = TokenMetadata(zeros + 1, zeros, {"time": zeros})

        def total(q, k, v, bias):
            return jnp.sum(
                pointwise_attention(
                    q, k, v, of, of, normaliser=SLOTS, bias=bias, allow=causal, block=block
                )
            )

        x = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
        compiled = jax.jit(jax.grad(total, (0, 1, 2, 3))).lower(x, x, x, BIAS).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long, at_once = memory(1024, 32), memory(2048, 32), memory(2048, None)
    assert long < 2.1 * short
    assert at_once > 2 * 2048 * 2048 * 4 > 4 * long


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normaliser": 0}, "normaliser >= 1"),
        ({"block": 0}, "leave block at None"),
        ({"bias": BIAS}, "reads the label 'time'"),
    ],
)
def test_refuses_what_it_cannot_do(inputs, change, message):
    q, k, v, query, key = inputs
    untimed = [TokenMetadata(of.segment, of.position) for of in (query, key)]
    with pytest.raises(ValueError, match=message):
        pointwise_attention(q, k, v, *untimed, **{"normaliser": 3, **change})
