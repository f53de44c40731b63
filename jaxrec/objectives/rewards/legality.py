"""A reward for naming an item at all, on a random few of the rollouts (METHODS O23).

OneRec (arXiv:2506.13695) lifts the share of legal rollouts from below 50 % to 95 % so. The few must
be drawn at random: the likeliest ones are legal already and teach nothing.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrec.objectives.rewards.drawn import Drawn, frozen


def draw_places(key: Array, rows: int, places: int, count: int) -> Bool[Array, "{rows} {places}"]:
    """Marks `count` places of each row, all sets of so many equally likely.

    >>> import jax
    >>> draw_places(jax.random.key(0), 2, 8, 3).sum(-1).tolist()
    [3, 3]
    """
    order = jnp.argsort(jax.random.uniform(key, (rows, places)), axis=-1)
    return jnp.argsort(order, axis=-1) < count


@dataclasses.dataclass(frozen=True)
class Legality:
    """1 for a legal rollout among the few that are drawn, 0 for an illegal one.

    OneRec takes it for the advantage as it stands. The reward of a rollout that was *not* drawn is
    0 as well; whether it counts, `counts` says, with the same key: hand that to the objective as
    the rollouts that are valid, so that the mean runs over the drawn ones, illegal ones included.
    Inside a `Sum` nobody needs it: what was not drawn adds nothing.

    Likelihoods are not looked at. Which places are drawn depends on the key alone.

    Raises:
        ValueError: `count` below 1.
    """

    count: int = 5
    """Rollouts of a group that are drawn: OneRec's 5 of 128."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count={self.count} draws no rollout; use at least 1.")

    def counts(self, drawn: Drawn, key: Array) -> Bool[Array, "b g"]:
        """Which rollouts are drawn, legal or not.

        Raises:
            ValueError: the group is smaller than `count`.
        """
        rows, places = drawn.valid.shape
        if self.count > places:
            raise ValueError(
                f"count={self.count} cannot be drawn from a group of {places} rollouts; draw "
                "larger groups or use a smaller count."
            )
        return draw_places(key, rows, places, self.count)

    def __call__(self, drawn: Drawn, key: Array | None = None) -> Float[Array, "b g"]:
        """Arguments and result as `Reward`; in {0, 1}.

        Raises:
            ValueError: no key.
        """
        if key is None:
            raise ValueError("Legality draws rollouts at random and needs a key, got None.")
        return frozen(self.counts(drawn, key), drawn.valid)
