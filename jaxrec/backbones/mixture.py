"""A mixture of experts in place of one SwiGLU: each token passes through a few of many networks.

`y = sum over the chosen experts e of w_e SwiGLU_e(x)`, plus experts that every token shares
(Shazeer et al., arXiv:1701.06538; Fedus et al., arXiv:2101.03961; DeepSeek-V3, arXiv:2412.19437;
METHODS B3). What is apart:

- `route` says which experts a token goes to and how much each weighs;
- `load_balance_loss` and `update_biases` are the two ways to keep the experts equally busy;
- `MixtureFeedForward` holds the experts. Without a capacity nothing is dropped: tokens are laid out
  by expert and each expert reads its own. With a capacity every expert has so many seats, filled in
  the order of the tokens, and who finds none gets nothing from it; then a token's answer depends on
  what else is in the batch, but all shapes are static per expert, which is what XLA partitions well
  over the mesh axis `expert`.

The biases of `balance="bias"` live in the tree of parameters, so that checkpoints and sharding know
them, but no gradient reaches them: after an update the training step sets them with
`update_biases`. Their path ends in `bias`, which `AdamW` exempts from weight decay.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from jaxrec import parallel
from jaxrec.backbones.layers import FeedForward, Stack, normal, zeros

GATES = ("softmax", "sigmoid")
BALANCES = ("loss", "bias", "none")
LARGEST_BLOCK = 64
"""Rows of one expert that are multiplied at once on CPU."""


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Shape of a mixture of experts, and how it is kept in balance.

    Raises:
        ValueError: a size out of its range, an unknown option, or a gate that cannot learn.
    """

    experts: int = 8
    """Experts to choose from."""
    top_k: int = 2
    """Experts that each token is sent to."""
    feedforward: int = 128
    """Width of the SwiGLU of one expert."""
    shared: int = 0
    """Experts that every token passes through with weight 1, beside the chosen ones."""
    gate: str = "softmax"
    """`softmax` over all experts, or a `sigmoid` each; both normalised over the chosen experts."""
    balance: str = "loss"
    """`loss` (Switch), `bias` (loss-free: a bias an expert, moved after each step), or `none`."""
    loss_weight: float = 0.01
    """Factor of the balance loss."""
    bias_rate: float = 1e-3
    """How far a bias moves in one step."""
    capacity_factor: float | None = None
    """Seats of an expert, as a multiple of an equal share; None drops nothing."""

    def __post_init__(self) -> None:
        if min(self.experts, self.feedforward) < 1 or self.shared < 0:
            raise ValueError(
                f"experts={self.experts} and feedforward={self.feedforward} must be at least 1, "
                f"shared={self.shared} at least 0."
            )
        if not 1 <= self.top_k <= self.experts:
            raise ValueError(f"top_k={self.top_k} must lie between 1 and experts={self.experts}.")
        if self.top_k == 1 < self.experts:
            raise ValueError(
                f"top_k=1 of experts={self.experts}: normalised over one chosen expert, every "
                "weight is 1 and the router gets no gradient; choose top_k=2 or more."
            )
        for name, allowed in (("gate", GATES), ("balance", BALANCES)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; "
                    f"choose one of {', '.join(allowed)}."
                )
        if self.loss_weight < 0 or self.bias_rate < 0:
            raise ValueError(
                f"loss_weight={self.loss_weight} and bias_rate={self.bias_rate} "
                "must not be negative."
            )
        if self.capacity_factor is not None and self.capacity_factor <= 0:
            raise ValueError(
                f"capacity_factor={self.capacity_factor} must exceed 0; use None to drop nothing."
            )

    def parameters(self, width: int) -> int:
        """Number of parameters over states of `width`."""
        biases = self.experts if self.balance == "bias" else 0
        experts = (self.experts + self.shared) * 3 * width * self.feedforward
        return experts + self.experts * width + biases

    def active_weights(self, width: int) -> int:
        """Weights that one token is multiplied with: its experts', and the router's."""
        return (self.top_k + self.shared) * 3 * width * self.feedforward + self.experts * width

    def capacity(self, tokens: int) -> int:
        """Seats of an expert in a batch of so many tokens, padding counted; at most one a token."""
        assert self.capacity_factor is not None, "nothing is dropped"
        share = self.capacity_factor * tokens * self.top_k / self.experts
        return min(tokens, math.ceil(share))


