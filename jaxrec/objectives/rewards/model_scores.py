"""Rewards that a frozen model gives, and the gate before them (METHODS O21, O23).

P-Score, the SIM-like preference, click and conversion towers, a SASRec's score of the item
(MiniOneRec's collaborative reward), the expected value of an auction: all are `ModelScore`, by the
name under which the rollouts were scored.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.objectives.rewards.drawn import Drawn, Reward, frozen, score_of


def gate(
    rewards: Float[Array, "*n"], relevance: Float[Array, "*n"], threshold: float
) -> Float[Array, "*n"]:
    """`1[s > threshold] r`; strictly above. A relevance that is NaN gives NaN, not a closed gate.

    >>> import jax.numpy as jnp
    >>> gate(jnp.array([0.9, 0.8, 0.7]), jnp.array([0.6, 0.5, jnp.nan]), 0.5).round(2)
    Array([0.9, 0. , nan], dtype=float32)
    """
    is_open = (relevance > threshold).astype(jnp.float32)
    return jnp.where(jnp.isnan(relevance), relevance, is_open) * rewards


@dataclasses.dataclass(frozen=True)
class ModelScore:
    """What a frozen model says of the rollout."""

    name: str
    """Of the score, in `Drawn.scores`."""

    def __call__(self, drawn: Drawn, key: Array | None = None) -> Float[Array, "b g"]:
        """Arguments and result as `Reward`; in the range of the score, mostly [0, 1].

        Raises:
            ValueError: there is no such score.
        """
        del key
        return frozen(score_of(drawn, self.name), drawn.valid)


@dataclasses.dataclass(frozen=True)
class SignedScore:
    """+1 for the share of the batch that a frozen model thinks best of, -1 for the share that it
    thinks worst of, 0 for all between: signs for `GBPO`, where a log has no refusals.

    OneRec-V2 gives its +1 by play time and its -1 to what users refused (`DurationPercentile`);
    taking both from a score is a stand-in. Equal scores at a limit get 0.

    Raises:
        ValueError: a share outside (0, .5].
    """

    name: str
    """Of the score, in `Drawn.scores`."""
    share: float = 0.25
    """Of the valid rollouts of the batch, at either end."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 0.5:
            raise ValueError(f"SignedScore: share={self.share} lies in (0, .5], at either end.")

    def __call__(self, drawn: Drawn, key: Array | None = None) -> Float[Array, "b g"]:
        """Arguments and result as `Reward`; one of -1, 0 and 1, NaN where the score is.

        Raises:
            ValueError: there is no such score.
        """
        del key
        score = score_of(drawn, self.name)
        counted = jnp.where(drawn.valid, score, jnp.nan)
        low, high = jnp.nanquantile(counted, jnp.asarray([self.share, 1.0 - self.share]))
        sign = (score > high).astype(jnp.float32) - (score < low)
        return frozen(jnp.where(jnp.isnan(score), score, sign), drawn.valid)


@dataclasses.dataclass(frozen=True)
class Gated:
    """A reward that only relevant rollouts get: `1[s > tau] r` (GenRec).

    It keeps the policy from items that a preference model likes although they do not belong.

    Raises:
        ValueError: a threshold that is no number.
    """

    reward: Reward
    name: str
    """Of the relevance, in `Drawn.scores`."""
    threshold: float
    """Silent in the paper; the relevance must be above it."""

    def __post_init__(self) -> None:
        if self.threshold != self.threshold:
            raise ValueError("threshold is NaN, which nothing is above; use a number.")

    def __call__(self, drawn: Drawn, key: Array | None = None) -> Float[Array, "b g"]:
        """Arguments and result as `Reward`; 0, or in the range of the reward.

        Raises:
            ValueError: there is no such score.
        """
        relevance = score_of(drawn, self.name)
        return frozen(gate(self.reward(drawn, key), relevance, self.threshold), drawn.valid)
