"""LETTER's two regularizers: codes that know behaviour, and codewords that keep apart.

Wang et al., "Learnable item tokenization for generative recommendation" (arXiv:2405.07314,
METHODS T12). Its tokenizer is an RQ-VAE of the LC-Rec family with

    RqVae(regularizers=(LetterCollaborative(0.01), LetterDiversity(1e-4)))
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, PRNGKeyArray

from jaxrec.tokenization.kmeans import lloyd, start_plus_plus
from jaxrec.tokenization.quantizer import Aux
from jaxrec.tokenization.regularizers import Seen, behaviour_of
from jaxrec.tokenization.vector_quantization import look_up, squared_distances
from jaxrec.types import PyTree

_CLUSTER_ITERATIONS = 10


def collaborative_loss(
    summed: Float[Array, "b d"],
    behaviour: Float[Array, "b d"],
    has_behaviour: Bool[Array, " b"],
    rows: Int[Array, " b"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum over rows i of -log softmax_j(zhat_i . h_j)[i], and the number of rows.

    Inner products without a temperature, as published.

    Args:
        summed: zhat, sums of codewords.
        behaviour: h, vectors of the same width.
        has_behaviour: the others are neither rows nor negatives.
        rows: which rows of the catalogue they are; the same one is no negative of itself.
    """
    logits = jnp.dot(summed, behaviour.T, precision=jax.lax.Precision.HIGHEST)
    is_same = (rows[:, None] == rows[None, :]) & ~jnp.eye(len(rows), dtype=bool)
    logits = jnp.where(is_same | ~has_behaviour[None, :], -jnp.inf, logits)
    # Rows without behaviour have no column of their own: a 0 keeps their slope finite.
    logits = jnp.where(has_behaviour[:, None], logits, 0.0)
    losses = jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits)
    weight = has_behaviour.astype(jnp.float32)
    return jnp.sum(losses * weight), jnp.sum(weight)


@dataclasses.dataclass(frozen=True)
class LetterCollaborative:
    """L_CF: the quantized vector of an item finds the item's vector of behaviour in the batch.

    Where the behaviour is not as wide as the latent vectors, a linear map of it is trained as well.
    (LETTER gives both 32 numbers.) Items without behaviour are left out.
    """

    weight: float = 0.01
    """Published script; its text reports the best results near .02."""

    schema_version: ClassVar[int] = 1

    @property
    def reads(self) -> tuple[str, ...]:
        """Vectors of behaviour, and which rows have one."""
        return ("collaborative", "has_behaviour")

    def start(
        self,
        key: PRNGKeyArray,
        aux: Aux,
        weights: Float[Array, " n"],
        codebooks: tuple[Float[Array, "_ d"], ...],
    ) -> tuple[PyTree, PyTree]:
        """A random map of variance 1 / c where widths differ; remembers the behaviour."""
        behaviour, known = behaviour_of(aux, weights)
        wide, latent = behaviour.shape[1], codebooks[0].shape[1]
        if wide == latent:
            return (), (behaviour, known)
        return jax.random.normal(key, (wide, latent)) * wide**-0.5, (behaviour, known)

    def renew(
        self,
        memory: PyTree,
        step: Int[Array, ""],
        key: PRNGKeyArray,
        codebooks: tuple[Float[Array, "_ d"], ...],
    ) -> PyTree:
        """As it is."""
        del step, key, codebooks
        return memory

    def loss(self, head: PyTree, memory: PyTree, seen: Seen, key: PRNGKeyArray) -> Float[Array, ""]:
        """`collaborative_loss` per row that has behaviour."""
        del key
        behaviour, known = memory[0][seen.rows], memory[1][seen.rows]
        if isinstance(head, jax.Array):
            behaviour = jnp.dot(behaviour, head, precision=jax.lax.Precision.HIGHEST)
        total, count = collaborative_loss(seen.summed, behaviour, known, seen.rows)
        return total / jnp.maximum(count, 1.0)


