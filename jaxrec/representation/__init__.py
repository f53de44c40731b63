"""Items to vectors: text, behaviour, precomputed modalities, alignment, fusion, steps."""

from jaxrec.representation.aligned import Aligned
from jaxrec.representation.als import Als
from jaxrec.representation.cooccurrence import Cooccurrence
from jaxrec.representation.encoder import Encoder, Encoding, TrainingSequences, has_behaviour
from jaxrec.representation.fused import Fused
from jaxrec.representation.lightgcn import LightGcn
from jaxrec.representation.none import NoVectors
from jaxrec.representation.pairs import NextPairs
from jaxrec.representation.precomputed import Precomputed
from jaxrec.representation.sasrec_table import SasRecTable
from jaxrec.representation.steps import L2, PCA, Standardise, Step, Whiten
from jaxrec.representation.swing import SwingPairs, swing_pairs
from jaxrec.representation.text import TextFields
from jaxrec.representation.tfidf import HashedTfidf
from jaxrec.representation.vectors import ItemVectors, VectorsResult
from jaxrec.representation.wordllama import WordLlama

__all__ = [
    "L2",
    "PCA",
    "Aligned",
    "Als",
    "Cooccurrence",
    "Encoder",
    "Encoding",
    "Fused",
    "HashedTfidf",
    "ItemVectors",
    "LightGcn",
    "NextPairs",
    "NoVectors",
    "Precomputed",
    "SasRecTable",
    "Standardise",
    "Step",
    "SwingPairs",
    "TextFields",
    "TrainingSequences",
    "VectorsResult",
    "Whiten",
    "WordLlama",
    "has_behaviour",
    "swing_pairs",
]
