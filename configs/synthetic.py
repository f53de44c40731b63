"""A synthetic world whose best possible recommender is known: plumbing and tests, no claims.

    jaxrec run configs/synthetic.py

500 items in a tree of categories, 2,000 Markov users. `SyntheticWorld().bayes_hit_rate` tells the
Recall@K that nothing can beat. Item vectors are a declared surrogate (hashed TF-IDF).
"""

from jaxrec.backbones.decoder import Decoder
from jaxrec.data.pipeline import UserCentric
from jaxrec.data.splits import LeaveOneOut
from jaxrec.data.synthetic import SyntheticWorld
from jaxrec.decoding.beam import BeamSearch
from jaxrec.objectives.next_token import NextToken
from jaxrec.recipe import Data, Evaluation, Recipe
from jaxrec.representation import HashedTfidf, ItemVectors, TextFields
from jaxrec.tokenization import ExtraDigit, ResidualKMeans, Tokenizer
from jaxrec.training.loop import FitOptions
from jaxrec.training.optimizers import AdamW
from jaxrec.training.supervised import Supervised

recipe = Recipe(
    name="synthetic",
    data=Data(source=SyntheticWorld(), split=LeaveOneOut()),
    items=ItemVectors(encoder=HashedTfidf(dimension=32), text=TextFields(("title",))),
    tokenizer=Tokenizer(ResidualKMeans(levels=2, codes=16), ExtraDigit()),
    generator=Decoder(layers=1, width=32, heads=2, dropout=0.1, item_buckets=512),
    stages=(
        Supervised(
            NextToken(),
            feed=UserCentric(length=32, rows=32),
            optimizer=AdamW(learning_rate=3e-3, warmup_steps=20),
            fit=FitOptions(steps=600, validate_every=200, checkpoint_every=200),
            validation_cases=500,
        ),
    ),
    decoding=BeamSearch(width=20, k=20),
    evaluation=Evaluation(cutoffs=(1, 5, 10, 20), history=16, rows=128),
)
