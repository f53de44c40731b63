"""Cross-entropy of text and codes over a whole vocabulary, never held whole (METHODS O8, O1).

Logits of a language model are tokens times vocabulary numbers: 16 rows of 1024 tokens over 150,000
words are 10 GB in float32. The loss is therefore taken over stretches of time, one after another,
and each stretch is computed again in the backward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from jaxrec.types import PyTree, Tables, TextBatch

LOGITS = 2**25
"""Logits that exist at one time: 128 MB of float32."""


def token_losses(
    states: Float[Array, "b t d"],
    kernel: Float[Array, "d v"],
    targets: Int32[Array, "b t"],
    *,
    logits: int = LOGITS,
) -> tuple[Float[Array, "b t"], Bool[Array, "b t"]]:
    """Cross-entropy of every token, and whether it ranked first (among equals the lowest does).

    Args:
        states: what each token is foretold from.
        kernel: output matrix.
        targets: the tokens.
        logits: numbers that may exist at one time; it does not change the result.

    Returns:
        Losses in nats, float32, and hits.

    Example:
        >>> import jax.numpy as jnp
        >>> losses, hits = token_losses(jnp.zeros((1, 2, 3)), jnp.ones((3, 4)), jnp.array([[0, 1]]))
        >>> [f"{loss:.4f}" for loss in losses[0]], hits[0].tolist()  # log 4
        (['1.3863', '1.3863'], [True, False])
    """
    rows, time, width = states.shape
    stretch = max(1, min(time, logits // (rows * kernel.shape[1])))
    stretches = -(-time // stretch)
    padded = ((0, 0), (0, stretches * stretch - time))
    inputs = (
        jnp.pad(states, (*padded, (0, 0))).reshape(rows, stretches, stretch, width),
        jnp.pad(targets, padded).reshape(rows, stretches, stretch),
    )

    @jax.checkpoint
    def one(carry: None, part: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
        x, target = part
        found = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
        chosen = jnp.take_along_axis(found, target[..., None], axis=-1)[..., 0]
        loss = jax.nn.logsumexp(found, axis=-1) - chosen
        return carry, (loss, jnp.argmax(found, axis=-1) == target)

    parts = jax.tree.map(lambda array: jnp.moveaxis(array, 1, 0), inputs)
    _, (losses, hits) = jax.lax.scan(one, None, parts)

    def whole(array: Array) -> Array:
        return jnp.moveaxis(array, 0, 1).reshape(rows, -1)[:, :time]

    return whole(losses), whole(hits)


@dataclasses.dataclass(frozen=True)
class ResponseTokens:
    """The objective of instruction tuning: foretell every token of the answers.

    Raises:
        ValueError: `logits` is not positive.
    """

    logits: int = LOGITS
    """Logits that may exist at one time, on all devices together."""

    reads_text: ClassVar[bool] = True
    """Its batches are texts, not histories."""

    def __post_init__(self) -> None:
        if self.logits < 1:
            raise ValueError(f"ResponseTokens: logits={self.logits} must be positive.")

    def __call__(
        self,
        apply: Callable[[PyTree, Tables, TextBatch, Array | None], Any],
        params: PyTree,
        tables: Tables,
        batch: TextBatch,
        key: Array | None,
    ) -> tuple[Array, Array, dict[str, tuple[Array, Array]]]:
        """Loss of a batch.

        Args:
            apply: `(params, tables, batch, key)` -> states, output matrix and tokens
                (`jaxrec.backbones.language_model.TextStates`); a state foretells the next token.
            params: parameters of the network.
            tables: codes of the items.
            batch: texts, with the weight of every token as a target.
            key: for dropout; None switches it off.

        Returns:
            Sum, weight, and metrics as (sum, weight): loss and accuracy of the answers' codes and
            of their text, `loss_codes`, `accuracy_codes`, `loss_text`, `accuracy_text`.
        """
        found = apply(params, tables, batch, key)
        states, targets = found.states[:, :-1], found.tokens[:, 1:]
        losses, hits = token_losses(states, found.kernel, targets, logits=self.logits)
        weight, codes = batch.weight[:, 1:], batch.item[:, 1:] >= 0
        metrics = {}
        for name, mask in (("codes", codes), ("text", ~codes)):
            of_kind = weight * mask
            seen = jax.lax.stop_gradient(losses)
            metrics[f"loss_{name}"] = (jnp.sum(seen * of_kind), jnp.sum(of_kind))
            metrics[f"accuracy_{name}"] = (jnp.sum(hits * of_kind), jnp.sum(of_kind))
        return jnp.sum(losses * weight), jnp.sum(weight), metrics
