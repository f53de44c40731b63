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
    count_popularity,
    count_transitions,
    popularity_baseline,
)
from jaxrec.evaluation.breakdown import HISTORY_LENGTH, TARGET_POPULARITY, breakdown_entry
from jaxrec.evaluation.cases import CaseHistories, case_histories
from jaxrec.evaluation.item_knn import count_neighbours
from jaxrec.evaluation.methods import GENERATOR, MIXED, RETRIEVER
from jaxrec.evaluation.metrics import list_metrics
from jaxrec.evaluation.protocol import Protocol
from jaxrec.evaluation.ranking import ranks_in_lists, sid_ranks
from jaxrec.evaluation.ranks import CaseRanks, fingerprint_cases
from jaxrec.evaluation.report import Comparison, Row, compare_ranks, row_from_ranks
from jaxrec.evaluation.second_order import count_second_order
from jaxrec.evaluation.untrained import UntrainedRanker
from jaxrec.pipeline.mixing import Mixed, Retrieval, mix_with_transitions
from jaxrec.recipe import Evaluation
from jaxrec.training.ranking import Answers, Ranker, is_retriever
from jaxrec.training.supervised import ranked_batches
from jaxrec.types import PyTree, Tables

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
    mix: dict[str, Any] | None = None
    """How the retriever was mixed with transitions; None where it was not."""


def baselines(histories: Histories, split: Split) -> dict[str, UntrainedRanker]:
    """The untrained rankers that every report carries.

    Those named "+ validation" also count what lies between training and test, which is fair (it is
    known when the test question is asked) and what published sequential recommenders read as
    history.
    """
    offsets, items = np.asarray(histories.offsets), np.asarray(histories.item)
    training = (offsets, split.train_end, items, histories.num_items)
    known = (offsets, _end_of_known(histories, split), items, histories.num_items)
    return {
        "popularity": popularity_baseline(count_popularity(*training)),
        "transitions": count_transitions(*training),
        "transitions + validation": count_transitions(*known),
        "order-2 transitions + validation": count_second_order(*known),
        "item-kNN + validation": count_neighbours(*known),
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
    temperature: float = 1.0,
) -> Judgement:
    """Ranks the test cases with the baselines and with the generator, seen items masked and kept.

    Args:
        params, tables, catalogue, ranker: the trained generator and how it answers.
        histories, split: the log and what is held out.
        protocol: what every row prints.
        evaluation: cutoffs, history cap, batch, intervals.
        popularity: training events of each item, for novelty and for the breakdown.
        temperature: that a retriever was trained with; makes probabilities of its scores.
    """
    positions = test_cases(split, evaluation, protocol.seed)
    users = case_users(histories, positions)
    targets = np.asarray(histories.item)[positions]
    known = case_histories(np.asarray(histories.offsets), np.asarray(histories.item), positions)
    counters = baselines(histories, split)
    trained = RETRIEVER if is_retriever(ranker.generator) else GENERATOR
    mixed: Mixed | None = None
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
        entries += _judge_answers(trained, answers, targets, tables, levels, popularity, seconds)
        if evaluation.mix_transitions and seen_masked:
            mixed = mix_with_transitions(
                Retrieval(params, tables, ranker, histories, evaluation, temperature),
                split, counters, known, positions, seed=protocol.seed,
            )  # fmt: skip
            entries.append(_Entry(MIXED, mixed.ranks, mixed.seconds))
        shown = shown or answers
        common = {"seen_masked": seen_masked, "users": users, "draws": evaluation.bootstrap}
        rows += [_row(entry, protocol, evaluation.cutoffs, common) for entry in entries]
        comparisons += _compare(trained, entries, protocol.seed, common)
        kept_ranks |= {(entry.method, entry.level, seen_masked): entry.ranks for entry in entries}
        if seen_masked:
            breakdowns = _break_down(entries, known, popularity[targets], protocol.seed, common)
    assert shown is not None
    ranks = _case_ranks(kept_ranks, histories, users, targets, known)
    return Judgement(
        rows, comparisons, positions, shown, breakdowns, ranks, mixed.report if mixed else None
    )


def _judge_counter(
    name: str,
    counter: UntrainedRanker,
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
    trained: str,
    answers: Answers,
    targets: np.ndarray,
    tables: Tables,
    semantic_levels: int,
    popularity: np.ndarray,
    seconds: float,
) -> list[_Entry]:
    lists = (answers.items, answers.valid)
    more = list_metrics(*lists, popularity, (LIST_CUTOFF,))
    by_item = _Entry(trained, ranks_in_lists(*lists, targets), seconds, more)
    if trained == RETRIEVER:
        return [by_item]
    by_sid = sid_ranks(*lists, targets, np.asarray(tables.codes), semantic_levels)
    return [by_item, _Entry(trained, by_sid, seconds, level="sid")]


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


def _compare(
    trained: str, entries: list[_Entry], seed: int, common: dict[str, Any]
) -> list[Comparison]:
    """The trained network against every other row, on the same cases, at item level."""
    by_method = {entry.method: entry.ranks for entry in entries if entry.level == "item"}
    ours = by_method.pop(trained)
    return [
        compare_ranks(trained, ours, name, theirs, seed=seed, metric=metric, **common)
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
