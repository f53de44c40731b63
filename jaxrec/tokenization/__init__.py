"""Vectors to semantic IDs: quantizers, collision policies, quality, the SemanticIds artefact."""

from jaxrec.tokenization.collisions import (
    CollisionPolicy,
    ExtraDigit,
    Finalised,
    Keep,
    Reassign,
    popularity_order,
)
from jaxrec.tokenization.figures import figure_bytes
from jaxrec.tokenization.item_ids import ItemIds
from jaxrec.tokenization.published import PublishedIds, write_index
from jaxrec.tokenization.quality import quality_report
from jaxrec.tokenization.quantizer import Quantizer
from jaxrec.tokenization.residual_kmeans import ResidualKMeans
from jaxrec.tokenization.rqvae import RqVae
from jaxrec.tokenization.semantic_ids import SemanticIds, codes_as_text, codes_from_text
from jaxrec.tokenization.tokenizer import Tokenizer

__all__ = [
    "CollisionPolicy",
    "ExtraDigit",
    "Finalised",
    "ItemIds",
    "Keep",
    "PublishedIds",
    "Quantizer",
    "Reassign",
    "ResidualKMeans",
    "RqVae",
    "SemanticIds",
    "Tokenizer",
    "codes_as_text",
    "codes_from_text",
    "figure_bytes",
    "popularity_order",
    "quality_report",
    "write_index",
]
