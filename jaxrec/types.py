"""The arrays everybody passes, and the letters that name their axes.

One letter means one thing in every signature of the project:

    b  batch (rows)              l  level of a semantic ID       n  items of the catalogue
    t  time (events of a row)    k  codes of a level             u  users
    d  model width               w  beams                        c  evaluation cases
    h  heads                     f  feed-forward width           e  events of a log, flat
    v  text vocabulary                  g  rollouts of a group

Items are rows of the catalogue, `0 .. n-1`. Padding is never an item number: it is `segment == 0`.

Fields of the pytrees below are not checked at run time: a batch may live on the host (numpy) or on
the device, and tree operations put shapes, shardings and flags where the arrays were.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, no_type_check

import jax
from jaxtyping import Bool, Float, Int32

PyTree = Any
"""Any nested structure of arrays."""

Leaf = Any
"""An array on the host or on the device, or only its shape: what pytrees below are made of."""

SPECIAL_TOKENS = ("PAD", "BOS")
"""Special tokens in front of every flat vocabulary; PAD is 0, always."""


@no_type_check
@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class Events:
    """A batch of histories: what happened, oldest first. Batches carry items, never semantic IDs.

    Several histories may share a row (packing); `segment` tells them apart and nothing crosses it.
    The axes are `b t`; a training loop that does several steps a call stacks batches in front.
    """

    item: Int32[Leaf, "b t"]
    """Catalogue row of each event; any value where `segment` is 0."""
    segment: Int32[Leaf, "b t"]
    """Which history of the row the event belongs to: 1, 2, ...; 0 is padding."""
    position: Int32[Leaf, "b t"]
    """Index of the event inside its history, from 0. Does not depend on padding or packing."""
    time: Int32[Leaf, "b t"]
    """Seconds since the first event of the log."""
    action: Int32[Leaf, "b t"]
    """Kind of event (click, order, ...), 0 where a log has one kind only."""
    weight: Float[Leaf, "b t"]
    """Weight of the event *as a target*; 0 means context only."""
    user: Int32[Leaf, "b t"] | None = None
    """Index of the user whose event it is, -1 where nobody knows; None where nobody asks."""


@no_type_check
@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class TextBatch:
    """Rows of text and codes of items, for language models. Several examples may share a row.

    Codes enter as items and levels, never as tokens, so that an index may change without new data.
    """

    token: Int32[Leaf, "b t"]
    """Token of the text vocabulary; where `item` is not -1, the level of its code."""
    item: Int32[Leaf, "b t"]
    """Catalogue row whose code stands here; -1 where text stands."""
    segment: Int32[Leaf, "b t"]
    """Which example of the row the token belongs to: 1, 2, ...; 0 is padding."""
    position: Int32[Leaf, "b t"]
    """Index of the token inside its example, from 0."""
    weight: Float[Leaf, "b t"]
    """Weight of the token *as a target*, to be foretold from those before it; 0 in a prompt, and at
    the first token of an example, which nothing foretells."""


@no_type_check
@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class Tables:
    """What the step reads about items. Device arguments, so an index may change without new data.

    `features` holds named arrays with one row per item (vectors, categories), for the backbones
    that ask for them.
    """

    codes: Int32[Leaf, "n l"]
    features: dict[str, Leaf] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TokenSpace:
    """The vocabulary of semantic IDs: special tokens first, then one range of tokens per level.

    Hashable, so it is a static argument of `jit`.

    Raises:
        ValueError: no level, or a level without codes.
    """

    sizes: tuple[int, ...]
    """Codes of each level, the extra digit's capacity included when there is one."""
    has_extra_digit: bool = False
    """Whether the last level is the digit that tells colliding items apart."""
    specials: tuple[str, ...] = SPECIAL_TOKENS

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(
                f"TokenSpace needs at least one level of at least one code, got sizes={self.sizes}."
            )

    @property
    def levels(self) -> int:
        """Number of levels, the extra digit included."""
        return len(self.sizes)

    @property
    def semantic_levels(self) -> int:
        """Number of levels that come from the quantizer."""
        return self.levels - int(self.has_extra_digit)

    @property
    def width(self) -> int:
        """Codes of the widest level: the last axis of every logits array."""
        return max(self.sizes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """First token of each level in the flat vocabulary."""
        ends = [len(self.specials)]
        for size in self.sizes:
            ends.append(ends[-1] + size)
        return tuple(ends[:-1])

    @property
    def vocabulary(self) -> int:
        """Number of tokens, special tokens included."""
        return len(self.specials) + sum(self.sizes)


@no_type_check
@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class Ranked:
    """An answer: items from best to worst. Where `valid` is False there was no item left to give
    (then `items` is -1 and `scores` is -inf)."""

    items: Int32[Leaf, "b k"]
    scores: Float[Leaf, "b k"]
    valid: Bool[Leaf, "b k"]
