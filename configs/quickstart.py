"""Quickstart: MovieLens-100K from the log to recommendations, in minutes on two CPU cores.

Needs nothing but the package index: the log comes out of the `recbole` wheel (fetched, checked,
never installed), the text encoder's weights out of the `wordllama` wheel.

    jaxrec run configs/quickstart.py

Titles and genres become WordLlama vectors, residual k-means turns them into three codes and an
extra digit, and a small causal decoder reads one token an item and writes codes with a light head
(the cheap shape of docs/concepts.md). Leave-one-out, full ranking; baselines in the same report.
"""

from jaxrec.backbones.decoder import Decoder
from jaxrec.data.datasets.movielens import MovieLens100K
from jaxrec.data.pipeline import UserCentric
from jaxrec.data.splits import LeaveOneOut
from jaxrec.decoding.beam import BeamSearch
from jaxrec.objectives.next_token import NextToken
from jaxrec.recipe import Data, Evaluation, Recipe
from jaxrec.representation import PCA, ItemVectors, Standardise, TextFields, WordLlama
from jaxrec.tokenization import ExtraDigit, ResidualKMeans, Tokenizer
from jaxrec.training.loop import FitOptions
from jaxrec.training.optimizers import AdamW
from jaxrec.training.supervised import Supervised

recipe = Recipe(
    name="quickstart",
    data=Data(source=MovieLens100K(), split=LeaveOneOut()),
    items=ItemVectors(
        encoder=WordLlama(),
        text=TextFields(("title", "genres", "year")),
        steps=(Standardise(), PCA(64)),
    ),
    tokenizer=Tokenizer(ResidualKMeans(levels=3, codes=64), ExtraDigit()),
    generator=Decoder(layers=2, width=64, heads=2, dropout=0.2, item_buckets=2048),
    stages=(
        Supervised(
            NextToken(),
            feed=UserCentric(length=128, rows=32, context=32),
            optimizer=AdamW(learning_rate=2e-3, warmup_steps=50),
            fit=FitOptions(
                steps=800, validate_every=100, patience=5, checkpoint_every=100, microbatches=4
            ),
        ),
    ),
    decoding=BeamSearch(width=50, k=50),
    evaluation=Evaluation(history=100, rows=128),
)
