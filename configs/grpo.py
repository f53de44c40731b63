"""The quickstart's system, then GRPO (Shao et al., arXiv:2402.03300) towards a learnt preference,
on MovieLens-100K: supervised, reward model, alignment and one report in one command.

    jaxrec run configs/grpo.py

The second stage trains a reward model on training events (would the user have taken this film
rather than a drawn one?), calibrates it and freezes it; the policy then writes 16 films for each
history, and those that the model thinks better of than the rest of their group become likelier. The
reference keeps it near the supervised policy, and so does the likelihood of what users did.

The same from a finished run, with any objective: `jaxrec align RUN --objective grpo`. Measured
result: docs/results.md, "Alignment": the reward rises, and rankings pay for it.
"""

from jaxrec.alignment.align import Align
from jaxrec.alignment.contexts import Contexts
from jaxrec.alignment.defaults import MODEL, SCORE
from jaxrec.alignment.rollouts import Sample
from jaxrec.backbones.decoder import Decoder
from jaxrec.data.datasets.movielens import MovieLens100K
from jaxrec.data.pipeline import UserCentric
from jaxrec.data.splits import LeaveOneOut
from jaxrec.decoding.beam import BeamSearch
from jaxrec.objectives.grpo import GRPO
from jaxrec.objectives.next_token import NextToken
from jaxrec.objectives.rewards import ModelScore
from jaxrec.recipe import Data, Evaluation, Recipe
from jaxrec.representation import PCA, ItemVectors, Standardise, TextFields, WordLlama
from jaxrec.tokenization import ExtraDigit, ResidualKMeans, Tokenizer
from jaxrec.training.loop import FitOptions
from jaxrec.training.optimizers import AdamW
from jaxrec.training.supervised import Supervised

recipe = Recipe(
    name="grpo",
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
                steps=600, validate_every=100, patience=5, checkpoint_every=100, microbatches=4
            ),
        ),
        Align(
            GRPO(kl=1e-3),
            reward=ModelScore(SCORE),
            model=MODEL,
            rollouts=Sample(group=16),
            feed=Contexts(length=50, rows=32),
            nll=0.1,
            fit=FitOptions(
                steps=150, validate_every=50, checkpoint_every=50, log_every=10, monitor="reward"
            ),
            validation_cases=300,
        ),
    ),
    decoding=BeamSearch(width=50, k=50),
    evaluation=Evaluation(history=50, rows=128),
)
