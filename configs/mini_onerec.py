"""MiniOneRec's supervised stage (Kong et al., arXiv:2510.24431): a language model learns
semantic IDs by sequences, titles and both ways between them. Here with a small Qwen-shaped network
that starts from nothing and reads bytes, on Amazon-2014 Beauty.

    jaxrec run configs/mini_onerec.py --data.source.path PATH/TO/amazon2014-beauty

A published network is named instead of the small one (docs/hugging-face.md); everything else stays.
MiniOneRec itself starts from Qwen2.5-Instruct (0.5 to 7 billion parameters), on Amazon-2018. Its
second stage, alignment by reward, starts from a run of this one: `jaxrec align RUN --objective
minionerec`. Measured result: docs/results.md, "Language models".
"""

from jaxrec.backbones.language_model import LanguageModel
from jaxrec.data.datasets.sequences import SequenceFiles
from jaxrec.data.instruction_feed import Instructions
from jaxrec.data.instructions import MINI_ONEREC
from jaxrec.data.splits import LeaveOneOut
from jaxrec.decoding.beam import BeamSearch
from jaxrec.objectives.response_tokens import ResponseTokens
from jaxrec.recipe import Data, Evaluation, Recipe
from jaxrec.representation import PCA, ItemVectors, Standardise, TextFields, WordLlama
from jaxrec.tokenization import ExtraDigit, ResidualKMeans, Tokenizer
from jaxrec.training.loop import FitOptions
from jaxrec.training.optimizers import AdamW
from jaxrec.training.supervised import Supervised

recipe = Recipe(
    name="mini-onerec",
    data=Data(source=SequenceFiles("../shared/data/amazon2014-beauty"), split=LeaveOneOut()),
    items=ItemVectors(
        encoder=WordLlama(),
        text=TextFields(("title", "brand_and_categories")),
        steps=(Standardise(), PCA(128)),
    ),
    tokenizer=Tokenizer(ResidualKMeans(levels=3, codes=256), ExtraDigit()),
    generator=LanguageModel(
        layers=4, width=128, heads=4, kv_heads=2, head_size=32, feedforward=384, attention_bias=True
    ),
    stages=(
        Supervised(
            ResponseTokens(),
            feed=Instructions(tasks=MINI_ONEREC, length=256, rows=32),
            optimizer=AdamW(learning_rate=1e-3, warmup_steps=100),
            fit=FitOptions(
                steps=2000, validate_every=500, patience=3, checkpoint_every=500, microbatches=8
            ),
            validation_cases=1000,
        ),
    ),
    decoding=BeamSearch(width=20, k=20),
    evaluation=Evaluation(cutoffs=(5, 10, 20), history=20, rows=64),
)
