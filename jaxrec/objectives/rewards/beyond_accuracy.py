"""Rewards for what accuracy does not see: diversity of the group, novelty (METHODS O23)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Shaped

from jaxrec.objectives.item_sampled import POPULARITY
from jaxrec.objectives.rewards.drawn import Drawn, feature_of, frozen

_SMALLEST_SQUARE = 1e-12
"""A shorter vector has no direction and stands at right angles to all."""


def code_distances(codes: Int32[Array, "b g l"], valid: Bool[Array, "b g"]) -> Float[Array, "b g"]:
    """Mean share of levels in which a rollout differs from the other valid ones of its group.

    >>> import jax.numpy as jnp
    >>> codes = jnp.array([[[1, 2], [1, 3], [1, 2]]])
    >>> code_distances(codes, jnp.ones((1, 3), bool)).tolist()
    [[0.25, 0.5, 0.25]]
    """
    differs = jnp.mean(codes[:, :, None] != codes[:, None, :], axis=-1)
    return _mean_of_others(jnp.sum(jnp.where(valid[:, None, :], differs, 0.0), axis=-1), valid)


def vector_distances(
    vectors: Float[Array, "b g d"], valid: Bool[Array, "b g"]
) -> Float[Array, "b g"]:
    """Mean `1 - cosine` of a rollout's vector to those of the other valid ones of its group.

    A sum of cosines is the cosine with a sum: `g d` work instead of `g^2 d`.

    >>> import jax.numpy as jnp
    >>> vectors = jnp.array([[[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])
    >>> vector_distances(vectors, jnp.ones((1, 3), bool)).tolist()
    [[1.5, 1.0, 1.5]]
    """
    vectors = jnp.where(valid[..., None], vectors.astype(jnp.float32), 0.0)
    square = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    units = vectors * jax.lax.rsqrt(jnp.maximum(square, _SMALLEST_SQUARE))
    with_all = jnp.sum(units * jnp.sum(units, axis=1, keepdims=True), axis=-1)
    with_itself = jnp.sum(jnp.square(units), axis=-1)
    others = jnp.sum(valid, axis=-1, keepdims=True) - 1.0
    return _mean_of_others(others - (with_all - with_itself), valid)


def information(counts: Shaped[Array, " n"], smoothing: float) -> Float[Array, " n"]:
    """Bits of surprise at each item: `-log2((c + a) / (sum c + n a))`.

    >>> import jax.numpy as jnp
    >>> [f"{bits:.3f}" for bits in information(jnp.array([3, 1, 0]), 1.0)]  # of 4/7, 2/7, 1/7
    ['0.807', '1.807', '2.807']
    """
    smoothed = counts.astype(jnp.float32) + smoothing
    return jnp.log2(jnp.sum(smoothed)) - jnp.log2(smoothed)


@dataclasses.dataclass(frozen=True)
class Diversity:
    """Mean distance to the other rollouts of the group; 0 for a rollout that is alone.

    REG4Rec's exact term could not be verified. Its codes have no order, so a level that differs
    counts the same wherever it stands.
    """

    feature: str | None = None
    """Name of the vectors that are compared, by `1 - cosine`; None: share of codes that differ."""

    def __call__(self, drawn: Drawn, key: Array | None = None) -> Float[Array, "b g"]:
        """Arguments and result as `Reward`; in [0, 1] by codes, in [0, 2] by vectors.

        Raises:
            ValueError: there is no such feature.
        """
        del key
        if self.feature is None:
            return frozen(code_distances(drawn.codes, drawn.valid), drawn.valid)
        vectors = jnp.take(feature_of(drawn, self.feature), drawn.items, axis=0, mode="clip")
        return frozen(vector_distances(vectors, drawn.valid), drawn.valid)


@dataclasses.dataclass(frozen=True)
class Novelty:
    """Bits of surprise at the item, `-log2` of its share of the training events.

    Raises:
        ValueError: smoothing that is not positive.
    """

    smoothing: float = 1.0
    """Events added to every item, so that an item that nobody has seen is not infinitely new."""

    def __post_init__(self) -> None:
        if not self.smoothing > 0:
            raise ValueError(
                f"smoothing={self.smoothing} leaves items without events at infinity; use more "
                "than 0."
            )

    def __call__(self, drawn: Drawn, key: Array | None = None) -> Float[Array, "b g"]:
        """Arguments and result as `Reward`; from 0 to `log2((sum c + n a) / a)`.

        Raises:
            ValueError: the rollouts come without `features["popularity"]`.
        """
        del key
        bits = information(feature_of(drawn, POPULARITY), self.smoothing)
        return frozen(jnp.take(bits, drawn.items, mode="clip"), drawn.valid)


def _mean_of_others(total: Float[Array, "b g"], valid: Bool[Array, "b g"]) -> Float[Array, "b g"]:
    others = jnp.sum(valid, axis=-1, keepdims=True) - 1
    return jnp.where(others > 0, total / jnp.maximum(others, 1), 0.0)
