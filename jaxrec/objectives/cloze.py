"""The cloze task: guess masked items from both sides (BERT4Rec, arXiv:1904.06690; METHODS O7)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxrec.objectives.item_softmax import ItemSoftmax
from jaxrec.types import Events, PyTree, Tables


@dataclasses.dataclass(frozen=True)
class Cloze:
    """Masks events at random and supervises the masked ones alone.

    A masked event carries the item number `n`, one past the catalogue; the network has a vector
    for it. With probability `last` a history masks its last event only, which is what
    is asked at test time (BERT4Rec adds such samples).

    Raises:
        ValueError: a probability outside its range.
    """

    probability: float = 0.2
    """Of an event being masked: .2 on MovieLens, .6 on Beauty."""
    last: float = 0.1
    """Share of histories that mask their last event only."""
    objective: Any = ItemSoftmax()
    """What the guesses are judged by."""

    masks_events: ClassVar[bool] = True
    """Networks that read both sides of an event cannot see what they are asked."""

    scores_items: ClassVar[bool] = True
    """Compares states with items: for retrievers."""

    def __post_init__(self) -> None:
        if not 0 < self.probability < 1 or not 0 <= self.last <= 1:
            raise ValueError(
                f"Cloze needs probability in (0, 1) and last in [0, 1], got {self.probability} and "
                f"{self.last}."
            )

    def flops(self, events: int, items: int, width: int) -> float:
        """FLOPs of the scores of so many events, forward and backward."""
        return self.objective.flops(events, items, width)

    def __call__(
        self,
        apply: Callable[[PyTree, Tables, Events, Array | None], Any],
        params: PyTree,
        tables: Tables,
        batch: Events,
        key: Array,
    ) -> tuple[Array, Array, dict[str, Any]]:
        """Loss of a batch; arguments and result are those of the inner objective.

        Args:
            apply: `(params, tables, batch, key) -> (states [b t d], item vectors [n d])`.
            params: parameters of the network.
            tables: `codes` tells how many items there are.
            batch: histories; events of weight 0 are masked, and never supervised.
            key: of the masks, of dropout and of the inner objective.
        """
        mask_key, inner_key = jax.random.split(key)
        masked = draw_masks(mask_key, batch, self.probability, self.last)
        asked = dataclasses.replace(batch, weight=jnp.where(masked, batch.weight, 0.0))

        def apply_masked(params: PyTree, tables: Tables, batch: Events, key: Array | None) -> Any:
            item = jnp.where(masked, tables.codes.shape[0], batch.item)
            return apply(params, tables, dataclasses.replace(batch, item=item), key)

        return self.objective(apply_masked, params, tables, asked, inner_key)


def draw_masks(key: Array, batch: Events, probability: float, last: float) -> Bool[Array, "b t"]:
    """Which events are masked.

    Args:
        key: of the draw.
        batch: histories, perhaps several a row.
        probability: of an event being masked, in histories that are masked at random.
        last: share of histories that mask their last event only.
    """
    event_key, history_key = jax.random.split(key)
    after = jnp.pad(batch.segment[:, 1:], ((0, 0), (0, 1)))
    is_last = batch.segment != after
    random = jax.random.uniform(event_key, batch.item.shape) < probability
    # One draw for each history: looked up by its number in the row.
    draws = jax.random.uniform(history_key, (batch.item.shape[0], batch.item.shape[1] + 1))
    only_last = jnp.take_along_axis(draws, batch.segment, axis=1) < last
    return jnp.where(only_last, is_last, random) & (batch.segment > 0)
