"""Retrieval by inner product: the whole catalogue, block by block, nothing approximated (D12)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.decoding.catalogue import Catalogue
from jaxrec.decoding.filters import Filters, check_filters, mark, masks_of
from jaxrec.decoding.interface import check_positive
from jaxrec.decoding.ranking import top_k
from jaxrec.types import Ranked


class UserItemVectors(NamedTuple):
    """A retriever bound to a batch of histories: all that retrieval needs of a network."""

    user: Float[Array, "b d"]
    """State that each history ends in."""
    item: Float[Array, "n d"]
    """Vectors of the catalogue."""

    @property
    def batch(self) -> int:
        """Rows of the batch."""
        return self.user.shape[0]


def inner_products(
    vectors: UserItemVectors,
) -> Float[Array, "b n"]:
    """Score of every item for every row, float32."""
    return jnp.matmul(vectors.user, vectors.item.T, preferred_element_type=jnp.float32)


def retrieve(
    vectors: UserItemVectors, filters: Filters | None = None, *, k: int, block: int = 2**16
) -> Ranked:
    """The k items of largest inner product, best first; equal scores by the lower item.

    Args:
        vectors: of the batch.
        filters: what may be returned; everything by default.
        k: items a row.
        block: items that are scored at a time; bounds the memory, results do not change.

    Raises:
        ValueError: a number below 1, or filters that do not fit the catalogue or the batch.
    """
    check_positive(k=k, block=block)
    rows, items = vectors.batch, vectors.item.shape[0]
    filters = filters or Filters()
    check_filters(filters, rows, items)

    def extend(start: Array | int, width: int, known: tuple[Array, Array]) -> tuple[Array, Array]:
        best, found = known
        part = jax.lax.dynamic_slice_in_dim(vectors.item, start, width)
        scores = _close(inner_products(vectors._replace(item=part)), filters, start)
        names = jnp.broadcast_to(start + jnp.arange(width, dtype=jnp.int32), scores.shape)
        # What was found before stands in front, so that ties go to the lower item.
        best, place = top_k(jnp.concatenate([best, scores], axis=1), k)
        return best, jnp.take_along_axis(jnp.concatenate([found, names], axis=1), place, axis=1)

    known = jnp.full((rows, k), -jnp.inf), jnp.full((rows, k), -1, jnp.int32)
    block = min(block, items)
    full, rest = divmod(items, block)
    # The loop compiles one block, however large the catalogue is.
    known = jax.lax.fori_loop(0, full, lambda i, now: extend(i * block, block, now), known)
    best, found = extend(full * block, rest, known) if rest else known
    valid = best > -jnp.inf
    return Ranked(jnp.where(valid, found, -1), best, valid)


def _close(
    scores: Float[Array, "b n"], filters: Filters, start: Array | int
) -> Float[Array, "b n"]:
    """Scores of items `start ...` with -inf at those that may not be returned."""
    width, live = scores.shape[1], jnp.ones_like(scores, bool)
    if filters.allowed is not None:
        masks, domain = masks_of(filters)
        masks = jax.lax.dynamic_slice_in_dim(masks, start, width, axis=1)
        live &= masks[0] if domain is None else masks[domain]

    def here(items: Array) -> Array:
        place = items - start
        return jnp.where((place < 0) | (place >= width), width, place)

    if filters.listed is not None:
        live &= mark(jnp.zeros_like(live), here(filters.listed), True)
    if filters.denied is not None:
        live = mark(live, here(filters.denied), False)
    return jnp.where(live, scores, -jnp.inf)


@dataclasses.dataclass(frozen=True)
class InnerProduct:
    """Answers of a retriever: the k items whose vectors have the largest product with the user's.

    Raises:
        ValueError: a number below 1.
    """

    k: int = 50
    """Items per row."""
    block: int = 2**16
    """Items that are scored at a time: memory against speed."""

    def __post_init__(self) -> None:
        check_positive(k=self.k, block=self.block)

    def __call__(
        self,
        functions: UserItemVectors,
        catalogue: Catalogue,
        filters: Filters | None = None,
        key: jax.Array | None = None,
    ) -> Ranked:
        """Ranks a batch. `catalogue` and `key` are not used: there is no trie and no chance."""
        del catalogue, key
        return retrieve(functions, filters, k=self.k, block=self.block)
