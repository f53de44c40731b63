"""The mix of a retriever and counted transitions against plain loops and closed forms."""

import math
import weakref

import numpy as np
import pytest

from jaxrec.evaluation.baselines import count_transitions, popularity_baseline
from jaxrec.evaluation.cases import CaseHistories, case_histories
from jaxrec.evaluation.metrics import rank_metrics
from jaxrec.evaluation.mixture import WEIGHTS, choose_weight, mix, transition_probabilities

ITEMS = 25


@pytest.fixture
def world(make_log):
    """(counter, histories, targets, a retriever's probabilities)."""
    offsets, count_end, item = make_log(9)
    counter = count_transitions(offsets, count_end, item, ITEMS)
    histories = case_histories(offsets, item, np.arange(len(item)))
    logits = np.random.default_rng(1).normal(size=(len(item), ITEMS))
    # The retriever knows something of half of the targets, so that neither side is best alone.
    logits[np.arange(len(item)), item] += 3 * (np.arange(len(item)) % 2)
    retriever = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return counter, histories, item, retriever.astype(np.float32)


def blocks_of(matrix, sizes=(1, 40, 7)):
    first = 0
    while first < len(matrix):
        for size in sizes:
            yield matrix[first : first + size]
            first += size


def slow_probability(counter, history, i, m):
    share = counter.popularity[i] / counter.popularity.sum()
    if not history:
        return share
    row = range(counter.offsets[history[-1]], counter.offsets[history[-1] + 1])
    count = {int(counter.successor[z]): int(counter.count[z]) for z in row}
    return (count.get(i, 0) + m * share) / (sum(count.values()) + m)


@pytest.mark.parametrize("m", [0.5, 1.0, 20.0])
def test_probabilities_equal_the_formula(world, m):
    counter, histories, _, _ = world
    got = transition_probabilities(counter, histories, prior_events=m)
    told = [histories.item[a:b].tolist() for a, b in zip(histories.start, histories.end)]
    assert [] in told
    expected = [[slow_probability(counter, h, i, m) for i in range(ITEMS)] for h in told]
    np.testing.assert_allclose(got, expected, rtol=1e-14)
    np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-14)


def test_the_limits_of_the_prior(world):
    counter, histories, _, _ = world
    share = counter.popularity / counter.popularity.sum()
    heavy = transition_probabilities(counter, histories, prior_events=1e12)
    np.testing.assert_allclose(heavy, np.tile(share, (len(heavy), 1)), atol=1e-9)
    popular = transition_probabilities(popularity_baseline(counter.popularity), histories)
    np.testing.assert_allclose(popular, np.tile(share, (len(heavy), 1)), rtol=1e-14)
    nothing = popularity_baseline(np.zeros(4, np.int64))
    empty = CaseHistories(np.array([0]), np.array([0]), np.zeros(0, np.int32))
    assert transition_probabilities(nothing, empty).tolist() == [[0.25] * 4]
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="prior_events"):
            transition_probabilities(counter, histories, prior_events=wrong)


def test_a_mix_is_linear_and_its_ends_are_exact(world):
    counter, histories, _, retriever = world
    transitions = transition_probabilities(counter, histories)
    np.testing.assert_array_equal(mix(retriever, transitions, 0.0), retriever)
    np.testing.assert_array_equal(mix(retriever, transitions, 1.0), transitions)
    half = mix(retriever, transitions, 0.25)
    assert half[3, 4] == pytest.approx(0.75 * float(retriever[3, 4]) + 0.25 * transitions[3, 4])
    np.testing.assert_allclose(half.sum(axis=1), 1, rtol=1e-6)
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="weight="):
            mix(retriever, transitions, wrong)


