"""A whole alignment stage around a table policy: the items of a bandit, a log, and a context."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from table_policy import TablePolicy, world

from jaxrec.data.histories import Histories
from jaxrec.data.splits import LeaveOneOut
from jaxrec.decoding.beam import BeamSearch
from jaxrec.decoding.build import build_catalogue
from jaxrec.objectives.rewards.drawn import Drawn, feature_of, frozen
from jaxrec.training.ranking import Ranker
from jaxrec.training.supervised import StageContext


@dataclasses.dataclass(frozen=True)
class Known:
    """A reward that is a feature of the item, whoever asks."""

    name: str

    def __call__(self, drawn: Drawn, key: jax.Array | None = None) -> jax.Array:
        del key
        return frozen(feature_of(drawn, self.name)[drawn.items], drawn.valid)


@dataclasses.dataclass(frozen=True)
class Scored:
    """A reward that reads scores of frozen models, which here are features of the item."""

    reward: Any
    names: tuple[str, ...]

    def __call__(self, drawn: Drawn, key: jax.Array | None = None) -> jax.Array:
        scores = {name: feature_of(drawn, name)[drawn.items] for name in self.names}
        return self.reward(drawn._replace(scores=scores), key)


def toy_log(items: int, users: int = 40, events: int = 6, seed: int = 0) -> Histories:
    """Users who read items at random."""
    item = np.random.default_rng(seed).integers(0, items, users * events)
    return Histories(
        offsets=np.arange(users + 1, dtype=np.int64) * events,
        item=item.astype(np.int32),
        time=np.tile(np.arange(events, dtype=np.int64), users),
        action=np.zeros(users * events, np.int32),
        users=np.arange(users).astype(str),
        items=np.arange(items).astype(str),
    )


def toy_context(
    folder: Path,
    mesh: Mesh,
    *,
    items: int = 64,
    sizes: tuple[int, ...] = (4, 4, 4),
    features: dict[str, np.ndarray] | None = None,
    scale: float = 0.0,
    seed: int = 0,
    **changes: Any,
) -> StageContext:
    """A table policy over a world of items, about to be aligned; `scale` and `seed` draw its
    logits."""
    codes, space, tables = world(items, sizes)
    generator = TablePolicy(scale)
    told = {name: jnp.asarray(value) for name, value in (features or {}).items()}
    histories = toy_log(items)
    context = StageContext(
        generator=generator,
        space=space,
        tables=dataclasses.replace(tables, features=told),
        catalogue=build_catalogue(codes, space),
        ranker=Ranker(generator, space, BeamSearch(width=10, k=10), mesh),
        histories=histories,
        split=LeaveOneOut()(histories),
        history=3,
        rows=8,
        mesh=mesh,
        folder=folder,
        writers=(),
        seed=seed,
        manifest={},
        params=generator.init(jax.random.key(seed), space),
    )
    return dataclasses.replace(context, **changes)
