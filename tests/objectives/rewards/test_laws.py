"""What all rewards obey: range, masks, order of the group, no gradient, NaN in sight."""

import doctest
import importlib
import pkgutil
from dataclasses import is_dataclass

import jax
import numpy as np
import pytest

from jaxrec.objectives import rewards
from jaxrec.objectives.rewards import (
    GENREC,
    MINI_ONE_REC,
    THREE_TOWERS,
    Calibrated,
    CommonSubsequence,
    Diversity,
    DurationPercentile,
    ExactMatch,
    Gated,
    Legality,
    LevelCredit,
    ModelScore,
    Multiplier,
    Novelty,
    PrefixMatch,
    Product,
    RankedGain,
    RankPenalty,
    Reward,
    SignedScore,
    Sum,
    count_not_finite,
)

RANGES = {
    ExactMatch(): (0, 1),
    PrefixMatch(): (-0.5, 1),
    LevelCredit(): (0, 1),
    LevelCredit((1.0, 0.0, 2.0), prefix_only=False): (0, 1),
    CommonSubsequence(): (0, 1),
    RankPenalty(): (-1, 0),
    Legality(6): (0, 1),
    ModelScore("ctr"): (0, 1),
    SignedScore("ctr"): (-1, 1),
    Gated(ModelScore("preference"), "relevance", 0.4): (0, 1),
    DurationPercentile(): (-1, 1),
    Diversity(): (0, 1),
    Diversity("vectors"): (0, 2),
    Novelty(): (0, 12),
    Multiplier(Novelty(), "viral", 0.25): (0, 12),
    Product((ModelScore("ctr"), ModelScore("cvr"))): (0, 1),
    Calibrated(ModelScore("ctr")): (0, 1),
    Sum((Novelty(), RankPenalty()), (-1.0, 2.0)): (-14, 0),
    MINI_ONE_REC: (-1, 1),
    GENREC: (0, 1),
    THREE_TOWERS: (0, 13),
}
PRICED = {RankedGain(3): (-4, 1.1), RankedGain(4, scope="list"): (-4, 1.1)}
ALL = RANGES | PRICED
READERS = {
    ModelScore("cvr"): ("cvr",),
    SignedScore("cvr"): ("cvr",),
    Gated(ModelScore("preference"), "relevance", 0.5): ("relevance", "preference"),
    DurationPercentile(): ("play_time", "negative"),
    Sum((ModelScore("ctr"), ExactMatch()), (0.5, 1.0)): ("ctr",),
    Product((ModelScore("ctr"), ModelScore("cvr"))): ("cvr",),
    Multiplier(ModelScore("ctr"), "viral", 0.0): ("ctr",),
}
"""Rewards, and the scores in which they must not lose a NaN."""
KEY = jax.random.key(3)
not_finite = jax.jit(count_not_finite)
call = jax.jit(lambda reward, drawn: reward(drawn), static_argnums=0)


@jax.jit
def values(drawn):
    """All rewards in one program."""
    return {repr(reward): reward(drawn, KEY) for reward in [*ALL, *READERS]}


def value(reward, drawn):
    return values(drawn)[repr(reward)]


def of_group(drawn, change):
    """The rollouts after a change of the arrays that have a group axis."""
    names = ("items", "codes", "valid", "log_probs", "positive", "lists")
    changed = {
        name: change(getattr(drawn, name)) for name in names if getattr(drawn, name) is not None
    }
    return drawn._replace(**changed, scores={n: change(each) for n, each in drawn.scores.items()})


@pytest.mark.parametrize("reward", ALL, ids=repr)
def test_a_reward_stays_in_its_range(reward, groups_like):
    low, high = ALL[reward]
    seen = np.concatenate([value(reward, groups_like(seed=seed)).ravel() for seed in range(5)])
    assert low <= seen.min() < seen.max() <= high
    assert seen.dtype == np.float32
    assert isinstance(reward, Reward)


@pytest.mark.parametrize("reward", RANGES, ids=repr)
def test_invalid_rollouts_get_nothing(reward, drawn):
    found = value(reward, drawn)
    np.testing.assert_array_equal(found[~drawn.valid], 0)


@pytest.mark.parametrize("reward", [each for each in ALL if each != Legality(6)], ids=repr)
def test_masked_is_left_out(reward, groups_like):
    """Whatever stands in an invalid rollout, the others are as if it were not there."""
    drawn = groups_like(places=8)
    valid = np.ones_like(drawn.valid)
    valid[:, [2, 5]] = False
    drawn = drawn._replace(valid=valid, items=np.where(valid, np.maximum(drawn.items, 0), -1))
    kept = np.array([0, 1, 3, 4, 6, 7])
    expected = value(reward, of_group(drawn, lambda array: array[:, kept]))
    found = value(reward, drawn)
    np.testing.assert_allclose(found[:, kept], expected, rtol=1e-5, atol=1e-7)

    def spoil(array):
        if np.issubdtype(array.dtype, np.floating):
            return np.where(valid, array, np.nan)
        if array is valid:
            return array
        return np.where(valid.reshape(valid.shape + (1,) * (array.ndim - 2)), array, 7)

    np.testing.assert_array_equal(value(reward, of_group(drawn, spoil)), found)


