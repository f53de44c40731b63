"""Items to vectors: text encoders, behaviour, precomputed modalities, post-processing steps."""

from jaxrec.representation.cooccurrence import Cooccurrence
from jaxrec.representation.encoder import Encoder, TrainingSequences
from jaxrec.representation.none import NoVectors
from jaxrec.representation.precomputed import Precomputed
from jaxrec.representation.steps import L2, PCA, Standardise, Step, Whiten
from jaxrec.representation.text import TextFields
from jaxrec.representation.tfidf import HashedTfidf
from jaxrec.representation.vectors import ItemVectors, VectorsResult
from jaxrec.representation.wordllama import WordLlama

__all__ = [
    "L2",
    "PCA",
    "Cooccurrence",
    "Encoder",
    "HashedTfidf",
    "ItemVectors",
    "NoVectors",
    "Precomputed",
    "Standardise",
    "Step",
    "TextFields",
    "TrainingSequences",
    "VectorsResult",
    "Whiten",
    "WordLlama",
]
