"""Every way to make pairs, against its definition in plain numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from table_reference import CODES, GIVEN, ITEMS, QUICK, assert_shares, batch_of

from jaxrec.alignment.pairs import (
    BestAgainstAll,
    BestAndWorst,
    Maker,
    Pairs,
    PrefixRejected,
    RandomRejected,
    SelfPlay,
    argbest,
)
from jaxrec.alignment.rewarding import Rewarded

ROWS = 600
BATCH = batch_of(ROWS)
TARGET = np.asarray(BATCH.target)
NONE = jnp.zeros(())


def nothing(*_):
    raise AssertionError("these pairs need no rollouts")


@functools.cache
def drawn(pairs):
    """Pairs that need no rollouts."""

    def run(given, batch, key):
        return pairs(Maker(given, nothing, nothing), batch, key)

    return jax.device_get(jax.jit(run, compiler_options=QUICK)(GIVEN, BATCH, jax.random.key(3)))


def test_random_rejected_are_even_over_all_items():
    paired = drawn(RandomRejected(5))
    np.testing.assert_array_equal(paired.chosen, TARGET)
    np.testing.assert_array_equal(paired.gap, np.ones((ROWS, 5)))
    shares = np.bincount(paired.rejected.ravel(), minlength=ITEMS) / (5 * ROWS)
    assert_shares(shares, np.full(ITEMS, 1 / ITEMS), 5 * ROWS)
    # Of columns that know nothing of each other.
    assert np.mean(paired.rejected[:, 0] == paired.rejected[:, 1]) < 3 / ITEMS


@pytest.mark.parametrize("shared", [0, 1, 2])
def test_prefix_rejected_are_even_over_the_items_below_the_prefix(shared):
    """Whatever the target: the last prefix of a level too, and several items of one ID."""
    paired = drawn(PrefixRejected(shared, 20))
    np.testing.assert_array_equal(paired.chosen, TARGET)
    np.testing.assert_array_equal(paired.gap, np.ones((ROWS, 20)))
    prefixes = {tuple(codes) for codes in CODES[TARGET, :shared]}
    assert prefixes == {tuple(codes) for codes in CODES[:, :shared]}
    for prefix in prefixes:
        below = (CODES[:, :shared] == prefix).all(axis=1)
        asked = paired.rejected[below[TARGET]].ravel()
        shares = np.bincount(asked, minlength=ITEMS) / len(asked)
        assert_shares(shares, below / below.sum(), len(asked))
        assert below[asked].all()


def test_a_whole_id_leaves_no_other_item():
    with pytest.raises(ValueError, match=r"shared=3 leaves no other item .* use 0 \.\. 2"):
        PrefixRejected(3)(Maker(GIVEN, nothing, nothing), BATCH, jax.random.key(0))


@pytest.mark.parametrize("component", [RandomRejected, PrefixRejected])
def test_impossible_numbers(component):
    with pytest.raises(ValueError, match=f"{component.__name__}: count=0 makes no pair"):
        component(count=0)
    with pytest.raises(ValueError, match="shared=-1 must not be negative"):
        PrefixRejected(shared=-1)


WRITTEN = np.array([[4, 1, 4, 9], [2, 2, 3, 5], [7, -1, 8, 6], [-1, -1, -1, -1], [3, 1, 2, 0]])
REWARDS = np.array([[0.5, -1, 0.5, 0], [2, 2, 2, 2], [-3, 0, -1, -3], [0] * 4, [1, 0, 1, 0]])
VALID = WRITTEN >= 0
VALID[4, 3] = False  # names an item, and its reward is not finite


def maker(log=None):
    def write(key):
        if log is not None:
            log["write"] = key
        return jnp.asarray(WRITTEN, jnp.int32)

    def reward(items, key):
        if log is not None:
            log["reward"] = key
        np.testing.assert_array_equal(items, WRITTEN)
        valid = jnp.asarray(VALID)
        return Rewarded(jnp.asarray(REWARDS, jnp.float32), valid, valid, (NONE, NONE))

    return Maker(GIVEN, write, reward)


def five():
    return batch_of(5)


def test_self_play_rejects_what_the_policy_writes():
    paired = SelfPlay()(maker(), five(), jax.random.key(0))
    np.testing.assert_array_equal(paired.chosen, five().target)
    np.testing.assert_array_equal(paired.rejected, WRITTEN)
    np.testing.assert_array_equal(paired.gap, np.ones((5, 4)))


def test_best_and_worst_by_definition():
    """The first of equals on both sides; no pair where all rewards are equal, or nothing counts."""
    paired = BestAndWorst()(maker(), five(), jax.random.key(0))
    chosen, rejected, gap = [], [], []
    for items, rewards, valid in zip(WRITTEN, REWARDS, VALID):
        places = np.flatnonzero(valid)
        best = max(places, key=lambda place: (rewards[place], -place), default=None)
        worst = min(places, key=lambda place: (rewards[place], place), default=None)
        pair = len(places) > 0 and rewards[best] > rewards[worst]
        chosen.append(items[best] if pair else -1)
        rejected.append([items[worst] if pair else -1])
        gap.append([rewards[best] - rewards[worst] if pair else 0])
    assert chosen == [4, -1, 8, -1, 3]
    assert paired.chosen.tolist() == chosen
    assert paired.rejected.tolist() == rejected
    np.testing.assert_allclose(paired.gap, gap)


def test_best_against_all_by_definition():
    paired = BestAgainstAll()(maker(), five(), jax.random.key(0))
    chosen, rejected, gap = [], [], []
    for items, rewards, valid in zip(WRITTEN, REWARDS, VALID):
        top = max(rewards[valid], default=0.0)
        less = valid & (rewards < top)
        first = next((item for item, r, v in zip(items, rewards, valid) if v and r == top), -1)
        chosen.append(first if less.any() else -1)
        rejected.append(np.where(less, items, -1))
        gap.append(np.where(less, top - rewards, 0))
    assert chosen == [4, -1, 8, -1, 3]
    assert paired.chosen.tolist() == chosen
    np.testing.assert_array_equal(paired.rejected, rejected)
    np.testing.assert_allclose(paired.gap, gap)


@pytest.mark.parametrize("pairs", [BestAndWorst(), BestAgainstAll()])
def test_writing_and_rewarding_draw_apart(pairs):
    log = {}
    pairs(maker(log), five(), jax.random.key(7))
    keys = [jax.random.key_data(each).tolist() for each in log.values()]
    assert keys[0] != keys[1]
    assert jax.random.key_data(jax.random.key(7)).tolist() not in keys


def test_argbest_takes_the_first_valid_of_equals():
    values = jnp.array([[3.0, 5.0, 5.0, 9.0], [-2.0, -1.0, -1.0, 0.0]])
    valid = jnp.array([[True, True, True, False], [True, False, True, False]])
    assert argbest(values, valid).tolist() == [1, 2]


@pytest.mark.parametrize(
    "pairs", [RandomRejected(), PrefixRejected(), SelfPlay(), BestAndWorst(), BestAgainstAll()]
)
def test_all_are_pairs(pairs):
    assert isinstance(pairs, Pairs)
    assert isinstance(hash(pairs), int)
