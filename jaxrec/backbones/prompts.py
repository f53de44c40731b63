"""Histories as prompts of a language model, laid out on the device.

    <before> c_11 .. c_1L <between> c_21 .. c_2L ... <after>

The texts are the same in every row, so only items differ, and a prompt is an array of numbers like
any other. Holes (events that a history lacks) are masked and take no position.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32

from jaxrec.data.text_tokenizer import TextTokenizer
from jaxrec.types import Events


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What stands around the items of a history.

    Raises:
        ValueError: nothing stands after the history: the state that writes the answer needs a
            token, also for an empty history.
    """

    before: str = "A user bought: "
    between: str = ", "
    after: str = ". The next item is "
    tokenizer: TextTokenizer = TextTokenizer()
    """Turns the texts into tokens; that of the instructions the network was trained with."""

    def __post_init__(self) -> None:
        if not self.after:
            raise ValueError("Prompt.after must not be empty: the answer continues what it says.")

    def tokens(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens of `before`, `between` and `after`, int32."""
        return _tokens(self)

    def length(self, events: int, levels: int) -> int:
        """Tokens of a prompt of so many events, the holes included."""
        before, between, after = self.tokens()
        return len(before) + events * (levels + len(between)) + len(after)


@functools.lru_cache(maxsize=64)
def _tokens(prompt: Prompt) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    texts = (prompt.before, prompt.between, prompt.after)
    before, between, after = (np.array(ids, np.int32) for ids in prompt.tokenizer.encode(texts))
    if not len(after):
        raise ValueError(f"the tokenizer makes no token of Prompt.after={prompt.after!r}.")
    return before, between, after


class Laid(NamedTuple):
    """Prompts, one a row, with holes."""

    tokens: Int32[Array, "b s"]
    """Rows of the token table; any value in a hole."""
    exists: Bool[Array, "b s"]
    """The last one always does."""
    position: Int32[Array, "b s"]
    """Number of tokens of the prompt before this one."""


def lay_prompts(prompt: Prompt, batch: Events, code_tokens: Int32[Array, "b t l"]) -> Laid:
    """Prompts of histories.

    Args:
        prompt: the texts.
        batch: one history a row; padding may stand on either side.
        code_tokens: rows of the token table of every event's codes.
    """
    before, between, after = prompt.tokens()
    rows, events, levels = code_tokens.shape
    real = batch.segment > 0
    first = real & (jnp.cumsum(real, axis=1) == 1)
    separated = jnp.broadcast_to((real & ~first)[..., None], (rows, events, len(between)))
    spelt = jnp.broadcast_to(real[..., None], (rows, events, levels))
    separators = jnp.broadcast_to(jnp.asarray(between), (rows, events, len(between)))

    def row(tokens: np.ndarray) -> Array:
        return jnp.broadcast_to(jnp.asarray(tokens), (rows, len(tokens)))

    def flat(one: Array, other: Array) -> Array:
        return jnp.concatenate([one, other], axis=-1).reshape(rows, -1)

    tokens = jnp.concatenate([row(before), flat(separators, code_tokens), row(after)], axis=1)
    ends = (jnp.ones((rows, len(before)), bool), jnp.ones((rows, len(after)), bool))
    exists = jnp.concatenate([ends[0], flat(separated, spelt), ends[1]], axis=1)
    position = jnp.cumsum(exists, axis=1, dtype=jnp.int32) - 1
    return Laid(tokens, exists, jnp.maximum(position, 0))
