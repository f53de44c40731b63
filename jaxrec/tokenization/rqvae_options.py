"""Which hyper-parameters of an RQ-VAE go together: one clear error for those that do not."""

from __future__ import annotations

from typing import Any, Literal, get_args

from jaxrec.tokenization.gradient_modes import Annealing, GradientMode
from jaxrec.tokenization.regularizers import Regularizer
from jaxrec.tokenization.rqvae_network import Reduction
from jaxrec.tokenization.vector_quantization import Distance, ResidualMode

CodebookKind = Literal["free", "simvq"]
"""Whether codewords are trained themselves, or through one linear map of frozen ones a level."""

CHOICES = {
    "residual_mode": ResidualMode,
    "reduction": Reduction,
    "gradient": GradientMode,
    "annealing": Annealing,
    "distance": Distance,
    "codebook": CodebookKind,
}


def check_options(model: Any) -> None:
    """Checks the fields of an RqVae.

    Raises:
        ValueError: a number out of range, an unknown choice, or choices that exclude each other.
    """
    for name, choices in CHOICES.items():
        if getattr(model, name) not in get_args(choices):
            raise ValueError(
                f"RqVae.{name} {getattr(model, name)!r} is unknown; choose one of "
                f"{', '.join(get_args(choices))}."
            )
    _check_numbers(model)
    _check_training(model)
    _check_together(model)


def _check_numbers(model: Any) -> None:
    sizes = model.asked_sizes
    if model.levels < 1 or len(sizes) != model.levels or min(sizes) < 1:
        raise ValueError(
            f"RqVae needs levels >= 1 and a positive number of codes for each, got "
            f"levels={model.levels}, codes={model.codes}."
        )
    if min(model.latent, model.steps, model.batch, *model.hidden) < 1:
        raise ValueError(
            "RqVae needs latent, steps, batch and every hidden width >= 1, got "
            f"{model.latent}, {model.steps}, {model.batch} and {model.hidden}."
        )
    if model.start_rows < max(sizes):
        raise ValueError(
            f"RqVae.start_rows is {model.start_rows}, fewer than the {max(sizes)} codes of a "
            "level that start from them; give at least that many, better 60 a code."
        )
    if model.beta < 0 or model.quantization_weight <= 0 or model.reconstruction_weight < 0:
        raise ValueError(
            "RqVae needs beta >= 0, quantization_weight > 0 and reconstruction_weight >= 0, got "
            f"{model.beta}, {model.quantization_weight} and {model.reconstruction_weight}."
        )
    if not (0 <= model.dead_below < 1 and 0 <= model.settled <= 1 and 0 < model.decay < 1):
        raise ValueError(
            "RqVae needs 0 <= dead_below < 1, 0 <= settled <= 1 and 0 < decay < 1, got "
            f"{model.dead_below}, {model.settled} and {model.decay}."
        )


def _check_training(model: Any) -> None:
    temperature = model.temperature
    if len(temperature) != 2 or not min(temperature) > 0:
        raise ValueError(
            f"RqVae.temperature is {temperature}; give two positive numbers, of the first step "
            "and of the last."
        )
    epsilons = model.sinkhorn
    if epsilons and (len(epsilons) != model.levels or min(epsilons) < 0):
        raise ValueError(
            f"RqVae.sinkhorn is {epsilons} for {model.levels} levels; give one epsilon >= 0 a "
            "level, 0 where the nearest code is taken, or none at all."
        )
    if model.sinkhorn_iterations < 1:
        raise ValueError(
            f"RqVae.sinkhorn_iterations is {model.sinkhorn_iterations}; give at least 1."
        )
    for each in model.regularizers:
        if not isinstance(each, Regularizer):
            raise ValueError(
                f"{each!r} is no regularizer; give LetterCollaborative, LetterDiversity, "
                "ReconstructionContrast, QuantizedPairs, or anything of that shape."
            )


def _check_together(model: Any) -> None:
    follows_means = model.residual_mode == "ema_cumsum"
    excluded = (
        (
            model.gradient == "gumbel" and follows_means,
            "gradient='gumbel' moves codebooks, which residual_mode='ema_cumsum' lets follow means",
        ),
        (
            model.gradient == "gumbel" and any(model.sinkhorn),
            "gradient='gumbel' mixes codewords, and sinkhorn assigns one",
        ),
        (
            model.codebook == "simvq" and follows_means,
            "codebook='simvq' freezes the codes, which residual_mode='ema_cumsum' lets follow "
            "means",
        ),
        (
            model.codebook == "simvq" and model.dead_below > 0,
            "codebook='simvq' freezes the codes, and dead_below > 0 moves some; set dead_below=0",
        ),
        (
            not any(each.weight for each in model.regularizers) and not model.reconstruction_weight,
            "reconstruction_weight=0 leaves nothing to train the decoder by; add a regularizer",
        ),
    )
    for is_so, reason in excluded:
        if is_so:
            raise ValueError(f"RqVae cannot do both: {reason}. Choose one.")