@pytest.mark.parametrize("reward", ALL, ids=repr)
def test_the_order_of_the_group_does_not_matter(reward, drawn):
    """Where no two likelihoods are equal, not even to a rank."""
    order = np.array([3, 1, 5, 0, 2, 4])
    shuffled = value(reward, of_group(drawn, lambda array: array[:, order]))
    expected = value(reward, drawn)[:, order]
    np.testing.assert_allclose(shuffled, expected, rtol=1e-5, atol=1e-6)


def test_no_gradient_passes(drawn):
    def total(floats):
        log_probs, scores, vectors = floats
        features = drawn.features | {"vectors": vectors}
        changed = drawn._replace(log_probs=log_probs, scores=scores, features=features)
        return sum(each.sum() for each in values(changed).values())

    slopes = jax.grad(total)((drawn.log_probs, drawn.scores, drawn.features["vectors"]))
    for slope in jax.tree.leaves(slopes):
        np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize(
    ("reward", "name"), [(reward, name) for reward in READERS for name in READERS[reward]], ids=str
)
def test_a_nan_is_seen_where_it_is(reward, name, drawn):
    valid = np.ones_like(drawn.valid)
    scores = drawn.scores | {"relevance": np.zeros(valid.shape)}
    scores["negative"] = np.zeros(valid.shape)
    drawn = drawn._replace(valid=valid, scores=scores, items=np.maximum(drawn.items, 0))
    assert float(not_finite(value(reward, drawn), valid)[0]) == 0
    spoilt = scores[name].copy()
    spoilt[2, 3] = np.nan
    scores = scores | {name: spoilt}
    found = value(reward, drawn._replace(scores=scores))
    assert np.argwhere(np.isnan(found)).tolist() == [[2, 3]]
    bad, number = not_finite(found, valid)
    assert (float(bad), float(number)) == (1.0, valid.size)


def test_only_valid_rollouts_are_counted_as_not_finite():
    values = np.array([[np.nan, -np.inf, 1.0, np.nan]])
    bad, number = not_finite(values, np.array([[True, True, True, False]]))
    assert (float(bad), float(number)) == (2.0, 3.0)


def test_a_reward_is_a_static_argument(drawn):
    for reward in (ExactMatch(), GENREC):
        np.testing.assert_array_equal(call(reward, drawn), value(reward, drawn))


def test_what_is_missing_is_named(drawn):
    bare = drawn._replace(features={}, scores={}, lists=None, truth=None, history_play=None)
    for reward, match in {
        ModelScore("ctr"): r"scores\['ctr'\]",
        SignedScore("ctr"): r"scores\['ctr'\]",
        Gated(ExactMatch(), "relevance", 0.5): r"scores\['relevance'\]",
        Novelty(): r"features\['popularity'\]",
        Diversity("vectors"): r"features\['vectors'\]",
        Multiplier(ExactMatch(), "viral", 0.5): r"features\['viral'\]",
        CommonSubsequence(): "lists or truth",
        RankedGain(scope="list"): "lists or truth",
    }.items():
        with pytest.raises(ValueError, match=match):
            call(reward, bare)
    with pytest.raises(ValueError, match="history_play is None"):
        call(DurationPercentile(), bare._replace(scores=drawn.scores))


@pytest.mark.parametrize(
    ("reward", "fields", "match"),
    [
        (PrefixMatch, {"values": (1.0,)}, "matching levels"),
        (LevelCredit, {"weights": ()}, "above 0"),
        (LevelCredit, {"weights": (0.0, 0.0, 0.0)}, "above 0"),
        (LevelCredit, {"weights": (2.0, -1.0, 1.0)}, "above 0"),
        (RankedGain, {"k": 0}, "k=0"),
        (Legality, {"count": 0}, "count=0"),
        (DurationPercentile, {"share": 1.0}, "share=1.0"),
        (Novelty, {"smoothing": 0.0}, "smoothing=0.0"),
        (Gated, {"reward": ExactMatch(), "name": "x", "threshold": float("nan")}, "NaN"),
        (Multiplier, {"reward": ExactMatch(), "feature": "x", "factor": -1.0}, "factor=-1.0"),
        (Sum, {"parts": (), "weights": ()}, "at least one"),
        (Sum, {"parts": (ExactMatch(),), "weights": (1.0, 2.0)}, "each of its 1 parts"),
        (Sum, {"parts": (ExactMatch(),), "weights": (float("inf"),)}, "finite"),
        (Product, {"parts": ()}, "at least one"),
    ],
)
def test_bad_settings_are_refused(reward, fields, match):
    with pytest.raises(ValueError, match=match):
        reward(**fields)


def test_an_unknown_scope_is_refused():
    with pytest.raises(Exception, match="scope"):
        RankedGain(scope="page")


def test_every_component_is_tested_here():
    named = [getattr(rewards, name) for name in rewards.__all__]
    components = {each for each in named if isinstance(each, type) and is_dataclass(each)}
    assert components == {type(reward) for reward in ALL}


def test_examples():
    attempted = 0
    for module in pkgutil.iter_modules(rewards.__path__, f"{rewards.__name__}."):
        result = doctest.testmod(importlib.import_module(module.name))
        assert result.failed == 0, module.name
        attempted += result.attempted
    assert attempted >= 39
