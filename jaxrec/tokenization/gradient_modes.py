"""How a gradient passes a look-up, which has none: straight through, by a rotation, by a softmax.

Each is a plain function of vectors and what they were quantized to (METHODS T2).
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

GradientMode = Literal["straight_through", "rotation", "gumbel"]
"""What the reconstruction tells the encoder; see `straight_through`, `rotate`, `gumbel_weights`."""

Annealing = Literal["geometric", "linear"]
"""How a temperature falls: by equal factors or by equal steps."""

_OPPOSITE = 1e-3
"""Length of the sum of two unit vectors below which they count as opposite: the rotation between
them has no plane, and fp32 noise would choose one."""
_NO_LENGTH = 1e-12
"""A shorter vector has no direction."""


def straight_through(
    continuous: Float[Array, "*b d"], quantized: Float[Array, "*b d"]
) -> Float[Array, "*b d"]:
    """`quantized` on the way forward, exactly; the gradient goes to `continuous`, unchanged.

    Source: Bengio, Leonard, Courville, arXiv:1308.3432.

    >>> x, q = jnp.array([0.9]), jnp.array([1.0])
    >>> float(straight_through(x, q)[0]), float(jax.grad(lambda x: straight_through(x, q)[0])(x)[0])
    (1.0, 1.0)
    """
    # q + (x - x) and not the usual x + (q - x), which rounds.
    stop = jax.lax.stop_gradient
    return stop(quantized) + (continuous - stop(continuous))


def rotate(
    continuous: Float[Array, "*b d"], quantized: Float[Array, "*b d"]
) -> Float[Array, "*b d"]:
    """`quantized` on the way forward, exactly; the gradient is turned and stretched as x was to q.

        u = x / |x|,  v = q / |q|,  w = (u + v) / |u + v|
        q = |q| / |x| (x - 2 w (w . x) + 2 v (u . x)),  all but x held constant

    The map is a rotation times |q| / |x|, so the angle between gradient and codeword becomes the
    angle between gradient and vector. Where x or q is 0, or they point in opposite directions,
    there is no such rotation and the gradient goes straight through.

    Source: Fifty et al., "Restructuring vector quantization with the rotation trick",
    arXiv:2410.06424.

    Example:
        A quarter turn to twice the length: the gradient along q comes back along x, doubled.

        >>> x, q = jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0])
        >>> jax.grad(lambda x: rotate(x, q)[1])(x).round(4).tolist()
        [2.0, 0.0]
    """
    stop = jax.lax.stop_gradient
    fixed, target = stop(continuous), stop(quantized)
    length, target_length = _lengths(fixed), _lengths(target)
    u = fixed / jnp.maximum(length, _NO_LENGTH)
    v = target / jnp.maximum(target_length, _NO_LENGTH)
    between = _lengths(u + v)
    w = (u + v) / jnp.maximum(between, _OPPOSITE)
    along_w = jnp.sum(w * continuous, -1, keepdims=True)
    along_u = jnp.sum(u * continuous, -1, keepdims=True)
    turned = continuous - 2 * w * along_w + 2 * v * along_u
    turned = turned * (target_length / jnp.maximum(length, _NO_LENGTH))
    has_rotation = (length > _NO_LENGTH) & (target_length > _NO_LENGTH) & (between > _OPPOSITE)
    moving = jnp.where(has_rotation, turned, continuous)
    return target + (moving - stop(moving))


def gumbel_weights(
    key: PRNGKeyArray, distances: Float[Array, "b k"], temperature: float | Float[Array, ""]
) -> Float[Array, "b k"]:
    """Random shares of the codes in a soft codeword: softmax((g - D) / T), g Gumbel noise.

    As T falls to 0 a row becomes one code, drawn with probability softmax(-D).

    Source: Jang, Gu, Poole, arXiv:1611.01144; Maddison, Mnih, Teh, arXiv:1611.00712.

    Args:
        key: of the noise.
        distances: squared, of every vector to every codeword.
        temperature: T, positive.
    """
    noise = jax.random.gumbel(key, distances.shape, distances.dtype)
    return jax.nn.softmax((noise - distances) / temperature, axis=-1)


def annealed(
    done: float | Float[Array, ""], ends: tuple[float, float], annealing: Annealing = "geometric"
) -> Float[Array, ""]:
    """Temperature after a fraction `done` of the steps, from ends[0] to ends[1].

    >>> [round(float(annealed(done, (1.0, 0.25))), 3) for done in (0.0, 0.5, 1.0)]
    [1.0, 0.5, 0.25]
    >>> float(annealed(0.5, (1.0, 0.25), "linear"))
    0.625
    """
    first, last = (jnp.asarray(end, jnp.float32) for end in ends)
    if annealing == "geometric":
        return first * (last / first) ** done
    return first + (last - first) * done


def _lengths(vectors: Float[Array, "*b d"]) -> Float[Array, "*b 1"]:
    return jnp.sqrt(jnp.sum(vectors**2, -1, keepdims=True))
