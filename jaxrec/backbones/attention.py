"""Attention, in one place: all queries at once, and one query a beam against a cache.

Layout is `[b t h d]` (batch, time, heads, size of a head). Key-value heads may be fewer than query
heads (grouped queries): query head `i` reads key-value head `i // (heads // kv_heads)`. Scores and
softmax are float32 whatever the inputs are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrec.backbones.dropout import drop
from jaxrec.backbones.splash import splash_attention

IMPLEMENTATIONS = ("xla", "cudnn", "splash")
"""`xla` runs on every platform; `cudnn` is the fused kernel on NVIDIA, for 16-bit inputs only;
`splash` is the block-sparse kernel on TPUs, for rows that are a multiple of 128."""

MASKED = -1e30
"""Score of a pair that the mask forbids: finite, so that a query without any key stays finite."""


def attention(
    q: Float[Array, "b q h d"],
    k: Float[Array, "b t g d"],
    v: Float[Array, "b t g d"],
    *,
    mask: Bool[Array, "#b #h #q #t"] | None = None,
    bias: Float[Array, "#b #h #q #t"] | None = None,
    kept: Bool[Array, "b h q t"] | None = None,
    rate: float = 0.0,
    implementation: str = "xla",
) -> Float[Array, "b q h d"]:
    """Scaled dot-product attention, `softmax(q k^T / sqrt(d) + bias) v`.

    Args:
        q: queries, `h` heads.
        k: keys, `g` heads; `g` divides `h`.
        v: values.
        mask: True where the query may see the key. A query that sees no key gets 0.
        bias: added to the scaled scores before the softmax.
        kept: dropout of the attention probabilities: which of them stay, from `draw_kept`. The
            fused implementations cannot; the probabilities then exist as an array.
        rate: that of the draw.
        implementation: one of `IMPLEMENTATIONS`.

    Raises:
        ValueError: unknown implementation, one that cannot do what is asked, or `g` does not divide
            `h`.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention has no implementation {implementation!r}; "
            f"choose one of {', '.join(IMPLEMENTATIONS)}."
        )
    _check_heads(q.shape[2], k.shape[2])
    if kept is not None:
        return _dropped_attention(q, k, v, mask, bias, kept, rate)
    if implementation == "splash":
        mixed = _splash(q, k, v, mask, bias)
    else:
        fused = "cudnn" if implementation == "cudnn" else "xla"
        mixed = jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, implementation=fused)
    if mask is None:
        return mixed
    sees_a_key = jnp.any(mask, axis=-1).swapaxes(1, 2)[..., None]
    return jnp.where(sees_a_key, mixed, jnp.zeros((), mixed.dtype))


def _splash(q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None) -> Array:
    if mask is None or bias is not None:
        raise ValueError(
            "attention='splash' needs a mask and knows no bias; use attention='xla' for this "
            "network."
        )
    return splash_attention(q, k, v, mask)


def shared_history_attention(
    q: Float[Array, "b w h d"],
    keys: Float[Array, "b t g d"],
    values: Float[Array, "b t g d"],
    key_mask: Bool[Array, "b t"],
    beam_keys: Float[Array, "b w s g d"],
    beam_values: Float[Array, "b w s g d"],
    beam_mask: Bool[Array, " s"],
) -> Float[Array, "b w h d"]:
    """One query a beam over a history that the beams share and a few tokens of its own.

    The history's keys and values are read in place, never copied per beam; the softmax runs over
    both groups of scores together.

    Args:
        q: the newest token of each beam.
        keys: keys of the history, shared by the beams of a row.
        values: values of the history.
        key_mask: True at the keys that exist; the same for every beam.
        beam_keys: keys of the `s` tokens that each beam generated, the newest included.
        beam_values: their values.
        beam_mask: True at the slots that are filled.
    """
    groups, size = keys.shape[2], q.shape[-1]
    _check_heads(q.shape[2], groups)
    grouped = q.reshape(*q.shape[:2], groups, -1, size)
    old = _scores("bwgrd,btgd->bwgrt", grouped, keys)
    new = _scores("bwgrd,bwsgd->bwgrs", grouped, beam_keys)
    old = jnp.where(key_mask[:, None, None, None, :], old, MASKED)
    new = jnp.where(beam_mask, new, MASKED)
    shares = jax.nn.softmax(jnp.concatenate([old, new], axis=-1), axis=-1).astype(values.dtype)
    old, new = jnp.split(shares, [keys.shape[1]], axis=-1)
    mixed = jnp.einsum("bwgrt,btgd->bwgrd", old, values)
    mixed += jnp.einsum("bwgrs,bwsgd->bwgrd", new, beam_values)
    sees_a_key = jnp.any(key_mask, axis=-1) | jnp.any(beam_mask)
    mixed = jnp.where(sees_a_key[:, None, None, None, None], mixed, jnp.zeros((), mixed.dtype))
    return mixed.reshape(q.shape)


