"""Rotary position embedding (Su et al., arXiv:2104.09864): queries and keys turn with position.

`q'_m . k'_n` depends on `m - n` only, so any origin of the positions serves.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Longer contexts for a trained network, the Llama 3 way (arXiv:2407.21783, section 3.4.2).

    Pairs that turn less than `low` times over the original context are slowed by `factor`, those
    that turn more than `high` times are left alone, and between them the frequency is interpolated.

    Raises:
        ValueError: numbers out of their order.
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original_length: int = 8192

    def __post_init__(self) -> None:
        if not (self.factor >= 1 and 0 < self.low < self.high and self.original_length > 0):
            raise ValueError(
                f"{self} is impossible: factor must be at least 1, 0 < low < high, and "
                "original_length positive."
            )

    def __call__(self, frequencies: Float[Array, " p"]) -> Float[Array, " p"]:
        """The slowed frequencies, radians a position."""
        turns = self.original_length * frequencies / (2 * math.pi)
        blend = jnp.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return frequencies * (blend + (1 - blend) / self.factor)


class Rotation(NamedTuple):
    """Cosine and sine of every position's angles, `[b t 1 d/2]`, float32."""

    cosine: Array
    sine: Array


def rope_rotation(
    positions: Int32[Array, "b t"], size: int, base: float, scaling: RopeScaling | None = None
) -> Rotation:
    """Angles of rotary position embedding: pair `i` turns by `position * base^(-2i/size)`.

    Args:
        positions: place of each token; any origin, since only differences matter.
        size: numbers per head.
        base: 1e4 in Llama, 1e6 in Qwen.
        scaling: slows some of the pairs.
    """
    frequencies = base ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    if scaling is not None:
        frequencies = scaling(frequencies)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[Array, "b t h d"], rotation: Rotation) -> Float[Array, "b t h d"]:
    """Applies rotary position embedding, rotate-half convention (Hugging Face).

    Number `i` of a head is paired with number `i + d/2`.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate(
        [
            first * rotation.cosine - second * rotation.sine,
            second * rotation.cosine + first * rotation.sine,
        ],
        axis=-1,
    )
    return turned.astype(x.dtype)
