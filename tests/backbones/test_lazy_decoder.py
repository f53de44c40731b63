"""The lazy decoder: what it computes, what may influence what, and that decoding continues it."""

import dataclasses
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
from lazy_reference import reference_logits

from jaxrec.backbones.lazy_decoder import LazyDecoder
from jaxrec.backbones.mixture import Mixture
from jaxrec.decoding import BeamSearch, Filters, build_catalogue
from jaxrec.training.ranking import rank_batch
from jaxrec.types import Tables, TokenSpace

BASE = LazyDecoder(
    layers=3, width=16, heads=4, kv_heads=2, feedforward=24, context_width=6, dropout=0.0
)
EXPERTS = Mixture(experts=5, top_k=2, feedforward=12, shared=1, gate="sigmoid", balance="bias")
SHAPES = {
    # keys that are the values too, which layers take turns with, and fewer places than events
    "shared": dataclasses.replace(BASE, kv_layers=2, item_buckets=5, positions=4),
    # METHODS B6 (iv): keys and values of its own in every layer, as in any cross-attention decoder
    "experts": dataclasses.replace(
        BASE, layers=4, kv_layers=4, kv_split=2, positions=0, mixture=EXPERTS, dense_layers=1
    ),
}
HISTORIES = [[3, 9, 27, 14, 6], [5, 5], [], [8]]
TARGETS = [2, 30, 11, 7]
ROWS, LENGTH = 24, 9
"""Of every batch, so that a decoder is compiled once."""


def rows_of(histories, targets, rows=ROWS, length=LENGTH):
    """Right-aligned rows with the target in the last column; the padding is full of rubbish."""
    whole = [[*history, target] for history, target in zip(histories, targets)]
    whole += [[]] * (rows - len(whole))
    left = make_events(*[[row] if row else [] for row in whole], length=length)
    index = np.stack([np.roll(np.arange(length), length - len(row)) for row in whole])
    return jax.tree.map(lambda array: np.take_along_axis(np.asarray(array), index, 1), left)


def histories_of(histories, length=LENGTH):
    """Left-aligned histories, as cases come."""
    return make_events(*[[h] if h else [] for h in histories], length=length)


@pytest.fixture(scope="module", params=SHAPES)
def model(request):
    """A lazy decoder and its parameters."""
    decoder = SHAPES[request.param]
    return decoder, random_params(decoder)


def log_softmax(logits):
    return logits - np.logaddexp.reduce(np.asarray(logits, np.float64), axis=-1, keepdims=True)


def test_equals_a_cross_attention_decoder_with_identities_as_projections(model, world):
    decoder, params = model
    plain = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    logits = np.asarray(forward(decoder, params, world.tables, rows_of(HISTORIES, TARGETS)))
    assert logits.shape == (ROWS, 1, 3, 7)
    for row, (history, target) in enumerate(zip(HISTORIES, TARGETS)):
        expected, _ = reference_logits(decoder, plain, SPACE, world.codes, history, target)
        for level, numbers in enumerate(expected):
            ours = logits[row, 0, level]
            np.testing.assert_allclose(ours[: len(numbers)], numbers, atol=2e-5, rtol=1e-5)
            assert np.all(ours[len(numbers) :] == -1e9)


def test_padding_and_other_histories_do_not_matter(model, world):
    decoder, params = model
    batch = rows_of(HISTORIES, TARGETS)
    ours = forward(decoder, params, world.tables, batch)[:4]
    padding = batch.segment == 0
    rubbish = dataclasses.replace(
        batch,
        item=np.where(padding, -7, batch.item),
        position=np.where(padding, 1000, batch.position),
    )
    # another history in front of the target's own
    shared = dataclasses.replace(batch, segment=np.where(padding, 1, 2).astype(np.int32))
    later = dataclasses.replace(batch, position=batch.position + 40)
    for other in (rubbish, shared, later):
        theirs = forward(decoder, params, world.tables, other)[:4]
        np.testing.assert_allclose(theirs, ours, atol=1e-5)


