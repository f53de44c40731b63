"""Sampled softmax over items, corrected for how the negatives were drawn (METHODS O4).

    L = -log( e^{z_+} / (e^{z_+} + sum_j e^{z_j - log(m q_j)}) ),   z = s.e / temperature

With `m` negatives drawn from `q`, the sum estimates that of the full softmax without bias
(Bengio and Senecal 2008; Jean et al., arXiv:1412.2007). A negative that is the target itself is no
negative: its logit is -inf, not 0, for exp(0) would count as an item.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jaxrec.objectives.item_softmax import scores, supervised
from jaxrec.types import Events, PyTree, Tables

Draw = Literal["uniform", "popularity", "in_batch"]

POPULARITY = "popularity"
"""Name of the feature that holds the training events of every item, int32[n]."""


def sampled_softmax_losses(
    positive: Float[Array, "*e"],
    negatives: Float[Array, "*e m"],
    log_expected: Float[Array, "*#e m"],
    is_target: Array,
) -> Float[Array, "*e"]:
    """Cross-entropy of the target against sampled items, in nats.

    Args:
        positive: logit of the target, already corrected where it has to be.
        negatives: logits of the sampled items.
        log_expected: log of how often each of them is expected in the sample, `log(m q_j)`; it is
            subtracted from the logit.
        is_target: bool, broadcast against `negatives`: a sampled item that is the target.

    Example:
        When the temperature goes to infinity m negatives that count once cost log(1 + m):

        >>> import jax.numpy as jnp
        >>> zeros, none = jnp.zeros((1, 3)), jnp.zeros((1, 3), bool)
        >>> round(float(sampled_softmax_losses(jnp.zeros(1), zeros, zeros, none)[0]), 4)
        1.3863
    """
    corrected = jnp.where(is_target, -jnp.inf, negatives - log_expected)
    top = jax.lax.stop_gradient(jnp.maximum(positive, jnp.max(corrected, axis=-1)))
    rest = jnp.sum(jnp.exp(corrected - top[..., None]), axis=-1)
    return top + jnp.log(jnp.exp(positive - top) + rest) - positive


@dataclasses.dataclass(frozen=True)
class ItemSampledSoftmax:
    """Softmax over the target and sampled items.

    Uniform and popular negatives are drawn anew for every row of the batch and shared by its
    events; in-batch negatives are the other targets of the batch, corrected by their popularity.

    Raises:
        ValueError: a number out of its range, or an unknown way to draw.
    """

    negatives: int = 256
    """Sampled items of a row; not used by `in_batch`."""
    draw: Draw = "uniform"
    """`uniform` over the catalogue, `popularity` (to the power `exponent`) or `in_batch`."""
    exponent: float = 1.0
    """Of the popularity."""
    correct: bool = True
    """Subtract log(m q), so that the loss estimates the full softmax. Without it popular items are
    pushed down as often as they are drawn."""
    temperature: float = 1.0
    """Inner products are divided by it."""

    scores_items: ClassVar[bool] = True
    """Compares states with items: for retrievers."""

    def __post_init__(self) -> None:
        if self.draw not in get_args(Draw):
            raise ValueError(
                f"draw={self.draw!r} is unknown; choose one of {', '.join(get_args(Draw))}."
            )
        if self.negatives < 1 or self.temperature <= 0 or self.exponent < 0:
            raise ValueError(
                "ItemSampledSoftmax needs negatives >= 1, temperature > 0 and exponent >= 0, got "
                f"{self.negatives}, {self.temperature} and {self.exponent}."
            )

    def flops(self, events: int, items: int, width: int) -> float:
        """FLOPs of the scores of so many events, forward and backward."""
        del items
        return 6.0 * events * (events if self.draw == "in_batch" else self.negatives + 1) * width

    def __call__(
        self,
        apply: Callable[[PyTree, Tables, Events, Array | None], tuple[Array, Array]],
        params: PyTree,
        tables: Tables,
        batch: Events,
        key: Array,
    ) -> tuple[Array, Array, dict[str, Any]]:
        """Loss of a batch; arguments and result as `ItemSoftmax`, and the key also draws.

        Args:
            apply: `(params, tables, batch, key) -> (states [b m d], item vectors [n d])`.
            params: parameters of the network.
            tables: `features["popularity"]` where the draw or its correction needs it.
            batch: histories.
            key: of dropout and of the negatives.
        """
        dropout_key, draw_key = jax.random.split(key)
        states, items = apply(params, tables, batch, dropout_key)
        target, weight = supervised(states, batch)
        states = states / self.temperature
        positive = scores("bmd,bmd->bm", states, items[target])
        if self.draw == "in_batch":
            losses = self._in_batch(states, items, target, weight, positive, tables)
        else:
            drawn, log_expected = self._sample(draw_key, states.shape[0], len(items), tables)
            negatives = scores("bmd,bsd->bms", states, items[drawn])
            is_target = drawn[:, None, :] == target[..., None]
            losses = sampled_softmax_losses(
                positive, negatives, log_expected[:, None, :], is_target
            )
        return jnp.sum(losses * weight), jnp.sum(weight), {}

    def _sample(
        self, key: Array, rows: int, items: int, tables: Tables
    ) -> tuple[Int32[Array, "b m"], Float[Array, "b m"]]:
        """Items drawn for each row, and the log of how often each is expected there."""
        shape = (rows, self.negatives)
        if self.draw == "uniform":
            drawn = jax.random.randint(key, shape, 0, items, jnp.int32)
            log_share = jnp.full(shape, -jnp.log(float(items)))
        else:
            log_q = log_popularity(tables, self.exponent)
            # By inverse distribution function: a categorical draw would make b x m x n numbers.
            places = jax.random.uniform(key, shape)
            edges = jnp.cumsum(jnp.exp(log_q))
            drawn = jnp.searchsorted(edges / edges[-1], places, side="right").astype(jnp.int32)
            drawn = jnp.minimum(drawn, items - 1)
            log_share = log_q[drawn]
        if not self.correct:
            return drawn, jnp.zeros(shape)
        return drawn, log_share + jnp.log(float(self.negatives))

    def _in_batch(
        self,
        states: Array,
        items: Array,
        target: Array,
        weight: Array,
        positive: Array,
        tables: Tables,
    ) -> Array:
        others = target.reshape(-1)
        count = jnp.maximum(jnp.sum(weight > 0), 1)
        logits = scores("bmd,sd->bms", states, items[others])
        # Padding is no negative, and neither is another event with the same target.
        is_target = (target[..., None] == others) | (weight.reshape(-1) <= 0)
        log_expected = jnp.zeros(others.shape)
        if self.correct:
            log_expected = log_popularity(tables, 1.0)[others] + jnp.log(count)
        return sampled_softmax_losses(positive, logits, log_expected[None, None], is_target)


def log_popularity(tables: Tables, exponent: float) -> Float[Array, " n"]:
    """Log of each item's share in `(events + 1)^exponent`: no item is impossible.

    Raises:
        ValueError: the tables hold no popularity.
    """
    if POPULARITY not in tables.features:
        raise ValueError(
            f"this objective reads tables.features[{POPULARITY!r}], the training events of every "
            f"item; the tables have {sorted(tables.features) or 'no feature'}."
        )
    counts = exponent * jnp.log(tables.features[POPULARITY].astype(jnp.float32) + 1.0)
    return counts - jax.nn.logsumexp(counts)
