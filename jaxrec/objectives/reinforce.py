"""The plain policy gradient, with a choice of baselines (Williams 1992; METHODS O18).

    L = -mean_i A_i log pi(o_i),    A_i = r_i - b

On draws of the current policy its slope is, on average, that of the expected reward. Baselines take
variance away and leave that average as it is, except for the factor that `mean` puts before it.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.objectives.advantages import (
    against_batch,
    as_given,
    group_normalised,
    leave_one_out,
)
from jaxrec.objectives.rollout_groups import (
    Metrics,
    ScoredGroup,
    group_metrics,
    masked,
    over_groups,
)

Baseline = Literal["none", "mean", "leave_one_out", "batch"]


@dataclasses.dataclass(frozen=True)
class Reinforce:
    """Policy objective for draws of the current policy; nothing corrects for an older one.

    Raises:
        ValueError: unknown baseline, or a negative weight.
    """

    baseline: Baseline = "leave_one_out"
    """`leave_one_out`: the mean of the others in the group (RLOO, arXiv:2402.14740); `mean`: of
    the whole group, which shortens the slope to (g - 1) / g of the true one; `batch`: of all
    rollouts of the batch; `none`."""
    entropy: float = 0.0
    """Weight of the policy's entropy, which is maximised too: the reward becomes
    `r - entropy log pi`. Its optimum is pi proportional to exp(r / entropy)."""

    def __post_init__(self) -> None:
        if self.baseline not in get_args(Baseline):
            raise ValueError(
                f"baseline={self.baseline!r} is unknown; choose one of "
                f"{', '.join(get_args(Baseline))}."
            )
        if self.entropy < 0:
            raise ValueError(f"Reinforce needs entropy >= 0, got {self.entropy}.")

    def advantages(self, rewards: Array, valid: Array) -> Float[Array, "b g"]:
        """Rewards `[b g]` less the baseline, 0 where invalid.

        Raises:
            ValueError: groups of fewer than two, and a baseline inside them.
        """
        match self.baseline:
            case "mean":
                return group_normalised(rewards, valid, scale_by_std=False)
            case "leave_one_out":
                return leave_one_out(rewards, valid)
            case "batch":
                return against_batch(rewards, valid)
            case _:
                return as_given(rewards, valid)

    def __call__(self, group: ScoredGroup) -> tuple[Array, Array, Metrics]:
        """Loss of a batch of groups.

        Returns:
            Sum over groups, number of groups with a valid rollout, and the common metrics; its
            value says nothing, its slope everything.

        Raises:
            ValueError: groups of fewer than two, and a baseline inside them.
        """
        group = masked(group)
        likelihood = jnp.sum(group.log_probs, axis=-1)
        rewards = group.rewards - self.entropy * likelihood
        # No gradient flows through an advantage, and so none through this likelihood.
        advantages = self.advantages(rewards, group.valid)
        return (
            *over_groups(-advantages * likelihood, group.valid),
            group_metrics(group, advantages),
        )
