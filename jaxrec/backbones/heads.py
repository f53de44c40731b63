"""Between codes and states: one vector per item in, the logits of codes out."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrec.backbones.dropout import draw_kept, drop
from jaxrec.backbones.layers import (
    Embedding,
    FeedForward,
    Linear,
    RMSNorm,
    Stack,
    normal,
)
from jaxrec.types import TokenSpace

ILLEGAL = -1e9
"""Logit of a code that its level does not have: large, finite, and without gradient."""


class CodeLogits(nn.Module):
    """One output matrix per level, float32 logits, `ILLEGAL` beyond the size of a level.

    Levels lie in front, so that all of them are one batched matmul. The matrices are not tied to
    the token table: tied output is suspected of weakening small models of semantic IDs (GRID).

    Args of `__call__`:
        x: states of all levels `[l b t d]`, or of one level `[b w d]`.
        level: None for all levels, else the level, which may be traced.

    Returns:
        Logits `[l b t k]` or `[b w k]`.
    """

    cfg: Stack
    space: TokenSpace

    @nn.compact
    def __call__(self, x: Array, level: int | Array | None = None) -> Array:
        space = self.space
        shape = (space.levels, self.cfg.width, space.width)
        kernel = self.param("kernel", normal(self.cfg.initial_scale, None, "embed", "vocab"), shape)
        return level_logits(x, kernel, space, level)


def codes_exist(space: TokenSpace) -> Bool[Array, "l k"]:
    """Which codes each level has."""
    return jnp.arange(space.width) < jnp.asarray(space.sizes)[:, None]


def level_logits(
    x: Float[Array, "*any d"],
    kernel: Float[Array, "l d k"],
    space: TokenSpace,
    level: int | Array | None = None,
) -> Float[Array, "*any k"]:
    """Products of states with the output matrix of their level; `ILLEGAL` beyond its size.

    Args:
        x: states of all levels `[l b t d]`, or of one level `[b w d]`.
        kernel: one matrix per level.
        space: sizes of the levels.
        level: None for all levels, else the level, which may be traced.

    Returns:
        float32 logits.
    """
    if level is None:
        legal = codes_exist(space)[:, None, None]
        rows = x.reshape(space.levels, -1, x.shape[-1])
        logits = jnp.matmul(rows, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
        logits = logits.reshape(*x.shape[:-1], space.width)
    else:
        legal = codes_exist(space)[level]
        logits = jnp.matmul(x, kernel[level].astype(x.dtype), preferred_element_type=jnp.float32)
    if len(set(space.sizes)) == 1:
        return logits
    return jnp.where(legal, logits, ILLEGAL)


class CodeHead(nn.Module):
    """A light decoder of codes on one user state.

    The state for level `l` is `project(user) + sum of the vectors of codes 0..l-1 + level vector`,
    then `layers` pre-norm residual SwiGLUs and a norm. It has no attention: the whole memory
    of a beam is its running sum.

    Args of `__call__`:
        user: states of the history, `[b t d]`, or with a level `[b 1 d]`.
        prefix: sums of the vectors of the earlier codes, `[l b t d]`, or with a level `[b w d]`.
        level: None for all levels, else the level, which may be traced.
        key: for dropout of the residual branches, the same draw for all levels; None switches it
            off.

    Returns:
        Logits `[l b t k]` or `[b w k]`.
    """

    cfg: Stack
    space: TokenSpace
    layers: int

    @nn.compact
    def __call__(
        self,
        user: Array,
        prefix: Array,
        level: int | Array | None = None,
        key: Array | None = None,
    ) -> Array:
        cfg = self.cfg
        kept = [None] * self.layers
        if key is not None:
            kept = list(draw_kept(key, (self.layers, *user.shape), cfg.dropout))
        shape = (self.space.levels, cfg.width)
        levels = self.param("level", normal(cfg.initial_scale, None, "embed"), shape)
        levels = levels.astype(user.dtype)
        levels = levels[:, None, None] if level is None else levels[level]
        x = Linear(cfg, name="project")(user) + prefix + levels
        for layer in range(self.layers):
            normed = RMSNorm(name=f"norm_{layer}")(x)
            branch = FeedForward(cfg, name=f"feedforward_{layer}")(normed)
            x = x + drop(branch, kept[layer], cfg.dropout)
        return CodeLogits(cfg, self.space, name="output")(RMSNorm(name="norm")(x), level)


class MergeCodes(nn.Module):
    """One vector per item: a projection of the sum of its code vectors, plus its bucket's."""

    cfg: Stack
    item_buckets: int

    @nn.compact
    def __call__(self, total: Array, item: Array) -> Array:
        x = Linear(self.cfg, name="project")(RMSNorm(name="norm")(total))
        if self.item_buckets:
            x = x + Embedding(self.cfg, self.item_buckets, name="items")(item % self.item_buckets)
        return x
