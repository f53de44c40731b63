"""Several yes-or-no objectives at once: long view, like, follow, ... (METHODS B23, O25).

The loss of reward and ranking networks. A log rarely knows all labels of an impression (whether it
was followed by an order is unknown until days have passed), so labels may be missing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def binary_losses(
    logits: Float[Array, "*n #k"], labels: Float[Array, "*n k"]
) -> Float[Array, "*n k"]:
    """Binary cross-entropy of each label, `softplus(z) - y z`, in nats.

    Args:
        logits: any size is safe: nothing is exponentiated but negative numbers. A last axis of 1
            is one logit for all objectives.
        labels: 0 or 1, or anything between.

    >>> import jax.numpy as jnp
    >>> binary_losses(jnp.array([0.0, -1e4]), jnp.array([1.0, 1.0])).round(4).tolist()
    [0.6930999755859375, 10000.0]
    """
    return jax.nn.softplus(logits) - labels * logits


def multi_task_loss(
    logits: Float[Array, "*n #k"],
    labels: Float[Array, "*n k"],
    known: Bool[Array, "*n k"],
    task_weight: Float[Array, " k"],
    weight: Float[Array, "*n"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted sum of the losses of all labels that are known, and the sum of their weights.

        L = sum_nk known_nk weight_n task_weight_k BCE(z_nk, y_nk)

    Over the sum of the weights it is the mean loss of a label, so that only the proportions of
    `task_weight` matter. With one logit for all objectives it is the loss of OneRec's P-Score
    (arXiv:2506.13695): the optimum is the weighted mean of the objectives' rates.

    Args:
        logits: of every objective, or one for all of them (a last axis of 1).
        labels: 0 or 1; anything, also what is no number, where unknown.
        known: which labels exist.
        task_weight: of each objective, not negative; at 0 it counts for nothing.
        weight: of each example; 1 by default.

    Returns:
        Sum and weight, float32.

    Example:
        An objective of weight 3 at p = 1/2, and one that is unknown:

        >>> import jax.numpy as jnp
        >>> labels, known = jnp.array([[1.0, jnp.nan]]), jnp.array([[True, False]])
        >>> total, weight = multi_task_loss(
        ...     jnp.zeros((1, 2)), labels, known, jnp.array([3.0, 1.0])
        ... )
        >>> round(float(total / weight), 4), float(weight)  # log 2
        (0.6931, 3.0)
    """
    weights = jnp.broadcast_to(task_weight.astype(jnp.float32), labels.shape)
    if weight is not None:
        weights = weights * weight[..., None]
    weights = jnp.where(known, weights, 0.0)
    counts = weights > 0
    # Inside as well, so that neither an unknown label nor its slope can be infinite.
    safe_labels = jnp.where(counts, labels, 0.0)
    safe_logits = jnp.where(counts, logits.astype(jnp.float32), 0.0)
    losses = binary_losses(safe_logits, safe_labels)
    return jnp.sum(weights * losses), jnp.sum(weights)
