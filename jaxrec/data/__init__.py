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
from jaxrec.data.datasets.amazon import AmazonReviews
from jaxrec.data.datasets.canonical import CanonicalFolder
from jaxrec.data.datasets.grid import GridFiles
from jaxrec.data.datasets.jdsearch import JdSearch
from jaxrec.data.datasets.kuairand import KuaiRand
from jaxrec.data.datasets.lcrec import LcRecFiles
from jaxrec.data.datasets.mind import Mind
from jaxrec.data.datasets.minionerec import MiniOneRecFiles
from jaxrec.data.datasets.movielens import MovieLens100K
from jaxrec.data.datasets.p5 import P5Files
from jaxrec.data.datasets.recbole import RecBoleFiles
from jaxrec.data.datasets.retailrocket import RetailRocket
from jaxrec.data.datasets.sequences import SequenceFiles
from jaxrec.data.datasets.tables import TableFiles
from jaxrec.data.datasets.trivago import Trivago
from jaxrec.data.description import describe
from jaxrec.data.grouping import k_core
from jaxrec.data.histories import Histories, prepare, same_time_ties
from jaxrec.data.instruction_feed import Instructions, ItemTexts
from jaxrec.data.instructions import LC_REC, MINI_ONEREC, Task
from jaxrec.data.page_rules import PageRule, assign_pages, parse_page_rule
from jaxrec.data.pages import Pages, page_summary, prepare_pages
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
from jaxrec.data.text_tokenizer import TextTokenizer

__all__ = [
    "LC_REC",
    "MINI_ONEREC",
    "AmazonReviews",
    "BatchStream",
    "CanonicalFolder",
    "Cases",
    "DataError",
    "DatasetFolder",
    "GridFiles",
    "Histories",
    "Instructions",
    "ItemTexts",
    "JdSearch",
    "KuaiRand",
    "LcRecFiles",
    "LeaveOneOut",
    "Mind",
    "MiniOneRecFiles",
    "MovieLens100K",
    "P5Files",
    "PageRule",
    "Pages",
    "RecBoleFiles",
    "RetailRocket",
    "SequenceFiles",
    "Split",
    "SyntheticWorld",
    "TableFiles",
    "TargetCentric",
    "Task",
    "TemporalSplit",
    "TextTokenizer",
    "Trivago",
    "UserCentric",
    "UserRatio",
    "assign_pages",
    "case_batches",
    "case_users",
    "describe",
    "history_batches",
    "item_table",
    "k_core",
    "page_summary",
    "parse_page_rule",
    "prepare",
    "prepare_pages",
    "read_dataset",
    "same_time_ties",
    "titles",
    "training_counts",
    "training_items",
    "training_positions",
    "write_dataset",
]
