"""Gradient-bounded policy optimisation (METHODS O20; OneRec-V2, arXiv:2508.20900).

    L = -mean_i mean_t A_i pi / pi'_old,    pi'_old = max(pi_old, sg(pi))      where A_i >= 0
                                                      max(pi_old, 1 - sg(pi))  where A_i < 0

Nothing is clipped, so every rollout teaches; the slope of log pi is `A pi / pi'_old`, at most A for
a good rollout, and for a bad one at most `|A| pi / (1 - pi)`, that of a binary cross-entropy on
"will not be liked". Like that one it grows without bound as pi goes to 1.

The trap: pi is printed as the probability of the *item*, which among a million items is about 1e-6,
and so is then the slope of a bad rollout: nothing is pushed down. A ratio for each code has
probabilities that matter. The metric `coefficient_negatives` tells which case one is in.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.objectives.advantages import as_given
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


def bounded_old(
    log_probs: Float[Array, "b g m"],
    behaviour: Float[Array, "b g m"],
    advantages: Float[Array, "b g"],
) -> Float[Array, "b g m"]:
    """log of `pi'_old`, see the module; no gradient flows.

    Example:
        A bad rollout of probability .9 that had .05 is measured against 1 - .9:

        >>> import jax.numpy as jnp
        >>> ours, old = jnp.log(jnp.array([[[0.9]]])), jnp.log(jnp.array([[[0.05]]]))
        >>> round(float(jnp.exp(bounded_old(ours, old, jnp.array([[-1.0]])))[0, 0, 0]), 4)
        0.1
    """
    log_probs = jax.lax.stop_gradient(log_probs)
    # A log-probability may exceed 0 by rounding; the log of nothing left is -inf, and loses.
    rest = jnp.log(-jnp.expm1(jnp.minimum(log_probs, 0.0)))
    bound = jnp.where((advantages < 0)[..., None], rest, log_probs)
    return jnp.maximum(jax.lax.stop_gradient(behaviour), bound)


@dataclasses.dataclass(frozen=True)
class GBPO:
    """Policy objective whose rewards are advantages already: signs of feedback, as a rule.

    OneRec-V2 gives +1 to the quarter of a batch with the longest relative play time and no negative
    feedback, -1 to explicit negative feedback and 0 to the rest, and normalises nothing. Where the
    policy that drew is unknown (logs of another system) it takes `pi_old = sg(pi)`: put the values
    of `log_probs` into `behaviour`.

    Raises:
        ValueError: unknown level.
    """

    ratio_level: Level = "token"
    """A ratio for each code, averaged over them, or one of the whole item, as printed; see the
    module for what that does to bad rollouts."""

    def __post_init__(self) -> None:
        check_level(self.ratio_level)

    def __call__(self, group: ScoredGroup) -> tuple[Array, Array, Metrics]:
        """Loss of a batch of groups, which may be groups of one.

        Returns:
            Sum over groups, number of groups with a valid rollout, and the common metrics with
            `coefficient_positives` and `coefficient_negatives`: mean `|A| pi / pi'_old` over the
            ratios of good and of bad rollouts.
        """
        group = masked(group)
        advantages = as_given(group.rewards, group.valid)
        ours = at_level(group.log_probs, self.ratio_level)
        old = bounded_old(ours, at_level(group.behaviour, self.ratio_level), advantages)
        coefficients = advantages[..., None] * ratios(ours, old)
        metrics = group_metrics(group, advantages)
        for name, which in {"positives": advantages > 0, "negatives": advantages < 0}.items():
            metrics[f"coefficient_{name}"] = over_tokens(jnp.abs(coefficients), which)
        return *over_groups(-jnp.mean(coefficients, axis=-1), group.valid), metrics
