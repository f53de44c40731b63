"""Groups of rollouts with their log-probabilities and rewards: what policy objectives read.

A rollout is the semantic ID of one item, `l` codes, drawn for a user; a row holds the `g` rollouts
of one user. All policy objectives are called as `objective(group) -> (sum, weight, metrics)`: the
sum over groups of the mean loss of their valid rollouts, and the number of groups with any.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrec.objectives.divergence import kl_terms

Level = Literal["token", "item"]
Metrics = dict[str, tuple[Array, Array]]
"""Name -> (sum, weight)."""

_LARGEST_LOG_RATIO = 40.0
"""A ratio is cut at e^40: far beyond any use, and times an advantage of 0 it is still 0."""


class ScoredGroup(NamedTuple):
    """Groups of `g` rollouts, a row a user.

    The three log-probabilities have to be of the same distribution: where codes were drawn among
    the children that exist, or at a temperature, so must be the mass that divides them.
    """

    log_probs: Float[Array, "b g l"]
    """Of each code given those before it, under the policy that learns: differentiable."""
    behaviour: Float[Array, "b g l"]
    """Under the policy that drew them; no gradient flows."""
    reference: Float[Array, "b g l"]
    """Under the reference; no gradient flows. The value of `log_probs` where there is none."""
    rewards: Float[Array, "b g"]
    """No gradient flows."""
    valid: Bool[Array, "b g"]
    """Rollouts that count, those that name an item; the others may hold anything, also NaN."""
    positive: Bool[Array, "b g"]
    """Rollouts whose item the user is known to have clicked or ordered (`D+`)."""


def masked(group: ScoredGroup) -> ScoredGroup:
    """The group as objectives compute with it: zeros in invalid rollouts, so that nothing there can
    reach a sum or a slope; no gradient but that of `log_probs`; at least float32.

    Raises:
        ValueError: the arrays do not fit together.
    """
    rows = group.log_probs.shape
    codes = (rows, group.behaviour.shape, group.reference.shape)
    rollouts = (group.rewards.shape, group.valid.shape, group.positive.shape)
    if len(rows) != 3 or set(codes) != {rows} or set(rollouts) != {rows[:2]}:
        raise ValueError(
            "A ScoredGroup needs log_probs, behaviour and reference of one shape [b g l] and "
            f"rewards, valid and positive of shape [b g], got {codes} and {rollouts}."
        )
    valid = group.valid

    def clean(array: Array) -> Array:
        array = array.astype(jnp.promote_types(array.dtype, jnp.float32))
        return jnp.where(valid[..., None] if array.ndim == 3 else valid, array, 0.0)

    return ScoredGroup(
        clean(group.log_probs),
        jax.lax.stop_gradient(clean(group.behaviour)),
        jax.lax.stop_gradient(clean(group.reference)),
        jax.lax.stop_gradient(clean(group.rewards)),
        valid,
        group.positive & valid,
    )


def at_level(log_probs: Float[Array, "b g l"], level: Level) -> Float[Array, "b g m"]:
    """Log-probabilities of what a ratio is taken of: of each code (`token`, m = l), or of the whole
    item (`item`, m = 1).

    >>> import jax.numpy as jnp
    >>> at_level(jnp.array([[[-1.0, -2.0]]]), "item").tolist()
    [[[-3.0]]]
    """
    return log_probs if level == "token" else jnp.sum(log_probs, axis=-1, keepdims=True)


def check_level(ratio_level: str) -> None:
    """Raises ValueError unless there is such a level."""
    if ratio_level not in get_args(Level):
        raise ValueError(
            f"ratio_level={ratio_level!r} is unknown; choose one of {', '.join(get_args(Level))}."
        )


def ratios(log_probs: Float[Array, "*n"], old: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Importance ratios `exp(log_probs - old)`; no gradient flows through `old`. With `old` equal
    to `log_probs` they are 1, and their slope that of `log_probs`.
    """
    gap = log_probs - jax.lax.stop_gradient(old)
    return jnp.exp(jnp.minimum(gap, _LARGEST_LOG_RATIO))


