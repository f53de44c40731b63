"""Samples against the distribution they are drawn from, with and without replacement."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_toys import QUICK, TableModel, decode, example, reference_scores

from jaxrec.decoding import (
    BeamSearch,
    Filters,
    Sampling,
    build_catalogue,
    sample_items,
    stochastic_beams,
)
from jaxrec.decoding.children import Children
from jaxrec.decoding.sampling import level_log_probs
from jaxrec.types import TokenSpace

CODES = np.array([[0, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0], [2, 2, 2], [2, 0, 1]])
SPACE = TokenSpace((3, 3, 3))
MODEL = TableModel(SPACE, 1.5)
CATALOGUE = build_catalogue(CODES, SPACE)
ROW = 17
ROWS = 4096
"""Rows of one batch, all of the same history: as many draws."""


def draw(how, count, rows=ROWS, filters=None, catalogue=CATALOGUE, seed=0, **shaping):
    def run(cache, key):
        functions = MODEL.functions(cache)
        return how(functions, catalogue, filters, key=key, count=count, **shaping)

    program = jax.jit(run, compiler_options=QUICK)
    return program(MODEL.prefill(np.full(rows, ROW)), jax.random.key(seed))


def exact(live=(0, 1, 2, 3, 4, 5)):
    """Probability of every item under the trie's distribution."""
    scores = reference_scores(MODEL, ROW, CODES, set(live), "before_softmax")
    return np.array([np.exp(scores[i]) if i in scores else 0.0 for i in range(len(CODES))])


def shares(items):
    return np.bincount(np.asarray(items).ravel(), minlength=len(CODES)) / np.asarray(items).size


def assert_shares(found, expected, draws):
    """Within four and a half standard errors: a wrong distribution of any size here is far out."""
    error = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(found - expected) <= 4.5 * error + 1e-9).all(), (found, expected)


def test_independent_draws_follow_the_distribution():
    sampled = draw(sample_items, 4)
    assert bool(sampled.valid.all())
    assert_shares(shares(sampled.items), exact(), 4 * ROWS)
    np.testing.assert_array_equal(CODES[np.asarray(sampled.items)], sampled.codes)
    logs = np.log(exact())[np.asarray(sampled.items)]
    np.testing.assert_allclose(sampled.log_probs.sum(-1), logs, atol=1e-5)
    np.testing.assert_allclose(sampled.keys, logs, atol=1e-5)
    # Draws of one row know nothing of each other.
    pairs = np.asarray(sampled.items)[:, :2]
    both = (pairs == np.argmax(exact())).all(axis=1).mean()
    assert_shares(np.array([both]), np.array([exact().max() ** 2]), ROWS)


def test_filtered_draws_renormalise_over_what_is_left():
    filters = Filters(
        allowed=jnp.asarray(np.arange(6) != 3),
        denied=jnp.tile(jnp.array([1, -1], jnp.int32), (ROWS, 1)),
    )
    for listed in (None, jnp.tile(jnp.array([0, 2, 4, 5], jnp.int32), (ROWS, 1))):
        sampled = draw(sample_items, 4, filters=Filters(filters.allowed, filters.denied, listed))
        assert_shares(shares(sampled.items), exact({0, 2, 4, 5}), 4 * ROWS)
        logs = np.log(exact({0, 2, 4, 5})[np.asarray(sampled.items)])
        np.testing.assert_allclose(sampled.log_probs.sum(-1), logs, atol=1e-5)


def test_draws_without_replacement_follow_sequential_drawing():
    """Chance of every ordered pair: p_i p_j / (1 - p_i)."""
    sampled = draw(stochastic_beams, 2, rows=4 * ROWS)
    pairs = np.asarray(sampled.items)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    p = exact()
    for i, j in itertools.permutations(range(6), 2):
        found = ((pairs == (i, j)).all(axis=1)).mean()
        expected = p[i] * p[j] / (1 - p[i])
        assert_shares(np.array([found]), np.array([expected]), len(pairs))
    np.testing.assert_allclose(sampled.log_probs.sum(-1), np.log(p)[pairs], atol=1e-5)
    assert (np.diff(sampled.keys) <= 0).all()
    # The largest key of all items is a standard Gumbel variable, whatever the probabilities.
    mean, variance = np.mean(sampled.keys[:, 0]), np.var(sampled.keys[:, 0])
    assert mean == pytest.approx(np.euler_gamma, abs=4.5 * np.sqrt(np.pi**2 / 6 / len(pairs)))
    assert variance == pytest.approx(np.pi**2 / 6, rel=0.08)


def test_as_many_as_there_are_and_more():
    for count in (6, 9):
        sampled = draw(stochastic_beams, count, rows=50)
        assert (np.sort(sampled.items[:, :6], axis=1) == np.arange(6)).all()
        assert not sampled.valid[:, 6:].any()
        assert (sampled.items[:, 6:] == -1).all()
        assert (sampled.keys[:, 6:] == -jnp.inf).all()
    nothing = draw(stochastic_beams, 3, rows=2, filters=Filters(jnp.zeros(6, bool)))
    alike = draw(sample_items, 3, rows=2, filters=Filters(jnp.zeros(6, bool)))
    for sampled in (nothing, alike):
        assert not sampled.valid.any()
        assert (sampled.log_probs == 0).all()
        assert (sampled.items == -1).all()


