"""A bandit of 64 items: every policy objective finds the best ones from what it draws itself."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.objectives.ecpo import ECPO
from jaxrec.objectives.gbpo import GBPO
from jaxrec.objectives.gflownet import TrajectoryBalance
from jaxrec.objectives.grpo import GRPO
from jaxrec.objectives.grpo_sr import GRPOSR
from jaxrec.objectives.reinforce import Reinforce
from jaxrec.objectives.rollout_groups import ScoredGroup

ITEMS = 64
RANDOM = np.random.default_rng(0)
GAINS = RANDOM.uniform(0.0, 1.0, ITEMS).astype(np.float32)
SIGNS = np.where(GAINS > 0.75, 1.0, np.where(GAINS < 0.5, -1.0, 0.0)).astype(np.float32)
"""Feedback of OneRec-V2's kind: advantages that nobody normalises."""
CHANCES = RANDOM.uniform(size=(10, 300, 8, 16)).astype(np.float32)
"""What decides the draws of 10 seeds: 300 times 8 groups of 16 rollouts."""


@partial(jax.jit, static_argnums=0)
def learn(objective, rewards, chances):
    """Probabilities of the items in the end, a row a seed. Every draw is used for two updates: in
    the second the policy is no longer the one that drew."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 2 * len(chances[0])))

    def score(logits, drawn):
        return jax.nn.log_softmax(logits)[drawn][..., None]

    def step(carry, chance):
        drawn = jnp.sum(chance[..., None] > jnp.cumsum(jax.nn.softmax(carry[0])[:-1]), axis=-1)
        behaviour, everyone = score(carry[0], drawn), jnp.ones(drawn.shape, bool)

        def loss(logits):
            log_probs = score(logits, drawn)
            group = ScoredGroup(
                log_probs, behaviour, behaviour, rewards[drawn], everyone, ~everyone
            )
            total, weight, _ = objective(group)
            return total / weight

        def update(carry, _):
            updates, state = optimizer.update(jax.grad(loss)(carry[0]), carry[1])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(update, carry, length=2)[0], None

    def run(chances):
        start = jnp.zeros(ITEMS)
        (logits, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), chances)
        return jax.nn.softmax(logits)

    return jax.vmap(run)(chances)


@pytest.mark.parametrize(
    ("objective", "rewards"),
    [
        (GRPO(kl=0.0), GAINS),
        (ECPO(), GAINS),
        (GRPOSR(nll=0.0), GAINS),
        (Reinforce("leave_one_out"), GAINS),
        (Reinforce("batch"), GAINS),
        (GBPO(), SIGNS),
    ],
    ids=lambda each: "" if isinstance(each, np.ndarray) else str(each),
)
def test_finds_the_best_items(objective, rewards):
    chances = np.asarray(learn(objective, rewards, CHANCES))
    assert rewards.mean() < 0.6 * rewards.max()
    gained = chances @ rewards
    assert np.all(gained > 0.98 * rewards.max()), gained


def test_balance_draws_in_proportion():
    chances = np.asarray(learn(TrajectoryBalance(), GAINS, CHANCES))
    target = np.maximum(GAINS, 1e-3) / np.maximum(GAINS, 1e-3).sum()
    distances = np.abs(chances - target).sum(1) / 2
    assert np.abs(1 / ITEMS - target).sum() / 2 > 0.2
    assert np.all(distances < 0.02), distances