class Routes(NamedTuple):
    """Where tokens go."""

    experts: Int32[Array, "n k"]
    """Chosen experts, best first."""
    weights: Float[Array, "n k"]
    """Their weights, which sum to 1."""
    probabilities: Float[Array, "n e"]
    """Shares of all experts, before any choice: what `load_balance_loss` reads."""


class MixtureStatistics(NamedTuple):
    """What happened in one mixture; from a stack of them, with a leading axis of layers."""

    load: Array
    """Tokens that chose each expert, int32 `[e]`; padding not counted."""
    loss: Array
    """The balance loss times its weight, float32 `[]`; 0 unless `balance="loss"`."""
    dropped: Array
    """Choices that found no seat, int32 `[]`."""


def route(
    scores: Float[Array, "n e"],
    top_k: int,
    *,
    gate: str = "softmax",
    bias: Float[Array, " e"] | None = None,
) -> Routes:
    """Chooses the experts of each token; ties go to the lowest expert.

    A bias is added to the gate's value for the choice alone: the weights come from the value
    without it, and no gradient reaches it (loss-free balancing, arXiv:2408.15664).

    Args:
        scores: the router's products, float32.
        top_k: experts a token.
        gate: one of `GATES`. `softmax`: weights are the softmax's, renormalised over the chosen.
            `sigmoid`: weights are `s_e / sum of the chosen s` (DeepSeek-V3).
        bias: of each expert; None adds nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> routes = route(jnp.log(jnp.array([[3.0, 0.5, 1.0]])), 2)
        >>> routes.experts.tolist(), [f"{w:.2f}" for w in routes.weights[0]]
        ([[0, 2]], ['0.75', '0.25'])
        >>> route(jnp.zeros((1, 3)), 2, bias=jnp.array([0.0, 0.0, 1.0])).experts.tolist()
        [[2, 0]]
    """
    # Both gates are softmaxes of logarithms: no quotient of numbers that have become 0.
    logs = scores if gate == "softmax" else jax.nn.log_sigmoid(scores)
    order = scores
    if bias is not None:
        values = jax.nn.softmax(scores) if gate == "softmax" else jax.nn.sigmoid(scores)
        order = values + bias
    _, chosen = jax.lax.top_k(jax.lax.stop_gradient(order), top_k)
    weights = jax.nn.softmax(jnp.take_along_axis(logs, chosen, axis=-1), axis=-1)
    return Routes(chosen, weights, jax.nn.softmax(logs, axis=-1))


def count_load(
    experts: Int32[Array, "n k"], valid: Bool[Array, " n"], num_experts: int
) -> Int32[Array, " e"]:
    """How many tokens chose each expert; those that are not valid count for nothing."""
    chosen = jnp.where(valid[:, None], experts, num_experts)
    return jnp.zeros(num_experts, jnp.int32).at[chosen].add(1, mode="drop")


def load_balance_loss(
    probabilities: Float[Array, "n e"], load: Int32[Array, " e"], valid: Bool[Array, " n"]
) -> Float[Array, ""]:
    """Switch's loss `E sum_e f_e p_e`, without its factor (arXiv:2101.03961, equation 4).

    `f_e` is the share of choices that fell on the expert, `p_e` its mean probability; equal shares
    give 1. The gradient goes through `p` alone. Without any valid token it is 0.

    Args:
        probabilities: from `route`.
        load: from `count_load`.
        valid: False at padding.
    """
    chosen = load / jnp.maximum(jnp.sum(load), 1)
    total = jnp.sum(jnp.where(valid[:, None], probabilities, 0.0), axis=0)
    return load.shape[0] * jnp.sum(chosen * total) / jnp.maximum(jnp.sum(valid), 1)


