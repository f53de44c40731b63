"""From leaves to items: the last step of every decoder over the trie.

Where semantic IDs are unique a leaf is an item. Under the collision policy `keep` (METHODS T22 h) a
leaf is a group: its members share the leaf's score and follow each other in catalogue order.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jaxrec.decoding.catalogue import Catalogue, first_row
from jaxrec.decoding.filters import PreparedFilters, live_before
from jaxrec.decoding.ranking import on_one_device
from jaxrec.types import Ranked


def expand_leaves(
    catalogue: Catalogue,
    filters: PreparedFilters,
    leaf: Int32[Array, "b w"],
    score: Float[Array, "b w"],
    k: int,
) -> Ranked:
    """The first k items of a list of leaves: leaf by leaf, inside a leaf in catalogue order.

    Filtered items are skipped. Slots that are left get item -1, score -inf and valid False.

    Args:
        leaf: leaves that have an item to give, best first, none twice; -1 at the end is skipped.
        score: their scores.
    """
    node = jnp.maximum(leaf, 0)
    if catalogue.shape.max_group == 1:
        return _one_each(catalogue, leaf, score, k)
    start, stop = first_row(catalogue, node), first_row(catalogue, node + 1)
    skipped = live_before(filters, start)
    count = jnp.where(leaf >= 0, live_before(filters, stop) - skipped, 0)
    ends = jnp.cumsum(count, axis=1)
    slot = jnp.arange(k, dtype=jnp.int32)
    beam = (ends[:, None, :] <= slot[:, None]).sum(axis=2, dtype=jnp.int32)
    valid = beam < leaf.shape[1]
    beam = jnp.minimum(beam, leaf.shape[1] - 1)

    def pick(values: Array) -> Array:
        return jnp.take_along_axis(values, beam, axis=1)

    before = pick(skipped) + slot - pick(ends - count)
    row = nth_live_row(catalogue, filters, pick(start), pick(stop), before)
    row = jnp.clip(row, 0, catalogue.items - 1)
    return Ranked(
        items=jnp.where(valid, catalogue.item_at(row), -1),
        scores=jnp.where(valid, pick(score), -jnp.inf),
        valid=valid,
    )


def _one_each(
    catalogue: Catalogue, leaf: Int32[Array, "b w"], score: Float[Array, "b w"], k: int
) -> Ranked:
    """The first k leaves, each of which is one item."""
    ahead = ((0, 0), (0, max(0, k - leaf.shape[1])))
    leaf, score = (
        jnp.pad(values, ahead, constant_values=fill)[:, :k]
        for values, fill in ((leaf, -1), (score, -jnp.inf))
    )
    valid = leaf >= 0
    item = catalogue.item_at(first_row(catalogue, jnp.maximum(leaf, 0)))
    return Ranked(jnp.where(valid, item, -1), jnp.where(valid, score, -jnp.inf), valid)


def order_leaves(
    catalogue: Catalogue,
    leaf: Int32[Array, "b w"],
    score: Float[Array, "b w"],
    *,
    falling: bool = False,
) -> tuple[Int32[Array, "b w"], Float[Array, "b w"]]:
    """Sorts leaves by score, best first; equal scores by the id of the leaf's first item.

    The first item is that of the catalogue, filtered or not, so filters never reorder a list.

    Args:
        leaf: leaves, -1 where there is none.
        score: their scores.
        falling: the scores are in order. A sort costs as much as a level of the search, so it is
            done only where two of them are equal (on one device: several would have to agree).
    """

    def by_item(leaf: Array, score: Array) -> tuple[Array, Array]:
        first = catalogue.item_at(first_row(catalogue, jnp.maximum(leaf, 0)))
        falling, _, leaf = jax.lax.sort((-score, first, leaf), dimension=1, num_keys=2)
        return leaf, -falling

    if not (falling and on_one_device()):
        return by_item(leaf, score)
    tied = (score[:, 1:] == score[:, :-1]) & (leaf[:, 1:] >= 0)
    return jax.lax.cond(tied.any(), by_item, lambda *same: same, leaf, score)


def nth_live_row(
    catalogue: Catalogue,
    filters: PreparedFilters,
    start: Int32[Array, "b k"],
    stop: Int32[Array, "b k"],
    before: Int32[Array, "b k"],
) -> Int32[Array, "b k"]:
    """The live row of [start, stop) that has exactly `before` live rows before it.

    Without filters it is `before` itself; with them a bisection inside the leaf.
    """
    if catalogue.shape.max_group == 1:
        return start
    if filters.nothing:
        return before

    def halve(_: int | Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        right = live_before(filters, middle + 1) <= before
        return jnp.where(right, middle + 1, low), jnp.where(right, high, middle)

    steps = catalogue.shape.max_group.bit_length()
    return jax.lax.fori_loop(0, steps, halve, (start, stop - 1))[0]
