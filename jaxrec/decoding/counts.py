"""What became of the candidates of a request: how many there were, and why others were not.

For dashboards and for debugging: a request that gets few items because its filters leave few, and
one that gets few because its beams are few, look alike in a list.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int32

from jaxrec.decoding.catalogue import Catalogue, first_row, leaf_of
from jaxrec.decoding.filters import Filters, PreparedFilters, live_before, prepare_filters
from jaxrec.types import Ranked


class AnswerCounts(NamedTuple):
    """Numbers of items, one a request."""

    valid: Int32[Array, " b"]
    """Returned."""
    allowed: Int32[Array, " b"]
    """Of the catalogue, that the request could get."""
    filtered: Int32[Array, " b"]
    """Of the catalogue, that its filters keep from it."""
    grouped: Int32[Array, " b"]
    """Returned, that share their semantic ID with another item of the catalogue."""


def count_answers(
    catalogue: Catalogue, ranked: Ranked, filters: Filters | PreparedFilters | None = None
) -> AnswerCounts:
    """Says of every response how many items were returned, allowed, filtered, and in a group.

    Args:
        catalogue: the index that was decoded from.
        ranked: the answer.
        filters: those it was decoded with.

    Example:
        >>> import numpy as np
        >>> from jaxrec.decoding import build_catalogue
        >>> from jaxrec.types import Ranked, TokenSpace
        >>> catalogue = build_catalogue(np.array([[0, 1], [0, 1], [1, 0]]), TokenSpace((2, 2)))
        >>> answer = Ranked(jnp.array([[1, -1]]), jnp.array([[-0.5, -jnp.inf]]),
        ...                 jnp.array([[True, False]]))
        >>> denied = Filters(denied=jnp.array([[0]], jnp.int32))
        >>> counts = count_answers(catalogue, answer, denied)
        >>> [(name, int(count[0])) for name, count in zip(counts._fields, counts)]
        [('valid', 1), ('allowed', 2), ('filtered', 1), ('grouped', 1)]
    """
    batch = ranked.items.shape[0]
    live = prepare_filters(catalogue, filters, batch)
    in_use = first_row(catalogue, jnp.full((batch, 1), catalogue.leaves, jnp.int32))
    allowed = live_before(live, in_use)[:, 0]
    row = catalogue.row_of(jnp.maximum(ranked.items, 0))
    leaf = leaf_of(catalogue, jnp.minimum(row, catalogue.items - 1))
    group = first_row(catalogue, leaf + 1) - first_row(catalogue, leaf)
    return AnswerCounts(
        valid=ranked.valid.sum(axis=1, dtype=jnp.int32),
        allowed=allowed,
        filtered=in_use[:, 0] - allowed,
        grouped=(ranked.valid & (group > 1)).sum(axis=1, dtype=jnp.int32),
    )
