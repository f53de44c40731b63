"""The decoder: what it computes, what may influence what, and that decoding continues training."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_world import SPACE, make_events
from decoder_reference import reference_logits

from jaxrec.backbones.decoder import Decoder
from jaxrec.objectives.next_token import next_token_loss
from jaxrec.types import Tables, TokenSpace

# A large initial scale makes every path matter; grouped heads and unequal levels everywhere.
BASE = Decoder(
    layers=2, width=16, heads=4, kv_heads=2, feedforward=24, dropout=0.0, initial_scale=0.3
)
SHAPES = {
    "merged": dataclasses.replace(BASE, item_buckets=11, head_layers=2, head_feedforward=20),
    "flat": dataclasses.replace(BASE, history="flat"),
}
HISTORIES = [[3, 9, 27, 14], [5, 5], [8, 1, 30]]


@pytest.fixture(scope="module", params=SHAPES)
def model(request):
    """A decoder and its parameters, norms moved off 1."""
    decoder = SHAPES[request.param]
    params = decoder.init(jax.random.key(0), SPACE)
    keys = iter(jax.random.split(jax.random.key(1), 100))
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params)
    return decoder, params


def forward(decoder, params, tables, batch, **options):
    return jax.jit(decoder.forward, static_argnames="space")(
        params, tables, batch, space=SPACE, **options
    )


def loss(decoder, params, tables, batch, key=None):
    logits = decoder.forward(params, tables, batch, SPACE, key=key)
    total, weight = next_token_loss(logits, tables.codes[batch.item], batch.weight)
    return total / weight


def log_softmax(logits):
    """Over the legal codes of each level, in numpy."""
    return logits - np.logaddexp.reduce(np.asarray(logits, np.float64), axis=-1, keepdims=True)


def test_equals_the_numpy_reference(model, world):
    decoder, params = model
    plain = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    logits = np.asarray(forward(decoder, params, world.tables, make_events(HISTORIES, length=11)))
    at = 0
    for history in HISTORIES:
        expected = reference_logits(decoder, plain, SPACE, world.codes, history)
        for event, levels in enumerate(expected):
            for level, row in enumerate(levels):
                ours = logits[0, at + event, level]
                np.testing.assert_allclose(ours[: len(row)], row, atol=2e-5, rtol=1e-5)
                assert np.all(ours[len(row) :] == -1e9)
        at += len(history)


def test_packed_equals_unpacked_whatever_the_padding(model, world):
    decoder, params = model
    packed = forward(decoder, params, world.tables, make_events(HISTORIES, length=11))[0]
    rows = make_events(*[[history] for history in HISTORIES], length=6)
    alone = forward(decoder, params, world.tables, rows)
    expected = jnp.concatenate([row[: len(h)] for row, h in zip(alone, HISTORIES)])
    np.testing.assert_allclose(packed[: len(expected)], expected, atol=1e-5)


def test_what_stands_in_the_padding_does_not_matter(model, world):
    decoder, params = model
    batch = make_events(HISTORIES, length=11)
    padding = batch.segment == 0
    rubbish = dataclasses.replace(
        batch,
        item=jnp.where(padding, -7, batch.item),
        position=jnp.where(padding, 1000, batch.position),
        time=jnp.where(padding, 10**9, batch.time),
    )
    ours = forward(decoder, params, world.tables, batch)
    np.testing.assert_array_equal(
        ours[0, :9], forward(decoder, params, world.tables, rubbish)[0, :9]
    )
    slope = jax.jit(jax.grad(lambda p: loss(decoder, p, world.tables, rubbish)))(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope))


def test_a_code_influences_exactly_what_comes_after_it_in_its_history(model, world):
    decoder, params = model
    histories = [[3, 9, 27], [5, 8]]  # distinct items, so that one code is one place
    flat = [(s, item, level) for s, h in enumerate(histories) for item in h for level in range(3)]
    changed = np.tile(world.codes, (len(flat), 1, 1))
    for index, (_, item, level) in enumerate(flat):
        changed[index, item, level] = (changed[index, item, level] + 1) % SPACE.sizes[level]
    batch = make_events(histories, length=6)

    def logits(codes):
        return decoder.forward(params, Tables(codes), batch, SPACE)[0, :5].reshape(len(flat), -1)

    before = logits(jnp.asarray(world.codes))
    after = jax.jit(jax.vmap(logits))(jnp.asarray(changed))
    moved = np.abs(np.asarray(after - before)).max(-1) > 1e-6
    for source, target in itertools.product(range(len(flat)), repeat=2):
        expected = flat[source][0] == flat[target][0] and source < target
        assert moved[source, target] == expected, (flat[source], flat[target])


def test_positions_are_relative(model, world):
    decoder, params = model
    batch = make_events(HISTORIES, length=11)
    later = dataclasses.replace(batch, position=batch.position + 40)
    ours = forward(decoder, params, world.tables, batch)
    np.testing.assert_allclose(forward(decoder, params, world.tables, later), ours, atol=2e-5)


def test_steps_continue_what_forward_computes(model, world):
    """Beams that swap, die and multiply at every level see exactly their own prefix."""
    decoder, params = model
    histories = [[3, 9, 27, 14, 2], [5, 5], []]
    random = np.random.default_rng(0)
    batch = make_events(*[[h] for h in histories], length=5)
    prefill = jax.jit(decoder.prefill, static_argnames="space")
    step = jax.jit(decoder.step, static_argnames="space")
    cache = prefill(params, world.tables, batch, space=SPACE)
    zeros = jnp.zeros((3, 1), jnp.int32)
    logits, cache = decoder.step(params, cache, zeros, zeros, 0, SPACE)
    prefixes = np.zeros((3, 1, 0), np.int32)
    seen = [(prefixes, np.asarray(logits))]
    for level, beams in ((1, 4), (2, 3)):
        parents = random.integers(0, prefixes.shape[1], (3, beams)).astype(np.int32)
        codes = random.integers(0, SPACE.sizes[level - 1], (3, beams)).astype(np.int32)
        kept = np.take_along_axis(prefixes, parents[..., None], axis=1)
        prefixes = np.concatenate([kept, codes[..., None]], axis=-1)
        logits, cache = step(
            params, cache, jnp.asarray(codes), jnp.asarray(parents), jnp.int32(level), space=SPACE
        )
        seen.append((prefixes, np.asarray(logits)))
    for level, (prefixes, logits) in enumerate(seen):
        for row, beam in itertools.product(range(3), range(prefixes.shape[1])):
            item = np.array([*prefixes[row, beam], 0, 0, 0][:3], np.int32)
            tables = Tables(jnp.asarray(np.concatenate([world.codes, item[None]])))
            target = make_events([[*histories[row], 40]], length=6)
            expected = forward(decoder, params, tables, target)[0, len(histories[row]), level]
            np.testing.assert_allclose(logits[row, beam], expected, atol=2e-5)


def test_the_sum_of_steps_is_the_likelihood_of_the_item(model, world):
    decoder, params = model
    history, target = [3, 9, 27], 14
    batch = make_events([history], length=3)
    whole = make_events([[*history, target]], length=4)
    logits = np.asarray(forward(decoder, params, world.tables, whole))[0, 3]
    codes = world.codes[target]
    expected = log_softmax(logits)[np.arange(3), codes].sum()
    cache = decoder.prefill(params, world.tables, batch, SPACE)
    zero, total = jnp.zeros((1, 1), jnp.int32), 0.0
    for level, code in enumerate(codes):
        chosen = jnp.full((1, 1), codes[level - 1], jnp.int32)
        logits, cache = decoder.step(params, cache, chosen, zero, level, SPACE)
        total += log_softmax(np.asarray(logits)[0, 0])[code]
    np.testing.assert_allclose(total, expected, atol=1e-5)


def test_levels_scan_to_the_same_logits(model, world):
    """Levels of one size may run as a `lax.scan` with a traced level."""
    decoder, params = model
    batch = make_events([[3, 9]], [[4]], length=3)
    codes = jnp.array([[1, 0], [2, 2]], jnp.int32)
    parents = jnp.array([[1, 0], [0, 0]], jnp.int32)
    cache = decoder.prefill(params, world.tables, batch, SPACE)
    start = jnp.zeros((2, 2), jnp.int32)
    _, cache = decoder.step(params, cache, start, start, 0, SPACE)

    def body(cache, level):
        logits, cache = decoder.step(params, cache, codes, parents, level, SPACE)
        return cache, logits

    _, scanned = jax.lax.scan(body, cache, jnp.arange(1, 3, dtype=jnp.int32))
    for level, expected in zip((1, 2), scanned):
        logits, cache = decoder.step(params, cache, codes, parents, level, SPACE)
        np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_caches_hold_the_history_once(world):
    batch = make_events([[3, 9]], length=4)
    flat = SHAPES["flat"]
    cache = flat.prefill(flat.init(jax.random.key(0), SPACE), world.tables, batch, SPACE)
    codes = jnp.zeros((1, 6), jnp.int32)
    for level in range(3):
        parents = codes if level < 2 else codes + 5
        _, cache = flat.step(
            flat.init(jax.random.key(0), SPACE), cache, codes, parents, level, SPACE
        )
    assert cache.keys.shape == (2, 1, 1 + 4 * 3, 2, 4)  # no axis of beams
    assert cache.beam_keys.shape == (2, 1, 6, 2, 2, 4)
    assert np.asarray(cache.key_mask)[0].tolist() == [True] * 7 + [False] * 6


def test_a_single_level_decodes(world):
    space = TokenSpace((9,))
    codes = jnp.asarray(np.arange(40, dtype=np.int32)[:, None] % 9)
    for decoder in SHAPES.values():
        params = decoder.init(jax.random.key(0), space)
        cache = decoder.prefill(params, Tables(codes), make_events([[3]], length=2), space)
        zero = jnp.zeros((1, 1), jnp.int32)
        logits, _ = decoder.step(params, cache, zero, zero, 0, space)
        whole = decoder.forward(params, Tables(codes), make_events([[3, 8]], length=2), space)
        np.testing.assert_allclose(logits[0, 0], whole[0, 1, 0], atol=1e-5)
