"""Masks against a double loop, and what they mean for gradients."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.backbones import masks_library as library
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
from jaxrec.backbones.masks_library import CANDIDATE, CONTEXT, EVENT, RANKING, STATIC


def inside(rule):
    """The rule, inside a history only."""
    return lambda q, k: q["segment"] == k["segment"] != 0 and rule(q, k)


def mtgr(q, k):
    if k["kind"] == STATIC:
        return True
    if k["kind"] == EVENT and q["kind"] == EVENT:
        return k["time"] <= q["time"]
    if k["kind"] == EVENT and q["kind"] == CANDIDATE:
        return k["time"] < q["time"]
    return k["kind"] == q["kind"] == CANDIDATE and k["candidate"] == q["candidate"]


def dual_flow(q, k):
    if q["fake"]:
        return k["position"] == q["position"] if k["fake"] else k["position"] < q["position"]
    return not k["fake"] and k["position"] <= q["position"]


def query_driven(q, k):
    if q["placeholder"] == 0:
        return k["placeholder"] == 0 and k["position"] <= q["position"]
    if k["placeholder"] == 0:
        return k["position"] < q["position"]
    return k["placeholder"] == q["placeholder"]


def session_isolation(q, k):
    if k["session"] == q["session"]:
        return bool(k["is_session"])
    return k["session"] < q["session"]


def task_masks(q, k):
    if k["time"] > q["time"]:
        return False
    if k["session"] == q["session"]:
        return k["task"] == q["task"] and k["candidate"] == q["candidate"]
    return k["task"] == CONTEXT and k["session"] < q["session"]


def set_wise(q, k):
    if k["list"] == 0:
        return k["position"] <= q["position"]
    return k["list"] == q["list"]


def aside(label):
    return lambda q, k: k["position"] <= q["position"] and k[label] in (0, q[label])


# name -> predicate, and the same rule over the integers of one query and one key
RULES = {
    "causal": (causal, lambda q, k: k["position"] <= q["position"]),
    "same_segment": (same_segment, inside(lambda q, k: True)),
    "packed": (packed, inside(lambda q, k: k["position"] <= q["position"])),
    "same_item": (
        both(causal, same("item")),
        lambda q, k: k["position"] <= q["position"] and k["item"] == q["item"],
    ),
    "either": (
        either(before("item"), same("list"), causal),
        lambda q, k: (
            k["item"] < q["item"] or k["list"] == q["list"] or k["position"] <= q["position"]
        ),
    ),
    "bidirectional": (library.bidirectional, inside(lambda q, k: True)),
    "prefix_lm": (
        library.prefix_lm,
        inside(lambda q, k: k["position"] <= max(q["position"], q["prefix_end"])),
    ),
    "item_block": (library.item_block, inside(lambda q, k: k["item"] <= q["item"])),
    "earlier_items": (library.earlier_items, inside(lambda q, k: k["item"] < q["item"])),
    "candidate_diagonal": (library.candidate_diagonal, inside(aside("candidate"))),
    "packed_groups": (library.packed_groups, inside(aside("group"))),
    "session_isolation": (library.session_isolation, inside(session_isolation)),
    "mtgr": (library.mtgr, inside(mtgr)),
    "dual_flow": (library.dual_flow, inside(dual_flow)),
    "query_driven": (library.query_driven, inside(query_driven)),
    "task_masks": (library.task_masks, inside(task_masks)),
    "set_wise": (library.set_wise, inside(set_wise)),
}
# label -> numbers below which its values are drawn
LABELS = {
    "item": 3, "prefix_end": 3, "candidate": 3, "group": 3, "session": 3, "is_session": 2,
    "kind": CANDIDATE + 1, "time": 3, "fake": 2, "placeholder": 3, "task": RANKING + 1, "list": 3,
}  # fmt: skip


def random_metadata(seed, rows=3, length=9):
    random = np.random.default_rng(seed)
    segment = np.sort(random.integers(0, 3, (rows, length)), axis=1)[:, ::-1]
    numbers = {"segment": segment, "position": random.integers(0, 4, (rows, length))}
    # Equal positions and times do occur.
    numbers |= {name: random.integers(0, high, (rows, length)) for name, high in LABELS.items()}
    return {name: np.asarray(array, np.int32) for name, array in numbers.items()}


def as_metadata(numbers):
    arrays = {name: jnp.asarray(array) for name, array in numbers.items()}
    return TokenMetadata(arrays.pop("segment"), arrays.pop("position"), arrays)


def test_every_mask_of_the_library_is_tested_here():
    source = inspect.getsource(library)
    masks = set(re.findall(r"^([a-z]\w+)(?:: Predicate)? = ", source, re.MULTILINE))
    assert len(masks) >= 12
    assert masks <= set(RULES)


@pytest.mark.parametrize("name", RULES)
def test_equals_a_double_loop(name):
    predicate, rule = RULES[name]
    queries, keys = random_metadata(0, 8, 7), random_metadata(1, 8, 9)
    mask = np.asarray(compile_mask(predicate, as_metadata(queries), as_metadata(keys)))
    assert mask.shape == (8, 1, 7, 9)
    assert 0 < mask.sum() < mask.size
    for row, q, k in np.ndindex(8, 7, 9):
        query = {label: int(array[row, q]) for label, array in queries.items()}
        key = {label: int(array[row, k]) for label, array in keys.items()}
        assert mask[row, 0, q, k] == rule(query, key), (query, key)


@pytest.mark.parametrize("name", ["packed", "item_block", "mtgr", "dual_flow"])
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


def test_metadata_is_a_pytree():
    metadata = as_metadata(random_metadata(0))
    later = metadata.map(lambda array: array + 1)
    assert isinstance(later, TokenMetadata)
    assert len(jax.tree.leaves(later)) == 2 + len(LABELS)
    np.testing.assert_array_equal(later.labels["time"], metadata.labels["time"] + 1)
    np.testing.assert_array_equal(later.position, metadata.position + 1)


def test_permuting_candidates_permutes_what_they_get():
    """Four candidates after a history of five; and nobody's answer depends on another's value."""
    numbers = np.array([0, 0, 0, 0, 0, 1, 2, 3, 4], np.int32)[None]
    places = np.array([0, 1, 2, 3, 4, 5, 5, 5, 5], np.int32)[None]
    metadata = TokenMetadata(
        jnp.ones((1, 9), jnp.int32), jnp.asarray(places), {"candidate": jnp.asarray(numbers)}
    )
    mask = compile_mask(library.candidate_diagonal, metadata)
    x = jax.random.normal(jax.random.key(1), (1, 9, 1, 4))
    order = np.array([0, 1, 2, 3, 4, 7, 5, 8, 6])
    out = attention(x, x, x, mask=mask)
    moved = attention(x[:, order], x[:, order], x[:, order], mask=mask)
    np.testing.assert_allclose(moved, out[:, order], atol=1e-6)
    other = x.at[:, 6].add(1.0)
    changed = np.abs(np.asarray(attention(other, other, other, mask=mask) - out)).max((0, 2, 3))
    assert changed[6] > 1e-3
    assert np.all(np.delete(changed, 6) == 0)
