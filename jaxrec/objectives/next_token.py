"""Next-token prediction over the codes of semantic IDs (METHODS O1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from jaxrec.types import Events, PyTree, Tables

LEVEL_REDUCTIONS = ("sum", "mean")

LEGAL = -1e8
"""Logits at or below are codes that their level does not have (backbones write -1e9)."""


def code_losses(
    logits: Float[Array, "*n k"],
    codes: Int32[Array, "*n"],
    *,
    label_smoothing: float = 0.0,
    normalised: bool = False,
) -> Float[Array, "*n"]:
    """Cross-entropy of each code, `logsumexp(z) - z_c`, in nats.

    With smoothing the target puts `1 - s` on the code and `s / K` on each of the `K` legal codes:
    `logsumexp(z) - (1 - s) z_c - s mean_legal(z)`. Log-probabilities are never materialised.

    Args:
        logits: any number of leading axes; a logit of at most -1e8 marks a code that the level
            does not have, which takes part in nothing.
        codes: the observed codes.
        label_smoothing: `s`, in [0, 1).
        normalised: the logits are log-probabilities already, over more than the level's codes: the
            normaliser counts as 0.

    Returns:
        One loss per code.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> logits = jnp.array([[0.0, 0.0, -1e9], [0.0, 0.0, 0.0]])
        >>> [f"{loss:.4f}" for loss in code_losses(logits, jnp.array([0, 2]))]  # log 2, log 3
        ['0.6931', '1.0986']
        >>> jax.jit(code_losses)(logits, jnp.array([0, 2])).shape
        (2,)
        >>> jax.vmap(code_losses)(logits, jnp.array([0, 2])).shape
        (2,)
    """
    chosen = jnp.take_along_axis(logits, codes[..., None], axis=-1)[..., 0]
    normaliser = 0.0 if normalised else jax.nn.logsumexp(logits, axis=-1)
    if label_smoothing == 0.0:
        return normaliser - chosen
    legal = logits > LEGAL
    average = jnp.sum(jnp.where(legal, logits, 0.0), axis=-1) / jnp.sum(legal, axis=-1)
    return normaliser - (1.0 - label_smoothing) * chosen - label_smoothing * average


def next_token_loss(
    logits: Float[Array, "b t l k"],
    codes: Int32[Array, "b t l"],
    weight: Float[Array, "b t"],
    *,
    label_smoothing: float = 0.0,
    level_reduction: str = "sum",
    normalised: bool = False,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted sum of the negative log-likelihood of events, and the sum of weights.

    `L = sum_bt weight_bt * reduce_l (-log p(c_btl | c_bt<l, history))`. Each level has a softmax
    of its own, over its own codes.

    Args:
        logits: teacher-forced logits; at most -1e8 where a level does not have the code.
        codes: observed codes.
        weight: weight of every event as a target; at 0 it counts for nothing.
        label_smoothing: share of the target spread over the legal codes of the level.
        level_reduction: `sum` is the likelihood of the item (TIGER, OneRec); `mean` divides by
            the number of levels (OneRec-V2, Hugging Face), which lowers the learning rate by it.
        normalised: the logits are log-probabilities already.

    Returns:
        Sum and weight; their quotient is the loss per event.

    Raises:
        ValueError: unknown reduction, or smoothing outside [0, 1).

    Example:
        A uniform model pays the sum of log K over the levels:

        >>> import jax, jax.numpy as jnp
        >>> logits, codes = jnp.zeros((1, 2, 3, 4)), jnp.zeros((1, 2, 3), jnp.int32)
        >>> total, weight = next_token_loss(logits, codes, jnp.array([[1.0, 0.0]]))
        >>> round(float(total / weight), 4)  # 3 log 4
        4.1589
        >>> slope = jax.grad(lambda z: next_token_loss(z, codes, jnp.ones((1, 2)))[0])(logits)
        >>> slope[0, 0, 0].tolist()
        [-0.75, 0.25, 0.25, 0.25]
    """
    _check(label_smoothing, level_reduction)
    losses = code_losses(logits, codes, label_smoothing=label_smoothing, normalised=normalised)
    return _weighted(_reduce(losses, level_reduction), weight)


