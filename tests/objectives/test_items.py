"""Objectives over items: each against a reference written out in numpy, and its closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxrec.objectives.cloze import Cloze, draw_masks
from jaxrec.objectives.item_pairwise import ItemPairwise, pairwise_losses, stands_in_row
from jaxrec.objectives.item_sampled import ItemSampledSoftmax, sampled_softmax_losses
from jaxrec.objectives.item_softmax import ItemSoftmax, catalogue_cross_entropy
from jaxrec.types import Events, Tables

ITEMS, WIDTH = 11, 4


def draw(events=7, seed=0):
    """States, item vectors, targets and weights (some of them 0)."""
    random = np.random.default_rng(seed)
    states = random.normal(size=(events, WIDTH)).astype(np.float32)
    items = random.normal(size=(ITEMS, WIDTH)).astype(np.float32)
    targets = random.integers(0, ITEMS, events).astype(np.int32)
    weight = random.integers(0, 3, events).astype(np.float32) / 2
    return tuple(map(jnp.asarray, (states, items, targets, weight)))


def naive(states, items, targets, weight, smoothing=0.0):
    """All logits at once."""
    log_p = jax.nn.log_softmax(states @ items.T)
    goal = (1 - smoothing) * jax.nn.one_hot(targets, len(items)) + smoothing / len(items)
    return jnp.sum(-jnp.sum(goal * log_p, axis=-1) * weight)


def make_batch(rows=((3, 1, 4, 1), (5, 9)), length=5):
    item = np.full((len(rows), length), 7, np.int32)
    segment = np.zeros((len(rows), length), np.int32)
    for row, items in enumerate(rows):
        item[row, : len(items)] = items
        segment[row, : len(items)] = 1
    position = np.tile(np.arange(length, dtype=np.int32), (len(rows), 1))
    weight = (segment > 0).astype(np.float32)
    zeros = np.zeros_like(item)
    arrays = map(jnp.asarray, (item, segment, position, zeros, zeros, weight))
    return Events(*arrays)


def tables(popularity=None):
    features = {} if popularity is None else {"popularity": jnp.asarray(popularity)}
    return Tables(jnp.arange(ITEMS, dtype=jnp.int32)[:, None], features)


def states_of(params, tables, batch, key):
    """A model whose parameters are its states and item vectors."""
    return params


@pytest.mark.parametrize("block", [1, 3, 7, 100])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_blocked_softmax_equals_the_naive_one(block, smoothing):
    states, items, targets, weight = draw()

    def ours(states, items):
        return 2.5 * catalogue_cross_entropy(
            states, items, targets, weight, label_smoothing=smoothing, block=block
        )

    def theirs(states, items):
        return 2.5 * naive(states, items, targets, weight, smoothing)

    np.testing.assert_allclose(ours(states, items), theirs(states, items), rtol=1e-5)
    for mine, reference in zip(
        jax.grad(ours, argnums=(0, 1))(states, items),
        jax.grad(theirs, argnums=(0, 1))(states, items),
    ):
        np.testing.assert_allclose(mine, reference, atol=1e-5)


def test_the_softmax_never_holds_all_logits():
    """Compiled with its gradient, it needs less memory than one logit an event and item."""
    events, items = 4096, 2000
    shapes = [((events, 8), jnp.float32), ((items, 8), jnp.float32)]
    states, table = (jax.ShapeDtypeStruct(*shape) for shape in shapes)
    targets = jax.ShapeDtypeStruct((events,), jnp.int32)

    def loss(states, table, targets):
        weight = jnp.ones(events)
        return catalogue_cross_entropy(states, table, targets, weight, block=64)

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(states, table, targets).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * events * items / 8


@pytest.mark.parametrize(("platform", "blocks"), [("cpu", 8), ("tpu", 1), ("cuda", 1)])
def test_blocks_fit_the_platform_that_is_compiled_for(platform, blocks):
    """Also in a program that is compiled ahead of time for another machine."""
    events, items = 4096, 4096  # 2 ** 24 logits
    states = jax.ShapeDtypeStruct((events, 8), jnp.float32)
    table = jax.ShapeDtypeStruct((items, 8), jnp.float32)

    def loss(states, table):
        targets = jnp.zeros(events, jnp.int32)
        return catalogue_cross_entropy(states, table, targets, jnp.ones(events))

    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(states, table)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert f"tensor<{events // blocks}x{items}xf32>" in text
    other = events if blocks > 1 else events // 8
    assert f"tensor<{other}x{items}xf32>" not in text


def test_two_items_are_a_logistic_regression():
    random = np.random.default_rng(3)
    states = jnp.asarray(random.normal(size=(9, WIDTH)), jnp.float32)
    items = jnp.asarray(random.normal(size=(2, WIDTH)), jnp.float32)
    targets = jnp.asarray(random.integers(0, 2, 9), jnp.int32)
    margin = states @ (items[1] - items[0]) * (2 * targets - 1)
    total = catalogue_cross_entropy(states, items, targets, jnp.ones(9))
    np.testing.assert_allclose(total, jnp.sum(jnp.log1p(jnp.exp(-margin))), rtol=1e-5)


def test_the_softmax_objective_divides_by_the_temperature_and_masks_padding():
    batch = make_batch()
    random = np.random.default_rng(1)
    states = jnp.asarray(random.normal(size=(2, 5, WIDTH)), jnp.float32)
    items = jnp.asarray(random.normal(size=(ITEMS, WIDTH)), jnp.float32)
    total, weight, _ = ItemSoftmax(temperature=0.5)(
        states_of, (states, items), tables(), batch, None
    )
    flat = (2 * states).reshape(-1, WIDTH), items, batch.item.reshape(-1), batch.weight.reshape(-1)
    np.testing.assert_allclose(total, naive(*flat), rtol=1e-5)
    assert float(weight) == 6.0


def test_states_of_the_last_columns_alone_are_supervised():
    batch = make_batch(rows=((3, 1, 4, 1, 2), (5, 9, 2, 6, 8)))
    states, items = jnp.ones((2, 1, WIDTH)), jnp.ones((ITEMS, WIDTH))
    total, weight, _ = ItemSoftmax()(states_of, (states, items), tables(), batch, None)
    np.testing.assert_allclose(total / weight, np.log(ITEMS), rtol=1e-6)
    assert float(weight) == 2.0


def test_every_item_as_a_negative_is_the_full_softmax():
    states, items, targets, _ = draw()
    logits = states @ items.T
    positive = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    is_target = jnp.arange(ITEMS) == targets[:, None]
    # Each item once in a sample of n from the uniform distribution: log(n q) = 0.
    losses = sampled_softmax_losses(positive, logits, jnp.zeros((1, ITEMS)), is_target)
    expected = naive(states, items, targets, jnp.ones(len(targets)))
    np.testing.assert_allclose(losses.sum(), expected, rtol=1e-5)


def test_a_target_among_the_negatives_counts_once():
    alone = sampled_softmax_losses(
        jnp.ones(1), jnp.array([[2.0, 1.0]]), jnp.zeros((1, 2)), jnp.array([[False, True]])
    )
    without = sampled_softmax_losses(
        jnp.ones(1), jnp.array([[2.0]]), jnp.zeros((1, 1)), jnp.array([[False]])
    )
    np.testing.assert_allclose(alone, without, rtol=1e-6)


@pytest.mark.parametrize("way", ["uniform", "popularity"])
def test_the_corrected_sample_estimates_the_full_softmax(way):
    """Monte Carlo: with many negatives the loss and its slope come near those of the softmax."""
    batch = make_batch()
    random = np.random.default_rng(2)
    states = jnp.asarray(random.normal(size=(2, 5, WIDTH)), jnp.float32)
    items = jnp.asarray(random.normal(size=(ITEMS, WIDTH)), jnp.float32)
    known = tables(random.integers(0, 60, ITEMS))
    key = jax.random.key(0)

    def mean(objective, states):
        total, weight, _ = objective(states_of, (states, items), known, batch, key)
        return total / weight

    sampled = ItemSampledSoftmax(negatives=200_000, draw=way)
    value, slope = jax.value_and_grad(lambda states: mean(sampled, states))(states)
    full, goal = jax.value_and_grad(lambda states: mean(ItemSoftmax(), states))(states)
    np.testing.assert_allclose(value, full, atol=0.01)
    np.testing.assert_allclose(slope, goal, atol=0.01)
    wrong = ItemSampledSoftmax(negatives=200_000, draw=way, correct=False)
    assert abs(float(mean(wrong, states)) - float(full)) > 1.0


def test_in_batch_negatives_are_the_other_targets():
    batch = make_batch(rows=((3, 1), (3, 8)), length=3)
    random = np.random.default_rng(4)
    states = jnp.asarray(random.normal(size=(2, 3, WIDTH)), jnp.float32)
    items = jnp.asarray(random.normal(size=(ITEMS, WIDTH)), jnp.float32)
    popularity = random.integers(0, 9, ITEMS)
    objective = ItemSampledSoftmax(draw="in_batch")
    total, weight, _ = objective(
        states_of, (states, items), tables(popularity), batch, jax.random.key(0)
    )
    share = (popularity + 1) / (popularity + 1).sum()
    expected, events = 0.0, [(0, 0), (0, 1), (1, 0), (1, 1)]
    for row, column in events:
        z = np.asarray(items @ states[row, column], np.float64)
        goal = int(batch.item[row, column])
        rest = [int(batch.item[event]) for event in events]
        mass = sum(np.exp(z[j]) / (4 * share[j]) for j in rest if j != goal)
        expected += np.log(np.exp(z[goal]) + mass) - z[goal]
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert float(weight) == 4.0


def test_without_popularity_the_error_says_what_is_read():
    objective = ItemSampledSoftmax(draw="popularity")
    states, items = jnp.ones((2, 5, WIDTH)), jnp.ones((ITEMS, WIDTH))
    with pytest.raises(ValueError, match="training events of every item"):
        objective(states_of, (states, items), tables(), make_batch(), jax.random.key(0))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("kind", ["bce", "bpr", "bpr_max", "top1_max"])
def test_pairwise_losses_equal_their_formulas(kind):
    random = np.random.default_rng(5)
    p, n = random.normal(size=6), random.normal(size=(6, 3))
    counts = random.random((6, 3)) < 0.7
    counts[0] = True
    expected = []
    for event in range(6):
        these = n[event][counts[event]]
        w = np.exp(these) / np.exp(these).sum() if len(these) else these
        if kind == "bce":
            value = -np.log(sigmoid(p[event])) - np.log(1 - sigmoid(these)).sum()
        elif not len(these):
            value = 0.0
        elif kind == "bpr":
            value = -np.log(sigmoid(p[event] - these)).mean()
        elif kind == "bpr_max":
            value = -np.log((w * sigmoid(p[event] - these)).sum()) + 0.3 * (w * these**2).sum()
        else:
            value = (w * (sigmoid(these - p[event]) + sigmoid(these**2))).sum()
        expected.append(value)
    arrays = jnp.asarray(p, jnp.float32), jnp.asarray(n, jnp.float32), jnp.asarray(counts)
    ours = pairwise_losses(*arrays, kind, regularisation=0.3)
    np.testing.assert_allclose(ours, expected, rtol=2e-5)
    check_grads(
        # The numeric side of the check calls with numpy arrays.
        lambda p, n: pairwise_losses(
            jnp.asarray(p), jnp.asarray(n), arrays[2], kind, regularisation=0.3
        ),
        arrays[:2],
        order=1,
        modes=("rev",),
        atol=2e-2,
        rtol=2e-2,
    )


@pytest.mark.parametrize(
    "objective", [ItemSoftmax(), ItemSampledSoftmax(8), ItemPairwise(), ItemPairwise("bpr_max", 3)]
)
def test_losses_are_float32_whatever_the_states_are(objective):
    random = np.random.default_rng(6)
    states = jnp.asarray(random.normal(size=(2, 5, WIDTH)), jnp.bfloat16)
    items = jnp.asarray(random.normal(size=(ITEMS, WIDTH)), jnp.bfloat16)
    wide = tuple(each.astype(jnp.float32) for each in (states, items))
    key, batch = jax.random.key(0), make_batch()
    narrow, _, _ = objective(states_of, (states, items), tables(), batch, key)
    exact, _, _ = objective(states_of, wide, tables(), batch, key)
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, exact, rtol=1e-5)


def test_items_of_the_row_are_no_negatives():
    batch = make_batch(rows=((3, 1, 4, 1), (5, 9)))
    drawn = jnp.asarray([[[3, 7]] * 5, [[9, 3]] * 5], jnp.int32)
    found = stands_in_row(drawn, batch)
    # 7 stands in the padding only.
    np.testing.assert_array_equal(found[0], [[True, False]] * 5)
    np.testing.assert_array_equal(found[1], [[True, False]] * 5)


def test_binary_cross_entropy_at_zero_is_two_logs_of_two():
    batch = make_batch(rows=((3, 1, 4, 2), (5, 9)))
    total, weight, _ = ItemPairwise()(
        states_of, (jnp.zeros((2, 5, WIDTH)), jnp.ones((ITEMS, WIDTH))), tables(), batch,
        jax.random.key(0),
    )  # fmt: skip
    assert float(weight) == 6.0
    assert 6 * np.log(2) < float(total) <= 6 * 2 * np.log(2) + 1e-5


def test_cloze_hides_what_it_asks_and_supervises_nothing_else():
    batch = make_batch(rows=((3, 1, 4, 1, 5),) * 200)
    seen = {}

    def apply(params, tables, batch, key):
        seen["item"] = batch.item
        return jnp.zeros((200, 5, WIDTH)), jnp.zeros((ITEMS, WIDTH))

    key = jax.random.key(0)
    total, weight, _ = Cloze(probability=0.4, last=0.0)(apply, None, tables(), batch, key)
    hidden = np.asarray(seen["item"] == ITEMS)
    assert hidden.sum() == float(weight)
    np.testing.assert_allclose(total, weight * np.log(ITEMS), rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(batch.item)[~hidden], seen["item"][~hidden])
    assert abs(hidden.mean() - 0.4) < 0.05


def test_some_histories_ask_their_last_event_only():
    batch = make_batch(rows=((3, 1, 4),) * 300, length=5)
    masked = np.asarray(draw_masks(jax.random.key(1), batch, 0.5, 1.0))
    np.testing.assert_array_equal(masked, np.tile([False, False, True, False, False], (300, 1)))
    some = np.asarray(draw_masks(jax.random.key(1), batch, 1.0 - 1e-6, 0.25))
    assert not some[:, 3:].any()
    assert abs((some.sum(1) == 1).mean() - 0.25) < 0.08


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ItemSoftmax(label_smoothing=1.0), "label_smoothing"),
        (lambda: ItemSampledSoftmax(draw="all"), r"(?s)all.*uniform"),
        (lambda: ItemSampledSoftmax(negatives=0), "negatives >= 1"),
        (lambda: ItemPairwise("hinge"), r"(?s)hinge.*bpr"),
        (lambda: Cloze(probability=1.0), r"probability in \(0, 1\)"),
    ],
)
def test_impossible_numbers_are_refused(make, message):
    # The type checker of the tests may come first where the field is a Literal.
    with pytest.raises((ValueError, TypeError), match=message):
        make()
