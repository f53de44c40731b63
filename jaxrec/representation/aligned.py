"""Content bent towards behaviour: items that are had together are brought together (METHODS R5).

    h(x) = A x' + C relu(B x' + b),   x' = (x - mean) / deviation

is learnt by `jaxrec.objectives.pair_contrast` over pairs of items, as QARM (arXiv:2411.11739) and
OneRec (arXiv:2506.13695) align the vectors of a content encoder before they quantise them.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from jaxrec.objectives.pair_contrast import pair_contrast
from jaxrec.representation.descent import descend, stretches
from jaxrec.representation.encoder import (
    Encoding,
    TrainingSequences,
    check_events,
    encode_items,
    fill_empty,
    fingerprint_of,
)
from jaxrec.representation.steps import Standardise, principal_axes
from jaxrec.representation.swing import SwingPairs
from jaxrec.representation.text import Table
from jaxrec.training.optimizers import AdamW, Optimizer


class Head(NamedTuple):
    """What is learnt."""

    straight: Float[Array, "i o"]
    """A: starts as the principal directions of the content."""
    up: Float[Array, "i f"]
    """B."""
    bias: Float[Array, " f"]
    """b."""
    down: Float[Array, "f o"]
    """C: starts at 0, so that the head starts as the content it is given."""


class Together(NamedTuple):
    """What the head learns from."""

    content: Float[Array, "n i"]
    """Standardised vectors of all items."""
    pairs: Int32[Array, "m 2"]
    """Items that belong together."""


def start_head(
    key: PRNGKeyArray, content: Float[np.ndarray, "n i"], width: int, hidden: int
) -> Head:
    """A head that projects standardised content on its `width` largest principal directions.

    Raises:
        ValueError: the content is narrower than `width`.
    """
    _, _, directions = principal_axes(np.asarray(content, np.float64), width)
    up = jax.random.normal(key, (content.shape[1], hidden)) * (2.0 / content.shape[1]) ** 0.5
    straight = jnp.asarray(directions, jnp.float32)
    return Head(straight, up, jnp.zeros(hidden), jnp.zeros((hidden, width)))


def apply_head(head: Head, rows: Float[Array, "b i"]) -> Float[Array, "b o"]:
    """Aligned vectors. Full matmul precision: codes may not depend on an accelerator's rounding."""
    full = jax.lax.Precision.HIGHEST
    inner = jax.nn.relu(jnp.dot(rows, head.up, precision=full) + head.bias)
    straight = jnp.dot(rows, head.straight, precision=full)
    return straight + jnp.dot(inner, head.down, precision=full)


@dataclasses.dataclass(frozen=True)
class Aligned:
    """A content encoder, and a head learnt from pairs of items.

    Items without a pair go through the same head. Items that the encoder knows nothing about are
    in no pair, and get the constant vector.

    Raises:
        ValueError: a number out of range; in `encode`, no training events, no pair of known items,
            content narrower than `width`, or a loss that is no longer finite.
    """

    encoder: Any
    """The content: WordLlama(), Precomputed(path), Fused(...) or anything of that shape."""
    pairs: Any = SwingPairs()
    """What belongs together: SwingPairs(), NextPairs() or any (sequences, items) -> int32[m, 2]."""
    width: int = 128
    """Width of the aligned vectors, at most that of the content."""
    hidden: int = 256
    """Inner width of the head."""
    temperature: float = 0.07
    """Cosines are divided by it."""
    batch: int = 512
    """Pairs of a step, drawn evenly; which of the two is the anchor is drawn too."""
    steps: int = 1000
    """Updates."""
    optimizer: Optimizer = AdamW(learning_rate=1e-3)
    """What turns gradients into updates."""

    schema_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if min(self.width, self.hidden, self.steps) < 1 or self.batch < 2:
            raise ValueError(
                "Aligned needs width, hidden and steps >= 1 and batch >= 2, got "
                f"{self.width}, {self.hidden}, {self.steps} and {self.batch}."
            )
        if self.temperature <= 0:
            raise ValueError(f"Aligned needs temperature > 0, got {self.temperature}.")

    @property
    def reads_text(self) -> bool:
        """As its encoder."""
        return bool(self.encoder.reads_text)

    @property
    def surrogate(self) -> bool:
        """As its encoder."""
        return bool(self.encoder.surrogate)

    def fingerprint(self) -> str:
        """That of its encoder."""
        return fingerprint_of(self.encoder)

    def encode(self, texts: list[str], **given: Any) -> np.ndarray:
        """Aligned vectors, float32[n, width]; arguments as `encode_with_facts`."""
        return self.encode_with_facts(texts, **given).vectors

    def encode_with_facts(
        self,
        texts: list[str],
        *,
        table: Table,
        fit_mask: np.ndarray,
        seed: int,
        sequences: TrainingSequences | None = None,
    ) -> Encoding:
        """Aligned vectors, unknown items, and facts about the pairs and the fit."""
        events = check_events("Aligned", sequences)
        content = encode_items(
            self.encoder, texts, table=table, fit_mask=fit_mask, seed=seed, sequences=sequences
        )
        usable = np.asarray(fit_mask, bool) & ~content.unknown
        pairs = self._usable_pairs(events, usable)
        step = Standardise()
        rows = step.apply(step.fit(content.vectors, usable), content.vectors)
        start_key, train_key = jax.random.split(jax.random.key(seed))
        head = start_head(start_key, rows[usable], self.width, self.hidden)
        data = Together(jnp.asarray(rows), jnp.asarray(pairs))
        head, losses = descend(self, head, data, train_key)
        vectors = fill_empty(np.asarray(apply_head(head, data.content)), content.unknown)
        facts = {
            "aligned_encoder": type(self.encoder).__name__,
            "n_pairs": len(pairs),
            "n_without_pair": len(rows) - len(np.unique(pairs)),
            "n_unknown": int(content.unknown.sum()),
            "fit_loss": stretches(losses),
        }
        return Encoding(vectors, content.unknown, {**content.facts, **facts})

    def loss(self, params: Head, data: Together, key: PRNGKeyArray) -> Float[Array, ""]:
        """Mean loss of a batch of drawn pairs."""
        pair_key, turn_key = jax.random.split(key)
        pairs = data.pairs[jax.random.randint(pair_key, (self.batch,), 0, data.pairs.shape[0])]
        turned = jax.random.bernoulli(turn_key, shape=(self.batch, 1))
        pairs = jnp.where(turned, pairs[:, ::-1], pairs)
        anchors, partners = (apply_head(params, data.content[pairs[:, side]]) for side in (0, 1))
        total, weight = pair_contrast(anchors, partners, pairs[:, 0], pairs[:, 1], self.temperature)
        return total / weight

    def _usable_pairs(self, events: TrainingSequences, usable: np.ndarray) -> np.ndarray:
        found = np.asarray(self.pairs(events, len(usable)))
        pairs = found[usable[found].all(1)]
        if not len(pairs):
            raise ValueError(
                f"{self.pairs} found {len(found)} pairs of items, and none of two items that the "
                "encoder knows and may learn from; use other pairs, or the encoder alone."
            )
        return pairs
