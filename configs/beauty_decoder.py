"""The quickstart's system, unchanged but for its sizes, on Amazon-2014 Beauty (5-core).

    jaxrec run configs/beauty_decoder.py --data.source.path PATH/TO/amazon2014-beauty

The folder holds `sequences.txt`, `items.jsonl` and `timestamps.txt` (docs/data.md); the default
path is where the tests look for it. File order, leave-one-out, full ranking: comparable with the
published rows, and like them it carries the order inside a day of the raw dump. Rerun with
`--data.ties shuffle:0 --name beauty-shuffled` for the honest order.
"""

from jaxrec.backbones.decoder import Decoder
from jaxrec.data.datasets.sequences import SequenceFiles
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
    name="beauty-decoder",
    data=Data(source=SequenceFiles("../shared/data/amazon2014-beauty"), split=LeaveOneOut()),
    items=ItemVectors(
        encoder=WordLlama(),
        text=TextFields(("title", "brand_and_categories")),
        steps=(Standardise(), PCA(128)),
    ),
    tokenizer=Tokenizer(ResidualKMeans(levels=3, codes=256), ExtraDigit()),
    generator=Decoder(layers=2, width=128, heads=2, dropout=0.3, item_buckets=12288),
    stages=(
        Supervised(
            NextToken(),
            feed=UserCentric(length=48, rows=64),
            optimizer=AdamW(learning_rate=2e-3, warmup_steps=200),
            fit=FitOptions(
                steps=1000, validate_every=200, patience=4, checkpoint_every=200, microbatches=4
            ),
            validation_cases=2000,
        ),
    ),
    decoding=BeamSearch(width=50, k=50),
    evaluation=Evaluation(history=48, rows=256),
)
