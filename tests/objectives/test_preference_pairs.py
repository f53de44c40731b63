"""Scored pairs: their logits and metrics by hand, and what every objective owes to them."""

import functools

import jax
import numpy as np
import pytest

from jaxrec.objectives.dpo import DPO
from jaxrec.objectives.preference_pairs import ScoredPairs, counted, pair_logits, pair_metrics
from jaxrec.objectives.rose_po import RosePO
from jaxrec.objectives.s_dpo import SDPO
from jaxrec.objectives.weighted_dpo import ListDPO, WeightedDPO

OBJECTIVES = {
    "dpo": DPO(0.3),
    "ipo": DPO(0.3, loss="ipo"),
    "hinge": DPO(0.3, loss="hinge"),
    "s_dpo": SDPO(0.3),
    "rose_po": RosePO(0.3),
    "inverse_gap": WeightedDPO(0.3, "inverse_gap"),
    "margin": WeightedDPO(0.3, "margin", margin=0.5),
    "list": ListDPO(0.3),
    "clipped": ListDPO(0.3, form="clipped", margin=0.1),
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


def random_pairs(rows=5, rejected=4, seed=0, dtype=np.float32) -> ScoredPairs:
    """Pairs that all count, with gaps on both sides of one half; numpy, which compiles nothing."""
    random = np.random.default_rng(seed)

    def draw(low, high, *shape):
        return random.uniform(low, high, shape).astype(dtype)

    return ScoredPairs(
        chosen=draw(-9, -1, rows),
        rejected=draw(-9, -1, rows, rejected),
        reference_chosen=draw(-9, -1, rows),
        reference_rejected=draw(-9, -1, rows, rejected),
        valid=np.ones((rows, rejected), bool),
        equal=np.zeros((rows, rejected), bool),
        gap=draw(0.2, 2, rows, rejected),
        smoothing=draw(0, 0.5, rows),
    )


@functools.cache
def compiled(objective):
    """The objective and the slopes of its sum, compiled once for all tests."""

    def loss(floats, masks):
        total, *rest = objective(ScoredPairs(**floats, **masks))
        return total, rest

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def with_slopes(objective, pairs: ScoredPairs):
    """Sum, weight, metrics, and the slopes of the sum as pairs; None for what has no slope."""
    arrays = {name: each for name, each in pairs._asdict().items() if each is not None}
    masks = {name: arrays.pop(name) for name in ("valid", "equal")}
    result = jax.device_get(compiled(objective)(arrays, masks))
    (total, (weight, metrics)), slopes = result
    return total, weight, metrics, ScoredPairs(**slopes, valid=None)


def test_the_logit_is_the_difference_of_what_both_sides_gained():
    pairs = random_pairs(2, 3)
    logits = jax.jit(pair_logits, static_argnums=1)(pairs, 0.3)
    chosen, rejected, reference_chosen, reference_rejected = pairs[:4]
    for i, j in np.ndindex(2, 3):
        gained = chosen[i] - reference_chosen[i]
        expected = 0.3 * (gained - (rejected[i, j] - reference_rejected[i, j]))
        assert float(logits[i, j]) == pytest.approx(expected, abs=1e-6)


def test_a_pair_counts_if_it_is_valid_and_has_two_sides():
    pairs = random_pairs(1, 4)._replace(valid=np.array([[True, True, False, False]]))
    count, logits = jax.jit(counted), jax.jit(pair_logits, static_argnums=1)
    assert count(pairs._replace(equal=None)).tolist() == [[True, True, False, False]]
    pairs = pairs._replace(equal=np.array([[True, False, True, False]]))
    assert count(pairs).tolist() == [[False, True, False, False]]
    assert (logits(pairs, 1.0) != 0).tolist() == [[False, True, False, False]]


def test_metrics_by_hand():
    pairs = ScoredPairs(
        chosen=np.array([-2.0, -3.0, np.nan]),
        rejected=np.array([[-4.0, -1.0, -2.0], [-5.0, np.inf, -6.0], [-7.0, -8.0, -9.0]]),
        reference_chosen=np.array([-3.0, -3.0, 0.0]),
        reference_rejected=np.array([[-4.0, -3.0, -3.0], [-4.0, 0.0, -7.0], [0.0, 0.0, 0.0]]),
        valid=np.array([[True, True, True], [True, False, True], [False, False, False]]),
        equal=np.array([[False, False, True], [False, False, False], [False, False, True]]),
    )
    # Logits at beta 2: 2 (1 - 0), 2 (1 - 2); 2 (0 + 1), 2 (0 - 1).
    metrics = jax.jit(pair_metrics, static_argnums=1)(pairs, 2.0)
    assert {name: [float(each) for each in value] for name, value in metrics.items()} == {
        "accuracy": [2, 4],
        "margin": [2 - 2 + 2 - 2, 4],
        "logp_chosen": [-5, 2],
        "logp_rejected": [-4 - 1 - 5 - 6, 4],
        "pairs_equal": [1, 5],
    }


@every_objective
def test_no_slope_reaches_the_reference_the_reward_or_the_oracle(objective):
    slopes = with_slopes(objective, random_pairs())[3]
    for frozen in ("reference_chosen", "reference_rejected", "gap", "smoothing"):
        assert not np.any(getattr(slopes, frozen)), frozen
    assert np.any(slopes.chosen)


@every_objective
def test_pairs_that_do_not_count_may_hold_anything(objective):
    """Masked and equal pairs, and rows with none, against an input that never held them."""
    pairs = random_pairs()
    counts = (np.arange(5) < 3)[:, None] & (np.arange(4) < 2)
    small = jax.tree.map(lambda x: x[:3] if x.ndim == 1 else x[:3, :2], pairs)
    total, weight, metrics, slopes = with_slopes(objective, small)
    assert float(total) > 0
    for rubbish in (np.nan, np.inf, -1e30):
        filled = jax.tree.map(
            lambda x, rubbish=rubbish: np.where(
                counts[:, 0] if x.ndim == 1 else counts, x, rubbish
            ),
            pairs._replace(valid=None, equal=None),
        )
        # The third item of every row is valid, and the chosen one again.
        filled = filled._replace(valid=counts | (np.arange(4) == 2), equal=~counts)
        masked = with_slopes(objective, filled)
        np.testing.assert_allclose(masked[:2], (total, weight), rtol=1e-6)
        expected = np.pad(slopes.chosen, (0, 2)), np.pad(slopes.rejected, ((0, 2), (0, 2)))
        np.testing.assert_allclose(masked[3].chosen, expected[0], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(masked[3].rejected, expected[1], rtol=1e-5, atol=1e-7)
        assert not np.any(masked[3].chosen[3:])
        assert not np.any(np.where(counts, 0, masked[3].rejected))
        assert [float(each) for each in masked[2].pop("pairs_equal")] == [5, 11]
        for name, value in masked[2].items():
            wanted = (0, 6) if name == "pairs_unordered" else metrics[name]
            np.testing.assert_allclose(value, wanted, rtol=1e-5, err_msg=name)


@every_objective
def test_nothing_to_learn_from_costs_nothing(objective):
    pairs = random_pairs()._replace(valid=np.zeros((5, 4), bool))
    total, weight, metrics, slopes = with_slopes(objective, pairs)
    assert (float(total), float(weight)) == (0, 0)
    assert not any(np.any(slope) for slope in jax.tree.leaves(slopes))
    assert all(not np.any(value) for value in metrics.values())


@every_objective
def test_the_order_of_rejected_items_and_of_rows_does_not_matter(objective):
    pairs = random_pairs()._replace(valid=np.arange(20).reshape(5, 4) % 3 > 0)
    rows, columns = np.array([2, 0, 1, 4, 3]), np.array([3, 1, 0, 2])
    moved = ScoredPairs(*(x[rows][:, columns] if x.ndim == 2 else x[rows] for x in pairs))
    total, weight, metrics, slopes = with_slopes(objective, pairs)
    found = with_slopes(objective, moved)
    np.testing.assert_allclose(found[:2], (total, weight), rtol=1e-6)
    of_rejected = slopes.rejected[rows][:, columns]
    np.testing.assert_allclose(found[3].chosen, slopes.chosen[rows], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found[3].rejected, of_rejected, rtol=1e-5, atol=1e-7)
    for name, value in found[2].items():
        np.testing.assert_allclose(value, metrics[name], rtol=1e-5, err_msg=name)


@every_objective
def test_slopes_are_those_of_differences(objective):
    """Central differences in double precision, of every log-probability."""
    with jax.enable_x64(True):
        pairs = random_pairs(3, 2, dtype=np.float64)
        pairs.valid[0, 1] = False
        _, _, _, slopes = with_slopes(objective, pairs)
        assert slopes.chosen.dtype == np.float64
        for name in ("chosen", "rejected"):
            values, found = getattr(pairs, name), getattr(slopes, name)
            for place in np.ndindex(*values.shape):
                step = np.zeros_like(values)
                step[place] = 1e-5
                sides = [
                    with_slopes(objective, pairs._replace(**{name: values + side}))[0]
                    for side in (step, -step)
                ]
                difference = float(sides[0] - sides[1]) / 2e-5
                assert float(found[place]) == pytest.approx(difference, abs=1e-7), (name, place)


@every_objective
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_huge_logits_are_finite(objective, size):
    pairs = random_pairs()._replace(chosen=np.full(5, size))
    total, _, metrics, slopes = with_slopes(objective, pairs)
    assert all(np.isfinite(each).all() for each in jax.tree.leaves((total, metrics, slopes)))
    assert float(metrics["accuracy"][0]) == (20 if size > 0 else 0)


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("component", [DPO, SDPO, RosePO, WeightedDPO, ListDPO])
def test_a_beta_that_is_not_positive_is_refused(component, beta):
    with pytest.raises(ValueError, match=f"{component.__name__} needs beta > 0, got"):
        component(beta=beta)
