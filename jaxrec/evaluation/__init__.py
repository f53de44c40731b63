"""Ranks, metrics, baselines, significance and reports: arrays in, numbers out, never a model."""

from jaxrec.evaluation.baselines import (
    Transitions,
    count_popularity,
    count_transitions,
    popularity_baseline,
)
from jaxrec.evaluation.breakdown import break_down
from jaxrec.evaluation.cases import CaseHistories, case_histories
from jaxrec.evaluation.html import render_html
from jaxrec.evaluation.item_knn import ItemNeighbours, count_neighbours
from jaxrec.evaluation.metrics import (
    collision_aware_metrics,
    list_metrics,
    multi_target_recall,
    per_case_metrics,
    per_user_means,
    rank_metrics,
)
from jaxrec.evaluation.mixture import (
    ChosenWeight,
    choose_weight,
    mix,
    transition_probabilities,
)
from jaxrec.evaluation.protocol import Protocol
from jaxrec.evaluation.ranking import (
    TopItems,
    collision_ranks,
    item_priority,
    ranks_from_scores,
    ranks_in_lists,
    sid_ranks,
    top_from_scores,
    without_seen,
)
from jaxrec.evaluation.ranks import read_ranks
from jaxrec.evaluation.recommendations import write_recommendations
from jaxrec.evaluation.report import (
    Comparison,
    Row,
    compare_ranks,
    read_report,
    row_from_ranks,
    text_table,
    verdict,
    write_report,
)
from jaxrec.evaluation.second_order import SecondOrderTransitions, count_second_order
from jaxrec.evaluation.significance import (
    Interval,
    PairedDifference,
    bootstrap_mean,
    bootstrap_means,
    paired_difference,
    sign_flip_p_value,
)
from jaxrec.evaluation.untrained import UntrainedRanker, popularity_scores

__all__ = [
    "CaseHistories",
    "ChosenWeight",
    "Comparison",
    "Interval",
    "ItemNeighbours",
    "PairedDifference",
    "Protocol",
    "Row",
    "SecondOrderTransitions",
    "TopItems",
    "Transitions",
    "UntrainedRanker",
    "bootstrap_mean",
    "bootstrap_means",
    "break_down",
    "case_histories",
    "choose_weight",
    "collision_aware_metrics",
    "collision_ranks",
    "compare_ranks",
    "count_neighbours",
    "count_popularity",
    "count_second_order",
    "count_transitions",
    "item_priority",
    "list_metrics",
    "mix",
    "multi_target_recall",
    "paired_difference",
    "per_case_metrics",
    "per_user_means",
    "popularity_baseline",
    "popularity_scores",
    "rank_metrics",
    "ranks_from_scores",
    "ranks_in_lists",
    "read_ranks",
    "read_report",
    "render_html",
    "row_from_ranks",
    "sid_ranks",
    "sign_flip_p_value",
    "text_table",
    "top_from_scores",
    "transition_probabilities",
    "verdict",
    "without_seen",
    "write_recommendations",
    "write_report",
]
