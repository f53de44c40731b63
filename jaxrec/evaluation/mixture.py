"""A trained retriever and counted transitions in one list: a convex mix of their probabilities.

    p(i | history) = (1 - weight) p_retriever(i | history) + weight p_transitions(i | last item)

as in Jelinek and Mercer's interpolation of language models. The weight is chosen on validation
cases; a mix that is not better there keeps weight 0, the retriever alone. Blocks of cases stream
through, so nothing of all cases times the catalogue is in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int

from jaxrec.evaluation.baselines import Transitions
from jaxrec.evaluation.cases import CaseHistories
from jaxrec.evaluation.metrics import per_case_metrics
from jaxrec.evaluation.ranking import item_priority, ranks_from_scores

WEIGHTS = tuple(step / 10 for step in range(11))
"""Weights on the transitions that `choose_weight` tries."""


class ChosenWeight(NamedTuple):
    """The best weight on the transitions, and what every weight of the grid reached."""

    weight: float
    curve: dict[float, float]
    """Mean NDCG by weight, ascending."""


def transition_probabilities(
    counter: Transitions, histories: CaseHistories, *, prior_events: float = 1.0
) -> Float64[np.ndarray, "c n"]:
    """p(i | a) = (count(a, i) + m pop(i)) / (count(a) + m) for a history that ends in item a.

    A Dirichlet prior around popularity with the weight of m events: count(a) is the number of
    events that followed a, pop(i) the share of item i in all counted events (all alike where none
    is counted). An empty history leaves pop. Every row sums to 1. Dense: give a block of cases.

    Args:
        counter: counts of order 1; `popularity_baseline` gives pop for every case.
        histories: a block of cases.
        prior_events: m.

    Raises:
        ValueError: m is not positive or not finite.

    >>> from jaxrec.evaluation.baselines import count_transitions
    >>> log, offsets = np.array([0, 1, 0, 1]), np.array([0, 4])
    >>> counter = count_transitions(offsets, offsets[1:], log, num_items=2)
    >>> last = CaseHistories(np.array([0, 0]), np.array([1, 2]), log)
    >>> transition_probabilities(counter, last, prior_events=2.0).tolist()
    [[0.25, 0.75], [0.6666666666666666, 0.3333333333333333]]
    """
    if not 0 < prior_events < math.inf:
        raise ValueError(f"prior_events={prior_events}; give a positive, finite number of events.")
    total = counter.popularity.sum()
    uniform = np.full(counter.num_items, 1 / max(counter.num_items, 1))
    popularity = counter.popularity / total if total else uniform
    case, item, count = counter.candidates(histories)
    probabilities = np.tile(prior_events * popularity, (histories.num_cases, 1))
    probabilities[case, item] += count
    followed = np.bincount(case, count, minlength=histories.num_cases)
    return probabilities / (followed + prior_events)[:, None]


def mix(
    p_retriever: Float[np.ndarray, "c n"],
    p_transitions: Float[np.ndarray, "c n"],
    weight: float,
) -> Float64[np.ndarray, "c n"]:
    """(1 - weight) p_retriever + weight p_transitions; 0 and 1 give either one unchanged.

    Raises:
        ValueError: a weight outside 0 .. 1.

    >>> mix(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]]), 0.5).tolist()
    [[0.75, 0.25]]
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight={weight}; the share of the transitions lies in 0 .. 1.")
    return (1 - weight) * p_retriever.astype(np.float64) + weight * p_transitions


def choose_weight(
    p_retriever: Iterable[Float[np.ndarray, "_ n"]],
    histories: CaseHistories,
    targets: Int[np.ndarray, "c"],
    counter: Transitions,
    *,
    seen_masked: bool,
    weights: Sequence[float] = WEIGHTS,
    cutoff: int = 10,
    prior_events: float = 1.0,
) -> ChosenWeight:
    """The weight on the transitions with the best NDCG on validation cases.

    Of equally good weights the smallest wins: the mix that leans least on counting. Equal
    probabilities are ranked by popularity, then by the lower item.

    Args:
        p_retriever: the retriever's probabilities, blocks of cases in their order, any sizes.
        histories, targets: the validation cases.
        counter: transitions of the training events alone; one that counted the validation events
            would find its own answers.
        seen_masked: whether items of the history are no candidates, as in the test to come.
        weights: what to try, each in 0 .. 1.
        cutoff: K of NDCG@K.
        prior_events: see `transition_probabilities`.

    Raises:
        ValueError: no case, no weight, a weight outside 0 .. 1, or blocks that hold other cases or
            another catalogue than the rest says.
    """
    grid = sorted(set(weights))
    if not grid or not len(targets):
        raise ValueError(
            f"Got {len(grid)} weights and {len(targets)} cases; give at least one of each."
        )
    priority = item_priority(counter.popularity)
    gained = dict.fromkeys(grid, 0.0)
    for first, block in _placed(p_retriever, len(targets), counter.num_items):
        last = first + len(block)
        known = histories.rows(first, last)
        transitions = transition_probabilities(counter, known, prior_events=prior_events)
        for weight in grid:
            ranks = ranks_from_scores(
                mix(block, transitions, weight),
                targets[first:last],
                priority=priority,
                seen=known if seen_masked else None,
            )
            gained[weight] += float(per_case_metrics(ranks, (cutoff,))[f"ndcg@{cutoff}"].sum())
    curve = {weight: gain / len(targets) for weight, gain in gained.items()}
    return ChosenWeight(max(grid, key=lambda weight: (curve[weight], -weight)), curve)


def _placed(
    blocks: Iterable[Float[np.ndarray, "_ n"]], num_cases: int, num_items: int
) -> Iterator[tuple[int, Float[np.ndarray, "_ n"]]]:
    """Each block with the number of its first case; checks that they hold all cases, once."""
    first = 0
    for block in blocks:
        if block.shape[1] != num_items or first + len(block) > num_cases:
            raise ValueError(
                f"The retriever gave {block.shape[1]} items for cases {first} to "
                f"{first + len(block)}, where {num_items} items and {num_cases} cases are known; "
                "give one probability an item for each case, in their order."
            )
        yield first, block
        first += len(block)
    if first != num_cases:
        raise ValueError(
            f"The retriever's blocks hold {first} cases of {num_cases}; give a row for every case."
        )
