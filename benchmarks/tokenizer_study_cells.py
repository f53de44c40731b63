"""What `tokenizer_study.py` compares: data sets, tokenizers, and the generator that all share."""

from __future__ import annotations

import dataclasses
from typing import Any

from quality_cells import DATA, TEXTS

from jaxrec.backbones.decoder import Decoder
from jaxrec.data.datasets.sequences import SequenceFiles
from jaxrec.data.pipeline import UserCentric
from jaxrec.data.splits import LeaveOneOut
from jaxrec.decoding.beam import BeamSearch
from jaxrec.objectives.next_token import NextToken
from jaxrec.recipe import Data, Evaluation, Recipe
from jaxrec.representation import (
    PCA,
    Cooccurrence,
    Fused,
    ItemVectors,
    Standardise,
    TextFields,
    WordLlama,
)
from jaxrec.tokenization import (
    BalancedResidualKMeans,
    ExtraDigit,
    Fsq,
    KMeansTree,
    LetterCollaborative,
    LetterDiversity,
    NextNearest,
    ProductKMeans,
    PublishedIds,
    RandomLast,
    Reassign,
    ResidualKMeans,
    RqVae,
    Tokenizer,
)
from jaxrec.training.loop import FitOptions
from jaxrec.training.optimizers import AdamW
from jaxrec.training.supervised import Supervised

SEEDS = [0, 1, 2]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A data set of the study."""

    folder: str
    length: int
    """Events of a history that are read."""
    steps: int


DATASETS = {
    "beauty": Cell("amazon2014-beauty", length=48, steps=600),
    "ml-1m": Cell("movielens-1m", length=48, steps=600),
}

TEXT = "text"
BEHAVIOUR = "behaviour"
BOTH = "both"

TOKENIZERS: dict[str, tuple[str, Any]] = {
    "residual k-means": (TEXT, Tokenizer(ResidualKMeans(3, 256), ExtraDigit())),
    "residual k-means, 4 levels": (TEXT, Tokenizer(ResidualKMeans(4, 256), ExtraDigit())),
    "residual k-means, 64 codes": (TEXT, Tokenizer(ResidualKMeans(3, 64), ExtraDigit())),
    "residual k-means, reassigned": (TEXT, Tokenizer(ResidualKMeans(3, 256), Reassign())),
    "residual k-means, next nearest": (TEXT, Tokenizer(ResidualKMeans(3, 256), NextNearest())),
    "balanced": (TEXT, Tokenizer(BalancedResidualKMeans(3, 256), ExtraDigit())),
    "RQ-VAE": (TEXT, Tokenizer(RqVae(3, 256), ExtraDigit())),
    "RQ-VAE, LC-Rec": (
        TEXT,
        Tokenizer(RqVae(3, 256, residual_mode="per_level_ste", quantization_weight=1 / 3)),
    ),
    "LETTER": (
        TEXT,
        Tokenizer(
            RqVae(3, 256, regularizers=(LetterCollaborative(), LetterDiversity())),
            collaborative=Cooccurrence(32),
        ),
    ),
    "tree": (TEXT, Tokenizer(KMeansTree(branches=16), ExtraDigit())),
    "OPQ": (TEXT, Tokenizer(ProductKMeans(4, 256, rotation="learnt"), ExtraDigit())),
    "FSQ": (TEXT, Tokenizer(Fsq(grid=((8, 6, 5),) * 3), ExtraDigit())),
    "behaviour": (BEHAVIOUR, Tokenizer(ResidualKMeans(3, 256), ExtraDigit())),
    "text and behaviour": (BOTH, Tokenizer(ResidualKMeans(3, 256), ExtraDigit())),
    "one code, random rest": (TEXT, Tokenizer(ResidualKMeans(1, 256), ExtraDigit())),
    "published LETTER": (
        TEXT,
        PublishedIds(f"{DATA}/amazon2014-beauty/letter.index.json", shift=1),
    ),
    "random last": (TEXT, Tokenizer(ResidualKMeans(2, 256), RandomLast())),
}
"""Name to what the vectors are made of, and the tokenizer."""


def vectors_of(kind: str, dataset: str) -> ItemVectors:
    """The representation stage of a tokenizer."""
    text = TextFields(TEXTS[dataset])
    if kind == TEXT:
        return ItemVectors(WordLlama(), text, steps=(Standardise(), PCA(128)))
    if kind == BEHAVIOUR:
        return ItemVectors(Cooccurrence(64), text, steps=(Standardise(),))
    return ItemVectors(Fused((WordLlama(), Cooccurrence(64))), text, steps=(PCA(128),))


def recipe_of(dataset: str, tokenizer: str, seed: int) -> Recipe | None:
    """The run of a cell; None where a data set has no such IDs."""
    if tokenizer == "published LETTER" and dataset != "beauty":
        return None
    cell, (kind, made) = DATASETS[dataset], TOKENIZERS[tokenizer]
    name = f"{dataset}-{tokenizer}-s{seed}".replace(" ", "_").replace(",", "")
    return Recipe(
        name=name,
        seed=seed,
        data=Data(source=SequenceFiles(f"{DATA}/{cell.folder}"), split=LeaveOneOut()),
        items=vectors_of(kind, dataset),
        tokenizer=made,
        generator=Decoder(layers=2, width=96, heads=2, dropout=0.2),
        stages=(
            Supervised(
                NextToken(),
                feed=UserCentric(length=cell.length, rows=32),
                optimizer=AdamW(learning_rate=2e-3, warmup_steps=100),
                fit=FitOptions(
                    steps=cell.steps, validate_every=300, checkpoint_every=300, microbatches=2
                ),
                validation_cases=1000,
            ),
        ),
        decoding=BeamSearch(width=30, k=10),
        evaluation=Evaluation(
            cutoffs=(5, 10), history=cell.length, rows=256, max_cases=4000, bootstrap=100
        ),
    )
