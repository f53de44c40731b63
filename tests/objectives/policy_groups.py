"""Groups of rollouts for the tests, and what has to hold for every policy objective."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.objectives.rollout_groups import ScoredGroup


def draw(seed=0, rows=4, rollouts=5, levels=3, apart=0.4):
    """A random group whose policies differ, everything valid, as numpy arrays of float32."""
    random = np.random.default_rng(seed)
    shape = (rows, rollouts, levels)
    log_probs = np.log(random.uniform(0.05, 0.7, shape))
    behaviour, reference = (
        np.minimum(log_probs + apart * random.normal(size=shape), -0.01) for _ in range(2)
    )
    return ScoredGroup(
        *(x.astype(np.float32) for x in (log_probs, behaviour, reference)),
        random.normal(size=(rows, rollouts)).astype(np.float32),
        np.ones((rows, rollouts), bool),
        random.uniform(size=(rows, rollouts)) < 0.4,
    )


def pairs(good, bad):
    """Four groups of a good item of reward 1 and a bad one of reward 0, of the shape of `draw` so
    that nothing is compiled anew: all the probability is in the first code, the rest is masked.

    Args:
        good: (probability, old probability) of the good item of each of four groups.
        bad: the same of the bad ones.
    """
    log_probs, behaviour = np.zeros((2, 4, 5, 3), np.float32)
    for place, chances in enumerate((good, bad)):
        log_probs[:, place, 0], behaviour[:, place, 0] = np.log(np.transpose(chances))
    rewards = np.tile(np.array([1.0, 0, 0, 0, 0], np.float32), (4, 1))
    valid = np.tile(np.arange(5) < 2, (4, 1))
    return ScoredGroup(log_probs, behaviour, behaviour, rewards, valid, ~valid)


def answer(objective, group):
    """`(sum, weight, metrics)` of a group, and the slope of the sum in its log-probabilities.

    Not compiled: objectives share their operations, and programs of their own would take longer.
    """

    group = jax.tree.map(jnp.asarray, group)

    def loss(log_probs):
        total, *rest = objective(group._replace(log_probs=log_probs))
        return total, (total, *rest)

    slope, found = jax.grad(loss, has_aux=True)(group.log_probs)
    return found, slope


def check_against(objective, slow, group, rtol=2e-4):
    """Sum, weight and slope are those of a slow loss.

    Args:
        objective: the component.
        slow: `(live [g l], row) -> losses [g]` in float64, for one group; what no gradient flows
            through is read from the row (a ScoredGroup of one group), the rest from `live`.
        group: of which only valid rollouts are asked.
        rtol: of the comparison.
    """
    (total, weight, _), slope = answer(objective, group)
    wide = [np.asarray(x, np.float64) if x.dtype != bool else np.asarray(x) for x in group]

    def row_loss(row, live):
        return float(np.mean(slow(live, row)))

    expected, number = 0.0, 0
    for b in range(len(wide[0])):
        keep = wide[4][b]
        if not keep.any():
            np.testing.assert_array_equal(slope[b], 0)
            continue
        row = ScoredGroup(*(x[b][keep] for x in wide))
        expected, number = expected + row_loss(row, row.log_probs), number + 1
        differences = np.zeros_like(row.log_probs)
        for index in np.ndindex(differences.shape):
            step = np.zeros_like(differences)
            step[index] = 1e-5
            up, down = (row_loss(row, row.log_probs + s * step) for s in (1, -1))
            differences[index] = (up - down) / 2e-5
        np.testing.assert_allclose(np.asarray(slope)[b][keep], differences, rtol=rtol, atol=2e-5)
    np.testing.assert_allclose(total, expected, rtol=rtol, atol=1e-5)
    assert float(weight) == number


def normalised(row, ddof=1, epsilon=1e-4, scale=True, rewards=None):
    """Advantages of one group whose rollouts are all valid."""
    rewards = row.rewards if rewards is None else rewards
    apart = rewards - rewards.mean()
    if len(rewards) < 2:
        return 0 * apart
    return apart / (rewards.std(ddof=ddof) + epsilon) if scale else apart


def same(ours, theirs, rtol=1e-5, atol=1e-5):
    """Two answers are equal."""
    assert set(ours[2]) == set(theirs[2])
    np.testing.assert_allclose(ours[:2], theirs[:2], rtol=rtol, atol=atol)
    for name in ours[2]:
        np.testing.assert_allclose(
            ours[2][name], theirs[2][name], rtol=rtol, atol=atol, err_msg=name
        )


def check_masks(objective):
    """What is masked counts the same, which is nothing, whatever rubbish stands there; that it is
    left out is what `check_against` says."""
    group = draw(1)
    valid = np.array([True, True, False, True])[:, None] & np.array([1, 0, 1, 1, 0], bool)
    rubbish = np.random.default_rng(0).choice([np.nan, np.inf, -np.inf, 1e30], (4, 5, 3))
    filled = [np.where(valid[..., None], x, rubbish).astype(np.float32) for x in group[:3]]
    rewards = np.where(valid, group.rewards, rubbish[..., 0]).astype(np.float32)
    ours, slope = answer(objective, ScoredGroup(*filled, rewards, valid, group.positive))
    theirs, expected = answer(objective, group._replace(valid=valid))
    same(ours, theirs)
    np.testing.assert_allclose(slope, expected, rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(slope)[~valid], 0)
    assert np.abs(expected).max() > 1e-3


def check_permutation(objective):
    """The order of rollouts and of groups means nothing."""
    group = draw(2)
    group.valid[0, 1] = group.valid[2, 2:] = False
    order, rows = np.array([3, 0, 4, 2, 1]), np.array([2, 0, 3, 1])
    ours, slope = answer(objective, group)
    moved = jax.tree.map(lambda x: x[rows][:, order], group)
    theirs, expected = answer(objective, moved)
    same(ours, theirs)
    np.testing.assert_allclose(slope[rows][:, order], expected, rtol=1e-4, atol=1e-6)


def check_idle_groups(objective):
    """Groups of equal rewards, and of one valid rollout, have no slope and are counted."""
    group = draw(3)
    group.rewards[0] = np.float32(0.1)
    group.valid[1, 1:] = False
    group.positive[:] = False
    (_, weight, metrics), slope = answer(objective, group)
    np.testing.assert_array_equal(slope[:2], 0)
    assert np.abs(slope[2:]).max() > 0
    assert float(weight) == 4
    assert np.array(metrics["zero_advantage_groups"]).tolist() == [2, 4]
