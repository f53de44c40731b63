"""Contrasts that an RQ-VAE may be trained with: codes that tell items apart, and join pairs.

METHODS T13. The loss of both is InfoNCE, `objectives.pair_contrast`; what differs is what is
compared: a vector and its reconstruction, or the quantized vectors of two items.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray

from jaxrec.objectives.pair_contrast import pair_contrast
from jaxrec.tokenization.quantizer import Aux
from jaxrec.tokenization.regularizers import Seen, pairs_of
from jaxrec.types import PyTree


def reconstruction_contrast(
    vectors: Float[Array, "b d"],
    decoded: Float[Array, "b d"],
    rows: Int[Array, " b"],
    temperature: float,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of -log softmax_j(cos(x_i, xhat_j) / tau)[i], and the number of rows.

    Args:
        vectors: x, what was quantized.
        decoded: xhat, what came of it.
        rows: which rows of the catalogue they are; the same one is no negative of itself.
        temperature: tau.
    """
    ids = rows.astype(jnp.int32)
    return pair_contrast(vectors, decoded, ids, ids, temperature)


@dataclasses.dataclass(frozen=True)
class ReconstructionContrast:
    """A vector finds its own reconstruction among those of the batch.

    Keeps what tells neighbours apart, which the squared error may give up. CoST (Zhu et al.,
    arXiv:2404.14774) trains its quantizer so; `RqVae(reconstruction_weight=0.0)` leaves the squared
    error out. Weight and temperature are not published.

    Raises:
        ValueError: a temperature that is not positive.
    """

    weight: float = 1.0
    temperature: float = 0.1

    schema_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_temperature(self)

    @property
    def reads(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def start(
        self,
        key: PRNGKeyArray,
        aux: Aux,
        weights: Float[Array, " n"],
        codebooks: tuple[Float[Array, "_ latent"], ...],
    ) -> tuple[PyTree, PyTree]:
        """Nothing."""
        del key, aux, weights, codebooks
        return (), ()

    def renew(
        self,
        memory: PyTree,
        step: Int[Array, ""],
        key: PRNGKeyArray,
        codebooks: tuple[Float[Array, "_ latent"], ...],
    ) -> PyTree:
        """As it is."""
        del step, key, codebooks
        return memory

    def loss(self, head: PyTree, memory: PyTree, seen: Seen, key: PRNGKeyArray) -> Float[Array, ""]:
        """`reconstruction_contrast` per row."""
        del head, memory, key
        total, count = reconstruction_contrast(
            seen.vectors, seen.decoded, seen.rows, self.temperature
        )
        return total / count


@dataclasses.dataclass(frozen=True)
class QuantizedPairs:
    """The quantized vector of an item finds that of its partner among those of the batch.

    Brings items that are chosen together under near codes: DAS (arXiv:2508.10584) and PLUM contrast
    what was quantized so, and add it to the reconstruction. Every update draws pairs evenly, with
    replacement; one direction, so give a pair both ways round if it has none.

    Raises:
        ValueError: a temperature that is not positive, or fewer than two pairs a batch.
    """

    weight: float = 0.1
    temperature: float = 0.1
    batch: int = 256
    """Pairs of an update."""

    schema_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_temperature(self)
        if self.batch < 2:
            raise ValueError(
                f"QuantizedPairs.batch is {self.batch}; a contrast needs two pairs at least."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """Rows that belong together."""
        return ("pairs",)

    def start(
        self,
        key: PRNGKeyArray,
        aux: Aux,
        weights: Float[Array, " n"],
        codebooks: tuple[Float[Array, "_ latent"], ...],
    ) -> tuple[PyTree, PyTree]:
        """Remembers the pairs."""
        del key, codebooks
        return (), pairs_of(aux, weights)

    def renew(
        self,
        memory: PyTree,
        step: Int[Array, ""],
        key: PRNGKeyArray,
        codebooks: tuple[Float[Array, "_ latent"], ...],
    ) -> PyTree:
        """As it is."""
        del step, key, codebooks
        return memory

    def loss(self, head: PyTree, memory: PyTree, seen: Seen, key: PRNGKeyArray) -> Float[Array, ""]:
        """`pair_contrast` of the sums of codewords, per pair."""
        del head
        drawn: Int32[Array, "p 2"] = memory[jax.random.randint(key, (self.batch,), 0, len(memory))]
        anchors, partners = seen.sums_of(drawn[:, 0]), seen.sums_of(drawn[:, 1])
        total, count = pair_contrast(anchors, partners, drawn[:, 0], drawn[:, 1], self.temperature)
        return total / count


def _check_temperature(component: ReconstructionContrast | QuantizedPairs) -> None:
    if not component.temperature > 0:
        raise ValueError(
            f"{type(component).__name__}.temperature is {component.temperature}; give a positive "
            "number, such as .1."
        )