def slow_ndcg(world, weight, masked, cutoff):
    counter, histories, targets, retriever = world
    gains = []
    for case, target in enumerate(targets.tolist()):
        history = histories.item[histories.start[case] : histories.end[case]].tolist()
        chance = [
            (1 - weight) * float(retriever[case, i])
            + weight * slow_probability(counter, history, i, 1.0)
            for i in range(ITEMS)
        ]
        items = [i for i in range(ITEMS) if not (masked and i in history)]
        items.sort(key=lambda i: (-chance[i], -counter.popularity[i], i))
        place = items.index(target) + 1 if target in items else cutoff + 1
        gains.append(1 / math.log2(place + 1) if place <= cutoff else 0.0)
    return sum(gains) / len(gains)


@pytest.mark.parametrize("masked", [True, False])
def test_the_curve_equals_plain_loops_and_the_best_is_chosen(world, masked):
    counter, histories, targets, retriever = world
    chosen = choose_weight(
        blocks_of(retriever), histories, targets, counter, seen_masked=masked, cutoff=5
    )
    expected = {weight: slow_ndcg(world, weight, masked, 5) for weight in WEIGHTS}
    assert list(chosen.curve) == list(WEIGHTS)
    assert chosen.curve == pytest.approx(expected, abs=1e-12)
    assert chosen.weight == max(expected, key=expected.__getitem__)
    assert 0 < chosen.weight < 1
    assert chosen.curve[0.0] != chosen.curve[1.0]


def test_of_equal_weights_the_smallest_wins(world):
    counter, histories, targets, retriever = world
    # A retriever that knows the answer: every weight below 1 finds it first.
    sure = np.zeros_like(retriever)
    sure[np.arange(len(targets)), targets] = 1
    given = (histories, targets, counter)
    assert choose_weight([sure], *given, seen_masked=False, weights=(1.0, 0.3, 0.1)).weight == 0.1
    assert choose_weight([sure], *given, seen_masked=False).weight == 0.0
    # One that knows nothing: every weight above 0 gives the order of the transitions.
    even = np.full_like(retriever, 1 / ITEMS)
    chosen = choose_weight([even], *given, seen_masked=False, weights=(0.0, 0.5, 1.0))
    assert chosen.curve[0.5] == chosen.curve[1.0] > chosen.curve[0.0]
    assert chosen.weight == 0.5
    # With weight 0 all items tie, and a tie goes to the more popular item.
    popular = popularity_baseline(counter.popularity).ranks(histories, targets, seen_masked=False)
    assert chosen.curve[0.0] == pytest.approx(rank_metrics(popular, (10,))["ndcg@10"], rel=1e-12)


def test_blocks_stream(world):
    counter, histories, targets, retriever = world
    alive, most = weakref.WeakSet(), 0

    class Block(np.ndarray):
        """An array that can be watched."""

    def watched():
        nonlocal most
        for block in blocks_of(retriever):
            fresh = block.copy().view(Block)
            alive.add(fresh)
            most = max(most, len(alive))
            yield fresh

    Block.__hash__ = object.__hash__
    choose_weight(watched(), histories, targets, counter, seen_masked=True, weights=(0.0, 1.0))
    assert most <= 3


def test_wrong_input_is_refused(world):
    counter, histories, targets, retriever = world

    def choose(blocks, targets=targets, **more):
        return choose_weight(blocks, histories, targets, counter, seen_masked=True, **more)

    with pytest.raises(ValueError, match=f"hold 3 cases of {len(targets)}"):
        choose([retriever[:3]])
    with pytest.raises(ValueError, match="in their order"):
        choose([retriever, retriever[:1]])
    with pytest.raises(ValueError, match="24 items"):
        choose([retriever[:, :-1]])
    with pytest.raises(ValueError, match="0 weights"):
        choose([retriever], weights=())
    with pytest.raises(ValueError, match="0 cases"):
        choose([], targets[:0])
    with pytest.raises(ValueError, match="weight=2"):
        choose([retriever], weights=(2.0,))
    with pytest.raises(ValueError, match="NaN"):
        choose([np.full_like(retriever, np.nan)])
