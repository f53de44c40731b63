"""Session beams: whole lists of items, written one after another (METHODS D5).

OneRec (Deng et al. 2025, arXiv:2502.18965) generates a session: the model writes m items, each
after those before it, and a beam is a list under way. Lists compete code by code: at every level
of every item the best `width` prefixes of lists are kept. An item does not come twice in a list
(the paper is silent on it), which works like a deny-list that grows with the list: no beam enters a
prefix whose items are all in its list already.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from jaxrec.decoding.beam import Beams, best_children
from jaxrec.decoding.catalogue import Catalogue, first_row
from jaxrec.decoding.children import Children, live_children
from jaxrec.decoding.expansion import nth_live_row
from jaxrec.decoding.filters import (
    Filters,
    PreparedFilters,
    deny,
    live_before,
    prepare_filters,
)
from jaxrec.decoding.interface import (
    Mask,
    StepFunctions,
    call_step,
    check_mask,
    check_positive,
)
from jaxrec.types import PyTree, Ranked


class RankedLists(NamedTuple):
    """Lists of items, the best first."""

    items: Int32[Array, "b k m"]
    """-1 behind the end of a list that ran out of items."""
    scores: Float[Array, "b k m"]
    """Log-probability of each list up to each item, falling; -inf where there is no item."""
    valid: Bool[Array, "b k m"]
    """Whether there is an item."""


class _Lists(NamedTuple):
    """Lists under way."""

    items: Int32[Array, "b w m"]
    scores: Float[Array, "b w m"]
    total: Float[Array, "b w"]
    """Log-probability; -inf where there is no list."""


def list_beams(
    functions: StepFunctions,
    catalogue: Catalogue,
    filters: Filters | PreparedFilters | None = None,
    *,
    length: int = 5,
    width: int = 10,
    k: int = 1,
    mask: Mask = "after_softmax",
) -> RankedLists:
    """The k best lists of `length` different items that `width` beams find.

    Where a request may get fewer than `length` items, its lists end early. Of items that share a
    semantic ID, the first that the request may get and that the list has not comes.

    Args:
        functions: a model bound to a batch of histories, with `extend`.
        catalogue: the index of the items.
        filters: what may be returned; everything by default.
        length: items a list.
        width: lists under way per row.
        k: lists per row; no more than `width` can be found.
        mask: how illegal codes count (`Mask`). With `before_softmax` what stands in the list counts
            as illegal, so that the probabilities of all lists sum to 1.

    Raises:
        ValueError: a number below 1, an unknown mode, a model that writes one item only, or shapes
            that do not fit each other.
    """
    check_positive(length=length, width=width, k=k)
    check_mask(mask)
    extend = functions.extend
    if extend is None and length > 1:
        raise ValueError(
            f"length={length}, but this generator writes one item and cannot go on from it; use "
            "one that has `extend` (Decoder), or BeamSearch for a list of single items."
        )
    live = prepare_filters(catalogue, filters, functions.batch)
    search = _Search(functions, catalogue, width, mask)
    empty = jnp.full((functions.batch, 1, length), -1, jnp.int32)
    lists = _Lists(empty, jnp.full(empty.shape, -jnp.inf), jnp.zeros(empty.shape[:2]))
    lists, cache, beams = search.add_item(lists, functions.cache, live, 0)
    if extend is not None and length > 1:

        def go_on(state: tuple, number: Array) -> tuple[tuple, None]:
            lists, cache, beams = state
            written = jax.lax.dynamic_index_in_dim(lists.items, number - 1, 2, keepdims=False)
            cache = extend(cache, beams.code, beams.parent, jnp.maximum(written, 0))
            return search.add_item(lists, cache, _without(catalogue, live, lists), number), None

        # The first step widens the cache; from then on all shapes are fixed.
        state, _ = go_on((lists, cache, beams), jnp.int32(1))
        numbers = jnp.arange(2, length, dtype=jnp.int32)
        (lists, _, _), _ = jax.lax.scan(go_on, state, numbers)
    return _best(lists, k)


def _without(catalogue: Catalogue, filters: PreparedFilters, lists: _Lists) -> PreparedFilters:
    """Filters of every list, as requests of their own: what it has is denied."""
    batch, width, length = lists.items.shape
    each = jnp.repeat(jnp.arange(batch), width)
    return deny(catalogue, filters.of_requests(each), lists.items.reshape(-1, length))


@dataclasses.dataclass(frozen=True)
class _Search:
    """The arguments that all the steps of one search share."""

    functions: StepFunctions
    catalogue: Catalogue
    width: int
    mask: Mask

    def add_item(
        self, lists: _Lists, cache: PyTree, filters: PreparedFilters, number: int | Array
    ) -> tuple[_Lists, PyTree, Beams]:
        """Writes one more item to the lists, of which the best `width` are kept.

        Args:
            cache: at the start of an item.
            filters: of every list (one list a row at first).
            number: of the item in its list.
        """
        catalogue, (batch, count, _) = self.catalogue, lists.items.shape
        zero = jnp.zeros((batch, count), jnp.int32)
        here = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), zero.shape)
        alive = lists.total > -jnp.inf
        beams, source = Beams(jnp.where(alive, 0, -1), lists.total, zero, here), here
        for level in range(catalogue.levels):
            logits, cache = call_step(
                *(self.functions, cache, beams.code, beams.parent, level), catalogue.space.width
            )
            children = self._children(filters, beams.node, source, count, level)
            options = {"width": self.width, "mask": self.mask}
            beams = best_children(catalogue, beams, logits, children, level, **options)
            source = jnp.take_along_axis(source, beams.parent, axis=1)
        beams, source = _fill_up((beams, source), self.width, 0)
        found = beams.score > -jnp.inf
        items, scores = (jnp.take_along_axis(part, source[..., None], axis=1) for part in lists[:2])
        items = items.at[:, :, number].set(self._item(filters, beams.node, source, count))
        scores = scores.at[:, :, number].set(beams.score)
        lists_now = _Lists(
            jnp.where(found[..., None], items, -1),
            jnp.where(found[..., None], scores, -jnp.inf),
            beams.score,
        )
        # Lists of a row run out of items together: they have as many, of as many.
        more = found.any(axis=1)
        before = _fill_up(lists, self.width, -1)
        kept = jax.tree.map(
            lambda new, old: jnp.where(more.reshape(-1, *(1,) * (new.ndim - 1)), new, old),
            lists_now,
            before,
        )
        return kept, cache, beams

    def _own(
        self, filters: PreparedFilters, source: Int32[Array, "b w"], count: int
    ) -> PreparedFilters:
        """The filters of the list that each beam continues, beams as requests."""
        row = jnp.arange(source.shape[0], dtype=jnp.int32)[:, None]
        return filters.of_requests((row * count + source).reshape(-1))

    def _children(
        self,
        filters: PreparedFilters,
        node: Int32[Array, "b w"],
        source: Int32[Array, "b w"],
        count: int,
        level: int,
    ) -> Children:
        own = self._own(filters, source, count)
        found = live_children(self.catalogue, own, node.reshape(-1, 1), level)
        return jax.tree.map(lambda part: part.reshape(*node.shape, *part.shape[2:]), found)

    def _item(
        self,
        filters: PreparedFilters,
        leaf: Int32[Array, "b w"],
        source: Int32[Array, "b w"],
        count: int,
    ) -> Int32[Array, "b w"]:
        """The first item of each leaf that its list may get."""
        catalogue, own = self.catalogue, self._own(filters, source, count)
        node = jnp.maximum(leaf, 0).reshape(-1, 1)
        start, stop = first_row(catalogue, node), first_row(catalogue, node + 1)
        row = nth_live_row(catalogue, own, start, stop, live_before(own, start))
        row = jnp.clip(row, 0, catalogue.items - 1)
        return catalogue.item_at(row).reshape(leaf.shape)


def _fill_up[T: tuple](state: T, width: int, number: int) -> T:
    """Beams, lists and their sources with as many places as there may be beams; those that are not
    there score -inf and have `number` everywhere else."""

    def pad(part: Array) -> Array:
        ahead = ((0, 0), (0, width - part.shape[1]), *((0, 0),) * (part.ndim - 2))
        nothing = -jnp.inf if jnp.issubdtype(part.dtype, jnp.floating) else number
        return jnp.pad(part, ahead, constant_values=nothing)

    return jax.tree.map(pad, state)


def _best(lists: _Lists, k: int) -> RankedLists:
    """The first k lists, which stand in order; where there are fewer, invalid ones."""
    missing = max(0, k - lists.items.shape[1])
    items, scores = (
        jnp.pad(part, ((0, 0), (0, missing), (0, 0)), constant_values=fill)[:, :k]
        for part, fill in ((lists.items, -1), (lists.scores, -jnp.inf))
    )
    return RankedLists(items, scores, items >= 0)


@dataclasses.dataclass(frozen=True)
class ListBeams:
    """The best list of different items as a component of a recipe. See `list_beams`.

    The answer is one list, in the order in which its items were written; scores are the
    log-probabilities of the list up to each item.

    Raises:
        ValueError: a number below 1 or an unknown mode.
    """

    k: int = 5
    """Items of the list."""
    width: int = 10
    """Lists under way per row."""
    mask: Mask = "after_softmax"
    """How illegal codes count in the probabilities."""

    def __post_init__(self) -> None:
        check_positive(k=self.k, width=self.width)
        check_mask(self.mask)

    @property
    def items_in_turn(self) -> int:
        """Items that the generator writes one after another: room that its cache needs."""
        return self.k

    def __call__(
        self,
        functions: StepFunctions,
        catalogue: Catalogue,
        filters: Filters | PreparedFilters | None = None,
        key: jax.Array | None = None,
    ) -> Ranked:
        """Decodes a batch. `key` is not used: the search has no chance in it."""
        del key
        found = list_beams(
            functions, catalogue, filters, length=self.k, width=self.width, mask=self.mask
        )
        return Ranked(*(part[:, 0] for part in found))