def update_biases(
    bias: Float[Array, "*layers e"], load: Int32[Array, "*layers e"], rate: float
) -> Float[Array, "*layers e"]:
    """Loss-free balancing after a step: `b_e + rate sign(mean load - load_e)`.

    Args:
        bias: of every expert.
        load: tokens that chose each expert in the step, of all devices and micro-batches.
        rate: `Mixture.bias_rate`.

    Example:
        >>> import jax.numpy as jnp
        >>> update_biases(jnp.zeros(3), jnp.array([4, 2, 0]), 0.5).tolist()
        [-0.5, 0.0, 0.5]
    """
    load = load.astype(jnp.float32)
    return bias + rate * jnp.sign(jnp.mean(load, axis=-1, keepdims=True) - load)


class MixtureFeedForward(nn.Module):
    """Experts that are SwiGLUs, and their router; the axis of experts comes first everywhere.

    The router is float32. Shared experts are one SwiGLU, as wide as all of them.

    Args of `__call__`:
        x: states `[b t d]`.
        valid: False at padding, `[b t]`: no expert of the mixture reads it, no count knows it.

    Returns:
        The branch `[b t d]`, and `MixtureStatistics`.
    """

    cfg: Stack
    mixture: Mixture

    @nn.compact
    def __call__(self, x: Array, valid: Array) -> tuple[Array, MixtureStatistics]:
        cfg, mixture, init = self.cfg, self.mixture, self.cfg.initial_scale
        experts, width, inner = mixture.experts, cfg.width, mixture.feedforward
        into, out = ("experts", "embed", "mlp"), ("experts", "mlp", "embed")
        weights = (
            self.param("gate", normal(init, *into), (experts, width, inner)),
            self.param("up", normal(init, *into), (experts, width, inner)),
            self.param("down", normal(cfg.residual_scale, *out), (experts, inner, width)),
        )
        router = self.param("router", normal(init, "experts", "embed"), (experts, width))
        bias = None
        if mixture.balance == "bias":
            bias = self.param("bias", zeros("experts"), (experts,))
        live = valid.reshape(-1)
        rows = jnp.where(live[:, None], x.reshape(-1, width), jnp.zeros((), x.dtype))
        scores = rows.astype(jnp.float32) @ router.T
        routes = route(scores, mixture.top_k, gate=mixture.gate, bias=bias)
        load = count_load(routes.experts, live, experts)
        if mixture.capacity_factor is None:
            mixed, dropped = send_all(rows, routes, live, *weights), jnp.int32(0)
        else:
            seats = mixture.capacity(rows.shape[0])
            mixed, dropped = send_seated(rows, routes, live, *weights, capacity=seats)
        mixed = mixed.reshape(x.shape)
        if mixture.shared:
            wide = dataclasses.replace(cfg, feedforward=mixture.shared * inner)
            mixed = mixed + FeedForward(wide, name="shared")(x)
        loss = jnp.float32(0)
        if mixture.balance == "loss":
            loss = mixture.loss_weight * load_balance_loss(routes.probabilities, load, live)
        return mixed, MixtureStatistics(load, loss, dropped)


