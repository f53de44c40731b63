"""What a user's history says about one candidate (METHODS B24).

- **DIN** (Zhou et al. 2017, arXiv:1706.06978): a small network, the *activation unit*, weighs every
  event by what it has to do with the candidate. Weights are no shares: they are not made to sum
  to 1, so that a strong interest adds up to more than a weak one. Its activation is Dice.
- **SIM** (Pi et al. 2020, arXiv:2006.05639): for histories of thousands. A *general search* keeps
  the few events that matter, by category (hard) or by inner product (soft); an *exact search*,
  multi-head attention with the candidate as its query, reads those.

Shapes: candidates `[b c d]`; events `[b g t d]`, where `g` is 1 when all candidates read the same
events and `c` after a search of their own; `allowed[b c t]` says which events a candidate may see.
A candidate that sees no event gets 0.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32

from jaxrec.backbones.attention import attention
from jaxrec.backbones.layers import normal, project, zeros

Activation = Literal["prelu", "dice"]

PRELU_SLOPE = 0.25
"""Initial slope of PReLU and of Dice below 0 (He et al. 2015)."""


class Found(NamedTuple):
    """Events that a general search keeps for each candidate, the best first."""

    index: Int32[Array, "b c k"]
    """Columns of the row; any column where `valid` is False."""
    valid: Bool[Array, "b c k"]
    """False where the search found fewer than `k`."""


class Moments(NamedTuple):
    """What Dice centres and scales by, a number a feature, float32."""

    mean: Array
    variance: Array


def search_by_category(
    category: Int[Array, "b c"],
    event_category: Int[Array, "b t"],
    allowed: Bool[Array, "b c t"],
    k: int,
) -> Found:
    """SIM's hard search: the latest `k` events of the candidate's category, the latest first.

    Args:
        category: of the candidates.
        event_category: of the events, which lie in order of time.
        allowed: events that each candidate may see.
        k: events to keep; more than there are keeps all.

    >>> import jax.numpy as jnp
    >>> events, see = jnp.array([[7, 8, 7, 7]]), jnp.ones((1, 1, 4), bool)
    >>> search_by_category(jnp.array([[7]]), events, see, 2).index.tolist()
    [[[3, 2]]]
    """
    columns = jnp.arange(event_category.shape[1], dtype=jnp.int32)
    same = allowed & (event_category[:, None, :] == category[..., None])
    found, index = jax.lax.top_k(jnp.where(same, columns, -1), min(k, len(columns)))
    return Found(index, found >= 0)


def search_by_inner_product(
    query: Float[Array, "b c d"],
    events: Float[Array, "b t d"],
    allowed: Bool[Array, "b c t"],
    k: int,
) -> Found:
    """SIM's soft search: the `k` events of the largest inner products, the earliest among equals.

    The choice has no gradient; vectors that other terms of the loss train serve for it.

    Args:
        query: vectors of the candidates.
        events: vectors of the events.
        allowed: events that each candidate may see.
        k: events to keep; more than there are keeps all.
    """
    products = jnp.einsum("bcd,btd->bct", query, events, preferred_element_type=jnp.float32)
    # Below everything finite, so that an event out of sight is never preferred to one in sight.
    products = jnp.where(allowed, jax.lax.stop_gradient(products), -jnp.inf)
    _, index = jax.lax.top_k(products, min(k, events.shape[1]))
    return Found(index, jnp.take_along_axis(allowed, index, axis=2))


def gather(events: Float[Array, "b t d"], found: Found) -> Float[Array, "b c k d"]:
    """The events that a search found, for every candidate its own."""
    return jax.vmap(lambda row, index: jnp.take(row, index, axis=0, mode="clip"))(
        events, found.index
    )


def pool(
    weights: Float[Array, "b c t"],
    events: Float[Array, "b g t d"],
    allowed: Bool[Array, "b c t"],
) -> Float[Array, "b c d"]:
    """DIN's interest, `sum_t weight_t event_t` over the events in sight; `g` is 1 or `c`."""
    weights = jnp.where(allowed, weights, jnp.zeros((), weights.dtype))
    if events.shape[1] == 1:
        return jnp.einsum("bct,btd->bcd", weights, events[:, 0])
    return jnp.einsum("bct,bctd->bcd", weights, events)


def dice(
    x: Float[Array, "*n d"], slope: Float[Array, " d"], moments: Moments, epsilon: float = 1e-8
) -> Float[Array, "*n d"]:
    """DIN's activation, `p x + (1 - p) slope x` with `p = sigmoid((x - mean) / deviation)`.

    Args:
        x: numbers before the activation.
        slope: learned, a number a feature.
        moments: of the batch in training (`masked_moments`), of a moving average afterwards.
        epsilon: added to the variance.

    >>> import jax.numpy as jnp
    >>> moments = Moments(jnp.zeros(1), jnp.ones(1))
    >>> dice(jnp.array([[0.0], [100.0], [-100.0]]), jnp.array([0.5]), moments)[:, 0].tolist()
    [0.0, 100.0, -50.0]
    """
    wide = x.astype(jnp.float32)
    p = jax.nn.sigmoid((wide - moments.mean) * jax.lax.rsqrt(moments.variance + epsilon))
    return (wide * (p + (1.0 - p) * slope)).astype(x.dtype)


def prelu(x: Float[Array, "*n d"], slope: Float[Array, " d"]) -> Float[Array, "*n d"]:
    """`x` above 0, `slope x` below (He et al. 2015, arXiv:1502.01852)."""
    return jnp.where(x > 0, x, slope.astype(x.dtype) * x)


