"""Early-clipped GRPO, for the rollouts of an older policy (METHODS O19; OneRec, arXiv:2506.13695).

GRPO leaves one ratio without a bound: that of a bad rollout which has become much likelier since it
was drawn, pushed by all of `pi / pi_old`. ECPO raises the old policy first,

    pi'_old = max(sg(pi) / (1 + e + delta), pi_old),    rho = pi / pi'_old
    L = -mean_i mean_t min(rho A_i, clip(rho, 1 - e, 1 + e) A_i)

so that no ratio exceeds `1 + e + delta`, and neither does its slope. Good rollouts are treated as
by GRPO, to the last digit: what is cut was clipped already. There is no divergence in it.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.objectives.advantages import check_normaliser, group_normalised
from jaxrec.objectives.grpo import clipped_surrogate, is_clipped
from jaxrec.objectives.rollout_groups import (
    Level,
    Metrics,
    ScoredGroup,
    at_level,
    check_level,
    group_metrics,
    masked,
    over_groups,
    over_tokens,
    ratios,
)


def raised_old(
    log_probs: Float[Array, "*n"], behaviour: Float[Array, "*n"], clip: float, delta: float
) -> Float[Array, "*n"]:
    """log of `max(sg(pi) / (1 + clip + delta), pi_old)`; no gradient flows.

    Example:
        From .1 to .2 is twice as likely, and counts as 1.3 times:

        >>> import jax.numpy as jnp
        >>> ours, old = jnp.log(jnp.array([0.2])), jnp.log(jnp.array([0.1]))
        >>> round(float(jnp.exp(ours - raised_old(ours, old, 0.2, 0.1))[0]), 4)
        1.3
    """
    least = log_probs - math.log1p(clip + delta)
    return jax.lax.stop_gradient(jnp.maximum(least, behaviour))


@dataclasses.dataclass(frozen=True)
class ECPO:
    """Policy objective over groups of at least two rollouts, without a divergence.

    OneRec draws 512 beams for 1 % of the users from parameters up to 1000 steps old, with
    `delta` .1; its `clip` is not published (.2 here). The ratio is written for the item; one for
    each code, averaged over them, is the other reading. That advantages are scaled as in GRPO is
    said, `ddof` and `epsilon` are not.

    Raises:
        ValueError: a number outside its range, or an unknown level.
    """

    clip: float = 0.2
    """How far from 1 a ratio counts: the `e` of the formula."""
    delta: float = 0.1
    """How much farther the ratio of a bad rollout may grow. Above 0: at 0 it would stop where the
    clip begins, on a kink without a slope of its own."""
    ratio_level: Level = "item"
    """One ratio of the whole item, or one for each code."""
    ddof: int = 1
    """Of the standard deviation inside a group."""
    epsilon: float = 1e-4
    """Added to it."""
    scale_by_std: bool = True
    """Divide advantages by the standard deviation."""

    def __post_init__(self) -> None:
        if not 0 < self.clip < 1 or self.delta <= 0:
            raise ValueError(
                f"ECPO needs clip in (0, 1) and delta > 0, got {self.clip} and {self.delta}."
            )
        check_normaliser("ECPO", self.ddof, self.epsilon)
        check_level(self.ratio_level)

    def __call__(self, group: ScoredGroup) -> tuple[Array, Array, Metrics]:
        """Loss of a batch of groups.

        Returns:
            Sum over groups, number of groups with a valid rollout, and the common metrics with
            `clipped`, the share of ratios whose slope the clip took, and `early_clipped`, the
            share of ratios that GRPO would have let grow beyond `1 + clip + delta`.

        Raises:
            ValueError: groups of fewer than two rollouts.
        """
        group = masked(group)
        advantages = group_normalised(
            group.rewards,
            group.valid,
            ddof=self.ddof,
            epsilon=self.epsilon,
            scale_by_std=self.scale_by_std,
        )
        ours = at_level(group.log_probs, self.ratio_level)
        behaviour = at_level(group.behaviour, self.ratio_level)
        old = raised_old(ours, behaviour, self.clip, self.delta)
        ratio = ratios(ours, old)
        surrogate = clipped_surrogate(ratio, advantages, self.clip, self.clip)
        metrics = group_metrics(group, advantages)
        for name, which in {
            "clipped": is_clipped(ratio, advantages, self.clip, self.clip),
            "early_clipped": (old > behaviour) & (advantages < 0)[..., None],
        }.items():
            metrics[name] = over_tokens(which, group.valid)
        return *over_groups(-jnp.mean(surrogate, axis=-1), group.valid), metrics
