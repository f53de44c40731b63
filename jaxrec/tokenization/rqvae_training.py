"""The training of an RQ-VAE: what a step changes, several steps in one dispatch."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from jaxrec.tokenization.gradient_modes import annealed
from jaxrec.tokenization.regularizers import Seen
from jaxrec.tokenization.rows import draw_rows
from jaxrec.tokenization.rqvae_network import (
    RqVaeLosses,
    RqVaeParams,
    quantize_rows,
    rqvae_loss,
)
from jaxrec.tokenization.vector_quantization import (
    CodeStatistics,
    Pick,
    Quantized,
    ema_codebook,
    first_statistics,
    mapped_codebook,
    pick_evenly,
    pick_nearest,
    pick_softly,
    reset_dead_codes,
    update_statistics,
)
from jaxrec.tracking import Progress
from jaxrec.types import PyTree

_STEPS_PER_DISPATCH = 50
_NOISE = 2
"""Number of the step's third key, beside the two of its rows and its resets."""


class Trained(NamedTuple):
    """What the optimizer moves."""

    networks: RqVaeParams
    maps: tuple[Float[Array, "d d"], ...] = ()
    """SimVQ's, one a level; the codebooks then stand still."""
    heads: tuple[PyTree, ...] = ()
    """What the regularizers train for themselves."""


class Training(NamedTuple):
    """What a step hands to the next."""

    trained: Trained
    moments: PyTree
    statistics: tuple[CodeStatistics, ...]
    resets: Int32[Array, " l"]
    memories: tuple[PyTree, ...] = ()
    """What the regularizers remember."""


class FitLosses(NamedTuple):
    """Of every step's batch."""

    reconstruction: Float[Array, " s"]
    quantization: Float[Array, " s"]
    regularization: Float[Array, "s r"]
    """Each regularizer's loss, before its weight."""


def train(
    model: Any,
    key: Array,
    params: RqVaeParams,
    points: Array,
    ends: Array,
    batch: int,
    regularizers: tuple[tuple[PyTree, PyTree], ...] = (),
) -> tuple[RqVaeParams, Int32[Array, " l"], FitLosses]:
    """Trains an RqVae.

    Args:
        model: the RqVae, whose options say how.
        key: of batches, noise and resets.
        params: where it starts.
        points: Float[n, d], standardised.
        ends: of `weight_ends`.
        batch: rows of an update.
        regularizers: what `start` of each gave.

    Returns:
        Parameters, dead codes that were moved of each level, and the losses.

    Raises:
        ValueError: a loss that is no longer finite.
    """
    training = start_training(model, params, batch, regularizers)
    losses = []
    with Progress(model.steps, "RQ-VAE", unit="steps") as progress:
        for first in range(0, model.steps, _STEPS_PER_DISPATCH):
            steps = jnp.arange(first, min(first + _STEPS_PER_DISPATCH, model.steps))
            training, now = run_steps(model, batch, training, key, steps, points, ends)
            losses.append(now)
            _check_finite(model, int(steps[-1]), now)
            progress.update(
                len(steps),
                reconstruction=float(now.reconstruction[-1]),
                quantization=float(now.quantization[-1]),
            )
    params = with_maps(training.trained)
    return params, training.resets, jax.tree.map(lambda *each: jnp.concatenate(each), *losses)


def start_training(
    model: Any,
    params: RqVaeParams,
    batch: int,
    regularizers: tuple[tuple[PyTree, PyTree], ...] = (),
) -> Training:
    """What the first step gets; see `train`."""
    books = params.codebooks
    is_mapped = model.codebook == "simvq"
    trained = Trained(
        networks=params,
        maps=tuple(jnp.eye(book.shape[1]) for book in books) if is_mapped else (),
        heads=tuple(head for head, _ in regularizers),
    )
    return Training(
        trained=trained,
        moments=model.optimizer.build(model.steps).init(trained),
        statistics=tuple(first_statistics(book, batch) for book in books),
        resets=jnp.zeros(len(books), jnp.int32),
        memories=tuple(memory for _, memory in regularizers),
    )


def _check_finite(model: Any, step: int, losses: FitLosses) -> None:
    if not all(bool(np.isfinite(each[-1]).all()) for each in losses):
        raise ValueError(
            f"the loss of RqVae is no longer finite after step {step}; lower the learning rate of "
            f"{model.optimizer}, or clip its gradients."
        )


def with_maps(trained: Trained) -> RqVaeParams:
    """The network with the codewords that are meant: SimVQ's are frozen ones times a map."""
    if not trained.maps:
        return trained.networks
    books = map(mapped_codebook, trained.networks.codebooks, trained.maps)
    return trained.networks._replace(codebooks=tuple(books))


