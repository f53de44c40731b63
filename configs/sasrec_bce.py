"""SASRec as published: one uniform negative an event, binary cross-entropy.

Kang and McAuley 2018 (arXiv:1808.09781): two blocks of width 50 with one head, norms on the
queries, dropout .5 everywhere, Adam 1e-3 with b2 .98. This is the row that most papers print, and
it looks weak beside `configs/sasrec.py`, which differs in the loss above all. Amazon-2014 Beauty:

    jaxrec run configs/sasrec_bce.py --data.source.path PATH/TO/amazon2014-beauty
"""

import dataclasses
from pathlib import Path

from jaxrec.backbones.sasrec import SasRec
from jaxrec.data.pipeline import UserCentric
from jaxrec.objectives.item_pairwise import ItemPairwise
from jaxrec.recipe import load_recipe
from jaxrec.training.loop import FitOptions
from jaxrec.training.optimizers import AdamW
from jaxrec.training.supervised import Supervised

recipe = dataclasses.replace(
    load_recipe(Path(__file__).with_name("sasrec.py")),
    name="sasrec-bce",
    generator=SasRec(
        layers=2, width=50, heads=1, dropout=0.5, attention_dropout=0.5, norms="query"
    ),
    stages=(
        Supervised(
            ItemPairwise("bce", negatives=1),
            feed=UserCentric(length=51, rows=32),
            optimizer=AdamW(
                learning_rate=1e-3,
                warmup_steps=0,
                schedule="constant",
                weight_decay=0.0,
                b2=0.98,
                clip_norm=0.0,
            ),
            fit=FitOptions(
                steps=8000, validate_every=800, patience=4, checkpoint_every=800, microbatches=4
            ),
            validation_cases=0,
        ),
    ),
)
