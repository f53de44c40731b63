"""One step of `Align` on a table: its loss and slope against the policy gradient done by hand."""

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
    ITEMS,
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

from jaxrec.alignment.align import Align
from jaxrec.alignment.rewarding import Rewarding
from jaxrec.alignment.rollouts import Sample, StochasticBeam
from jaxrec.alignment.stage import BEHAVIOUR, REFERENCE, Start
from jaxrec.backbones.low_rank import LowRank
from jaxrec.objectives.grpo import GRPO
from jaxrec.objectives.reinforce import Reinforce
from jaxrec.objectives.rewards import PrefixMatch
from jaxrec.training.book import FitResult
from jaxrec.training.state import TrainState
from jaxrec.training.step import Follow

VALUES = (-0.5, 0.0, 0.5, 1.0)


@dataclasses.dataclass(frozen=True)
class Spoilt:
    """A prefix match that knows nothing of two items."""

    def __call__(self, drawn, key=None):
        rewards = PrefixMatch(VALUES)(drawn, key)
        rewards = jnp.where(drawn.items == 5, jnp.nan, rewards)
        return jnp.where(drawn.items == 8, jnp.inf, rewards)


def value(item, target, spoilt):
    """The reward by definition."""
    if spoilt and item in (5, 8):
        return np.nan
    same = (CODES[item] == CODES[target]).tolist()
    return VALUES[same.index(False) if False in same else 3]


@functools.cache
def program(align):
    """The step up to the slope of the mean loss, and the items that it wrote."""
    policy, start = align.policy(GENERATOR, SPACE), Start(context(), None)
    loss = align.loss(policy, start, Rewarding(align.reward))

    def run(params, batch, key, copies):
        def mean(params):
            total, weight, metrics = loss(params, GIVEN, batch, key, copies=copies)
            return total / jnp.maximum(weight, 1), (total, weight, metrics)

        slope, told = jax.grad(mean, has_aux=True)(params)
        writer = copies.get(BEHAVIOUR, params)
        functions = policy.read(writer, GIVEN, batch.events)
        write_key, _ = jax.random.split(key)
        return policy.write(functions, GIVEN, batch.events, write_key).items, slope, *told

    return jax.jit(run, compiler_options=QUICK)


PLAIN = Align(
    GRPO(kl=0.3, clip=0.1),
    reward=Spoilt(),
    rollouts=Sample(4),
    nll=0.2,
)
OFF_POLICY = Align(
    GRPO(kl=0.0, clip=0.1, clip_high=0.3),
    reward=PrefixMatch(VALUES),
    rollouts=StochasticBeam(11, 0.8),
    include_target=True,
    norm="full",
    mask_seen=True,
    behaviour=Follow(),
)
BATCH = batch_of(64)


def by_hand(align, items, batch, params, copies):
    """Loss, groups, metrics and slope of the mean loss for given rollouts, row by row."""
    temperature, objective = align.rollouts.temperature, align.objective
    how = {"norm": align.norm, "temperature": temperature}
    rows, targets = len(items), np.asarray(batch.target)
    live = unseen(batch) if align.mask_seen else np.ones((rows, ITEMS), bool)
    if align.include_target:
        items = np.concatenate([items, targets[:, None]], axis=1)
    there = (items >= 0) & np.take_along_axis(live, np.maximum(items, 0), axis=1)
    ours = all_log_probs(params, items, live=live, **how)
    old = all_log_probs(copies.get(BEHAVIOUR, params), items, live=live, **how)
    base = all_log_probs(copies.get(REFERENCE, params), items, live=live, **how)
    total, groups, ratios, valid_rollouts, bad = 0.0, 0, [], 0, 0
    high = objective.clip if objective.clip_high is None else objective.clip_high
    slopes = []
    for row in range(rows):
        reward = np.array([value(i, targets[row], align == PLAIN) for i in items[row]])
        valid = there[row] & np.isfinite(reward)
        bad += (there[row] & ~np.isfinite(reward)).sum()
        valid_rollouts += valid.sum()
        if not valid.any():
            continue
        groups += 1
        deviation = np.std(reward[valid], ddof=1) if valid.sum() > 1 else 0.0
        weighted = []
        for place in np.flatnonzero(valid):
            advantage = reward[place] - reward[valid].mean()
            advantage = advantage / (deviation + 1e-4) if deviation > 0 else 0.0
            ratio = np.exp(ours[row, place] - old[row, place])
            ratios += ratio.tolist()
            clipped = np.clip(ratio, 1 - objective.clip, 1 + high)
            gain = np.minimum(ratio * advantage, clipped * advantage)
            gap = base[row, place] - ours[row, place]
            total -= np.mean(gain - objective.kl * (np.exp(gap) - gap - 1)) / valid.sum()
            moves = ratio * advantage <= clipped * advantage
            slope = -np.where(moves, ratio * advantage, 0) + objective.kl * (1 - np.exp(gap))
            weighted.append((items[row, place], slope / 3 / valid.sum()))
        slopes.append(slope_of(params, weighted, live=live[row], **how))
    truth = all_log_probs(params, targets[:, None], **how)[:, 0]
    nll = -truth.sum()
    slope = jax.tree.map(lambda *each: sum(each) / groups, *slopes)
    pull = slope_of(params, [(target, np.full(3, -align.nll / rows)) for target in targets], **how)
    metrics = {
        "nll_target": (nll, rows),
        "ratio": (sum(ratios), len(ratios)),
        "valid_rollouts": (valid_rollouts, items.size),
        "rewards_not_finite": (bad, there.sum()),
    }
    total += align.nll * nll * groups / rows
    return total, groups, metrics, jax.tree.map(np.add, slope, pull)


