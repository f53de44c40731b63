"""What every quantizer offers: vectors to codes and back, nothing about collisions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from jaxrec.types import PyTree

Aux = Mapping[str, Any]
"""What a fit may use beside the vectors, by name. Every quantizer reads `weights`, Float[n]: how
much each row counts, 0 for padding. A quantizer that reads more names it in `reads`:
`collaborative`, Float[n, c], vectors of behaviour, with `has_behaviour`, bool[n], the rows that
have one; `pairs`, Int[m, 2], rows that belong together."""

Matrix = Array | np.ndarray
"""A matrix on a device or on the host; the quantizer checks and moves it."""


@runtime_checkable
class Quantizer(Protocol):
    """A frozen dataclass of hyper-parameters with pure methods; one method, one file.

    Collisions are a property of the catalogue, not of the quantizer: see `collisions.py`.
    """

    schema_version: ClassVar[int]
    """Counts the meanings of this quantizer; a change makes cached semantic IDs stale."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Names that `fit` needs in `aux`; `weights` is always allowed and never needed."""
        ...

    def fit(self, key: PRNGKeyArray, vectors: Matrix, aux: Aux | None = None) -> PyTree:
        """Learns a state, a pytree of arrays, from Float[n, d]."""
        ...

    def encode(self, state: PyTree, vectors: Matrix) -> Array:
        """Int32[n, l]; equal vectors, equal codes."""
        ...

    def decode(self, state: PyTree, codes: Matrix) -> Array:
        """Float[n, d] from Int32[n, m]; m below the number of levels decodes a prefix."""
        ...

    def sizes(self, state: PyTree) -> tuple[int, ...]:
        """Codes of each level as fitted (a level may have been capped)."""
        ...

    def report(self, state: PyTree) -> dict[str, Any]:
        """Plain numbers about the fit."""
        ...

    def to_arrays(self, state: PyTree) -> dict[str, np.ndarray]:
        """What encode and decode need, by name: the part of a state that is saved and hashed."""
        ...

    def from_arrays(self, arrays: Mapping[str, np.ndarray]) -> PyTree:
        """The state that `to_arrays` wrote."""
        ...


def check_vectors(vectors: Any, width: int | None = None) -> Float[Array, "n d"]:
    """Vectors as a float32 device array (a sharded array stays sharded).

    Args:
        width: the width they must have, where a state is already there.

    Raises:
        ValueError: not a matrix, no rows, another width, or non-finite numbers.
    """
    array = jnp.asarray(vectors, jnp.float32)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"vectors must be a non-empty matrix [items, width], got {array.shape}.")
    if width is not None and array.shape[1] != width:
        raise ValueError(
            f"vectors of width {array.shape[1]} do not fit a quantizer of width {width}; use the "
            "representation it was fitted on, or fit it again."
        )
    if not bool(jnp.isfinite(array).all()):
        bad = int(jnp.sum(~jnp.isfinite(array).all(1)))
        raise ValueError(
            f"{bad} of {array.shape[0]} vectors have non-finite numbers; repair the representation."
        )
    return array


def check_codes(codes: Any, sizes: tuple[int, ...]) -> Int32[Array, "n m"]:
    """Codes, or a prefix of their levels, as a device array.

    Raises:
        ValueError: not integers of shape [n, m] with 1 <= m <= levels, or a code out of range.
    """
    array = np.asarray(jax.device_get(codes))
    if array.ndim != 2 or not 1 <= array.shape[1] <= len(sizes) or array.dtype.kind not in "iu":
        raise ValueError(
            f"codes must be integers [items, 1..{len(sizes)}], got {array.dtype} {array.shape}."
        )
    for level, size in enumerate(sizes[: array.shape[1]]):
        column = array[:, level]
        if len(column) and (column.min() < 0 or column.max() >= size):
            raise ValueError(
                f"level {level} has codes {column.min()}..{column.max()}, outside 0..{size - 1}."
            )
    return jnp.asarray(array, jnp.int32)


def check_weights(aux: Aux | None, rows: int, also: tuple[str, ...] = ()) -> Float[Array, " n"]:
    """The weights of a fit: those of `aux`, or ones.

    Args:
        also: names that this quantizer reads from `aux` beside `weights`.

    Raises:
        ValueError: another name in `aux`, another length, a negative or non-finite weight, or no
            positive one.
    """
    names = ("weights", *also)
    if unknown := sorted(set(aux or {}) - set(names)):
        raise ValueError(
            f"this quantizer reads {', '.join(names)} from aux, and got {', '.join(unknown)}."
        )
    if not aux or "weights" not in aux:
        return jnp.ones(rows, jnp.float32)
    weights = jnp.asarray(aux["weights"], jnp.float32)
    if weights.shape != (rows,):
        raise ValueError(f"weights must have one entry a row, {(rows,)}, got {weights.shape}.")
    if not bool((jnp.isfinite(weights) & (weights >= 0)).all() & (weights > 0).any()):
        raise ValueError("weights must be finite and not negative, and one must be positive.")
    return weights
