"""One step of `Prefer` on a table: pairs as they are scored, and the slope by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from table_reference import (
    CODES,
    GENERATOR,
    GIVEN,
    QUICK,
    SPACE,
    all_log_probs,
    batch_of,
    close,
    context,
    slope_of,
    table,
    unseen,
)

from jaxrec.alignment.pair_file import PairContext
from jaxrec.alignment.pairs import BestAgainstAll, RandomRejected
from jaxrec.alignment.prefer import Prefer
from jaxrec.alignment.rewarding import Rewarding
from jaxrec.alignment.rollouts import Sample
from jaxrec.alignment.stage import REFERENCE, Start
from jaxrec.backbones.low_rank import LowRank
from jaxrec.objectives.dpo import DPO
from jaxrec.objectives.rewards import PrefixMatch
from jaxrec.training.step import Follow

BETA, TEMPERATURE = 0.5, 0.8
HOW = {"norm": "full", "temperature": TEMPERATURE}
PLAIN = Prefer(
    DPO(BETA), pairs=RandomRejected(3), rollouts=Sample(2, TEMPERATURE), nll=0.3, norm="full"
)
BATCH = batch_of(24)
TARGET = np.asarray(BATCH.target)


@functools.cache
def step():
    """Slope of the mean loss, sums, and the rejected items."""
    policy = PLAIN.policy(GENERATOR, SPACE)
    loss = PLAIN.loss(policy, Start(context(), None), Rewarding(PLAIN.reward))

    def run(params, reference, key):
        def mean(params):
            found = loss(params, GIVEN, BATCH, key, copies={REFERENCE: reference})
            return found[0] / found[1], found

        slope, found = jax.grad(mean, has_aux=True)(params)
        row = jax.random.randint(key, (24, 3), 0, GIVEN.catalogue.items, jnp.int32)
        return slope, found, GIVEN.catalogue.item_at(row)

    return jax.jit(run, compiler_options=QUICK)


def test_at_the_reference_the_loss_is_log_two():
    params = table(1)
    _, (total, weight, metrics), rejected = step()(params, params, jax.random.key(0))
    nll = float(metrics["nll_target"][0] / metrics["nll_target"][1])
    mean = float(total / weight)
    assert mean == pytest.approx(np.log(2) + 0.3 * nll, rel=1e-5)
    assert nll == pytest.approx(-all_log_probs(params, TARGET[:, None], **HOW).sum() / 24)
    assert float(metrics["margin"][0]) == pytest.approx(0, abs=1e-5)
    # Items of the chosen one's ID are no pair, and are counted.
    equal = (CODES[TARGET][:, None] == CODES[np.asarray(rejected)]).all(axis=2)
    assert equal.sum() > 2
    assert float(weight) == 72 - equal.sum()
    assert [float(each) for each in metrics["pairs_equal"]] == [equal.sum(), 72]
    assert [float(each) for each in metrics["pairs"]] == [24, 24]


def test_slope_is_that_of_dpo_by_hand():
    params, reference = table(1), table(2)
    slope, (total, weight, _), rejected = step()(params, reference, jax.random.key(0))
    rejected, expected, weighted, count = np.asarray(rejected), 0.0, [], 0
    items = np.concatenate([TARGET[:, None], rejected], axis=1)
    gain = (all_log_probs(params, items, **HOW) - all_log_probs(reference, items, **HOW)).sum(-1)
    for row, target in enumerate(TARGET):
        for place, item in enumerate(rejected[row]):
            if (CODES[item] == CODES[target]).all():
                continue
            logit = BETA * (gain[row, 0] - gain[row, 1 + place])
            pull = BETA / (1 + np.exp(logit))
            expected += np.log1p(np.exp(-logit))
            count += 1
            weighted += [(target, np.full(3, -pull)), (item, np.full(3, pull))]
    weighted = [(item, pull / count) for item, pull in weighted]
    weighted += [(target, np.full(3, -0.3 / 24)) for target in TARGET]
    nll = -all_log_probs(params, TARGET[:, None], **HOW).sum() / 24
    assert float(total / weight) == pytest.approx(expected / count + 0.3 * nll, rel=1e-5)
    close(slope, slope_of(params, weighted, **HOW))


def test_steps_make_the_chosen_items_likelier():
    start = params = table(1)
    for number in range(8):
        slope, (_, _, metrics), _ = step()(params, start, jax.random.key(number))
        params = jax.tree.map(lambda leaf, by: leaf - 0.3 * np.asarray(by), params, slope)
    assert float(metrics["margin"][0]) > 0
    before, after = (all_log_probs(each, TARGET[:, None], **HOW).sum() for each in (start, params))
    assert after > before + 1


@dataclasses.dataclass(frozen=True)
class Look:
    """An objective that shows what it is given."""

    def __call__(self, pairs):
        return jnp.zeros(()), jnp.ones(()), {"given": pairs}


def test_pairs_of_rollouts_are_scored_under_both_policies():
    prefer = Prefer(
        Look(),
        pairs=BestAgainstAll(),
        rollouts=Sample(5, TEMPERATURE),
        smoothing=0.2,
        mask_seen=True,
    )
    policy = prefer.policy(GENERATOR, SPACE)
    loss = prefer.loss(policy, Start(context(), None), Rewarding(prefer.reward))

    def run(params, reference, key):
        metrics = loss(params, GIVEN, BATCH, key, copies={REFERENCE: reference})[2]
        functions = policy.read(params, GIVEN, BATCH.events)
        items = policy.write(functions, GIVEN, BATCH.events, jax.random.split(key)[0]).items
        return metrics["given"], metrics["pairs"], items

    params, reference = table(1), table(2)
    program = jax.jit(run, compiler_options=QUICK)
    pairs, share, items = jax.device_get(program(params, reference, jax.random.key(0)))
    assert np.take_along_axis(unseen(BATCH), items, axis=1).all()
    depth = np.cumprod(CODES[items] == CODES[TARGET][:, None], axis=-1).sum(-1)
    rewards = np.array(PrefixMatch().values)[depth]
    best = rewards.argmax(axis=1)
    gap = rewards.max(axis=1, keepdims=True) - rewards
    np.testing.assert_array_equal(pairs.valid, gap > 0)
    np.testing.assert_allclose(pairs.gap, gap)
    rows = (gap > 0).any(axis=1)
    assert 0 < rows.sum() < 24
    assert [float(each) for each in share] == [rows.sum(), 24]
    np.testing.assert_allclose(pairs.smoothing, np.full(24, 0.2), rtol=1e-6)
    # Items are scored without the filters of the rollouts: what the user did may be an old item.
    for tree, chosen, rejected in (
        (params, pairs.chosen, pairs.rejected),
        (reference, pairs.reference_chosen, pairs.reference_rejected),
    ):
        scores = all_log_probs(tree, items, temperature=TEMPERATURE).sum(-1)
        np.testing.assert_allclose(rejected[gap > 0], scores[gap > 0], atol=1e-5)
        of_best = np.take_along_axis(scores, best[:, None], axis=1)[:, 0]
        np.testing.assert_allclose(chosen[rows], of_best[rows], atol=1e-5)


def test_pairs_of_a_file_and_a_low_rank_change():
    """Sides that are no item do not count; the reference is the base, and stands still."""
    prefer = Prefer(DPO(BETA), low_rank=LowRank(rank=2, alpha=4.0, targets=("level_1", "level_2")))
    params = table(1)
    start = Start(context(params), prefer.low_rank)
    given = GIVEN._replace(base=params)
    trained = jax.jit(start.init)(jax.random.key(0))
    chosen = np.array([1, 4, -1, 7], np.int32)
    twin = 12
    assert (CODES[twin] == CODES[4]).all()
    rejected = np.array([[2, -1], [twin, 9], [3, 5], [-1, -1]], np.int32)
    events, target = batch_of(4)
    batch = PairContext(
        events, target, jnp.asarray(chosen), jnp.asarray(rejected), jnp.ones((4, 2))
    )
    rewarding = Rewarding(prefer.reward)
    loss = prefer.loss(prefer.policy(GENERATOR, SPACE), start, rewarding)

    def mean(trained, given):
        total, weight, metrics = loss(trained, given, batch, jax.random.key(0))
        return total / weight, (weight, metrics)

    value = jax.value_and_grad(mean, argnums=(0, 1), has_aux=True, allow_int=True)
    step = jax.jit(value, compiler_options=QUICK)
    (first, (weight, metrics)), (slope, of_given) = step(trained, given)
    assert float(weight) == 2
    assert [float(each) for each in metrics["pairs"]] == [2, 4]
    assert [float(each) for each in metrics["pairs_equal"]] == [1, 3]
    assert float(first) == pytest.approx(np.log(2), rel=1e-5)
    close(of_given.base, jax.tree.map(np.zeros_like, params), atol=0)
    moved = jax.tree.map(np.subtract, *jax.device_get((trained, slope)))
    (second, (_, metrics)), _ = step(moved, given)
    assert float(second) < float(first) - 0.01
    assert float(metrics["margin"][0]) > 0.01


def test_copies_are_those_that_are_read():
    follow = Follow(100)
    assert Prefer(DPO()).copies == {REFERENCE: Follow()}
    assert Prefer(DPO(), reference=follow).copies == {REFERENCE: follow}
    assert Prefer(DPO(), low_rank=LowRank()).copies == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"nll": -0.1}, r"nll >= 0 and smoothing in \[0, \.5\], got -0\.1 and 0\.0"),
        ({"smoothing": 0.6}, r"nll >= 0 and smoothing in \[0, \.5\], got 0\.0 and 0\.6"),
        ({"norm": "none"}, "(?s)none.*trie.*full"),
        ({"low_rank": LowRank(), "reference": Follow(10)}, "Prefer: with low_rank the reference"),
    ],
)
def test_impossible_settings(fields, message):
    # The type checker of the tests may come first where the field is a Literal.
    with pytest.raises((ValueError, TypeError), match=message):
        Prefer(DPO(), **fields)
