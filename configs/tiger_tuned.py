"""TIGER by its best documented reproduction (Paischer et al., "Preference Discerning with
LLM-Enhanced Generative Retrieval", arXiv:2412.08604), on Amazon-2014 Beauty.

    jaxrec run configs/tiger_tuned.py --data.source.path PATH/TO/amazon2014-beauty

T5 with 6+6 layers, dropout .2, AdamW 3e-4 with weight decay .035, warm-up over 10,000 steps, cosine
to 200,000, batch 64, 15 validations of patience, beam 30. Residual k-means IDs, which reach RQ-VAE
within 4 % without its training (GRID), and no user token (GRID).

Needs an accelerator, hours of it; on two CPU cores it would be days. The paper's item vectors are
not WordLlama's (`Precomputed` takes any), and how often it validated is not said: every 2,000
steps here.
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
    name="tiger-tuned",
    data=Data(source=SequenceFiles("../shared/data/amazon2014-beauty"), split=LeaveOneOut()),
    items=ItemVectors(
        encoder=WordLlama(),
        text=TextFields(("title", "brand_and_categories")),
        steps=(Standardise(), PCA(128)),
    ),
    tokenizer=Tokenizer(ResidualKMeans(levels=3, codes=256), ExtraDigit()),
    generator=T5(layers=6, width=128, heads=6, head_size=64, feedforward=1024, dropout=0.2),
    stages=(
        Supervised(
            NextToken(),
            feed=TargetCentric(length=20, rows=64, min_history=1),
            optimizer=AdamW(learning_rate=3e-4, warmup_steps=10_000, weight_decay=0.035),
            fit=FitOptions(steps=200_000, validate_every=2000, patience=15, checkpoint_every=2000),
            validation_cases=2000,
        ),
    ),
    decoding=BeamSearch(width=30, k=30),
    evaluation=Evaluation(cutoffs=(1, 5, 10, 30), history=20, rows=256),
)
