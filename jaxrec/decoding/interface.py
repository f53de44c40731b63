"""What a decoder needs of a model: one function that scores the next code of every beam.

Decoders never see a network. They see a cache, a step, and how many rows the batch has, so the same
beam search serves a transformer, a table of counts in a test, or an exported program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
from jaxtyping import Array, Float, Int32

from jaxrec.types import PyTree

Level = int | Int32[Array, ""]
"""Level of a semantic ID: a Python integer at level 0, possibly traced above it."""

Rows = Any
"""Rows of a batch: an integer, or a symbolic size while a program is exported."""

Mask = Literal["after_softmax", "before_softmax", "as_given"]
"""How illegal codes count in the probabilities (METHODS D2, `renorm`).

`after_softmax` normalises over the whole codebook of the level, so the mass of codes that lead to
no item is lost (Hugging Face, MiniOneRec). `before_softmax` renormalises over the children that
exist and are not filtered, so the probabilities of all items that may be returned sum to 1.
`as_given` normalises nothing: what the step returns are log-probabilities already, over the whole
vocabulary, say (`T5(softmax="vocabulary")`, Hugging Face), or scores that are no probabilities.
"""


class StepFunctions(NamedTuple):
    """A model bound to a batch of histories: what every decoder takes.

    Build it inside the function that is jitted (`step` is a closure over parameters, so the tuple
    itself is no argument of `jit`).

    `step(cache, codes, parents, level) -> (logits, cache)`, where

    - `codes` int32 `[b, w]`: the codes that the beams chose at `level - 1`; ignored at level 0,
      where `w` is 1;
    - `parents` int32 `[b, w]`: which beam of the cache each new beam continues, in
      `0 .. width of the cache - 1`. The cache that comes in may have another number of beams than
      `w`; the cache that goes out has `w`, in the order of `codes`;
    - `level`: the level whose codes are scored. A Python int at level 0; possibly traced above;
    - `logits` float `[b, w, k]`: `k` is the width of the token space; codes beyond the level's own
      size carry a large finite negative number (-1e9).

    Where the width of the cache does not change, `step` keeps every shape and dtype of the cache:
    the levels are then scanned.

    **The law.** For any item, the sum over levels of the step's log-probabilities along the item's
    codes equals the log-probability that the model's teacher-forced pass gives it, to 1e-5,
    whatever other beams are decoded beside it and in whatever order.
    """

    cache: PyTree
    """The histories after prefill: one beam per row."""
    step: Callable[..., tuple[Array, PyTree]]
    """See above."""
    batch: Rows
    """Rows of the batch."""
    extend: Callable[..., PyTree] | None = None
    """`extend(cache, codes, parents, items) -> cache` for generators that write several items one
    after another (`list_beams`): the beams, which chose `codes` at the last level, have written
    `items` int32 `[b, w]`, and the cache that comes back is one in which these have happened, at
    the start of the next item. By the law, that item's log-probability is the one that the
    teacher-forced pass gives after the longer history. None in generators that write one item."""


def check_mask(mask: str) -> None:
    """Refuses a mask mode that does not exist.

    Raises:
        ValueError: `mask` is not one of the modes.
    """
    if mask not in get_args(Mask):
        raise ValueError(f"mask={mask!r} is no mode; choose one of {', '.join(get_args(Mask))}.")


def check_positive(**numbers: int) -> None:
    """Refuses numbers below 1, by name.

    Raises:
        ValueError: a number is below 1.
    """
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name}={number} gives nothing to decode; use {name} >= 1.")


def check_temperature(temperature: float) -> None:
    """Refuses to divide logits by what is not positive.

    Raises:
        ValueError: the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(
            f"temperature={temperature} must be positive; for the likeliest items use BeamSearch."
        )


def call_step(
    functions: StepFunctions,
    cache: PyTree,
    codes: Int32[Array, "b w"],
    parents: Int32[Array, "b w"],
    level: Level,
    width: int,
) -> tuple[Float[Array, "b w k"], PyTree]:
    """Calls the step, checks the shape of what comes back and widens it to float32.

    Args:
        width: codes of the widest level, which the last axis of the logits must have.

    Raises:
        ValueError: the logits have another shape (a checkpoint of another token space).
    """
    logits, cache = functions.step(cache, codes, parents, level)
    if logits.shape != (*codes.shape, width):
        raise ValueError(
            f"the step returned logits of shape {tuple(logits.shape)}, but {codes.shape[0]} rows x "
            f"{codes.shape[1]} beams over a token space of width {width} need "
            f"{(*codes.shape, width)}; use a catalogue and a model of the same token space."
        )
    return logits.astype(jax.numpy.float32), cache
