"""Log-probabilities of given items against one cached history.

The history is read once; candidates are scored beside each other in blocks, each of which sees the
history and its own codes (METHODS D13, the idea of M-FALCON). What a candidate gets does not depend
on the others. `item_log_probs` also scores what a policy has drawn, code by code, under the
distribution that drew it or under the model's own (METHODS D16).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jaxrec.decoding.beam import normaliser
from jaxrec.decoding.catalogue import Catalogue, ancestor_of, code_of, leaf_of
from jaxrec.decoding.children import live_children
from jaxrec.decoding.filters import Filters, PreparedFilters, live_before, prepare_filters
from jaxrec.decoding.interface import (
    Mask,
    StepFunctions,
    call_step,
    check_mask,
    check_positive,
    check_temperature,
)
from jaxrec.decoding.ranking import LOWEST


def score_items(
    functions: StepFunctions,
    catalogue: Catalogue,
    items: Int32[Array, "b m"],
    filters: Filters | PreparedFilters | None = None,
    *,
    block: int = 64,
    mask: Mask = "after_softmax",
) -> Float[Array, "b m"]:
    """Log-probabilities of items, -inf for filtered ones and for numbers that are no item.

    Equal to those entries of `exact_scores`, at the cost of the candidates instead of the whole
    catalogue.

    Args:
        functions: a model bound to a batch of histories.
        catalogue: the index of the items.
        items: candidates of each row, in any order, padded with -1.
        filters: what counts as an item; everything by default.
        block: candidates a row that are scored at once; memory grows with it, results do not
            change.
        mask: how illegal codes count (`Mask`).

    Raises:
        ValueError: a number below 1, an unknown mode, or shapes that do not fit each other.
    """
    scores = item_log_probs(functions, catalogue, items, filters, block=block, mask=mask)
    known = scores[..., 0] > -jnp.inf  # an item that the model gives nothing is still an item
    return jnp.where(known, jnp.maximum(jnp.sum(scores, axis=-1), LOWEST), -jnp.inf)


def item_log_probs(
    functions: StepFunctions,
    catalogue: Catalogue,
    items: Int32[Array, "b m"],
    filters: Filters | PreparedFilters | None = None,
    *,
    block: int = 64,
    mask: Mask = "after_softmax",
    temperature: float = 1.0,
) -> Float[Array, "b m l"]:
    """Log-probability of every code of items given those before it.

    -inf in all codes of filtered items and of numbers that are no item. With
    `mask="before_softmax"` and the filters and temperature of a sampling without cuts, equal to the
    `log_probs` of what was drawn; with `after_softmax`, what the model itself says of it.

    Args:
        temperature: logits are divided by it. The others as in `score_items`.

    Raises:
        ValueError: a number out of range, an unknown mode, or shapes that do not fit each other.
    """
    return item_log_probs_under(
        *(functions, catalogue, items, filters), block=block, masks=(mask,), temperature=temperature
    )[0]


def item_log_probs_under(
    functions: StepFunctions,
    catalogue: Catalogue,
    items: Int32[Array, "b m"],
    filters: Filters | PreparedFilters | None = None,
    *,
    block: int = 64,
    masks: tuple[Mask, ...],
    temperature: float = 1.0,
) -> tuple[Float[Array, "b m l"], ...]:
    """`item_log_probs` under several modes, for the price of one: one array a mode.

    Args:
        masks: the modes. The others, and errors, as in `item_log_probs`.
    """
    check_positive(block=block)
    for mask in masks:
        check_mask(mask)
    check_temperature(temperature)
    if items.shape[0] != functions.batch:
        raise ValueError(
            f"items has {items.shape[0]} rows, but the batch has {functions.batch}; give one list "
            "of candidates per request, padded with -1."
        )
    live = prepare_filters(catalogue, filters, functions.batch)
    count = items.shape[1]
    block = min(block, max(count, 1))
    blocks = -(-count // block)
    padded = jnp.pad(items, ((0, 0), (0, blocks * block - count)), constant_values=-1)
    parts = jnp.swapaxes(padded.reshape(functions.batch, blocks, block), 0, 1)
    scores = jax.lax.map(
        lambda part: _score_block(functions, catalogue, live, part, masks, temperature), parts
    )

    def whole(scores: Array) -> Array:
        scores = jnp.swapaxes(scores, 0, 1)
        return scores.reshape(functions.batch, -1, catalogue.levels)[:, :count]

    return tuple(map(whole, scores))


def _score_block(
    functions: StepFunctions,
    catalogue: Catalogue,
    filters: PreparedFilters,
    items: Int32[Array, "b m"],
    masks: tuple[Mask, ...],
    temperature: float,
) -> tuple[Float[Array, "b m l"], ...]:
    known = (items >= 0) & (items < catalogue.items)
    row = catalogue.row_of(jnp.where(known, items, 0))
    known &= row < catalogue.items
    row = jnp.minimum(row, catalogue.items - 1)
    known &= live_before(filters, row + 1) > live_before(filters, row)
    leaf, levels = leaf_of(catalogue, row), catalogue.levels
    path = [ancestor_of(catalogue, levels, leaf, depth) for depth in range(levels + 1)]
    cache, scores = functions.cache, [[] for _ in masks]
    root = jnp.zeros((functions.batch, 1), jnp.int32)
    stay = jnp.broadcast_to(jnp.arange(items.shape[1], dtype=jnp.int32), items.shape)
    for level in range(levels):
        node = root if level == 0 else path[level]
        parents = stay if level > 1 else jnp.zeros_like(node)
        logits, cache = call_step(
            *(functions, cache, code_of(catalogue, level, node), parents, level),
            catalogue.space.width,
        )
        logits = logits / temperature
        children = live_children(catalogue, filters, node, level, distinct=False)
        code = code_of(catalogue, level + 1, path[level + 1])[..., None]
        for mask, gained in zip(masks, scores):
            log_probs = logits - normaliser(logits, children, mask)[..., None]
            log_probs = jnp.broadcast_to(log_probs, (*items.shape, log_probs.shape[-1]))
            own = jnp.take_along_axis(log_probs, code, axis=-1)[..., 0]
            gained.append(jnp.maximum(own, LOWEST))
    return tuple(
        jnp.where(known[..., None], jnp.stack(gained, axis=-1), -jnp.inf) for gained in scores
    )
