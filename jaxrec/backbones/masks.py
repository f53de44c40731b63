"""Who may attend to whom: predicates over token metadata, and their compilation to a mask.

A predicate takes the metadata of queries and of keys, already shaped to broadcast against each
other, and answers a boolean for every pair. Predicates combine with `both` and `either`; the same
predicate can be compiled to a dense mask here, evaluated for a block of queries at a time, or read
by a block-sparse kernel. `jaxrec.backbones.masks_library` has the masks of published systems.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import no_type_check

import jax
from jaxtyping import Array, Bool, Int32

from jaxrec.types import Leaf


# Not checked at run time, as the pytrees of `jaxrec.types`: tree operations put anything there.
@no_type_check
@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class TokenMetadata:
    """What a mask may know about tokens; every array has the same shape, `[b, t]` in a batch.

    A pytree, so it goes through scans. `labels` holds further integers by name (item of a semantic
    ID, session, task).
    """

    segment: Int32[Leaf, "*any"]
    """History that the token belongs to: 1, 2, ...; 0 is padding."""
    position: Int32[Leaf, "*any"]
    """Place of the token inside its history."""
    labels: Mapping[str, Int32[Leaf, "*any"]] = dataclasses.field(default_factory=dict)

    def map(self, function: Callable[[Array], Array]) -> TokenMetadata:
        """The same metadata with `function` applied to every array."""
        return jax.tree.map(function, self)


type Predicate = Callable[[TokenMetadata, TokenMetadata], Bool[Array, "*any"]]
"""`allow(query, key)`: whether the query may attend to the key."""


def causal(query: TokenMetadata, key: TokenMetadata) -> Bool[Array, "*any"]:
    """A token sees tokens at its own or an earlier position."""
    return key.position <= query.position


def same_segment(query: TokenMetadata, key: TokenMetadata) -> Bool[Array, "*any"]:
    """A token sees its own history only; padding is never seen and sees nothing."""
    return (query.segment == key.segment) & (key.segment > 0)


def same(label: str) -> Predicate:
    """A token sees the tokens that carry the same label (the codes of one item, say)."""
    return lambda query, key: query.labels[label] == key.labels[label]


def before(label: str) -> Predicate:
    """A token sees the tokens whose label is smaller (the items before its own, say)."""
    return lambda query, key: key.labels[label] < query.labels[label]


def both(*predicates: Predicate) -> Predicate:
    """Allowed where every predicate allows."""

    def allow(query: TokenMetadata, key: TokenMetadata) -> Bool[Array, "*any"]:
        answer = predicates[0](query, key)
        for predicate in predicates[1:]:
            answer = answer & predicate(query, key)
        return answer

    return allow


def either(*predicates: Predicate) -> Predicate:
    """Allowed where any predicate allows."""

    def allow(query: TokenMetadata, key: TokenMetadata) -> Bool[Array, "*any"]:
        answer = predicates[0](query, key)
        for predicate in predicates[1:]:
            answer = answer | predicate(query, key)
        return answer

    return allow


packed = both(causal, same_segment)
"""Causal inside each of the histories that share a row: the mask of every causal decoder."""


def compile_mask(
    predicate: Predicate, query: TokenMetadata, key: TokenMetadata | None = None
) -> Bool[Array, "b 1 q t"]:
    """Evaluates a predicate for all pairs, as the mask that `attention` takes.

    Args:
        predicate: who may attend to whom.
        query: metadata of the queries, arrays `[b, q]`.
        key: metadata of the keys, arrays `[b, t]`; the queries' own by default.

    Returns:
        True where the query may attend to the key; the axis of length 1 is that of the heads.
    """
    key = query if key is None else key
    queries = query.map(lambda array: array[:, None, :, None])
    keys = key.map(lambda array: array[:, None, None, :])
    return predicate(queries, keys)
