"""SASRec with sampled softmax: 256 uniform negatives a packed row, corrected by log q.

What eSASRec and its like train with (blondered/transformer_benchmark): nearly as strong as the full
softmax of `configs/sasrec.py`, at a cost that does not grow with the catalogue. Amazon-2014 Beauty:

    jaxrec run configs/sasrec_sampled.py --data.source.path PATH/TO/amazon2014-beauty
"""

import dataclasses
from pathlib import Path

from jaxrec.objectives.item_sampled import ItemSampledSoftmax
from jaxrec.recipe import load_recipe, replace

recipe = dataclasses.replace(
    replace(
        load_recipe(Path(__file__).with_name("sasrec.py")),
        "stages.0.objective",
        ItemSampledSoftmax(negatives=256),
    ),
    name="sasrec-sampled",
)
recipe = replace(recipe, "evaluation.mix_transitions", False)
