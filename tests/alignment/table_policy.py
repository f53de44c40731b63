"""A policy that is a table: a softmax at every prefix, whatever the history says."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.types import Events, Tables, TokenSpace


@dataclasses.dataclass(frozen=True)
class TablePolicy:
    """A Generator with one row of logits a prefix."""

    scale: float = 0.0
    """Standard deviation of the logits at the start."""

    def init(self, key, space):
        rows, tables = 1, []
        for level, size in enumerate(space.sizes):
            drawn = jax.random.normal(jax.random.fold_in(key, level), (rows, space.width))
            tables.append(self.scale * drawn)
            rows *= size
        return {f"level_{level}": table for level, table in enumerate(tables)}

    def axes(self, space):
        return {f"level_{level}": (None, None) for level in range(space.levels)}

    def flops(self, space, rows, length):
        return float(rows * length * space.vocabulary)

    def parameters(self, space):
        return sum(
            np.prod(space.sizes[:level], dtype=int) * space.width for level in range(space.levels)
        )

    def prefill(self, params, tables, batch, space):
        return jnp.zeros((batch.item.shape[0], 1), jnp.int32)

    def step(self, params, cache, codes, parents, level, space):
        node = jnp.take_along_axis(cache, parents, axis=1)
        if level:
            node = node * space.sizes[level - 1] + codes
        logits = params[f"level_{level}"][node]
        legal = jnp.arange(space.width) < space.sizes[level]
        return jnp.where(legal, logits, -1e9), node


def item_probabilities(params, codes, space):
    """Of every item, by definition: renormalised over the codes that lead to an item."""
    codes = np.asarray(codes)
    log_p = np.zeros(len(codes))
    for level in range(space.levels):
        table = np.asarray(params[f"level_{level}"], np.float64)
        for prefix in {tuple(row[:level]) for row in codes}:
            below = (codes[:, :level] == prefix).all(axis=1)
            node = 0
            for depth, code in enumerate(prefix):
                node = node * space.sizes[depth] + code
            live = np.unique(codes[below, level])
            mass = np.log(np.exp(table[node, live]).sum())
            log_p[below] += table[node, codes[below, level]] - mass
    return np.exp(log_p)


def world(items=64, sizes=(4, 4, 4), seed=0):
    """Codes of all items, and their tables and space."""
    space = TokenSpace(sizes)
    every = np.stack(np.unravel_index(np.arange(int(np.prod(sizes))), sizes), axis=1)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(every))[:items])
    codes = every[chosen].astype(np.int32)
    return codes, space, Tables(jnp.asarray(codes))


def contexts(rows, items, seed=0, length=3):
    """Histories that nobody looks at, and targets."""
    random = np.random.default_rng(seed)
    shape = (rows, length)
    none = np.zeros(shape, np.int32)
    place = none + np.arange(length, dtype=np.int32)
    item = random.integers(0, items, shape, dtype=np.int32)
    events = Events(item, none + 1, place, none, none, none.astype(np.float32))
    return events, random.integers(0, items, rows, dtype=np.int32)
