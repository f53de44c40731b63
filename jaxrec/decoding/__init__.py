"""Decoding: from a model's step function and a catalogue to ranked items."""

from jaxrec.decoding.beam import BeamSearch, beam_search
from jaxrec.decoding.build import build_catalogue, shape_for
from jaxrec.decoding.candidates import item_log_probs, score_items
from jaxrec.decoding.catalogue import Catalogue, TrieShape, shard_catalogue
from jaxrec.decoding.counts import AnswerCounts, count_answers
from jaxrec.decoding.diverse import DiverseBeams, diverse_beams
from jaxrec.decoding.ensemble import Fusion, fuse
from jaxrec.decoding.exact import ExactScoring, exact_scores, leaf_scores
from jaxrec.decoding.filters import Filters, PreparedFilters, prepare_filters
from jaxrec.decoding.inner_product import InnerProduct, UserItemVectors, retrieve
from jaxrec.decoding.interface import Mask, StepFunctions
from jaxrec.decoding.lists import ListBeams, RankedLists, list_beams
from jaxrec.decoding.sampling import Sampled, Sampling, sample_items, stochastic_beams

__all__ = [
    "AnswerCounts",
    "BeamSearch",
    "Catalogue",
    "DiverseBeams",
    "ExactScoring",
    "Filters",
    "Fusion",
    "InnerProduct",
    "ListBeams",
    "Mask",
    "PreparedFilters",
    "RankedLists",
    "Sampled",
    "Sampling",
    "StepFunctions",
    "TrieShape",
    "UserItemVectors",
    "beam_search",
    "build_catalogue",
    "count_answers",
    "diverse_beams",
    "exact_scores",
    "fuse",
    "item_log_probs",
    "leaf_scores",
    "list_beams",
    "prepare_filters",
    "retrieve",
    "sample_items",
    "score_items",
    "shape_for",
    "shard_catalogue",
    "stochastic_beams",
]
