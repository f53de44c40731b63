"""T5: what it computes, what may influence what, and that decoding continues training."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_world import (
    SPACE,
    first_step,
    forward,
    later_step,
    make_events,
    prefill,
    random_params,
)
from t5_reference import bucket, reference_logits

from jaxrec.backbones.t5 import T5, user_bucket
from jaxrec.backbones.t5_layers import distance_bucket
from jaxrec.decoding import BeamSearch, ExactScoring, Filters, build_catalogue
from jaxrec.training.ranking import rank_batch
from jaxrec.types import Events, Tables, TokenSpace

# Heads whose sizes do not add up to the width, stacks of unequal depth, few distances a bucket.
BASE = T5(
    layers=2,
    decoder_layers=3,
    width=16,
    heads=3,
    head_size=4,
    feedforward=24,
    dropout=0.0,
    distance_buckets=8,
    max_distance=20,
)
SHAPES = {
    "v1.0": BASE,
    "v1.1": dataclasses.replace(BASE, gated=True, tied=False),
    "user and separator": dataclasses.replace(BASE, user_buckets=7, separator=True),
}
HISTORIES = [[3, 9, 27, 14], [5, 5], [], [8]]
TARGETS = [2, 30, 11, 7]
USERS = [5, -1, 123456, 5]


def rows_of(histories, targets, users=None, length=6):
    """Right-aligned rows with the target in the last column; the padding is full of rubbish."""
    item = np.full((len(histories), length), 33, np.int32)
    segment, user = np.zeros_like(item), np.full_like(item, 999)
    weight = np.zeros(item.shape, np.float32)
    for row, (history, target) in enumerate(zip(histories, targets)):
        begin = length - 1 - len(history)
        item[row, begin:], segment[row, begin:] = [*history, target], 1
        user[row, begin:] = -1 if users is None else users[row]
    weight[:, -1] = 1
    zeros = np.zeros_like(item)
    return Events(item, segment, zeros, zeros, zeros, weight, None if users is None else user)


def histories_of(histories, users=None, length=6):
    """Left-aligned histories, as cases come."""
    batch = make_events(*[[h] if h else [] for h in histories], length=length)
    if users is None:
        return batch
    user = jnp.where(batch.segment > 0, jnp.asarray(users, jnp.int32)[:, None], -1)
    return dataclasses.replace(batch, user=user)


@pytest.fixture(scope="module", params=SHAPES)
def model(request):
    """A T5 and its parameters."""
    t5 = SHAPES[request.param]
    return t5, random_params(t5)


def log_softmax(logits):
    return logits - np.logaddexp.reduce(np.asarray(logits, np.float64), axis=-1, keepdims=True)


def test_published_buckets():
    """Golden values of METHODS B1: 32 buckets, distances up to 128, `key - query`."""
    encoder = {-200: 15, -128: 15, -64: 14, -16: 10, -8: 8, -1: 1, 0: 0, 1: 17, 8: 24, 16: 26,
               64: 30, 128: 31}  # fmt: skip
    decoder = {-200: 31, -64: 26, -32: 21, -16: 16, -15: 15, -1: 1, 0: 0, 1: 0, 50: 0}
    for golden, bidirectional in ((encoder, True), (decoder, False)):
        ours = distance_bucket(jnp.array(list(golden)), bidirectional=bidirectional)
        assert ours.tolist() == list(golden.values())


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (8, 20), (16, 64)])
def test_buckets_follow_the_logarithms(bidirectional, buckets, furthest):
    distances = np.arange(-300, 301)
    ours = distance_bucket(
        jnp.asarray(distances),
        bidirectional=bidirectional,
        buckets=buckets,
        max_distance=furthest,
    )
    expected = [bucket(int(each), bidirectional, buckets, furthest) for each in distances]
    assert ours.tolist() == expected


def test_equals_the_numpy_reference(model, world):
    t5, params = model
    plain = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    logits = np.asarray(forward(t5, params, world.tables, rows_of(HISTORIES, TARGETS, USERS)))
    assert logits.shape == (4, 1, 3, 7)
    for row, (history, target, user) in enumerate(zip(HISTORIES, TARGETS, USERS)):
        user_row = None
        if t5.user_buckets and user >= 0:
            user_row = SPACE.vocabulary + int(user_bucket(jnp.array([user]), 7)[0])
        expected = reference_logits(t5, plain, SPACE, world.codes, history, target, user_row)
        for level, numbers in enumerate(expected):
            ours = logits[row, 0, level]
            np.testing.assert_allclose(ours[: len(numbers)], numbers, atol=1e-5, rtol=1e-5)
            assert np.all(ours[len(numbers) :] == -1e9)


@pytest.mark.parametrize("tied", [True, False])
def test_a_softmax_over_the_vocabulary(world, tied):
    """Log-probabilities of all tokens, of which the level's codes are shown; steps agree."""
    t5 = dataclasses.replace(BASE, softmax="vocabulary", tied=tied, user_buckets=7)
    params = random_params(t5)
    plain = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    whole = np.asarray(forward(t5, params, world.tables, rows_of(HISTORIES, TARGETS)))[:, 0]
    zeros = jnp.zeros((4, 1), jnp.int32)
    cache = prefill(t5, params, world.tables, histories_of(HISTORIES))
    first = np.asarray(first_step(t5, params, cache, zeros, zeros)[0])[:, 0]
    for row, (history, target) in enumerate(zip(HISTORIES, TARGETS)):
        expected = reference_logits(t5, plain, SPACE, world.codes, history, target)
        for level, numbers in enumerate(expected):
            ours = whole[row, level]
            np.testing.assert_allclose(ours[: len(numbers)], numbers, atol=1e-5, rtol=1e-5)
            assert np.all(ours[len(numbers) :] == -1e9)
            assert np.exp(numbers).sum() < 0.9  # what other tokens have is lost
    np.testing.assert_allclose(first, whole[:, 0], atol=1e-5)


