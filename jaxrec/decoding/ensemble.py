"""One list out of several: models, seeds, or permutations of codes (METHODS D17)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.decoding.interface import check_positive
from jaxrec.types import Ranked

Fusion = Literal["sum", "mean", "reciprocal_rank"]
"""How an item's places in several lists become one score.

- `sum`: of its log-scores, where a list without the item counts as its own lowest score: the item
  cannot have had more there. The union with summed log-likelihoods of EAGER (arXiv:2406.14017).
- `mean`: the same over the number of lists.
- `reciprocal_rank`: sum of 1 / (60 + rank) over the lists that have it (Cormack et al. 2009); only
  the order of the lists counts, so they need not be of one kind.
"""

SMOOTHING = 60
"""What is added to ranks in `reciprocal_rank`."""


def fuse(lists: Sequence[Ranked], *, k: int = 50, fusion: Fusion = "sum") -> Ranked:
    """The k best items of the union of ranked lists; equal scores by the lower item.

    Args:
        lists: answers for the same batch, best first, each without repetitions; their lengths may
            differ.
        k: items per row.
        fusion: see `Fusion`.

    Raises:
        ValueError: no lists, batches that differ, k below 1, or an unknown fusion.

    Example:
        >>> import jax.numpy as jnp
        >>> def ranked(items, scores):
        ...     return Ranked(jnp.array([items]), jnp.array([scores]), jnp.array([[True] * 2]))
        >>> both = fuse([ranked([7, 3], [-1.0, -2.0]), ranked([3, 5], [-0.5, -3.0])], k=3)
        >>> both.items.tolist(), both.scores.tolist()
        ([[3, 7, 5]], [[-2.5, -4.0, -5.0]])
    """
    check_positive(k=k)
    if fusion not in get_args(Fusion):
        raise ValueError(
            f"fusion={fusion!r} is unknown; choose one of {', '.join(get_args(Fusion))}."
        )
    if not lists or len({each.items.shape[0] for each in lists}) != 1:
        raise ValueError("give at least one list, and lists of the same batch.")
    items = jnp.concatenate([each.items for each in lists], axis=1)
    valid = jnp.concatenate([each.valid for each in lists], axis=1)
    total = sum((_points(each, items, fusion) for each in lists), jnp.zeros(items.shape))
    if fusion == "mean":
        total = total / len(lists)
    places = jnp.arange(items.shape[1])
    same = (items[:, :, None] == items[:, None, :]) & valid[:, None, :]
    first = jnp.argmax(same, axis=-1) == places
    kept = valid & first
    order = (jnp.where(kept, -total, jnp.inf), jnp.where(kept, items, jnp.iinfo(jnp.int32).max))
    falling, item = jax.lax.sort(order, dimension=1, num_keys=2)
    falling, item = (
        jnp.pad(part, ((0, 0), (0, max(0, k - part.shape[1]))), constant_values=fill)[:, :k]
        for part, fill in ((falling, jnp.inf), (item, -1))
    )
    valid = falling < jnp.inf
    return Ranked(jnp.where(valid, item, -1), -falling, valid)


def _points(ranked: Ranked, items: Array, fusion: Fusion) -> Float[Array, "b n"]:
    """What each of some items gets from one list."""
    found = (items[:, :, None] == ranked.items[:, None, :]) & ranked.valid[:, None, :]
    if fusion == "reciprocal_rank":
        gains = 1.0 / (SMOOTHING + 1 + jnp.arange(ranked.items.shape[1]))
        return jnp.sum(jnp.where(found, gains, 0.0), axis=-1)
    lowest = jnp.min(jnp.where(ranked.valid, ranked.scores, jnp.inf), axis=1, keepdims=True)
    lowest = jnp.where(lowest < jnp.inf, lowest, 0.0)  # an empty list says nothing of anybody
    scores = jnp.sum(jnp.where(found, ranked.scores[:, None, :], 0.0), axis=-1)
    return jnp.where(found.any(axis=-1), scores, lowest)
