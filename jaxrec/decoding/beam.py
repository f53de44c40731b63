"""Beam search over the catalogue's trie (METHODS D1, D2, D15).

The history is prefilled once, before this file; beams are reordered by index and never tiled. Every
step is one flat top-k over beams x children that exist, so a beam that names no item cannot arise.
The search has static shapes: depth d keeps `min(width, prefixes of d codes)` beams. Levels at which
prefixes branch are unrolled; below them, where every prefix has one child, nothing is selected any
more and all levels are one `lax.scan`.

Order. Inside the search, equal scores go to the lower (beam, code). The final list is sorted by
score, then by the lowest id (see `order_leaves`), so that a search wide enough to be exhaustive
returns exactly the list of `ExactScoring`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jaxrec.decoding.catalogue import Catalogue, code_offset, whole_blocks
from jaxrec.decoding.children import Children, live_children
from jaxrec.decoding.crowd import Crowd, crowd_pays, live_crowd
from jaxrec.decoding.expansion import expand_leaves, order_leaves
from jaxrec.decoding.filters import Filters, PreparedFilters, prepare_filters
from jaxrec.decoding.interface import (
    Level,
    Mask,
    StepFunctions,
    call_step,
    check_mask,
    check_positive,
)
from jaxrec.decoding.ranking import LOWEST, log_mass
from jaxrec.types import PyTree, Ranked


class Beams(NamedTuple):
    """Prefixes under way."""

    node: Int32[Array, "b w"]
    """Node of each prefix; -1 where there is no beam."""
    score: Float[Array, "b w"]
    """Sum of log-probabilities, float32; -inf where there is no beam."""
    code: Int32[Array, "b w"]
    """Code chosen last."""
    parent: Int32[Array, "b w"]
    """Beam of the step before that this one continues."""


def normaliser(
    logits: Float[Array, "b w k"], children: Children | Crowd, mask: Mask
) -> Float[Array, "b w"]:
    """Log of the mass that each beam's codes share: `log p = logits - normaliser`.

    0 in the mode `as_given`.

    Args:
        children: of the beams, read by `before_softmax` only.
        mask: see `Mask`.
    """
    if mask == "as_given":
        return jnp.zeros(logits.shape[:2], logits.dtype)
    return children.log_mass(logits) if mask == "before_softmax" else log_mass(logits)


def advance(
    functions: StepFunctions,
    catalogue: Catalogue,
    filters: PreparedFilters,
    beams: Beams,
    cache: PyTree,
    level: int,
    *,
    width: int,
    mask: Mask,
) -> tuple[Beams, PyTree]:
    """One level: scores the children of every beam and keeps the best `width` of all of them."""
    logits, cache = call_step(
        functions, cache, beams.code, beams.parent, level, catalogue.space.width
    )
    if crowd_pays(catalogue, level, beams.node.shape[1]):
        children = live_crowd(catalogue, filters, beams.node, level)
    else:
        children = live_children(catalogue, filters, beams.node, level)
    return best_children(catalogue, beams, logits, children, level, width=width, mask=mask), cache


def best_children(
    catalogue: Catalogue,
    beams: Beams,
    logits: Float[Array, "b w k"],
    children: Children | Crowd,
    level: int,
    *,
    width: int,
    mask: Mask,
) -> Beams:
    """The best `width` of all children of all beams of a row."""
    shift = beams.score - normaliser(logits, children, mask)
    score, parent, node, code = children.best(catalogue, level, beams.node, logits, shift, width)
    return Beams(jnp.where(score > -jnp.inf, node, -1), score, code, parent)


def follow_chain(
    functions: StepFunctions,
    catalogue: Catalogue,
    beams: Beams,
    cache: PyTree,
    first: int,
    level: Level,
    mask: Mask,
) -> tuple[Beams, PyTree]:
    """One level of a chain: every beam goes on to its one child, so there is nothing to select.

    Args:
        first: first level of the chain, to whose end it goes on; `level` may be traced.
    """
    logits, cache = call_step(
        functions, cache, beams.code, beams.parent, level, catalogue.space.width
    )
    stay = jnp.broadcast_to(jnp.arange(beams.node.shape[1], dtype=jnp.int32), beams.node.shape)
    place = code_offset(catalogue, first + 1) + (level - first) * whole_blocks(
        catalogue.shape.nodes[first]
    )
    code = catalogue.code[place + jnp.maximum(beams.node, 0)].astype(jnp.int32)
    score = beams.score
    if mask != "before_softmax":  # where the one child has all the mass
        gained = jnp.take_along_axis(logits, code[..., None], axis=-1)[..., 0]
        if mask == "after_softmax":
            gained -= log_mass(logits)
        score = jnp.where(score > -jnp.inf, jnp.maximum(score + gained, LOWEST), score)
    return Beams(beams.node, score, code, stay), cache


def beam_widths(catalogue: Catalogue, width: int, schedule: Sequence[int] = ()) -> tuple[int, ...]:
    """Beams kept at each depth, root included: no depth has more beams than prefixes.

    Args:
        width: beams where the schedule says nothing.
        schedule: beams after each level, the last number for all further levels.
    """
    last = schedule[-1] if schedule else width
    wanted = itertools.chain(schedule, itertools.repeat(last))
    return 1, *(min(nodes, wish) for nodes, wish in zip(catalogue.shape.nodes[1:], wanted))


def chain_start(catalogue: Catalogue) -> int:
    """First level, 1 or later, below which no prefix branches; `levels` where the last one does."""
    kinds = catalogue.shape.kinds
    branching = [level for level, kind in enumerate(kinds) if kind != "chain"]
    return max([0, *branching]) + 1


def beam_search(
    functions: StepFunctions,
    catalogue: Catalogue,
    filters: Filters | PreparedFilters | None = None,
    *,
    width: int = 50,
    k: int = 50,
    schedule: Sequence[int] = (),
    mask: Mask = "after_softmax",
    unroll: bool = False,
) -> Ranked:
    """The k best items that `width` beams find. Scores are log-probabilities, best first.

    Every item returned is in the catalogue, allowed, and returned once. Where fewer than k items
    are found, the rest is marked invalid. Equal to exhaustive search when `width` is at least the
    number of semantic IDs.

    Args:
        functions: a model bound to a batch of histories.
        catalogue: the index of the items.
        filters: what may be returned; everything by default.
        width: beams per row.
        k: items per row.
        schedule: beams after each level, instead of `width`, for example (10, 20, 40, 80); the last
            number holds for all further levels (METHODS D4).
        mask: how illegal codes count (`Mask`).
        unroll: run the levels as separate steps instead of a scan; the result is the same.

    Raises:
        ValueError: a number below 1, an unknown mode, or shapes that do not fit each other.
    """
    check_positive(width=width, k=k, schedule=min(schedule, default=1))
    check_mask(mask)
    live = prepare_filters(catalogue, filters, functions.batch)
    widths = beam_widths(catalogue, width, schedule)
    root = jnp.zeros((functions.batch, 1), jnp.int32)
    beams = Beams(root, root.astype(jnp.float32), root, root)
    cache = functions.cache
    chain = chain_start(catalogue)
    if unroll or min(widths[chain:]) < widths[chain]:  # a schedule may drop beams on the way
        chain = catalogue.levels
    for level in range(chain):
        beams, cache = advance(
            functions, catalogue, live, beams, cache, level, width=widths[level + 1], mask=mask
        )
    if chain < catalogue.levels:
        # The first step of the chain may still widen the model's cache; from then on all is fixed.
        beams, cache = follow_chain(functions, catalogue, beams, cache, chain, chain, mask)
        (beams, _), _ = jax.lax.scan(
            lambda state, level: (
                follow_chain(functions, catalogue, *state, chain, level, mask), None
            ),
            (beams, cache),
            jnp.arange(chain + 1, catalogue.levels, dtype=jnp.int32),
        )  # fmt: skip
    selected = chain == catalogue.levels  # the last level was: a chain selects nothing
    leaf, score = order_leaves(catalogue, beams.node, beams.score, falling=selected)
    return expand_leaves(catalogue, live, leaf, score, k)


@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """Constrained beam search as a component of a recipe. See `beam_search`.

    Raises:
        ValueError: a number below 1 or an unknown mode.
    """

    width: int = 50
    """Beams per row; an evaluation hyper-parameter: wider is slower and nearer to exact."""
    k: int = 50
    """Items per row."""
    mask: Mask = "after_softmax"
    """How illegal codes count in the probabilities."""
    schedule: tuple[int, ...] = ()
    """Beams after each level, instead of `width`; the last number holds for all further levels."""

    def __post_init__(self) -> None:
        check_positive(width=self.width, k=self.k, schedule=min(self.schedule, default=1))
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
        return beam_search(
            functions,
            catalogue,
            filters,
            width=self.width,
            k=self.k,
            schedule=self.schedule,
            mask=self.mask,
        )
