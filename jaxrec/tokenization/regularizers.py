"""What may be added to an RQ-VAE's loss: terms of the batch, and what they need for it.

A regularizer is a frozen dataclass; `RqVae(regularizers=(...))` adds `weight` times its loss. The
terms are in files of their own, with a plain function of arrays under each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, PRNGKeyArray

from jaxrec.tokenization.quantizer import Aux
from jaxrec.tokenization.vector_quantization import Quantized
from jaxrec.types import PyTree


class Seen(NamedTuple):
    """What a step's loss was computed from."""

    rows: Int[Array, " b"]
    """Which of the fitted rows the batch has; one may come twice."""
    vectors: Float[Array, "b d"]
    """The batch, standardised where the quantizer does so."""
    decoded: Float[Array, "b d"]
    quantized: Quantized
    summed: Float[Array, "b latent"]
    """Sums of the codewords, as the decoder gets them: their gradient reaches the encoder."""
    codebooks: tuple[Float[Array, "_ latent"], ...]
    sums_of: Callable[[Array], Array]
    """`summed` of any other rows, Int[m] -> Float[m, latent]."""


@runtime_checkable
class Regularizer(Protocol):
    """A further term of the loss."""

    schema_version: ClassVar[int]

    @property
    def weight(self) -> float:
        """What the loss is multiplied by."""
        ...

    @property
    def reads(self) -> tuple[str, ...]:
        """Names that it needs in `aux`."""
        ...

    def start(
        self,
        key: PRNGKeyArray,
        aux: Aux,
        weights: Float[Array, " n"],
        codebooks: tuple[Float[Array, "_ latent"], ...],
    ) -> tuple[PyTree, PyTree]:
        """Parameters that are trained with the network and left behind after it, and the memory:
        arrays that no gradient moves. Checks what it takes from `aux`."""
        ...

    def renew(
        self,
        memory: PyTree,
        step: Int[Array, ""],
        key: PRNGKeyArray,
        codebooks: tuple[Float[Array, "_ latent"], ...],
    ) -> PyTree:
        """The memory before update `step`, counted from 0; the same shapes."""
        ...

    def loss(self, head: PyTree, memory: PyTree, seen: Seen, key: PRNGKeyArray) -> Float[Array, ""]:
        """The term, a mean over what it is about; 0 where the batch has nothing of the kind."""
        ...


def names_read(regularizers: tuple[Any, ...]) -> tuple[str, ...]:
    """What all of them need in `aux`, each name once."""
    return tuple(dict.fromkeys(name for each in regularizers for name in each.reads))


def check_has(aux: Aux | None, regularizers: tuple[Any, ...]) -> Aux:
    """`aux`, in which every name that a regularizer reads is there.

    Raises:
        ValueError: one is absent.
    """
    for each in regularizers:
        if absent := [name for name in each.reads if name not in (aux or {})]:
            raise ValueError(
                f"{type(each).__name__} reads {', '.join(each.reads)} from aux, which lacks "
                f"{', '.join(absent)}; give it to fit, or leave the regularizer out."
            )
    return aux or {}


def behaviour_of(
    aux: Aux, weights: Float[Array, " n"]
) -> tuple[Float[Array, "n c"], Bool[Array, " n"]]:
    """`collaborative` and `has_behaviour` of rows that count; vectors of the others are 0.

    Raises:
        ValueError: other lengths, not a matrix, a vector that is not finite, or no row at all.
    """
    vectors = jnp.asarray(aux["collaborative"], jnp.float32)
    known = jnp.asarray(aux["has_behaviour"])
    rows = weights.shape[0]
    if vectors.ndim != 2 or vectors.shape[0] != rows or 0 in vectors.shape:
        raise ValueError(f"collaborative must be a matrix [{rows}, width], got {vectors.shape}.")
    if known.shape != (rows,) or known.dtype != bool:
        raise ValueError(
            f"has_behaviour must be bool, one for each of {rows} rows, got {known.dtype} "
            f"{known.shape}."
        )
    known = known & (weights > 0)
    vectors = jnp.where(known[:, None], vectors, 0.0)
    if not bool(known.any()) or not bool(jnp.isfinite(vectors).all()):
        raise ValueError(
            f"{int(known.sum())} rows that count have behaviour, "
            f"{int((~jnp.isfinite(vectors)).any(1).sum())} of them with a vector that is not "
            "finite; give at least one, and finite numbers."
        )
    return vectors, known


def pairs_of(aux: Aux, weights: Float[Array, " n"]) -> Int32[Array, "m 2"]:
    """`pairs` between rows that count.

    Raises:
        ValueError: no integers of shape [m, 2], a row that does not exist, or fewer than two left.
    """
    pairs = np.asarray(jax.device_get(aux["pairs"]))
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise ValueError(f"pairs must be integers [m, 2], got {pairs.dtype} {pairs.shape}.")
    rows = weights.shape[0]
    if len(pairs) and (pairs.min() < 0 or pairs.max() >= rows):
        raise ValueError(f"pairs name rows {pairs.min()}..{pairs.max()}, outside 0..{rows - 1}.")
    counts = np.asarray(weights) > 0
    pairs = pairs[counts[pairs].all(1)]
    if len(pairs) < 2:
        raise ValueError(f"{len(pairs)} pairs join rows that count; a contrast needs two at least.")
    return jnp.asarray(pairs, jnp.int32)
