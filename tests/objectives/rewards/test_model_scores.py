"""Scores of frozen models, and the gate."""

import jax
import numpy as np
import pytest

from jaxrec.objectives.rewards import ExactMatch, Gated, ModelScore, SignedScore

call = jax.jit(lambda reward, drawn, key=None: reward(drawn, key), static_argnums=0)


def test_a_score_is_handed_on(drawn):
    expected = np.where(drawn.valid, drawn.scores["ctr"], 0.0)
    np.testing.assert_array_equal(call(ModelScore("ctr"), drawn), expected)
    half = drawn._replace(scores={"ctr": drawn.scores["ctr"].astype(jax.numpy.bfloat16)})
    assert call(ModelScore("ctr"), half).dtype == np.float32


def test_the_gate_opens_strictly_above_its_threshold(drawn):
    relevance = np.broadcast_to(np.array([0.1, 0.49, 0.5, 0.51, 0.9, 1.0]), (4, 6))
    drawn = drawn._replace(
        scores=drawn.scores | {"relevance": relevance}, valid=np.ones((4, 6), bool)
    )
    found = call(Gated(ModelScore("preference"), "relevance", 0.5), drawn)
    expected = drawn.scores["preference"] * np.array([0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(found, expected)
    assert float(call(Gated(ExactMatch(), "relevance", 0.5), drawn)[0, 0]) == 0.0
    assert float(call(Gated(ExactMatch(), "relevance", 0.05), drawn)[0, 0]) == 1.0
    shut = call(Gated(ModelScore("preference"), "relevance", 1.0), drawn)
    np.testing.assert_array_equal(shut, 0)


def test_signs_are_those_of_the_ends_of_the_batch(drawn):
    score = np.random.default_rng(0).permutation(24).reshape(4, 6).astype(np.float32)
    valid = score != 23  # the best of all does not count, and moves no limit
    known = drawn._replace(scores={"ctr": score}, valid=valid)
    found = np.asarray(call(SignedScore("ctr", 0.25), known))
    # 23 scores 0 .. 22: the quantiles at a quarter and at three are 5.5 and 16.5.
    np.testing.assert_array_equal(found, np.where(valid, (score > 16.5) * 1.0 - (score < 5.5), 0))
    equal = call(SignedScore("ctr"), known._replace(scores={"ctr": np.ones((4, 6), np.float32)}))
    np.testing.assert_array_equal(equal, 0)
    bad = call(
        SignedScore("ctr"), known._replace(scores={"ctr": np.where(score == 3, np.nan, score)})
    )
    assert np.isnan(bad).sum() == 1
    with pytest.raises(ValueError, match=r"\(0, .5\]"):
        SignedScore("ctr", 0.6)