def is_top_code(logits: Float[Array, "*n k"], codes: Int32[Array, "*n"]) -> Bool[Array, "*n"]:
    """Whether the observed code ranks first; among equal logits the lowest code does.

    Equals `argmax(logits) == codes` in one fused pass, several times faster on CPU.

    Example:
        >>> import jax.numpy as jnp
        >>> is_top_code(jnp.array([[1.0, 2.0], [2.0, 2.0]]), jnp.array([1, 1])).tolist()
        [True, False]
    """
    codes = codes[..., None]
    chosen = jnp.take_along_axis(logits, codes, axis=-1)
    earlier = jnp.arange(logits.shape[-1]) < codes
    return ~jnp.any((logits > chosen) | ((logits == chosen) & earlier), axis=-1)


@dataclasses.dataclass(frozen=True)
class NextToken:
    """The objective of supervised training: predict every code of every event.

    Raises:
        ValueError: unknown reduction, or smoothing outside [0, 1).
    """

    label_smoothing: float = 0.0
    level_reduction: str = "sum"
    normalised: bool = False
    """The network gives log-probabilities (`T5(softmax="vocabulary")`)."""

    def __post_init__(self) -> None:
        _check(self.label_smoothing, self.level_reduction)

    def __call__(
        self,
        apply: Callable[[PyTree, Tables, Events, Array | None], Array],
        params: PyTree,
        tables: Tables,
        batch: Events,
        key: Array | None,
    ) -> tuple[Array, Array, dict[str, tuple[Array, Array]]]:
        """Loss of a batch.

        Args:
            apply: `(params, tables, batch, key) -> logits [b m l k]`, of the last `m` events of
                each row: all of them in a causal decoder, the last one in an encoder-decoder.
            params: parameters of the network.
            tables: codes of the items.
            batch: histories, with the weight of every event as a target.
            key: for dropout; None switches it off.

        Returns:
            Sum, weight, and metrics as (sum, weight): for every level `l` its loss without
            smoothing, `loss_level_l`, and the share of events whose code ranks first among its
            level's, given the true codes before it, `accuracy_level_l`.
        """
        logits = apply(params, tables, batch, key)
        answered = slice(batch.item.shape[1] - logits.shape[1], None)
        codes = jnp.take(tables.codes, batch.item[:, answered], axis=0, mode="clip")
        of_event = batch.weight[:, answered]
        losses = code_losses(logits, codes, normalised=self.normalised)
        smoothed = losses
        if self.label_smoothing:
            smoothed = code_losses(
                logits, codes, label_smoothing=self.label_smoothing, normalised=self.normalised
            )
        total, weight = _weighted(_reduce(smoothed, self.level_reduction), of_event)
        hits = is_top_code(jax.lax.stop_gradient(logits), codes).astype(jnp.float32)
        metrics = {}
        for level in range(codes.shape[-1]):
            seen = jax.lax.stop_gradient(losses[..., level])
            metrics[f"loss_level_{level}"] = _weighted(seen, of_event)
            metrics[f"accuracy_level_{level}"] = _weighted(hits[..., level], of_event)
        return total, weight, metrics


def _check(label_smoothing: float, level_reduction: str) -> None:
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing={label_smoothing} must lie in [0, 1).")
    if level_reduction not in LEVEL_REDUCTIONS:
        raise ValueError(
            f"level_reduction={level_reduction!r} is unknown; "
            f"choose one of {', '.join(LEVEL_REDUCTIONS)}."
        )


def _reduce(losses: Float[Array, "b t l"], level_reduction: str) -> Float[Array, "b t"]:
    return losses.sum(-1) if level_reduction == "sum" else losses.mean(-1)


def _weighted(values: Float[Array, "b t"], weight: Float[Array, "b t"]) -> tuple[Array, Array]:
    return jnp.sum(values * weight), jnp.sum(weight)
