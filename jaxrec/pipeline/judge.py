"""The judgement of a run: baselines and generator on the same test cases, by the same rules."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from jaxrec.data.histories import Histories
from jaxrec.data.splits import Split, case_users
from jaxrec.decoding.catalogue import Catalogue
from jaxrec.evaluation.baselines import (
    Transitions,
    count_popularity,
    count_transitions,
    popularity_baseline,
)
from jaxrec.evaluation.breakdown import HISTORY_LENGTH, TARGET_POPULARITY, breakdown_entry
from jaxrec.evaluation.cases import CaseHistories, case_histories
from jaxrec.evaluation.metrics import list_metrics
from jaxrec.evaluation.protocol import Protocol
from jaxrec.evaluation.ranking import ranks_in_lists, sid_ranks
from jaxrec.evaluation.ranks import CaseRanks, fingerprint_cases
from jaxrec.evaluation.report import Comparison, Row, compare_ranks, row_from_ranks
from jaxrec.recipe import Evaluation
from jaxrec.training.ranking import Answers, Ranker
from jaxrec.training.supervised import ranked_batches
from jaxrec.types import PyTree, Tables

GENERATOR = "generator"
COMPARED = ("recall@10", "ndcg@10")
LIST_CUTOFF = 10
"""Length of the lists whose coverage and novelty are reported."""


@dataclasses.dataclass(frozen=True)
class Judgement:
    """Everything that was measured."""

    rows: list[Row]
    comparisons: list[Comparison]
    positions: np.ndarray
    """int64[c]: the flat position of each case's target."""
    answers: Answers
    """The generator's lists with seen items masked, one a case."""
    breakdowns: list[dict[str, Any]]
    """Metrics by history length and by popularity of the target (`breakdown.breakdown_entry`)."""
    ranks: CaseRanks
    """The rank of every case in every row."""


def baselines(histories: Histories, split: Split) -> dict[str, Transitions]:
    """The untrained rankers that every report carries.

    The third also counts what lies between training and test, which is fair (it is known when the
    test question is asked) and what published sequential recommenders read as history.
    """
    offsets, items = np.asarray(histories.offsets), np.asarray(histories.item)
    known = _end_of_known(histories, split)
    popularity = count_popularity(offsets, split.train_end, items, histories.num_items)
    return {
        "popularity": popularity_baseline(popularity),
        "transitions": count_transitions(offsets, split.train_end, items, histories.num_items),
        "transitions + validation": count_transitions(offsets, known, items, histories.num_items),
    }


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One method's result on the cases, before it becomes a row."""

    method: str
    ranks: np.ndarray
    seconds: float
    more: dict[str, float] | None = None
    level: str = "item"


def judge(
    params: PyTree,
    tables: Tables,
    catalogue: Catalogue,
    ranker: Ranker,
    histories: Histories,
    split: Split,
    protocol: Protocol,
    evaluation: Evaluation,
    popularity: np.ndarray,
) -> Judgement:
    """Ranks the test cases with the baselines and with the generator, seen items masked and kept.

    Args:
        params, tables, catalogue, ranker: the trained generator and how it answers.
        histories, split: the log and what is held out.
        protocol: what every row prints.
        evaluation: cutoffs, history cap, batch, intervals.
        popularity: training events of each item, for novelty and for the breakdown.
    """
    positions = test_cases(split, evaluation, protocol.seed)
    users = case_users(histories, positions)
    targets = np.asarray(histories.item)[positions]
    known = case_histories(np.asarray(histories.offsets), np.asarray(histories.item), positions)
    counters = baselines(histories, split)
    shown: Answers | None = None
    rows: list[Row] = []
    comparisons: list[Comparison] = []
    breakdowns: list[dict[str, Any]] = []
    kept_ranks: dict[tuple[str, str, bool], np.ndarray] = {}
    for seen_masked in (True, False):
        entries = [
            _judge_counter(name, counter, known, targets, popularity, seen_masked=seen_masked)
            for name, counter in counters.items()
        ]
        start = time.perf_counter()
        batches = ranked_batches(
            histories,
            positions,
            history=evaluation.history,
            rows=evaluation.rows,
            mask_seen=seen_masked,
        )
        answers = ranker(
            params, tables, catalogue, batches, cases=len(positions), describe="test cases"
        )
        seconds = time.perf_counter() - start
        levels = ranker.space.semantic_levels
        entries += _judge_answers(answers, targets, tables, levels, popularity, seconds)
        shown = shown or answers
        common = {"seen_masked": seen_masked, "users": users, "draws": evaluation.bootstrap}
        rows += [_row(entry, protocol, evaluation.cutoffs, common) for entry in entries]
        comparisons += _compare(entries, protocol.seed, common)
        kept_ranks |= {(entry.method, entry.level, seen_masked): entry.ranks for entry in entries}
        if seen_masked:
            breakdowns = _break_down(entries, known, popularity[targets], protocol.seed, common)
    assert shown is not None
    ranks = _case_ranks(kept_ranks, histories, users, targets, known)
    return Judgement(rows, comparisons, positions, shown, breakdowns, ranks)


