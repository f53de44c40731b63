"""Your own log, once `jaxrec data import` has made a dataset folder of it.

    jaxrec data import log.csv --out data/mine
    jaxrec run configs/own_data.py --data.source.path data/mine --name mine

Needs nothing but users, items and times: items get their vectors from what is had together in
training (`Cooccurrence`). Where items have texts, copy this file and write
`ItemVectors(WordLlama(), TextFields(("title", ...)))` instead, as configs/quickstart.py does.
Users and items with fewer than five events are dropped (5-core). docs/own-data.md has the measured
times of a log of one million events.
"""

from jaxrec.backbones.decoder import Decoder
from jaxrec.data.datasets.canonical import CanonicalFolder
from jaxrec.data.pipeline import UserCentric
from jaxrec.data.splits import LeaveOneOut
from jaxrec.decoding.beam import BeamSearch
from jaxrec.objectives.next_token import NextToken
from jaxrec.recipe import Data, Evaluation, Recipe
from jaxrec.representation import Cooccurrence, ItemVectors
from jaxrec.tokenization import ExtraDigit, ResidualKMeans, Tokenizer
from jaxrec.training.loop import FitOptions
from jaxrec.training.optimizers import AdamW
from jaxrec.training.supervised import Supervised

recipe = Recipe(
    name="own-data",
    data=Data(source=CanonicalFolder("data/mine"), split=LeaveOneOut(), min_user=5, min_item=5),
    items=ItemVectors(encoder=Cooccurrence()),
    tokenizer=Tokenizer(ResidualKMeans(levels=3, codes=256), ExtraDigit()),
    generator=Decoder(layers=2, width=128, heads=2, dropout=0.3, item_buckets=16384),
    stages=(
        Supervised(
            NextToken(),
            feed=UserCentric(length=48, rows=64),
            optimizer=AdamW(learning_rate=2e-3, warmup_steps=200),
            fit=FitOptions(
                steps=1000, validate_every=250, patience=4, checkpoint_every=250, microbatches=4
            ),
            validation_cases=2000,
        ),
    ),
    decoding=BeamSearch(width=20, k=20),
    evaluation=Evaluation(cutoffs=(1, 5, 10, 20), history=48, rows=256, max_cases=5000),
)
