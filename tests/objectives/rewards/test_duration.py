"""Duration-aware feedback: buckets, percentiles in a loop, fallbacks, signs."""

import jax
import numpy as np
import pytest

from jaxrec.objectives.rewards import (
    DurationPercentile,
    duration_buckets,
    log_percentiles,
    play_quantiles,
)
from jaxrec.objectives.rewards.duration import (
    best_share_threshold,
    common_percentiles,
    own_percentiles,
)

own = jax.jit(own_percentiles)
common = jax.jit(common_percentiles)
threshold = jax.jit(best_share_threshold, static_argnums=2)

percentiles = jax.jit(DurationPercentile().percentiles)
call = jax.jit(lambda reward, drawn, key=None: reward(drawn, key), static_argnums=0)


@pytest.mark.parametrize("beta", [1.5, 2.0, 10.0])
def test_buckets_begin_at_whole_powers(beta):
    edges = np.array([beta**power for power in range(1, 7)])
    tiny = 1e-30  # lost in the sum
    assert duration_buckets(edges, beta=beta, epsilon=tiny).tolist() == [1, 2, 3, 4, 5, 6]
    below = duration_buckets(np.nextafter(edges, 0), beta=beta, epsilon=tiny)
    assert below.tolist() == [0, 1, 2, 3, 4, 5]
    assert below.dtype == np.int32
    whole = duration_buckets(edges - 1.0, beta=beta, epsilon=1.0)
    assert (duration_buckets(np.zeros(1), beta=beta), *whole) == (0, 1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    ("durations", "options", "match"),
    [
        ([1.0, -2.0], {}, "1 are"),
        ([np.nan], {}, "1 are"),
        ([1.0], {"beta": 1.0}, "beta=1.0"),
        ([1.0], {"epsilon": 0.0}, "epsilon=0.0"),
    ],
)
def test_bad_durations_are_refused(durations, options, match):
    with pytest.raises(ValueError, match=match):
        duration_buckets(np.array(durations), **options)


def test_percentiles_of_a_log_are_the_loop():
    random = np.random.default_rng(2)
    user = random.integers(0, 6, 120).astype(np.int32)
    bucket = random.integers(0, 4, 120).astype(np.int32)
    play = random.integers(0, 9, 120).astype(np.float32)  # ties
    found = log_percentiles(user, bucket, play)
    for event in range(120):
        peers = play[(user == user[event]) & (bucket == bucket[event])]
        np.testing.assert_allclose(found[event], np.mean(peers <= play[event]), rtol=1e-12)
    order = random.permutation(120)
    np.testing.assert_array_equal(
        log_percentiles(user[order], bucket[order], play[order]), found[order]
    )
    assert log_percentiles(user[:0], bucket[:0], play[:0]).shape == (0,)
    with pytest.raises(ValueError, match="NaN"):
        log_percentiles(user[:1], bucket[:1], np.array([np.nan]))


def test_the_only_event_of_a_bucket_has_one():
    user, bucket = np.array([3, 3, 4], np.int32), np.array([0, 1, 0], np.int32)
    np.testing.assert_array_equal(log_percentiles(user, bucket, np.array([0.0, 2.0, 9.0])), 1.0)
    q, number = own(
        np.array([[5.0, 4.9, 5.1]]),
        np.full((1, 3), 2),
        np.array([[5.0, 7.0]]),
        np.array([[2, 1]]),
        np.ones((1, 2), bool),
    )
    np.testing.assert_array_equal(q, [[1.0, 0.0, 1.0]])
    np.testing.assert_array_equal(number, 1)


def test_percentiles_among_own_events_are_the_loop():
    random = np.random.default_rng(4)
    play, history_play = random.integers(0, 9, (5, 7)), random.integers(0, 9, (5, 12))
    bucket, history_bucket = random.integers(0, 4, (5, 7)), random.integers(0, 4, (5, 12))
    seen = random.random((5, 12)) < 0.6
    history_play = history_play.astype(np.float32)
    history_play[0, :3] = np.nan
    q, number = own(play.astype(np.float32), bucket, history_play, history_bucket, seen)
    for row in range(5):
        for place in range(7):
            peers = history_play[row][seen[row] & (history_bucket[row] == bucket[row, place])]
            peers = peers[~np.isnan(peers)]
            expected = np.mean(peers <= play[row, place]) if len(peers) else 0.0
            np.testing.assert_allclose(q[row, place], expected, rtol=1e-6)
            assert int(number[row, place]) == len(peers)
    assert int(number.min()) == 0