def test_a_code_influences_exactly_what_may_know_it(model, world):
    """All of the history reaches every level; a code of the target reaches the levels after it."""
    decoder, params = model
    history, target = [3, 9, 27], 5
    places = [(item, level) for item in (*history, target) for level in range(3)]
    changed = np.tile(world.codes, (len(places) + 1, 1, 1))  # the last stays as it is
    for index, (item, level) in enumerate(places):
        changed[index, item, level] = (changed[index, item, level] + 1) % SPACE.sizes[level]
    # a catalogue for every row, one after another: 40 items are 8 times 5 buckets
    first = 40 * np.arange(len(places) + 1)
    tables = Tables(jnp.asarray(changed.reshape(-1, 3)))
    batch = rows_of([[item + f for item in history] for f in first], target + first)
    answers = np.asarray(forward(decoder, params, tables, batch))[:, 0]
    moved = np.abs(answers - answers[len(places)]).max(-1) > 1e-4
    for index, level in itertools.product(range(len(places)), range(3)):
        item, changed_level = places[index]
        assert moved[index, level] == (item != target or changed_level < level), places[index]


def test_the_order_of_the_context_is_what_its_positions_say(model, world):
    """Cross-attention itself is blind to order: METHODS B6 (ii)."""
    decoder, params = model
    batch = rows_of(HISTORIES, TARGETS)
    order = np.array([3, 7, 0, 5, 2, 6, 4, 1, 8])  # the target stays last
    moved = jax.tree.map(lambda array: array[:, order], batch)
    ours = forward(decoder, params, world.tables, batch)
    np.testing.assert_allclose(forward(decoder, params, world.tables, moved), ours, atol=2e-5)
    swapped = dataclasses.replace(moved, position=batch.position)
    difference = np.abs(forward(decoder, params, world.tables, swapped) - ours)[0].max()
    assert (difference > 1e-3) == (decoder.positions > 0)


def test_places_beyond_the_table_share_its_last_row(world):
    decoder = SHAPES["shared"]  # of four rows
    params = random_params(decoder)
    same = [[3, 9, 27, 14, 6], [9, 3, 27, 14, 6]], [[3, 9, 27, 14, 6], [3, 27, 9, 14, 6]]
    (one, two), (_, three) = same
    first, second, third = forward(
        decoder, params, world.tables, rows_of([one, two, three], [2] * 3)
    )[:3]
    np.testing.assert_allclose(second, first, atol=1e-5)  # both that moved are in the last row
    assert np.abs(third - first).max() > 1e-3


def test_steps_continue_what_forward_computes(model, world):
    """Beams that swap, die and multiply at every level see exactly their own prefix: (v)."""
    decoder, params = model
    random = np.random.default_rng(0)
    cache = prefill(decoder, params, world.tables, histories_of(HISTORIES))
    zeros = jnp.zeros((4, 1), jnp.int32)
    logits, cache = first_step(decoder, params, cache, zeros, zeros)
    prefixes = np.zeros((4, 1, 0), np.int32)
    seen = [(prefixes, np.asarray(logits))]
    for level, beams in ((1, 3), (2, 2)):
        parents = random.integers(0, prefixes.shape[1], (4, beams)).astype(np.int32)
        codes = random.integers(0, SPACE.sizes[level - 1], (4, beams)).astype(np.int32)
        kept = np.take_along_axis(prefixes, parents[..., None], axis=1)
        prefixes = np.concatenate([kept, codes[..., None]], axis=-1)
        codes, parents = jnp.asarray(codes), jnp.asarray(parents)
        logits, cache = later_step(decoder, params, cache, codes, parents, jnp.int32(level))
        seen.append((prefixes, np.asarray(logits)))
    # every beam as a target of its own, whose codes are those that the beam chose
    places = [
        (level, row, beam)
        for level, (prefixes, _) in enumerate(seen)
        for row, beam in np.ndindex(prefixes.shape[:2])
    ]
    items = [[*seen[level][0][row, beam], 0, 0, 0][:3] for level, row, beam in places]
    tables = Tables(jnp.asarray(np.concatenate([world.codes, np.array(items, np.int32)])))
    targets = [len(world.codes) + index for index in range(len(places))]
    batch = rows_of([HISTORIES[row] for _, row, _ in places], targets)
    whole = forward(decoder, params, tables, batch)
    assert len(places) <= ROWS
    for index, (level, row, beam) in enumerate(places):
        np.testing.assert_allclose(seen[level][1][row, beam], whole[index, 0, level], atol=2e-5)


