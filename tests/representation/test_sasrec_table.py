"""The exported table is that of a SASRec trained on every training event, and nothing else."""

import collections

import jax
import numpy as np
import pytest
from behaviour_logs import encode, random_lists, sequences_of

from jaxrec.backbones.sasrec import SasRec
from jaxrec.representation.descent import descend
from jaxrec.representation.sasrec_table import SasRecTable, pack_sequences
from jaxrec.training.optimizers import AdamW
from jaxrec.types import TokenSpace

SMALL = SasRec(layers=1, width=16, heads=2, length=8, dropout=0.0)
MODEL = SasRecTable(SMALL, rows=8, steps=200, optimizer=AdamW(1e-2, warmup_steps=10))


def test_every_event_is_a_target_once_after_its_own_history():
    lists = random_lists(users=20, items=6, seed=3)
    events = pack_sequences(sequences_of(lists), 6, 4).events
    segment, position = np.asarray(events.segment), np.asarray(events.position)
    found = collections.Counter()
    for row in range(len(segment)):
        for number in range(1, segment[row].max() + 1):
            window = segment[row] == number
            np.testing.assert_array_equal(position[row][window], np.arange(window.sum()))
            found[tuple(np.asarray(events.item)[row][window].tolist())] += 1
    cut = [tuple(each[at : at + 4]) for each in lists for at in range(0, len(each), 4)]
    assert found == collections.Counter(cut)
    np.testing.assert_array_equal(events.weight, segment > 0)
    assert (segment > 0).any(1).all()


@pytest.fixture(scope="module")
def circle():
    """Users walk round a circle of six items, some longer than others: what follows is certain,
    but for the start."""
    return [[(user + step) % 6 for step in range(3 + user % 6)] for user in range(30)]


def test_the_loss_is_the_mean_cross_entropy_of_the_drawn_rows(circle):
    data, space = pack_sequences(sequences_of(circle), 6, 8), TokenSpace((6,))
    params = SMALL.init(jax.random.key(0), space)
    rows_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(1), 0))
    drawn = jax.random.randint(rows_key, (MODEL.rows,), 0, len(data.events.item))
    batch = jax.tree.map(lambda array: array[drawn], data.events)
    assert not np.all(batch.weight), "there is padding"
    forward = jax.jit(lambda params, batch: SMALL.forward(params, data.tables, batch, space))
    states, items = forward(params, batch)
    logits = np.asarray(states, np.float64) @ np.asarray(items, np.float64).T
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_p, np.asarray(batch.item)[..., None], 2)[..., 0]
    expected = -(chosen * batch.weight).sum() / batch.weight.sum()
    _, losses = descend(MODEL, params, data, jax.random.key(1))
    np.testing.assert_allclose(losses[0], expected, rtol=1e-5)


def test_it_learns_what_comes_next_and_exports_the_vectors_it_reads(circle):
    found = encode(MODEL, circle, 6, seed=2)
    assert found.vectors.shape == (6, 16)
    starts = len(circle) / sum(map(len, circle))
    assert found.facts["fit_loss"][-1] < 1.1 * starts * np.log(6)
    assert found.facts["fit_loss"][0] > 2 * starts * np.log(6)
    data, space = pack_sequences(sequences_of(circle), 6, 8), TokenSpace((6,))
    assert found.facts["fit_epochs"] == 200 * 8 / len(data.events.item)
    start_key, train_key = jax.random.split(jax.random.key(2))
    params, _ = descend(MODEL, SMALL.init(start_key, space), data, train_key)
    np.testing.assert_array_equal(found.vectors, params["items"]["table"][:6])
