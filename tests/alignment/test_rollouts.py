"""Groups that a policy writes: what is said of them is what they are drawn with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from table_reference import (
    CODES,
    GENERATOR,
    GIVEN,
    ITEMS,
    QUICK,
    SPACE,
    all_log_probs,
    assert_shares,
    batch_of,
    code_log_probs,
    drawn_params,
    probabilities,
    table,
    unseen,
)

from jaxrec.alignment.policy import Policy
from jaxrec.alignment.rollouts import Beams, Rollouts, Sample, StochasticBeam
from jaxrec.backbones.decoder import Decoder
from jaxrec.backbones.t5 import T5
from jaxrec.types import Events

DECODER = Decoder(layers=1, width=8, heads=2, feedforward=8, dropout=0.0)
NETWORKS = {
    "table": GENERATOR,
    "decoder": DECODER,
    "t5": T5(layers=1, decoder_layers=1, width=8, heads=2, head_size=4, feedforward=8, dropout=0.0),
}
WAYS = (Sample(13, 0.7), StochasticBeam(13, 0.7), Beams(13, 0.7))


@functools.cache
def written(name):
    """What each way writes with a network, and what the policy says of it afterwards."""
    generator, batch = NETWORKS[name], batch_of(4)
    params = drawn_params(generator)

    ways = WAYS if name == "table" else WAYS[:2]

    def run(params, given, events, key):
        found, functions = [], None
        for way in ways:
            policy = Policy(generator, SPACE, way, mask_seen=name == "table")
            functions = functions or policy.read(params, given, events)
            group = policy.write(functions, given, events, key)
            scores = policy.log_probs(functions, given, group.items, policy.filters(events))[0]
            found.append((group, scores))
        return found

    program = jax.jit(run, compiler_options=QUICK)
    found = program(params, GIVEN, batch.events, jax.random.key(1))
    return params, batch, jax.device_get(found)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_written_is_scored_as_it_was_drawn(name):
    """Same normalisation, temperature and filters: the law that every ratio rests on."""
    _, batch, found = written(name)
    for way, (group, scores) in zip(WAYS, found):
        items, live = group.items, unseen(batch) if name == "table" else np.ones((4, ITEMS), bool)
        there = items >= 0
        assert np.take_along_axis(live, np.maximum(items, 0), axis=1)[there].all()
        assert (scores == -np.inf).all(axis=-1).tolist() == (~there).tolist()
        if isinstance(way, Beams):
            assert group.log_probs is None
        else:
            np.testing.assert_allclose(group.log_probs[there], scores[there], atol=1e-5)
        if isinstance(way, Sample):
            assert there.all()
            continue
        # Without replacement: each ID once (each item, in a beam), and then nothing.
        assert not there.all()
        for row in range(4):
            here = items[row][there[row]].tolist()
            if isinstance(way, StochasticBeam):
                here = [tuple(CODES[item]) for item in here]
                assert set(here) == {tuple(CODES[item]) for item in np.flatnonzero(live[row])}
            assert len(set(here)) == len(here)


def test_networks_do_not_say_the_same_of_everything():
    """Or the law above would be of no use."""
    for name in NETWORKS:
        _, _, found = written(name)
        scores = np.asarray(found[1][1]).sum(-1)
        assert np.nanstd(np.where(np.isfinite(scores), scores, np.nan)) > 0.2, name


def test_scores_are_those_of_the_definition():
    params, batch, found = written("table")
    for group, scores in found:
        expected = all_log_probs(params, group.items, live=unseen(batch), temperature=0.7)
        np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_beams_are_the_likeliest_first():
    """By the policy as it is: a temperature is for the scores that follow."""
    params, batch, found = written("table")
    live = unseen(batch)
    for row, group in enumerate(found[2][0].items):
        exact = {
            item: code_log_probs(params, item, live=live[row]).sum()
            for item in np.flatnonzero(live[row])
        }
        order = sorted(exact, key=lambda item: (-round(exact[item], 4), item))
        assert group.tolist() == [*order, *[-1] * (13 - len(order))]


def test_shares_follow_the_probabilities():
    rows = 2048
    params, batch = table(), batch_of(1)
    events = jax.tree.map(lambda array: np.repeat(array, rows, axis=0), batch.events)
    live = unseen(batch)[0]

    def run(params, given, events, key):
        found = []
        for way in (Sample(4, 1.5), StochasticBeam(2, 1.5)):
            policy = Policy(GENERATOR, SPACE, way, mask_seen=True)
            functions = policy.read(params, given, events)
            found.append(policy.write(functions, given, events, key).items)
        return found

    program = jax.jit(run, compiler_options=QUICK)
    drawn, apart = map(np.asarray, program(params, GIVEN, events, jax.random.key(2)))
    expected = probabilities(params, live=live, temperature=1.5)
    assert expected.sum() == pytest.approx(1)
    shares = np.bincount(drawn.ravel(), minlength=ITEMS) / drawn.size
    assert_shares(shares, expected, drawn.size)
    first = np.bincount(apart[:, 0], minlength=ITEMS) / rows
    assert_shares(first, expected, rows)
    assert live.sum() < ITEMS
    assert live[drawn].all()
    assert live[apart].all()


def test_padding_of_a_history_is_not_masked():
    """What stands behind a history is no item of it."""
    item, zero = np.array([[3, 5, 7]], np.int32), np.zeros((1, 3), np.int32)
    segment = np.array([[1, 0, 0]], np.int32)
    events = Events(item, segment, zero, zero, zero, zero.astype(np.float32))
    masking = Policy(GENERATOR, SPACE, Sample(), mask_seen=True)
    assert masking.filters(jax.tree.map(jnp.asarray, events)).denied.tolist() == [[3, -1, -1]]
    assert Policy(GENERATOR, SPACE, Sample()).filters(events).denied is None


@pytest.mark.parametrize("way", [Sample, StochasticBeam, Beams])
def test_ways_are_rollouts_and_refuse_impossible_numbers(way):
    assert isinstance(way(), Rollouts)
    assert hash(way(4)) == hash(way(4))
    with pytest.raises(ValueError, match="count=0"):
        way(group=0)
    with pytest.raises(ValueError, match=r"temperature=0\.0 must be positive"):
        way(temperature=0.0)
