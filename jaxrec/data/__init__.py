"""Logs to batches: dataset folders and their readers, histories, splits, pipelines."""

from jaxrec.data.cases import Cases, case_batches, history_batches
from jaxrec.data.dataset import (
    DataError,
    DatasetFolder,
    item_table,
    read_dataset,
    titles,
    write_dataset,
)
from jaxrec.data.datasets.canonical import CanonicalFolder
from jaxrec.data.datasets.movielens import MovieLens100K
from jaxrec.data.datasets.recbole import RecBoleFiles
from jaxrec.data.datasets.sequences import SequenceFiles
from jaxrec.data.grouping import k_core
from jaxrec.data.histories import Histories, prepare, same_time_ties
from jaxrec.data.pipeline import BatchStream, TargetCentric, UserCentric
from jaxrec.data.splits import (
    LeaveOneOut,
    Split,
    TemporalSplit,
    UserRatio,
    case_users,
    training_counts,
    training_items,
    training_positions,
)
from jaxrec.data.synthetic import SyntheticWorld

__all__ = [
    "BatchStream",
    "CanonicalFolder",
    "Cases",
    "DataError",
    "DatasetFolder",
    "Histories",
    "LeaveOneOut",
    "MovieLens100K",
    "RecBoleFiles",
    "SequenceFiles",
    "Split",
    "SyntheticWorld",
    "TargetCentric",
    "TemporalSplit",
    "UserCentric",
    "UserRatio",
    "case_batches",
    "case_users",
    "history_batches",
    "item_table",
    "k_core",
    "prepare",
    "read_dataset",
    "same_time_ties",
    "titles",
    "training_counts",
    "training_items",
    "training_positions",
    "write_dataset",
]
