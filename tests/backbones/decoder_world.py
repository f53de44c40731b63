"""A small catalogue and batches of histories for the tests of decoders."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.backbones.decoder import Decoder
from jaxrec.objectives.next_token import next_token_loss
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


def with_rubbish(batch: Events) -> Events:
    """The same batch with other rubbish in the padding."""
    padding = batch.segment == 0
    return dataclasses.replace(
        batch,
        item=jnp.where(padding, -7, batch.item),
        position=jnp.where(padding, 1000, batch.position),
        time=jnp.where(padding, 10**9, batch.time),
    )


@dataclasses.dataclass(frozen=True)
class World:
    """What most tests need."""

    space: TokenSpace
    tables: Tables
    codes: np.ndarray


# A decoder hashes, so it is a static argument: one compilation for all tests that share it.
static = functools.partial(jax.jit, static_argnames=("decoder", "space"))


@static
def forward(decoder: Decoder, params, tables, batch, space=SPACE, key=None):
    """Logits of every event."""
    return decoder.forward(params, tables, batch, space, key=key)


@static
def prefill(decoder: Decoder, params, tables, batch, space=SPACE):
    """A cache of one beam per row."""
    return decoder.prefill(params, tables, batch, space)


@static
def first_step(decoder: Decoder, params, cache, codes, parents, space=SPACE):
    """Level 0."""
    return decoder.step(params, cache, codes, parents, 0, space)


@static
def later_step(decoder: Decoder, params, cache, codes, parents, level, space=SPACE):
    """A traced level."""
    return decoder.step(params, cache, codes, parents, level, space)


def mean_loss(decoder, params, tables, batch, key=None):
    """Loss per event."""
    logits = decoder.forward(params, tables, batch, SPACE, key=key)
    total, weight = next_token_loss(logits, tables.codes[batch.item], batch.weight)
    return total / weight


loss_and_slope = functools.partial(jax.jit, static_argnums=0)(
    jax.value_and_grad(mean_loss, argnums=1)
)


def check_slopes(loss_and_slope, params, *, step=0.01):
    """Central differences along random directions, as `check_grads` does, on one compilation.

    Args:
        loss_and_slope: `params -> (loss, slopes)`. A loss around 5 is exact to 1e-6 in float32,
            so a difference over 2 x .01 to 1e-4.
        step: smaller where a network has kinks.

    Returns:
        The slopes.
    """
    random, (_, slopes) = np.random.default_rng(0), loss_and_slope(params)
    for path, slope in jax.tree_util.tree_leaves_with_path(slopes):
        assert np.all(np.isfinite(slope)), path
        assert np.any(np.asarray(slope) != 0), path
        direction = random.normal(size=slope.shape).astype(np.float32)
        direction /= np.sqrt((direction**2).sum())

        def moved(by, path=path, direction=direction):
            there = jax.tree_util.tree_map_with_path(
                lambda place, x: x + by * direction if place == path else x, params
            )
            return float(loss_and_slope(there)[0])

        expected = (moved(step) - moved(-step)) / (2 * step)
        np.testing.assert_allclose((slope * direction).sum(), expected, atol=2e-3, rtol=2e-2)
    return slopes


def random_params(decoder, scale=0.3, space=SPACE):
    """Parameters large enough for every path to matter, norms around 1; drawn in numpy."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0), space))

    def draw(path, leaf):
        numbers = scale * random.normal(size=leaf.shape) + (path[-1].key == "scale")
        return jnp.asarray(numbers, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)
