"""Masks against a double loop, and what they mean for gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.backbones.attention import attention
from jaxrec.backbones.masks import (
    TokenMetadata,
    before,
    both,
    causal,
    compile_mask,
    either,
    packed,
    same,
    same_segment,
)

# name -> predicate, and the same rule over plain integers (segment, position, item)
RULES = {
    "causal": (causal, lambda q, k: k[1] <= q[1]),
    "same_segment": (same_segment, lambda q, k: q[0] == k[0] and k[0] != 0),
    "packed": (packed, lambda q, k: q[0] == k[0] != 0 and k[1] <= q[1]),
    "item_block": (
        both(same_segment, either(before("item"), same("item"))),
        lambda q, k: q[0] == k[0] != 0 and k[2] <= q[2],
    ),
    "same_item": (both(causal, same("item")), lambda q, k: k[1] <= q[1] and k[2] == q[2]),
}


def random_metadata(seed, rows=3, length=9):
    random = np.random.default_rng(seed)
    segment = np.sort(random.integers(0, 4, (rows, length)), axis=1)[:, ::-1]
    position = random.integers(0, 4, (rows, length))  # equal positions do occur
    item = random.integers(0, 3, (rows, length))
    return np.stack([segment, position, item], axis=-1).astype(np.int32)


def as_metadata(numbers):
    segment, position, item = (jnp.asarray(numbers[..., i]) for i in range(3))
    return TokenMetadata(segment, position, {"item": item})


@pytest.mark.parametrize("name", RULES)
def test_equals_a_double_loop(name):
    predicate, rule = RULES[name]
    queries, keys = random_metadata(0, length=7), random_metadata(1)
    mask = np.asarray(compile_mask(predicate, as_metadata(queries), as_metadata(keys)))
    assert mask.shape == (3, 1, 7, 9)
    for row in range(3):
        for q in range(7):
            for k in range(9):
                assert mask[row, 0, q, k] == rule(queries[row, q], keys[row, k])


@pytest.mark.parametrize("name", ["packed", "item_block"])
def test_gradient_flows_exactly_where_the_mask_allows(name):
    predicate, _ = RULES[name]
    mask = compile_mask(predicate, as_metadata(random_metadata(2, rows=1)))
    q, k, v = (
        jax.random.normal(key, (1, 9, 1, 4)) for key in jax.random.split(jax.random.key(0), 3)
    )
    slope = jax.jacobian(lambda v: attention(q, k, v, mask=mask)[0, :, 0].sum(-1))(v)
    reached = np.abs(np.asarray(slope)[:, 0, :, 0]).sum(-1) > 0
    np.testing.assert_array_equal(reached, np.asarray(mask)[0, 0])


def test_padding_is_never_a_key_and_sees_nothing():
    segment = jnp.array([[1, 1, 0]], jnp.int32)
    mask = compile_mask(packed, TokenMetadata(segment, jnp.array([[0, 1, 0]], jnp.int32)))
    assert np.asarray(mask)[0, 0].tolist() == [
        [True, False, False],
        [True, True, False],
        [False] * 3,
    ]
