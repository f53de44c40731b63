"""Full softmax over the catalogue, in memory that does not grow with events x items (METHODS O1).

The loss of a retriever that is trained as a classifier over all items: `-log softmax(s E^T)_i`.
Written down naively it holds a logit for every event and item, forward and backward: 1.2 GB for
25,000 events and 12,000 items. Here events are taken in blocks, and each block's gradient is
computed as soon as its logits are there (they are needed once), so one block of logits exists at a
time and nothing is computed twice. The idea is that of fused linear cross-entropy (Liger Kernel,
arXiv:2410.10989).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jaxrec.types import Events, PyTree, Tables

_CPU_LOGITS = 2**21
"""Logits of a block that stay in a processor's cache."""
_ACCELERATOR_LOGITS = 2**27
"""Logits of a block that keep an accelerator busy: half a gigabyte."""


def catalogue_cross_entropy(
    states: Float[Array, "m d"],
    items: Float[Array, "n d"],
    targets: Int32[Array, " m"],
    weight: Float[Array, " m"],
    *,
    label_smoothing: float = 0.0,
    block: int | None = None,
) -> Float[Array, ""]:
    """Weighted sum of cross-entropies of events against the whole catalogue, in nats.

        L = sum_m weight_m (logsumexp_j s_m.e_j - (1 - a) s_m.e_target - a mean_j s_m.e_j)

    Differentiable once, with respect to `states` and `items`.

    Args:
        states: what each event is predicted from.
        items: vectors of the whole catalogue.
        targets: catalogue row of each event.
        weight: weight of each event; at 0 it counts for nothing.
        label_smoothing: `a`, in [0, 1).
        block: events whose logits exist at once; fitted to the backend by default.

    Example:
        A model that knows nothing pays log n for each event:

        >>> import jax, jax.numpy as jnp
        >>> zeros, targets = jnp.zeros((2, 3)), jnp.array([4, 0])
        >>> total = catalogue_cross_entropy(zeros, jnp.zeros((5, 3)), targets, jnp.ones(2))
        >>> round(float(total), 4)  # 2 log 5
        3.2189
    """
    return _cross_entropy(states, items, targets, weight, label_smoothing, block)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _cross_entropy(*arguments: Any) -> Array:
    return _in_fitting_blocks(_sum, *arguments)


def _forward(*arguments: Any) -> tuple[Array, tuple]:
    return _in_fitting_blocks(_sum_and_gradients, *arguments)


