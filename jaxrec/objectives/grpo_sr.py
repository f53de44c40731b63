"""GRPO with calibrated rewards and a likelihood of what was liked (METHODS O21; GenRec of JD).

A model of preference rewards the rollouts, gated by their relevance; it may underrate what the user
did click. So the rewards of rollouts in `D+` are raised to the best of their group, and the
likelihood of `D+` stays in the loss, lest the policy drift to what only the model likes:

    L = -mean_i mean_t [ pi / sg(pi) A_i ] - alpha mean_{i in D+} sum_t log pi
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrec.objectives.advantages import check_normaliser, group_normalised
from jaxrec.objectives.rollout_groups import (
    Metrics,
    ScoredGroup,
    group_metrics,
    masked,
    over_groups,
    positive_nll,
    ratios,
)


def calibrate_positives(
    rewards: Float[Array, "b g"], positive: Bool[Array, "b g"], valid: Bool[Array, "b g"]
) -> Float[Array, "b g"]:
    """Rewards with those of positive rollouts raised to the highest valid one of their group.

    After the gate, not before: in a group that the gate has set to zero whole, the highest is 0 and
    a clicked item gets no more. Doing it twice changes nothing.

    Args:
        rewards: after gating; anything where invalid.
        positive: rollouts of items that the user clicked or ordered.
        valid: rollouts that count.

    Example:
        >>> import jax.numpy as jnp
        >>> rewards, positive = jnp.array([[0.2, 0.9, 0.1]]), jnp.array([[True, False, False]])
        >>> calibrate_positives(rewards, positive, jnp.ones((1, 3), bool))[0].tolist()
        [0.8999999761581421, 0.8999999761581421, 0.10000000149011612]
    """
    best = jnp.max(jnp.where(valid, rewards, -jnp.inf), axis=-1, keepdims=True)
    return jnp.where(positive & valid, best, rewards)


@dataclasses.dataclass(frozen=True)
class GRPOSR:
    """Policy objective over groups of at least two rollouts, on-policy: the ratio is `pi / sg(pi)`.

    The gate belongs to the rewards. Without positives, and with `nll` 0, it is
    `GRPO(on_policy=True, kl=0)`. A liked item that was not drawn can be supervised by adding it to
    the group as one more rollout. Not published: `alpha` (.1 here), how advantages are normalised
    (as in GRPO), and how many groups share the likelihood (all that count, so that a batch with few
    liked items is held by it less).

    Raises:
        ValueError: a number outside its range.
    """

    nll: float = 0.1
    """Weight of the likelihood of positive rollouts: the `alpha` of the formula."""
    ddof: int = 1
    """Of the standard deviation inside a group."""
    epsilon: float = 1e-4
    """Added to it."""

    def __post_init__(self) -> None:
        if self.nll < 0:
            raise ValueError(f"GRPOSR needs nll >= 0, got {self.nll}.")
        check_normaliser("GRPOSR", self.ddof, self.epsilon)

    def __call__(self, group: ScoredGroup) -> tuple[Array, Array, Metrics]:
        """Loss of a batch of groups.

        Returns:
            Sum over groups, number of groups with a valid rollout, and the common metrics (`reward`
            is before calibration) with `nll`, of the positive rollouts, `positive_groups`, the
            share of groups with any, and `gated_groups`, the share of groups whose rewards are all
            zero: they teach by their likelihood only.

        Raises:
            ValueError: groups of fewer than two rollouts.
        """
        group = masked(group)
        rewards = calibrate_positives(group.rewards, group.positive, group.valid)
        advantages = group_normalised(rewards, group.valid, ddof=self.ddof, epsilon=self.epsilon)
        ratio = ratios(group.log_probs, group.log_probs)
        total, groups = over_groups(-jnp.mean(ratio, axis=-1) * advantages, group.valid)
        nll, of_positives = positive_nll(group)
        some = jnp.any(group.valid, axis=-1)
        gated = jnp.sum(some & jnp.all(group.rewards == 0, axis=-1), dtype=jnp.float32)
        counted = jnp.sum(some, dtype=jnp.float32)
        metrics = group_metrics(group, advantages) | of_positives
        metrics["positive_groups"] = (of_positives["nll"][1], counted)
        metrics["gated_groups"] = (gated, counted)
        return total + self.nll * jnp.sum(nll), groups, metrics
