"""The compiled alignment step finds what it is paid for, and a gate keeps it from being hacked.

benchmarks/bandit.py has all objectives, ten seeds, and more steps.
"""

import sys

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("compile_fast")
SEEDS, STEPS = 3, 150


@pytest.fixture(scope="module")
def bandit(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(root / "benchmarks"), *sys.path])
        import bandit

        yield bandit


def test_pairs_of_rollouts_find_the_best_items_of_a_trie(bandit):
    gain = bandit.FEATURES["gain"]
    stage = bandit.OPTIMA["S-DPO best against all"]
    curves = bandit.learn(stage, bandit.WORLDS["sparse"], SEEDS, steps=STEPS)
    np.testing.assert_allclose(curves.sum(-1), 1, atol=1e-5)
    gained = curves @ gain / gain.max()
    assert np.all(gained[:, 0] < 0.6)
    assert np.all(gained[:, -1] > 0.98), gained


def test_balance_draws_in_proportion(bandit):
    gain = np.maximum(bandit.FEATURES["gain"], 1e-3)
    stage = bandit.SPREAD["TrajectoryBalance"]
    curves = bandit.learn(stage, bandit.WORLDS["sparse"], SEEDS, steps=STEPS)
    distance = np.abs(curves - gain / gain.sum()).sum(-1) / 2
    assert np.all(distance[:, 0] > 0.2)
    assert np.all(distance[:, -1] < 0.02), distance


def test_a_gate_keeps_the_policy_from_what_only_the_model_likes(bandit):
    true, model = bandit.FEATURES["gain"], bandit.FEATURES["preference"]
    bad = bandit.FEATURES["relevance"] <= 0.5
    best = {"trusting": model.max(), "gated": model[~bad].max()}
    ends = {}
    for name, stage in bandit.HACKS.items():
        curves = bandit.learn(stage, bandit.WORLDS["sparse"], SEEDS, steps=STEPS)
        assert np.all(curves[:, 0] @ model < 0.7 * best[name])
        # Both get what they are paid for.
        ends[name] = curves[:, -1]
        assert np.all(ends[name] @ model > 0.98 * best[name])
    assert np.all(ends["trusting"] @ true < 0.3 * true.mean())
    assert np.all(ends["trusting"] @ bad > 0.9)
    assert np.all(ends["gated"] @ true > 0.96 * true[~bad].max())
    assert np.all(ends["gated"] @ bad < 0.01)


def test_most_reward_is_that_of_the_tilt(bandit):
    start, reward = np.array([0.25, 0.75]), np.array([1.0, 0.0])
    # No divergence: what one has. With all of it, log 4: the best item alone. Between: [p, 1 - p].
    assert bandit.most_reward(start, 0.0, reward) == pytest.approx(0.25, abs=1e-3)
    assert bandit.most_reward(start, np.log(4), reward) == pytest.approx(1.0, abs=1e-6)
    p = np.array([0.6, 0.4])
    divergence = float(p @ np.log(p / start))
    assert bandit.most_reward(start, divergence, reward) == pytest.approx(0.6, abs=1e-6)
