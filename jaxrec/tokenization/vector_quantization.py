"""Vector quantization as pure functions: look-up, gradients, losses, the upkeep of codebooks.

The parts of which quantizers with trained networks are made (METHODS T2). Nothing here has a state
or a setting of its own; every function may be called from research code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from jaxrec.tokenization.blocks import group_sums, nearest
from jaxrec.tokenization.gradient_modes import gumbel_weights, straight_through
from jaxrec.tokenization.sinkhorn import sinkhorn_codes

ResidualMode = Literal["paper", "per_level_ste", "detach", "ema_cumsum"]
"""How a level's residual depends on what comes before it; see `quantize_residuals`."""

Distance = Literal["euclidean", "cosine"]
"""By which a codeword is near; see `squared_distances`."""

Pick = Callable[[Array, Array, int], tuple[Array, Array]]
"""How a level chooses: (residuals Float[b, d], codebook Float[k, d], level) -> codes Int32[b], and
the codewords Float[b, d] that stand for them, differentiable in the codebook."""

_RESET_NOISE = 0.01
"""Size of the noise on a revived codeword, relative to the residuals: tells twins apart."""


@jax.custom_vjp
def look_up(codebook: Float[Array, "k d"], codes: Int32[Array, " b"]) -> Float[Array, "b d"]:
    """Codewords of codes. Its gradient adds up in a fixed order on every backend, which that of
    plain indexing does not on a GPU: equal keys give equal fits."""
    return codebook[codes]


def _look_up_forward(codebook: Array, codes: Array) -> tuple[Array, tuple[Array, Array]]:
    return codebook[codes], (codebook, codes)


def _look_up_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, None]:
    codebook, codes = saved
    ones = jnp.ones(codes.shape, gradient.dtype)
    return group_sums(gradient, ones, codes, codebook.shape[0])[0], None


look_up.defvjp(_look_up_forward, _look_up_backward)


