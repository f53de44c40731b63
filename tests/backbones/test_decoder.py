"""The decoder: what it computes, what may influence what, and that decoding continues training."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_reference import reference_logits
from decoder_world import (
    SPACE,
    first_step,
    forward,
    later_step,
    make_events,
    prefill,
    random_params,
    with_rubbish,
)

from jaxrec.backbones.decoder import Decoder
from jaxrec.decoding import Filters, ListBeams, build_catalogue
from jaxrec.training.ranking import rank_batch
from jaxrec.types import Tables, TokenSpace

# Grouped heads and unequal levels everywhere.
BASE = Decoder(layers=2, width=16, heads=4, kv_heads=2, feedforward=24, dropout=0.0)
SHAPES = {
    "merged": dataclasses.replace(BASE, item_buckets=11, head_layers=2, head_feedforward=20),
    "flat": dataclasses.replace(BASE, history="flat"),
}
HISTORIES = [[3, 9, 27, 14], [5, 5], [8, 1, 30]]
# one row that holds all histories, then a row for each; most tests share this shape
BATCH = make_events(HISTORIES, *[[history] for history in HISTORIES], length=11)


@pytest.fixture(scope="module", params=SHAPES)
def model(request):
    """A decoder and its parameters."""
    decoder = SHAPES[request.param]
    return decoder, random_params(decoder)


def log_softmax(logits):
    """Over the legal codes of each level, in numpy."""
    return logits - np.logaddexp.reduce(np.asarray(logits, np.float64), axis=-1, keepdims=True)


def test_equals_the_numpy_reference(model, world):
    decoder, params = model
    plain = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    logits = np.asarray(forward(decoder, params, world.tables, BATCH))
    at = 0
    for history in HISTORIES:
        expected = reference_logits(decoder, plain, SPACE, world.codes, history)
        for event, levels in enumerate(expected):
            for level, row in enumerate(levels):
                ours = logits[0, at + event, level]
                np.testing.assert_allclose(ours[: len(row)], row, atol=2e-5, rtol=1e-5)
                assert np.all(ours[len(row) :] == -1e9)
        at += len(history)


def test_packed_equals_unpacked(model, world):
    decoder, params = model
    packed, *alone = forward(decoder, params, world.tables, BATCH)
    expected = jnp.concatenate([row[: len(h)] for row, h in zip(alone, HISTORIES)])
    np.testing.assert_allclose(packed[: len(expected)], expected, atol=1e-5)


def test_what_stands_in_the_padding_does_not_matter(model, world):
    decoder, params = model
    live = np.asarray(BATCH.segment) > 0
    ours = np.asarray(forward(decoder, params, world.tables, BATCH))
    rubbish = np.asarray(forward(decoder, params, world.tables, with_rubbish(BATCH)))
    np.testing.assert_array_equal(ours[live], rubbish[live])


def test_a_code_influences_exactly_what_comes_after_it_in_its_history(model, world):
    decoder, params = model
    histories = [[3, 9, 27], [5, 8]]  # distinct items, so that one code is one place
    flat = [(s, item, level) for s, h in enumerate(histories) for item in h for level in range(3)]
    changed = np.tile(world.codes, (len(flat) + 1, 1, 1))  # the last stays as it is
    for index, (_, item, level) in enumerate(flat):
        changed[index, item, level] = (changed[index, item, level] + 1) % SPACE.sizes[level]
    batch = make_events(histories, length=6)

    def logits(codes):
        return decoder.forward(params, Tables(codes), batch, SPACE)[0, :5].reshape(len(flat), -1)

    answers = np.asarray(jax.jit(jax.vmap(logits))(jnp.asarray(changed)))
    # logits are around 5: rounding moves them by some 1e-5, the weakest influence by more than 1e-3
    moved = np.abs(answers[:-1] - answers[-1]).max(-1) > 1e-4
    for source, target in itertools.product(range(len(flat)), repeat=2):
        expected = flat[source][0] == flat[target][0] and source < target
        assert moved[source, target] == expected, (flat[source], flat[target])


def test_positions_are_relative(model, world):
    decoder, params = model
    later = dataclasses.replace(BATCH, position=BATCH.position + 40)
    ours = forward(decoder, params, world.tables, BATCH)
    np.testing.assert_allclose(forward(decoder, params, world.tables, later), ours, atol=2e-5)


def test_steps_continue_what_forward_computes(model, world):
    """Beams that swap, die and multiply at every level see exactly their own prefix."""
    decoder, params = model
    histories = [[3, 9, 27, 14, 2], [5, 5], []]
    random = np.random.default_rng(0)
    batch = make_events(*[[h] for h in histories], length=5)
    cache = prefill(decoder, params, world.tables, batch)
    zeros = jnp.zeros((3, 1), jnp.int32)
    logits, cache = first_step(decoder, params, cache, zeros, zeros)
    prefixes = np.zeros((3, 1, 0), np.int32)
    seen = [(prefixes, np.asarray(logits))]
    for level, beams in ((1, 4), (2, 3)):
        parents = random.integers(0, prefixes.shape[1], (3, beams)).astype(np.int32)
        codes = random.integers(0, SPACE.sizes[level - 1], (3, beams)).astype(np.int32)
        kept = np.take_along_axis(prefixes, parents[..., None], axis=1)
        prefixes = np.concatenate([kept, codes[..., None]], axis=-1)
        codes, parents = jnp.asarray(codes), jnp.asarray(parents)
        logits, cache = later_step(decoder, params, cache, codes, parents, jnp.int32(level))
        seen.append((prefixes, np.asarray(logits)))
    # every beam as a history of its own, whose last item has the codes that the beam chose
    places = [
        (level, row, beam)
        for level, (prefixes, _) in enumerate(seen)
        for row, beam in np.ndindex(prefixes.shape[:2])
    ]
    items = [[*seen[level][0][row, beam], 0, 0, 0][:3] for level, row, beam in places]
    tables = Tables(jnp.asarray(np.concatenate([world.codes, np.array(items, np.int32)])))
    rows = [[[*histories[row], len(world.codes) + i]] for i, (_, row, _) in enumerate(places)]
    whole = forward(decoder, params, tables, make_events(*rows, length=6))
    for i, (level, row, beam) in enumerate(places):
        expected = whole[i, len(histories[row]), level]
        np.testing.assert_allclose(seen[level][1][row, beam], expected, atol=2e-5)


def test_the_sum_of_steps_is_the_likelihood_of_the_item(model, world):
    decoder, params = model
    history, target = [3, 9, 27], 14
    whole = make_events([[*history, target]], [], [], [], length=11)
    logits = np.asarray(forward(decoder, params, world.tables, whole))[0, 3]
    codes = world.codes[target]
    expected = log_softmax(logits)[np.arange(3), codes].sum()
    cache = prefill(decoder, params, world.tables, make_events([history], length=5))
    zero = jnp.zeros((1, 1), jnp.int32)
    logits, cache = first_step(decoder, params, cache, zero, zero)
    total = log_softmax(np.asarray(logits)[0, 0])[codes[0]]
    for level in (1, 2):
        chosen = jnp.full((1, 1), codes[level - 1], jnp.int32)
        logits, cache = later_step(decoder, params, cache, chosen, zero, jnp.int32(level))
        total += log_softmax(np.asarray(logits)[0, 0])[codes[level]]
    np.testing.assert_allclose(total, expected, atol=1e-5)


def test_levels_scan_to_the_same_logits(model, world):
    """Levels may run as a `lax.scan` whose carry is the cache."""
    decoder, params = model
    batch = make_events([[3, 9]], [[4]], length=3)
    codes = jnp.array([[1, 0], [2, 2]], jnp.int32)
    parents = jnp.array([[1, 0], [0, 0]], jnp.int32)
    cache = prefill(decoder, params, world.tables, batch)
    start = jnp.zeros((2, 2), jnp.int32)
    _, cache = first_step(decoder, params, cache, start, start)

    def body(cache, level):
        logits, cache = decoder.step(params, cache, codes, parents, level, SPACE)
        return cache, logits

    _, scanned = jax.lax.scan(body, cache, jnp.arange(1, 3, dtype=jnp.int32))
    for level, expected in zip((1, 2), scanned):
        logits, cache = later_step(decoder, params, cache, codes, parents, jnp.int32(level))
        np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_caches_hold_the_history_once(world):
    flat = SHAPES["flat"]
    batch = make_events([[3, 9]], length=4)

    def decode(params):
        cache = flat.prefill(params, world.tables, batch, SPACE)
        codes = jnp.zeros((1, 6), jnp.int32)
        for level in range(3):
            parents = codes if level == 0 else codes + 5
            _, cache = flat.step(params, cache, codes, parents, level, SPACE)
        return cache

    cache = jax.eval_shape(decode, jax.eval_shape(lambda: flat.init(jax.random.key(0), SPACE)))
    assert cache.past.keys.shape == (2, 1, 1 + 4 * 3, 2, 4)  # no axis of beams
    assert cache.past.beam_keys.shape == (2, 1, 6, 2, 2, 4)
    assert cache.user.shape == (1, 1, 16)


def test_written_items_are_history(model, world):
    """Beams that swap while they write three items: after `extend`, steps give what the whole pass
    gives after the longer history."""
    decoder, params = model
    every = np.array(list(itertools.product(*map(range, SPACE.sizes))), np.int32)
    tables = Tables(jnp.asarray(np.concatenate([world.codes, every])))
    random, histories = np.random.default_rng(0), [[3, 9, 27, 14, 2], [5, 5], []]
    step = jax.jit(decoder.step, static_argnums=(4, 5))
    extend = jax.jit(decoder.extend, static_argnums=5)

    def item_of(prefix):
        codes = (*prefix, 0, 0, 0)[:3]
        return len(world.codes) + int(np.ravel_multi_index(codes, SPACE.sizes))

    def draw(beams, level):
        """New beams (history, codes so far), each of which continues one of those, as arrays."""
        parents = random.integers(0, len(beams[0]), (3, 4)).astype(np.int32)
        codes = random.integers(0, SPACE.sizes[max(level - 1, 0)], (3, 4)).astype(np.int32)
        chosen = [
            [
                (history, (*prefix, int(code))) if level else (history, prefix)
                for code, (history, prefix) in zip(
                    codes[row], (beams[row][p] for p in parents[row])
                )
            ]
            for row in range(3)
        ]
        return chosen, jnp.asarray(codes), jnp.asarray(parents)

    beams = [[(history, ())] for history in histories]
    codes = parents = jnp.zeros((3, 1), jnp.int32)
    batch = make_events(*[[h] for h in histories], length=5)
    cache = decoder.prefill(params, tables, batch, SPACE, items=3)
    for number in range(3):
        for level in range(3):
            if number or level:
                beams, codes, parents = draw(beams, level)
            logits, cache = step(params, cache, codes, parents, level, SPACE)
            flat = [beam for row in beams for beam in row]
            rows = [[[*history, item_of(prefix)]] for history, prefix in flat]
            whole = forward(decoder, params, tables, make_events(*rows, length=8))
            expected = [whole[i, len(history), level] for i, (history, _) in enumerate(flat)]
            ours = np.asarray(logits).reshape(len(flat), -1)
            np.testing.assert_allclose(ours, np.stack(expected), atol=3e-5)
        beams, codes, parents = draw(beams, 3)
        beams = [[([*history, item_of(prefix)], ()) for history, prefix in row] for row in beams]
        items = jnp.asarray([[history[-1] for history, _ in row] for row in beams], jnp.int32)
        cache = extend(params, cache, codes, parents, items, SPACE) if number < 2 else cache


def test_a_list_has_the_probability_of_the_longer_history(model, world):
    """`ListBeams` through the network: what it says of a list is what training says of it."""
    decoder, params = model
    codes = np.unique(world.codes, axis=0)
    tables, histories = Tables(jnp.asarray(codes)), [[3, 9, 2], [5], []]
    answer = rank_batch(
        params,
        tables,
        build_catalogue(codes, SPACE),
        Filters(),
        make_events(*[[h] for h in histories], length=4),
        generator=decoder,
        space=SPACE,
        decoding=ListBeams(k=3, width=4),
    )
    lists = np.asarray(answer.items).tolist()
    assert all(len(set(each)) == 3 for each in lists)
    rows = [[[*history, *each]] for history, each in zip(histories, lists)]
    whole = np.asarray(forward(decoder, params, tables, make_events(*rows, length=8)))
    for row, (history, each) in enumerate(zip(histories, lists)):
        total = 0.0
        for place, item in enumerate(each):
            log_probs = log_softmax(whole[row, len(history) + place])
            total += log_probs[np.arange(3), codes[item]].sum()
            np.testing.assert_allclose(answer.scores[row, place], total, atol=3e-5)


def test_a_cache_for_one_item_cannot_go_on(world):
    merged = SHAPES["merged"]
    params, zero = random_params(merged), jnp.zeros((1, 1), jnp.int32)
    cache = prefill(merged, params, world.tables, make_events([[3]], length=2))
    with pytest.raises(ValueError, match=r"prefill\(..., items=2\)"):
        merged.extend(params, cache, zero, zero, zero, SPACE)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_single_level_without_head_layers_decodes(shape, world):
    decoder = dataclasses.replace(SHAPES[shape], head_layers=0)
    space = TokenSpace((9,))
    tables = Tables(jnp.asarray(np.arange(40, dtype=np.int32)[:, None] % 9))
    params = random_params(decoder, space=space)
    zero = jnp.zeros((1, 1), jnp.int32)
    cache = prefill(decoder, params, tables, make_events([[3]], length=2), space=space)
    logits, _ = first_step(decoder, params, cache, zero, zero, space=space)
    whole = forward(decoder, params, tables, make_events([[3, 8]], length=2), space=space)
    np.testing.assert_allclose(logits[0, 0], whole[0, 1, 0], atol=1e-5)
