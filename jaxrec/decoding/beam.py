"""Beam search over the catalogue's trie (METHODS D1, D2, D15).

The history is prefilled once, before this file; beams are reordered by index and never tiled. Every
step is one flat top-k over beams x children that exist, so a beam that names no item cannot arise.
The search has static shapes: depth d keeps `min(width, prefixes of d codes)` beams, the first
levels (where that number still grows) are unrolled, all later ones are one `lax.scan`.

Order. Inside the search, equal scores go to the lower (beam, code). The final list is sorted by
score, then by the lowest id (see `order_leaves`), so that a search wide enough to be exhaustive
returns exactly the list of `ExactScoring`.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jaxrec.decoding.catalogue import Catalogue
from jaxrec.decoding.expansion import LOWEST, expand_leaves, order_leaves
from jaxrec.decoding.filters import Filters, PreparedFilters, live_children, prepare_filters
from jaxrec.decoding.interface import (
    Level,
    Mask,
    StepFunctions,
    call_step,
    check_mask,
    check_positive,
)
from jaxrec.decoding.ranking import top_k
from jaxrec.types import PyTree, Ranked


class Beams(NamedTuple):
    """Prefixes under way, best first."""

    node: Int32[Array, "b w"]
    """Node of each prefix; -1 where there is no beam."""
    score: Float[Array, "b w"]
    """Sum of log-probabilities, float32; -inf where there is no beam."""
    code: Int32[Array, "b w"]
    """Code chosen last."""
    parent: Int32[Array, "b w"]
    """Beam of the step before that this one continues."""


def normaliser(
    logits: Float[Array, "b w k"], child: Int32[Array, "a w k"] | None, mask: Mask
) -> Float[Array, "b w"]:
    """Log of the mass that each beam's codes share: `log p = logits - normaliser`.

    Args:
        child: children that exist (-1: none), read by `before_softmax` only. Its first axis is b,
            or 1 where all rows look at the same nodes.
        mask: see `Mask`.
    """
    if mask == "before_softmax":
        assert child is not None
        logits = jnp.where(child >= 0, logits, -jnp.inf)
    return jax.nn.logsumexp(logits, axis=-1)


def advance(
    functions: StepFunctions,
    catalogue: Catalogue,
    filters: PreparedFilters,
    beams: Beams,
    cache: PyTree,
    level: Level,
    *,
    width: int,
    mask: Mask,
) -> tuple[Beams, PyTree]:
    """One level: scores the children of every beam and keeps the best `width` of all of them."""
    logits, cache = call_step(
        functions, cache, beams.code, beams.parent, level, catalogue.space.width
    )
    child = live_children(catalogue, filters, beams.node, level)
    shift = beams.score - normaliser(logits, child, mask)
    total = jnp.maximum(logits + shift[..., None], LOWEST)
    total = jnp.where(child >= 0, total, -jnp.inf)
    rows, _, slots = child.shape
    score, index = top_k(total.reshape(rows, -1), width)
    node = jnp.take_along_axis(child.reshape(rows, -1), index, axis=1)
    code = catalogue.code[jnp.maximum(node, 0)]
    return Beams(node, score, code, index // slots), cache


def beam_widths(catalogue: Catalogue, width: int) -> tuple[int, ...]:
    """Beams kept at each depth, root included: no depth has more beams than prefixes."""
    return tuple(min(width, nodes) for nodes in catalogue.nodes)


def beam_search(
    functions: StepFunctions,
    catalogue: Catalogue,
    filters: Filters | PreparedFilters | None = None,
    *,
    width: int = 50,
    k: int = 50,
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
        mask: how illegal codes count (`Mask`).
        unroll: run the levels as separate steps instead of a scan; the result is the same.

    Raises:
        ValueError: a number below 1, an unknown mode, or shapes that do not fit each other.
    """
    check_positive(width=width, k=k)
    check_mask(mask)
    live = prepare_filters(catalogue, filters, functions.batch)
    widths = beam_widths(catalogue, width)
    root = jnp.zeros((functions.batch, 1), jnp.int32)
    beams = Beams(root, root.astype(jnp.float32), root, root)
    cache = functions.cache
    first = catalogue.levels if unroll else _first_scanned(widths)

    def one(beams: Beams, cache: PyTree, level: Level, kept: int) -> tuple[Beams, PyTree]:
        return advance(functions, catalogue, live, beams, cache, level, width=kept, mask=mask)

    for level in range(first):
        beams, cache = one(beams, cache, level, widths[level + 1])
    if first < catalogue.levels:
        (beams, _), _ = jax.lax.scan(
            lambda state, level: (one(*state, level, widths[-1]), None),
            (beams, cache),
            jnp.arange(first, catalogue.levels, dtype=jnp.int32),
        )
    leaf, score = order_leaves(catalogue, beams.node, beams.score)
    return expand_leaves(catalogue, live, leaf, score, k)


def _first_scanned(widths: tuple[int, ...]) -> int:
    """First level from which beams and cache keep their width.

    The step of level d meets a cache of `widths[d - 1]` beams, so that width must be final too;
    level 0 has the root's cache and a static level number.
    """
    levels = len(widths) - 1
    return next((d for d in range(2, levels) if widths[d - 1] == widths[-1]), levels)


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

    def __post_init__(self) -> None:
        check_positive(width=self.width, k=self.k)
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
            functions, catalogue, filters, width=self.width, k=self.k, mask=self.mask
        )
