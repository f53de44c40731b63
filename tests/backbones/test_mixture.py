"""The mixture of experts against loops, closed forms, and one expert as a plain SwiGLU."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lazy_reference import mixture as reference

from jaxrec import parallel
from jaxrec.backbones.layers import FeedForward, Stack, apply_module, logical_axes, unbox
from jaxrec.backbones.mixture import (
    Mixture,
    MixtureFeedForward,
    grouped_in_blocks,
    grouped_ragged,
    load_balance_loss,
    route,
    update_biases,
)

STACK = Stack(layers=2, width=8, heads=2, kv_heads=2, head_size=4, feedforward=12)
SOFTMAX = Mixture(experts=6, top_k=2, feedforward=12)
KINDS = {
    "softmax": SOFTMAX,
    "sigmoid": Mixture(experts=6, top_k=3, feedforward=12, shared=2, gate="sigmoid",
                       balance="bias"),
    "biased softmax": dataclasses.replace(SOFTMAX, balance="bias"),
}  # fmt: skip
TOKENS = (3, 7)
VALID = np.random.default_rng(9).random(TOKENS) < 0.7


def random_params(mixture, seed=0, scale=0.5):
    random = np.random.default_rng(seed)
    module, x = MixtureFeedForward(STACK, mixture), jnp.zeros((1, 1, 8))
    init = functools.partial(module.init, jax.random.key(0), x, jnp.ones((1, 1), bool))
    shapes = unbox(jax.eval_shape(init))["params"]

    def draw(leaf):
        return jnp.asarray(scale * random.normal(size=leaf.shape), jnp.float32)

    return jax.tree.map(draw, shapes)


def states(shape=TOKENS, seed=1):
    random = np.random.default_rng(seed)
    return jnp.asarray(random.normal(size=(*shape, 8)), jnp.float32)


@functools.partial(jax.jit, static_argnames="mixture")
def run(mixture, params, x, valid):
    return apply_module(MixtureFeedForward(STACK, mixture), params, x, valid)


@functools.partial(jax.jit, static_argnames="mixture")
def learn(mixture, params, x, valid):
    """A loss, what happened, and slopes of the parameters."""

    def loss(params):
        y, statistics = apply_module(MixtureFeedForward(STACK, mixture), params, x, valid)
        return jnp.sum(jnp.sin(y)) + 50 * statistics.loss, (y, statistics)

    return jax.value_and_grad(loss, has_aux=True)(params)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_numpy_reference(kind):
    """And padding, whatever stands in it, is neither routed nor counted."""
    mixture = KINDS[kind]
    params, x = random_params(mixture), states()
    rubbish = jnp.where(VALID[..., None], x, jnp.nan)
    y, statistics = run(mixture, params, rubbish, jnp.asarray(VALID))
    plain = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    load = np.zeros(mixture.experts, int)
    for place in np.argwhere(VALID):
        expected, chosen = reference(mixture, plain, np.asarray(x[tuple(place)], np.float64))
        np.testing.assert_allclose(y[tuple(place)], expected, atol=2e-5)
        load[chosen] += 1
    np.testing.assert_array_equal(statistics.load, load)
    assert statistics.load.dtype == jnp.int32
    assert int(statistics.dropped) == 0
    if not mixture.shared:
        assert np.all(np.asarray(y)[~VALID] == 0)


def test_biases_change_who_is_chosen_but_not_what_it_weighs():
    scores = jnp.asarray(np.random.default_rng(3).normal(size=(50, 5)), jnp.float32)
    bias = jnp.array([0.0, 0.0, 0.0, 0.0, 2.0])  # more than any share
    for gate, values in (("softmax", jax.nn.softmax(scores)), ("sigmoid", jax.nn.sigmoid(scores))):
        free, pushed = route(scores, 2, gate=gate), route(scores, 2, gate=gate, bias=bias)
        assert set(np.asarray(pushed.experts[:, 0])) == {4}
        assert np.asarray(free.experts[:, 0] == 4).mean() < 0.5
        picked = np.take_along_axis(np.asarray(values), np.asarray(pushed.experts), axis=1)
        expected = picked / picked.sum(1, keepdims=True)
        np.testing.assert_allclose(pushed.weights, expected, rtol=1e-5)
        np.testing.assert_allclose(free.probabilities, values / values.sum(1, keepdims=True), 1e-5)
        np.testing.assert_array_equal(pushed.probabilities, free.probabilities)


def test_ties_go_to_the_lowest_expert_and_far_scores_stay_finite():
    assert route(jnp.zeros((1, 4)), 2).experts.tolist() == [[0, 1]]
    far = jnp.array([[-300.0, -200.0, -250.0]])  # every sigmoid is 0 in float32
    assert route(far, 2, gate="sigmoid").experts.tolist() == [[1, 2]]
    np.testing.assert_allclose(route(far, 2, gate="sigmoid").weights, [[1.0, 0.0]], atol=1e-6)


def test_one_expert_is_a_plain_swiglu():
    one = Mixture(experts=1, top_k=1, feedforward=12)
    params, x = random_params(one), states()
    y, statistics = run(one, params, x, jnp.ones(TOKENS, bool))
    dense = {name: params[name][0] for name in ("gate", "up", "down")}
    np.testing.assert_allclose(y, apply_module(FeedForward(STACK), dense, x), atol=1e-5)
    np.testing.assert_allclose(statistics.loss, one.loss_weight, rtol=1e-6)  # E f p = 1


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_the_names_of_experts_mean_nothing(kind):
    mixture = KINDS[kind]
    params, x, valid = random_params(mixture), states(), jnp.asarray(VALID)
    order = np.random.default_rng(2).permutation(mixture.experts)
    renamed = {name: leaf if name == "shared" else leaf[order] for name, leaf in params.items()}
    (y, first), (z, second) = (run(mixture, each, x, valid) for each in (params, renamed))
    np.testing.assert_allclose(z, y, atol=1e-5)
    np.testing.assert_array_equal(second.load, first.load[order])


def test_equal_shares_have_loss_one_and_collapse_has_more():
    even = jnp.full((6, 3), 1 / 3)
    valid = jnp.array([True] * 5 + [False])
    loss = load_balance_loss(even, jnp.array([4, 4, 4], jnp.int32), valid)
    np.testing.assert_allclose(loss, 1.0, rtol=1e-6)
    # E sum f p = 3 (.5 * .2 + .5 * .7): shares of choices, mean probability of the valid
    skewed = jnp.tile(jnp.array([[0.2, 0.1, 0.7]]), (6, 1)).at[5].set(jnp.nan)
    loss = load_balance_loss(skewed, jnp.array([5, 0, 5], jnp.int32), valid)
    np.testing.assert_allclose(loss, 1.35, rtol=1e-5)
    nobody = load_balance_loss(even, jnp.zeros(3, jnp.int32), jnp.zeros(6, bool))
    assert float(nobody) == 0.0


def test_gradients_are_those_of_the_loss_and_biases_have_none():
    for kind in ("softmax", "sigmoid"):
        mixture = KINDS[kind]
        params, valid = random_params(mixture), jnp.asarray(VALID)
        x = jnp.where(valid[..., None], states(), 0.0)
        _, ours = learn(mixture, params, x, valid)
        for name in ("router", "gate", "up", "down"):
            assert np.any(np.asarray(ours[name]) != 0)
            direction = np.random.default_rng(4).normal(size=params[name].shape)
            direction = jnp.asarray(direction / np.linalg.norm(direction), jnp.float32)
            there, back = (
                learn(mixture, params | {name: params[name] + by * direction}, x, valid)[0][0]
                for by in (4e-3, -4e-3)
            )
            expected = (float(there) - float(back)) / 8e-3
            np.testing.assert_allclose(jnp.sum(ours[name] * direction), expected, atol=5e-3)
        if mixture.balance == "bias":
            assert np.all(np.asarray(ours["bias"]) == 0)


def test_ragged_products_equal_blocks():
    """Also with experts of no rows, and rows of nobody."""
    random = np.random.default_rng(0)
    x, gate, up, down = (
        jnp.asarray(random.normal(size=shape), jnp.float32)
        for shape in ((96, 8), (4, 8, 12), (4, 8, 12), (4, 12, 8))
    )
    in_blocks = jax.jit(functools.partial(grouped_in_blocks, block=8))
    ragged = jax.jit(grouped_ragged)
    for sizes in ([8, 0, 64, 16], [0, 0, 0, 96], [16, 8, 0, 0]):
        owned = jnp.arange(96)[:, None] < sum(sizes)
        laid, sizes = jnp.where(owned, x, 0.0), jnp.array(sizes, jnp.int32)
        ours, expected = (f(laid, sizes, gate, up, down) for f in (in_blocks, ragged))
        np.testing.assert_allclose(ours, expected, atol=1e-3, rtol=1e-5)
        assert np.abs(ours).max() > 1


def test_seats_are_taken_in_the_order_of_the_tokens():
    """Ten tokens want experts 0 and 1; with 4 seats each, the first four of the valid get them."""
    seated = Mixture(experts=5, top_k=2, feedforward=12, capacity_factor=1.0)
    params = random_params(seated)
    x = jnp.tile(states((1, 1)), (1, 10, 1))  # ten times the same
    router = params["router"].at[:2].set(jnp.array([[4.0], [3.0]]) * jnp.sign(x[0, 0]))
    params["router"] = router
    valid = jnp.arange(10)[None] != 1
    assert seated.capacity(10) == 4
    y, statistics = run(seated, params, x, valid)
    free, _ = run(dataclasses.replace(seated, capacity_factor=None), params, x, valid)
    served = [0, 2, 3, 4]
    np.testing.assert_allclose(y[0, served], free[0, served], atol=1e-5)
    assert np.abs(free[0, served]).max() > 0.1
    assert np.all(np.asarray(y[0, [1, 5, 6, 7, 8, 9]]) == 0)
    assert statistics.load.tolist() == [9, 9, 0, 0, 0]
    assert int(statistics.dropped) == 10


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_seats_for_everybody_drop_nothing(kind):
    free = KINDS[kind]
    seated = dataclasses.replace(free, capacity_factor=float(free.experts))
    assert seated.capacity(21) == 21
    params, x, valid = random_params(free), states(), jnp.asarray(VALID)
    (y, ours), (expected, other) = (run(each, params, x, valid) for each in (seated, free))
    np.testing.assert_allclose(y, expected, atol=1e-5)
    assert int(ours.dropped) == 0
    np.testing.assert_array_equal(ours.load, other.load)
    np.testing.assert_allclose(ours.loss, other.loss, rtol=1e-6)


@pytest.mark.parametrize("balance", ["bias", "loss", "none"])
def test_balance_on_a_skewed_router(balance):
    """METHODS B3: the busiest expert has less than 1.2 of the mean within 500 steps.

    The biases move by the published 1e-3, on the gate that they are published for.
    """
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(512, 8)) + 1, jnp.float32)
    start = 0.2 * random.normal(size=(6, 8)) + 0.1 * np.arange(6)[:, None]
    valid, optimizer = jnp.ones(512, bool), optax.sgd(0.2)

    @jax.jit
    def train(router, bias):
        def one(state, _):
            router, bias = state

            def loss(router):
                how = {"gate": "sigmoid", "bias": bias} if balance == "bias" else {}
                routes = route(x @ router.T, 2, **how)
                load = jnp.zeros(6, jnp.int32).at[routes.experts].add(1)
                return load_balance_loss(routes.probabilities, load, valid), load

            slope, load = jax.grad(loss, has_aux=True)(router)
            if balance == "loss":
                updates, _ = optimizer.update(slope, optimizer.init(router))
                router = optax.apply_updates(router, updates)
            return (router, update_biases(bias, load, 1e-3)), load

        return jax.lax.scan(one, (router, bias), length=500)[1]

    load = np.asarray(train(jnp.asarray(start, jnp.float32), jnp.zeros(6)))
    share = load.max(1) / load.mean(1)
    assert share[0] > 2
    assert (share[-50:].max() < 1.2) == (balance != "none")


def test_biases_move_by_the_rate_towards_the_mean():
    load = jnp.array([[5, 1, 3], [0, 0, 0]], jnp.int32)
    moved = update_biases(jnp.full((2, 3), 0.5), load, 0.25)
    assert moved.tolist() == [[0.25, 0.75, 0.5], [0.5, 0.5, 0.5]]


@pytest.mark.parametrize("capacity_factor", [None, 1.5])
def test_experts_on_several_devices_equal_one(capacity_factor):
    mixture = Mixture(8, 2, 12, shared=1, gate="sigmoid", balance="bias",
                      capacity_factor=capacity_factor)  # fmt: skip
    params, x = random_params(mixture), states((4, 6))
    valid = jnp.arange(6)[None] < jnp.array([[6], [3], [0], [5]])
    expected = learn(mixture, params, x, valid)
    module = MixtureFeedForward(STACK, mixture)
    axes = logical_axes(jax.eval_shape(lambda: module.init(jax.random.key(0), x, valid)["params"]))
    assert axes["router"] == ("experts", "embed")
    assert axes["bias"] == ("experts",)
    assert axes["down"] == ("experts", "mlp", "embed")
    assert axes["gate"] == axes["up"] == ("experts", "embed", "mlp")
    mesh = parallel.make_mesh(parallel.MeshShape(data=2, tensor=2, expert=2))
    shardings = parallel.shardings(axes, params, mesh)
    assert shardings["gate"].spec == jax.sharding.PartitionSpec("expert", None, "tensor")
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings)
        inputs = jax.device_put((x, valid), parallel.rows_sharding(mesh))
        ours = learn(mixture, placed, *inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, expected)
    (_, (_, statistics)), _ = ours
    assert (int(statistics.dropped) > 0) == (capacity_factor is not None)


def test_parameters_and_work_are_counted():
    for mixture in KINDS.values():
        params = jax.tree.leaves(random_params(mixture))
        assert mixture.parameters(8) == sum(leaf.size for leaf in params)
    # Seats for exactly the chosen, so that the compiler's products are those of the formula. 16
    # tokens are few beside the width 1024: handing out seats costs little.
    wide = Stack(layers=1, width=64, heads=2, kv_heads=2, head_size=32, feedforward=8)
    mixture = Mixture(experts=4, top_k=2, feedforward=1024, shared=1, capacity_factor=1.0)
    module = MixtureFeedForward(wide, mixture)
    x, valid = jnp.zeros((1, 16, 64)), jnp.ones((1, 16), bool)
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), x, valid)["params"])

    def whole(params):
        return apply_module(module, params, x, valid)[0]

    counted = jax.jit(whole).lower(unbox(params)).cost_analysis()["flops"]
    assert abs(2 * 16 * mixture.active_weights(64) / counted - 1) < 0.1


def test_bfloat16_experts_have_a_float32_router():
    """The choice is made in float32: of the states, which bfloat16 has rounded."""
    x = states().astype(jnp.bfloat16)
    params, valid = random_params(SOFTMAX), jnp.asarray(VALID)
    y, ours = run(SOFTMAX, params, x, valid)
    z, expected = run(SOFTMAX, params, x.astype(jnp.float32), valid)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours.load, expected.load)
    np.testing.assert_allclose(y.astype(jnp.float32), z, atol=0.02 * float(jnp.abs(z).max()))


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_lowers_for_accelerators(platform):
    params, x, valid = random_params(SOFTMAX), states(), jnp.asarray(VALID)
    traced = jax.jit(lambda params: learn(SOFTMAX, params, x, valid)).trace(params)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "ragged_dot" in text or "dot_general" in text
    assert "while" not in text  # the loop over blocks is for CPU


def test_a_batch_of_padding_is_zero_and_teaches_nothing():
    params, nobody = random_params(SOFTMAX), jnp.zeros(TOKENS, bool)
    (loss, (y, statistics)), slopes = learn(SOFTMAX, params, states(), nobody)
    assert float(loss) == 0
    assert np.all(np.asarray(y) == 0)
    assert statistics.load.tolist() == [0] * 6
    assert all(np.all(np.asarray(slope) == 0) for slope in jax.tree.leaves(slopes))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"experts": 0}, "experts=0"),
        ({"shared": -1}, "shared=-1"),
        ({"top_k": 9}, "top_k=9 must lie between 1 and experts=8"),
        ({"top_k": 1}, "router gets no gradient"),
        ({"gate": "tanh"}, "choose one of softmax, sigmoid"),
        ({"balance": "luck"}, "choose one of loss, bias, none"),
        ({"loss_weight": -1.0}, "must not be negative"),
        ({"capacity_factor": 0.0}, "use None to drop nothing"),
    ],
)
def test_refuses_impossible_mixtures(options, words):
    with pytest.raises(ValueError, match=words):
        Mixture(**options)
