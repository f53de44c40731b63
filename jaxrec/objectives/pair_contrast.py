"""Pairs of items that belong together, against all other pairs of the batch (METHODS R5, O11).

    L = - sum_i log( exp(cos(z_i, p_i) / tau) / sum_j exp(cos(z_i, p_j) / tau) )

The item-to-item loss by which QARM (arXiv:2411.11739) and OneRec (arXiv:2506.13695) bend vectors of
content towards behaviour; InfoNCE (van den Oord et al., arXiv:1807.03748) in form.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

_SMALLEST_SQUARE = 1e-12
"""A shorter vector has no direction; its cosines shrink to 0 and its slope stays finite."""


def pair_contrast(
    anchors: Float[Array, "b d"],
    partners: Float[Array, "b d"],
    anchor_ids: Int32[Array, " b"],
    partner_ids: Int32[Array, " b"],
    temperature: float | Float[Array, ""],
    weight: Float[Array, " b"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted sum of the losses of all pairs, and the sum of the weights.

    A partner of another row is no negative where it is a known false one, see `false_negatives`.

    Args:
        anchors: vectors of the first items, of any length.
        partners: vectors of the second items.
        anchor_ids: which items the anchors are.
        partner_ids: which items the partners are.
        temperature: cosines are divided by it.
        weight: of each pair; at 0 it counts for nothing, and is no negative of others.

    Example:
        Aligned with its partner, at right angles to the only other one:

        >>> import jax.numpy as jnp
        >>> ids = jnp.array([0, 1]), jnp.array([2, 3])
        >>> total, _ = pair_contrast(jnp.eye(2), jnp.eye(2), *ids, 1.0)
        >>> round(float(total) / 2, 4)  # log(1 + 1 / e)
        0.3133
    """
    weight = jnp.ones(len(anchors), jnp.float32) if weight is None else weight
    logits = jnp.matmul(_unit(anchors), _unit(partners).T, precision=jax.lax.Precision.HIGHEST)
    logits = logits / temperature
    left_out = false_negatives(anchor_ids, partner_ids) | (weight == 0)[None, :]
    left_out &= ~jnp.eye(len(anchors), dtype=bool)
    mass = jax.nn.logsumexp(jnp.where(left_out, -jnp.inf, logits), axis=1)
    losses = mass - jnp.diagonal(logits)
    # A row without weight may hold anything, also what is not finite.
    return jnp.sum(jnp.where(weight > 0, losses * weight, 0.0)), jnp.sum(weight)


def false_negatives(
    anchor_ids: Int32[Array, " b"], partner_ids: Int32[Array, " b"]
) -> Bool[Array, "b b"]:
    """Whether the partner of row j is none for the anchor of row i to be told apart from: it is
    i's own partner, i's anchor itself, or the partner of a row with the same anchor.

    >>> import jax.numpy as jnp
    >>> false_negatives(jnp.array([0, 0, 1]), jnp.array([5, 6, 5]))[0]
    Array([ True,  True,  True], dtype=bool)
    """
    is_partner = partner_ids[:, None] == partner_ids[None, :]
    is_itself = anchor_ids[:, None] == partner_ids[None, :]
    has_same_anchor = anchor_ids[:, None] == anchor_ids[None, :]
    return is_partner | is_itself | has_same_anchor


def _unit(vectors: Float[Array, "b d"]) -> Float[Array, "b d"]:
    vectors = vectors.astype(jnp.float32)
    square = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(square, _SMALLEST_SQUARE))