def test_padding_and_other_histories_do_not_matter(model, world):
    t5, params = model
    batch = rows_of(HISTORIES, TARGETS, USERS)
    ours = forward(t5, params, world.tables, batch)
    wider = rows_of(HISTORIES, TARGETS, USERS, length=9)
    np.testing.assert_allclose(forward(t5, params, world.tables, wider), ours, atol=1e-5)
    padding = batch.segment == 0
    rubbish = dataclasses.replace(
        batch, item=np.where(padding, -7, batch.item), time=np.where(padding, 10**9, batch.time)
    )
    np.testing.assert_array_equal(forward(t5, params, world.tables, rubbish), ours)
    # another history in front of the target's own
    before = wider.segment == 0
    shared = dataclasses.replace(wider, segment=np.where(before, 1, 2).astype(np.int32))
    np.testing.assert_allclose(forward(t5, params, world.tables, shared), ours, atol=1e-5)


def test_a_code_influences_exactly_what_may_know_it(model, world):
    """All of the history reaches every level; a code of the target reaches the levels after it."""
    t5, params = model
    history, target = [3, 9, 27], 5
    places = [(item, level) for item in (*history, target) for level in range(3)]
    changed = np.tile(world.codes, (len(places) + 1, 1, 1))  # the last stays as it is
    for index, (item, level) in enumerate(places):
        changed[index, item, level] = (changed[index, item, level] + 1) % SPACE.sizes[level]
    batch = rows_of([history], [target], [4])

    def logits(codes):
        return t5.forward(params, Tables(codes), batch, SPACE)[0, 0]

    answers = np.asarray(jax.jit(jax.vmap(logits))(jnp.asarray(changed)))
    moved = np.abs(answers[:-1] - answers[-1]).max(-1) > 1e-4
    for index, level in itertools.product(range(len(places)), range(3)):
        item, changed_level = places[index]
        assert moved[index, level] == (item != target or changed_level < level), places[index]


def test_steps_continue_what_forward_computes(model, world):
    """Beams that swap, die and multiply at every level see exactly their own prefix."""
    t5, params = model
    users = [5, -1, 4]
    histories = [[3, 9, 27, 14, 2], [5, 5], [8]]
    random = np.random.default_rng(0)
    cache = prefill(t5, params, world.tables, histories_of(histories, users))
    zeros = jnp.zeros((3, 1), jnp.int32)
    logits, cache = first_step(t5, params, cache, zeros, zeros)
    prefixes = np.zeros((3, 1, 0), np.int32)
    seen = [(prefixes, np.asarray(logits))]
    for level, beams in ((1, 4), (2, 3)):
        parents = random.integers(0, prefixes.shape[1], (3, beams)).astype(np.int32)
        codes = random.integers(0, SPACE.sizes[level - 1], (3, beams)).astype(np.int32)
        kept = np.take_along_axis(prefixes, parents[..., None], axis=1)
        prefixes = np.concatenate([kept, codes[..., None]], axis=-1)
        codes, parents = jnp.asarray(codes), jnp.asarray(parents)
        logits, cache = later_step(t5, params, cache, codes, parents, jnp.int32(level))
        seen.append((prefixes, np.asarray(logits)))
    # every beam as a target of its own, whose codes are those that the beam chose
    places = [
        (level, row, beam)
        for level, (prefixes, _) in enumerate(seen)
        for row, beam in np.ndindex(prefixes.shape[:2])
    ]
    items = [[*seen[level][0][row, beam], 0, 0, 0][:3] for level, row, beam in places]
    tables = Tables(jnp.asarray(np.concatenate([world.codes, np.array(items, np.int32)])))
    whole = forward(
        t5,
        params,
        tables,
        rows_of(
            [histories[row] for _, row, _ in places],
            [len(world.codes) + index for index in range(len(places))],
            [users[row] for _, row, _ in places],
        ),
    )
    for index, (level, row, beam) in enumerate(places):
        np.testing.assert_allclose(seen[level][1][row, beam], whole[index, 0, level], atol=2e-5)


