"""What a decoder remembers between prefill and the last level."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array


class MergedCache(NamedTuple):
    """What `step` needs in the merged shape."""

    user: Array
    """State that predicts the next event, `[b d]`."""
    prefix: Array
    """Sum of the vectors of the codes that each beam chose, `[b w d]`."""


class FlatCache(NamedTuple):
    """What `step` needs in the flat shape."""

    user: Array
    """State that predicts the first code of the next event, `[b d]`."""
    keys: Array
    """Keys of the history, `[layers b t g d]`, shared by all beams of a row."""
    values: Array
    key_mask: Array
    """Which of them exist, `[b t]`."""
    position: Array
    """Position of the token that predicts the first code, `[b]`."""
    beam_keys: Array
    """Keys of the codes that each beam chose, `[layers b w levels-1 g d]`."""
    beam_values: Array
