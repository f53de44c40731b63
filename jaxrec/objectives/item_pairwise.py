"""A target against a few sampled items: BCE, BPR, BPR-max, TOP1-max (METHODS O7).

With the score `p` of the target and `n_j` of the negatives, sigma the logistic function and
`w = softmax(n)`:

    bce        softplus(-p) + sum_j softplus(n_j)                 SASRec (Kang and McAuley 2018)
    bpr        mean_j softplus(n_j - p)                           BPR (Rendle et al. 2009)
    bpr_max    -log sum_j w_j sigma(p - n_j) + r sum_j w_j n_j^2  GRU4Rec (Hidasi, Karatzoglou 2018)
    top1_max   sum_j w_j (sigma(n_j - p) + sigma(n_j^2))          GRU4Rec (the same)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from jaxrec.objectives.item_softmax import scores, supervised
from jaxrec.types import Events, PyTree, Tables

Kind = Literal["bce", "bpr", "bpr_max", "top1_max"]


def pairwise_losses(
    positive: Float[Array, "*e"],
    negatives: Float[Array, "*e m"],
    counts: Bool[Array, "*e m"],
    kind: Kind,
    *,
    regularisation: float = 0.0,
) -> Float[Array, "*e"]:
    """Loss of each event; where no negative counts, only what the target alone pays.

    Args:
        positive: score of the target.
        negatives: scores of the sampled items.
        counts: which of them are negatives at all.
        kind: see the module.
        regularisation: `r` of bpr_max.

    Example:
        >>> import jax.numpy as jnp
        >>> scores = jnp.array([0.0]), jnp.array([[0.0]]), jnp.array([[True]])
        >>> [round(float(pairwise_losses(*scores, kind)[0]), 4) for kind in ("bce", "bpr")]
        [1.3863, 0.6931]
    """
    gap = positive[..., None] - negatives
    if kind == "bce":
        pushed = jnp.where(counts, jax.nn.softplus(negatives), 0.0)
        return jax.nn.softplus(-positive) + jnp.sum(pushed, axis=-1)
    if kind == "bpr":
        number = jnp.maximum(jnp.sum(counts, axis=-1), 1)
        return jnp.sum(jnp.where(counts, jax.nn.softplus(-gap), 0.0), axis=-1) / number
    share = jax.nn.softmax(jnp.where(counts, negatives, -1e30), axis=-1)
    share = jnp.where(counts, share, 0.0)
    if kind == "top1_max":
        terms = jax.nn.sigmoid(-gap) + jax.nn.sigmoid(jnp.square(negatives))
        return jnp.sum(share * terms, axis=-1)
    log_share = jnp.log(jnp.where(counts, share, 1.0))
    terms = jnp.where(counts, log_share + jax.nn.log_sigmoid(gap), -jnp.inf)
    some = jnp.any(counts, axis=-1)
    won = jax.nn.logsumexp(jnp.where(some[..., None], terms, 0.0), axis=-1)
    size = regularisation * jnp.sum(share * jnp.square(negatives), axis=-1)
    return jnp.where(some, size - won, 0.0)


@dataclasses.dataclass(frozen=True)
class ItemPairwise:
    """The target of every event against items drawn uniformly.

    A drawn item that stands in the event's row is no negative and is left out, where the published
    code draws until it finds one that the user never had. A packed row holds several users, and a
    long history several rows; what that changes is `row length / catalogue` of the pairs.

    Raises:
        ValueError: no negative, an unknown kind, or a negative regularisation.
    """

    kind: Kind = "bce"
    negatives: int = 1
    """Items drawn for every event."""
    regularisation: float = 0.0
    """Of bpr_max."""

    scores_items: ClassVar[bool] = True
    """Compares states with items: for retrievers."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(
                f"kind={self.kind!r} is unknown; choose one of {', '.join(get_args(Kind))}."
            )
        if self.negatives < 1 or self.regularisation < 0:
            raise ValueError(
                f"ItemPairwise needs negatives >= 1 and regularisation >= 0, got {self.negatives} "
                f"and {self.regularisation}."
            )

    def flops(self, events: int, items: int, width: int) -> float:
        """FLOPs of the scores of so many events, forward and backward."""
        del items
        return 6.0 * events * (self.negatives + 1) * width

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
            tables: not read here.
            batch: histories.
            key: of dropout and of the negatives.
        """
        dropout_key, draw_key = jax.random.split(key)
        states, items = apply(params, tables, batch, dropout_key)
        target, weight = supervised(states, batch)
        shape = (*target.shape, self.negatives)
        drawn = jax.random.randint(draw_key, shape, 0, len(items), jnp.int32)
        losses = pairwise_losses(
            scores("bmd,bmd->bm", states, items[target]),
            scores("bmd,bmsd->bms", states, items[drawn]),
            ~stands_in_row(drawn, batch),
            self.kind,
            regularisation=self.regularisation,
        )
        return jnp.sum(losses * weight), jnp.sum(weight), {}


def stands_in_row(drawn: Int32[Array, "b m s"], batch: Events) -> Bool[Array, "b m s"]:
    """Whether each drawn item is an event of its row."""
    item = jnp.sort(jnp.where(batch.segment > 0, batch.item, -1), axis=1)
    flat = drawn.reshape(drawn.shape[0], -1)
    place = jax.vmap(jnp.searchsorted)(item, flat)
    found = jnp.take_along_axis(item, jnp.minimum(place, item.shape[1] - 1), axis=1)
    return (found == flat).reshape(drawn.shape)
