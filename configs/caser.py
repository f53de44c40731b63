"""Caser: convolutions over the last five items.

Tang and Wang 2018 (arXiv:1809.07426), without its user embedding (`jaxrec.backbones.caser` says
why). Trained with sampled softmax like the other rows of the table; the paper's binary
cross-entropy with three negatives (`ItemPairwise("bce", 3)`) is still near popularity after 20
epochs of Beauty. Amazon-2014 Beauty:

    jaxrec run configs/caser.py --data.source.path PATH/TO/amazon2014-beauty
"""

import dataclasses
from pathlib import Path

from jaxrec.backbones.caser import Caser
from jaxrec.recipe import load_recipe

recipe = dataclasses.replace(
    load_recipe(Path(__file__).with_name("sasrec_sampled.py")),
    name="caser",
    generator=Caser(window=5, width=64, horizontal=16, vertical=4, dropout=0.5),
)
