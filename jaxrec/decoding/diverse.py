"""Diverse beam search: groups of beams that avoid each other's codes (METHODS D3).

Vijayakumar et al. 2018 (arXiv:1610.02424). At every level the groups choose one after another, and
a code loses `penalty` for every beam of an earlier group that has just taken it. Here the penalty
steers the choice alone: scores stay log-probabilities, and what an earlier level cost is not
carried on (Hugging Face adds it up). Groups may find the same item; the answer names it once.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jaxrec.decoding.beam import Beams, normaliser
from jaxrec.decoding.catalogue import Catalogue
from jaxrec.decoding.children import Children, child_at, live_children
from jaxrec.decoding.expansion import expand_leaves, order_leaves
from jaxrec.decoding.filters import Filters, PreparedFilters, prepare_filters
from jaxrec.decoding.interface import (
    Mask,
    StepFunctions,
    call_step,
    check_mask,
    check_positive,
)
from jaxrec.decoding.ranking import LOWEST, top_k
from jaxrec.types import Ranked


def diverse_beams(
    functions: StepFunctions,
    catalogue: Catalogue,
    filters: Filters | PreparedFilters | None = None,
    *,
    width: int = 10,
    groups: int = 5,
    penalty: float = 1.0,
    k: int = 50,
    mask: Mask = "after_softmax",
) -> Ranked:
    """The k best items that `groups` groups of `width` beams find; each item once.

    With one group, or no penalty, the list of a beam search of that width.

    Args:
        functions: a model bound to a batch of histories.
        catalogue: the index of the items.
        filters: what may be returned; everything by default.
        width: beams of a group.
        groups: groups, which choose one after another.
        penalty: what a code loses, in nats, for every beam of an earlier group that has taken it at
            the same level.
        k: items per row.
        mask: how illegal codes count (`Mask`).

    Raises:
        ValueError: a number below 1, a negative penalty, an unknown mode, or shapes that do not fit
            each other.
    """
    check_diversity(width, groups, penalty, k)
    check_mask(mask)
    live = prepare_filters(catalogue, filters, functions.batch)
    root = jnp.zeros((functions.batch, 1), jnp.int32)
    beams, cache = Beams(root, root.astype(jnp.float32), root, root), functions.cache
    for level in range(catalogue.levels):
        logits, cache = call_step(
            functions, cache, beams.code, beams.parent, level, catalogue.space.width
        )
        children = live_children(catalogue, live, beams.node, level, distinct=False)
        shift = beams.score - normaliser(logits, children, mask)
        total = jnp.maximum(children.pick(logits) + shift[..., None], LOWEST)
        total = jnp.where(children.exists, total, -jnp.inf)
        kept = min(width, catalogue.shape.nodes[level + 1])
        beams = _choose(catalogue, beams, children, total, level, groups, kept, penalty)
    leaf, score = _each_once(*order_leaves(catalogue, beams.node, beams.score))
    return expand_leaves(catalogue, live, leaf, score, k)


def _choose(
    catalogue: Catalogue,
    beams: Beams,
    children: Children,
    total: Float[Array, "b w c"],
    level: int,
    groups: int,
    kept: int,
    penalty: float,
) -> Beams:
    """The choice of every group in turn; beams of a group stand together."""
    rows, width, places = total.shape
    code = children.code
    if code is None:
        code = jnp.broadcast_to(jnp.arange(places, dtype=jnp.int32), total.shape)
    mine = width if level == 0 else width // groups
    taken = jnp.zeros((rows, catalogue.space.width), jnp.float32)
    chosen = []
    for group in range(groups):
        first = 0 if level == 0 else group * mine
        score = total[:, first : first + mine].reshape(rows, -1)
        codes = code[:, first : first + mine].reshape(rows, -1)
        cost = penalty * jnp.take_along_axis(taken, codes, axis=1)
        # Also a penalised child is above a place where there is none.
        steered = jnp.where(score > -jnp.inf, jnp.maximum(score - cost, LOWEST), -jnp.inf)
        _, index = top_k(steered, min(kept, mine * places))
        picked = Beams(
            first + index // places,  # the node follows, when all groups have chosen
            jnp.take_along_axis(score, index, axis=1),
            jnp.take_along_axis(codes, index, axis=1),
            index % places,
        )
        counted = (picked.score > -jnp.inf).astype(jnp.float32)
        taken = jax.vmap(lambda row, at, one: row.at[at].add(one))(taken, picked.code, counted)
        chosen.append(picked)
    parent, score, picked_code, place = (
        jnp.concatenate(parts, axis=1) for parts in zip(*chosen, strict=True)
    )
    node = child_at(catalogue, level, jnp.take_along_axis(beams.node, parent, axis=1), place)
    return Beams(jnp.where(score > -jnp.inf, node, -1), score, picked_code, parent)


def _each_once(
    leaf: Int32[Array, "b w"], score: Float[Array, "b w"]
) -> tuple[Int32[Array, "b w"], Float[Array, "b w"]]:
    """Ordered leaves, which stand beside their repetitions, with each once; -1 fills up."""
    repeated = jnp.zeros_like(leaf, bool).at[:, 1:].set(leaf[:, 1:] == leaf[:, :-1])
    gone = repeated | (leaf < 0)
    _, leaf, score = jax.lax.sort(
        (gone, jnp.where(gone, -1, leaf), jnp.where(gone, -jnp.inf, score)),
        dimension=1,
        num_keys=1,
        is_stable=True,
    )
    return leaf, score


def check_diversity(width: int, groups: int, penalty: float, k: int) -> None:
    """Refuses numbers that make no search.

    Raises:
        ValueError: a number below 1, or a negative penalty.
    """
    check_positive(width=width, groups=groups, k=k)
    if penalty < 0:
        raise ValueError(f"penalty={penalty} would reward repetition; use penalty >= 0.")


@dataclasses.dataclass(frozen=True)
class DiverseBeams:
    """Diverse beam search as a component of a recipe. See `diverse_beams`.

    Raises:
        ValueError: a number below 1, a negative penalty or an unknown mode.
    """

    width: int = 10
    """Beams of a group."""
    groups: int = 5
    """Groups, which choose one after another."""
    penalty: float = 1.0
    """Nats that a code loses for every beam of an earlier group that has taken it."""
    k: int = 50
    """Items per row."""
    mask: Mask = "after_softmax"
    """How illegal codes count in the probabilities."""

    def __post_init__(self) -> None:
        check_diversity(self.width, self.groups, self.penalty, self.k)
        check_mask(self.mask)

    def __call__(
        self,
        functions: StepFunctions,
        catalogue: Catalogue,
        filters: Filters | PreparedFilters | None = None,
        key: jax.Array | None = None,
    ) -> Ranked:
        """Decodes a batch. `key` is not used: the search has no chance in it."""
        del key
        return diverse_beams(
            functions,
            catalogue,
            filters,
            width=self.width,
            groups=self.groups,
            penalty=self.penalty,
            k=self.k,
            mask=self.mask,
        )
