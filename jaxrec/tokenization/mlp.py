"""A plain multi-layer perceptron: a tuple of layers, and a function that applies it."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class Layer(NamedTuple):
    """A dense layer."""

    weight: Float[Array, "i o"]
    bias: Float[Array, " o"]


def init_mlp(key: PRNGKeyArray, widths: tuple[int, ...]) -> tuple[Layer, ...]:
    """Layers from widths[0] to widths[-1], float32.

    Weights are normal with variance 2 / fan-in before a ReLU (He et al., arXiv:1502.01852) and
    1 / fan-in in the last layer, so that unit variance stays unit variance; biases are 0.
    """
    layers = []
    for number, (fan_in, fan_out) in enumerate(pairwise(widths)):
        gain = 1.0 if number == len(widths) - 2 else 2.0
        normal = jax.random.normal(jax.random.fold_in(key, number), (fan_in, fan_out))
        layers.append(Layer(normal * (gain / fan_in) ** 0.5, jnp.zeros(fan_out)))
    return tuple(layers)


def apply_mlp(layers: tuple[Layer, ...], rows: Float[Array, "b i"]) -> Float[Array, "b o"]:
    """ReLU between the layers, none after the last.

    Full matmul precision: codes may not depend on how an accelerator rounds its operands.
    """
    for number, layer in enumerate(layers):
        rows = jax.nn.relu(rows) if number else rows
        rows = jnp.dot(rows, layer.weight, precision=jax.lax.Precision.HIGHEST) + layer.bias
    return rows
