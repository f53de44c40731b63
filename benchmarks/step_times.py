"""Times of training steps as `Supervised` makes them: what the training benchmarks share."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

WARM_UPS = 3


def measure(
    network: Any,
    space: Any,
    objective: Any,
    draw: Callable[[], Any],
    *,
    items: int,
    microbatches: int,
    steps: int,
    adam: Any = None,
    warm_ups: int = WARM_UPS,
) -> dict[str, Any]:
    """Median seconds of a step, each on a batch of its own that comes from the host.

    Args:
        network: the backbone.
        space: its token space.
        objective: what it is trained for.
        draw: makes a batch; not timed.
        items: rows of the catalogue, whose codes are random.
        microbatches: parts of a batch.
        steps: timed ones.
        adam: the optimizer; Adam with a constant rate and no clipping without.
        warm_ups: steps before.

    Returns:
        Times in seconds, `parameters`, the last `loss`, and `foretold_gib`: the memory of the step
        as the compiler tells it before anything runs.
    """
    import jax
    import numpy as np

    from jaxrec.parallel import make_mesh, replicated, shard_rows
    from jaxrec.scaling.forecast import memory_of
    from jaxrec.training.optimizers import AdamW
    from jaxrec.training.state import abstract_state, create_state, state_shardings
    from jaxrec.training.step import make_train_step
    from jaxrec.training.supervised import Supervised
    from jaxrec.types import Tables

    plain = AdamW(warmup_steps=0, schedule="constant", weight_decay=0.0, b2=0.98, clip_norm=0.0)
    optimizer, mesh = (adam or plain).build(1), make_mesh()

    def init(key: jax.Array) -> Any:
        return network.init(key, space)

    abstract = abstract_state(init, optimizer, network.axes(space), mesh)
    state = create_state(init, optimizer, jax.random.key(0), abstract)
    step = make_train_step(
        Supervised(objective).loss(network, space),
        optimizer,
        mesh=mesh,
        shardings=state_shardings(abstract),
        microbatches=microbatches,
    )
    rng = np.random.default_rng(0)
    if space.levels == 1:
        codes = np.arange(items, dtype=np.int32)[:, None]
    else:
        codes = rng.integers(0, min(space.sizes), (items, space.levels), dtype=np.int32)
    tables, key = jax.device_put((Tables(codes), jax.random.key(1)), replicated(mesh))
    start = time.perf_counter()
    compiled = step.lower(state, tables, shard_rows(draw(), mesh), key).compile()
    compiling = time.perf_counter() - start
    times, work, report = [], [], None
    for _ in range(warm_ups + steps):
        batch = draw()
        start, busy = time.perf_counter(), time.process_time()
        state, report = compiled(state, tables, shard_rows(batch, mesh), key)
        total, weight = jax.device_get(report.metrics["loss"])
        times.append(time.perf_counter() - start)
        work.append(time.process_time() - busy)
    return {
        "seconds": statistics.median(times[warm_ups:]),
        "fastest": min(times[warm_ups:]),
        "cpu_seconds": statistics.median(work[warm_ups:]),
        "compile": compiling,
        "foretold_gib": round(memory_of(compiled)["total"] / 2**30, 2),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "loss": float(total / weight),
    }


def full_rows(rng: Any, rows: int, length: int, items: int) -> Any:
    """A batch without padding: random items, one event a minute, every event a target."""
    import numpy as np

    from jaxrec.types import Events

    none = np.zeros((rows, length), np.int32)
    return Events(
        item=rng.integers(0, items, (rows, length), dtype=np.int32),
        segment=none + 1,
        position=none + np.arange(length, dtype=np.int32),
        time=none + 60 * np.arange(length, dtype=np.int32),
        action=none,
        weight=np.ones((rows, length), np.float32),
    )


def summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Medians of the rounds' medians, and the fastest step of all."""
    return {
        "seconds": round(statistics.median(each["seconds"] for each in runs), 4),
        "fastest": round(min(each["fastest"] for each in runs), 4),
        "cpu_seconds": round(statistics.median(each["cpu_seconds"] for each in runs), 4),
        "others": round(max(each["others"] for each in runs), 2),
        "rounds": len(runs),
    }
