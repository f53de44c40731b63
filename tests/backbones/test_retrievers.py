"""Retrievers: equal to plain numpy, blind to what they may not know, and able to learn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from decoder_world import make_events, random_params, with_rubbish
from retriever_reference import bert_states, caser_states, gru_states, sasrec_states

from jaxrec.backbones.bert4rec import Bert4Rec
from jaxrec.backbones.caser import Caser
from jaxrec.backbones.gru4rec import Gru4Rec
from jaxrec.backbones.sasrec import SasRec
from jaxrec.objectives.cloze import Cloze
from jaxrec.objectives.item_softmax import ItemSoftmax
from jaxrec.types import Tables, TokenSpace

ITEMS = 40
SPACE = TokenSpace((ITEMS,))
TABLES = Tables(jnp.arange(ITEMS, dtype=jnp.int32)[:, None])
NETWORKS = {
    "sasrec": (SasRec(width=12, length=20, feedforward=20, dropout=0.0), sasrec_states),
    "sasrec as published": (
        SasRec(width=12, heads=1, length=20, dropout=0.0, norms="query"), sasrec_states,
    ),
    "bert4rec": (
        Bert4Rec(width=12, length=20, dropout=0.0, attention_dropout=0.0), bert_states,
    ),
    "gru4rec": (Gru4Rec(layers=2, width=10, hidden=12, dropout=0.0), gru_states),
    "caser": (Caser(window=3, width=8, horizontal=4, vertical=2, dropout=0.0), caser_states),
}  # fmt: skip
HISTORIES = [[3, 9, 27, 14], [5, 5], [8, 1, 30, 2, 17]]
BATCH = make_events(HISTORIES, *[[history] for history in HISTORIES], length=12)
CAUSAL = [name for name in NETWORKS if name != "bert4rec"]


@pytest.fixture(scope="module", params=NETWORKS)
def model(request):
    network, reference = NETWORKS[request.param]
    return network, random_params(network, space=SPACE), reference


def plain(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def states_of(network, params, batch, key=None):
    return network.forward(params, TABLES, batch, SPACE, key=key)[0]


def test_equals_the_numpy_reference(model):
    network, params, reference = model
    states = states_of(network, params, BATCH)
    at = 0
    for history in HISTORIES:
        expected = reference(network, plain(params), history)
        ours = states[0, at : at + len(history)]
        np.testing.assert_allclose(ours, expected, atol=2e-5, rtol=2e-5)
        at += len(history)


def test_packed_equals_unpacked_and_padding_is_not_read(model):
    network, params, _ = model
    states = states_of(network, params, BATCH)
    rubbish = states_of(network, params, with_rubbish(BATCH))
    at = 0
    for row, history in enumerate(HISTORIES, start=1):
        alone = states[row, : len(history)]
        np.testing.assert_allclose(states[0, at : at + len(history)], alone, atol=1e-5)
        np.testing.assert_array_equal(rubbish[row, : len(history)], alone)
        at += len(history)


@pytest.mark.parametrize("name", CAUSAL)
def test_an_event_is_predicted_from_what_came_before(name):
    network, _ = NETWORKS[name]
    params = random_params(network, space=SPACE)
    changed = dataclasses.replace(BATCH, item=BATCH.item.at[3, 2].set(11))
    before, after = (states_of(network, params, batch)[3] for batch in (BATCH, changed))
    np.testing.assert_array_equal(before[:3], after[:3])
    assert np.all(np.abs(np.asarray(before - after)[3:5]).max(-1) > 1e-4)


def test_a_masked_event_sees_both_sides():
    network, _ = NETWORKS["bert4rec"]
    params = random_params(network, space=SPACE)
    masked = dataclasses.replace(BATCH, item=BATCH.item.at[3, 2].set(ITEMS))
    for event in (0, 4):
        changed = dataclasses.replace(masked, item=masked.item.at[3, event].set(11))
        gap = states_of(network, params, masked) - states_of(network, params, changed)
        assert np.abs(np.asarray(gap)[3, 2]).max() > 1e-4
    other = dataclasses.replace(BATCH, item=BATCH.item.at[3, 2].set(ITEMS).at[0, 0].set(1))
    np.testing.assert_array_equal(
        states_of(network, params, masked)[3], states_of(network, params, other)[3]
    )


def test_user_vectors_continue_the_history(model):
    """The state that answers equals the state that training gives to the next event."""
    network, params, _ = model
    asked = make_events(*[[history] for history in HISTORIES], [[]], length=7)
    users = network.user_vectors(params, TABLES, with_rubbish(asked), SPACE)
    unknown = ITEMS if isinstance(network, Bert4Rec) else 0
    for row, history in enumerate([*HISTORIES, []]):
        longer = make_events([[*history, unknown]], length=7)
        expected = states_of(network, params, longer)[0, len(history)]
        np.testing.assert_allclose(users[row], expected, atol=1e-6)


def test_parameters_and_axes_follow_the_formula(model):
    network, _, _ = model
    params = network.init(jax.random.key(0), SPACE)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == network.parameters(SPACE)
    axes = network.axes(SPACE)
    ranks = jax.tree.map(lambda leaf, names: leaf.ndim == len(names), params, axes)
    assert all(jax.tree.leaves(ranks))
    again = network.init(jax.random.key(0), SPACE)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), params, again)))


PATHS = {
    "sasrec": [
        "items/table",
        *(f"layers/blocks/attention/{name}/{leaf}"
          for name in ("key", "output", "query", "value") for leaf in ("bias", "kernel")),
        *(f"layers/blocks/attention_norm/{leaf}" for leaf in ("bias", "scale")),
        *(f"layers/blocks/feedforward/{name}/{leaf}"
          for name in ("down", "up") for leaf in ("bias", "kernel")),
        *(f"layers/blocks/feedforward_norm/{leaf}" for leaf in ("bias", "scale")),
        "layers/norm/bias", "layers/norm/scale", "positions/table",
    ],
    "bert4rec": [
        *(f"guess/{name}" for name in ("bias", "norm/bias", "norm/scale")),
        "guess/project/bias", "guess/project/kernel", "input_norm/bias", "input_norm/scale",
        "items/table",
        *(f"layers/blocks/attention/{name}/{leaf}"
          for name in ("key", "output", "query", "value") for leaf in ("bias", "kernel")),
        *(f"layers/blocks/attention_norm/{leaf}" for leaf in ("bias", "scale")),
        *(f"layers/blocks/feedforward/{name}/{leaf}"
          for name in ("down", "up") for leaf in ("bias", "kernel")),
        *(f"layers/blocks/feedforward_norm/{leaf}" for leaf in ("bias", "scale")),
        "positions/table",
    ],
    "gru4rec": [
        "items/table",
        *(f"layer_{layer}/{leaf}"
          for layer in (0, 1) for leaf in ("bias", "candidate_bias", "keep", "read")),
        "output/bias", "output/kernel",
    ],
    "caser": [
        *(f"convolutions/horizontal_{height}" for height in (1, 2, 3)),
        *(f"convolutions/horizontal_bias_{height}" for height in (1, 2, 3)),
        "convolutions/vertical", "dense/bias", "dense/kernel", "items/table", "targets/table",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
def test_the_names_of_parameters_are_frozen(name):
    """They are the schema of checkpoints."""
    network, _ = NETWORKS[name]
    leaves = jax.tree_util.tree_leaves_with_path(network.axes(SPACE), is_leaf=_is_names)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    assert sorted(names) == sorted(PATHS[name])


def _is_names(node):
    return isinstance(node, tuple)


@pytest.mark.parametrize("name", NETWORKS)
def test_flops_agree_with_the_compiler(name):
    """Forward pass of straight-line code; element-wise work is left out of the formula."""
    network, _ = NETWORKS[name]
    wide = {"width": 64, "unroll": 2} if hasattr(network, "unroll") else {"width": 64}
    network = dataclasses.replace(network, **wide)
    space = TokenSpace((512,))
    params = network.init(jax.random.key(0), space)
    # A loop over time is counted once: one step of it is straight-line code.
    rows, length = (32, 1) if name == "gru4rec" else (2, 16)
    batch = make_events(*[[list(range(length))]] * rows, length=length)

    def states(params, batch):
        return network.forward(params, TABLES, batch, space)[0]

    counted = jax.jit(states).lower(params, batch).compile().cost_analysis()["flops"]
    assert network.flops(space, rows, length) / 3 == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize("name", NETWORKS)
def test_learns_a_cycle(name):
    """Every item is followed by the next one: all are learnt, from any start."""
    network, _ = NETWORKS[name]
    network = dataclasses.replace(network, width=32)
    objective = Cloze(last=1.0) if name == "bert4rec" else ItemSoftmax()
    histories = [[[(start + step) % ITEMS for step in range(9)]] for start in range(ITEMS)]
    batch = make_events(*histories, length=9)
    params = network.init(jax.random.key(0), SPACE)
    # Norms after the branches do not stand a large rate.
    optimizer = optax.adam(5e-3 if name == "bert4rec" else 2e-2)
    state = optimizer.init(params)

    def apply(params, tables, batch, key):
        return network.forward(params, tables, batch, SPACE, key=None)

    @jax.jit
    def step(params, state, key):
        def loss(params):
            total, weight, _ = objective(apply, params, TABLES, batch, key)
            return total / weight

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    for number in range(200 if name == "bert4rec" else 80):
        params, state = step(params, state, jax.random.key(number))
    asked = make_events(*[[history[:8]] for (history,) in histories], length=8)
    users = network.user_vectors(params, TABLES, asked, SPACE)
    found = jnp.argmax(users @ network.item_vectors(params, TABLES, SPACE).T, axis=-1)
    expected = (np.arange(ITEMS) + 8) % ITEMS
    assert np.mean(np.asarray(found) == expected) > 0.95


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_needs_a_key_and_follows_it(name):
    network, _ = NETWORKS[name]
    rates = {"dropout": 0.3}
    if hasattr(network, "attention_dropout"):
        rates["attention_dropout"] = 0.3
    dropped = dataclasses.replace(network, **rates)
    params = random_params(network, space=SPACE)
    quiet = states_of(network, params, BATCH)
    np.testing.assert_array_equal(states_of(dropped, params, BATCH), quiet)
    one, two = (states_of(dropped, params, BATCH, jax.random.key(n)) for n in (0, 1))
    again = states_of(dropped, params, BATCH, jax.random.key(0))
    np.testing.assert_array_equal(one, again)
    assert np.abs(np.asarray(one - two)).max() > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SasRec(width=10, heads=4), "multiple of heads"),
        (lambda: SasRec(norms="both"), r"(?s)both.*query"),
        (lambda: SasRec(length=0), "length=0"),
        (lambda: Bert4Rec(dropout=1.0), "between 0 and 0.99"),
        (lambda: Gru4Rec(hidden=0), "at least 1"),
        (lambda: Caser(window=0), "at least 1"),
    ],
)
def test_impossible_shapes_are_refused(make, message):
    # The type checker of the tests may come first where the field is a Literal.
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_semantic_ids_are_no_items():
    with pytest.raises(ValueError, match="use tokenizer=ItemIds"):
        SasRec().init(jax.random.key(0), TokenSpace((4, 4)))
