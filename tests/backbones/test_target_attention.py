"""DIN and SIM: formulas, masks, what a search finds, and that a search of everything is none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_world import check_slopes

from jaxrec.backbones.layers import logical_axes, unbox
from jaxrec.backbones.target_attention import (
    ActivationUnit,
    Found,
    Moments,
    TargetAttention,
    dice,
    gather,
    masked_moments,
    pool,
    prelu,
    search_by_category,
    search_by_inner_product,
)

RNG = np.random.default_rng(0)
B, C, T, D = 2, 3, 6, 8
# Arrays for the loops of references, and the same for jax.
QUERIES, ROWS = RNG.normal(size=(B, C, D)), RNG.normal(size=(B, T, D))
SEEN, ADDED = RNG.random((B, C, T)) < 0.6, RNG.normal(size=(B, C, T, 2))
SEEN[0, 0] = False
QUERY, EVENTS = jnp.asarray(QUERIES, jnp.float32), jnp.asarray(ROWS, jnp.float32)
ALLOWED, BIAS = jnp.asarray(SEEN), jnp.asarray(ADDED, jnp.float32)
ALL = jnp.ones((B, C, T), bool)
UNITS = {
    "attention": TargetAttention(2),
    "prelu": ActivationUnit((5, 4)),
    "dice": ActivationUnit((5, 4), "dice"),
}


@functools.partial(jax.jit, static_argnums=0)
def interest(unit, params, query, events, allowed):
    """What the events say about the candidates, `[b c d]`; events `[b g t d]`."""
    answer = unit.apply({"params": params}, query, events, allowed)
    return pool(answer[0], events, allowed) if isinstance(unit, ActivationUnit) else answer


def boxed(name):
    """Shapes and axis names of the parameters."""
    inputs = (jax.random.key(0), QUERY, EVENTS[:, None], ALL)
    return jax.eval_shape(lambda: UNITS[name].init(*inputs)["params"])


def random_weights(name):
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.4 * random.normal(size=leaf.shape), jnp.float32),
        unbox(boxed(name)),
    )


PARAMS = {name: random_weights(name) for name in UNITS}


@functools.partial(jax.jit, static_argnums=0)
def apply(name, *inputs):
    return UNITS[name].apply({"params": PARAMS[name]}, *inputs)


def ask(name, query=QUERY, events=EVENTS[:, None], allowed=ALLOWED):
    return np.asarray(interest(UNITS[name], PARAMS[name], query, events, allowed))


def test_the_activation_unit_is_its_formula():
    w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), PARAMS["prelu"])
    weights, moments = apply("prelu", QUERY, EVENTS[:, None], ALLOWED)
    assert moments == ()
    weights = np.asarray(weights)

    def act(x, slope):
        return np.where(x > 0, x, slope * x)

    for b, c, t in np.ndindex(B, C, T):
        q, e = QUERIES[b, c], ROWS[b, t]
        x = q @ w["query"] + e @ w["event"] + (q * e) @ w["product"] + w["bias_0"]
        x = act(act(x, w["slope_0"]) @ w["kernel_1"] + w["bias_1"], w["slope_1"])
        expected = (x @ w["weight"] + w["weight_bias"])[0]
        assert weights[b, c, t] == pytest.approx(expected, abs=1e-4)


def test_attention_is_its_formula():
    w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), PARAMS["attention"])
    found = np.asarray(apply("attention", QUERY, EVENTS[:, None], ALLOWED, BIAS))
    for b, c in np.ndindex(B, C):
        seen = np.flatnonzero(SEEN[b, c])
        q, e = QUERIES[b, c], ROWS[b, seen]
        out = np.zeros(D)
        for head in range(2 if len(seen) else 0):
            scores = (e @ w["key"][:, head]) @ (q @ w["query"][:, head]) / np.sqrt(D / 2)
            scores = scores + ADDED[b, c, seen, head]
            share = np.exp(scores) / np.exp(scores).sum()
            out += share @ (e @ w["value"][:, head]) @ w["output"][head]
        np.testing.assert_allclose(found[b, c], out, atol=1e-5)


@pytest.mark.parametrize("name", UNITS)
def test_what_is_out_of_sight_does_not_matter(name):
    found = ask(name)
    assert np.all(found[0, 0] == 0)  # sees nothing
    assert np.abs(found[1]).min() > 0
    # An event that no candidate of a row sees may be anything.
    allowed = ALLOWED.at[1, :, 3].set(False)
    rubbish = EVENTS.at[1, 3].set(1e3)
    np.testing.assert_array_equal(
        ask(name, events=rubbish[:, None], allowed=allowed), ask(name, allowed=allowed)
    )
    # And an event in sight matters to whom it is in sight of.
    moved = np.abs(ask(name, events=EVENTS.at[1, 2].add(1.0)[:, None]) - found)[1].max(-1) > 1e-5
    if name != "dice":  # where moments tie everything together
        np.testing.assert_array_equal(moved, SEEN[1, :, 2])
        assert 0 < moved.sum() < C


@pytest.mark.parametrize("name", UNITS)
def test_order_of_candidates_and_events_means_nothing(name):
    found = ask(name)
    order, other = np.array([2, 0, 1]), np.array([3, 1, 5, 0, 4, 2])
    turned = ask(name, QUERY[:, order], EVENTS[:, other][:, None], ALLOWED[:, order][:, :, other])
    np.testing.assert_allclose(turned, found[:, order], atol=1e-5)


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("k", [T, 50])
def test_a_search_that_keeps_everything_is_no_search(name, k):
    found = search_by_inner_product(QUERY, EVENTS, ALLOWED, k)
    assert found.index.shape == (B, C, T)
    ours = ask(name, events=gather(EVENTS, found), allowed=found.valid)
    np.testing.assert_allclose(ours, ask(name), atol=1e-5)
    same = search_by_category(jnp.full((B, C), 7), jnp.full((B, T), 7), ALLOWED, k)
    ours = ask(name, events=gather(EVENTS, same), allowed=same.valid)
    np.testing.assert_allclose(ours, ask(name), atol=1e-5)


def test_the_hard_search_keeps_the_latest_events_of_the_category():
    categories, asked = RNG.integers(0, 2, (B, T)), np.array([[0, 1, 5], [1, 0, 0]])
    for k in (2, T):
        found = search_by_category(jnp.asarray(asked), jnp.asarray(categories), ALLOWED, k)
        index, valid = map(np.asarray, found)
        for b, c in np.ndindex(B, C):
            same = np.flatnonzero(SEEN[b, c] & (categories[b] == asked[b, c]))
            assert index[b, c, valid[b, c]].tolist() == same[::-1][:k].tolist()
    assert not np.any(valid[0, 2])  # nobody has category 5


def test_the_soft_search_keeps_the_largest_products_and_the_earliest_of_equals():
    products = np.einsum("bcd,btd->bct", QUERIES, ROWS)
    index, valid = map(np.asarray, search_by_inner_product(QUERY, EVENTS, ALLOWED, 3))
    for b, c in np.ndindex(B, C):
        seen = np.flatnonzero(SEEN[b, c])
        expected = seen[np.argsort(-products[b, c, seen], kind="stable")][:3]
        assert index[b, c, valid[b, c]].tolist() == expected.tolist()
    ties = search_by_inner_product(QUERY, jnp.ones((B, T, D)), ALL, 3)
    np.testing.assert_array_equal(ties.index, np.broadcast_to([0, 1, 2], (B, C, 3)))
    chosen = jax.jit(jax.grad(lambda e: gather(e, search_by_inner_product(QUERY, e, ALL, 1)).sum()))
    slopes = chosen(EVENTS)
    assert set(np.unique(slopes)) <= {0.0, 1.0, 2.0, 3.0}  # only through what was gathered


def test_gather_takes_each_candidates_own_events():
    index = RNG.integers(0, T, (B, C, 2)).astype(np.int32)
    found = gather(EVENTS, Found(jnp.asarray(index), jnp.ones((B, C, 2), bool)))
    expected = [[ROWS[b, index[b, c]] for c in range(C)] for b in range(B)]
    np.testing.assert_array_equal(found, np.asarray(expected, np.float32))


def test_dice_is_prelu_where_moments_decide_nothing():
    """At tiny variance the gate is a step at the mean; at a huge one it is 1/2 everywhere."""
    x, slope = EVENTS[0], jnp.linspace(0.1, 0.8, D)
    zero = jnp.zeros(D)
    np.testing.assert_allclose(dice(x, slope, Moments(zero, zero)), prelu(x, slope), atol=1e-5)
    flat = dice(x, slope, Moments(zero, jnp.full(D, 1e12)))
    np.testing.assert_allclose(flat, x * (1 + slope) / 2, atol=1e-5)


def test_moments_are_those_of_what_counts():
    x = jnp.asarray(RNG.normal(size=(B, C, T, D)), jnp.float32)
    mean, variance = masked_moments(x, ALLOWED)
    inside = np.asarray(x, np.float64)[np.asarray(ALLOWED)]
    np.testing.assert_allclose(mean, inside.mean(0), atol=1e-5)
    np.testing.assert_allclose(variance, inside.var(0), rtol=1e-5)
    nothing = masked_moments(x, jnp.zeros_like(ALLOWED))
    np.testing.assert_array_equal(jnp.stack(nothing), 0)


def test_dice_reads_the_moments_that_it_is_given():
    weights, moments = apply("dice", QUERY, EVENTS[:, None], ALLOWED)
    assert [each.mean.shape for each in moments] == [(5,), (4,)]
    # Another second row changes the first by the moments; with the moments given, not.
    other = EVENTS.at[1].multiply(3.0)[:, None]
    moved = apply("dice", QUERY, other, ALLOWED)[0] - weights
    assert np.abs(np.asarray(moved[0])).max() > 1e-3
    given = apply("dice", QUERY, other, ALLOWED, moments)[0]
    np.testing.assert_allclose(given[0], weights[0], atol=1e-6)


@pytest.mark.parametrize("name", UNITS)
def test_gradients_are_those_of_finite_differences(name):
    target = np.random.default_rng(3).normal(size=QUERY.shape)

    @jax.jit
    def loss_and_slope(tree):
        def loss(tree):
            answer = interest(UNITS[name], tree["params"], tree["query"], tree["events"], ALLOWED)
            return jnp.mean(answer * target)

        return jax.value_and_grad(loss)(tree)

    tree = {"params": PARAMS[name], "query": QUERY, "events": EVENTS[:, None]}
    # A small step, for the kinks of PReLU.
    check_slopes(loss_and_slope, tree, step=0.0025 if name == "prelu" else 0.01)


SCHEMA = {
    "attention": {"key": (8, 2, 4), "output": (2, 4, 8), "query": (8, 2, 4), "value": (8, 2, 4)},
    "prelu": {
        "bias_0": (5,), "bias_1": (4,), "event": (8, 5), "kernel_1": (5, 4), "product": (8, 5),
        "query": (8, 5), "slope_0": (5,), "slope_1": (4,), "weight": (4, 1), "weight_bias": (1,),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMA)
def test_the_names_of_parameters_are_frozen(name):
    assert {path: leaf.shape for path, leaf in unbox(boxed(name)).items()} == SCHEMA[name]
    axes = logical_axes(boxed(name))
    assert all(len(axes[path]) == len(shape) for path, shape in SCHEMA[name].items())


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        (ActivationUnit(()), "needs a hidden layer"),
        (TargetAttention(3), "width=8 does not divide into heads=3"),
    ],
)
def test_impossible_shapes_are_refused(unit, message):
    with pytest.raises(ValueError, match=message):
        unit.init(jax.random.key(0), QUERY, EVENTS[:, None], ALL)
