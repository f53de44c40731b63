"""What rewards read: groups of rollouts, and all that is known about them (METHODS O23).

A reward is called as `reward(drawn, key) -> [b g]`, float32, and obeys four laws:

- it is frozen: no gradient passes it;
- a rollout that is not valid gets 0 and changes nothing of the others (`RankedGain` alone has a
  price for it, as its paper asks);
- but for rewards of rank and of chance, the order of the group does not matter;
- what is not finite stays so, for all to see: `count_not_finite`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32


class Drawn(NamedTuple):
    """A batch of groups: `g` rollouts for each of `b` users. A group may hold an item twice."""

    items: Int32[Array, "b g"]
    """Catalogue row that each rollout names; -1 where none."""
    codes: Int32[Array, "b g l"]
    """Its semantic ID; anything where it is not valid."""
    valid: Bool[Array, "b g"]
    """Whether the rollout names an item: is legal."""
    log_probs: Float[Array, "b g"]
    """Log-probability of the whole rollout under the policy that drew it: the order of ranks."""
    target: Int32[Array, " b"]
    """The item that the user did choose; -1 where nobody knows."""
    target_codes: Int32[Array, "b l"]
    """Its semantic ID; anything where there is no target."""
    item_codes: Int32[Array, "n l"]
    """Semantic IDs of the whole catalogue."""
    features: dict[str, Array]
    """By name, a row an item: `popularity`, vectors, flags, ..."""
    scores: dict[str, Float[Array, "b g"]]
    """By name, what a frozen model or the log says of each rollout: probabilities in [0, 1], but
    for the seconds of play that `DurationPercentile` reads."""
    history: Int32[Array, "b t"]
    """The user's items, anything where not `seen`."""
    seen: Bool[Array, "b t"]
    """Which events of the history exist."""
    history_play: Float[Array, "b t"] | None = None
    """Seconds that each of them was played, NaN where unknown; None where no reward asks."""
    positive: Bool[Array, "b g"] | None = None
    """Rollouts of items that the user clicked or ordered (GenRec's D+); None: those that hit the
    target."""
    lists: Int32[Array, "b g p"] | None = None
    """Where a rollout names a list: its items, best first, -1 where none; else None."""
    truth: Int32[Array, "b q"] | None = None
    """The list that the user did choose, best or first first, -1 where none; else None."""


@runtime_checkable
class Reward(Protocol):
    """A frozen dataclass that values rollouts."""

    def __call__(self, drawn: Drawn, key: Array | None = None) -> Float[Array, "b g"]:
        """One number a rollout.

        Args:
            drawn: the rollouts.
            key: for rewards that draw (`Legality`); the others do not look at it.
        """
        ...


def hits(drawn: Drawn) -> Bool[Array, "b g"]:
    """Which rollouts name the target; none where there is none, for a valid one names an item."""
    return drawn.valid & (drawn.items == drawn.target[:, None])


def likelihood_ranks(
    log_probs: Float[Array, "b g"], valid: Bool[Array, "b g"]
) -> Int32[Array, "b g"]:
    """Rank of each rollout of its group, 0 for the likeliest; equal ones by their place.

    Those that are not valid come last, so that the others' ranks are as if they were left out.

    >>> import jax.numpy as jnp
    >>> valid = jnp.array([[True, True, False, True]])
    >>> likelihood_ranks(jnp.array([[-3.0, -1.0, 0.0, -1.0]]), valid).tolist()
    [[2, 0, 3, 1]]
    """
    order = jnp.lexsort((-log_probs, ~valid), axis=-1)
    return jnp.argsort(order, axis=-1).astype(jnp.int32)


def frozen(rewards: Array, valid: Bool[Array, "b g"]) -> Float[Array, "b g"]:
    """Rewards as every component returns them: float32, 0 where not valid, without gradient."""
    return jax.lax.stop_gradient(jnp.where(valid, rewards.astype(jnp.float32), 0.0))


def feature_of(drawn: Drawn, name: str) -> Array:
    """A feature of the catalogue, for all items.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in drawn.features:
        raise ValueError(
            f"this reward reads features[{name!r}]; the rollouts come with "
            f"{sorted(drawn.features) or 'no feature'}. Add it to the tables of the step."
        )
    return drawn.features[name]


def score_of(drawn: Drawn, name: str) -> Float[Array, "b g"]:
    """What a frozen model says of each rollout.

    Raises:
        ValueError: there is no score of that name.
    """
    if name not in drawn.scores:
        raise ValueError(
            f"this reward reads scores[{name!r}]; the rollouts come with "
            f"{sorted(drawn.scores) or 'no score'}. Score them with a reward model first."
        )
    return drawn.scores[name]


def lists_of(drawn: Drawn) -> tuple[Int32[Array, "b g p"], Int32[Array, "b q"]]:
    """The list of each rollout, and the true one of each user.

    Raises:
        ValueError: the rollouts name no lists, or nobody knows the true ones.
    """
    if drawn.lists is None or drawn.truth is None:
        raise ValueError(
            "this reward compares lists, but lists or truth of the rollouts is None. Give both, or "
            "use a reward of single items."
        )
    return drawn.lists, drawn.truth


def count_not_finite(
    rewards: Float[Array, "b g"], valid: Bool[Array, "b g"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """How many valid rollouts have a reward that is NaN or infinite, of how many: a metric.

    >>> import jax.numpy as jnp
    >>> rewards = jnp.array([[1.0, jnp.nan, jnp.inf]])
    >>> bad, of = count_not_finite(rewards, jnp.array([[True, True, False]]))
    >>> float(bad), float(of)
    (1.0, 2.0)
    """
    bad = valid & ~jnp.isfinite(rewards)
    return jnp.sum(bad, dtype=jnp.float32), jnp.sum(valid, dtype=jnp.float32)