def test_wide_beams_equal_exact_scoring(world):
    """TIGER answers by beams or by scoring everything: wide enough, they are one list."""
    t5, params = BASE, random_params(BASE)
    codes = np.unique(world.codes, axis=0)
    catalogue = build_catalogue(codes, SPACE)
    denied = jnp.asarray([[0, 7], [3, -1]], jnp.int32)
    batch = histories_of([[3, 9, 27], [5]])
    lists = [
        rank_batch(
            params,
            Tables(jnp.asarray(world.codes)),
            catalogue,
            Filters(denied=denied),
            batch,
            generator=t5,
            space=SPACE,
            decoding=decoding,
        )
        for decoding in (BeamSearch(width=len(codes), k=9), ExactScoring(k=9))
    ]
    np.testing.assert_array_equal(lists[0].items, lists[1].items)
    np.testing.assert_allclose(lists[0].scores, lists[1].scores, atol=1e-5)


def test_the_sum_of_steps_is_the_likelihood_of_the_item(model, world):
    t5, params = model
    logits = np.asarray(forward(t5, params, world.tables, rows_of(HISTORIES, TARGETS)))[:, 0]
    codes = world.codes[TARGETS]
    rows = np.arange(4)[:, None]
    expected = log_softmax(logits)[rows, np.arange(3), codes].sum(-1)
    cache = prefill(t5, params, world.tables, histories_of(HISTORIES))
    zeros = jnp.zeros((4, 1), jnp.int32)
    logits, cache = first_step(t5, params, cache, zeros, zeros)
    total = log_softmax(np.asarray(logits)[:, 0])[np.arange(4), codes[:, 0]]
    for level in (1, 2):
        chosen = jnp.asarray(codes[:, level - 1 : level])
        logits, cache = later_step(t5, params, cache, chosen, zeros, jnp.int32(level))
        total += log_softmax(np.asarray(logits)[:, 0])[np.arange(4), codes[:, level]]
    np.testing.assert_allclose(total, expected, atol=1e-5)


def test_levels_scan_to_the_same_logits(world):
    """Levels may run as a `lax.scan` whose carry is the cache, and a level may be known."""
    t5 = BASE
    params = random_params(t5)
    codes = jnp.array([[1, 0], [2, 2]], jnp.int32)
    parents = jnp.array([[1, 0], [0, 0]], jnp.int32)
    cache = prefill(t5, params, world.tables, histories_of([[3, 9], [4]], length=3))
    start = jnp.zeros((2, 2), jnp.int32)
    _, cache = first_step(t5, params, cache, start, start)

    def body(cache, level):
        logits, cache = t5.step(params, cache, codes, parents, level, SPACE)
        return cache, logits

    _, scanned = jax.lax.scan(body, cache, jnp.arange(1, 3, dtype=jnp.int32))
    for level, expected in zip((1, 2), scanned):
        known, _ = t5.step(params, cache, codes, parents, level, SPACE)
        np.testing.assert_allclose(known, expected, atol=1e-5)
        logits, cache = later_step(t5, params, cache, codes, parents, jnp.int32(level))
        np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_the_cache_holds_the_history_once(world):
    def decode(params):
        cache = BASE.prefill(params, world.tables, histories_of([[3, 9]], length=4), SPACE)
        codes = jnp.zeros((1, 6), jnp.int32)
        for level in range(3):
            parents = codes if level == 0 else codes + 5
            _, cache = BASE.step(params, cache, codes, parents, level, SPACE)
        return cache

    init = functools.partial(BASE.init, jax.random.key(0), SPACE)
    cache = jax.eval_shape(decode, jax.eval_shape(init))
    assert [each.keys.shape for each in cache.history] == [(1, 3, 4, 4 * 3)] * 3  # not of beams
    assert [each.values.shape for each in cache.history] == [(1, 3, 4 * 3, 4)] * 3
    assert [each.keys.shape for each in cache.slots] == [(1, 6, 3, 3, 4)] * 3


def test_a_single_level_decodes(world):
    space = TokenSpace((9,))
    tables = Tables(jnp.asarray(np.arange(40, dtype=np.int32)[:, None] % 9))
    params = random_params(BASE, space=space)
    zero = jnp.zeros((1, 1), jnp.int32)
    cache = prefill(BASE, params, tables, histories_of([[3]], length=2), space=space)
    logits, _ = first_step(BASE, params, cache, zero, zero, space=space)
    whole = forward(BASE, params, tables, rows_of([[3]], [8]), space=space)
    np.testing.assert_allclose(logits[0, 0], whole[0, 0, 0], atol=1e-5)


def test_users_fill_their_buckets_evenly():
    buckets = np.asarray(user_bucket(jnp.arange(20_000), 100))
    counts = np.bincount(buckets, minlength=100)
    assert counts.shape == (100,)
    assert counts.min() > 140
    assert counts.max() < 260  # 200 each, give or take four standard deviations
    assert np.all(np.asarray(user_bucket(jnp.array([-1, 2**31 - 1]), 100)) >= 0)