def _in_fitting_blocks(
    function: Callable[..., Any],
    states: Array,
    items: Array,
    targets: Array,
    weight: Array,
    smoothing: float,
    block: int | None,
) -> Any:
    """`function` of the arrays in blocks that fit where the program will run, which need not be
    where it is traced."""
    if block is not None:
        return function(states, items, targets, weight, smoothing, block)

    def fitted(logits: int) -> Callable[..., Any]:
        size = max(8, logits // items.shape[0])
        return lambda *arrays: function(*arrays, smoothing, size)

    return jax.lax.platform_dependent(
        *(states, items, targets, weight),
        cpu=fitted(_CPU_LOGITS),
        default=fitted(_ACCELERATOR_LOGITS),
    )


def _sum(
    states: Array, items: Array, targets: Array, weight: Array, smoothing: float, block: int
) -> Array:
    def body(total: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
        loss, _ = _block_losses(*part[:2], items, smoothing)
        return total + jnp.sum(loss * part[2]), None

    parts = _in_blocks((states, targets, weight), block)
    return jax.lax.scan(body, jnp.zeros((), jnp.float32), parts)[0]


def _sum_and_gradients(
    states: Array, items: Array, targets: Array, weight: Array, smoothing: float, block: int
) -> tuple[Array, tuple]:
    """The sum, and its gradients with respect to states and items, block by block."""

    def body(carry: tuple, part: tuple) -> tuple[tuple, Array]:
        total, items_gradient = carry
        state, target, scale = part
        loss, probability = _block_losses(state, target, items, smoothing)
        slope = probability - smoothing / items.shape[0]
        slope = slope.at[jnp.arange(len(target)), target].add(smoothing - 1.0)
        slope = (slope * scale[:, None]).astype(items.dtype)
        items_gradient += jnp.matmul(slope.T, state, preferred_element_type=jnp.float32)
        return (total + jnp.sum(loss * scale), items_gradient), slope @ items

    start = (jnp.zeros((), jnp.float32), jnp.zeros(items.shape, jnp.float32))
    parts = _in_blocks((states, targets, weight), block)
    (total, items_gradient), states_gradient = jax.lax.scan(body, start, parts)
    states_gradient = _from_blocks(states_gradient, states.shape[0])
    return total, (states_gradient.astype(states.dtype), items_gradient.astype(items.dtype))


def _backward(smoothing: float, block: int | None, kept: tuple, slope: Any) -> tuple:
    states, items = kept  # their gradients, for a slope of 1
    # `slope` may come as a numpy number from finite differences.
    scale = jnp.asarray(slope)
    return states * scale.astype(states.dtype), items * scale.astype(items.dtype), None, None


_cross_entropy.defvjp(_forward, _backward)


def _block_losses(
    states: Array, targets: Array, items: Array, smoothing: float
) -> tuple[Float[Array, " m"], Float[Array, "m n"]]:
    """Losses of a block, and the probability of every item."""
    logits = jnp.matmul(states, items.T, preferred_element_type=jnp.float32)
    top = jnp.max(logits, axis=-1, keepdims=True)
    raised = jnp.exp(logits - top)
    mass = jnp.sum(raised, axis=-1, keepdims=True)
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    losses = (top + jnp.log(mass))[:, 0] - (1.0 - smoothing) * chosen
    if smoothing:
        losses -= smoothing * jnp.mean(logits, axis=-1)
    return losses, raised / mass


def _in_blocks(arrays: tuple, block: int) -> tuple:
    """Blocks in front. Block i holds rows i, i + blocks, ...: rows that are sharded stay where
    they are. What is filled up has weight 0."""
    rows = arrays[0].shape[0]
    blocks = -(-rows // block)
    size = -(-rows // blocks)

    def cut(array: Array) -> Array:
        padded = jnp.pad(array, ((0, size * blocks - rows), *((0, 0),) * (array.ndim - 1)))
        return jnp.swapaxes(padded.reshape(size, blocks, *array.shape[1:]), 0, 1)

    return jax.tree.map(cut, arrays)


def _from_blocks(array: Array, rows: int) -> Array:
    return jnp.swapaxes(array, 0, 1).reshape(-1, *array.shape[2:])[:rows]


@dataclasses.dataclass(frozen=True)
class ItemSoftmax:
    """Cross-entropy over the whole catalogue at every event: the strong form of SASRec.

    Raises:
        ValueError: smoothing outside [0, 1), or a temperature that is not positive.
    """

    temperature: float = 1.0
    """Inner products are divided by it."""
    label_smoothing: float = 0.0

    scores_items: ClassVar[bool] = True
    """Compares states with items: for retrievers."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0 or self.temperature <= 0:
            raise ValueError(
                f"ItemSoftmax needs label_smoothing in [0, 1) and a positive temperature, got "
                f"{self.label_smoothing} and {self.temperature}."
            )

    def flops(self, events: int, items: int, width: int) -> float:
        """FLOPs of the scores of so many events, forward and backward."""
        return 6.0 * events * items * width

    def __call__(
        self,
        apply: Callable[[PyTree, Tables, Events, Array | None], tuple[Array, Array]],
        params: PyTree,
        tables: Tables,
        batch: Events,
        key: Array | None,
    ) -> tuple[Array, Array, dict[str, Any]]:
        """Loss of a batch.

        Args:
            apply: `(params, tables, batch, key) -> (states [b m d], item vectors [n d])`; the
                states are of the last m events (columns).
            params: parameters of the network.
            tables: not read here.
            batch: histories, with the weight of every event as a target.
            key: for dropout; None switches it off.

        Returns:
            Sum, weight, no metrics.
        """
        states, items = apply(params, tables, batch, key)
        target, weight = supervised(states, batch)
        total = catalogue_cross_entropy(
            states.reshape(-1, states.shape[-1]) / self.temperature,
            items,
            target.reshape(-1),
            weight.reshape(-1),
            label_smoothing=self.label_smoothing,
        )
        return total, jnp.sum(weight), {}


def scores(equation: str, states: Array, items: Array) -> Float[Array, "*any"]:
    """Inner products by `einsum`, float32 whatever the vectors are."""
    return jnp.einsum(equation, states, items, preferred_element_type=jnp.float32)


def supervised(
    states: Float[Array, "b m d"], batch: Events
) -> tuple[Int32[Array, "b m"], Float[Array, "b m"]]:
    """Item and weight of the events that the states predict: the last m columns of the batch."""
    last = states.shape[1]
    return batch.item[:, -last:], batch.weight[:, -last:]
