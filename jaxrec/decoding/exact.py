"""Exact scoring of the whole catalogue through the trie: every item's log-probability.

Shared prefixes are computed once. The levels that fit into one block of nodes (the trunk) are
stepped whole; below, the nodes of the last inner depth are taken block by block, and because the
items are sorted, the ancestors of a block are one short window of each depth between. Memory is
that of one block, whatever the size of the catalogue.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jaxrec.decoding.beam import normaliser
from jaxrec.decoding.catalogue import (
    Catalogue,
    ancestor_of,
    code_of,
    first_child,
    first_row,
    leaf_of,
    parent_of,
)
from jaxrec.decoding.children import live_children
from jaxrec.decoding.expansion import expand_leaves
from jaxrec.decoding.filters import (
    Filters,
    PreparedFilters,
    live_before,
    live_leaves,
    prepare_filters,
)
from jaxrec.decoding.interface import Mask, StepFunctions, call_step, check_mask, check_positive
from jaxrec.decoding.ranking import LOWEST, top_k
from jaxrec.types import PyTree, Ranked


@dataclasses.dataclass(frozen=True)
class _Scorer:
    """The arguments that all the steps of one scoring share."""

    functions: StepFunctions
    catalogue: Catalogue
    filters: PreparedFilters
    block: int
    mask: Mask

    def step(
        self,
        cache: PyTree,
        node: Int32[Array, " w"],
        parent: Int32[Array, " w"],
        level: int,
    ) -> tuple[Float[Array, "b w k"], PyTree]:
        """Log-probabilities of the codes below nodes of depth `level`.

        Args:
            node: the same for all rows.
            parent: their parents' places in the cache.
        """
        batch, count = self.functions.batch, node.shape[0]
        codes = jnp.broadcast_to(code_of(self.catalogue, level, node), (batch, count))
        parents = jnp.broadcast_to(parent, (batch, count))
        logits, cache = call_step(
            self.functions, cache, codes, parents, level, self.catalogue.space.width
        )
        nodes = jnp.broadcast_to(node, (1 if self.filters.shared else batch, count))
        children = live_children(self.catalogue, self.filters, nodes, level)
        return logits - normaliser(logits, children, self.mask)[..., None], cache

    def window(self, depth: int, first: Int32[Array, ""], size: int) -> Int32[Array, " w"]:
        """`size` nodes of a depth, from the `first` or as late as it can be."""
        first = jnp.minimum(first, self.catalogue.shape.nodes[depth] - size)
        return first + jnp.arange(size, dtype=jnp.int32)

    def extend(
        self,
        score: Float[Array, "b w"],
        log_probs: Float[Array, "b w k"],
        node: Int32[Array, " c"],
        parent: Int32[Array, " c"],
        depth: int,
    ) -> Float[Array, "b c"]:
        """Scores of nodes of a depth from those of their parents, by the parents' places."""
        gained = log_probs[:, parent, code_of(self.catalogue, depth, node)]
        return jnp.maximum(score[:, parent] + gained, LOWEST)


def leaf_scores(
    functions: StepFunctions,
    catalogue: Catalogue,
    filters: Filters | PreparedFilters | None = None,
    *,
    block: int = 1024,
    mask: Mask = "after_softmax",
) -> Float[Array, "b leaves"]:
    """Log-probability of every distinct semantic ID, in sorted order; -inf where all is filtered.

    Args:
        block: nodes that are stepped at a time; memory grows with it and results do not change.
        mask: how illegal codes count (`Mask`).

    Raises:
        ValueError: a number below 1, an unknown mode, or shapes that do not fit each other.
    """
    check_positive(block=block)
    check_mask(mask)
    live = prepare_filters(catalogue, filters, functions.batch)
    scorer = _Scorer(functions, catalogue, live, block, mask)
    trunk = max(depth for depth in range(catalogue.levels) if catalogue.shape.nodes[depth] <= block)
    score, cache = _score_trunk(scorer, trunk)
    if trunk < catalogue.levels - 1:
        score = _score_blocks(scorer, trunk, score, cache)
    return jnp.where(live_leaves(catalogue, live, functions.batch), score, -jnp.inf)


def _score_trunk(scorer: _Scorer, trunk: int) -> tuple[Float[Array, "b w"], PyTree]:
    """Steps levels 0 .. trunk whole: scores of depth trunk + 1, and the cache of depth trunk."""
    catalogue, cache = scorer.catalogue, scorer.functions.cache
    score = jnp.zeros((scorer.functions.batch, 1), jnp.float32)
    below = jnp.zeros(1, jnp.int32)
    parent = below
    for level in range(trunk + 1):
        log_probs, cache = scorer.step(cache, below, parent, level)
        below = scorer.window(level + 1, jnp.int32(0), catalogue.shape.nodes[level + 1])
        parent = parent_of(catalogue, level + 1, below)
        score = scorer.extend(score, log_probs, below, parent, level + 1)
    return score, cache


