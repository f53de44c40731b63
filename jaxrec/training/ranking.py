"""Answers for many histories: prefill, decode, collect. What validation and evaluation both run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxrec.decoding.catalogue import Catalogue
from jaxrec.decoding.filters import Filters
from jaxrec.decoding.inner_product import UserItemVectors, inner_products
from jaxrec.decoding.interface import StepFunctions
from jaxrec.parallel import shard_rows
from jaxrec.tracking import Progress
from jaxrec.types import Events, PyTree, Ranked, Tables, TokenSpace


@partial(jax.jit, static_argnames=("generator", "space", "decoding"))
def rank_batch(
    params: PyTree,
    tables: Tables,
    catalogue: Catalogue,
    filters: Filters,
    events: Events,
    *,
    generator: Any,
    space: TokenSpace,
    decoding: Any,
) -> Ranked:
    """Answers a batch of histories: reads each once, then writes semantic IDs on the catalogue, or
    compares with the vectors of the items where the network is a retriever.

    Args:
        params: the network's parameters.
        tables: codes and features of the items.
        catalogue: the items that may be answered.
        filters: what may not be answered, by everybody or by a row.
        events: one history per row, right padded; an empty row is an unknown user.
        generator: static, a component with the Generator or the Retriever contract.
        space: static, the vocabulary.
        decoding: static, `BeamSearch` or `ExactScoring`; `InnerProduct` for a retriever.
    """
    items = getattr(decoding, "items_in_turn", 1)
    functions = bind(generator, params, tables, events, space, items=items)
    return decoding(functions, catalogue, filters)


def is_retriever(network: Any) -> bool:
    """Whether a network compares users with items (Retriever), rather than writing their codes."""
    return hasattr(network, "user_vectors")


def bind(
    generator: Any,
    params: PyTree,
    tables: Tables,
    events: Events,
    space: TokenSpace,
    *,
    items: int = 1,
) -> StepFunctions | UserItemVectors:
    """A network that has read a batch of histories, as decoders take it.

    Args:
        items: items that a beam writes one after another; more than one needs a network that can
            `extend` what it wrote.
    """
    if is_retriever(generator):
        return UserItemVectors(
            generator.user_vectors(params, tables, events, space),
            generator.item_vectors(params, tables, space),
        )

    def step(cache: PyTree, codes: jax.Array, parents: jax.Array, level: Any) -> Any:
        return generator.step(params, cache, codes, parents, level, space)

    extend = getattr(generator, "extend", None)
    if extend is None or items == 1:
        cache = generator.prefill(params, tables, events, space)
        return StepFunctions(cache, step, events.item.shape[0])

    def go_on(cache: PyTree, codes: jax.Array, parents: jax.Array, written: jax.Array) -> PyTree:
        return extend(params, cache, codes, parents, written, space)

    cache = generator.prefill(params, tables, events, space, items=items)
    return StepFunctions(cache, step, events.item.shape[0], go_on)


@partial(jax.jit, static_argnames=("generator", "space", "temperature"))
def item_probabilities(
    params: PyTree,
    tables: Tables,
    events: Events,
    *,
    generator: Any,
    space: TokenSpace,
    temperature: float = 1.0,
) -> Float[Array, "b n"]:
    """A retriever's softmax over the whole catalogue for a batch of histories, float32.

    Scores are divided by the temperature."""
    vectors = bind(generator, params, tables, events, space)
    assert isinstance(vectors, UserItemVectors), "only a retriever scores every item at once"
    return jax.nn.softmax(inner_products(vectors) / temperature, axis=-1)


@dataclasses.dataclass(frozen=True)
class Answers:
    """Ranked items of many cases, as numpy arrays in the order of the cases."""

    items: np.ndarray
    """int32[c, k], -1 where there was nothing left to give."""
    scores: np.ndarray
    """float32[c, k]."""
    valid: np.ndarray
    """bool[c, k]."""


@dataclasses.dataclass(frozen=True)
class Ranker:
    """Answers streams of histories with one generator and one way of decoding."""

    generator: Any
    space: TokenSpace
    decoding: Any
    mesh: Mesh

    def __call__(
        self,
        params: PyTree,
        tables: Tables,
        catalogue: Catalogue,
        batches: Iterable[tuple[Events, np.ndarray, np.ndarray]],
        *,
        cases: int,
        describe: str = "decode",
    ) -> Answers:
        """Answers every case.

        Args:
            params: the generator's parameters.
            tables: codes and features of the items.
            catalogue: the items that may be answered.
            batches: (events, denied int32[b, m] padded with -1, index int[b]); rows whose index is
                -1 are padding and are dropped.
            cases: number of cases; every index below it must appear once.
            describe: label of the progress bar.
        """
        k = self.decoding.k
        items = np.full((cases, k), -1, np.int32)
        scores = np.full((cases, k), -np.inf, np.float32)
        valid = np.zeros((cases, k), bool)
        with jax.set_mesh(self.mesh), Progress(cases, describe, unit="users") as progress:
            for events, denied, index in batches:
                sharded, denied = shard_rows((events, denied), self.mesh)
                ranked = rank_batch(
                    params,
                    tables,
                    catalogue,
                    Filters(allowed=None, denied=denied),
                    sharded,
                    generator=self.generator,
                    space=self.space,
                    decoding=self.decoding,
                )
                live = index >= 0
                items[index[live]] = np.asarray(ranked.items)[live]
                scores[index[live]] = np.asarray(ranked.scores)[live]
                valid[index[live]] = np.asarray(ranked.valid)[live]
                progress.update(int(live.sum()))
        return Answers(items, scores, valid)


def pad_denied(denied: list[np.ndarray], rows: int, width: int) -> np.ndarray:
    """Deny-lists of one batch as an array.

    Args:
        denied: item rows per request.
        rows: rows of the batch; missing requests deny nothing.
        width: length of the array; `denied_width` gives one that fits all batches.

    Returns:
        int32[rows, width], padded with -1.

    >>> pad_denied([np.array([3, 5, 9]), np.array([], int)], 2, 4)
    array([[ 3,  5,  9, -1],
           [-1, -1, -1, -1]], dtype=int32)
    """
    padded = np.full((rows, width), -1, np.int32)
    for row, each in enumerate(denied):
        padded[row, : len(each)] = each
    return padded


def denied_width(longest: int) -> int:
    """A width for deny-lists of at most `longest` items: a power of two, because every width is a
    program of its own to compile.

    >>> [denied_width(longest) for longest in (0, 1, 8, 9)]
    [1, 1, 8, 16]
    """
    return 1 << max(0, longest - 1).bit_length()
