"""Feature interactions: identities, degrees of polynomials, loops, and their gradients."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_world import check_slopes

from jaxrec.backbones.feature_interactions import (
    CompressedInteractions,
    CrossLayers,
    GroupLayerNorm,
    TokenMixing,
    compress,
    cross,
    factorization_machine,
    group_layer_norm,
    mix_tokens,
)
from jaxrec.backbones.layers import logical_axes, unbox

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


FIELDS = normal(3, 4, 8)
GROUP = jnp.asarray([[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0]])
# Modules with inputs that they take.
MODULES = {
    "vector": (CrossLayers(3, "vector"), (FIELDS[:, 0],)),
    "matrix": (CrossLayers(3), (FIELDS[:, 0],)),
    "compressed": (CompressedInteractions((5, 2)), (FIELDS,)),
    "mixing": (TokenMixing(2), (FIELDS,)),
    "norm": (GroupLayerNorm(2), (FIELDS, GROUP)),
}


@functools.partial(jax.jit, static_argnums=0)
def run(module, params, *inputs):
    return module.apply({"params": params}, *inputs)


def random_weights(name, scale=0.4):
    module, inputs = MODULES[name]
    shapes = unbox(jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs)["params"]))
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * random.normal(size=leaf.shape), jnp.float32), shapes
    )


def test_factorization_machine_is_the_sum_over_pairs():
    pairs = itertools.combinations(range(4), 2)
    expected = sum(jnp.sum(FIELDS[:, i] * FIELDS[:, j], axis=-1) for i, j in pairs)
    np.testing.assert_allclose(factorization_machine(FIELDS), expected, atol=1e-5)
    np.testing.assert_allclose(factorization_machine(FIELDS[:, :1]), 0, atol=1e-5)
    np.testing.assert_allclose(factorization_machine(FIELDS[:, ::-1]), expected, atol=1e-5)


def test_a_cross_layer_is_its_formula():
    first, x, w, bias, matrix = normal(3, 6), normal(3, 6), normal(6), normal(6), normal(6, 6)
    by_vector, by_matrix = cross(first, x, w, bias), cross(first, x, matrix, bias)
    for row, (f, y) in enumerate(zip(np.asarray(first), np.asarray(x))):
        expected = f * (y @ np.asarray(w)) + np.asarray(bias) + y
        np.testing.assert_allclose(by_vector[row], expected, atol=1e-5)
        expected = f * (np.asarray(matrix).T @ y + np.asarray(bias)) + y
        np.testing.assert_allclose(by_matrix[row], expected, atol=1e-5)
    # With the same column in every place a matrix is a vector, but for the bias.
    same = jnp.broadcast_to(w[:, None], (6, 6))
    none = jnp.zeros(6)
    ours, expected = cross(first, x, same, none), cross(first, x, w, none)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["vector", "matrix"])
@pytest.mark.parametrize("layers", [1, 3])
def test_cross_layers_are_polynomials_of_one_degree_more_than_layers(kind, layers):
    """Along a line, differences of order `layers + 2` vanish and those before do not. Without the
    bias of the vector kind: it adds terms of lower degree only."""
    random = np.random.default_rng(2)
    start, direction = random.normal(size=(2, 5))
    shape = (layers, 5) if kind == "vector" else (layers, 5, 5)
    kernels, biases = random.normal(size=shape), random.normal(size=(layers, 5))
    with jax.enable_x64(True):
        steps = jnp.arange(layers + 3, dtype=jnp.float64)
        first = jnp.asarray(start) + steps[:, None] * jnp.asarray(direction)
        x = first
        for kernel, bias in zip(kernels, biases):
            x = cross(first, x, jnp.asarray(kernel), jnp.asarray(bias))
        values = np.asarray(x)
    scale = np.abs(values).max()
    assert np.abs(np.diff(values, n=layers + 2, axis=0)).max() < 1e-10 * scale
    assert np.abs(np.diff(values, n=layers + 1, axis=0)).min() > 1e-3


@pytest.mark.parametrize("kind", ["vector", "matrix"])
def test_the_module_scans_its_layers(kind):
    module, (x,) = MODULES[kind]
    params = random_weights(kind)
    expected = x
    for kernel, bias in zip(params["kernel"], params["bias"]):
        expected = cross(x, expected, kernel, bias)
    np.testing.assert_allclose(run(module, params, x), expected, atol=1e-5)


def slow_compress(first, x, kernel):
    (h, d), (m, _), maps = x.shape, first.shape, kernel.shape[-1]
    out = np.zeros((maps, d))
    for f, i, j in itertools.product(range(maps), range(h), range(m)):
        out[f] += kernel[i, j, f] * x[i] * first[j]
    return out


def test_compressed_interactions_are_loops_over_pairs():
    module, params = MODULES["compressed"][0], random_weights("compressed")
    found = np.asarray(run(module, params, FIELDS))
    kernels = [np.asarray(params[name], np.float64) for name in ("kernel_1", "kernel_2")]
    for row in range(3):
        fields = np.asarray(FIELDS[row], np.float64)
        one = slow_compress(fields, fields, kernels[0])
        two = slow_compress(fields, one, kernels[1])
        expected = np.concatenate([one.sum(-1), two.sum(-1)])
        np.testing.assert_allclose(found[row], expected, atol=1e-4)
    # Degrees 2 and 3 in the fields, exactly.
    doubled = run(module, params, 2 * FIELDS)
    np.testing.assert_allclose(doubled[:, :5], 4 * found[:, :5], rtol=1e-5)
    np.testing.assert_allclose(doubled[:, 5:], 8 * found[:, 5:], rtol=1e-5)
    alone = compress(FIELDS[0], FIELDS[0], params["kernel_1"])  # without leading axes
    np.testing.assert_allclose(alone.sum(-1), found[0, :5], atol=1e-4)


def test_one_compressed_map_of_ones_is_twice_the_factorization_machine():
    """Plus the squares, which the factorization machine leaves out."""
    maps = compress(FIELDS, FIELDS, jnp.ones((4, 4, 1)))
    squares = jnp.sum(jnp.square(FIELDS), axis=(-1, -2))
    expected = 2 * factorization_machine(FIELDS) + squares
    np.testing.assert_allclose(jnp.sum(maps, axis=(-1, -2)), expected, rtol=1e-5)


def test_mixing_tokens_moves_every_number_once_and_back():
    x = jnp.arange(48.0).reshape(2, 4, 6)[..., :4]
    mixed, x = np.asarray(mix_tokens(x)), np.asarray(x)
    for row, token, head in itertools.product(range(2), range(4), range(4)):
        assert mixed[row, head, token] == x[row, token, head]
    wide = FIELDS  # parts of two numbers
    np.testing.assert_array_equal(mix_tokens(mix_tokens(wide)), wide)
    np.testing.assert_array_equal(mix_tokens(wide)[:, 1, 4:6], wide[:, 2, 2:4])
    with pytest.raises(ValueError, match="8 numbers do not divide into 3 parts"):
        mix_tokens(FIELDS[:, :3])


def slow_norm(x):
    x = np.asarray(x, np.float64)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def test_token_mixing_is_its_formula():
    module, params = MODULES["mixing"][0], random_weights("mixing")
    w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = np.asarray(FIELDS, np.float64)
    mixed = slow_norm(x + np.asarray(mix_tokens(FIELDS))) * w["mixing_norm"]["scale"][0]
    mixed += w["mixing_norm"]["bias"][0]
    expected = np.zeros_like(mixed)
    for token in range(4):  # each token has a network of its own
        hidden = mixed[:, token] @ w["up"][token] + w["up_bias"][token]
        hidden = np.asarray(jax.nn.gelu(jnp.asarray(hidden, jnp.float32)), np.float64)
        expected[:, token] = mixed[:, token] + hidden @ w["down"][token] + w["down_bias"][token]
    expected = slow_norm(expected) * w["feedforward_norm"]["scale"][0]
    expected += w["feedforward_norm"]["bias"][0]
    np.testing.assert_allclose(run(module, params, FIELDS), expected, atol=1e-4)


def test_every_group_has_its_own_norm():
    module, params = MODULES["norm"][0], random_weights("norm", scale=1.0)
    found = run(module, params, FIELDS, GROUP)
    scale, bias, group = (np.asarray(each) for each in (params["scale"], params["bias"], GROUP))
    expected = slow_norm(FIELDS) * scale[group] + bias[group]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # Constant vectors have no variance: the bias is left, and finite slopes.
    constant, arrays = jnp.full((3, 4, 8), 3.0), (params["scale"], params["bias"])
    np.testing.assert_allclose(run(module, params, constant, GROUP), bias[group], atol=1e-6)
    slope = jax.jit(jax.grad(lambda x: group_layer_norm(x, GROUP, *arrays).sum()))
    assert np.isfinite(slope(constant)).all()


@pytest.mark.parametrize("name", MODULES)
def test_gradients_are_those_of_finite_differences(name):
    module, inputs = MODULES[name]
    target = np.random.default_rng(3).normal(size=run(module, random_weights(name), *inputs).shape)

    @jax.jit
    def loss_and_slope(params):
        def loss(params):
            return jnp.mean(jnp.tanh(module.apply({"params": params}, *inputs)) * target)

        return jax.value_and_grad(loss)(params)

    check_slopes(loss_and_slope, random_weights(name))


@pytest.mark.parametrize("name", MODULES)
def test_leading_axes_are_rows_and_bfloat16_is_close(name):
    """In one program: two batches of rows, in half precision."""
    module, inputs = MODULES[name]
    params = random_weights(name)
    expected = np.asarray(run(module, params, *inputs))
    first, *rest = [np.stack([each, each[::-1]]) for each in map(np.asarray, inputs)]
    short = run(module, params, jnp.asarray(first, jnp.bfloat16), *map(jnp.asarray, rest))
    assert short.dtype == jnp.bfloat16
    gap = np.abs(np.asarray(short, np.float32) - np.stack([expected, expected[::-1]])).max()
    assert gap < 0.05 * np.abs(expected).max()


SCHEMA = {
    "vector": {"bias": (3, 8), "kernel": (3, 8)},
    "matrix": {"bias": (3, 8), "kernel": (3, 8, 8)},
    "compressed": {"kernel_1": (4, 4, 5), "kernel_2": (5, 4, 2)},
    "mixing": {
        "down": (4, 16, 8), "down_bias": (4, 8), "up": (4, 8, 16), "up_bias": (4, 16),
        "feedforward_norm/bias": (1, 8), "feedforward_norm/scale": (1, 8),
        "mixing_norm/bias": (1, 8), "mixing_norm/scale": (1, 8),
    },
    "norm": {"bias": (2, 8), "scale": (2, 8)},
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMA)
def test_the_names_of_parameters_are_frozen(name):
    module, inputs = MODULES[name]
    boxed = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs)["params"])
    leaves = jax.tree_util.tree_leaves_with_path(unbox(boxed))
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves
    }
    assert shapes == SCHEMA[name]
    ranks = jax.tree.map(
        lambda leaf, axes: leaf.ndim == len(axes), unbox(boxed), logical_axes(boxed)
    )
    assert all(jax.tree.leaves(ranks))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (CrossLayers(0), "needs a layer and a kind"),
        (CompressedInteractions(()), "needs a layer"),
        (CompressedInteractions((3, 0)), "at least one feature map"),
    ],
)
def test_impossible_shapes_are_refused(module, message):
    with pytest.raises(ValueError, match=message):
        module.init(jax.random.key(0), FIELDS)
