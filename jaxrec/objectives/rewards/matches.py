"""Rewards for being right, or nearly: item, prefix of its codes, levels, list (METHODS O23).

Codes are compared with those of the target; a row without a target gets 0 throughout.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from jaxrec.objectives.rewards.drawn import Drawn, frozen, hits, lists_of


def matching_prefix(
    codes: Int32[Array, "*b g l"], target_codes: Int32[Array, "*b l"]
) -> Int32[Array, "*b g"]:
    """Number of leading levels that agree with the target, 0 to `l`.

    >>> import jax.numpy as jnp
    >>> matching_prefix(jnp.array([[1, 2, 3], [1, 0, 3], [0, 2, 3]]), jnp.array([1, 2, 3])).tolist()
    [3, 1, 0]
    """
    return jnp.sum(_common(codes, target_codes), axis=-1, dtype=jnp.int32)


def level_credit(
    codes: Int32[Array, "*b g l"],
    target_codes: Int32[Array, "*b l"],
    weights: Float[Array, " l"],
    *,
    prefix_only: bool = True,
) -> Float[Array, "*b g"]:
    """Share of the weight of the levels that agree with the target, in [0, 1].

    Args:
        codes: of the rollouts.
        target_codes: of the target.
        weights: of each level, not negative.
        prefix_only: a level counts only where all levels before it agree: a residual code means
            nothing under another parent. False is for parallel codes.

    >>> import jax.numpy as jnp
    >>> codes, goal = jnp.array([[1, 2, 0], [1, 0, 3]]), jnp.array([1, 2, 3])
    >>> level_credit(codes, goal, jnp.array([2.0, 1.0, 1.0])).tolist()
    [0.75, 0.5]
    >>> level_credit(codes, goal, jnp.array([2.0, 1.0, 1.0]), prefix_only=False).tolist()
    [0.75, 0.75]
    """
    agrees = codes == target_codes[..., None, :]
    if prefix_only:
        agrees = _common(codes, target_codes)
    return jnp.sum(jnp.where(agrees, weights, 0.0), axis=-1) / jnp.sum(weights)


def common_subsequence(
    left: Int32[Array, "*n p"], right: Int32[Array, "*n q"]
) -> Int32[Array, "*n"]:
    """Length of the longest common subsequence of two lists: in both orders, gaps allowed.

    One scan over the first list. Of the table's row, the recursion
    `c_j = max(c_j-1, c'_j, c'_j-1 + [equal])` is a running maximum of its last two terms.

    Args:
        left: items; negative ones are padding and equal nothing.
        right: items, likewise.

    >>> import jax.numpy as jnp
    >>> int(common_subsequence(jnp.array([1, 2, 3, 4, -1]), jnp.array([2, 9, 4, 1])))  # 2, 4
    2
    """

    def add(row: Array, item: Array) -> tuple[Array, None]:
        equal = (item[..., None] == right) & (right >= 0)
        before = jnp.pad(row[..., :-1], [(0, 0)] * (row.ndim - 1) + [(1, 0)])
        best = jnp.maximum(row, before + equal)
        return jax.lax.cummax(best, axis=best.ndim - 1), None

    table, _ = jax.lax.scan(add, jnp.zeros(right.shape, jnp.int32), jnp.moveaxis(left, -1, 0))
    return table[..., -1]


@dataclasses.dataclass(frozen=True)
class ExactMatch:
    """1 where the rollout names the target, else 0 (MiniOneRec, arXiv:2510.24431)."""

    def __call__(self, drawn: Drawn, key: Array | None = None) -> Float[Array, "b g"]:
        """Arguments and result as `Reward`; in {0, 1}."""
        del key
        return frozen(hits(drawn), drawn.valid)


@dataclasses.dataclass(frozen=True)
class PrefixMatch:
    """Graded by the number of leading codes that agree with the target's (after STREAM-Rec).

    The paper has high, small and negative rewards for strong, weak and poor matches; its
    thresholds could not be verified, and these are a choice.

    Raises:
        ValueError: fewer than two values, or not one more than the codes have levels.
    """

    values: tuple[float, ...] = (-0.5, 0.0, 0.5, 1.0)
    """Reward for 0, 1, ..., `l` levels."""

    def __post_init__(self) -> None:
        if len(self.values) < 2:
            raise ValueError(
                f"values={self.values} must hold a reward for 0, 1, ... matching levels."
            )

    def __call__(self, drawn: Drawn, key: Array | None = None) -> Float[Array, "b g"]:
        """Arguments and result as `Reward`; one of `values`, 0 without a target."""
        del key
        _check_levels("values", len(self.values) - 1, drawn)
        depth = matching_prefix(drawn.codes, drawn.target_codes)
        return frozen(jnp.asarray(self.values, jnp.float32)[depth], _comparable(drawn))


@dataclasses.dataclass(frozen=True)
class LevelCredit:
    """Partial credit, level by level (after GREAM's residual-sensitive reward).

    Its exact form could not be verified. Chosen: a share of weights that fall as residuals do, and
    a level counts only below levels that agree.

    Raises:
        ValueError: no weight above 0, a negative one, or not one a level.
    """

    weights: tuple[float, ...] = (4.0, 2.0, 1.0)
    """Of each level; only their proportions matter."""
    prefix_only: bool = True
    """A level counts only where those before it agree; False for parallel codes."""

    def __post_init__(self) -> None:
        if min(self.weights, default=0.0) < 0 or sum(self.weights) <= 0:
            raise ValueError(
                f"weights={self.weights} must not be negative, and one must be above 0."
            )

    def __call__(self, drawn: Drawn, key: Array | None = None) -> Float[Array, "b g"]:
        """Arguments and result as `Reward`; in [0, 1], 1 for the whole ID."""
        del key
        _check_levels("weights", len(self.weights), drawn)
        weights = jnp.asarray(self.weights, jnp.float32)
        credit = level_credit(
            drawn.codes, drawn.target_codes, weights, prefix_only=self.prefix_only
        )
        return frozen(credit, _comparable(drawn))


@dataclasses.dataclass(frozen=True)
class CommonSubsequence:
    """Longest common subsequence of the rollout's list and the true one (RecLLM-R1).

    Over the length of the longer of the two; the paper's normaliser could not be verified. So a
    list earns 1 only when it is the true list, and padding it with guesses does not pay.
    """

    def __call__(self, drawn: Drawn, key: Array | None = None) -> Float[Array, "b g"]:
        """Arguments and result as `Reward`; in [0, 1], 0 where there is no true list.

        Raises:
            ValueError: the rollouts name no lists.
        """
        del key
        lists, truth = lists_of(drawn)
        truth = jnp.broadcast_to(truth[:, None], (*lists.shape[:2], truth.shape[-1]))
        longer = jnp.maximum(jnp.sum(lists >= 0, axis=-1), jnp.sum(truth >= 0, axis=-1))
        return frozen(common_subsequence(lists, truth) / jnp.maximum(longer, 1), drawn.valid)


def _common(
    codes: Int32[Array, "*b g l"], target_codes: Int32[Array, "*b l"]
) -> Bool[Array, "*b g l"]:
    """Whether the levels up to each agree."""
    return jnp.cumprod(codes == target_codes[..., None, :], axis=-1, dtype=jnp.int32) > 0


def _comparable(drawn: Drawn) -> Bool[Array, "b g"]:
    return drawn.valid & (drawn.target[:, None] >= 0)


def _check_levels(name: str, given: int, drawn: Drawn) -> None:
    levels = drawn.codes.shape[-1]
    if given != levels:
        raise ValueError(
            f"{name} speaks of {given} levels, but the rollouts have {levels}; give {name} for "
            f"{levels}."
        )