def test_members_of_a_group_come_with_even_chance():
    codes = np.array([[0, 1, 1], [0, 1, 1], [1, 1, 1], [0, 1, 1]])
    catalogue = build_catalogue(codes, SPACE)
    allowed = jnp.array([True, False, True, True])
    sampled = draw(sample_items, 4, catalogue=catalogue, filters=Filters(allowed))
    found = np.bincount(np.asarray(sampled.items).ravel(), minlength=4) / (4 * ROWS)
    leaf = np.exp(reference_scores(MODEL, ROW, codes, {0, 2, 3}, "before_softmax")[2])
    expected = np.array([(1 - leaf) / 2, 0, leaf, (1 - leaf) / 2])
    assert_shares(found, expected, 4 * ROWS)


def test_equal_keys_draw_equally():
    for how in (sample_items, stochastic_beams):
        one, again, other = (draw(how, 3, rows=64, seed=seed) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one.items, again.items)
        assert (np.asarray(one.items) != np.asarray(other.items)).any()


def test_temperature_and_cuts_by_hand():
    children = Children(jnp.array([[[True, True, True, False]]]), None)
    logits = jnp.log(jnp.array([[[0.1, 0.3, 0.2, 0.4]]]))

    def probabilities(**shaping):
        return np.exp(level_log_probs(logits, children, **shaping))[0, 0]

    np.testing.assert_allclose(probabilities(), [1 / 6, 1 / 2, 1 / 3, 0], atol=1e-6)
    squares = np.array([0.01, 0.09, 0.04, 0])
    np.testing.assert_allclose(probabilities(temperature=0.5), squares / squares.sum(), atol=1e-6)
    np.testing.assert_allclose(probabilities(top_k=2), [0, 0.6, 0.4, 0], atol=1e-6)
    np.testing.assert_allclose(probabilities(top_k=1), [0, 1, 0, 0], atol=1e-6)
    # The first code alone reaches a half; a little more needs the second.
    np.testing.assert_allclose(probabilities(top_p=0.49), [0, 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(probabilities(top_p=0.51), [0, 0.6, 0.4, 0], atol=1e-6)
    np.testing.assert_allclose(probabilities(top_p=0.51, top_k=1), [0, 1, 0, 0], atol=1e-6)
    even = level_log_probs(jnp.zeros((1, 1, 4)), children, top_k=2)
    np.testing.assert_allclose(np.exp(even)[0, 0], [0.5, 0.5, 0, 0], atol=1e-6)


def test_shaped_draws_report_the_shaped_distribution():
    """The log-probability is that of the draw: frequencies agree with it."""
    for shaping in ({"temperature": 0.6}, {"top_k": 2}, {"top_p": 0.6, "temperature": 1.3}):
        sampled = draw(sample_items, 4, **shaping)
        items, logs = np.asarray(sampled.items), np.asarray(sampled.log_probs).sum(-1)
        said = np.zeros(6)
        said[items.ravel()] = np.exp(logs.ravel())
        assert said.sum() == pytest.approx(1, abs=1e-5)
        assert_shares(shares(items), said, items.size)


def test_a_cold_sample_is_greedy_and_a_list_names_each_item_once():
    catalogue, codes, model = example(items=30)
    leaves = len(np.unique(codes, axis=0))

    def answer(functions, catalogue, _):
        key = jax.random.key(0)
        return (
            Sampling(leaves, temperature=1e-3)(functions, catalogue, key=key),
            BeamSearch(1, 1, "before_softmax")(functions, catalogue),
            Sampling(3, top_k=1)(functions, catalogue, key=key),
        )

    cold, best, only = decode(answer, model, (3, 17), catalogue)
    for row in range(2):
        assert (codes[cold.items[row, 0]] == codes[best.items[row, 0]]).all()
        assert len(np.unique(codes[np.asarray(cold.items[row])], axis=0)) == leaves
    assert cold.valid.all()
    assert only.valid.tolist() == [[True, False, False]] * 2


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"count": 0}, "count=0"),
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"top_p": 0.0}, "top_p in"),
        ({"top_k": -1}, "top_k >= 0"),
    ],
)
def test_impossible_numbers_are_refused(numbers, message):
    functions = MODEL.functions(MODEL.prefill((1,)))
    arguments = {"key": jax.random.key(0), "count": 2} | numbers
    for how in (sample_items, stochastic_beams):
        with pytest.raises(ValueError, match=message):
            how(functions, CATALOGUE, **arguments)


def test_sampling_needs_a_key():
    with pytest.raises(ValueError, match="pass key="):
        Sampling(3)(MODEL.functions(MODEL.prefill((1,))), CATALOGUE)
