"""How likely a policy is to write what is given, and the slope of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from table_reference import (
    GENERATOR,
    GIVEN,
    ITEMS,
    QUICK,
    SPACE,
    all_log_probs,
    batch_of,
    close,
    probabilities,
    slope_of,
    steps,
    table,
    unseen,
)

from jaxrec.alignment.policy import Policy, check_norm
from jaxrec.alignment.rollouts import Sample
from jaxrec.decoding.filters import Filters

ROWS, TEMPERATURE = 3, 0.8
BATCH = batch_of(ROWS)
EVERY = np.tile(np.arange(ITEMS, dtype=np.int32), (ROWS, 1))
ITEM = np.random.default_rng(1).permuted(EVERY, axis=1)
ITEM[0, 2], ITEM[1, 0], ITEM[2, 4] = -1, ITEMS, -7  # no items
WEIGHT = np.random.default_rng(2).normal(size=(ROWS, ITEMS, 3)).astype(np.float32)
POLICY = Policy(GENERATOR, SPACE, Sample(4, TEMPERATURE), mask_seen=True)
NORMS = ("trie", "full")
# As wide as the catalogue, so that all tests share a program.
NOTHING = np.full((ROWS, ITEMS), -1, np.int32)
SEEN = NOTHING.copy()
SEEN[:, :3] = BATCH.events.item


@functools.cache
def program():
    """Log-probabilities in both normalisations, and the slope of a weighted sum of each."""

    def weighed(params, items, denied, weight):
        functions, filters = POLICY.read(params, GIVEN, BATCH.events), Filters(denied=denied)
        found = POLICY.log_probs(functions, GIVEN, items, filters, NORMS)
        known = jnp.isfinite(found[0])
        return tuple(jnp.sum(jnp.where(known, each, 0.0) * weight) for each in found), found

    def run(params, items, denied, weight):
        _, slope, found = jax.vjp(
            lambda params: weighed(params, items, denied, weight), params, has_aux=True
        )
        one, zero = jnp.ones(()), jnp.zeros(())
        return found, slope((one, zero))[0], slope((zero, one))[0]

    return jax.jit(run, compiler_options=QUICK)


def inside(items):
    return (items >= 0) & (items < ITEMS)


@pytest.mark.parametrize("denied", [NOTHING, SEEN])
def test_values_and_slopes_are_those_of_the_definition(denied):
    """Softmax over the children that exist and may be written, or over the codebook; and closed
    forms of their slopes. What is no item is -inf, and has no slope."""
    params = table()
    live = unseen(BATCH) if denied is SEEN else np.ones((ROWS, ITEMS), bool)
    found, *slopes = program()(params, ITEM, denied, WEIGHT)
    writable = inside(ITEM) & np.take_along_axis(live, np.clip(ITEM, 0, ITEMS - 1), axis=1)
    assert (~writable).sum() >= 3 + 5 * (denied is SEEN)
    for norm, ours, slope in zip(NORMS, found, slopes):
        how = {"norm": norm, "temperature": TEMPERATURE}
        np.testing.assert_allclose(ours, all_log_probs(params, ITEM, live=live, **how), atol=1e-5)
        assert (np.asarray(ours) == -np.inf).all(axis=-1).tolist() == (~writable).tolist()
        rows = [
            slope_of(
                params,
                [(i, w) for i, w, ok in zip(ITEM[row], WEIGHT[row], writable[row]) if ok],
                live=live[row],
                **how,
            )
            for row in range(ROWS)
        ]
        close(slope, jax.tree.map(lambda *each: sum(each), *rows))


def test_the_two_normalisations_differ_by_the_legal_mass():
    params = table()
    trie, full = program()(params, ITEM, NOTHING, WEIGHT)[0]
    for row, place in np.argwhere(inside(ITEM)):
        for level, node, _, slope in steps(params, ITEM[row, place], temperature=TEMPERATURE):
            size, legal = SPACE.sizes[level], slope != 0
            if legal.any():  # a single code that leads to an item has no slope
                mass = np.exp(np.asarray(params[f"level_{level}"][node], "f8") / TEMPERATURE)
                expected = np.log(mass[legal].sum() / mass[:size].sum())
                gap = full[row, place, level] - trie[row, place, level]
                assert gap == pytest.approx(expected, abs=1e-5)
    assert (np.asarray(full - trie)[inside(ITEM)].sum(-1) < -0.05).all()


def test_probabilities_of_all_items_add_up_under_the_trie_only():
    params = table()
    trie, full = program()(params, EVERY, NOTHING, WEIGHT)[0]
    trie, full = (np.exp(np.asarray(each[0]).sum(-1)) for each in (trie, full))
    # Items that share an ID each have its whole probability.
    alike = np.round(trie / probabilities(params, temperature=TEMPERATURE))
    assert np.sort(alike).tolist() == [1.0] * 10 + [2.0] * 4
    assert np.sum(trie / alike) == pytest.approx(1, abs=1e-5)
    assert np.sum(full / alike) < 0.95


def test_what_is_no_item_changes_nothing_of_the_others():
    params, some = table(), ITEM.copy()
    some[:, 1] = -1
    found = [program()(params, each, SEEN, WEIGHT)[0] for each in (ITEM, some)]
    for one, other in zip(*found):
        np.testing.assert_array_equal(
            np.delete(np.asarray(one), 1, axis=1), np.delete(np.asarray(other), 1, axis=1)
        )
        assert (np.asarray(other)[:, 1] == -np.inf).all()


def test_nothing_can_be_written_and_no_slope_is_nan():
    """Everything is denied: what is scored is -inf, and the slope is 0, not NaN."""
    params = table()
    found, *slopes = program()(params, ITEM, EVERY, WEIGHT)
    for each, slope in zip(found, slopes):
        assert (np.asarray(each) == -np.inf).all()
        close(slope, jax.tree.map(jnp.zeros_like, params), atol=0)


def test_still_says_the_same_without_a_slope():
    """In the policy's own normalisation, the default."""
    params = table()

    def run(params):
        functions = POLICY.read(params, GIVEN, BATCH.events)
        still, found = POLICY.still(functions, params), []
        for norm in NORMS:
            policy = dataclasses.replace(POLICY, norm=norm)
            found += policy.log_probs(still, GIVEN, jnp.asarray(ITEM), POLICY.filters(BATCH.events))
        return sum(jnp.sum(jnp.where(jnp.isfinite(each), each, 0.0)) for each in found), found

    value = jax.value_and_grad(run, has_aux=True)
    (_, found), slope = jax.jit(value, compiler_options=QUICK)(params)
    expected, moving, _ = program()(params, ITEM, SEEN, WEIGHT)
    for ours, theirs in zip(found, expected):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    close(slope, jax.tree.map(jnp.zeros_like, params), atol=0)
    assert np.any(moving["level_0"] != 0)


def test_unknown_normalisation():
    check_norm("trie")
    with pytest.raises(ValueError, match="norm='both' is unknown; choose one of trie, full"):
        check_norm("both")