def cluster_codewords(
    key: PRNGKeyArray, codebook: Float[Array, "k d"], clusters: int
) -> Int32[Array, " k"]:
    """Groups of near codewords, none larger than k / clusters, rounded up: Int32[k].

    LETTER bounds the sizes inside k-means. Here k-means runs free; then the codewords that would
    lose most by their second choice take the nearest centroid with room first.

    Args:
        key: of the start of k-means.
        codebook: of one level.
        clusters: fewer where they would have less than two codewords each.
    """
    k = codebook.shape[0]
    clusters = min(clusters, max(1, k // 2))
    centroids = start_plus_plus(key, codebook, jnp.ones(k), clusters)
    centroids = lloyd(codebook, centroids, iterations=_CLUSTER_ITERATIONS).centroids
    costs = squared_distances(codebook, centroids)
    ranked = jnp.sort(costs, axis=1)
    order = jnp.argsort(ranked[:, 0] - ranked[:, min(1, clusters - 1)], stable=True)

    def place(room: Array, codeword: Array) -> tuple[Array, Array]:
        group = jnp.argmin(jnp.where(room > 0, costs[codeword], jnp.inf))
        return room.at[group].add(-1), group

    _, groups = jax.lax.scan(place, jnp.full(clusters, -(-k // clusters)), order)
    return jnp.zeros(k, jnp.int32).at[order].set(groups.astype(jnp.int32))


def draw_positives(
    key: PRNGKeyArray, groups: Int32[Array, " k"], codes: Int32[Array, " b"]
) -> tuple[Int32[Array, " b"], Bool[Array, " b"]]:
    """For every code another one of its group, each equally likely, and whether there is one.

    Alone in its group a code gets itself, and False.
    """
    order = jnp.argsort(groups, stable=True)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(groups.shape[0]))
    sizes = jnp.bincount(groups, length=groups.shape[0])
    first = jnp.cumsum(sizes) - sizes
    size, start = sizes[groups[codes]], first[groups[codes]]
    # A step of 1 .. size - 1 around the members of the group.
    step = 1 + jax.random.randint(key, codes.shape, 0, jnp.maximum(size - 1, 1))
    other = order[start + (place[codes] - start + step) % size]
    return other.astype(jnp.int32), size > 1


def diversity_loss(
    codebook: Float[Array, "k d"],
    codes: Int32[Array, " b"],
    positives: Int32[Array, " b"],
    has_positive: Bool[Array, " b"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of -log softmax_{j != c}(e_c . e_j)[positive] over the chosen codes c, and their number.

    Args:
        codebook: of one level.
        codes: what the rows of the batch have there.
        positives: another code for each.
        has_positive: rows without one count for nothing.
    """
    chosen = look_up(codebook, codes)
    logits = jnp.dot(chosen, codebook.T, precision=jax.lax.Precision.HIGHEST)
    is_self = codes[:, None] == jnp.arange(codebook.shape[0])
    # The positive of a row without one is itself; its column stays, so that no infinity arises.
    logits = jnp.where(is_self & has_positive[:, None], -jnp.inf, logits)
    own = jnp.take_along_axis(logits, positives[:, None], 1)[:, 0]
    losses = jax.nn.logsumexp(logits, axis=1) - own
    return jnp.sum(jnp.where(has_positive, losses, 0.0)), jnp.sum(has_positive, dtype=jnp.float32)


@dataclasses.dataclass(frozen=True)
class LetterDiversity:
    """L_Div: a codeword is nearer to another of its group than to the rest, level by level.

    It restores the codes of the first level that L_CF leaves unused. It moves codebooks by their
    gradient, so it does nothing where they follow moving averages.

    Raises:
        ValueError: fewer than two clusters, or `every` below 1.
    """

    weight: float = 1e-4
    clusters: int = 10
    """Groups of a level's codewords, see `cluster_codewords`."""
    every: int = 50
    """Updates between two groupings (LETTER: an epoch)."""

    schema_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.clusters < 2 or self.every < 1:
            raise ValueError(
                f"LetterDiversity needs clusters >= 2 and every >= 1, got {self.clusters} and "
                f"{self.every}."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def start(
        self,
        key: PRNGKeyArray,
        aux: Aux,
        weights: Float[Array, " n"],
        codebooks: tuple[Float[Array, "_ d"], ...],
    ) -> tuple[PyTree, PyTree]:
        """Remembers the group of every code; the first update makes the groups."""
        del key, aux, weights
        return (), tuple(jnp.zeros(book.shape[0], jnp.int32) for book in codebooks)

    def renew(
        self,
        memory: PyTree,
        step: Int[Array, ""],
        key: PRNGKeyArray,
        codebooks: tuple[Float[Array, "_ d"], ...],
    ) -> PyTree:
        """New groups every so many updates."""

        def group(books: tuple[Array, ...]) -> tuple[Array, ...]:
            make = partial(cluster_codewords, clusters=self.clusters)
            return tuple(make(jax.random.fold_in(key, l), book) for l, book in enumerate(books))

        return jax.lax.cond(step % self.every == 0, group, lambda _: memory, codebooks)

    def loss(self, head: PyTree, memory: PyTree, seen: Seen, key: PRNGKeyArray) -> Float[Array, ""]:
        """Mean over levels of `diversity_loss` per row."""
        del head
        means = []
        for level, (book, groups) in enumerate(zip(seen.codebooks, memory)):
            codes = seen.quantized.codes[:, level]
            drawn = draw_positives(jax.random.fold_in(key, level), groups, codes)
            total, count = diversity_loss(book, codes, *drawn)
            means.append(total / jnp.maximum(count, 1.0))
        return jnp.mean(jnp.stack(means))