@pytest.mark.parametrize("align", [PLAIN, OFF_POLICY], ids=["plain", "off_policy"])
def test_a_step_is_the_policy_gradient_done_by_hand(align):
    """Also with rewards that are not finite, rollouts that name no item, a target that may not be
    written, and a policy other than the one that wrote."""
    params = table(1)
    other = jax.tree.map(lambda a, b: a + 0.2 * b, params, table(2))
    copies = dict.fromkeys(align.copies, other)
    found = program(align)(params, BATCH, jax.random.key(0), copies)
    items, slope, total, weight, metrics = jax.device_get(found)
    assert copies.keys() == ({REFERENCE} if align is PLAIN else {BEHAVIOUR})
    expected, groups, told, by = by_hand(align, items, BATCH, params, copies)
    assert float(total) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert float(weight) == groups
    for name, (over, of) in told.items():
        assert float(metrics[name][1]) == of, name
        assert float(metrics[name][0]) == pytest.approx(over, rel=1e-4), name
    close(slope, by)
    assert np.abs(by["level_2"]).max() > 1e-3
    if align is PLAIN:
        assert told["rewards_not_finite"][0] > 10
        assert float(metrics["ratio"][0] / metrics["ratio"][1]) == pytest.approx(1, abs=1e-5)
        assert float(metrics["clipped"][0]) == 0
        assert float(metrics["kl"][0]) > 0
    else:
        assert (items < 0).any()
        targets = np.asarray(BATCH.target)
        assert not np.take_along_axis(unseen(BATCH), targets[:, None], axis=1).all()
        assert float(metrics["clipped"][0]) > 10


def test_legality_is_right_on_average():
    """Against the exact sum over all IDs of what the model itself gives them."""
    params = table(1)
    copies = {REFERENCE: params}
    shares = []
    for seed in range(6):
        _, _, _, _, metrics = program(PLAIN)(params, BATCH, jax.random.key(seed), copies)
        over, of = metrics["legality"]
        assert float(of) == 4 * len(BATCH.target)  # also of what has no finite reward
        shares.append(float(over / of))
    each = all_log_probs(params, [range(ITEMS)], norm="trie")[0].sum(-1)
    full = all_log_probs(params, [range(ITEMS)], norm="full")[0].sum(-1)
    _, first = np.unique(CODES, axis=0, return_index=True)
    exact = np.exp(full[first]).sum()
    spread = np.sqrt(np.sum(np.exp(each[first]) * (np.exp(full - each)[first] - exact) ** 2))
    error = spread / np.sqrt(6 * 4 * len(BATCH.target))
    assert abs(np.mean(shares) - exact) < 4 * error
    assert error < 0.01 < 0.1 < 1 - exact


def test_at_the_reference_there_is_no_divergence():
    params = table(1)
    copies = {REFERENCE: params}
    _, _, _, _, metrics = program(PLAIN)(params, BATCH, jax.random.key(0), copies)
    assert float(metrics["kl"][0]) == pytest.approx(0, abs=1e-4)


