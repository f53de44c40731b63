"""Sums, products, multipliers, calibration, and the mixes of the papers."""

import jax
import numpy as np

from jaxrec.objectives.rewards import (
    GENREC,
    THREE_TOWERS,
    Calibrated,
    ExactMatch,
    Gated,
    Legality,
    ModelScore,
    Multiplier,
    Product,
    RankPenalty,
    Sum,
)

call = jax.jit(lambda reward, drawn, key=None: reward(drawn, key), static_argnums=0)


def with_scores(drawn, **scores):
    """One group of four valid rollouts, the first of which is the target."""
    arrays = {name: np.array([values]) for name, values in scores.items()}
    return drawn._replace(
        items=np.array([[2, 5, 6, 7]]),
        codes=drawn.codes[:1, :4],
        valid=np.ones((1, 4), bool),
        log_probs=drawn.log_probs[:1, :4],
        target=np.array([2]),
        target_codes=drawn.target_codes[:1],
        scores=arrays,
    )


def test_a_sum_is_weighted_and_a_product_is_not(drawn):
    parts = ModelScore("ctr"), ExactMatch(), RankPenalty()
    values = [np.asarray(call(part, drawn), np.float64) for part in parts]
    found = call(Sum(parts, (0.5, -2.0, 3.0)), drawn)
    np.testing.assert_allclose(
        found, 0.5 * values[0] - 2 * values[1] + 3 * values[2], rtol=1e-5, atol=1e-7
    )
    product = Product((ModelScore("ctr"), ModelScore("cvr"), Legality(6)))
    expected = drawn.scores["ctr"] * drawn.scores["cvr"] * drawn.valid
    np.testing.assert_allclose(call(product, drawn, jax.random.key(0)), expected, rtol=1e-6)


def test_parts_draw_with_keys_of_their_own(groups_like):
    drawn = groups_like(rows=30, places=12)
    drawn = drawn._replace(valid=np.ones_like(drawn.valid))
    both = Sum((Legality(3), Legality(3)), (1.0, 10.0))
    found = call(both, drawn, jax.random.key(0))
    assert set(np.unique(found)) == {0.0, 1.0, 10.0, 11.0}
    np.testing.assert_array_equal(found, call(both, drawn, jax.random.key(0)))


def test_a_multiplier_touches_flagged_items_only(drawn):
    found = np.asarray(call(Multiplier(ModelScore("ctr"), "viral", 0.25), drawn))
    flags = np.asarray(drawn.features["viral"])
    seen = set()
    for row, place in np.argwhere(drawn.valid):
        flagged = bool(flags[int(drawn.items[row, place])])
        expected = float(drawn.scores["ctr"][row, place]) * (0.25 if flagged else 1.0)
        np.testing.assert_allclose(found[row, place], expected, rtol=1e-6)
        seen.add(flagged)
    assert seen == {True, False}


def test_positives_get_the_best_of_the_group_after_the_gate(drawn):
    group = with_scores(drawn, preference=[0.2, 0.6, 0.9, 0.4], relevance=[0.1, 0.8, 0.3, 0.7])
    gated = Gated(ModelScore("preference"), "relevance", 0.5)
    np.testing.assert_allclose(call(gated, group)[0], [0, 0.6, 0, 0.4], rtol=1e-6)
    # The 0.9 is shut out before anything is calibrated; the target was shut out and is back.
    np.testing.assert_allclose(call(GENREC, group)[0], [0.6, 0.6, 0, 0.4], rtol=1e-6)
    # The other way round gives the gate the last word.
    turned = Gated(Calibrated(ModelScore("preference")), "relevance", 0.5)
    np.testing.assert_allclose(call(turned, group)[0], [0, 0.6, 0, 0.4], rtol=1e-6)


def test_positives_may_be_said(drawn):
    group = with_scores(drawn, ctr=[0.2, 0.6, 0.9, 0.4])
    np.testing.assert_allclose(call(Calibrated(ModelScore("ctr")), group)[0], [0.9, 0.6, 0.9, 0.4])
    said = group._replace(positive=np.array([[False, False, False, True]]))
    np.testing.assert_allclose(call(Calibrated(ModelScore("ctr")), said)[0], [0.2, 0.6, 0.9, 0.9])


def test_a_group_that_the_gate_empties_has_nothing_to_give(drawn):
    group = with_scores(drawn, preference=[0.2, 0.6, 0.9, 0.4], relevance=[0.1, 0.2, 0.3, 0.5])
    np.testing.assert_array_equal(call(GENREC, group), 0)


def test_a_calibrated_positive_is_never_below_the_mean(groups_like):
    checked = 0
    for seed in range(10):
        drawn = groups_like(seed=seed)
        found = np.asarray(call(GENREC, drawn))
        for row in range(4):
            valid = np.asarray(drawn.valid[row])
            hits = valid & (np.asarray(drawn.items[row]) == int(drawn.target[row]))
            if hits.any():
                np.testing.assert_array_equal(found[row][hits], found[row][valid].max())
                checked += 1
    assert checked >= 5


def test_three_towers_and_relevance_ten_times(drawn):
    towers = {"ctr": [0.5] * 4, "cvr": [0.25] * 4, "ctcvr": [0.125] * 4}
    group = with_scores(drawn, **towers, relevance=[0.0, 0.1, 0.5, 1.0])
    np.testing.assert_allclose(
        call(THREE_TOWERS, group)[0], [0.875, 1.875, 5.875, 10.875], rtol=1e-6
    )
