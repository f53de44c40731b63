"""Somebody else's semantic IDs: LETTER's for Amazon Instruments, with our generator.

    jaxrec run configs/published_ids.py --data.source.path PATH/TO/Instruments \
        --tokenizer.path PATH/TO/Instruments/Instruments.index.json

The folder holds `Instruments.inter.json` and `Instruments.index.json` as published with W. Wang et
al., "Learnable Item Tokenization for Generative Recommendation", CIKM 2024 (arXiv:2405.07314);
`jaxrec data fetch letter-instruments` brings them. The log has no clock and its items have no text,
so the vectors come from behaviour; they are used for the quality report of the IDs alone.
"""

from jaxrec.backbones.decoder import Decoder
from jaxrec.data.datasets.lcrec import LcRecFiles
from jaxrec.data.pipeline import UserCentric
from jaxrec.data.splits import LeaveOneOut
from jaxrec.decoding.beam import BeamSearch
from jaxrec.objectives.next_token import NextToken
from jaxrec.recipe import Data, Evaluation, Recipe
from jaxrec.representation import Cooccurrence, ItemVectors
from jaxrec.tokenization.published import PublishedIds
from jaxrec.training.loop import FitOptions
from jaxrec.training.optimizers import AdamW
from jaxrec.training.supervised import Supervised

INSTRUMENTS = "../shared/data/letter-instruments"

recipe = Recipe(
    name="published-ids",
    data=Data(source=LcRecFiles(INSTRUMENTS), split=LeaveOneOut()),
    items=ItemVectors(encoder=Cooccurrence()),
    tokenizer=PublishedIds(f"{INSTRUMENTS}/Instruments.index.json"),
    generator=Decoder(layers=2, width=128, heads=2, dropout=0.3, item_buckets=9984),
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
    evaluation=Evaluation(cutoffs=(1, 5, 10, 20), history=48, rows=256),
)
