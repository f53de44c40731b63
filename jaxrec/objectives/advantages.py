"""What a rollout's reward is compared with before the policy is pushed (METHODS O18, O20).

    group_normalised   (r_i - mean r) / (std r + epsilon)   GRPO (arXiv:2402.03300)
                       r_i - mean r                         Dr.GRPO (arXiv:2503.20783)
    leave_one_out      r_i - mean of the others             RLOO (arXiv:2402.14740)
    against_batch      r_i - mean r of the whole batch      REINFORCE with a baseline
    against            r_i - what is given                  the same, moving or learnt
    as_given           r_i                                  OneRec-V2's signs +1, 0, -1

Means are over valid rollouts; invalid ones get 0. No gradient flows through an advantage. A group
whose rewards are equal, or that has fewer than two valid rollouts, gets exactly 0 from the
estimators that compare inside a group: it has nothing to compare.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def group_normalised(
    rewards: Float[Array, "b g"],
    valid: Bool[Array, "b g"],
    *,
    ddof: int = 1,
    epsilon: float = 1e-4,
    scale_by_std: bool = True,
) -> Float[Array, "b g"]:
    """Rewards measured against their group.

    The mean contains the rollout's own reward, so that without the scale the expected slope is
    `(g - 1) / g` of the true one. Dividing by the deviation makes groups count alike whether their
    rewards differ much or hardly; Dr.GRPO calls that a bias and leaves it out.

    Args:
        rewards: of the rollouts; anything where invalid.
        valid: rollouts that count.
        ddof: the variance divides by `number - ddof`; 1 in PyTorch's `std` and so in most code,
            0 makes advantages larger by sqrt(g / (g - 1)).
        epsilon: added to the deviation.
        scale_by_std: divide by the deviation.

    Raises:
        ValueError: groups of fewer than two.

    Example:
        >>> import jax.numpy as jnp
        >>> everyone = jnp.ones((1, 4), bool)
        >>> found = group_normalised(jnp.array([[1.0, 0.0, 0.0, 0.0]]), everyone, ddof=0)
        >>> [round(float(advantage), 3) for advantage in found[0]]
        [1.732, -0.577, -0.577, -0.577]
    """
    check_two(rewards.shape[1], "Advantages inside a group")
    from_mean = centred(rewards, valid)
    if not scale_by_std:
        return from_mean
    number = jnp.sum(valid, axis=-1, keepdims=True)
    square = jnp.sum(jnp.square(from_mean), axis=-1, keepdims=True)
    deviation = jnp.sqrt(square / jnp.maximum(number - ddof, 1))
    return jnp.where(deviation > 0, from_mean / jnp.where(deviation > 0, deviation + epsilon, 1), 0)


def leave_one_out(rewards: Float[Array, "b g"], valid: Bool[Array, "b g"]) -> Float[Array, "b g"]:
    """Rewards less the mean of the *other* valid rollouts of the group: an unbiased slope.

    Args:
        rewards: of the rollouts; anything where invalid.
        valid: rollouts that count.

    Raises:
        ValueError: groups of fewer than two.

    Example:
        >>> import jax.numpy as jnp
        >>> leave_one_out(jnp.array([[3.0, 0.0, 0.0]]), jnp.ones((1, 3), bool)).tolist()
        [[3.0, -1.5, -1.5]]
    """
    check_two(rewards.shape[1], "leave_one_out")
    number = jnp.sum(valid, axis=-1, keepdims=True)
    return centred(rewards, valid) * (number / jnp.maximum(number - 1, 1))


def against_batch(rewards: Float[Array, "b g"], valid: Bool[Array, "b g"]) -> Float[Array, "b g"]:
    """Rewards less the mean of all valid rollouts of the batch, whatever their group.

    Users whose rollouts are all good are pushed up whole; where rewards differ between users more
    than between rollouts, that is mostly noise.
    """
    return centred(rewards, valid, axis=None)


def against(
    rewards: Float[Array, "b g"],
    valid: Bool[Array, "b g"],
    baseline: Float[Array, ""] | Float[Array, " b"],
) -> Float[Array, "b g"]:
    """Rewards less a baseline, one for all or one for each group.

    >>> import jax.numpy as jnp
    >>> rewards, everyone = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.ones((2, 2), bool)
    >>> against(rewards, everyone, jnp.array([1.0, 3.0])).tolist()
    [[0.0, 1.0], [0.0, 1.0]]
    """
    return as_given(rewards - baseline.reshape(-1, 1), valid)


def moved_baseline(
    baseline: Float[Array, ""],
    rewards: Float[Array, "b g"],
    valid: Bool[Array, "b g"],
    decay: float,
) -> Float[Array, ""]:
    """A moving average of the rewards, one batch further: `decay b + (1 - decay) mean r`. It stays
    where nothing is valid.

    >>> import jax.numpy as jnp
    >>> rewards, everyone = jnp.array([[1.0, 3.0]]), jnp.ones((1, 2), bool)
    >>> round(float(moved_baseline(jnp.array(1.0), rewards, everyone, 0.9)), 3)
    1.1
    """
    number = jnp.sum(valid)
    mean = jnp.sum(as_given(rewards, valid)) / jnp.maximum(number, 1)
    return jnp.where(number > 0, decay * baseline + (1 - decay) * mean, baseline)


def as_given(rewards: Float[Array, "b g"], valid: Bool[Array, "b g"]) -> Float[Array, "b g"]:
    """Rewards that are advantages already: +1, 0 and -1 from feedback, for example."""
    return jax.lax.stop_gradient(jnp.where(valid, rewards, 0.0))


def centred(
    rewards: Float[Array, "b g"], valid: Bool[Array, "b g"], axis: int | None = -1
) -> Float[Array, "b g"]:
    """Rewards less the mean of the valid ones along an axis (None: of all), 0 where invalid.

    Measured from the largest first: equal rewards then give 0 exactly, where the rounded mean of
    `g` equal numbers need not be that number.
    """
    rewards = jax.lax.stop_gradient(rewards)
    top = jnp.max(jnp.where(valid, rewards, -jnp.inf), axis=axis, keepdims=True)
    below = jnp.where(valid, rewards - top, 0.0)
    number = jnp.maximum(jnp.sum(valid, axis=axis, keepdims=True), 1)
    return jnp.where(valid, below - jnp.sum(below, axis=axis, keepdims=True) / number, 0.0)


def check_normaliser(who: str, ddof: int, epsilon: float) -> None:
    """Raises ValueError unless `group_normalised` can use the numbers."""
    if ddof not in (0, 1) or epsilon < 0:
        raise ValueError(f"{who} needs ddof 0 or 1 and epsilon >= 0, got {ddof} and {epsilon}.")


def check_two(rollouts: int, who: str) -> None:
    """Raises ValueError where a group has fewer than two rollouts to compare."""
    if rollouts < 2:
        raise ValueError(
            f"{who}: a group of {rollouts} has nothing to be compared with; draw at least 2 "
            "rollouts for each user, or take an objective without a baseline of the group."
        )
