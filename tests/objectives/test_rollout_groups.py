"""What all policy objectives share: masks, order, idle groups, common metrics, levels."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import policy_groups as world
import pytest

from jaxrec.objectives import rollout_groups
from jaxrec.objectives.ecpo import ECPO
from jaxrec.objectives.gbpo import GBPO
from jaxrec.objectives.gflownet import TrajectoryBalance
from jaxrec.objectives.grpo import GRPO, MINIONEREC
from jaxrec.objectives.grpo_sr import GRPOSR
from jaxrec.objectives.reinforce import Reinforce
from jaxrec.objectives.rollout_groups import ScoredGroup, masked, ratios

COMPARING = [
    GRPO(kl=0.0, clip=0.5),
    GRPO(kl=0.0, on_policy=True, scale_by_std=False, length_normalised=False),
    ECPO(),
    GRPOSR(nll=0.7),
    Reinforce("leave_one_out"),
]
OTHERS = [
    GRPO(ratio_level="item", clip=0.5, kl_estimator="k3", kl=0.1),
    GBPO(),
    Reinforce("batch"),
    Reinforce("none", entropy=0.3),
    TrajectoryBalance(nll=0.2),
]


@pytest.mark.parametrize("objective", COMPARING + OTHERS, ids=str)
def test_what_is_masked_may_be_anything(objective):
    world.check_masks(objective)


@pytest.mark.parametrize("objective", COMPARING + OTHERS, ids=str)
def test_the_order_of_rollouts_means_nothing(objective):
    world.check_permutation(objective)


@pytest.mark.parametrize("objective", COMPARING, ids=str)
def test_a_group_that_compares_nothing_teaches_nothing(objective):
    world.check_idle_groups(objective)


def test_refuses_groups_of_one():
    alone = jax.tree.map(jnp.asarray, world.draw(rollouts=1))
    for objective in (MINIONEREC, ECPO(), GRPOSR(), Reinforce("mean"), TrajectoryBalance()):
        with pytest.raises(ValueError, match="a group of 1 has nothing to be compared with"):
            jax.eval_shape(objective, alone)
    jax.eval_shape(GBPO(), alone)
    jax.eval_shape(Reinforce("batch"), alone)


def test_nothing_valid_counts_nothing():
    group = world.draw()
    group.valid[:] = False
    for objective in (GRPO(), GBPO(), GRPOSR(), TrajectoryBalance()):
        (total, weight, metrics), slope = world.answer(objective, group)
        assert float(total) == float(weight) == 0
        np.testing.assert_array_equal(slope, 0)
        assert all(float(value) == 0 for value, _ in metrics.values())


def test_the_common_metrics():
    group = world.draw(4)
    group.valid[0, 2:] = group.valid[1] = group.valid[2, 1:] = group.valid[3, 0] = False
    group.rewards[3] = 0.25
    _, _, metrics = world.answer(GRPO(kl=0.0), group)[0]
    rows = [(group.rewards[b][keep], keep, b) for b, keep in enumerate(group.valid) if keep.any()]
    valid = group.valid
    expected = {
        "reward": (group.rewards[valid].sum(), 7),
        "reward_std": (sum(r.std() for r, *_ in rows), 2),
        "zero_advantage_groups": (2, 3),
        "valid_rollouts": (7, 20),
        "log_prob": (group.log_probs[valid].sum(), 7),
        "ratio": (np.exp(group.log_probs - group.behaviour)[valid].sum(), 21),
    }
    d = (group.reference - group.log_probs)[valid].astype(np.float64)
    expected["kl"] = (np.sum(np.exp(d) - d - 1), 21)
    sizes = [np.abs(r - r.mean()) / (r.std(ddof=1) + 1e-4) for r, *_ in rows if len(r) > 1]
    expected["advantage_size"] = (sum(size.sum() for size in sizes), 7)
    for name, pair in expected.items():
        np.testing.assert_allclose(metrics[name], pair, rtol=1e-4, err_msg=name)


def test_metrics_carry_no_gradient():
    group = jax.tree.map(jnp.asarray, world.draw(5))
    for objective in (GRPO(), ECPO(), GBPO(), GRPOSR(), Reinforce(), TrajectoryBalance()):

        def reported(log_probs, objective=objective):
            metrics = objective(group._replace(log_probs=log_probs))[2]
            return sum(value for pair in metrics.values() for value in pair)

        np.testing.assert_array_equal(jax.grad(reported)(group.log_probs), 0)


def test_only_the_log_probabilities_have_a_slope():
    floats = jax.tree.map(jnp.asarray, world.draw(6))
    for objective in (GRPO(kl=0.1), GBPO(), TrajectoryBalance()):

        def loss(parts, objective=objective):
            behaviour, reference, rewards = parts
            return objective(
                floats._replace(behaviour=behaviour, reference=reference, rewards=rewards)
            )[0]

        for slope in jax.grad(loss)(floats[1:4]):
            np.testing.assert_array_equal(slope, 0)


def test_half_precision_is_widened():
    group = jax.tree.map(jnp.asarray, world.draw())
    half = masked(group._replace(log_probs=jnp.asarray(group.log_probs, jnp.bfloat16)))
    assert half.log_probs.dtype == jnp.float32
    with jax.enable_x64(True):
        wide = masked(group._replace(log_probs=group.log_probs.astype(jnp.float64)))
        assert wide.log_probs.dtype == jnp.float64


def test_an_enormous_ratio_is_finite_and_harmless_without_advantage():
    ours, old = jnp.asarray([0.0, -1.0]), jnp.asarray([-1e4, -2.0])
    np.testing.assert_allclose(ratios(ours, old), [np.exp(40.0), np.e], rtol=1e-5)
    assert float(ratios(ours, old)[0] * 0.0) == 0.0
    np.testing.assert_allclose(
        jax.jacobian(ratios)(ours, ours), np.eye(2), err_msg="pi / sg(pi) has the slope of log pi"
    )


def test_refuses_arrays_that_do_not_fit():
    group = world.draw()
    wrong = [
        group._replace(rewards=group.rewards[:, :4]),
        group._replace(reference=group.reference[..., :2]),
        group._replace(valid=group.valid[0]),
        ScoredGroup(*(x[0] for x in group)),
    ]
    for each in wrong:
        with pytest.raises(ValueError, match=r"needs log_probs, behaviour and reference of one"):
            masked(each)


def test_examples_in_the_documentation():
    result = doctest.testmod(rollout_groups)
    assert result.attempted >= 4
    assert result.failed == 0
