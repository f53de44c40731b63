"""GRU4Rec (Hidasi et al. 2016, arXiv:1511.06939; Hidasi and Karatzoglou 2018; METHODS B17).

A gated recurrent unit reads items one after another. The published code feeds parallel sessions
step by step; here whole histories are unrolled, packed ones with the state set back where a history
starts, which trains on the same pairs without truncating the gradient.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec import parallel
from jaxrec.backbones.cost import BACKWARD
from jaxrec.backbones.dropout import draw_kept, drop
from jaxrec.backbones.item_states import Retriever, num_items
from jaxrec.backbones.item_transformer import Affine, ItemTable, check_dtype
from jaxrec.backbones.layers import apply_module, normal, project, zeros
from jaxrec.backbones.sequences import follow, segment_starts
from jaxrec.types import Events, PyTree, TokenSpace


class GatedRecurrentUnit(nn.Module):
    """One recurrent layer over time (Cho et al., arXiv:1406.1078).

        r = sigmoid(x W_r + h U_r + b_r);  z = sigmoid(x W_z + h U_z + b_z)
        c = tanh(x W_c + b_c + r (h U_c + d_c));  h = (1 - z) c + z h

    Args of `__call__`:
        x: inputs `[b t d]`.
        starts: bool `[b t]`, where a history starts and the state is zero.
    """

    width: int

    @nn.compact
    def __call__(self, x: Array, starts: Array) -> Array:
        scale = self.width**-0.5
        shape = (x.shape[-1], 3 * self.width)
        # Gates are not split over devices: every step of the loop would have to put them together.
        read = self.param("read", normal(scale, "embed", None), shape)
        bias = self.param("bias", zeros(None), (3 * self.width,))
        keep = self.param("keep", normal(scale, "embed", None), (self.width, 3 * self.width))
        candidate_bias = self.param("candidate_bias", zeros(None), (self.width,))
        # Everything that does not depend on the state is one product before the loop.
        inputs = parallel.constrain(project(x, read) + bias.astype(x.dtype), "batch", None, None)

        def step(state: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
            driven, start = now
            state = jnp.where(start[:, None], jnp.zeros((), state.dtype), state)
            recalled = state @ keep.astype(state.dtype)
            gates = jax.nn.sigmoid(driven[:, : 2 * self.width] + recalled[:, : 2 * self.width])
            reset, update = jnp.split(gates, 2, axis=-1)
            memory = recalled[:, 2 * self.width :] + candidate_bias.astype(state.dtype)
            candidate = jnp.tanh(driven[:, 2 * self.width :] + reset * memory)
            state = (1.0 - update) * candidate + update * state
            return state, state

        start = jnp.zeros((x.shape[0], self.width), x.dtype)
        timed = (jnp.swapaxes(inputs, 0, 1), jnp.swapaxes(starts, 0, 1))
        states = jnp.swapaxes(jax.lax.scan(step, start, timed)[1], 0, 1)
        return parallel.constrain(states, "batch", None, None)


@dataclasses.dataclass(frozen=True)
class Gru4Rec(Retriever):
    """Recurrent retriever.

    Items share one table for input and output; the state goes through a linear map before it is
    compared with them.

    Raises:
        ValueError: a size that is not positive, or a dropout outside [0, 0.99].
    """

    layers: int = 1
    width: int = 64
    """Numbers of an item vector."""
    hidden: int = 128
    """Numbers of the recurrent state."""
    dropout: float = 0.2
    """Of the input and of every layer's output."""

    def __post_init__(self) -> None:
        if min(self.layers, self.width, self.hidden) < 1:
            raise ValueError(
                f"layers, width and hidden must be at least 1, got {self.layers}, {self.width} and "
                f"{self.hidden}."
            )
        check_dtype(self.dtype)
        if not 0.0 <= self.dropout <= 0.99:
            raise ValueError(f"dropout={self.dropout} must lie between 0 and 0.99.")

    def modules(self, space: TokenSpace) -> dict:
        """The modules that hold parameters, with the smallest inputs they take."""
        item, state = (jnp.zeros((1, 1, size), self.dtype) for size in (self.width, self.hidden))
        start = jnp.ones((1, 1), bool)
        layers = {
            f"layer_{layer}": (GatedRecurrentUnit(self.hidden), (state if layer else item, start))
            for layer in range(self.layers)
        }
        table = ItemTable(num_items(space) + 1, self.width, self.initial_scale)
        return {"items": (table, ()), "output": (self._output, (state,)), **layers}

    @property
    def _output(self) -> Affine:
        return Affine(self.width, ("embed", None), self.hidden**-0.5)

    def parameters(self, space: TokenSpace) -> int:
        """Number of parameters, by formula."""
        inputs = self.width + (self.layers - 1) * self.hidden
        recurrent = 3 * self.hidden * (inputs + self.layers * self.hidden)
        biases = self.layers * 4 * self.hidden
        output = self.hidden * self.width + self.width
        return (num_items(space) + 1) * self.width + recurrent + biases + output

    def flops(self, space: TokenSpace, rows: int, length: int) -> float:
        """FLOPs of forward and backward of the network; the objective adds its own scores."""
        del space
        inputs = self.width + (self.layers - 1) * self.hidden
        weights = 3 * self.hidden * (inputs + self.layers * self.hidden)
        weights += self.width * self.hidden
        return BACKWARD * 2.0 * rows * length * weights

    def states(
        self, params: PyTree, batch: Events, space: TokenSpace, key: Array | None = None
    ) -> Float[Array, "b t d"]:
        """What each event is predicted from."""
        del space
        table = params["items"]["table"].astype(self.dtype)
        starts = segment_starts(batch.segment)
        x = follow(table[-1], jnp.take(table, batch.item, axis=0, mode="clip"), starts)
        keys = None
        if key is not None and self.dropout:
            keys = jax.random.split(key, self.layers + 1)
            x = drop(x, draw_kept(keys[0], x.shape, self.dropout), self.dropout)
        for layer in range(self.layers):
            unit = GatedRecurrentUnit(self.hidden)
            x = apply_module(unit, params[f"layer_{layer}"], x, starts)
            if keys is not None:
                x = drop(x, draw_kept(keys[layer + 1], x.shape, self.dropout), self.dropout)
        return apply_module(self._output, params["output"], x)
