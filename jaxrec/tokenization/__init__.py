"""Vectors to semantic IDs: quantizers, collision policies, quality, the SemanticIds artefact."""

from jaxrec.tokenization.balanced_kmeans import balanced_kmeans
from jaxrec.tokenization.balanced_residual_kmeans import BalancedResidualKMeans
from jaxrec.tokenization.capacity import Capacity
from jaxrec.tokenization.collisions import (
    CollisionPolicy,
    ExtraDigit,
    Finalised,
    Keep,
    Reassign,
    Taken,
    popularity_order,
)
from jaxrec.tokenization.contrastive_quantization import QuantizedPairs, ReconstructionContrast
from jaxrec.tokenization.drift import drift_report
from jaxrec.tokenization.extend import compare_versions, extend, lineage, remove
from jaxrec.tokenization.figures import figure_bytes
from jaxrec.tokenization.fsq import Fsq
from jaxrec.tokenization.item_ids import ItemIds
from jaxrec.tokenization.kmeans_tree import KMeansTree
from jaxrec.tokenization.letter import LetterCollaborative, LetterDiversity
from jaxrec.tokenization.next_nearest import NextNearest
from jaxrec.tokenization.product_quantization import ProductKMeans
from jaxrec.tokenization.published import PublishedIds, write_index
from jaxrec.tokenization.quality import quality_report
from jaxrec.tokenization.quality_behaviour import forge_like, prefix_overlap, successive_pairs
from jaxrec.tokenization.quality_categories import category_labels, prefix_purity
from jaxrec.tokenization.quantizer import Quantizer
from jaxrec.tokenization.random_last import RandomLast
from jaxrec.tokenization.residual_kmeans import ResidualKMeans
from jaxrec.tokenization.rqvae import RqVae
from jaxrec.tokenization.semantic_ids import SemanticIds, codes_as_text, codes_from_text
from jaxrec.tokenization.separate import Separate
from jaxrec.tokenization.sinkhorn_last import SinkhornLast
from jaxrec.tokenization.streaming import Streamed
from jaxrec.tokenization.tokenizer import Tokenizer

__all__ = [
    "BalancedResidualKMeans",
    "Capacity",
    "CollisionPolicy",
    "ExtraDigit",
    "Finalised",
    "Fsq",
    "ItemIds",
    "KMeansTree",
    "Keep",
    "LetterCollaborative",
    "LetterDiversity",
    "NextNearest",
    "ProductKMeans",
    "PublishedIds",
    "QuantizedPairs",
    "Quantizer",
    "RandomLast",
    "Reassign",
    "ReconstructionContrast",
    "ResidualKMeans",
    "RqVae",
    "SemanticIds",
    "Separate",
    "SinkhornLast",
    "Streamed",
    "Taken",
    "Tokenizer",
    "balanced_kmeans",
    "category_labels",
    "codes_as_text",
    "codes_from_text",
    "compare_versions",
    "drift_report",
    "extend",
    "figure_bytes",
    "forge_like",
    "lineage",
    "popularity_order",
    "prefix_overlap",
    "prefix_purity",
    "quality_report",
    "remove",
    "successive_pairs",
    "write_index",
]
