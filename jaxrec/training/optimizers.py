"""Optimizers: components that build an optax transformation and know their learning rate."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxrec.types import PyTree

Schedule = Literal["cosine", "linear", "constant", "inverse_sqrt"]


@runtime_checkable
class Optimizer(Protocol):
    """What the loop asks of an optimizer."""

    def build(self, total_steps: int) -> optax.GradientTransformation:
        """The transformation for a run of so many steps; includes the sign and the rate."""
        ...

    def rate(
        self, step: int | Int[Array | np.ndarray, "*s"], total_steps: int
    ) -> Float[Array, "*s"]:
        """Learning rate of update `step`, counted from 0."""
        ...


@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101) with warm-up, a schedule and clipping.

    With peak p, warm-up w, final fraction f and T steps, update t = 0, 1, ... has the rate
    p (t + 1) / w while t < w, and afterwards, with s = min(1, (t - w) / (T - w)),

        cosine        p (f + (1 - f) (1 + cos(pi s)) / 2)
        linear        p (f + (1 - f) (1 - s))
        constant      p
        inverse_sqrt  p max(f, sqrt(w / (t + 1)))     (w at least 1; T does not matter)

    Raises:
        ValueError: a number out of its range, or an unknown schedule.
    """

    learning_rate: float = 1e-3
    """Peak learning rate."""
    warmup_steps: int = 100
    """Updates of linear warm-up."""
    schedule: Schedule = "cosine"
    """How the rate falls after warm-up."""
    weight_decay: float = 0.01
    """Decoupled weight decay; parameters named in `no_decay` and vectors have none."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.999
    """Decay of the second moment."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    clip_norm: float = 1.0
    """Largest global norm of a gradient; 0 does not clip."""
    final_fraction: float = 0.0
    """The rate at the end, as a fraction of the peak."""
    no_decay: tuple[str, ...] = ("norm", "layernorm", "rmsnorm", "scale", "bias")
    """Words in a parameter's path that exempt it from weight decay; see `decay_mask`."""

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule):
            raise ValueError(
                f"AdamW.schedule {self.schedule!r} is unknown; choose one of "
                f"{', '.join(get_args(Schedule))}."
            )
        if not 0.0 <= self.b1 < 1.0 or not 0.0 <= self.b2 < 1.0:
            raise ValueError(f"AdamW.b1 and b2 lie in [0, 1), got {self.b1} and {self.b2}.")
        if not 0.0 <= self.final_fraction <= 1.0:
            raise ValueError(f"AdamW.final_fraction lies in [0, 1], got {self.final_fraction}.")
        for name in ("learning_rate", "warmup_steps", "weight_decay", "epsilon", "clip_norm"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"AdamW.{name} may not be negative, got {getattr(self, name)}; use 0 or more."
                )

    def build(self, total_steps: int) -> optax.GradientTransformation:
        """The optax transformation for a run of `total_steps` updates."""
        return optax.chain(
            *([optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []),
            optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.epsilon),
            optax.add_decayed_weights(
                self.weight_decay, mask=lambda params: decay_mask(params, self.no_decay)
            ),
            optax.scale_by_learning_rate(lambda count: self.rate(jnp.asarray(count), total_steps)),
        )

    def rate(
        self, step: int | Int[Array | np.ndarray, "*s"], total_steps: int
    ) -> Float[Array, "*s"]:
        """Learning rate of update `step`, counted from 0.

        >>> adam = AdamW(learning_rate=2.0, warmup_steps=4, schedule="linear")
        >>> [float(adam.rate(step, total_steps=8)) for step in range(8)]
        [0.5, 1.0, 1.5, 2.0, 2.0, 1.5, 1.0, 0.5]
        """
        count = jnp.asarray(step, jnp.float32)
        warm = jnp.minimum(1.0, (count + 1.0) / max(1, self.warmup_steps))
        length = max(1, total_steps - self.warmup_steps)
        done = jnp.clip((count - self.warmup_steps) / length, 0.0, 1.0)
        floor = self.final_fraction
        if self.schedule == "cosine":
            factor = floor + (1.0 - floor) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
        elif self.schedule == "linear":
            factor = floor + (1.0 - floor) * (1.0 - done)
        elif self.schedule == "constant":
            factor = jnp.ones_like(count)
        else:
            start = max(1.0, float(self.warmup_steps))
            factor = jnp.maximum(floor, jnp.sqrt(start / jnp.maximum(start, count + 1.0)))
        return self.learning_rate * warm * factor


def decay_mask(params: PyTree, no_decay: tuple[str, ...]) -> PyTree:
    """Which parameters are decayed: matrices whose path names no exempt word.

    Rank alone cannot tell: a stack of scanned layers makes a norm's scale a matrix. So paths are
    split into lower-case words at anything that is not a letter (`layers/attention_norm/scale`:
    layers, attention, norm, scale), and one exempt word exempts the parameter. Scalars and vectors
    are never decayed.

    Args:
        params: tree of arrays or shapes.
        no_decay: the exempt words.

    Returns:
        The same tree with True where the parameter is decayed.

    >>> import numpy as np
    >>> square = np.ones((2, 2))
    >>> decay_mask({"dense": square, "norm_1": square, "shift": np.ones(2)}, ("norm",))
    {'dense': True, 'norm_1': False, 'shift': False}
    """
    exempt = {word.lower() for word in no_decay}

    def decayed(path: tuple, leaf: Any) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator="/").lower()
        return jnp.ndim(leaf) > 1 and not exempt & set(re.split(r"[^a-z]+", name))

    return jax.tree_util.tree_map_with_path(decayed, params)
