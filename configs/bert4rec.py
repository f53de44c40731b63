"""BERT4Rec: masked items guessed from both sides.

Sun et al. 2019 (arXiv:1904.06690): two layers of width 64, two heads, 60 % of a history masked on
Beauty. It needs long training; compare its numbers with the budget in mind. Amazon-2014 Beauty:

    jaxrec run configs/bert4rec.py --data.source.path PATH/TO/amazon2014-beauty
"""

import dataclasses
from pathlib import Path

from jaxrec.backbones.bert4rec import Bert4Rec
from jaxrec.objectives.cloze import Cloze
from jaxrec.recipe import load_recipe, replace

recipe = dataclasses.replace(
    replace(
        load_recipe(Path(__file__).with_name("sasrec_sampled.py")),
        "stages.0.objective",
        Cloze(probability=0.6, last=0.1),
    ),
    name="bert4rec",
    generator=Bert4Rec(layers=2, width=64, heads=2, length=50, dropout=0.2, attention_dropout=0.2),
)
