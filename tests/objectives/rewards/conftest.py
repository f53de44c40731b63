"""Groups of rollouts over a small catalogue."""

import jax
import numpy as np
import pytest

from jaxrec.objectives.rewards import Drawn

ITEMS, LEVELS = 30, 3


def random_groups(rows=4, places=6, seed=0):
    """Groups on the host, whose items repeat, hit their target now and then, and may be invalid."""
    random = np.random.default_rng(seed)
    item_codes = random.integers(0, 3, (ITEMS, LEVELS)).astype(np.int32)
    items = random.integers(0, 8, (rows, places)).astype(np.int32)
    valid = random.random((rows, places)) < 0.8
    target = random.integers(0, 8, rows).astype(np.int32)
    target[0], target[-1] = items[0, 0], -1
    valid[0, 0], valid[0, 1] = True, False
    history = random.integers(0, ITEMS, (rows, 9)).astype(np.int32)
    scores = {
        name: random.random((rows, places)).astype(np.float32)
        for name in ("preference", "relevance", "ctr", "cvr", "ctcvr")
    }
    scores["play_time"] = random.integers(0, 40, (rows, places)).astype(np.float32)
    scores["negative"] = (random.random((rows, places)) < 0.2).astype(np.float32)
    features = {
        "popularity": random.integers(0, 50, ITEMS).astype(np.int32),
        "vectors": random.normal(size=(ITEMS, 5)).astype(np.float32),
        "viral": random.random(ITEMS) < 0.5,
        "duration_bucket": random.integers(0, 4, ITEMS).astype(np.int32),
        "play_quantiles": np.sort(random.integers(0, 40, (4, 8)), axis=-1).astype(np.float32),
    }
    lists = random.integers(-1, 8, (rows, places, 5)).astype(np.int32)
    truth = np.stack([random.permutation(8)[:4] for _ in range(rows)]).astype(np.int32)
    truth[1, 2:] = -1
    return Drawn(
        items=np.where(valid, items, -1),
        codes=item_codes[items],
        valid=valid,
        log_probs=random.normal(size=(rows, places)).astype(np.float32),
        target=target,
        target_codes=item_codes[np.maximum(target, 0)],
        item_codes=item_codes,
        features=features,
        scores=scores,
        history=history,
        seen=random.random((rows, 9)) < 0.7,
        history_play=random.integers(0, 40, (rows, 9)).astype(np.float32),
        lists=lists,
        truth=truth,
    )


@pytest.fixture
def drawn():
    return random_groups()


@pytest.fixture
def groups_like():
    """Makes groups with other numbers: `groups_like(rows=, places=, seed=)`."""
    return random_groups


@pytest.fixture(scope="module", autouse=True)
def compile_fast():
    """Small programs, run once: XLA's optimisations cost more than they save."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
