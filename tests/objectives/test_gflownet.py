"""Balance losses: definitions, and a small tree where they lead to pi proportional to R."""

import doctest
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import policy_groups as world
import pytest

from jaxrec.objectives import gflownet
from jaxrec.objectives.gflownet import (
    DetailedBalance,
    TrajectoryBalance,
    detailed_balance,
    group_log_partition,
    log_rewards,
    trajectory_balance,
)

REWARDS = np.random.default_rng(0).uniform(0.1, 3.0, (3, 4))
"""Of the items of a tree of 3 by 4 codes."""
LOGS = jnp.asarray(np.log(REWARDS), jnp.float32).reshape(1, 12)


def walk(tables):
    """Log-probability of each of the two codes of all 12 items, `[1 12 2]`."""
    first, second = (jax.nn.log_softmax(table) for table in tables)
    both = jnp.stack([jnp.broadcast_to(first[:, None], (3, 4)), second], axis=-1)
    return both.reshape(1, 12, 2)


def start():
    first, second = jax.random.normal(jax.random.key(0), (3,)), jnp.zeros((3, 4))
    return first, second.at[0, 1].set(2.0)


@partial(jax.jit, static_argnums=0)
def descend(loss, params):
    """Adam, a rate that falls to nothing."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 500))

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), length=500)[0][0]


def distance(tables):
    """Total variation between the policy and the rewards."""
    chances = np.exp(np.asarray(walk(tables)).sum(-1)).reshape(3, 4)
    return np.abs(chances - REWARDS / REWARDS.sum()).sum() / 2


def true_flows():
    """log F of the two prefixes of each item, `[1 12 2]`."""
    inner = np.broadcast_to(REWARDS.sum(1)[:, None], (3, 4))
    flows = np.log(np.stack([np.full((3, 4), REWARDS.sum()), inner], axis=-1))
    return jnp.asarray(flows, jnp.float32).reshape(1, 12, 2)


def test_trajectory_balance_leads_to_the_rewards():
    everyone = jnp.ones((1, 12), bool)

    def by_group(tables):
        items = walk(tables).sum(-1)
        partition = group_log_partition(items, LOGS, everyone)
        return jnp.sum(jnp.square(trajectory_balance(items, LOGS, partition)))

    def learnt(params):
        tables, partition = params
        return jnp.sum(jnp.square(trajectory_balance(walk(tables).sum(-1), LOGS, partition)))

    assert distance(start()) > 0.2
    tables = descend(by_group, start())
    assert distance(tables) < 0.002
    found, partition = descend(learnt, (start(), jnp.zeros(1)))
    assert distance(found) < 0.002
    np.testing.assert_allclose(partition, np.log(REWARDS.sum()), atol=0.01)
    # At the same optimum nothing is out of balance anywhere, with the flows of the tree.
    residuals = detailed_balance(true_flows(), walk(tables), LOGS)
    np.testing.assert_allclose(residuals, 0, atol=0.01)
    assert np.abs(detailed_balance(true_flows(), walk(start()), LOGS)).max() > 0.5


def test_detailed_balance_leads_there_too_and_learns_the_flows():
    def loss(params):
        tables, root, inner = params
        both = jnp.stack(
            [jnp.full((3, 4), root[0]), jnp.broadcast_to(inner[:, None], (3, 4))], axis=-1
        )
        residuals = detailed_balance(both.reshape(1, 12, 2), walk(tables), LOGS)
        return jnp.sum(jnp.square(residuals))

    tables, root, inner = descend(loss, (start(), jnp.zeros(1), jnp.zeros(3)))
    assert distance(tables) < 0.005
    np.testing.assert_allclose(root, np.log(REWARDS.sum()), atol=0.02)
    np.testing.assert_allclose(inner, np.log(REWARDS.sum(1)), atol=0.02)


def slow(objective, partition=None):
    """Squared residuals of one group; log Z, where it is the group's, moves with the policy: that
    changes no slope."""

    def losses(live, row):
        gap = np.log(np.maximum(row.rewards, objective.reward_floor)) - live.sum(-1)
        liked = live[row.positive].sum(-1)
        nll = -liked.mean() if len(liked) else 0.0
        centre = gap.mean() if partition is None else partition
        return (centre - gap) ** 2 + objective.nll * nll

    return losses


@pytest.mark.parametrize("objective", [TrajectoryBalance(), TrajectoryBalance("group", 0.5, 0.3)])
def test_trajectory_balance_is_the_definition(objective):
    group = world.draw(7)
    group.valid[0, 3:] = group.valid[1, 1:] = group.valid[2] = False
    world.check_against(objective, slow(objective), group)
    (_, _, metrics), _ = world.answer(objective, group)
    low = (group.rewards < objective.reward_floor) & group.valid
    np.testing.assert_allclose(metrics["floored"], (low.sum(), group.valid.sum()))


def test_a_given_partition():
    group, given = world.draw(8), TrajectoryBalance("given")
    group.valid[0, 3:] = False
    world.check_against(
        lambda group: given(group, jnp.full(4, 1.5)), slow(given, partition=1.5), group
    )

    def loss(partition):
        return given(jax.tree.map(jnp.asarray, group), partition)[0]

    slope = jax.grad(loss)(jnp.full(4, 1.5))
    residuals = 1.5 + group.log_probs.sum(-1) - np.log(np.maximum(group.rewards, 1e-3))
    expected = [2 * residuals[b][keep].mean() for b, keep in enumerate(group.valid)]
    np.testing.assert_allclose(slope, expected, rtol=1e-4)
    group.valid[1] = False
    wild = jnp.array([1.5, jnp.nan, 1.5, 1.5])
    total, _, metrics = given(jax.tree.map(jnp.asarray, group), wild)
    assert np.isfinite(total)
    np.testing.assert_allclose(metrics["log_partition"], (4.5, 3))
    assert np.isfinite(jax.grad(loss)(wild)).all()


def test_detailed_balance_is_the_definition():
    group = world.draw(9)
    group.valid[0, 3:] = group.valid[1, 1:] = group.valid[2] = False
    flows = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
    flows[0, 4] = np.nan
    objective = DetailedBalance(0.2)

    def losses(live, row):
        b = int(np.flatnonzero([np.isin(row.rewards, r).all() for r in group.rewards])[0])
        own = flows[b][group.valid[b]]
        after = np.concatenate([own[:, 1:], np.log(np.maximum(row.rewards, 0.2))[:, None]], axis=1)
        return np.mean((own + live - after) ** 2, axis=1)

    world.check_against(lambda group: objective(group, jnp.asarray(flows)), losses, group)
    slope = jax.grad(lambda f: objective(jax.tree.map(jnp.asarray, group), f)[0])(flows)
    assert np.isfinite(slope).all()
    np.testing.assert_array_equal(slope[~group.valid], 0)


def test_rewards_below_the_floor_are_raised_and_counted():
    rewards = jnp.asarray([[0.0, -3.0, 0.01, 0.02, jnp.nan]])
    valid = jnp.asarray([[True, True, True, True, False]])
    logs, metrics = log_rewards(rewards, valid, 0.01)
    np.testing.assert_allclose(logs[0], [*np.log([0.01, 0.01, 0.01, 0.02]), 0.0], rtol=1e-6)
    assert np.array(metrics["floored"]).tolist() == [2, 4]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TrajectoryBalance("learnt"), "(?s)learnt.*group.*given"),
        (lambda: TrajectoryBalance(nll=-1.0), "nll >= 0, got -1.0"),
        (lambda: TrajectoryBalance(reward_floor=0.0), "reward_floor=0.0 must be positive"),
        (lambda: DetailedBalance(-1.0), "reward_floor=-1.0 must be positive"),
        (lambda: TrajectoryBalance("given")(world.draw()), "partition='given'. needs it"),
        (lambda: TrajectoryBalance()(world.draw(), jnp.ones(4)), "estimates log_partition itself"),
    ],
)
def test_refuses_what_cannot_be(make, words):
    # The type checker of the tests may come first where the field is a Literal.
    with pytest.raises((ValueError, TypeError), match=words):
        make()


def test_examples_in_the_documentation():
    result = doctest.testmod(gflownet)
    assert (result.attempted, result.failed) == (10, 0)
