"""A small catalogue and batches of histories for the tests of decoders."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxrec.types import Events, Tables, TokenSpace

SPACE = TokenSpace((7, 5, 3))
ITEMS = 40


def make_codes(space: TokenSpace = SPACE, items: int = ITEMS, seed: int = 0) -> np.ndarray:
    """Random codes of the items, int32 `[n, l]`."""
    random = np.random.default_rng(seed)
    columns = [random.integers(0, size, items) for size in space.sizes]
    return np.stack(columns, axis=1).astype(np.int32)


def make_events(*rows: list[list[int]], length: int) -> Events:
    """Packs histories (lists of items) into rows; the rest is padding full of rubbish."""
    item = np.full((len(rows), length), 33, np.int32)
    segment = np.zeros((len(rows), length), np.int32)
    position = np.full((len(rows), length), 5, np.int32)
    for row, histories in enumerate(rows):
        at = 0
        for number, history in enumerate(histories, start=1):
            stop = at + len(history)
            item[row, at:stop] = history
            segment[row, at:stop] = number
            position[row, at:stop] = np.arange(len(history))
            at = stop
    zeros = jnp.zeros(item.shape, jnp.int32)
    return Events(
        jnp.asarray(item),
        jnp.asarray(segment),
        jnp.asarray(position),
        zeros,
        zeros,
        jnp.asarray(segment > 0, jnp.float32),
    )


@dataclasses.dataclass(frozen=True)
class World:
    """What most tests need."""

    space: TokenSpace
    tables: Tables
    codes: np.ndarray
