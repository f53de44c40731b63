"""What a decoder remembers between prefill and the last level."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int32


class Past(NamedTuple):
    """Keys and values: those of the history, and those of what each beam has written."""

    keys: Array
    """Keys of the history, `[layers b t g d]`, shared by all beams of a row."""
    values: Array
    key_mask: Array
    """Which of them exist, `[b t]`."""
    position: Array
    """Position of the last token of the history, `[b]`."""
    beam_keys: Array
    """Keys of the tokens that each beam wrote, `[layers b w slots g d]`."""
    beam_values: Array
    written: Array
    """Slots that whole items have filled, `[]`."""

    def reorder(self, parents: Int32[Array, "b w"]) -> Past:
        """The past of other beams, each of which continues one of these."""
        pick = parents[None, :, :, None, None, None]
        return self._replace(
            beam_keys=jnp.take_along_axis(self.beam_keys, pick, axis=2),
            beam_values=jnp.take_along_axis(self.beam_values, pick, axis=2),
        )


class MergedCache(NamedTuple):
    """What `step` needs in the merged shape."""

    user: Array
    """State that predicts the next event, `[b 1 d]` for all beams, or `[b w d]`."""
    prefix: Array
    """Sum of the vectors of the codes that each beam chose, `[b w d]`."""
    past: Past | None
    """What further items need; None where one is written."""


class FlatCache(NamedTuple):
    """What `step` needs in the flat shape."""

    user: Array
    """State that predicts the first code, `[b 1 d]` for all beams, or `[b w d]`."""
    past: Past


def of_parents(user: Array, parents: Int32[Array, "b w"]) -> Array:
    """User states of beams; one that all beams share stays one."""
    if user.shape[1] == 1:
        return user
    return jnp.take_along_axis(user, parents[..., None], axis=1)


def start_past(keys: Array, values: Array, key_mask: Array, position: Array, slots: int) -> Past:
    """The past of one beam per row that has written nothing.

    Args:
        keys: of the history, `[layers b t g d]`.
        values: alike.
        key_mask: which of them exist, `[b t]`.
        position: of the last token, `[b]`.
        slots: tokens that a beam may write.
    """
    layers, rows, _, groups, size = keys.shape
    empty = jnp.zeros((layers, rows, 1, slots, groups, size), keys.dtype)
    return Past(keys, values, key_mask, position, empty, empty, jnp.int32(0))
