"""Rewards by rank: the published numbers, NDCG in a loop, ties."""

import jax
import numpy as np
import pytest

from jaxrec.objectives.rewards import MINI_ONE_REC, RankedGain, RankPenalty
from jaxrec.objectives.rewards.drawn import likelihood_ranks
from jaxrec.objectives.rewards.ranked import list_gains, rank_penalties

gains = jax.jit(lambda lists, truth: list_gains(lists, truth, 3))
call = jax.jit(lambda reward, drawn, key=None: reward(drawn, key), static_argnums=0)


def one_group(drawn, places, hit=None, log_probs=None):
    """A single group of as many items, the likeliest first, with its hit at a place."""
    items = np.arange(places, dtype=np.int32)[None]
    falling = -np.arange(places, dtype=np.float32)[None]
    return drawn._replace(
        items=items,
        codes=drawn.item_codes[items],
        valid=np.ones((1, places), bool),
        log_probs=falling if log_probs is None else np.array([log_probs]),
        target=np.array([29 if hit is None else hit], np.int32),
        target_codes=drawn.target_codes[:1],
    )


def ndcg_of(items, truth, k):
    """Gains of first mentions over those of the best list."""
    truth = {x for x in truth if x >= 0}
    mentioned, gain = set(), 0.0
    for place, item in enumerate(items[:k]):
        if item in truth and item not in mentioned:
            gain += 1 / np.log2(place + 2)
        mentioned.add(item)
    best = sum(1 / np.log2(place + 2) for place in range(min(k, len(truth))))
    return gain / best if best else 0.0


def test_the_published_penalties_of_four(drawn):
    expected = np.array([-0.3904, -0.2463, -0.1952, -0.1681])
    for hit in range(4):
        found = call(RankPenalty(), one_group(drawn, 4, hit))[0]
        misses = np.arange(4) != hit
        np.testing.assert_allclose(found[misses], expected[misses], atol=5e-5)
        assert float(found[hit]) == 0.0


def test_the_published_penalties_of_sixteen(drawn):
    found = call(RankPenalty(), one_group(drawn, 16, 7))[0]
    np.testing.assert_allclose(found[:4], [-0.1638, -0.1033, -0.0819, -0.0705], atol=5e-5)
    np.testing.assert_allclose(found[15], -0.0401, atol=5e-5)
    # Over all ranks the shares add up to 1; the hit's own is not paid.
    np.testing.assert_allclose(found.sum(), -1 + 0.1638 / np.log2(9), atol=1e-4)


def test_without_a_hit_nobody_pays(drawn):
    np.testing.assert_array_equal(call(RankPenalty(), one_group(drawn, 8)), 0)
    unknown = one_group(drawn, 8)._replace(target=np.array([-1]))
    np.testing.assert_array_equal(call(RankPenalty(), unknown), 0)


def test_the_likelier_the_miss_the_dearer(drawn):
    group = one_group(drawn, 9, 8, [-5.0, -1.0, -3.0, -9.0, -2.0, -8.0, -4.0, -7.0, 0.0])
    found = np.asarray(call(RankPenalty(), group)[0])
    order = np.argsort(-np.asarray(group.log_probs[0]))
    assert float(found[order[0]]) == 0.0
    assert np.all(np.diff(found[order[1:]]) > 0)


def test_equal_likelihoods_rank_by_their_place(drawn):
    group = one_group(drawn, 4, 3, [-1.0, -1.0, -1.0, -1.0])
    np.testing.assert_allclose(
        call(RankPenalty(), group)[0, :3], [-0.3904, -0.2463, -0.1952], atol=5e-5
    )
    log_probs = np.array([[-np.inf, -np.inf, 0.0, -np.inf]])
    valid = np.array([[True, False, False, True]])
    assert jax.jit(likelihood_ranks)(log_probs, valid).tolist() == [[0, 3, 2, 1]]


def test_every_hit_of_a_group_is_free():
    hit, valid = np.array([[True, False, True, False]]), np.ones((1, 4), bool)
    found = jax.jit(rank_penalties)(np.array([[0, 1, 2, 3]]), hit, valid)
    np.testing.assert_allclose(found[0], [0, -0.2463, 0, -0.1681], atol=5e-5)


def test_the_rule_reward_is_the_hit_and_the_penalty(drawn):
    found = call(MINI_ONE_REC, one_group(drawn, 4, 1))[0]
    np.testing.assert_allclose(found, [-0.3904, 1.0, -0.1952, -0.1681], atol=5e-5)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_the_shares_of_a_group_add_up_to_its_ndcg(k, groups_like):
    gained = 0
    for seed in range(8):
        drawn = groups_like(seed=seed)
        found = call(RankedGain(k, form_kept=0.0, form_broken=0.0, failed=0.0), drawn)
        for row in range(4):
            order = np.argsort(-np.asarray(drawn.log_probs[row]))
            ranked = [int(drawn.items[row, i]) for i in order if drawn.valid[row, i]]
            expected = ndcg_of(ranked, [int(drawn.target[row])], k)
            np.testing.assert_allclose(found[row].sum(), expected, rtol=1e-5)
            assert np.sum(np.asarray(found[row]) > 0) == (expected > 0)
            gained += expected > 0
    assert gained >= 3


def test_forms_have_their_prices(drawn):
    group = one_group(drawn, 4, 2)
    group = group._replace(valid=np.array([[True, False, True, True]]))
    np.testing.assert_allclose(
        call(RankedGain(), group)[0], [0.1, -4.0, 0.1 + 0.6309, 0.1], atol=1e-4
    )
    other = RankedGain(form_kept=0.5, form_broken=-1.0, failed=-0.25)
    np.testing.assert_allclose(call(other, group)[0], [0.5, -1.25, 0.5 + 0.6309, 0.5], atol=1e-4)
    short = call(RankedGain(k=1), group)[0]
    np.testing.assert_allclose(short, [0.1, -4.0, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 4, 9])
def test_the_gain_of_a_list_is_the_loop(k, groups_like):
    for seed in range(4):
        drawn = groups_like(seed=seed)
        found = call(RankedGain(k, scope="list", form_kept=0.0), drawn)
        for row in range(4):
            truth = np.asarray(drawn.truth[row]).tolist()
            for place in range(6):
                expected = ndcg_of(np.asarray(drawn.lists[row, place]).tolist(), truth, k)
                if drawn.valid[row, place]:
                    np.testing.assert_allclose(found[row, place], expected, rtol=1e-5)


def test_a_list_without_truth_gains_nothing():
    found = gains(np.array([[1, -1, 2]]), np.array([[-1, -1]]))
    np.testing.assert_array_equal(found, 0)
    best = gains(np.array([[4, 2, 9]]), np.array([[2, 4, -1, -1]]))
    np.testing.assert_allclose(best, 1.0, rtol=1e-6)
