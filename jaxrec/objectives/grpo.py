"""Group-relative policy optimisation (METHODS O18; DeepSeekMath, arXiv:2402.03300).

For the rollouts of a user, with their advantages A inside the group and the ratio
`rho = pi / pi_old` of every code:

    L = mean_i mean_t [ -min(rho A_i, clip(rho, 1 - e, 1 + e') A_i) + beta KL_t ]

A group found by beam search is no sample of the policy: its members differ by construction, and the
slope is that of no expected reward. MiniOneRec does it all the same.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrec.objectives.advantages import check_normaliser, group_normalised
from jaxrec.objectives.divergence import Estimator, check_estimator, kl_terms
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


def clipped_surrogate(
    ratio: Float[Array, "b g m"], advantages: Float[Array, "b g"], low: float, high: float
) -> Float[Array, "b g m"]:
    """What is maximised: `min(rho A, clip(rho, 1 - low, 1 + high) A)` (PPO, arXiv:1707.06347).

    A good rollout gains no more once its ratio exceeds `1 + high`, a bad one no more once it is
    below `1 - low`. A bad one of a large ratio is pushed with all of it.

    Args:
        ratio: policy over old policy, of every code or of the item (m = 1).
        advantages: of the rollouts.
        low: how far below 1 a ratio counts.
        high: how far above.

    Example:
        >>> import jax.numpy as jnp
        >>> ratio = jnp.array([[[0.5, 2.0]]])
        >>> found = clipped_surrogate(ratio, jnp.array([[1.0]]), 0.2, 0.2)
        >>> [round(float(term), 4) for term in found[0, 0]]
        [0.5, 1.2]
        >>> found = clipped_surrogate(ratio, jnp.array([[-1.0]]), 0.2, 0.2)
        >>> [round(float(term), 4) for term in found[0, 0]]
        [-0.8, -2.0]
    """
    each = advantages[..., None]
    return jnp.minimum(ratio * each, jnp.clip(ratio, 1 - low, 1 + high) * each)


def is_clipped(
    ratio: Float[Array, "b g m"], advantages: Float[Array, "b g"], low: float, high: float
) -> Bool[Array, "b g m"]:
    """Where `clipped_surrogate` has no slope although the advantage is not 0."""
    each = advantages[..., None]
    return ((each > 0) & (ratio > 1 + high)) | ((each < 0) & (ratio < 1 - low))


@dataclasses.dataclass(frozen=True)
class GRPO:
    """Policy objective over groups of at least two rollouts.

    The published settings are constants of this file: `MINIONEREC`, `ONEREC_THINK`, `DR_GRPO`,
    `DAPO`. As semantic IDs of one space are equally long, `1 / |o|` and the token mean of DAPO are
    the same; a sum over the codes multiplies the loss by their number.

    Raises:
        ValueError: a number outside its range, or an unknown option.
    """

    clip: float = 0.2
    """How far below 1 a ratio counts, and above unless `clip_high` says otherwise."""
    clip_high: float | None = None
    """How far above 1 a ratio counts (DAPO, arXiv:2503.14476: .28)."""
    kl: float = 1e-3
    """Weight of the divergence from the reference, the `beta` of the formula; 0 leaves it out."""
    kl_estimator: Estimator = "k3"
    """See `jaxrec.objectives.divergence`; k1 regularises nothing on its own draws."""
    ddof: int = 1
    """Of the standard deviation inside a group."""
    epsilon: float = 1e-4
    """Added to it."""
    scale_by_std: bool = True
    """Divide advantages by the standard deviation; Dr.GRPO (arXiv:2503.20783) does not."""
    ratio_level: Level = "token"
    """A ratio for each code, or one of the whole item."""
    on_policy: bool = False
    """The ratio is `pi / sg(pi)`: 1, so that nothing is clipped and the slope is REINFORCE's. For
    rollouts of the current policy, or of which nobody knows the probability."""
    length_normalised: bool = True
    """Mean over the codes of a rollout; otherwise their sum (Dr.GRPO)."""

    def __post_init__(self) -> None:
        high = self.clip if self.clip_high is None else self.clip_high
        if not 0 < self.clip < 1 or high <= 0 or self.kl < 0:
            raise ValueError(
                f"GRPO needs clip in (0, 1), clip_high > 0 and kl >= 0, got {self.clip}, "
                f"{self.clip_high} and {self.kl}."
            )
        check_estimator(self.kl_estimator)
        check_normaliser("GRPO", self.ddof, self.epsilon)
        check_level(self.ratio_level)

    def __call__(self, group: ScoredGroup) -> tuple[Array, Array, Metrics]:
        """Loss of a batch of groups.

        Returns:
            Sum over groups, number of groups with a valid rollout, and the common metrics with
            `clipped`, the share of ratios whose slope the clip took.

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
        old = ours if self.on_policy else at_level(group.behaviour, self.ratio_level)
        ratio = ratios(ours, old)
        limits = self.clip, self.clip if self.clip_high is None else self.clip_high
        reduce = jnp.mean if self.length_normalised else jnp.sum
        losses = -reduce(clipped_surrogate(ratio, advantages, *limits), axis=-1)
        if self.kl:
            divergence = kl_terms(group.log_probs, group.reference, self.kl_estimator)
            losses += self.kl * reduce(divergence, axis=-1)
        metrics = group_metrics(group, advantages)
        metrics["clipped"] = over_tokens(is_clipped(ratio, advantages, *limits), group.valid)
        return *over_groups(losses, group.valid), metrics


MINIONEREC = GRPO(on_policy=True, kl=1e-3, ddof=1, epsilon=1e-4)
"""MiniOneRec's published code (arXiv:2510.24431): 16 beams a user, learning rate 1e-5, 2 epochs,
the reference moved along with the policy."""

ONEREC_THINK = GRPO(clip=0.2, kl=1e-3)
"""OneRec-Think (arXiv:2510.11639): 16 rollouts a user, learning rate 1e-5. How it treats the
standard deviation is not said."""

DR_GRPO = GRPO(kl=0.0, scale_by_std=False, length_normalised=False)
"""Dr.GRPO (arXiv:2503.20783): no scale by deviation, no mean over the length, no divergence."""

DAPO = GRPO(clip=0.2, clip_high=0.28, kl=0.0)
"""The loss of DAPO (arXiv:2503.14476). That it draws again until groups differ is the loop's."""
