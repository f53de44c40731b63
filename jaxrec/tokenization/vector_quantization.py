"""Vector quantization as pure functions: look-up, gradients, losses, the upkeep of codebooks.

The parts of which quantizers with trained networks are made (METHODS T2). Nothing here has a state
or a setting of its own; every function may be called from research code.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from jaxrec.tokenization.kmeans import group_sums, nearest

ResidualMode = Literal["paper", "per_level_ste", "detach", "ema_cumsum"]
"""How a level's residual depends on what comes before it; see `quantize_residuals`."""

_RESET_NOISE = 0.01
"""Size of the noise on a revived codeword, relative to the residuals: tells twins apart."""


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


class Quantized(NamedTuple):
    """What `quantize_residuals` made of b vectors and l codebooks."""

    codes: Int32[Array, "b l"]
    total: Float[Array, "b d"]
    """Sum of the codewords, without any gradient to the vectors."""
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
    """
    stop = jax.lax.stop_gradient
    residual, total = vectors, jnp.zeros_like(vectors)
    codes, residuals, codebook_losses, commitments = [], [], [], []
    for codebook in codebooks:
        chosen, _ = nearest(stop(residual), stop(codebook))
        codeword = look_up(codebook, chosen)
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
