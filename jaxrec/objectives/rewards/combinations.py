"""Rewards made of rewards: sums, products, multipliers, calibration (METHODS O21, O23).

A combination hands each of its parts a key of its own. The mixes of the papers are constants at
the end of the file.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.objectives.grpo_sr import calibrate_positives
from jaxrec.objectives.rewards.drawn import Drawn, Reward, feature_of, frozen, hits
from jaxrec.objectives.rewards.matches import ExactMatch
from jaxrec.objectives.rewards.model_scores import Gated, ModelScore
from jaxrec.objectives.rewards.ranked import RankPenalty


@dataclasses.dataclass(frozen=True)
class Sum:
    """Weighted sum of rewards; one part scales a reward.

    Raises:
        ValueError: no part, not one weight a part, or a weight that is not finite.
    """

    parts: tuple[Reward, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_parts(self.parts)
        if len(self.weights) != len(self.parts):
            raise ValueError(
                f"Sum needs a weight for each of its {len(self.parts)} parts, got {self.weights}."
            )
        if not all(map(math.isfinite, self.weights)):
            raise ValueError(f"weights={self.weights} must be finite.")

    def __call__(self, drawn: Drawn, key: Array | None = None) -> Float[Array, "b g"]:
        """Arguments and result as `Reward`; between the sums of the parts' ends."""
        total = jnp.zeros(drawn.valid.shape, jnp.float32)
        for weight, part in zip(self.weights, _values(self.parts, drawn, key)):
            total += weight * part
        return frozen(total, drawn.valid)


@dataclasses.dataclass(frozen=True)
class Product:
    """Product of rewards: of probabilities, or of a reward and what must also hold.

    Raises:
        ValueError: no part.
    """

    parts: tuple[Reward, ...]

    def __post_init__(self) -> None:
        _check_parts(self.parts)

    def __call__(self, drawn: Drawn, key: Array | None = None) -> Float[Array, "b g"]:
        """Arguments and result as `Reward`; in [0, 1] where all parts are."""
        total = jnp.ones(drawn.valid.shape, jnp.float32)
        for part in _values(self.parts, drawn, key):
            total *= part
        return frozen(total, drawn.valid)


@dataclasses.dataclass(frozen=True)
class Multiplier:
    """Multiplies a reward where the item has a flag: OneRec's reward for industrial scenarios
    (arXiv:2506.13695), with a factor below 1 for viral or marketing content.

    A negative reward shrinks as well: put it around rewards that are not negative.

    Raises:
        ValueError: a factor that is negative or not finite.
    """

    reward: Reward
    feature: str
    """Name of the flag, a row an item; anything but 0 is a flag."""
    factor: float
    """Silent in the paper."""

    def __post_init__(self) -> None:
        if not 0 <= self.factor < math.inf:
            raise ValueError(f"factor={self.factor} must be finite and not negative.")

    def __call__(self, drawn: Drawn, key: Array | None = None) -> Float[Array, "b g"]:
        """Arguments and result as `Reward`; in the range of the reward, or `factor` times that.

        Raises:
            ValueError: there is no such feature.
        """
        flags = jnp.take(feature_of(drawn, self.feature), drawn.items, mode="clip") != 0
        return frozen(self.reward(drawn, key) * jnp.where(flags, self.factor, 1.0), drawn.valid)


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """Gives positive rollouts the highest reward of their group (GenRec's GRPO-SR).

    It comes after the gate. Where the gate leaves nothing the highest is 0, and nobody gains. For
    objectives other than `GRPOSR`, which calibrates itself (twice changes nothing).
    """

    reward: Reward

    def __call__(self, drawn: Drawn, key: Array | None = None) -> Float[Array, "b g"]:
        """Arguments and result as `Reward`; in the range of the reward."""
        positive = hits(drawn) if drawn.positive is None else drawn.positive
        rewards = self.reward(drawn, key)
        return frozen(calibrate_positives(rewards, positive, drawn.valid), drawn.valid)


def _check_parts(parts: tuple[Reward, ...]) -> None:
    if not parts:
        raise ValueError("a combination of rewards needs at least one part, got none.")


def _values(parts: tuple[Reward, ...], drawn: Drawn, key: Array | None) -> list[Array]:
    keys = [None] * len(parts) if key is None else jax.random.split(key, len(parts))
    return [part(drawn, each) for part, each in zip(parts, keys)]


MINI_ONE_REC = Sum((ExactMatch(), RankPenalty()), (1.0, 1.0))
"""MiniOneRec's rule reward (arXiv:2510.24431): 1 for a hit, minus at most .4 or so for a miss that
stands beside one."""

GENREC = Calibrated(Gated(ModelScore("preference"), "relevance", threshold=0.5))
"""GenRec's reward: gate first, calibration after it. The threshold is silent in the paper."""

THREE_TOWERS = Sum(
    tuple(ModelScore(name) for name in ("ctr", "cvr", "ctcvr", "relevance")),
    (1.0, 1.0, 1.0, 10.0),
)
"""OneSearch's mix, `l1 CTR + l2 CVR + l3 CTCVR + 10 l4 Rel`, in [0, 13]. The four l are silent in
what we read, and 1 here."""
