"""Caser: convolutions over the last five items, trained with binary cross-entropy.

Tang and Wang 2018 (arXiv:1809.07426), without its user embedding (`jaxrec.backbones.caser` says
why), three negatives an event as published. Amazon-2014 Beauty:

    jaxrec run configs/caser.py --data.source.path PATH/TO/amazon2014-beauty
"""

import dataclasses
from pathlib import Path

from jaxrec.backbones.caser import Caser
from jaxrec.objectives.item_pairwise import ItemPairwise
from jaxrec.recipe import load_recipe, replace

recipe = dataclasses.replace(
    replace(
        load_recipe(Path(__file__).with_name("sasrec_sampled.py")),
        "stages.0.objective",
        ItemPairwise("bce", negatives=3),
    ),
    name="caser",
    generator=Caser(window=5, width=64, horizontal=16, vertical=4, dropout=0.5),
)
