"""Balance losses: a policy that draws items in proportion to their rewards (METHODS O22).

A generative flow network (arXiv:2106.04399) moves flow from the empty prefix to the items; a state
is a prefix of a semantic ID. In a tree each prefix has one parent, so that the backward policy is 1
and drops out:

    trajectory balance  ( log Z(u) + sum_l log P(s_l+1 | s_l) - log R )^2    arXiv:2201.13259
    detailed balance    ( log F(s) + log P(s' | s) - log F(s') )^2           arXiv:2111.09266

with F = R at an item. Both are zero exactly where P(item) = R / Z, whatever policy drew the
rollouts: unlike policy gradients they need no ratio, and do not collapse onto the best item.
GFlowGR applies them to recommendation.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrec.objectives.advantages import check_two
from jaxrec.objectives.rollout_groups import (
    Metrics,
    ScoredGroup,
    group_mean,
    group_metrics,
    masked,
    over_groups,
    positive_nll,
)

Partition = Literal["group", "given"]


def log_rewards(
    rewards: Float[Array, "b g"], valid: Bool[Array, "b g"], floor: float
) -> tuple[Float[Array, "b g"], Metrics]:
    """Logarithms of rewards, which must be positive: those below the floor are raised to it. Also
    the metric `floored`, the share of valid rollouts that were.

    Args:
        rewards: anything where invalid, whose logarithm is then 0.
        valid: rollouts that count.
        floor: smallest reward, above 0. With most rewards at the floor, the policy draws an item
            of no reward with `floor * n / Z` of its mass: choose it by that.

    Example:
        >>> import jax.numpy as jnp
        >>> logs, metrics = log_rewards(jnp.array([[1.0, -2.0]]), jnp.ones((1, 2), bool), 0.01)
        >>> logs[0].round(3).tolist(), float(metrics["floored"][0])
        ([0.0, -4.605000019073486], 1.0)
    """
    low = valid & (rewards < floor)
    safe = jnp.where(valid, jnp.maximum(rewards, floor), 1.0)
    floored = (jnp.sum(low, dtype=jnp.float32), jnp.sum(valid, dtype=jnp.float32))
    return jnp.log(safe), {"floored": floored}


def group_log_partition(
    log_probs: Float[Array, "b g"], log_rewards: Float[Array, "b g"], valid: Bool[Array, "b g"]
) -> Float[Array, " b"]:
    """log Z of each group as the mean of `log R - log P` over its rollouts, without gradient.

    What is then minimised is the variance of `log R - log P` in the group (VarGrad,
    arXiv:2010.10436; for flow networks arXiv:2302.05446). Whether a gradient flows through the mean
    makes no difference to a sum of squares around it.

    Args:
        log_probs: of the items.
        log_rewards: of the same.
        valid: rollouts that count.

    Raises:
        ValueError: groups of fewer than two: one residual is always zero.
    """
    check_two(log_probs.shape[1], "partition='group'")
    return jax.lax.stop_gradient(group_mean(log_rewards - log_probs, valid))


def trajectory_balance(
    log_probs: Float[Array, "b g"],
    log_rewards: Float[Array, "b g"],
    log_partition: Float[Array, " b"],
) -> Float[Array, "b g"]:
    """Residuals `log Z + log P - log R` of the rollouts; the loss is their square.

    Args:
        log_probs: of the items.
        log_rewards: of the same.
        log_partition: of each group.

    Example:
        >>> import jax.numpy as jnp
        >>> half, three = jnp.log(jnp.array([[0.5]])), jnp.log(jnp.array([[3.0]]))
        >>> trajectory_balance(half, three, jnp.log(jnp.array([6.0]))).tolist()
        [[0.0]]
    """
    return log_partition[:, None] + log_probs - log_rewards


def detailed_balance(
    log_flows: Float[Array, "b g l"],
    log_probs: Float[Array, "b g l"],
    log_rewards: Float[Array, "b g"],
) -> Float[Array, "b g l"]:
    """Residuals `log F(s) + log P(s' | s) - log F(s')` of every code; the loss is their square.

    Args:
        log_flows: of the prefixes *before* each code; the first is log Z. The flow of the finished
            item is its reward.
        log_probs: of each code.
        log_rewards: of the items.

    Example:
        Flow 6 splits in halves, and one of them in thirds:

        >>> import jax.numpy as jnp
        >>> flows, chances = jnp.array([[[6.0, 3.0]]]), jnp.array([[[1 / 2, 1 / 3]]])
        >>> residuals = detailed_balance(jnp.log(flows), jnp.log(chances), jnp.zeros((1, 1)))
        >>> bool(jnp.allclose(residuals, 0, atol=1e-6))
        True
    """
    after = jnp.concatenate([log_flows[..., 1:], log_rewards[..., None]], axis=-1)
    return log_flows + log_probs - after


@dataclasses.dataclass(frozen=True)
class TrajectoryBalance:
    """Balance of whole rollouts, with log Z estimated in the group or given by a network.

    GFlowGR trains it beside next-token prediction on what was observed; the weight of that is not
    known to us (0 here), nor how it models log Z.

    Raises:
        ValueError: unknown partition, or a number outside its range.
    """

    partition: Partition = "group"
    """`group`: log Z is the mean of `log R - log P` over the group, nothing is learnt; `given`:
    the caller passes it, differentiable."""
    reward_floor: float = 1e-3
    """Rewards are raised to it; see `log_rewards`."""
    nll: float = 0.0
    """Weight of the likelihood of positive rollouts."""

    def __post_init__(self) -> None:
        if self.partition not in get_args(Partition):
            raise ValueError(
                f"partition={self.partition!r} is unknown; choose one of "
                f"{', '.join(get_args(Partition))}."
            )
        if self.nll < 0:
            raise ValueError(f"TrajectoryBalance needs nll >= 0, got {self.nll}.")
        _check_floor(self.reward_floor)

    def __call__(
        self, group: ScoredGroup, log_partition: Float[Array, " b"] | None = None
    ) -> tuple[Array, Array, Metrics]:
        """Loss of a batch of groups.

        Args:
            group: rollouts of any policy; `behaviour` and `reference` are only reported.
            log_partition: log Z of each user, where `partition` is `given`.

        Returns:
            Sum over groups, number of groups with a valid rollout, and the common metrics (an
            advantage is `-residual`) with `floored`, `log_partition` and `nll`.

        Raises:
            ValueError: log Z is missing or unasked for; groups of fewer than two for `group`.
        """
        if (self.partition == "given") != (log_partition is not None):
            raise ValueError(
                f"TrajectoryBalance(partition={self.partition!r}) "
                + ("estimates log_partition itself" if log_partition is not None else "needs it")
                + "; pass log_partition exactly where partition is 'given'."
            )
        group = masked(group)
        likelihood = jnp.sum(group.log_probs, axis=-1)
        logs, metrics = log_rewards(group.rewards, group.valid, self.reward_floor)
        if log_partition is None:
            log_partition = group_log_partition(likelihood, logs, group.valid)
        some = jnp.any(group.valid, axis=-1)
        log_partition = jnp.where(some, log_partition, 0.0)
        residuals = _valid(trajectory_balance(likelihood, logs, log_partition), group.valid)
        total, groups = over_groups(jnp.square(residuals), group.valid)
        nll, of_positives = positive_nll(group)
        metrics |= group_metrics(group, -residuals) | of_positives
        known = jax.lax.stop_gradient(jnp.sum(log_partition))
        metrics["log_partition"] = (known, jnp.sum(some, dtype=jnp.float32))
        return total + self.nll * jnp.sum(nll), groups, metrics


@dataclasses.dataclass(frozen=True)
class DetailedBalance:
    """Balance of every step, the mean over the codes of a rollout.

    A policy alone has no flows: a head beside its output, or a table of prefixes, must say
    `log F(u, prefix)`. Where there is none, take `TrajectoryBalance`.

    Raises:
        ValueError: a floor that is not positive.
    """

    reward_floor: float = 1e-3
    """Rewards are raised to it; see `log_rewards`."""

    def __post_init__(self) -> None:
        _check_floor(self.reward_floor)

    def __call__(
        self, group: ScoredGroup, log_flows: Float[Array, "b g l"]
    ) -> tuple[Array, Array, Metrics]:
        """Loss of a batch of groups, which may be groups of one.

        Args:
            group: rollouts of any policy; `behaviour` and `reference` are only reported.
            log_flows: of the prefixes before each code, differentiable; anything where invalid.

        Returns:
            Sum over groups, number of groups with a valid rollout, and the common metrics (an
            advantage is `-residual`, summed over the codes) with `floored`.
        """
        group = masked(group)
        valid = group.valid[..., None]
        logs, metrics = log_rewards(group.rewards, group.valid, self.reward_floor)
        flows = jnp.where(valid, log_flows, 0.0)
        residuals = detailed_balance(flows, group.log_probs, logs)
        total, groups = over_groups(jnp.mean(jnp.square(residuals), axis=-1), group.valid)
        unbalanced = _valid(jnp.sum(residuals, axis=-1), group.valid)
        return total, groups, metrics | group_metrics(group, -unbalanced)


def _valid(values: Float[Array, "b g"], valid: Bool[Array, "b g"]) -> Float[Array, "b g"]:
    return jnp.where(valid, values, 0.0)


def _check_floor(floor: float) -> None:
    if floor <= 0:
        raise ValueError(f"reward_floor={floor} must be positive: flows have logarithms.")
