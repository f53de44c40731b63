"""GRU4Rec: a recurrent network over items, trained with sampled cross-entropy.

Hidasi et al. 2016 (arXiv:1511.06939) with the loss of Hidasi and Karatzoglou 2018; whole histories
are unrolled instead of parallel sessions. Amazon-2014 Beauty:

    jaxrec run configs/gru4rec.py --data.source.path PATH/TO/amazon2014-beauty
"""

import dataclasses
from pathlib import Path

from jaxrec.backbones.gru4rec import Gru4Rec
from jaxrec.recipe import load_recipe

recipe = dataclasses.replace(
    load_recipe(Path(__file__).with_name("sasrec_sampled.py")),
    name="gru4rec",
    generator=Gru4Rec(layers=1, width=64, hidden=128, dropout=0.4),
)