def test_quantiles_stand_for_everybody():
    random = np.random.default_rng(5)
    bucket = random.choice([0, 1, 3], 400).astype(np.int32)
    play = random.gamma(2.0, 1.0 + bucket).astype(np.float32)
    table = play_quantiles(bucket, play, points=50)
    assert table.shape == (4, 50)
    np.testing.assert_array_equal(
        table[2], play_quantiles(np.zeros(400, np.int32), play, points=50)[0]
    )
    asked, plays = np.array([[0, 1, 3, 3]], np.int32), np.array([[0.5, 2.0, 5.0, 99.0]], np.float32)
    found = common(plays, asked, table)
    for place in range(4):
        expected = np.mean(play[bucket == asked[0, place]] <= plays[0, place])
        np.testing.assert_allclose(found[0, place], expected, atol=1 / 50 + 1e-6)
    assert float(found[0, 3]) == 1.0
    single = play_quantiles(np.zeros(1, np.int32), np.array([3.0]))
    at_it = common(np.array([[3.0]]), np.array([[0]]), single)
    assert float(at_it[0, 0]) == 1.0


@pytest.mark.parametrize(
    ("bucket", "play", "points"),
    [([], [], 4), ([-1], [1.0], 4), ([0], [np.nan], 4), ([0], [1.0], 0)],
)
def test_bad_quantiles_are_refused(bucket, play, points):
    with pytest.raises(ValueError, match="quantiles need events"):
        play_quantiles(np.array(bucket, np.int32), np.array(play), points=points)


def test_a_quarter_of_the_batch_is_above_the_threshold():
    q = np.array(np.random.default_rng(6).permutation(40).reshape(4, 10) / 40.0)
    valid = np.ones((4, 10), bool)
    assert int(np.sum(q > threshold(q, valid, 0.25))) == 10
    assert int(np.sum(q > threshold(q, valid, 0.1))) == 4
    half = q < 0.5
    assert int(np.sum((q > threshold(q, half, 0.25)) & half)) == 5
    assert np.isnan(threshold(q, np.zeros((4, 10), bool), 0.25))


def feedback(drawn, play, negative=None):
    """One user, whose history has events of 10, 20, 30 and 40 s in bucket 1 and none in bucket 2;
    everybody's are four times as long. Items 0 to 3 are of bucket 1, 4 and 5 of bucket 2."""
    shape = (1, 6)
    zeros = np.zeros(shape)
    return drawn._replace(
        items=np.arange(6, dtype=np.int32)[None],
        codes=drawn.codes[:1],
        valid=np.ones(shape, bool),
        log_probs=drawn.log_probs[:1],
        target=drawn.target[:1],
        target_codes=drawn.target_codes[:1],
        scores={
            "play_time": np.array([play]),
            "negative": zeros if negative is None else np.array([negative]),
        },
        features={
            "duration_bucket": np.array([1, 1, 1, 1, 2, 2], np.int32),
            "play_quantiles": np.array([[0.0] * 4] + [[40.0, 80.0, 120.0, 160.0]] * 2),
        },
        history=np.array([[0, 1, 2, 3, 4]], np.int32),
        seen=np.array([[True] * 4 + [False]]),
        history_play=np.array([[10.0, 20.0, 30.0, 40.0, 1.0]]),
    )


def test_an_empty_bucket_is_compared_with_everybody(drawn):
    rollouts = feedback(drawn, [5.0, 10.0, 25.0, 400.0, 85.0, 5.0])
    q = percentiles(rollouts)
    np.testing.assert_allclose(q, [[0.0, 0.25, 0.5, 1.0, 0.5, 0.0]])


def test_the_best_get_one_the_refused_minus_one(drawn):
    play = [5.0, 10.0, 25.0, 400.0, 130.0, 5.0]  # q: 0, .25, .5, 1, .75, 0
    found = call(DurationPercentile(), feedback(drawn, play))
    np.testing.assert_array_equal(found, [[0, 0, 0, 1, 1, 0]])
    refused = feedback(drawn, play, [0.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    np.testing.assert_array_equal(call(DurationPercentile(), refused), [[0, -1, 0, -1, 1, 0]])
    one = call(DurationPercentile(share=0.1), feedback(drawn, play))
    np.testing.assert_array_equal(one, [[0, 0, 0, 1, 0, 0]])
    # Nobody is strictly above the highest.
    np.testing.assert_array_equal(call(DurationPercentile(), feedback(drawn, [500.0] * 6)), 0)


def test_a_longer_play_never_has_a_lower_percentile(drawn):
    plays = np.linspace(0, 200, 41)
    table = [percentiles(feedback(drawn, [play] * 6))[0] for play in plays]
    assert np.all(np.diff(np.stack(table), axis=0) >= 0)