def test_copies_are_those_that_are_read():
    follow, write = Follow(512, 0.6), Follow(1000)
    assert Align(GRPO(kl=0.1), reference=follow).copies == {REFERENCE: follow}
    assert Align(GRPO(kl=0.0), reference=follow).copies == {}
    assert Align(Reinforce()).copies == {}
    both = Align(GRPO(kl=0.1), behaviour=write).copies
    assert both == {REFERENCE: Follow(), BEHAVIOUR: write}
    assert Align(GRPO(kl=0.0), behaviour=write).copies == {BEHAVIOUR: write}
    assert Align(GRPO(kl=0.1), low_rank=LowRank()).copies == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rollouts": Sample(1)}, "a group of 1 rollout has nothing to compare with"),
        ({"nll": -0.1}, r"nll=-0\.1 must not be negative"),
        ({"norm": "none"}, "(?s)none.*trie.*full"),
        ({"low_rank": LowRank(), "reference": Follow(10)}, "Align: with low_rank the reference"),
        ({"low_rank": LowRank(), "behaviour": Follow(10)}, "Align: with low_rank the reference"),
    ],
)
def test_impossible_settings(fields, message):
    # The type checker of the tests may come first where the field is a Literal.
    with pytest.raises((ValueError, TypeError), match=message):
        Align(GRPO(), **fields)


def test_one_rollout_beside_the_target_is_a_group():
    assert Align(GRPO(), rollouts=Sample(1), include_target=True).rollouts.group == 1


LOW_RANK = Align(
    GRPO(kl=0.3),
    rollouts=Sample(2),
    low_rank=LowRank(rank=2, alpha=4.0, targets=("level_1", "level_2")),
)


def test_low_rank_starts_at_the_base_and_moves_only_the_change():
    params = table(1)
    start = Start(context(params), LOW_RANK.low_rank)
    given = GIVEN._replace(base=start.base)
    shardings = jax.tree.map(
        lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]),
        start.axes(),
        is_leaf=lambda node: isinstance(node, tuple),
    )
    trained = start.place(jax.random.key(0), shardings)
    assert jax.tree.structure(trained) == jax.tree.structure(shardings)
    policy = jax.jit(start.policy)
    close(policy(trained, given), params, atol=0)
    loss = LOW_RANK.loss(LOW_RANK.policy(GENERATOR, SPACE), start, Rewarding(PrefixMatch(VALUES)))

    def mean(trained, given):
        total, weight, metrics = loss(trained, given, batch_of(8), jax.random.key(0))
        return total / weight, metrics

    value = jax.value_and_grad(mean, argnums=(0, 1), has_aux=True, allow_int=True)
    step = jax.jit(value, compiler_options=QUICK)
    (_, metrics), (slope, of_given) = step(trained, given)
    assert float(metrics["kl"][0]) == pytest.approx(0, abs=1e-4)
    assert np.abs(slope["level_2"]["up"]).max() > 1e-3
    close(of_given.base, jax.tree.map(np.zeros_like, params), atol=0)
    trained, slope = jax.device_get((trained, slope))
    moved = jax.tree.map(lambda leaf, by: leaf - 2 * by, trained, slope)
    (_, metrics), _ = step(moved, given)
    assert float(metrics["kl"][0]) > 0.01  # the reference stood still
    state = TrainState(np.zeros((), np.int32), moved, None)
    merged = start.finished(FitResult(moved, state, 0, [], "finished", 0.0)).params
    close(merged, policy(moved, given), atol=1e-6)
    close(merged["level_0"], params["level_0"], atol=0)
    assert np.abs(merged["level_2"] - params["level_2"]).max() > 1e-3


def test_all_weights_start_where_the_stage_before_ended():
    params = table(1)
    start = Start(context(params), None)
    assert start.base is None
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    close(start.place(jax.random.key(0), sharding), params, atol=0)
    assert start.policy(params, GIVEN) is params
    result = FitResult(params, TrainState(np.zeros(()), params, None), 0, [], "finished", 0.0)
    assert start.finished(result) is result


def test_the_likelihood_is_a_mean_over_what_users_are_known_to_have_done():
    """However many groups count: here every other target is unknown, and all groups count."""
    policy, start = PLAIN.policy(GENERATOR, SPACE), Start(context(), None)
    target = np.where(np.arange(64) % 2, -1, np.asarray(BATCH.target)).astype(np.int32)
    batch = BATCH._replace(target=target)
    params = table(0)

    def loss(nll):
        stage = dataclasses.replace(PLAIN, nll=nll, reward=PrefixMatch(VALUES))
        step = stage.loss(policy, start, Rewarding(stage.reward))
        run = jax.jit(
            lambda params, batch, key: step(params, GIVEN, batch, key, copies={REFERENCE: params})
        )
        return run(params, batch, jax.random.key(0))

    (with_it, weight, metrics), (without, *_) = loss(0.2), loss(0.0)
    known = target >= 0
    expected = -all_log_probs(params, target[known][:, None]).sum(-1).mean()
    assert float(metrics["nll_target"][1]) == known.sum() < float(weight)
    close((with_it - without) / weight, 0.2 * expected, 1e-4)