def _dropped_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    bias: Array | None,
    kept: Array,
    rate: float,
) -> Array:
    """`attention` with its probabilities spelt out, so that some can be dropped."""
    grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
    scores = _scores("bqgrd,btgd->bgrqt", grouped, k).reshape(kept.shape)
    scores = scores if bias is None else scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED)
        kept = kept & mask
    shares = drop(jax.nn.softmax(scores, axis=-1).astype(v.dtype), kept, rate)
    shares = shares.reshape(shares.shape[0], k.shape[2], -1, *shares.shape[2:])
    return jnp.einsum("bgrqt,btgd->bqgrd", shares, v).reshape(q.shape)


def unscaled_attention(
    q: Float[Array, "b q h d"],
    k: Float[Array, "b t h d"],
    v: Float[Array, "b t h d"],
    *,
    mask: Bool[Array, "#b 1 #q t"],
    bias: Float[Array, "1 h q t"] | None = None,
    kept: Bool[Array, "b h q t"] | None = None,
    rate: float = 0.0,
) -> Float[Array, "b q h d"]:
    """Attention as in T5, `dropout(softmax(q k^T + bias)) v` (arXiv:1910.10683, section 2.1).

    The scale is in the initial queries instead. Beams that share a history are queries of one row.

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: True where the query may see the key. A query that sees no key gets 0.
        bias: added to the scores.
        kept: which probabilities dropout keeps (`layers.draw_kept`); None keeps all.
        rate: that of the draw.
    """
    scores = jnp.einsum("bqhd,bthd->bhqt", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias
    shares = _masked_softmax(scores, mask)
    return jnp.einsum("bhqt,bthd->bqhd", drop(shares, kept, rate).astype(v.dtype), v)


def history_attention(
    q: Float[Array, "b w h d"],
    keys: Float[Array, "b h d t"],
    values: Float[Array, "b h t d"],
    *,
    mask: Bool[Array, "#b 1 1 t"],
) -> Float[Array, "b w h d"]:
    """One query a beam over a history that the beams share, unscaled as in T5.

    The same as `unscaled_attention`, of keys and values that lie as the products read them: they
    are made once and read at every step, where turning them would take as long as the products. So
    would products whose result is turned on the way; queries and mixtures are turned by themselves.

    Args:
        q: the newest token of each beam.
        keys: keys of the history.
        values: its values.
        mask: True at the keys that exist.
    """
    q = jax.lax.optimization_barrier(jnp.swapaxes(q, 1, 2))
    scores = jnp.einsum("bhwd,bhdt->bhwt", q, keys, preferred_element_type=jnp.float32)
    shares = _masked_softmax(scores, mask).astype(values.dtype)
    mixed = jax.lax.optimization_barrier(jnp.einsum("bhwt,bhtd->bhwd", shares, values))
    return jnp.swapaxes(mixed, 1, 2)


def _masked_softmax(
    scores: Float[Array, "b h q t"], mask: Bool[Array, "#b 1 #q t"]
) -> Float[Array, "b h q t"]:
    shares = jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1)
    # Once more, so that a query without any key gets 0; for the others it changes nothing.
    return jnp.where(mask, shares, 0.0)


def slot_attention(
    q: Float[Array, "b w h d"],
    keys: Float[Array, "b w s h d"],
    values: Float[Array, "b w s h d"],
    *,
    mask: Bool[Array, " s"],
    bias: Float[Array, "h s"],
) -> Float[Array, "b w h d"]:
    """One query a beam over the tokens that the beam wrote itself, unscaled as in T5.

    Sums instead of matrix products: a product for each beam and head, a few numbers wide, takes
    three times as long on CPU.

    Args:
        q: the newest token of each beam.
        keys: keys of the `s` tokens, the newest included.
        values: their values.
        mask: True at the slots that are filled, at least one.
        bias: added to the scores.
    """
    scores = jnp.sum(q[:, :, None].astype(jnp.float32) * keys, axis=-1) + bias.T
    scores = jnp.where(mask[:, None], scores, MASKED)
    shares = jax.nn.softmax(scores, axis=2).astype(values.dtype)
    return jnp.sum(shares[..., None] * values, axis=2)


def _check_heads(heads: int, kv_heads: int) -> None:
    if heads % kv_heads:
        raise ValueError(
            f"{heads} query heads cannot share {kv_heads} key-value heads; "
            "the second number must divide the first."
        )


def _scores(equation: str, q: Array, k: Array) -> Array:
    scores = jnp.einsum(equation, q, k, preferred_element_type=jnp.float32)
    return scores * (q.shape[-1] ** -0.5)
