"""The reward network: what it computes, what may influence what, and that it learns preferences."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from decoder_world import check_slopes, make_events, random_params, with_rubbish

from jaxrec import parallel
from jaxrec.backbones.preference import PreferenceModel
from jaxrec.evaluation.classification import auc, calibration_error, grouped_auc
from jaxrec.objectives.multi_task import multi_task_loss
from jaxrec.types import Tables, TokenSpace

ITEMS = 40
SPACE = TokenSpace((ITEMS,))
RNG = np.random.default_rng(0)
TABLES = Tables(
    jnp.arange(ITEMS, dtype=jnp.int32)[:, None],
    {
        "text": jnp.asarray(RNG.normal(size=(ITEMS, 3)), jnp.float32),
        "category": jnp.asarray(RNG.integers(0, 3, ITEMS), jnp.int32),
    },
)
SMALL = {"tasks": ("like", "follow"), "width": 8, "heads": 2, "tower": 4, "age_buckets": 4}
MODELS = {
    "attention": PreferenceModel(
        **SMALL, features=(("text", 3),), actions=3, list_layers=1, dropout=0.3
    ),
    "activation": PreferenceModel(
        **SMALL, unit="activation", unit_hidden=(6, 4), search=2, category="category"
    ),
}
HISTORIES = [[3, 9, 27, 14], [5, 5], [8, 1, 30]]
# A row that holds all histories, and one for each of them.
BATCH = make_events(HISTORIES, *[[history] for history in HISTORIES], length=11)
BATCH = dataclasses.replace(BATCH, action=BATCH.item % 3)
CANDIDATES = jnp.asarray([[27, 5, 11, -1], [27, 5, 11, 2], [2, -1, 0, 8], [8, 8, 1, 4]], jnp.int32)
PLACE = jnp.asarray([[1, 5, 5, 7], [3, 3, 0, 2], [1, 1, 1, 0], [2, 2, 2, 2]], jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, batch=BATCH, candidates=CANDIDATES, place=PLACE, key=None):
    """Compiled with a place, unless told; without a key nothing is dropped."""
    return model.forward(params, TABLES, batch, candidates, SPACE, place=place, key=key)


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    """A model and its parameters."""
    return MODELS[request.param], PARAMS[request.param]


PARAMS = {name: random_params(each, scale=0.5, space=SPACE) for name, each in MODELS.items()}


def without_list(name):
    """A model whose candidates do not read each other, and its parameters."""
    params = {part: tree for part, tree in PARAMS[name].items() if part != "list"}
    return dataclasses.replace(MODELS[name], list_layers=0), params


def silu(x):
    return x / (1 + np.exp(-x))


def slow_interest(model, w, item, events, ages):
    """What the events that a candidate reads say about it, one candidate."""
    bias = w["ages"][np.minimum(np.log2(ages).astype(int), model.age_buckets - 1)]
    unit, out = w["unit"], np.zeros(model.width)
    if model.unit == "attention":
        for head in range(model.heads if len(events) else 0):
            scores = (events @ unit["key"][:, head]) @ (item @ unit["query"][:, head])
            scores = scores / np.sqrt(model.width / model.heads) + bias[:, head]
            share = np.exp(scores) / np.exp(scores).sum()
            out += share @ (events @ unit["value"][:, head]) @ unit["output"][head]
        return out
    for event, (added,) in zip(events, bias):
        x = item @ unit["query"] + event @ unit["event"] + (item * event) @ unit["product"]
        for layer, kernel in enumerate((None, unit["kernel_1"])):
            x = (x if kernel is None else x @ kernel) + unit[f"bias_{layer}"]
            x = np.where(x > 0, x, unit[f"slope_{layer}"] * x)
        out += ((x @ unit["weight"] + unit["weight_bias"])[0] + added) * event
    return out


def slow_answer(model, w, history, candidate):
    """Logits and score of one candidate after one history, without a list."""
    features = {name: np.asarray(array) for name, array in TABLES.features.items()}

    def vector(item):
        read = [features[name][item] @ w[f"feature_{name}"] for name, _ in model.features]
        return w["items"]["table"][item] + sum(read)

    item, ages = vector(candidate), np.arange(len(history), 0, -1)
    events = np.array([vector(each) for each in history]).reshape(-1, model.width)
    if model.actions > 1:
        events = events + w["actions"][np.array(history, int) % 3]
    user = events.mean(axis=0) if history else np.zeros(model.width)
    if model.search:
        categories = features["category"]
        found = [at for at, each in enumerate(history) if categories[each] == categories[candidate]]
        events, ages = events[found[-model.search :]], ages[found[-model.search :]]
    interest = slow_interest(model, w, item, events, ages)
    x = np.concatenate([item, interest, item * interest, user])
    x = silu(x @ w["fuse"]["kernel"] + w["fuse"]["bias"])
    towers, score = w["towers"], w["score"]
    states = silu(np.einsum("d,dkf->kf", x, towers["up"]) + towers["up_bias"])
    logits = (states * towers["down"]).sum(-1) + towers["bias"]
    x = silu(
        np.concatenate([states.ravel(), user, item]) @ score["up"]["kernel"] + score["up"]["bias"]
    )
    return logits, (x @ score["down"]["kernel"] + score["down"]["bias"])[0]


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_numpy_reference(name):
    model, params = without_list(name)
    plain = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    answer = forward(model, params)
    for row, column in np.ndindex(3, 4):
        logits, score = answer.logits[row + 1, column], answer.score[row + 1, column]
        history, candidate = HISTORIES[row], int(CANDIDATES[row + 1, column])
        if candidate < 0:
            assert not np.any(logits)
            assert not np.any(score)
            continue
        seen = history[: int(PLACE[row + 1, column])]
        expected = slow_answer(model, plain, seen, candidate)
        np.testing.assert_allclose(logits, expected[0], atol=2e-4, rtol=1e-4)
        np.testing.assert_allclose(score, expected[1], atol=2e-4, rtol=1e-4)


def test_packed_equals_unpacked_and_padding_is_not_read(model):
    """Candidates inside a packed row, two of them together, each beside its history alone."""
    network, params = model
    alone = [(1, 2), (1, 3), (1, 3), (3, 2)]
    candidates, place = np.full((4, 4), -1, np.int32), np.zeros((4, 4), np.int32)
    candidates[0], place[0] = (12, 6, 7, 31), (2, 3, 3, 8)
    for column, (row, at) in enumerate(alone):
        candidates[row, column], place[row, column] = candidates[0, column], at
    inputs = {"candidates": jnp.asarray(candidates), "place": jnp.asarray(place)}
    found = forward(network, params, **inputs)
    rubbish = with_rubbish(BATCH)
    rubbish = dataclasses.replace(rubbish, action=jnp.where(BATCH.segment > 0, BATCH.action, 99))
    other = forward(network, params, rubbish, **inputs)
    for ours, read in zip(found, other):
        np.testing.assert_array_equal(ours, read)
        for column, (row, _) in enumerate(alone):
            np.testing.assert_allclose(ours[0, column], ours[row, column], atol=1e-5)
            assert np.all(np.asarray(ours[row, column]) != 0)


def test_a_search_that_keeps_everything_is_no_search():
    network, params = without_list("attention")
    expected = forward(network, params)
    for ours, read in zip(forward(dataclasses.replace(network, search=50), params), expected):
        np.testing.assert_allclose(ours, read, atol=1e-5)


def test_without_a_place_a_candidate_stands_after_its_history():
    network, params = MODELS["activation"], PARAMS["activation"]
    longer = make_events([], *[[[*history, 0]] for history in HISTORIES], length=11)
    longer = dataclasses.replace(longer, action=longer.item % 3)
    last = jnp.asarray([[0] * 4] + [[len(history)] * 4 for history in HISTORIES], jnp.int32)
    ours = forward(network, params, place=None)
    for one, two in zip(ours, forward(network, params, longer, place=last)):
        np.testing.assert_allclose(one[1:], two[1:], atol=1e-5)
    for one, two in zip(ours, forward(network, params, with_rubbish(BATCH), place=None)):
        np.testing.assert_array_equal(one, two)


def test_an_event_influences_exactly_the_candidates_after_it_in_its_history(model):
    network, params = model
    place = jnp.asarray([[0, 1, 3, 3], [2, 4, 5, 6], [7, 8, 8, 1], [3, 5, 8, 0]], jnp.int32)
    candidates = jnp.arange(16, dtype=jnp.int32).reshape(4, 4) + 20
    same = jax.tree.map(lambda array: jnp.broadcast_to(array[:1], array.shape), BATCH)
    before = forward(network, params, same, candidates, place)
    for event in range(9):
        changed = dataclasses.replace(same, item=same.item.at[:, event].set(17))
        after = forward(network, params, changed, candidates, place)
        after_it = (BATCH.segment[0, event] == BATCH.segment[0, place]) & (event < place)
        moved = np.abs(np.asarray(after.logits - before.logits)).max(-1) > 1e-5
        np.testing.assert_array_equal(moved, after_it)
        moved = np.abs(np.asarray(after.score - before.score)) > 1e-5
        np.testing.assert_array_equal(moved, after_it)


def test_candidates_in_another_order_get_the_same_answers(model):
    network, params = model
    order = np.array([3, 1, 0, 2])
    found = forward(network, params, place=PLACE)
    turned = forward(network, params, candidates=CANDIDATES[:, order], place=PLACE[:, order])
    for ours, expected in zip(turned, found):
        np.testing.assert_allclose(ours, expected[:, order], atol=1e-5)


def test_a_page_reads_itself_and_nobody_else():
    """Row 1: candidates 0 and 1 are shown together, 2 and 3 alone."""
    network, params = MODELS["attention"], PARAMS["attention"]
    other = CANDIDATES.at[1, 1].set(33)
    before, after = (
        np.asarray(forward(network, params, candidates=each, place=PLACE).score)[1]
        for each in (CANDIDATES, other)
    )
    assert (np.abs(after - before) > 1e-4).tolist() == [True, True, False, False]
    without = forward(network, params, candidates=CANDIDATES.at[1, 1].set(-1), place=PLACE)
    assert abs(float(without.score[1, 0]) - before[0]) > 1e-4
    assert float(without.score[1, 1]) == 0.0


def test_a_user_without_events_is_judged_by_the_item(model):
    network, params = model
    nobody = make_events([], [], [], [], length=11)
    first = jnp.zeros_like(PLACE)
    found = forward(network, params, nobody, place=first)
    start = forward(network, params, BATCH, place=first)
    for ours, expected in zip(found, start):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, expected, atol=1e-6)


LABELS = jnp.asarray(RNG.random((4, 4, 2)) < 0.5, jnp.float32)
KNOWN = (CANDIDATES >= 0)[..., None] & jnp.asarray(RNG.random((4, 4, 2)) < 0.8)


def mean_loss(model, params, batch):
    """Towers and P-Score, each on all labels that are known."""
    answer = model.forward(params, TABLES, batch, CANDIDATES, SPACE)
    tasks = jnp.array([1.0, 0.5])
    total, weight = multi_task_loss(answer.logits, LABELS, KNOWN, tasks)
    fused, _ = multi_task_loss(answer.score[..., None], LABELS, KNOWN, tasks)
    return (total + fused) / weight


loss_and_slope = functools.partial(jax.jit, static_argnums=0)(
    jax.value_and_grad(mean_loss, argnums=1)
)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_finite_differences(name):
    network, params = without_list(name)
    batch = make_events(HISTORIES, *[[history] for history in HISTORIES[:2]], [[]], length=11)
    batch = dataclasses.replace(batch, action=batch.item % 3)
    # A small step, for the kinks of PReLU.
    step = 0.0025 if network.unit == "activation" else 0.01
    check_slopes(lambda there: loss_and_slope(network, there, batch), params, step=step)


def test_dropout_follows_its_key():
    network, params = MODELS["attention"], PARAMS["attention"]
    one, two, again = (
        np.asarray(forward(network, params, key=jax.random.key(n)).score) for n in (0, 1, 0)
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - two).max() > 1e-3


def test_bfloat16_stays_close_to_float32():
    network, params = without_list("attention")
    short = forward(dataclasses.replace(network, dtype="bfloat16"), params)
    for ours, expected in zip(short, forward(network, params)):
        assert ours.dtype == jnp.float32
        gap = np.abs(np.asarray(ours - expected)).max()
        assert 0 < gap < 0.05 * np.abs(np.asarray(expected)).max()


def test_sharded_equals_single_device():
    network, params = without_list("attention")
    mesh = parallel.make_mesh(parallel.MeshShape(2, 2, 2))
    shardings = parallel.shardings(network.axes(SPACE), params, mesh)
    assert "fsdp" in {name for leaf in jax.tree.leaves(shardings) for name in leaf.spec}
    expected = forward(network, params)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings)
        rows = jax.device_put((BATCH, CANDIDATES, PLACE), parallel.rows_sharding(mesh))
        ours = forward(network, placed, *rows)
    for one, two in zip(ours, expected):
        np.testing.assert_allclose(one, two, atol=1e-5)


PATHS = {
    "attention": {
        "actions": (3, 8), "ages": (4, 2), "feature_text": (3, 8), "items/table": (40, 8),
        "fuse/bias": (8,), "fuse/kernel": (32, 8),
        **{f"list/blocks/attention/{name}/{leaf}": shape
           for name in ("key", "output", "query", "value")
           for leaf, shape in (("bias", (1, 8)), ("kernel", (1, 8, 8)))},
        **{f"list/blocks/{norm}_norm/{leaf}": (1, 8)
           for norm in ("attention", "feedforward") for leaf in ("bias", "scale")},
        "list/blocks/feedforward/down/bias": (1, 8),
        "list/blocks/feedforward/down/kernel": (1, 16, 8),
        "list/blocks/feedforward/up/bias": (1, 16), "list/blocks/feedforward/up/kernel": (1, 8, 16),
        "list/norm/bias": (8,), "list/norm/scale": (8,),
        "unit/key": (8, 2, 4), "unit/output": (2, 4, 8), "unit/query": (8, 2, 4),
        "unit/value": (8, 2, 4),
    },
    "activation": {
        "ages": (4, 1), "items/table": (40, 8), "fuse/bias": (8,), "fuse/kernel": (32, 8),
        "unit/bias_0": (6,), "unit/bias_1": (4,), "unit/event": (8, 6), "unit/kernel_1": (6, 4),
        "unit/product": (8, 6), "unit/query": (8, 6), "unit/slope_0": (6,), "unit/slope_1": (4,),
        "unit/weight": (4, 1), "unit/weight_bias": (1,),
    },
}  # fmt: skip
UPPER = {
    "towers/up": (8, 2, 4), "towers/up_bias": (2, 4), "towers/down": (2, 4), "towers/bias": (2,),
    "score/up/kernel": (24, 4), "score/up/bias": (4,), "score/down/kernel": (4, 1),
    "score/down/bias": (1,),
}  # fmt: skip


def test_the_names_of_parameters_are_frozen_and_counted(model):
    """They are the schema of checkpoints."""
    network, params = model
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    assert shapes == PATHS[network.unit] | UPPER
    assert network.parameters(SPACE) == sum(leaf.size for leaf in jax.tree.leaves(params))
    ranks = jax.tree.map(lambda leaf, axes: leaf.ndim == len(axes), params, network.axes(SPACE))
    assert all(jax.tree.leaves(ranks))


@pytest.mark.parametrize(
    ("unit", "search"), [("attention", 0), ("attention", 8), ("activation", 8)]
)
def test_flops_agree_with_the_compiler(unit, search):
    """Forward pass; element-wise work is left out of the formula."""
    network = PreferenceModel(
        width=64, unit=unit, search=search, features=(("text", 3),), list_layers=1
    )
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), SPACE))
    batch = make_events(*[[list(range(16))]] * 2, length=16)
    candidates = jnp.zeros((2, 24), jnp.int32)

    def answer(params):
        return network.forward(params, TABLES, batch, candidates, SPACE)

    counted = jax.jit(answer).lower(params).cost_analysis()["flops"]
    formula = network.flops(SPACE, 2, 16, 24)
    soft = 2.0 * 2 * 24 * 16 * 64 if search else 0.0
    assert (formula - soft) / 3 + soft == pytest.approx(counted, rel=0.1)


def planted(seed, users):
    """Users with a taste in the space of the items' texts, who read what they like and like what
    lies on its side."""
    random = np.random.default_rng(seed)
    text = np.asarray(TABLES.features["text"])
    taste = random.normal(size=(users, 3))
    liking = taste / np.linalg.norm(taste, axis=1, keepdims=True) @ text.T
    noise = 0.3 * random.gumbel(size=liking.shape)
    histories = np.argsort(-(liking + noise), axis=1)[:, :10]
    candidates = np.argsort(random.random(liking.shape), axis=1)[:, :12].astype(np.int32)
    likes = np.take_along_axis(liking, candidates, axis=1)
    labels = np.stack([likes > 0, likes > 1], axis=-1)
    batch = make_events(*[[row.tolist()] for row in histories], length=10)
    return batch, jnp.asarray(candidates), labels


def test_a_planted_preference_is_recovered():
    """For users that training never saw; both objectives and the P-Score."""
    network = PreferenceModel(tasks=("like", "love"), width=16, features=(("text", 3),))
    batch, candidates, labels = planted(0, 128)
    known, weights = jnp.ones(labels.shape, bool), jnp.ones(2)
    targets = jnp.asarray(labels, jnp.float32)
    optimizer = optax.adam(0.01)

    @jax.jit
    def step(params, state, batch, candidates, targets):
        def loss(params):
            answer = network.forward(params, TABLES, batch, candidates, SPACE)
            total, weight = multi_task_loss(answer.logits, targets, known, weights)
            score = answer.score[..., None]
            fused, _ = multi_task_loss(score, targets, known, weights)
            return (total + fused) / weight, answer

        slopes, answer = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(slopes, state)
        return optax.apply_updates(params, updates), state, answer

    params = network.init(jax.random.key(0), SPACE)
    state = optimizer.init(params)
    for _ in range(30):
        params, state, _ = step(params, state, batch, candidates, targets)
    batch, candidates, labels = planted(1, 128)
    # The answer is that of the parameters before the step.
    *_, answer = step(params, state, batch, candidates, targets)
    likes, loves = labels[..., 0].ravel(), labels[..., 1].ravel()
    assert auc(np.asarray(answer.logits)[..., 0].ravel(), likes) > 0.95
    assert auc(np.asarray(answer.logits)[..., 1].ravel(), loves) > 0.95
    assert auc(np.asarray(answer.score).ravel(), likes) > 0.95
    users = np.repeat(np.arange(128), 12)
    assert grouped_auc(np.asarray(answer.logits)[..., 0].ravel(), likes, users) > 0.95
    odds = np.asarray(answer.logits, np.float64)[..., 0].ravel()
    assert calibration_error(1 / (1 + np.exp(-odds)), likes) < 0.08


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ()}, "at least one name"),
        ({"tasks": ("like", "like")}, "each once"),
        ({"tower": 0}, "tower=0 must be at least 1"),
        ({"search": -1}, "may not be negative"),
        ({"unit_hidden": ()}, "needs a layer"),
        ({"category": "category"}, "set search"),
        ({"heads": 3}, "multiple of heads"),
        ({"dtype": "float16"}, "float32, bfloat16"),
        ({"dropout": 1.0}, "between 0 and 0.99"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        PreferenceModel(**change)


def test_features_that_are_not_there_are_named():
    network, params = MODELS["attention"], PARAMS["attention"]
    for features in ({}, {"text": jnp.zeros((ITEMS, 5))}):
        with pytest.raises(ValueError, match=r"tables.features\['text'\].*3"):
            network.score(params, Tables(TABLES.codes, features), BATCH, CANDIDATES, SPACE)
    with pytest.raises(ValueError, match="use tokenizer=ItemIds"):
        network.init(jax.random.key(0), TokenSpace((4, 4)))
