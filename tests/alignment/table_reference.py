"""A small crooked catalogue for policies, and a slow, obvious account of the table policy on it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from table_policy import TablePolicy, contexts

from jaxrec.alignment.contexts import Context
from jaxrec.alignment.policy import Given
from jaxrec.data.histories import Histories
from jaxrec.data.splits import LeaveOneOut
from jaxrec.decoding import BeamSearch, build_catalogue
from jaxrec.parallel import MeshShape, make_mesh
from jaxrec.training.ranking import Ranker
from jaxrec.training.supervised import StageContext
from jaxrec.types import Tables, TokenSpace

SPACE = TokenSpace((3, 2, 4))
ITEMS = 14


def crooked():
    """Codes of 14 items in no order, two of them with the ID of another; no code 2 at first."""
    every = np.stack(np.unravel_index(np.arange(16), (2, 2, 4)), axis=1)
    chosen = np.random.default_rng(3).permutation(16)[:12]
    return every[[*chosen, chosen[4], chosen[9]]].astype(np.int32)


CODES = crooked()
CATALOGUE = build_catalogue(CODES, SPACE)
GIVEN = Given(Tables(jnp.asarray(CODES)), CATALOGUE)
GENERATOR = TablePolicy(1.0)
QUICK = {"xla_backend_optimization_level": 0}
"""Compiler options: the tests spend their time compiling, not running."""


def table(seed=0):
    """Parameters of the table policy."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: GENERATOR.init(jax.random.key(0), SPACE))
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype("f4"), shapes)


def drawn_params(generator, scale=0.5):
    """Parameters of a network, away from where it says the same of everything."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: generator.init(jax.random.key(0), SPACE))

    def draw(path, leaf):
        numbers = scale * random.normal(size=leaf.shape) + (path[-1].key == "scale")
        return jnp.asarray(numbers, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def batch_of(rows, seed=0):
    """Histories of three items, and what came next."""
    return jax.tree.map(jnp.asarray, Context(*contexts(rows, ITEMS, seed)))


def steps(params, item, live=None, norm="trie", temperature=1.0):
    """Code after code of an item: (level, prefix, log-probability, its slope in the logits).

    `live` are the items that may be written.
    """
    live = np.ones(ITEMS, bool) if live is None else live
    for level, size in enumerate(SPACE.sizes):
        prefix, code = CODES[item, :level], CODES[item, level]
        below = live & (CODES[:, :level] == prefix).all(axis=1)
        node = 0
        for depth, above in enumerate(prefix):
            node = node * SPACE.sizes[depth] + above
        logits = np.asarray(params[f"level_{level}"][node], np.float64) / temperature
        pool = np.unique(CODES[below, level]) if norm == "trie" else np.arange(size)
        mass = np.logaddexp.reduce(logits[pool])
        slope = np.zeros(SPACE.width)
        slope[pool] = -np.exp(logits[pool] - mass)
        slope[code] += 1
        yield level, node, logits[code] - mass, slope / temperature


def code_log_probs(params, item, **how):
    """Log-probability of every code of an item, -inf for what is no item or may not be written."""
    live = how.get("live")
    if not 0 <= item < ITEMS or (live is not None and not live[item]):
        return np.full(SPACE.levels, -np.inf)
    return np.array([log_prob for _, _, log_prob, _ in steps(params, item, **how)])


def all_log_probs(params, items, live=None, **how):
    """`code_log_probs` of items `[b m]`; `live` is `[b n]`."""
    items, params = np.asarray(items), jax.tree.map(np.asarray, params)
    return np.array([
        [code_log_probs(params, item, live=None if live is None else live[row], **how)
         for item in each]
        for row, each in enumerate(items.tolist())
    ])  # fmt: skip


def slope_of(params, weighted, **how):
    """Slope of `sum weight log p(code | codes before)` in the table.

    Args:
        params: the table.
        weighted: (item, weight of each of its codes); no item, no slope.
    """
    found = jax.tree.map(lambda leaf: np.zeros(leaf.shape), params)
    for item, weights in weighted:
        if item >= 0:
            for (level, node, _, slope), weight in zip(steps(params, item, **how), weights):
                found[f"level_{level}"][node] += weight * slope
    return found


def probabilities(params, **how):
    """Of every item: that of its ID, shared evenly by the items that have it and may be written."""
    live = how.get("live")
    live = np.ones(ITEMS, bool) if live is None else live
    alike = (CODES[:, None] == CODES[None]).all(axis=2) & live
    mass = np.exp([code_log_probs(params, item, **how).sum() for item in range(ITEMS)])
    return np.where(live, mass / np.maximum(alike.sum(axis=1), 1), 0.0)


def unseen(batch):
    """Items that are not in each history, bool[b, n]."""
    return ~(np.asarray(batch.events.item)[:, :, None] == np.arange(ITEMS)).any(axis=1)


def close(ours, expected, atol=1e-5):
    """Two trees of numbers."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), ours, expected)


def assert_shares(found, expected, draws):
    """Within four and a half standard errors."""
    error = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(found - expected) <= 4.5 * error + 1e-9).all(), (found, expected)


def context(params=None):
    """A stage of the table policy, of which only generator, space and parameters are read."""
    mesh, four = make_mesh(MeshShape(1), jax.devices()[:1]), np.arange(4)
    histories = Histories(
        offsets=np.array([0, 4]),
        item=four.astype(np.int32),
        time=four,
        action=np.zeros(4, np.int32),
        users=np.array(["u"]),
        items=np.array(["a", "b", "c", "d"]),
    )
    return StageContext(
        generator=GENERATOR,
        space=SPACE,
        tables=GIVEN.tables,
        catalogue=CATALOGUE,
        ranker=Ranker(GENERATOR, SPACE, BeamSearch(4, 4), mesh),
        histories=histories,
        split=LeaveOneOut()(histories),
        history=3,
        rows=4,
        mesh=mesh,
        folder=Path(),
        writers=(),
        seed=0,
        manifest={},
        params=params,
    )
