"""The legality reward: how many it draws, how evenly, and what it does not look at."""

import jax
import numpy as np
import pytest

from jaxrec.objectives.rewards import Legality
from jaxrec.objectives.rewards.legality import draw_places

call = jax.jit(lambda reward, drawn, key=None: reward(drawn, key), static_argnums=0)


def test_exactly_so_many_are_drawn_and_rewarded_if_legal(groups_like):
    drawn = groups_like(rows=50, places=20)
    key = jax.random.key(1)
    counts = Legality(5).counts(drawn, key)
    np.testing.assert_array_equal(counts.sum(axis=-1), 5)
    np.testing.assert_array_equal(call(Legality(5), drawn, key), counts & drawn.valid)
    # Illegal ones are among those that count, with 0.
    assert np.sum(counts & ~drawn.valid) > 0
    assert not np.array_equal(counts, Legality(5).counts(drawn, jax.random.key(2)))


def test_the_order_of_likelihoods_is_not_looked_at(groups_like):
    drawn, key = groups_like(rows=8, places=12), jax.random.key(5)
    turned = drawn._replace(log_probs=-drawn.log_probs)
    np.testing.assert_array_equal(call(Legality(4), drawn, key), call(Legality(4), turned, key))
    ranks = np.argsort(np.argsort(-np.asarray(drawn.log_probs)))
    likeliest = ranks[np.asarray(Legality(4).counts(drawn, key))].reshape(8, 4)
    assert np.any(np.sort(likeliest, axis=-1) != np.arange(4))


def test_every_place_is_drawn_as_often():
    counts = jax.jit(draw_places, static_argnums=(1, 2, 3))(jax.random.key(0), 20_000, 8, 3)
    np.testing.assert_array_equal(counts.sum(axis=-1), 3)
    # Six standard deviations of a binomial share.
    spread = 6 * np.sqrt(3 / 8 * 5 / 8 / 20_000)
    np.testing.assert_allclose(counts.mean(axis=0), 3 / 8, atol=spread)
    together = np.mean(np.asarray(counts[:, 0] & counts[:, 1]))
    np.testing.assert_allclose(together, 3 / 8 * 2 / 7, atol=spread)


def test_a_draw_of_all_is_legality_itself(drawn):
    np.testing.assert_array_equal(call(Legality(6), drawn, jax.random.key(0)), drawn.valid)


def test_a_small_group_and_a_missing_key_are_refused(drawn):
    with pytest.raises(ValueError, match="group of 6"):
        call(Legality(7), drawn, jax.random.key(0))
    with pytest.raises(ValueError, match="needs a key"):
        call(Legality(2), drawn)
