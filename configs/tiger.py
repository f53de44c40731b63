"""TIGER as published, on Amazon-2014 Beauty (Rajput et al., "Recommender Systems with Generative
Retrieval", NeurIPS 2023, arXiv:2305.05065).

    jaxrec run configs/tiger.py --data.source.path PATH/TO/amazon2014-beauty

RQ-VAE IDs of 3 x 256 codes and an extra digit; T5 with 4+4 layers that reads a hashed user token
and the codes of the last 20 items; every training event after the first is a target; batch 256,
dropout .1, rate .01 falling with the inverse square root after 10,000 of 200,000 steps.

Needs an accelerator: on two CPU cores 200,000 steps are a week (configs/tiger_cpu.py is for them).

What differs from the paper, and why: WordLlama vectors of title, brand and categories instead of
Sentence-T5 (their weights are not in a package; `Precomputed` takes them); AdamW instead of T5X's
Adafactor and, for the RQ-VAE, of Adagrad .4, which collapses on such vectors; a linear warm-up
where the paper holds .01; probabilities over the codes of a level. The stated sizes give 4.85
million parameters, not 13. Careful reproductions reach recall@10 .063 to .066 and NDCG@10 .034 to
.035; the paper has .0648 and .0384. With Adam a rate of .01 has been reported unstable;
configs/tiger_tuned.py is the recipe of the best documented reproduction.
"""

from jaxrec.backbones.t5 import T5
from jaxrec.data.datasets.sequences import SequenceFiles
from jaxrec.data.pipeline import TargetCentric
from jaxrec.data.splits import LeaveOneOut
from jaxrec.decoding.beam import BeamSearch
from jaxrec.objectives.next_token import NextToken
from jaxrec.recipe import Data, Evaluation, Recipe
from jaxrec.representation import ItemVectors, TextFields, WordLlama
from jaxrec.tokenization import ExtraDigit, RqVae, Tokenizer
from jaxrec.training.loop import FitOptions
from jaxrec.training.optimizers import AdamW
from jaxrec.training.supervised import Supervised

recipe = Recipe(
    name="tiger",
    data=Data(source=SequenceFiles("../shared/data/amazon2014-beauty"), split=LeaveOneOut()),
    items=ItemVectors(encoder=WordLlama(), text=TextFields(("title", "brand_and_categories"))),
    # 20,000 epochs of 12 batches.
    tokenizer=Tokenizer(
        RqVae(
            reduction="sum",
            levels=3,
            codes=256,
            hidden=(512, 256, 128),
            latent=32,
            batch=1024,
            steps=240_000,
        ),
        ExtraDigit(),
    ),
    generator=T5(
        layers=4,
        width=128,
        heads=6,
        head_size=64,
        feedforward=1024,
        dropout=0.1,
        user_buckets=2000,
    ),
    stages=(
        Supervised(
            NextToken(),
            feed=TargetCentric(length=20, rows=256, min_history=1),
            optimizer=AdamW(
                learning_rate=0.01, warmup_steps=10_000, schedule="inverse_sqrt", weight_decay=0.0
            ),
            fit=FitOptions(steps=200_000, validate_every=5000, checkpoint_every=5000),
            validation_cases=2000,
        ),
    ),
    decoding=BeamSearch(width=50, k=50),
    evaluation=Evaluation(history=20, rows=256),
)
