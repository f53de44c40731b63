"""The upper end of ranking networks: a tower an objective, and what fuses them (METHODS B23)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxrec.backbones.item_transformer import Affine
from jaxrec.backbones.layers import normal, project, zeros


class Towers(nn.Module):
    """One network an objective, `[b c d]` to logits `[b c k]`, float32, and all states `[b c k*f]`.

    z_k = silu(x U_k + b_k) w_k + c_k
    """

    tasks: int
    hidden: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        width, sizes = x.shape[-1], (self.tasks, self.hidden)
        up = self.param("up", normal(width**-0.5, "embed", None, "mlp"), (width, *sizes))
        up_bias = self.param("up_bias", zeros(None, "mlp"), sizes)
        down = self.param("down", normal(self.hidden**-0.5, None, "mlp"), sizes)
        bias = self.param("bias", zeros(None), (self.tasks,))
        states = jax.nn.silu(project(x, up) + up_bias.astype(x.dtype))
        weighed = jnp.einsum(
            "bckf,kf->bck", states, down.astype(x.dtype), preferred_element_type=jnp.float32
        )
        return weighed + bias, states.reshape(*x.shape[:-1], -1)


class Fusion(nn.Module):
    """A network with one hidden layer and one logit, `[b c d]` to `[b c]`, float32."""

    hidden: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        hidden = Affine(self.hidden, ("embed", "mlp"), width**-0.5, name="up")(x)
        output = Affine(1, ("mlp", None), self.hidden**-0.5, name="down")
        return output(jax.nn.silu(hidden).astype(jnp.float32))[..., 0]
