"""Rewards by rank: MiniOneRec's penalty of what stands above the hit, and NDCG (METHODS O18, O23).

The rank of a rollout is its place among the valid ones of its group by falling likelihood, `k = 0,
1, ...`; it is discounted by `1 / log2(k + 2)`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from jaxrec.objectives.rewards.drawn import Drawn, frozen, hits, likelihood_ranks, lists_of

Scope = Literal["group", "list"]


def rank_penalties(
    ranks: Int32[Array, "*b g"], hit: Bool[Array, "*b g"], valid: Bool[Array, "*b g"]
) -> Float[Array, "*b g"]:
    """What a miss costs in a group that has a hit: the likelier the miss, the more.

        r_k = - (1 / log2(k + 2)) / sum_j (1 / log2(j + 2))

    The sum runs over all ranks of the group, the hit's own included. A hit costs nothing, and
    neither does a group without one.

    Args:
        ranks: `likelihood_ranks`.
        hit: rollouts that name the target.
        valid: rollouts that name an item; the others have no rank.

    Example:
        The likeliest of four is a miss, the second a hit:

        >>> import jax.numpy as jnp
        >>> hit = jnp.array([False, True, False, False])
        >>> prices = rank_penalties(jnp.arange(4), hit, jnp.ones(4, bool))
        >>> [f"{price:.4f}" for price in prices]
        ['-0.3904', '0.0000', '-0.1952', '-0.1681']
    """
    discount = jnp.where(valid, _discounts(ranks), 0.0)
    share = discount / jnp.maximum(jnp.sum(discount, axis=-1, keepdims=True), 1e-9)
    missed = valid & ~hit & jnp.any(hit & valid, axis=-1, keepdims=True)
    return jnp.where(missed, -share, 0.0)


def shares_of_gain(
    ranks: Int32[Array, "*b g"], hit: Bool[Array, "*b g"], k: int
) -> Float[Array, "*b g"]:
    """What each rollout brings to NDCG@k of its group, read as a ranked list.

    With one target that is `1 / log2(rank + 2)` for its likeliest hit if that is among the first
    `k`, and 0 for all others; the sum over the group is the NDCG.

    >>> import jax.numpy as jnp
    >>> gains = shares_of_gain(jnp.array([2, 0, 1]), jnp.array([True, False, True]), 10)
    >>> [f"{gain:.4f}" for gain in gains]
    ['0.0000', '0.0000', '0.6309']
    """
    best = jnp.min(jnp.where(hit, ranks, k), axis=-1, keepdims=True)
    return jnp.where(hit & (ranks == best) & (ranks < k), _discounts(ranks), 0.0)


def list_gains(
    lists: Int32[Array, "*b p"], truth: Int32[Array, "*b q"], k: int
) -> Float[Array, "*b"]:
    """NDCG@k of ranked lists against sets of true items, all of equal worth.

    Args:
        lists: items, best first; negative ones are padding that takes up its place. Where an item
            is repeated only its first mention gains.
        truth: distinct true items; negative ones are padding.
        k: places that count.

    Returns:
        In [0, 1]; 0 where there is no true item.

    >>> import jax.numpy as jnp
    >>> round(float(list_gains(jnp.array([5, 1, 1]), jnp.array([1]), 3)), 4)
    0.6309
    """
    lists = lists[..., :k]
    relevant = jnp.any(lists[..., :, None] == truth[..., None, :], axis=-1) & (lists >= 0)
    earlier = jnp.tril(jnp.ones((lists.shape[-1],) * 2, bool), -1)
    repeated = jnp.any((lists[..., :, None] == lists[..., None, :]) & earlier, axis=-1)
    gain = jnp.sum(
        jnp.where(relevant & ~repeated, _discounts(jnp.arange(lists.shape[-1])), 0.0), axis=-1
    )
    places = jnp.arange(min(k, truth.shape[-1]))
    possible = places < jnp.sum(truth >= 0, axis=-1, keepdims=True)
    ideal = jnp.sum(jnp.where(possible, _discounts(places), 0.0), axis=-1)
    return jnp.where(ideal > 0, gain / jnp.where(ideal > 0, ideal, 1.0), 0.0)


@dataclasses.dataclass(frozen=True)
class RankPenalty:
    """Price of a miss by its rank, where the group has a hit (MiniOneRec, arXiv:2510.24431).

    Added to `ExactMatch`, see `MINI_ONE_REC`. The order of the group matters where likelihoods
    are equal: the lower place ranks first.
    """

    def __call__(self, drawn: Drawn, key: Array | None = None) -> Float[Array, "b g"]:
        """Arguments and result as `Reward`; in (-1, 0], and above -1 over a group."""
        del key
        ranks = likelihood_ranks(drawn.log_probs, drawn.valid)
        return frozen(rank_penalties(ranks, hits(drawn), drawn.valid), drawn.valid)


@dataclasses.dataclass(frozen=True)
class RankedGain:
    """NDCG@k and a price of the form (Rec-R1, arXiv:2503.24289).

    In the paper a rollout leads to a list of its own: `scope="list"`. Where a rollout names one
    item, the group is the list, and each rollout gets what it brings to it: a number that all
    rollouts of a group shared would vanish from every advantage within the group.

    A rollout that is not valid pays both prices. It is the one reward that is not 0 there; they
    tell only where the objective counts such rollouts.

    Raises:
        ValueError: `k` below 1, or an unknown scope.
    """

    k: int = 10
    scope: Scope = "group"
    form_kept: float = 0.1
    """Added for a valid rollout."""
    form_broken: float = -2.0
    """In its place where it is not valid."""
    failed: float = -2.0
    """Instead of a gain where it is not valid."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k={self.k} counts no place; use at least 1.")
        if self.scope not in get_args(Scope):
            raise ValueError(
                f"scope={self.scope!r} is unknown; choose one of {', '.join(get_args(Scope))}."
            )

    def __call__(self, drawn: Drawn, key: Array | None = None) -> Float[Array, "b g"]:
        """Arguments and result as `Reward`; in [form_kept, 1 + form_kept], and
        `form_broken + failed` where not valid.

        Raises:
            ValueError: `scope="list"` of rollouts that name no lists.
        """
        del key
        if self.scope == "list":
            lists, truth = lists_of(drawn)
            truth = jnp.broadcast_to(truth[:, None], (*lists.shape[:2], truth.shape[-1]))
            gains = list_gains(lists, truth, self.k)
        else:
            ranks = likelihood_ranks(drawn.log_probs, drawn.valid)
            gains = shares_of_gain(ranks, hits(drawn), self.k)
        rewards = jnp.where(drawn.valid, gains + self.form_kept, self.form_broken + self.failed)
        return frozen(rewards, jnp.ones_like(drawn.valid))


def _discounts(ranks: Int32[Array, "*n"]) -> Float[Array, "*n"]:
    return 1.0 / jnp.log2(ranks.astype(jnp.float32) + 2.0)
