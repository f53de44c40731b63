"""SASRec with cross-entropy over the catalogue: the bar that a generator has to clear.

Kang and McAuley 2018 (arXiv:1808.09781) with pre-norm blocks and a full softmax in the place of one
negative, which is what makes it strong (blondered/transformer_benchmark). Amazon-2014 Beauty:

    jaxrec run configs/sasrec.py --data.source.path PATH/TO/amazon2014-beauty

File order, leave-one-out, full ranking; add `--data.ties shuffle:0 --name sasrec-shuffled` for the
honest order. `docs/results.md` has the table that this file stands in.
"""

from jaxrec.backbones.sasrec import SasRec
from jaxrec.data.datasets.sequences import SequenceFiles
from jaxrec.data.pipeline import UserCentric
from jaxrec.data.splits import LeaveOneOut
from jaxrec.decoding import InnerProduct
from jaxrec.objectives.item_softmax import ItemSoftmax
from jaxrec.recipe import Data, Evaluation, Recipe
from jaxrec.representation import NoVectors
from jaxrec.tokenization import ItemIds
from jaxrec.training.loop import FitOptions
from jaxrec.training.optimizers import AdamW
from jaxrec.training.supervised import Supervised

recipe = Recipe(
    name="sasrec",
    data=Data(source=SequenceFiles("../shared/data/amazon2014-beauty"), split=LeaveOneOut()),
    items=NoVectors(),
    tokenizer=ItemIds(),
    generator=SasRec(layers=2, width=64, heads=2, length=50, dropout=0.4),
    stages=(
        Supervised(
            ItemSoftmax(),
            feed=UserCentric(length=51, rows=32),
            optimizer=AdamW(learning_rate=2e-3, warmup_steps=100, weight_decay=0.0),
            fit=FitOptions(
                steps=2000, validate_every=200, patience=4, checkpoint_every=400, microbatches=4
            ),
            validation_cases=0,
        ),
    ),
    decoding=InnerProduct(k=50),
    evaluation=Evaluation(history=50, rows=256, mix_transitions=True),
)