def masked_moments(x: Float[Array, "*n d"], counts: Bool[Array, "*n"]) -> Moments:
    """Mean and variance of every feature over the rows that count; 0 where none does."""
    wide, counts = x.astype(jnp.float32).reshape(-1, x.shape[-1]), counts.reshape(-1, 1)
    number = jnp.maximum(jnp.sum(counts), 1)
    mean = jnp.sum(jnp.where(counts, wide, 0.0), axis=0) / number
    variance = jnp.sum(jnp.where(counts, jnp.square(wide - mean), 0.0), axis=0) / number
    return Moments(mean, variance)


class ActivationUnit(nn.Module):
    """DIN's weight of every event for every candidate.

        weight = w . act(... act(q Q + e K + (q * e) P + b) ...) + b'

    The published code also feeds `q - e`, which adds nothing: it is in the span of `q` and `e`.
    Queries and events are multiplied once each, only their products once a pair.

    With Dice a weight depends on all pairs in sight of the batch, unless `moments` are given.

    Args of `__call__`:
        query: vectors of the candidates `[b c d]`.
        events: `[b g t d]`.
        allowed: `[b c t]`.
        moments: of every hidden layer, for Dice; those of the batch by default.

    Returns:
        Weights `[b c t]`, rubbish where nothing is allowed, and the moments that Dice read, for a
        moving average; none with PReLU.

    Raises:
        ValueError: no hidden layer, or an unknown activation.
    """

    hidden: tuple[int, ...] = (80, 40)
    activation: Activation = "prelu"

    @nn.compact
    def __call__(
        self, query: Array, events: Array, allowed: Array, moments: tuple[Moments, ...] = ()
    ) -> tuple[Array, tuple[Moments, ...]]:
        if not self.hidden or self.activation not in get_args(Activation):
            raise ValueError(
                f"ActivationUnit needs a hidden layer and an activation out of "
                f"{', '.join(get_args(Activation))}, got {self.hidden} and {self.activation!r}."
            )
        read = []
        x = self._first(query, events)
        for layer, width in enumerate(self.hidden):
            if layer:
                shape = (x.shape[-1], width)
                x = project(x, self.param(f"kernel_{layer}", _normal(shape), shape))
            x = x + self.param(f"bias_{layer}", zeros(None), (width,)).astype(x.dtype)
            slope = self.param(f"slope_{layer}", _slopes(), (width,))
            if self.activation == "prelu":
                x = prelu(x, slope)
                continue
            read.append(moments[layer] if moments else masked_moments(x, allowed))
            x = dice(x, slope, read[-1])
        shape = (self.hidden[-1], 1)
        weight = self.param("weight", _normal(shape), shape)
        bias = self.param("weight_bias", zeros(None), (1,))
        return (project(x, weight) + bias.astype(x.dtype))[..., 0], tuple(read)

    def _first(self, query: Array, events: Array) -> Array:
        shape = (query.shape[-1], self.hidden[0])
        kernels = {
            name: self.param(name, _normal(shape), shape) for name in ("query", "event", "product")
        }
        products = query[:, :, None] * events
        x = project(products, kernels["product"]) + project(events, kernels["event"])
        return x + project(query, kernels["query"])[:, :, None]


class TargetAttention(nn.Module):
    """SIM's exact search: multi-head attention of candidates over events, shares that sum to 1.

    Args of `__call__`:
        query: vectors of the candidates `[b c d]`.
        events: `[b g t d]`.
        allowed: `[b c t]`.
        bias: added to the scores, `[b c t h]`, or None.

    Returns:
        `[b c d]`, 0 for a candidate that sees no event.

    Raises:
        ValueError: heads do not divide the width.
    """

    heads: int

    @nn.compact
    def __call__(
        self, query: Array, events: Array, allowed: Array, bias: Array | None = None
    ) -> Array:
        width = query.shape[-1]
        if width % self.heads:
            raise ValueError(f"width={width} does not divide into heads={self.heads}.")
        wide = (width, self.heads, width // self.heads)
        q, k, v = (
            project(x, self.param(name, normal(width**-0.5, "embed", "heads", None), wide))
            for name, x in (("query", query), ("key", events), ("value", events))
        )
        back = normal(width**-0.5, "heads", None, "embed")
        output = self.param("output", back, (*wide[1:], width))
        mixed = attend_to_events(q, k, v, allowed, bias)
        return project(mixed.reshape(query.shape), output.reshape(-1, width))


def attend_to_events(
    q: Float[Array, "b c h d"],
    k: Float[Array, "b g t h d"],
    v: Float[Array, "b g t h d"],
    allowed: Bool[Array, "b c t"],
    bias: Float[Array, "b c t h"] | None = None,
) -> Float[Array, "b c h d"]:
    """Attention of candidates over events that they share (`g = 1`) or that are their own."""
    (rows, candidates, *head), groups, time = q.shape, k.shape[1], k.shape[2]

    def fold(x: Array) -> Array:
        """Groups become rows, so that each attends to its own events."""
        return x.reshape(rows * groups, candidates // groups, *x.shape[2:])

    keys, values = (x.reshape(rows * groups, time, *head) for x in (k, v))
    mask = fold(allowed)[:, None]
    bias = None if bias is None else jnp.moveaxis(fold(bias), -1, 1)
    return attention(fold(q), keys, values, mask=mask, bias=bias).reshape(q.shape)


def _normal(shape: tuple[int, ...]):
    return normal(shape[0] ** -0.5, "embed", None)


def _slopes():
    return nn.with_logical_partitioning(nn.initializers.constant(PRELU_SLOPE), (None,))
