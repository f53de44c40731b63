"""Rewards of what a policy wrote: the rollouts as rewards see them, and frozen models' scores."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from jaxrec.alignment.contexts import Context
from jaxrec.alignment.policy import Given
from jaxrec.alignment.reward_model import reward_scores
from jaxrec.backbones.preference import PreferenceModel
from jaxrec.objectives.rewards.drawn import Drawn, Reward, count_not_finite, hits
from jaxrec.types import TokenSpace


class Rewarded(NamedTuple):
    """Rewards of a batch of groups."""

    rewards: Float[Array, "b g"]
    """0 where they do not count."""
    valid: Bool[Array, "b g"]
    """Rollouts that name an item and have a finite reward."""
    positive: Bool[Array, "b g"]
    """Those whose item the user did choose."""
    not_finite: tuple[Array, Array]
    """Rollouts without a finite reward, of how many: a metric."""


@dataclasses.dataclass(frozen=True)
class Rewarding:
    """A reward, and the network of the frozen model that it may read. Static in `jit`."""

    reward: Reward
    network: PreferenceModel | None = None
    space: TokenSpace | None = None
    """Sparse item ids, of the network."""

    def of(self, reward: Reward) -> Rewarding:
        """Another reward, that reads the same model."""
        return dataclasses.replace(self, reward=reward)

    def drawn(
        self,
        given: Given,
        batch: Context,
        items: Int32[Array, "b g"],
        log_probs: Float[Array, "b g"],
    ) -> Drawn:
        """Rollouts with all that is known about them."""
        codes, events = given.tables.codes, batch.events
        scores = {}
        if self.network is not None:
            assert given.reward is not None
            assert given.reward_tables is not None
            assert self.space is not None
            scores = reward_scores(
                *(self.network, given.reward, given.reward_tables, events, items, self.space)
            )
        return Drawn(
            items=items,
            codes=jnp.take(codes, jnp.maximum(items, 0), axis=0),
            valid=items >= 0,
            log_probs=log_probs,
            target=batch.target,
            target_codes=jnp.take(codes, jnp.maximum(batch.target, 0), axis=0),
            item_codes=codes,
            features=given.tables.features,
            scores=scores,
            history=events.item,
            seen=events.segment > 0,
        )

    def __call__(self, drawn: Drawn, key: Array) -> Rewarded:
        """Rewards, without a gradient; rollouts whose reward is not finite do not count."""
        rewards = jax.lax.stop_gradient(self.reward(drawn, key))
        bad, of = count_not_finite(rewards, drawn.valid)
        valid = drawn.valid & jnp.isfinite(rewards)
        positive = hits(drawn) if drawn.positive is None else drawn.positive
        return Rewarded(jnp.where(valid, rewards, 0.0), valid, positive & valid, (bad, of))