def test_beams_give_items_their_likelihood(world):
    """Beams as wide as the catalogue: the law of the contract."""
    decoder = SHAPES["shared"]
    params, codes = random_params(decoder), np.unique(world.codes, axis=0)
    tables, histories = Tables(jnp.asarray(codes)), [[3, 9, 27], []]
    answer = rank_batch(
        params,
        tables,
        build_catalogue(codes, SPACE),
        Filters(),
        histories_of(histories),
        generator=decoder,
        space=SPACE,
        decoding=BeamSearch(width=len(codes), k=12),
    )
    items = np.asarray(answer.items)
    batch = rows_of([h for h in histories for _ in range(12)], items.reshape(-1))
    logits = np.asarray(forward(decoder, params, tables, batch))[:, 0]
    chosen = np.take_along_axis(log_softmax(logits), codes[items].reshape(24, 3, 1), axis=-1)
    np.testing.assert_allclose(answer.scores, chosen.sum((1, 2)).reshape(2, 12), atol=1e-5)


def test_levels_scan_to_the_same_logits(world):
    """Levels may run as a `lax.scan` whose carry is the cache."""
    decoder = BASE
    codes = jnp.array([[1, 0], [2, 2]], jnp.int32)
    parents = jnp.array([[1, 0], [0, 0]], jnp.int32)

    @jax.jit
    def both(params):
        cache = decoder.prefill(params, world.tables, histories_of([[3, 9], [4]]), SPACE)
        _, start = decoder.step(params, cache, codes, 0 * codes, 0, SPACE)

        def body(cache, level):
            logits, cache = decoder.step(params, cache, codes, parents, level, SPACE)
            return cache, logits

        _, scanned = jax.lax.scan(body, start, jnp.arange(1, 3, dtype=jnp.int32))
        one, cache = decoder.step(params, start, codes, parents, 1, SPACE)
        return scanned, jnp.stack([one, decoder.step(params, cache, codes, parents, 2, SPACE)[0]])

    np.testing.assert_allclose(*both(random_params(decoder)), atol=1e-5)


def test_the_cache_holds_the_history_once(world):
    def decode(decoder, params):
        cache = decoder.prefill(params, world.tables, histories_of([[3, 9]], length=4), SPACE)
        codes = jnp.zeros((1, 6), jnp.int32)
        for level in range(3):
            parents = codes if level == 0 else codes + 5
            _, cache = decoder.step(params, cache, codes, parents, level, SPACE)
        return cache

    for decoder in (BASE, dataclasses.replace(BASE, kv_layers=3, kv_split=2)):
        params = jax.eval_shape(lambda decoder=decoder: decoder.init(jax.random.key(0), SPACE))
        cache = jax.eval_shape(lambda params, decoder=decoder: decode(decoder, params), params)
        shape = (decoder.kv_layers, 1, 4, 2, 4)  # neither of layers nor of beams
        assert cache.context.keys.shape == shape
        assert (cache.context.values is None) == (decoder.kv_split == 1)
        assert cache.past.keys.shape == (3, 1, 1, 4, 4)  # BOS, once
        assert cache.past.beam_keys.shape == (3, 1, 6, 2, 4, 4)
        assert cache.user.shape == (1, 1, 16)


def test_a_single_level_decodes():
    space, decoder = TokenSpace((9,)), SHAPES["shared"]
    tables = Tables(jnp.asarray(np.arange(40, dtype=np.int32)[:, None] % 9))
    zero, batch = jnp.zeros((1, 1), jnp.int32), rows_of([[3]], [8], rows=1, length=2)

    @jax.jit
    def both(params):
        cache = decoder.prefill(params, tables, histories_of([[3]], length=2), space)
        logits, _ = decoder.step(params, cache, zero, zero, 0, space)
        return logits[0, 0], decoder.forward(params, tables, batch, space)[0, 0, 0]

    np.testing.assert_allclose(*both(random_params(decoder, space=space)), atol=1e-5)