def squared_distances(
    vectors: Float[Array, "b d"], codebook: Float[Array, "k d"], distance: Distance = "euclidean"
) -> Float[Array, "b k"]:
    """Of every vector to every codeword, fp32 and never negative; `cosine` between unit vectors.

    Source: the cosine of Yu et al., "Vector-quantized image modeling", arXiv:2110.04627. There the
    codewords are unit vectors too; here only the choice looks at directions, for a residual is what
    a codeword of some length leaves over.
    """
    if distance == "cosine":
        vectors, codebook = _unit(vectors), _unit(codebook)
    products = jnp.dot(vectors, codebook.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(vectors**2, -1, keepdims=True) + jnp.sum(codebook**2, -1)
    return jnp.maximum(squares - 2 * products, 0.0)


def nearest_by(
    vectors: Float[Array, "b d"], codebook: Float[Array, "k d"], distance: Distance = "euclidean"
) -> Int32[Array, " b"]:
    """The nearest codeword of each vector, the lowest code among equals.

    By `cosine` a vector of zeros has no direction and takes code 0.
    """
    if distance == "euclidean":
        return nearest(vectors, codebook)[0]
    # Products alone: squares of unit vectors are 1 but for rounding, which would break ties.
    products = jnp.dot(_unit(vectors), _unit(codebook).T, precision=jax.lax.Precision.HIGHEST)
    best = jnp.max(products, -1, keepdims=True)
    ids = jnp.arange(codebook.shape[0], dtype=jnp.int32)
    return jnp.min(jnp.where(products == best, ids, codebook.shape[0] - 1), -1)


def pick_nearest(
    residuals: Float[Array, "b d"],
    codebook: Float[Array, "k d"],
    level: int = 0,
    *,
    distance: Distance = "euclidean",
) -> tuple[Int32[Array, " b"], Float[Array, "b d"]]:
    """The `Pick` of inference: the nearest codeword, without a gradient to the residuals."""
    del level
    stop = jax.lax.stop_gradient
    codes = nearest_by(stop(residuals), stop(codebook), distance)
    return codes, look_up(codebook, codes)


def pick_evenly(
    residuals: Float[Array, "b d"],
    codebook: Float[Array, "k d"],
    level: int = 0,
    *,
    epsilons: tuple[float, ...],
    iterations: int = 50,
    distance: Distance = "euclidean",
) -> tuple[Int32[Array, " b"], Float[Array, "b d"]]:
    """A `Pick` that gives every code its share of the batch. Training only.

    Source: LC-Rec, arXiv:2311.09049, which does so in the last of four levels, with .003, by
    Sinkhorn's iteration.

    Args:
        epsilons: one a level, see `sinkhorn_codes`; a level of 0 takes the nearest.
    """
    if not epsilons[level]:
        return pick_nearest(residuals, codebook, distance=distance)
    stop = jax.lax.stop_gradient
    costs = squared_distances(stop(residuals), stop(codebook), distance)
    codes = sinkhorn_codes(costs, epsilon=epsilons[level], iterations=iterations)
    return codes, look_up(codebook, codes)


def pick_softly(
    residuals: Float[Array, "b d"],
    codebook: Float[Array, "k d"],
    level: int = 0,
    *,
    key: PRNGKeyArray,
    temperature: float | Float[Array, ""],
    distance: Distance = "euclidean",
) -> tuple[Int32[Array, " b"], Float[Array, "b d"]]:
    """A `Pick` whose codewords are mixtures by `gumbel_weights`, differentiable in the residuals
    too; the codes are those of `pick_nearest`, without noise. Training only.

    Args:
        key: of the noise; every level has its own.
    """
    costs = squared_distances(residuals, codebook, distance)
    weights = gumbel_weights(jax.random.fold_in(key, level), costs, temperature)
    stop = jax.lax.stop_gradient
    codes = nearest_by(stop(residuals), stop(codebook), distance)
    return codes, jnp.dot(weights, codebook, precision=jax.lax.Precision.HIGHEST)


def mapped_codebook(
    frozen: Float[Array, "k d"], linear: Float[Array, "d d"]
) -> Float[Array, "k d"]:
    """SimVQ's codewords: frozen ones times a trained map, so that every step moves all of them.

    Source: Zhu et al., "Addressing representation collapse in vector quantized models with one
    linear layer", arXiv:2411.02038.
    """
    frozen = jax.lax.stop_gradient(frozen)
    return jnp.dot(frozen, linear, precision=jax.lax.Precision.HIGHEST)


class Quantized(NamedTuple):
    """What `quantize_residuals` made of b vectors and l codebooks."""

    codes: Int32[Array, "b l"]
    total: Float[Array, "b d"]
    """Sum of the codewords; a soft `Pick` apart, without any gradient to the vectors."""
    residuals: tuple[Float[Array, "b d"], ...]
    """What each level was given."""
    codebook: Float[Array, "b l"]
    """|sg(r_l) - e_l|^2: moves the codewords to the residuals."""
    commitment: Float[Array, "b l"]
    """|r_l - sg(e_l)|^2: moves the residuals to the codewords."""


def quantize_residuals(
    vectors: Float[Array, "b d"],
    codebooks: tuple[Float[Array, "_ d"], ...],
    mode: ResidualMode = "detach",
    pick: Pick = pick_nearest,
) -> Quantized:
    """Level by level, the nearest codeword of what the levels before left over.

        r_1 = z;  c_l = argmin_k |r_l - e^l_k|^2;  r_{l+1} = r_l - e^l_{c_l}

    Distances are fp32 at full precision, the lowest code wins ties. The published systems agree
    on these numbers and differ in the gradients of the later levels' commitment:

    - `paper` (TIGER's formula, arXiv:2305.05065, taken literally): codewords stay differentiable
      in the residual, so the commitment of level l moves the encoder and all earlier codebooks.
    - `per_level_ste` (the code of LC-Rec, LETTER, MiniOneRec): a level subtracts
      `straight_through(r, e)`, whose gradient cancels that of r. Only the first level's commitment
      moves anything.
    - `detach` (lucidrains' vector-quantize-pytorch): subtracts sg(e); every level's commitment
      moves the encoder, none moves a codebook.
    - `ema_cumsum` (Lee et al., arXiv:2203.01941; LIGER): compares z with the cumulative sums of
      codewords, |z - sg(e_1 + ... + e_l)|^2. That is the commitment of `detach`, written
      otherwise; what differs is that codebooks follow moving averages (`ema_codebook`) and
      have no loss: `codebook` is 0.

    Args:
        vectors: float32, the encoder's output.
        codebooks: one a level; levels may differ in size.
        pick: chooses otherwise than the nearest: by angle, evenly, or softly. Whatever it gives as
            a codeword takes the place of e^l everywhere.
    """
    stop = jax.lax.stop_gradient
    residual, total = vectors, jnp.zeros_like(vectors)
    codes, residuals, codebook_losses, commitments = [], [], [], []
    for level, codebook in enumerate(codebooks):
        chosen, codeword = pick(residual, codebook, level)
        follows_means = mode == "ema_cumsum"
        pull = jnp.zeros_like(codeword) if follows_means else stop(residual) - codeword
        codes.append(chosen)
        residuals.append(residual)
        codebook_losses.append(jnp.sum(pull**2, -1))
        commitments.append(jnp.sum((residual - stop(codeword)) ** 2, -1))
        total = total + codeword
        if mode == "paper":
            residual = residual - codeword
        elif mode == "per_level_ste":
            residual = residual - straight_through(residual, codeword)
        else:
            residual = residual - stop(codeword)
    return Quantized(
        codes=jnp.stack(codes, -1),
        total=total,
        residuals=tuple(residuals),
        codebook=jnp.stack(codebook_losses, -1),
        commitment=jnp.stack(commitments, -1),
    )


class CodeStatistics(NamedTuple):
    """Moving averages over batches, of one codebook."""

    counts: Float[Array, " k"]
    """Vectors that chose the code."""
    sums: Float[Array, "k d"]
    """Their sum."""


def first_statistics(codebook: Float[Array, "k d"], rows: int) -> CodeStatistics:
    """Averages of a new codebook, as if every code had its even share of batches of `rows`."""
    counts = jnp.full(codebook.shape[0], rows / codebook.shape[0], jnp.float32)
    return CodeStatistics(counts, codebook * counts[:, None])


def update_statistics(
    statistics: CodeStatistics,
    residuals: Float[Array, "b d"],
    codes: Int32[Array, " b"],
    decay: float,
) -> CodeStatistics:
    """N <- g N + (1 - g) n and m <- g m + (1 - g) (sum of the code's vectors)."""
    ones = jnp.ones(codes.shape, residuals.dtype)
    sums, counts = group_sums(residuals, ones, codes, statistics.counts.shape[0])
    return CodeStatistics(
        decay * statistics.counts + (1 - decay) * counts,
        decay * statistics.sums + (1 - decay) * sums,
    )


def ema_codebook(statistics: CodeStatistics, epsilon: float = 1e-5) -> Float[Array, "k d"]:
    """Codewords as moving means, m / N' with N' = (N + eps) / (sum N + K eps) * sum N.

    Source: van den Oord et al., arXiv:1711.00937, appendix A.1; `epsilon` keeps codes that nothing
    chooses finite.
    """
    counts, sums = statistics
    total = jnp.sum(counts)
    smoothed = (counts + epsilon) / (total + counts.shape[0] * epsilon) * total
    return sums / smoothed[:, None]


def reset_dead_codes(
    key: PRNGKeyArray,
    codebook: Float[Array, "k d"],
    statistics: CodeStatistics,
    residuals: Float[Array, "b d"],
    threshold: float | Float[Array, ""],
) -> tuple[Float[Array, "k d"], CodeStatistics, Int32[Array, ""]]:
    """Moves codes that hardly any vector chooses onto vectors of the batch.

    Args:
        key: of the vectors taken, all different as far as the batch has so many, and of a noise of
            1 % of their size.
        residuals: what the level was given.
        threshold: a code is dead when its average count is below. The even share is b / k, so it
            has to scale with that; 0 resets nothing.

    Returns:
        Codebook, statistics, and how many codes were moved.
    """
    k, rows = codebook.shape[0], residuals.shape[0]
    row_key, noise_key = jax.random.split(key)
    # Equal steps from a random row: all different, without the cost of a shuffle in every update.
    first = jax.random.randint(row_key, (), 0, rows)
    drawn = (first + jnp.arange(k) * max(1, rows // k)) % rows
    size = jnp.sqrt(jnp.mean(residuals**2))
    noise = _RESET_NOISE * size * jax.random.normal(noise_key, codebook.shape)
    is_dead = statistics.counts < threshold
    codebook = jnp.where(is_dead[:, None], residuals[drawn] + noise, codebook)
    # The even share, not the threshold: a code needs some batches to be found before it is judged.
    fresh = first_statistics(codebook, rows)
    statistics = CodeStatistics(
        jnp.where(is_dead, fresh.counts, statistics.counts),
        jnp.where(is_dead[:, None], fresh.sums, statistics.sums),
    )
    return codebook, statistics, jnp.sum(is_dead, dtype=jnp.int32)


def _unit(vectors: Float[Array, "n d"]) -> Float[Array, "n d"]:
    # A vector of zeros has no direction and stays; its slope stays finite.
    square = jnp.sum(vectors**2, -1, keepdims=True)
    return vectors / jnp.sqrt(jnp.maximum(square, 1e-24))
