"""Caser (Tang and Wang 2018, arXiv:1809.07426): the last items as an image, read by convolutions.

Without the paper's user embedding: with it no answer exists for a user that training never saw, and
the sequential part is what is compared here. A choice, named.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.backbones.cost import BACKWARD
from jaxrec.backbones.dropout import draw_kept, drop
from jaxrec.backbones.item_states import Retriever, num_items
from jaxrec.backbones.item_transformer import Affine, ItemTable, check_dtype
from jaxrec.backbones.layers import apply_module, normal, zeros
from jaxrec.types import Events, PyTree, Tables, TokenSpace


class Convolutions(nn.Module):
    """Horizontal filters of every height with max-pooling over time, and vertical ones.

    Args of `__call__`:
        window: the last L item vectors of every event, oldest first, `[m L d]`.

    Returns:
        `[m, L * horizontal + vertical * d]`.
    """

    horizontal: int
    vertical: int

    @nn.compact
    def __call__(self, window: Array) -> Array:
        events, length, width = window.shape
        found = []
        for height in range(1, length + 1):
            shape = (height * width, self.horizontal)
            kernel = self.param(
                f"horizontal_{height}", normal((height * width) ** -0.5, "embed", None), shape
            )
            bias = self.param(f"horizontal_bias_{height}", zeros(None), (self.horizontal,))
            places = [
                window[:, start : start + height].reshape(events, -1)
                for start in range(length - height + 1)
            ]
            read = jnp.stack([place @ kernel.astype(place.dtype) for place in places])
            found.append(jnp.max(jax.nn.relu(read + bias.astype(read.dtype)), axis=0))
        kernel = self.param("vertical", normal(length**-0.5, None, None), (length, self.vertical))
        columns = jnp.einsum("mld,lv->mvd", window, kernel.astype(window.dtype))
        return jnp.concatenate([*found, columns.reshape(events, -1)], axis=-1)


@dataclasses.dataclass(frozen=True)
class Caser(Retriever):
    """Convolutional sequence embedding.

    Raises:
        ValueError: a size that is not positive, or a dropout outside [0, 0.99].
    """

    window: int = 5
    """Events that are looked at: the last ones before the event that is predicted."""
    width: int = 64
    horizontal: int = 16
    """Filters of each height 1 .. window."""
    vertical: int = 4
    """Filters over the whole window, a number of the vector at a time."""
    dropout: float = 0.5
    """Of the convolutions' output."""

    def __post_init__(self) -> None:
        if min(self.window, self.width, self.horizontal, self.vertical) < 1:
            raise ValueError(
                f"window, width, horizontal and vertical must be at least 1, got {self.window}, "
                f"{self.width}, {self.horizontal} and {self.vertical}."
            )
        check_dtype(self.dtype)
        if not 0.0 <= self.dropout <= 0.99:
            raise ValueError(f"dropout={self.dropout} must lie between 0 and 0.99.")

    @property
    def features(self) -> int:
        """Numbers that the convolutions give for an event."""
        return self.window * self.horizontal + self.vertical * self.width

    def modules(self, space: TokenSpace) -> dict:
        """The modules that hold parameters, with the smallest inputs they take."""
        window = jnp.zeros((1, self.window, self.width), self.dtype)
        features, items = jnp.zeros((1, self.features), self.dtype), num_items(space)
        return {
            "items": (ItemTable(items, self.width, self.width**-0.5), ()),
            "convolutions": (Convolutions(self.horizontal, self.vertical), (window,)),
            "dense": (self._dense, (features,)),
            "targets": (ItemTable(items, self.width + 1, self.initial_scale), ()),
        }

    @property
    def _dense(self) -> Affine:
        return Affine(self.width, ("embed", None), self.features**-0.5)

    def parameters(self, space: TokenSpace) -> int:
        """Number of parameters, by formula."""
        heights = self.window * (self.window + 1) // 2
        filters = self.horizontal * (heights * self.width + self.window)
        filters += self.window * self.vertical
        dense = self.features * self.width + self.width
        return num_items(space) * (2 * self.width + 1) + filters + dense

    def flops(self, space: TokenSpace, rows: int, length: int) -> float:
        """FLOPs of forward and backward of the network; the objective adds its own scores."""
        del space
        weights = self.width * (self.features + self.window * self.vertical)
        for height in range(1, self.window + 1):
            weights += (self.window - height + 1) * height * self.width * self.horizontal
        return BACKWARD * 2.0 * rows * length * weights

    def item_vectors(
        self, params: PyTree, tables: Tables, space: TokenSpace
    ) -> Float[Array, "n d1"]:
        """Output vectors of all items (not those that are read), the bias last."""
        del tables, space
        return params["targets"]["table"].astype(self.dtype)

    def states(
        self, params: PyTree, batch: Events, space: TokenSpace, key: Array | None = None
    ) -> Float[Array, "b t d1"]:
        """What each event is predicted from, with a 1 at the end for the items' biases."""
        del space
        table = params["items"]["table"].astype(self.dtype)
        vectors = jnp.take(table, batch.item, axis=0, mode="clip")
        window = jnp.stack(
            [_earlier(vectors, batch.segment, back) for back in range(self.window, 0, -1)], axis=2
        )
        flat = window.reshape(-1, self.window, self.width)
        convolutions = Convolutions(self.horizontal, self.vertical)
        x = apply_module(convolutions, params["convolutions"], flat)
        if key is not None and self.dropout:
            x = drop(x, draw_kept(key, x.shape, self.dropout), self.dropout)
        x = jax.nn.relu(apply_module(self._dense, params["dense"], x))
        x = jnp.concatenate([x, jnp.ones((len(x), 1), x.dtype)], axis=-1)
        return x.reshape(*batch.item.shape, -1)


def _earlier(vectors: Array, segment: Array, back: int) -> Array:
    """The vector of the event `back` places before, zero before the start of its history."""
    before = jnp.pad(segment, ((0, 0), (back, 0)))[:, : segment.shape[1]]
    shifted = jnp.pad(vectors, ((0, 0), (back, 0), (0, 0)))[:, : segment.shape[1]]
    return jnp.where((before == segment)[..., None], shifted, jnp.zeros((), vectors.dtype))