def send_all(
    x: Float[Array, "n d"],
    routes: Routes,
    valid: Bool[Array, " n"],
    gate: Float[Array, "e d f"],
    up: Float[Array, "e d f"],
    down: Float[Array, "e f d"],
) -> Float[Array, "n d"]:
    """The weighted answers of all chosen experts; nothing is dropped.

    Rows are laid out by expert, each expert's filled up to whole blocks with zeros, so that shapes
    are static and every block is read by one expert.
    """
    (tokens, top_k), experts = routes.experts.shape, gate.shape[0]
    block = min(LARGEST_BLOCK, max(8, tokens * top_k // experts))
    room = (tokens * top_k // block + experts) * block  # each expert leaves less than a block empty
    asked, before = count_before(routes.experts, valid, experts)
    sizes = -(-jnp.sum(asked, axis=(0, 1)) // block) * block
    place = jnp.sum(asked * (before + jnp.cumsum(sizes) - sizes), axis=-1)
    place = jnp.where(valid[:, None], place, room)  # padding lies outside and is not laid
    wide = jnp.broadcast_to(x[:, None], (tokens, top_k, x.shape[1]))
    laid = jnp.zeros((room, x.shape[1]), x.dtype).at[place].set(wide, mode="drop")
    kernels = (each.astype(x.dtype) for each in (gate, up, down))
    in_blocks = functools.partial(grouped_in_blocks, block=block)
    answers = jax.lax.platform_dependent(
        laid, sizes, *kernels, cpu=in_blocks, default=grouped_ragged
    )
    answers = answers.at[place].get(mode="fill", fill_value=0)
    return jnp.sum(answers * routes.weights[..., None].astype(x.dtype), axis=1)


def grouped_ragged(
    rows: Float[Array, "m d"],
    sizes: Int32[Array, " e"],
    gate: Float[Array, "e d f"],
    up: Float[Array, "e d f"],
    down: Float[Array, "e f d"],
) -> Float[Array, "m d"]:
    """SwiGLUs of rows that lie by expert, `sizes` of them each, as ragged products."""
    hidden = jax.nn.silu(jax.lax.ragged_dot(rows, gate, sizes))
    return jax.lax.ragged_dot(hidden * jax.lax.ragged_dot(rows, up, sizes), down, sizes)


def grouped_in_blocks(
    rows: Float[Array, "m d"],
    sizes: Int32[Array, " e"],
    gate: Float[Array, "e d f"],
    up: Float[Array, "e d f"],
    down: Float[Array, "e f d"],
    *,
    block: int,
) -> Float[Array, "m d"]:
    """The same as `grouped_ragged`, block by block, where `block` divides all sizes and the rows.

    On CPU a ragged product multiplies all rows with all experts: forward, with 8 experts it took 13
    times as long as this, and with 53 experts 40 times.
    """
    starts = jnp.arange(0, rows.shape[0], block)
    owner = jnp.searchsorted(jnp.cumsum(sizes), starts, side="right", method="compare_all")

    def multiply(inputs: tuple[Array, Array]) -> Array:
        x, e = inputs
        return (jax.nn.silu(x @ gate[e]) * (x @ up[e])) @ down[e]

    blocks = rows.reshape(-1, block, rows.shape[1])
    owner = jnp.minimum(owner, gate.shape[0] - 1)  # blocks of nobody hold zeros
    return jax.lax.map(multiply, (blocks, owner)).reshape(rows.shape)


def count_before(
    experts: Int32[Array, "n k"], valid: Bool[Array, " n"], num_experts: int
) -> tuple[Int32[Array, "n k e"], Int32[Array, "n k e"]]:
    """Which expert each choice asks for, and how many choices asked for it before.

    The order is that of the tokens, and a token's better choice comes first.
    """
    asked = jax.nn.one_hot(experts, num_experts, dtype=jnp.int32) * valid[:, None, None]
    total = jnp.cumsum(asked.reshape(-1, num_experts), axis=0).reshape(asked.shape)
    return asked, total - asked


def send_seated(
    x: Float[Array, "n d"],
    routes: Routes,
    valid: Bool[Array, " n"],
    gate: Float[Array, "e d f"],
    up: Float[Array, "e d f"],
    down: Float[Array, "e f d"],
    *,
    capacity: int,
) -> tuple[Float[Array, "n d"], Int32[Array, ""]]:
    """The weighted answers of the experts that had a seat, and how many choices found none.

    Seats are taken in the order of `count_before`. The weight of a choice without seat is lost, as
    in Switch.
    """
    asked, before = count_before(routes.experts, valid, gate.shape[0])
    seated = jnp.where((asked > 0) & (before < capacity), before, capacity)  # else beyond all seats
    seats = jax.nn.one_hot(seated, capacity, dtype=x.dtype)  # [n k e c]
    read = parallel.constrain(jnp.einsum("nkec,nd->ecd", seats, x), "experts", None, None)
    gate, up, down = (each.astype(x.dtype) for each in (gate, up, down))
    hidden = jax.nn.silu(jnp.einsum("ecd,edf->ecf", read, gate))
    hidden = hidden * jnp.einsum("ecd,edf->ecf", read, up)
    answers = jnp.einsum("ecf,efd->ecd", hidden, down)
    shares = jnp.einsum("nkec,nk->nec", seats, routes.weights.astype(x.dtype))
    dropped = jnp.sum(asked) - jnp.sum(seated < capacity, dtype=jnp.int32)
    return jnp.einsum("nec,ecd->nd", shares, answers), dropped