def _score_blocks(
    scorer: _Scorer, trunk: int, trunk_score: Float[Array, "b w"], trunk_cache: PyTree
) -> Float[Array, "b leaves"]:
    """Scores the leaves, one block of nodes of the last inner depth after another."""
    catalogue, block = scorer.catalogue, scorer.block
    last = catalogue.levels - 1
    width = min(block * catalogue.shape.fanout[last], catalogue.leaves)

    def one(scores: Array, number: Array) -> tuple[Array, None]:
        node = scorer.window(last, number * block, block)
        first_node = node[0]
        score, cache, parents = trunk_score, trunk_cache, None
        log_probs = jnp.zeros(())
        for level in range(trunk + 1, last + 1):
            first = ancestor_of(catalogue, last, first_node, level)
            node = scorer.window(level, first, block)
            parent = parent_of(catalogue, level, node)
            if parents is None:
                score = score[:, node]
            else:
                # A window may hold more than the block's ancestors; what those score is not read.
                parent = jnp.clip(parent - parents[0], 0, block - 1)
                score = scorer.extend(score, log_probs, node, parent, level)
            log_probs, cache = scorer.step(cache, node, parent, level)
            parents = node
        leaf = scorer.window(last + 1, first_child(catalogue, last, first_node), width)
        parent = parent_of(catalogue, last + 1, leaf) - node[0]
        inside = (parent >= 0) & (parent < block)
        parent = jnp.clip(parent, 0, block - 1)
        found = scorer.extend(score, log_probs, leaf, parent, last + 1)
        known = jax.lax.dynamic_slice_in_dim(scores, leaf[0], width, axis=1)
        found = jnp.where(inside, found, known)
        return jax.lax.dynamic_update_slice_in_dim(scores, found, leaf[0], axis=1), None

    empty = jnp.full((scorer.functions.batch, catalogue.leaves), -jnp.inf, jnp.float32)
    blocks = -(-catalogue.shape.nodes[last] // block)
    return jax.lax.scan(one, empty, jnp.arange(blocks, dtype=jnp.int32))[0]


def _leaf_of_items(catalogue: Catalogue) -> tuple[Int32[Array, " n"], Int32[Array, " n"]]:
    """Leaf and row of each item; of items that are not there, some leaf and one past all rows."""
    row = catalogue.row_of(jnp.arange(catalogue.items, dtype=jnp.int32))
    return leaf_of(catalogue, jnp.minimum(row, catalogue.items - 1)), row


def exact_scores(
    functions: StepFunctions,
    catalogue: Catalogue,
    filters: Filters | PreparedFilters | None = None,
    *,
    block: int = 1024,
    mask: Mask = "after_softmax",
) -> Float[Array, "b n"]:
    """Log-probability of every item, by item id; -inf for filtered ones.

    Items that share a semantic ID share its log-probability.

    Args:
        functions: a model bound to a batch of histories.
        catalogue: the index of the items.
        filters: what may be returned; everything by default.
        block: nodes that are stepped at a time; memory grows with it and results do not change.
        mask: how illegal codes count (`Mask`).

    Raises:
        ValueError: a number below 1, an unknown mode, or shapes that do not fit each other.
    """
    live = prepare_filters(catalogue, filters, functions.batch)
    score = leaf_scores(functions, catalogue, live, block=block, mask=mask)
    leaf, row = _leaf_of_items(catalogue)
    score = jnp.where(row < catalogue.items, score[:, leaf], -jnp.inf)
    if live.nothing:
        return score
    row = jnp.broadcast_to(row, score.shape)
    alive = live_before(live, row + 1) > live_before(live, row)
    return jnp.where(alive, score, -jnp.inf)


@dataclasses.dataclass(frozen=True)
class ExactScoring:
    """Scores the whole catalogue and returns the k best items: what an infinite beam would return.

    Best score first. Leaves of equal score follow each other by the id of their first item, the
    items of one leaf in catalogue order; with unique semantic IDs, ties go to the lowest item id.

    Raises:
        ValueError: a number below 1 or an unknown mode.
    """

    k: int = 50
    """Items per row."""
    block: int = 1024
    """Nodes that are stepped at a time: memory against speed."""
    mask: Mask = "after_softmax"
    """How illegal codes count in the probabilities."""

    def __post_init__(self) -> None:
        check_positive(k=self.k, block=self.block)
        check_mask(self.mask)

    def __call__(
        self,
        functions: StepFunctions,
        catalogue: Catalogue,
        filters: Filters | PreparedFilters | None = None,
        key: jax.Array | None = None,
    ) -> Ranked:
        """Decodes a batch. `key` is not used: there is no chance in it."""
        del key
        live = prepare_filters(catalogue, filters, functions.batch)
        score = leaf_scores(functions, catalogue, live, block=self.block, mask=self.mask)
        leaf_of_item, row = _leaf_of_items(catalogue)
        is_first = first_row(catalogue, leaf_of_item) == row
        by_item = jnp.where(is_first, score[:, leaf_of_item], -jnp.inf)
        best, item = top_k(by_item, min(self.k, catalogue.leaves))
        leaf = jnp.where(best > -jnp.inf, leaf_of_item[item], -1)
        return expand_leaves(catalogue, live, leaf, best, self.k)