def training_pick(model: Any, key: Array, step: Array) -> Pick:
    """How codes are chosen at a step of the training."""
    if model.gradient == "gumbel":
        done = step / max(1, model.steps - 1)
        temperature = annealed(done, model.temperature, model.annealing)
        return partial(pick_softly, key=key, temperature=temperature, distance=model.distance)
    if any(model.sinkhorn):
        return partial(
            pick_evenly,
            epsilons=model.sinkhorn,
            iterations=model.sinkhorn_iterations,
            distance=model.distance,
        )
    return partial(pick_nearest, distance=model.distance)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2,))
def run_steps(
    model: Any,
    batch: int,
    training: Training,
    key: Array,
    steps: Array,
    points: Array,
    ends: Array,
) -> tuple[Training, FitLosses]:
    """Several updates in one dispatch; equal results however they are divided."""
    optimizer = model.optimizer.build(model.steps)

    def update(training: Training, step: Array) -> tuple[Training, FitLosses]:
        step_key = jax.random.fold_in(key, step)
        rows_key, reset_key = jax.random.split(step_key)
        noise_key = jax.random.fold_in(step_key, _NOISE)
        rows = draw_rows(rows_key, ends, batch)
        training = _renew(model, training, step, noise_key)
        loss = partial(_loss, model, training.memories, points, rows, noise_key, step)
        gradients, (parts, terms) = jax.grad(loss, has_aux=True)(training.trained)
        changes, moments = optimizer.update(gradients, training.moments, training.trained)
        trained = jax.tree.map(jnp.add, training.trained, changes)
        if model.codebook == "simvq":
            # No gradient reaches the frozen codes; weight decay would.
            frozen = training.trained.networks.codebooks
            trained = trained._replace(networks=trained.networks._replace(codebooks=frozen))
        training = training._replace(trained=trained, moments=moments)
        if model.codebook == "free":
            may_reset = step < round((1.0 - model.settled) * model.steps)
            training = _keep_up(model, training, reset_key, parts.quantized, may_reset)
        return training, FitLosses(parts.reconstruction, parts.quantization, terms)

    return jax.lax.scan(update, training, steps)


def _loss(
    model: Any,
    memories: tuple[PyTree, ...],
    points: Array,
    rows: Array,
    key: Array,
    step: Array,
    trained: Trained,
) -> tuple[Array, tuple[RqVaeLosses, Array]]:
    """The network's loss and the regularizers', and the parts."""
    params = with_maps(trained)
    how: dict[str, Any] = {
        "residual_mode": model.residual_mode,
        "gradient": model.gradient,
        "pick": training_pick(model, key, step),
        "is_residual": model.residual_networks,
    }
    vectors = points[rows]
    loss, parts = rqvae_loss(
        params,
        vectors,
        reduction=model.reduction,
        beta=model.beta,
        reconstruction_weight=model.reconstruction_weight,
        quantization_weight=model.quantization_weight,
        **how,
    )
    seen = Seen(
        rows=rows,
        vectors=vectors,
        decoded=parts.decoded,
        quantized=parts.quantized,
        summed=parts.summed,
        codebooks=params.codebooks,
        sums_of=lambda others: quantize_rows(params, points[others], **how)[1],
    )
    terms = []
    for number, each in enumerate(model.regularizers):
        own_key = jax.random.fold_in(key, model.levels + number)
        terms.append(each.loss(trained.heads[number], memories[number], seen, own_key))
        loss = loss + each.weight * terms[-1]
    return loss, (parts, jnp.stack(terms) if terms else jnp.zeros(0))


def _renew(model: Any, training: Training, step: Array, key: Array) -> Training:
    """What the regularizers remember, before a step."""
    memories = []
    for number, each in enumerate(model.regularizers):
        # Beyond the keys of the levels and of the losses of the same step.
        own_key = jax.random.fold_in(key, model.levels + len(model.regularizers) + number)
        codebooks = with_maps(training.trained).codebooks
        memories.append(each.renew(training.memories[number], step, own_key, codebooks))
    return training._replace(memories=tuple(memories))


def _keep_up(
    model: Any, training: Training, key: Array, quantized: Quantized, may_reset: Array
) -> Training:
    """What gradients do not do for codebooks: averages, dead codes, and moving means."""
    networks = training.trained.networks
    codebooks, statistics, resets = [], [], []
    for level, codebook in enumerate(networks.codebooks):
        residuals = quantized.residuals[level]
        now = update_statistics(
            training.statistics[level], residuals, quantized.codes[:, level], model.decay
        )
        if model.residual_mode == "ema_cumsum":
            codebook = ema_codebook(now)
        even_share = residuals.shape[0] / codebook.shape[0]
        codebook, now, moved = reset_dead_codes(
            jax.random.fold_in(key, level),
            codebook,
            now,
            residuals,
            jnp.where(may_reset, model.dead_below * even_share, 0.0),
        )
        codebooks.append(codebook)
        statistics.append(now)
        resets.append(moved)
    networks = networks._replace(codebooks=tuple(codebooks))
    return training._replace(
        trained=training.trained._replace(networks=networks),
        statistics=tuple(statistics),
        resets=training.resets + jnp.stack(resets),
    )
