"""TIGER's network on two CPU cores, on Amazon-2014 Beauty (arXiv:2305.05065).

    jaxrec run configs/tiger_cpu.py --data.source.path PATH/TO/amazon2014-beauty

The generator has the paper's sizes (4+4 layers, width 128, six heads of 64, feed-forward 1024,
dropout .1), the history its 20 items, the batch its 256 targets. Residual k-means IDs instead of
RQ-VAE's, and no user token (GRID finds neither to cost anything); AdamW 1e-3 with a short warm-up
and cosine, for eight epochs: the paper makes fifty times as many steps, so this is a lower bound of
what TIGER can do (configs/tiger.py, configs/tiger_tuned.py are the full ones). The rate is GRID's
and was not tuned here.

Histories of similar length share a batch: 16 % of what is computed is padding, instead of 66 %, so
a step takes less than half of its time (on average 2.4 seconds of processor time instead of 5.4).
Every width is a program of its own, so the first steps compile.
"""

from jaxrec.backbones.t5 import T5
from jaxrec.data.datasets.sequences import SequenceFiles
from jaxrec.data.pipeline import TargetCentric
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
    name="tiger-cpu",
    data=Data(source=SequenceFiles("../shared/data/amazon2014-beauty"), split=LeaveOneOut()),
    items=ItemVectors(
        encoder=WordLlama(),
        text=TextFields(("title", "brand_and_categories")),
        steps=(Standardise(), PCA(128)),
    ),
    tokenizer=Tokenizer(ResidualKMeans(levels=3, codes=256), ExtraDigit()),
    generator=T5(layers=4, width=128, heads=6, head_size=64, feedforward=1024, dropout=0.1),
    stages=(
        Supervised(
            NextToken(),
            feed=TargetCentric(length=20, rows=256, min_history=1, buckets=(2, 3, 5, 8, 13)),
            optimizer=AdamW(learning_rate=1e-3, warmup_steps=400),
            fit=FitOptions(
                steps=4000, validate_every=500, patience=4, checkpoint_every=500, microbatches=16
            ),
            validation_cases=1000,
        ),
    ),
    decoding=BeamSearch(width=50, k=50),
    evaluation=Evaluation(history=20, rows=128),
)