def _judge_counter(
    name: str,
    counter: Transitions,
    known: CaseHistories,
    targets: np.ndarray,
    popularity: np.ndarray,
    *,
    seen_masked: bool,
) -> _Entry:
    start = time.perf_counter()
    ranks = counter.ranks(known, targets, seen_masked=seen_masked)
    top = counter.top_items(known, LIST_CUTOFF, seen_masked=seen_masked)
    more = list_metrics(top.items, top.valid, popularity, (LIST_CUTOFF,))
    return _Entry(name, ranks, time.perf_counter() - start, more)


def _judge_answers(
    answers: Answers,
    targets: np.ndarray,
    tables: Tables,
    semantic_levels: int,
    popularity: np.ndarray,
    seconds: float,
) -> list[_Entry]:
    lists = (answers.items, answers.valid)
    more = list_metrics(*lists, popularity, (LIST_CUTOFF,))
    by_sid = sid_ranks(*lists, targets, np.asarray(tables.codes), semantic_levels)
    return [
        _Entry(GENERATOR, ranks_in_lists(*lists, targets), seconds, more),
        _Entry(GENERATOR, by_sid, seconds, level="sid"),
    ]


def _row(
    entry: _Entry, protocol: Protocol, cutoffs: tuple[int, ...], common: dict[str, Any]
) -> Row:
    return row_from_ranks(
        entry.method,
        entry.ranks,
        protocol,
        seconds=entry.seconds,
        level=entry.level,
        cutoffs=cutoffs,
        more_metrics=entry.more,
        **common,
    )


def _compare(entries: list[_Entry], seed: int, common: dict[str, Any]) -> list[Comparison]:
    """The generator against every baseline, on the same cases, at item level."""
    by_method = {entry.method: entry.ranks for entry in entries if entry.level == "item"}
    ours = by_method.pop(GENERATOR)
    return [
        compare_ranks(GENERATOR, ours, name, theirs, seed=seed, metric=metric, **common)
        for metric in COMPARED
        for name, theirs in by_method.items()
    ]


def _break_down(
    entries: list[_Entry],
    known: CaseHistories,
    counts: np.ndarray,
    seed: int,
    common: dict[str, Any],
) -> list[dict[str, Any]]:
    """Every method's metrics by history length and by training count of the target."""
    ranks = {entry.method: entry.ranks for entry in entries if entry.level == "item"}
    keys = {HISTORY_LENGTH: known.end - known.start, TARGET_POPULARITY: counts}
    return [breakdown_entry(by, ranks, key, seed=seed, **common) for by, key in keys.items()]


def _case_ranks(
    ranks: dict[tuple[str, str, bool], np.ndarray],
    histories: Histories,
    users: np.ndarray,
    targets: np.ndarray,
    known: CaseHistories,
) -> CaseRanks:
    cases = zip(
        np.asarray(histories.users)[users].tolist(),
        np.asarray(histories.items)[targets].tolist(),
        (known.end - known.start).tolist(),
    )
    return CaseRanks(
        fingerprint_cases(cases),
        users.astype(np.int32),
        tuple(ranks),
        np.stack([each.astype(np.int32) for each in ranks.values()]),
    )


def test_cases(split: Split, evaluation: Evaluation, seed: int) -> np.ndarray:
    """Flat positions of the test targets; a seeded draw where the recipe caps their number."""
    positions = np.asarray(split.test)
    if evaluation.max_cases and evaluation.max_cases < len(positions):
        draw = np.random.default_rng(seed).permutation(len(positions))[: evaluation.max_cases]
        positions = positions[np.sort(draw)]
    return positions


def _end_of_known(histories: Histories, split: Split) -> np.ndarray:
    """Per user, where the events end that are known when its first test question is asked."""
    users = case_users(histories, split.test)
    end = np.asarray(histories.offsets)[1:].copy()
    np.minimum.at(end, users, np.asarray(split.test))
    return end
