"""LightGCN: vectors of users and items, smoothed over the graph of who had what (METHODS R4).

    E_{k+1} = D^(-1/2) A D^(-1/2) E_k;    E = (E_0 + ... + E_K) / (K + 1)
    loss = -log sigma(e_u . e_i - e_u . e_j) + r / 2 (|e0_u|^2 + |e0_i|^2 + |e0_j|^2)

with an event (u, i) and an item j that u never had (He et al., arXiv:2002.02126; the loss is BPR,
Rendle et al., arXiv:1205.2618). The smoothing is linear and symmetric, so its gradient is the same
smoothing: both are sums over edges sorted by where they end.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray

from jaxrec.objectives.item_pairwise import pairwise_losses
from jaxrec.representation.descent import descend, stretches
from jaxrec.representation.encoder import (
    Encoding,
    TrainingSequences,
    check_events,
    encode_behaviour,
    interactions,
    keep_known,
)
from jaxrec.representation.text import Table
from jaxrec.training.optimizers import AdamW, Optimizer


class Graph(NamedTuple):
    """Who had what, each pair once. Nodes are the users, then the items."""

    user: Int32[Array, " e"]
    """User of each pair, rising."""
    item: Int32[Array, " e"]
    """Item of each pair, rising within a user."""
    start: Int32[Array, " boundaries"]
    """First pair of each user, then their number."""
    absent_before: Int32[Array, " e"]
    """Items before this one that its user never had."""
    source: Int32[Array, " edges"]
    """Node where each directed edge begins."""
    target: Int32[Array, " edges"]
    """Node where it ends, rising."""
    weight: Float[Array, " edges"]
    """1 / sqrt(degree of source x degree of target)."""


def build_graph(sequences: TrainingSequences, items: int) -> Graph:
    """The graph of training events; how often somebody had an item does not count."""
    pairs = interactions(sequences, items)
    users = pairs.shape[0]
    degree = np.diff(pairs.indptr)
    user = np.repeat(np.arange(users), degree)
    item = pairs.indices.astype(np.int64)
    source, target = np.concatenate([user, users + item]), np.concatenate([users + item, user])
    order = np.lexsort((source, target))
    source, target = source[order], target[order]
    degrees = np.bincount(target, minlength=users + items).astype(np.float64)
    weight = 1.0 / np.sqrt(degrees[source] * degrees[target])
    rank = np.arange(len(user)) - pairs.indptr[user]
    counts = [user, item, pairs.indptr, item - rank, source, target]
    return Graph(*(jnp.asarray(each, jnp.int32) for each in counts), jnp.asarray(weight, "float32"))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def smooth(vectors: Float[Array, "m d"], graph: Graph, layers: int) -> Float[Array, "m d"]:
    """Mean of the vectors after 0 .. `layers` rounds; 0 rounds change nothing.

    Every node sums over its edges in their order, so equal calls give equal bits where sums of
    sorted segments do (on a CPU always).
    """
    total = vectors
    for _ in range(layers):
        along = vectors[graph.source] * graph.weight[:, None]
        vectors = jax.ops.segment_sum(
            along, graph.target, vectors.shape[0], indices_are_sorted=True
        )
        total = total + vectors
    return total / (layers + 1)


def _smooth_forward(vectors: Array, graph: Graph, layers: int) -> tuple[Array, Graph]:
    return smooth(vectors, graph, layers), graph


def _smooth_backward(layers: int, graph: Graph, slope: Array) -> tuple[Array, None]:
    return smooth(slope, graph, layers), None


smooth.defvjp(_smooth_forward, _smooth_backward)


def draw_triples(
    graph: Graph, key: PRNGKeyArray, count: int, items: int
) -> tuple[Int32[Array, " b"], Int32[Array, " b"], Int32[Array, " b"], Bool[Array, " b"]]:
    """Pairs drawn evenly, each with an item drawn evenly among those its user never had.

    Returns:
        Users, items they had, items they never had, and whether there is such an item at all.
    """
    pair_key, absent_key = jax.random.split(key)
    pair = jax.random.randint(pair_key, (count,), 0, graph.user.shape[0])
    user = graph.user[pair]
    absent = items - (graph.start[user + 1] - graph.start[user])
    rank = jax.random.randint(absent_key, (count,), 0, jnp.maximum(absent, 1))
    return user, graph.item[pair], find_absent(graph, user, rank), absent > 0


def find_absent(
    graph: Graph, user: Int32[Array, " b"], rank: Int32[Array, " b"]
) -> Int32[Array, " b"]:
    """The item of this rank (from 0) among those that the user never had, by bisection."""
    first = graph.start[user]

    def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) // 2
        is_before = (low < high) & (graph.absent_before[middle] <= rank)
        return jnp.where(is_before, middle + 1, low), jnp.where(is_before, high, middle)

    rounds = graph.user.shape[0].bit_length()
    low, _ = jax.lax.fori_loop(0, rounds, halve, (first, graph.start[user + 1]))
    # As many items that the user had stand before it as the bisection went past.
    return rank + low - first


@dataclasses.dataclass(frozen=True)
class LightGcn:
    """Item vectors of LightGCN, learnt from training events alone.

    Items that nobody had in training take no part, and get the constant vector.

    Raises:
        ValueError: a number out of range; in `encode`, no training events, or a loss that is no
            longer finite.
    """

    dimension: int = 64
    """Width of the vectors."""
    layers: int = 3
    """Rounds of smoothing; 0 is matrix factorisation."""
    regularisation: float = 1e-4
    """Of the vectors before smoothing."""
    initial_scale: float = 0.1
    """Standard deviation of the vectors at the start."""
    batch: int = 4096
    """Pairs of a step."""
    steps: int = 500
    """Updates, each over the whole graph."""
    optimizer: Optimizer = AdamW(
        learning_rate=0.01, warmup_steps=0, schedule="constant", weight_decay=0.0, clip_norm=0.0
    )
    """By default Adam with the rate standing still, as published; the published rate is .001."""

    schema_version: ClassVar[int] = 1
    reads_text: ClassVar[bool] = False
    surrogate: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if min(self.dimension, self.batch, self.steps) < 1 or self.layers < 0:
            raise ValueError(
                "LightGcn needs dimension, batch and steps >= 1 and layers >= 0, got "
                f"{self.dimension}, {self.batch}, {self.steps} and {self.layers}."
            )
        if self.regularisation < 0 or self.initial_scale <= 0:
            raise ValueError(
                "LightGcn needs regularisation >= 0 and initial_scale > 0, got "
                f"{self.regularisation} and {self.initial_scale}."
            )

    def encode(self, texts: list[str], **given: Any) -> np.ndarray:
        """Vectors of all items, float32[n, dimension]; arguments as `encode_with_facts`."""
        return self.encode_with_facts(texts, **given).vectors

    def encode_with_facts(
        self,
        texts: list[str],
        *,
        table: Table,
        fit_mask: np.ndarray,
        seed: int,
        sequences: TrainingSequences | None = None,
    ) -> Encoding:
        """Vectors of all items, which have no behaviour, and the course of the loss."""
        del texts, table
        events, known = keep_known(check_events("LightGcn", sequences), len(fit_mask))
        graph = build_graph(events, int(known.sum()))
        start_key, train_key = jax.random.split(jax.random.key(seed))
        nodes = len(graph.start) - 1 + int(known.sum())
        start = jax.random.normal(start_key, (nodes, self.dimension)) * self.initial_scale
        vectors, losses = descend(self, start, graph, train_key)
        smoothed = smooth(vectors, graph, self.layers)[len(graph.start) - 1 :]
        return encode_behaviour(np.asarray(smoothed), known, {"fit_loss": stretches(losses)})

    def loss(self, params: Float[Array, "m d"], data: Graph, key: PRNGKeyArray) -> Float[Array, ""]:
        """Mean loss of a batch of drawn triples; params are the vectors before smoothing."""
        users = data.start.shape[0] - 1
        user, item, absent, counts = draw_triples(data, key, self.batch, params.shape[0] - users)
        rows = jnp.stack([user, users + item, users + absent])
        mine, had, other = smooth(params, data, self.layers)[rows]
        ranked = pairwise_losses(
            jnp.sum(mine * had, -1), jnp.sum(mine * other, -1)[:, None], counts[:, None], "bpr"
        )
        size = 0.5 * jnp.sum(jnp.square(params[rows]), (0, 2))
        return jnp.sum(ranked + self.regularisation * size * counts) / jnp.maximum(
            jnp.sum(counts), 1
        )