def group_mean(values: Float[Array, "b g"], counts: Bool[Array, "b g"]) -> Float[Array, " b"]:
    """Mean of the values that count; 0 where none does.

    >>> import jax.numpy as jnp
    >>> group_mean(jnp.array([[1.0, 3.0, jnp.nan]]), jnp.array([[True, True, False]])).tolist()
    [2.0]
    """
    number = jnp.maximum(jnp.sum(counts, axis=-1), 1)
    return jnp.sum(jnp.where(counts, values, 0.0), axis=-1) / number


def over_groups(losses: Float[Array, "b g"], valid: Bool[Array, "b g"]) -> tuple[Array, Array]:
    """Sum over groups of the mean of their valid rollouts, and the number of groups with any."""
    groups = jnp.sum(jnp.any(valid, axis=-1)).astype(losses.dtype)
    return jnp.sum(group_mean(losses, valid)), groups


def over_tokens(values: Array, valid: Bool[Array, "b g"]) -> tuple[Array, Array]:
    """Sum and number of the values `[b g m]` of valid rollouts, without gradient: a metric."""
    counts = jnp.broadcast_to(valid[..., None], values.shape)
    total = jnp.sum(jnp.where(counts, jax.lax.stop_gradient(values), 0.0), dtype=jnp.float32)
    return total, jnp.sum(counts, dtype=jnp.float32)


def positive_nll(group: ScoredGroup) -> tuple[Float[Array, " b"], Metrics]:
    """Negative log-likelihood of the items of each group that the user is known to like, the mean
    over its positive rollouts of `- sum_l log p`; 0 in a group without. Also the metric `nll`, over
    the groups with any.

    Args:
        group: after `masked`.
    """
    likelihood = jnp.sum(group.log_probs, axis=-1)
    nll = -group_mean(likelihood, group.positive)
    some = jnp.sum(jnp.any(group.positive, axis=-1), dtype=jnp.float32)
    return nll, {"nll": (jnp.sum(jax.lax.stop_gradient(nll)), some)}


def group_metrics(group: ScoredGroup, advantages: Float[Array, "b g"]) -> Metrics:
    """What every policy objective reports, as (sum, weight), without gradient.

    - `reward`, of valid rollouts, and `reward_std`, inside groups of two or more (ddof 0);
    - `advantage_size`: absolute advantage of valid rollouts;
    - `zero_advantage_groups`: share of the groups that teach nothing, their advantages being 0;
    - `valid_rollouts`: share of all rollouts;
    - `log_prob`: of the items of valid rollouts;
    - `ratio`: of every code, the policy over the one that drew;
    - `kl`: of every code, k3 against the reference.

    Args:
        group: after `masked`.
        advantages: 0 in invalid rollouts.
    """
    group, advantages = jax.lax.stop_gradient((group, advantages))
    valid = group.valid
    number = jnp.sum(valid, axis=-1)
    from_mean = group.rewards - group_mean(group.rewards, valid)[:, None]
    spread = jnp.sqrt(group_mean(jnp.square(from_mean), valid))
    several, some = number >= 2, number >= 1
    idle = some & jnp.all(advantages == 0, axis=-1)
    rollouts = jnp.sum(number, dtype=jnp.float32)
    return {
        "reward": (jnp.sum(group.rewards), rollouts),
        "reward_std": (jnp.sum(jnp.where(several, spread, 0.0)), _count(several)),
        "advantage_size": (jnp.sum(jnp.abs(advantages)), rollouts),
        "zero_advantage_groups": (_count(idle), _count(some)),
        "valid_rollouts": (rollouts, jnp.asarray(valid.size, jnp.float32)),
        "log_prob": (jnp.sum(group.log_probs), rollouts),
        "ratio": over_tokens(ratios(group.log_probs, group.behaviour), valid),
        "kl": over_tokens(kl_terms(group.log_probs, group.reference, "k3"), valid),
    }


def _count(which: Bool[Array, "*n"]) -> Float[Array, ""]:
    return jnp.sum(which, dtype=jnp.float32)
