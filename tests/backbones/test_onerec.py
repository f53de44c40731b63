"""OneRec: pathways, encoder and decoder against loops over one history."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_world import (
    SPACE,
    check_slopes,
    first_step,
    forward,
    later_step,
    make_events,
    prefill,
    random_params,
)
from onerec_reference import reference_logits

from jaxrec.backbones.mixture import Mixture
from jaxrec.backbones.onerec import OneRec
from jaxrec.backbones.onerec_layers import age_bucket, newest
from jaxrec.objectives.next_token import next_token_loss
from jaxrec.types import Tables, TokenSpace

BASE = OneRec(
    layers=2,
    encoder_layers=1,
    width=8,
    heads=2,
    feedforward=12,
    short=3,
    positive=2,
    positive_actions=(1, 2),
    queries=2,
    query_layers=2,
    user_buckets=3,
    actions=3,
    feature_width=4,
)
SHAPES = {
    "base": BASE,
    "printed": dataclasses.replace(BASE, attention_norms=False, positive=0, user_buckets=0),
    "experts": dataclasses.replace(
        BASE, mixture=Mixture(3, 2, feedforward=8, balance="none"), queries=0
    ),
}
# events are (item, time, action)
HISTORIES = [
    [(3, 5, 0), (9, 60, 1), (27, 61, 2), (9, 4000, 0), (14, 9000, 1)],
    [(2, 0, 5)],
    [],
]
TARGETS, USERS, LENGTH = [2, 30, 11], [4, -1, 7], 8


@pytest.fixture(scope="module", params=SHAPES)
def model(request):
    return SHAPES[request.param]


@pytest.fixture(scope="module")
def params(model):
    return random_params(model)


def batch_of(histories, users=USERS, targets=None, length=LENGTH):
    """Histories of one row each; with targets right-aligned, the target in the last column."""
    rows = [[event[0] for event in each] for each in histories]
    if targets is not None:
        rows = [[*row, target] for row, target in zip(rows, targets)]
    batch = make_events(*[[row] if row else [] for row in rows], length=length)
    columns = {
        name: np.full((len(rows), length), 77, np.int32) for name in ("time", "action", "user")
    }
    for row, (events, user) in enumerate(zip(histories, users)):
        for column, (_, time, action) in enumerate(events):
            columns["time"][row, column] = time
            columns["action"][row, column] = action
            columns["user"][row, column] = user
    batch = dataclasses.replace(
        batch, **{name: jnp.asarray(each) for name, each in columns.items()}
    )
    if targets is None:
        return batch
    index = np.stack([np.roll(np.arange(length), length - len(row)) for row in rows])
    return jax.tree.map(lambda array: jnp.take_along_axis(array, jnp.asarray(index), 1), batch)


def test_equals_the_numpy_reference(model, params, world):
    logits = forward(model, params, world.tables, batch_of(HISTORIES, targets=TARGETS))
    plain = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for row, (events, user, target) in enumerate(zip(HISTORIES, USERS, TARGETS)):
        expected = reference_logits(model, plain, SPACE, world.codes, events, user, target)
        for level, numbers in enumerate(expected):
            found = np.asarray(logits[row, 0, level])
            np.testing.assert_allclose(found[: len(numbers)], numbers, atol=3e-5, rtol=1e-5)
            assert np.all(found[len(numbers) :] == -1e9)


def test_steps_continue_what_forward_computes(model, params, world):
    whole = np.asarray(forward(model, params, world.tables, batch_of(HISTORIES, targets=TARGETS)))
    cache = prefill(model, params, world.tables, batch_of(HISTORIES))
    stay = jnp.zeros((3, 2), jnp.int32)
    codes = jnp.asarray(world.codes[TARGETS])
    both = jnp.stack([(codes + 1) % jnp.array([7, 5, 3]), codes], axis=1)  # the second beam is it
    found, cache = first_step(model, params, cache, stay, stay)
    np.testing.assert_allclose(found[:, 1], whole[:, 0, 0], atol=2e-5)
    found, cache = later_step(model, params, cache, both[..., 0], stay, jnp.int32(1))
    np.testing.assert_allclose(found[:, 1], whole[:, 0, 1], atol=2e-5)
    parents = jnp.array([[1, 0]] * 3)
    found, _ = later_step(model, params, cache, both[:, ::-1, 1], parents, jnp.int32(2))
    np.testing.assert_allclose(found[:, 0], whole[:, 0, 2], atol=2e-5)


def test_a_history_of_another_segment_is_not_read(model, params, world):
    alone = batch_of([HISTORIES[0][:2]] * 3, users=[4] * 3, targets=[2] * 3)
    crowded = jax.tree.map(jnp.asarray, alone)
    front = jnp.arange(LENGTH) < 4
    crowded = dataclasses.replace(
        crowded,
        item=jnp.where(front, 21, alone.item),
        segment=jnp.where(front, 1, 2 * (alone.segment > 0)).astype(jnp.int32),
        action=jnp.where(front, 1, alone.action),
        user=jnp.where(front, 5, alone.user),
    )
    ours = forward(model, params, world.tables, alone)
    np.testing.assert_allclose(forward(model, params, world.tables, crowded), ours, atol=1e-5)


ONLY = {
    "short": dataclasses.replace(BASE, positive=0, queries=0, user_buckets=0),
    "positive": dataclasses.replace(BASE, short=0, queries=0, user_buckets=0),
    "queries": dataclasses.replace(BASE, short=0, positive=0, user_buckets=0),
    "user": dataclasses.replace(BASE, short=0, positive=0, queries=0),
}
READ = {"short": {2, 3, 4}, "positive": {2, 4}, "queries": {0, 1, 2, 3, 4}, "user": set()}


@pytest.mark.parametrize("name", ONLY)
def test_a_pathway_reads_its_own_events(name, world):
    model, events = ONLY[name], HISTORIES[0]
    params = random_params(model)
    changed = [events] + [
        [*events[:place], (22, *events[place][1:]), *events[place + 1 :]] for place in range(5)
    ]
    answers = forward(
        model, params, world.tables, batch_of(changed, users=[4] * 6, targets=[2] * 6)
    )
    moved = np.abs(np.asarray(answers[1:]) - np.asarray(answers[:1])).max(axis=(1, 2, 3)) > 1e-5
    assert set(np.flatnonzero(moved)) == READ[name]
    other = forward(model, params, world.tables, batch_of(changed, users=[5] * 6, targets=[2] * 6))
    assert (np.abs(other[0] - answers[0]).max() > 1e-5) == (name == "user")


def test_newest_finds_the_last_that_count():
    random = np.random.default_rng(0)
    chosen = random.random((20, 9)) < 0.4
    index, there = map(np.asarray, newest(jnp.asarray(chosen), 4))
    for row in range(20):
        expected = np.flatnonzero(chosen[row])[-4:]
        np.testing.assert_array_equal(index[row][there[row]], expected)
        assert not there[row][: 4 - len(expected)].any()


def test_ages_are_powers_of_two():
    np.testing.assert_array_equal(age_bucket(jnp.array([-5, 0, 2, 3, 86400])), [0, 0, 1, 2, 16])


def test_slopes_equal_finite_differences(world):
    batch = batch_of(HISTORIES[:2] * 2, users=[4, 2] * 2, targets=[2, 30, 5, 6])
    batch = dataclasses.replace(batch, weight=batch.weight * (jnp.arange(LENGTH) == LENGTH - 1))

    def loss(params):
        logits = BASE.forward(params, world.tables, batch, SPACE)
        codes = world.tables.codes[batch.item[:, -1:]]
        total, weight = next_token_loss(logits, codes, batch.weight[:, -1:])
        return total / weight

    check_slopes(jax.jit(jax.value_and_grad(loss)), random_params(BASE), step=0.003)


def test_parameters_are_counted():
    for model in (*SHAPES.values(), *ONLY.values()):
        shapes = jax.eval_shape(lambda model=model: model.init(jax.random.key(0), SPACE))
        assert model.parameters(SPACE) == sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_flops_formula_against_the_compiler():
    """On an unrolled program: of a scan the compiler counts the body once."""
    model = OneRec(layers=1, query_layers=1, short=8, positive=16, queries=16, dropout=0.0)
    space = TokenSpace((256, 256, 256))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), space))
    tables = Tables(jnp.zeros((40, 3), jnp.int32))
    batch = batch_of([[(1, 5, 0)] * 20] * 4, users=[1] * 4, targets=[5] * 4, length=32)

    def whole(params):
        logits = model.forward(params, tables, batch, space)
        return next_token_loss(logits, tables.codes[batch.item[:, -1:]], jnp.ones((4, 1)))[0]

    counted = jax.jit(jax.grad(whole)).lower(params).cost_analysis()["flops"]
    assert abs(model.flops(space, 4, 32) / counted - 1) < 0.1


def test_the_schema_of_its_checkpoints():
    shapes = jax.eval_shape(lambda: BASE.init(jax.random.key(0), SPACE))
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    described = {"ages/table": (32, 4), "actions/table": (3, 4), "bias": (8,)}
    described |= {"into": (16, 8), "out": (8, 8)}
    swiglu = {"gate": (8, 12), "up": (8, 12), "down": (12, 8)}
    kv, attend = {"key": (8, 2, 4), "value": (8, 2, 4)}, {"query": (8, 2, 4), "output": (2, 4, 8)}
    norm = {"scale": (8,)}

    def under(prefix, front=(), **groups):
        return {
            f"{prefix}/{group}/{name}": (*front, *shape)
            for group, leaves in groups.items()
            for name, shape in leaves.items()
        }

    assert found == {
        "tokens/table": (17, 8),
        "users/table": (3, 8),
        **{
            f"describe_{pathway}/{name}": shape
            for pathway in ("short", "positive", "all")
            for name, shape in described.items()
        },
        "queries/queries": (2, 8),
        "queries/norm/scale": (8,),
        **under(
            "queries/blocks",
            (2,),
            events=kv,
            cross_attention=attend,
            cross_attention_norm=norm,
            feedforward=swiglu,
            feedforward_norm=norm,
        ),
        "encoder/positions": (8, 8),
        "encoder/norm/scale": (8,),
        **under(
            "encoder/blocks",
            (1,),
            tokens=kv,
            attention=attend,
            attention_norm=norm,
            feedforward=swiglu,
            feedforward_norm=norm,
        ),
        "cross/key": (2, 8, 2, 4),
        "cross/value": (2, 8, 2, 4),
        **under(
            "layers/dense",
            (2,),
            attention=kv | attend,
            attention_norm=norm,
            cross_attention=attend,
            cross_attention_norm=norm,
            feedforward=swiglu,
            feedforward_norm=norm,
        ),
        "head/scale": (3, 8),
        "head/output/kernel": (3, 8, 7),
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 9}, "does not divide into heads=2"),
        ({"short": -1}, "must not be negative"),
        ({"short": 0, "positive": 0, "queries": 0, "user_buckets": 0}, "not all 0"),
        ({"positive_actions": ()}, "set positive=0"),
        ({"actions": 0}, "must be at least 1"),
    ],
)
def test_impossible_shapes_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(BASE, **change)
