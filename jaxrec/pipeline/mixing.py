"""A retriever mixed with counted transitions: the weight from validation, the ranks on test."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxrec.data.cases import case_batches
from jaxrec.data.histories import Histories
from jaxrec.data.splits import Split
from jaxrec.evaluation.baselines import Transitions
from jaxrec.evaluation.cases import CaseHistories, case_histories
from jaxrec.evaluation.mixture import choose_weight, mix, transition_probabilities
from jaxrec.evaluation.ranking import item_priority, ranks_from_scores
from jaxrec.evaluation.untrained import UntrainedRanker
from jaxrec.parallel import shard_rows
from jaxrec.recipe import Evaluation
from jaxrec.tracking import Progress
from jaxrec.training.ranking import Ranker, item_probabilities
from jaxrec.types import PyTree, Tables

TUNED, TESTED = "transitions", "transitions + validation"
"""The counter that the weight is chosen with, and the one that the test is asked of: the first
knows training events alone, or it would find its own answers."""

CASES = 2000
"""Validation cases that the weight is chosen on."""


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """A trained retriever and the log it is asked about."""

    params: PyTree
    tables: Tables
    ranker: Ranker
    histories: Histories
    evaluation: Evaluation
    temperature: float = 1.0
    """Scores are divided by it, as in training."""

    def probabilities(self, positions: np.ndarray) -> Iterator[np.ndarray]:
        """Softmax over the catalogue for each case, blocks float32[<= rows, n] in their order."""
        for cases in case_batches(
            self.histories, positions, length=self.evaluation.history, rows=self.evaluation.rows
        ):
            with jax.set_mesh(self.ranker.mesh):
                shares = item_probabilities(
                    self.params,
                    self.tables,
                    shard_rows(cases.events, self.ranker.mesh),
                    generator=self.ranker.generator,
                    space=self.ranker.space,
                    temperature=self.temperature,
                )
            yield np.asarray(shares)[cases.live]


@dataclasses.dataclass(frozen=True)
class Mixed:
    """What became of the mix."""

    ranks: np.ndarray
    """int64[c]: rank of every test case's target, seen items masked."""
    seconds: float
    report: dict[str, Any]
    """The weight, and what validation said of every weight."""


def mix_with_transitions(
    retrieval: Retrieval,
    split: Split,
    counters: Mapping[str, UntrainedRanker],
    known: CaseHistories,
    positions: np.ndarray,
    *,
    seed: int,
) -> Mixed:
    """Chooses the weight on validation cases and ranks the test cases, seen items masked.

    Args:
        retrieval: the trained retriever.
        split: what is held out.
        counters: the untrained rankers of the report, `TUNED` and `TESTED` among them.
        known: histories of the test cases.
        positions: flat positions of the test targets.
        seed: of the draw of validation cases.
    """
    began = time.perf_counter()
    histories = retrieval.histories
    items = np.asarray(histories.item)
    tuned, tested = counters[TUNED], counters[TESTED]
    assert isinstance(tuned, Transitions)
    assert isinstance(tested, Transitions)
    cases = np.asarray(split.validation)
    draw = np.random.default_rng(seed).permutation(len(cases))[:CASES]
    cases = cases[np.sort(draw)]
    chosen = choose_weight(
        retrieval.probabilities(cases),
        case_histories(np.asarray(histories.offsets), items, cases),
        items[cases],
        tuned,
        seen_masked=True,
    )
    priority, ranks = item_priority(tested.popularity), np.zeros(len(positions), np.int64)
    first = 0
    with Progress(len(positions), "mix with transitions", unit="users") as progress:
        for block in retrieval.probabilities(positions):
            last = first + len(block)
            rows = known.rows(first, last)
            ranks[first:last] = ranks_from_scores(
                mix(block, transition_probabilities(tested, rows), chosen.weight),
                items[positions[first:last]],
                priority=priority,
                seen=rows,
            )
            progress.update(len(block))
            first = last
    report = {
        "weight": chosen.weight,
        "validation_cases": len(cases),
        "validation_ndcg@10": {f"{weight:.1f}": gain for weight, gain in chosen.curve.items()},
    }
    return Mixed(ranks, time.perf_counter() - began, report)
