"""One token per item in a prompt of codes, while what is written keeps all codes.

GenRec of JD (METHODS B7): in the prompt of a decoder-only model the vectors of an item's codes
become one, `h = W [e(s1); e(s2); ..] + b`; special tokens stay as they are, and the codes that the
model writes are never merged. The attention then reads a prompt of about half the length (three
codes and a separator: four tokens become two).

`plan_merge` finds the items in a sequence of tokens, `merge_tokens` merges their vectors, and
`TokenMerger` holds the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from jaxrec.backbones.layers import Stack, project, zeros
from jaxrec.backbones.masks import TokenMetadata
from jaxrec.types import TokenSpace


class MergePlan(NamedTuple):
    """What each token of a merged sequence is made of; padding on the right."""

    source: Int32[Array, "b m"]
    """Token that it comes from: the first code, for an item."""
    is_item: Bool[Array, "b m"]
    """Whether it is a whole item, rather than a single token."""
    segment: Int32[Array, "b m"]
    """Sequence that it belongs to: 1, 2, ...; 0 is padding."""
    position: Int32[Array, "b m"]
    """Place inside the merged sequence, consecutive from 0; 0 at padding."""

    @property
    def metadata(self) -> TokenMetadata:
        """What masks may know about the merged tokens."""
        return TokenMetadata(self.segment, self.position)


def plan_merge(
    tokens: Int32[Array, "b s"],
    segment: Int32[Array, "b s"],
    prompt: Bool[Array, "b s"],
    space: TokenSpace,
    length: int | None = None,
) -> MergePlan:
    """Finds the items of a prompt.

    An item is a run of one code of each level, in order, inside one segment and inside the prompt.
    Everything else stays as it is: special tokens, codes that were written or are to be, and codes
    of an item that was cut.

    Args:
        tokens: in the flat vocabulary of `space`; several sequences may share a row.
        segment: sequence of each token, 0 at padding.
        prompt: True where tokens may be merged; False at targets.
        space: the token space; its levels, an extra digit included, are the codes of an item.
        length: tokens of a merged row; as many as `tokens` has by default. What finds no room is
            cut off.
    """
    count = tokens.shape[1]
    starts = (segment > 0) & prompt
    for level, (first, size) in enumerate(zip(space.offsets, space.sizes)):
        code, inside, may = (_later(each, level) for each in (tokens, segment, prompt))
        is_code = (code >= first) & (code < first + size)
        starts = starts & is_code & (inside == segment) & may
    absorbed = jnp.zeros_like(starts)
    for level in range(1, space.levels):
        absorbed = absorbed | jnp.pad(starts[:, :-level], ((0, 0), (level, 0)))[:, :count]
    kept = (segment > 0) & ~absorbed
    # Stable: the kept tokens in their order, then the others.
    source = jnp.argsort(~kept, axis=1, stable=True).astype(jnp.int32)
    source = source[:, :length]
    exists = jnp.take_along_axis(kept, source, axis=1)
    of_merged = jnp.where(exists, jnp.take_along_axis(segment, source, axis=1), 0)
    is_item = exists & jnp.take_along_axis(starts, source, axis=1)
    return MergePlan(source, is_item, of_merged, _places(of_merged))


def merge_tokens(
    vectors: Float[Array, "b s d"],
    plan: MergePlan,
    kernel: Float[Array, "l d d"],
    bias: Float[Array, " d"],
) -> Float[Array, "b m d"]:
    """Vectors of a merged sequence: `b + sum_l e(s_l) W_l` of an item, the token's own of others.

    Args:
        vectors: of the tokens that the plan was made of.
        plan: from `plan_merge`.
        kernel: a matrix for each level; side by side they are the paper's W.
        bias: added to items.
    """
    levels = kernel.shape[0]
    # Codes after an item's first are there; what is read beyond a single token is not used.
    codes = plan.source[..., None] + jnp.arange(levels)
    flat = jnp.minimum(codes, vectors.shape[1] - 1).reshape(codes.shape[0], -1)
    read = jnp.take_along_axis(vectors, flat[..., None], axis=1)
    read = read.reshape(*codes.shape, -1)
    joined = read.reshape(*read.shape[:2], -1)
    merged = project(joined, kernel.reshape(-1, kernel.shape[-1])) + bias.astype(vectors.dtype)
    return jnp.where(plan.is_item[..., None], merged, read[:, :, 0])


class TokenMerger(nn.Module):
    """The weights of `merge_tokens`; at first an item is the mean of its codes' vectors.

    The paper does not say how W starts; the mean leaves a pretrained model nearest to what it
    knows.
    """

    cfg: Stack
    levels: int

    @nn.compact
    def __call__(self, vectors: Array, plan: MergePlan) -> Array:
        width = self.cfg.width
        kernel = self.param("kernel", mean(None, "embed", None), (self.levels, width, width))
        bias = self.param("bias", zeros("embed"), (width,))
        return merge_tokens(vectors, plan, kernel, bias)


def mean(*axes: str | None) -> Callable[..., Any]:
    """Initialiser `[l d d]` of the mean over levels, whose parameter carries logical axis names."""

    def init(key: Array, shape: tuple[int, int, int]) -> Array:
        del key
        return jnp.broadcast_to(jnp.eye(shape[1]) / shape[0], shape)

    return nn.with_logical_partitioning(init, axes)


def _later(x: Array, steps: int) -> Array:
    """What stands so many places to the right; zeros beyond the end."""
    return jnp.pad(x[:, steps:], ((0, 0), (0, min(steps, x.shape[1]))))


def _places(segment: Int32[Array, "b m"]) -> Int32[Array, "b m"]:
    """Places inside each segment, from 0; segments lie together."""
    index = jnp.arange(segment.shape[1], dtype=jnp.int32)
    before = jnp.pad(segment[:, :-1], ((0, 0), (1, 0)))
    first = jax.lax.cummax(jnp.where(segment != before, index, 0), axis=1)
    return jnp.where(segment > 0, index - first, 0)
