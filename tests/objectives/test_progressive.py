"""Shared prefixes and stages of difficulty, against loops over all codes of a small space."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.objectives.progressive import difficulty_mask, shared_prefix

SPACE = np.array(list(itertools.product(range(2), range(3), range(2))), np.int32)
"""All 12 items of three levels."""

prefix = jax.jit(shared_prefix)
mask = jax.jit(difficulty_mask, static_argnames=("stage", "or_more"))


def slow_prefix(a, b):
    return next((level for level in range(len(a)) if a[level] != b[level]), len(a))


def test_every_pair_of_items_of_a_small_space():
    found = prefix(SPACE[:, None], SPACE[None])
    expected = [[slow_prefix(a, b) for b in SPACE] for a in SPACE]
    np.testing.assert_array_equal(found, expected)
    assert set(np.unique(found)) == {0, 1, 2, 3}
    assert found.dtype == jnp.int32


def test_agreement_after_a_difference_does_not_count():
    assert int(prefix(np.array([1, 2, 3, 4]), np.array([1, 9, 3, 4]))) == 1


def test_stages_part_the_other_items():
    chosen, rejected = SPACE, np.broadcast_to(SPACE, (12, 12, 3))
    stages = [np.asarray(mask(chosen, rejected, stage)) for stage in range(3)]
    # Of 12 items 6 begin otherwise, 4 share one code, 1 shares two, and 1 is the item itself.
    assert [stage.sum(axis=1).tolist() for stage in stages] == [[6] * 12, [4] * 12, [1] * 12]
    np.testing.assert_array_equal(sum(stages), 1 - np.eye(12))


def test_or_more_adds_the_harder_ones_but_never_the_item_itself():
    chosen, rejected = SPACE, np.broadcast_to(SPACE, (12, 12, 3))
    for stage in range(3):
        found = np.asarray(mask(chosen, rejected, stage, or_more=True))
        harder = [mask(chosen, rejected, each) for each in range(stage, 3)]
        np.testing.assert_array_equal(found, sum(np.int32(each) for each in harder))


@pytest.mark.parametrize("stage", [-1, 2])
def test_a_stage_that_no_item_can_have_is_refused(stage):
    codes = jnp.zeros((1, 2), jnp.int32)
    with pytest.raises(ValueError, match=f"stage={stage} is none of items with 2 codes.*0 to 1"):
        difficulty_mask(codes, codes[:, None], stage)
