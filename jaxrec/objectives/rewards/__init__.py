"""Rewards of rollouts, for alignment: groups of rollouts in, one number a rollout out."""

from jaxrec.objectives.rewards.beyond_accuracy import Diversity, Novelty
from jaxrec.objectives.rewards.combinations import (
    GENREC,
    MINI_ONE_REC,
    THREE_TOWERS,
    Calibrated,
    Multiplier,
    Product,
    Sum,
)
from jaxrec.objectives.rewards.drawn import Drawn, Reward, count_not_finite, hits
from jaxrec.objectives.rewards.duration import (
    DurationPercentile,
    duration_buckets,
    log_percentiles,
    play_quantiles,
)
from jaxrec.objectives.rewards.legality import Legality
from jaxrec.objectives.rewards.matches import (
    CommonSubsequence,
    ExactMatch,
    LevelCredit,
    PrefixMatch,
)
from jaxrec.objectives.rewards.model_scores import Gated, ModelScore, SignedScore
from jaxrec.objectives.rewards.ranked import RankedGain, RankPenalty

__all__ = [
    "GENREC",
    "MINI_ONE_REC",
    "THREE_TOWERS",
    "Calibrated",
    "CommonSubsequence",
    "Diversity",
    "Drawn",
    "DurationPercentile",
    "ExactMatch",
    "Gated",
    "Legality",
    "LevelCredit",
    "ModelScore",
    "Multiplier",
    "Novelty",
    "PrefixMatch",
    "Product",
    "RankPenalty",
    "RankedGain",
    "Reward",
    "SignedScore",
    "Sum",
    "count_not_finite",
    "duration_buckets",
    "hits",
    "log_percentiles",
    "play_quantiles",
]
