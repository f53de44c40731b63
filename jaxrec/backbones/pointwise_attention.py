"""Pointwise attention (HSTU: Zhai et al., arXiv:2402.17152; METHODS B4): SiLU, no softmax.

    A = SiLU(q k^T + bias) / n * M;   out = A v

The weights of a query do not sum to one, so how much of something a history holds is not lost. `n`
is a constant of the network, the longest row that it reads, not the length of the row at hand. The
mask multiplies after the activation, for SiLU(-inf) is no zero to compute with.

The relative bias is a sum of two lookups in tables that all heads share: one by the difference of
positions, one by the difference of times in buckets that grow by e^.301 (the published code takes a
natural logarithm where .301 = log10(2) suggests another base).

Scores, bias and activation are float32 whatever the inputs are. Rows longer than a block are
attended to a block of queries at a time, forward and backward, so that no array of all pairs ever
exists: mask and bias too are made block by block, from what is known of each token. Where no query
sees a key that stands after it, the keys behind a block are not scored at all, which saves up to
half of the work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jaxrec.backbones.masks import Predicate, TokenMetadata, compile_mask, packed
from jaxrec.types import PyTree

LAST_BUCKET = 128
"""Bucket of all times from there on; a table of times has one entry more. Differences of int32
seconds end at bucket 71."""
BUCKET_WIDTH = 0.301
"""Nepers a bucket."""
TIME = "time"
"""Label that holds times: of queries when they are asked, of keys when they happened."""


class RelativeBias(NamedTuple):
    """What is added to a score for where and when query and key are; None adds nothing."""

    position: Float[Array, " positions"] | None = None
    """One number a difference of positions, `2 n - 1` of them; see `position_bias`."""
    time: Float[Array, " buckets"] | None = None
    """One number a bucket, `LAST_BUCKET + 1` of them; see `time_bias`."""


NO_BIAS = RelativeBias()


def position_bias(
    table: Float[Array, " positions"], query: Int32[Array, "*#any"], key: Int32[Array, "*#any"]
) -> Float[Array, "*any"]:
    """Entry `key - query + n - 1` of a table of `2 n - 1` numbers, clipped into it.

    Args:
        table: its middle stands for a token and itself, the entries before it for the past.
        query: positions of the queries, shaped to broadcast against those of the keys.
        key: positions of the keys.
    """
    return jnp.take(table, key - query + table.shape[0] // 2, mode="clip")


def time_buckets(seconds: Int32[Array, "*any"]) -> Int32[Array, "*any"]:
    """Bucket of a difference of times, `floor(ln(max(|seconds|, 1)) / .301)`, at most 128.

    Example:
        A minute, an hour, a day, a year:

        >>> import jax.numpy as jnp
        >>> time_buckets(jnp.array([60, 3600, 86400, 31536000])).tolist()
        [13, 27, 37, 57]
    """
    size = jnp.maximum(jnp.abs(seconds), 1).astype(jnp.float32)
    return jnp.minimum(jnp.log(size) / BUCKET_WIDTH, LAST_BUCKET).astype(jnp.int32)


def time_bias(
    table: Float[Array, " buckets"], query: Int32[Array, "*#any"], key: Int32[Array, "*#any"]
) -> Float[Array, "*any"]:
    """Entry of the bucket of `query - key`, clipped into the table.

    Args:
        table: one number a bucket.
        query: seconds at which the queries are asked, shaped to broadcast against the keys.
        key: seconds at which the keys happened.
    """
    return jnp.take(table, time_buckets(query - key), mode="clip")


def relative_bias(
    bias: RelativeBias, query: TokenMetadata, key: TokenMetadata
) -> Float[Array, "b 1 q t"] | float:
    """The bias of all pairs, the axis of length 1 that of the heads; 0 without any table.

    Args:
        bias: the tables.
        query: metadata of the queries, arrays `[b q]`, with the label `time` for a table of times.
        key: metadata of the keys, arrays `[b t]`, alike.
    """

    def pair(of_query: Array, of_key: Array) -> tuple[Array, Array]:
        return of_query[:, None, :, None], of_key[:, None, None, :]

    total = 0.0
    if bias.position is not None:
        total = total + position_bias(bias.position, *pair(query.position, key.position))
    if bias.time is not None:
        total = total + time_bias(bias.time, *pair(query.labels[TIME], key.labels[TIME]))
    return total


def pointwise_attention(
    q: Float[Array, "b q h d"],
    k: Float[Array, "b t h d"],
    v: Float[Array, "b t h dv"],
    query: TokenMetadata,
    key: TokenMetadata,
    *,
    normaliser: int,
    bias: RelativeBias = NO_BIAS,
    allow: Predicate = packed,
    block: int | None = None,
    ordered: bool = False,
    recompute: bool = True,
) -> Float[Array, "b q h dv"]:
    """`(SiLU(q k^T + bias) / n * M) v`, unscaled: no division by the root of `d`.

    Args:
        q: queries.
        k: keys.
        v: values.
        query: what mask and bias know of the queries, arrays `[b q]`.
        key: what they know of the keys, arrays `[b t]`.
        normaliser: `n`, tokens of the longest row that is ever read.
        bias: tables of the relative bias; a table of times reads the label `time`.
        allow: who may attend to whom. A query that sees no key gets 0.
        block: queries that are attended at a time, one pass over all by default. Memory grows with
            `block x t` instead of `q x t`; results do not change.
        ordered: `allow` forbids every key that stands after its query; rows of queries are then the
            last ones of the rows of keys. Has an effect with blocks only.
        recompute: with blocks, compute the weights anew in the backward pass; False keeps those of
            all blocks, for short rows.

    Raises:
        ValueError: a number below 1, or a table of times beside tokens without the label `time`.
    """
    if normaliser < 1 or (block is not None and block < 1):
        raise ValueError(
            f"pointwise attention needs normaliser >= 1 and block >= 1, got {normaliser} and "
            f"{block}; leave block at None to attend from all queries at once."
        )
    if bias.time is not None and not (TIME in query.labels and TIME in key.labels):
        raise ValueError(
            f"a bias by time reads the label {TIME!r} of queries and keys; they have "
            f"{sorted(query.labels)} and {sorted(key.labels)}. Add it or drop the table."
        )

    def attend(q: Array, query: TokenMetadata, k: Array, v: Array, key: TokenMetadata) -> Array:
        scores = jnp.einsum("bqhd,bthd->bhqt", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.silu(scores + relative_bias(bias, query, key)) / normaliser
        weights = jnp.where(compile_mask(allow, query, key), weights, 0.0).astype(v.dtype)
        return jnp.einsum("bhqt,bthd->bqhd", weights, v)

    if block is None or q.shape[1] <= block:
        return attend(q, query, k, v, key)
    # A scan keeps its steps apart by itself.
    part = jax.checkpoint(attend, prevent_cse=ordered) if recompute else attend
    if ordered:
        return _in_order(part, q, query, (k, v, key), block)
    return _by_blocks(lambda q, query: part(q, query, k, v, key), q, query, block)


def _in_order(
    attend: Callable[..., Array],
    q: Array,
    query: TokenMetadata,
    seen: tuple[Array, Array, TokenMetadata],
    block: int,
) -> Array:
    """`attend` for a block of queries after the other, each over the keys up to its last query."""
    length, before = q.shape[1], seen[0].shape[1] - q.shape[1]

    def columns(tree: PyTree, first: int, last: int) -> PyTree:
        return jax.tree.map(lambda array: array[:, first:last], tree)

    parts = []
    for first in range(0, length, block):
        last = min(first + block, length)
        asked, known = columns((q, query), first, last), columns(seen, 0, before + last)
        parts.append(attend(*asked, *known))
    return jnp.concatenate(parts, axis=1)


def _by_blocks(
    attend: Callable[[Array, TokenMetadata], Array], q: Array, query: TokenMetadata, block: int
) -> Array:
    """`attend` for a block of queries after the other; the last one is filled up with zeros."""
    rows, length = q.shape[:2]
    blocks = -(-length // block)

    def split(array: Array) -> Array:
        fill = [(0, 0), (0, blocks * block - length)] + [(0, 0)] * (array.ndim - 2)
        parts = jnp.pad(array, fill).reshape(rows, blocks, block, *array.shape[2:])
        return jnp.moveaxis(parts, 1, 0)

    mixed = jax.lax.map(lambda part: attend(*part), jax.tree.map(split, (q, query)))
    mixed = jnp.moveaxis(mixed, 0, 1)
    return mixed.reshape(rows, blocks * block, *mixed.shape[3:])[:, :length]
