"""The token space that is foretold is the one that the tokenizer makes."""

import jax
import numpy as np
import pytest

from jaxrec.recipe import replace
from jaxrec.scaling.forecast import ASSUMED_CAPACITY, expected_space
from jaxrec.tokenization import (
    Capacity,
    ExtraDigit,
    ItemIds,
    Keep,
    KMeansTree,
    NextNearest,
    ResidualKMeans,
    Separate,
    SinkhornLast,
    Tokenizer,
)
from jaxrec.types import TokenSpace

VECTORS = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
ITEMS = [f"item {row}" for row in range(30)]
QUANTIZER = ResidualKMeans(levels=2, codes=(4, 8), iterations=2)
POLICIES = (
    Keep(),
    Capacity(20),
    NextNearest(),
    ExtraDigit(capacity=32),
    SinkhornLast(rounds=1),
    SinkhornLast(rounds=1, leftovers=ExtraDigit(capacity=32)),
    SinkhornLast(rounds=1, leftovers=SinkhornLast(rounds=1, leftovers=ExtraDigit(capacity=32))),
)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_the_space_of_every_policy(policy, small):
    recipe = replace(small, "tokenizer", Tokenizer(QUANTIZER, policy))
    ids, _ = recipe.tokenizer(jax.random.key(0), VECTORS, items=ITEMS)
    assert expected_space(recipe, 30) == ids.space
    assert ids.space.has_extra_digit == ("ExtraDigit" in repr(policy))


def test_a_capacity_that_the_data_choose_is_assumed(small):
    policy = SinkhornLast(leftovers=ExtraDigit())
    recipe = replace(small, "tokenizer", Tokenizer(QUANTIZER, policy))
    assert expected_space(recipe, 30) == TokenSpace((4, 8, ASSUMED_CAPACITY), has_extra_digit=True)


def test_other_tokenizers(small):
    assert expected_space(replace(small, "tokenizer", ItemIds()), 30) == TokenSpace((30,))
    split = Separate((QUANTIZER, ResidualKMeans(levels=1, codes=3)), (3, 1), "interleaved")
    recipe = replace(small, "tokenizer", Tokenizer(split, Keep()))
    assert expected_space(recipe, 30) == TokenSpace((4, 3, 8))
    for quantizer in (KMeansTree(), Separate((QUANTIZER, KMeansTree()), (2, 2))):
        recipe = replace(small, "tokenizer", Tokenizer(quantizer))
        with pytest.raises(ValueError, match="does not know its sizes before it is fitted"):
            expected_space(recipe, 30)
