"""What a recipe will cost, before any data is read: parameters, FLOPs, and compiled programs.

Nothing here allocates an array. The programs are lowered for a mesh of real devices, or of a
described topology that no machine at hand has, and compiled to learn their memory.
"""

from __future__ import annotations

import collections
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxrec.decoding.build import build_catalogue
from jaxrec.decoding.filters import Filters
from jaxrec.objectives.item_sampled import POPULARITY
from jaxrec.parallel import replicated, rows_sharding
from jaxrec.recipe import Recipe
from jaxrec.tokenization.collisions import ExtraDigit
from jaxrec.tokenization.item_ids import ItemIds
from jaxrec.tokenization.sinkhorn_last import SinkhornLast
from jaxrec.training.ranking import denied_width, rank_batch
from jaxrec.training.state import abstract_state, state_shardings
from jaxrec.training.step import lower_train_step, make_train_step
from jaxrec.types import Events, PyTree, Tables, TokenSpace

ASSUMED_CAPACITY = 16
"""Codes of an extra digit whose capacity the recipe leaves to the data."""

_COLLECTIVES = re.compile(
    r"= .*?\b(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def expected_space(recipe: Recipe, items: int) -> TokenSpace:
    """The token space that the recipe asks for; the data may cap a level or fix the capacity.

    Args:
        recipe: its tokenizer decides.
        items: size of the catalogue that is assumed; what sparse item ids are made of.

    Raises:
        ValueError: the quantizer does not know its sizes before it is fitted, as published IDs
            do not before they are read.
    """
    if isinstance(recipe.tokenizer, ItemIds):
        return TokenSpace((items,))
    collisions = recipe.tokenizer.collisions
    quantizer = getattr(recipe.tokenizer, "quantizer", recipe.tokenizer)
    sizes = getattr(quantizer, "asked_sizes", None)
    if sizes is None:
        raise ValueError(
            f"{type(quantizer).__name__} does not know its sizes before it is fitted (it has no "
            "`asked_sizes`); run `jaxrec tokenize` and look at the sizes it prints."
        )
    while isinstance(collisions, SinkhornLast):
        collisions = collisions.leftovers  # which ends the codes, and may append the digit
    if not isinstance(collisions, ExtraDigit):
        return TokenSpace(tuple(sizes))
    capacity = collisions.capacity or ASSUMED_CAPACITY
    return TokenSpace((*sizes, capacity), has_extra_digit=True)


def forecast(recipe: Recipe, space: TokenSpace) -> dict[str, float]:
    """Parameters, FLOPs of a training step, and bytes of the training state, all by formula.

    Args:
        recipe: its generator must tell `parameters(space)` and `flops(space, rows, length)`.
        space: the token space.

    Returns:
        parameters; flops_per_step (forward and backward of one batch); state_bytes (float32
        parameters, two moments, one gradient).
    """
    parameters = recipe.generator.parameters(space)
    return {
        "parameters": float(parameters),
        "flops_per_step": recipe.stages[0].flops(recipe.generator, space),
        "state_bytes": 16.0 * parameters,
    }


def lower_training(recipe: Recipe, space: TokenSpace, items: int, mesh: Mesh) -> Any:
    """The first stage's training step, lowered for a mesh.

    Args:
        recipe: what to train.
        space: the token space.
        items: size of the catalogue.
        mesh: real devices or those of a described topology.
    """
    stage, generator = recipe.stages[0], recipe.generator
    optimizer = stage.optimizer.build(stage.fit.steps)
    abstract = abstract_state(
        lambda key: generator.init(key, space), optimizer, generator.axes(space), mesh
    )
    step = make_train_step(
        stage.loss(generator, space),
        optimizer,
        mesh=mesh,
        shardings=state_shardings(abstract),
        microbatches=stage.fit.microbatches,
    )
    batch = events_shape(*stage.feed.batch_shape)
    return lower_train_step(step, abstract, tables_shape(space, items), batch, mesh=mesh)


def lower_decoding(recipe: Recipe, space: TokenSpace, items: int, mesh: Mesh) -> Any:
    """The answer to one batch of histories, lowered for a mesh.

    The catalogue is one of random semantic IDs: its shapes are what counts.

    Args: as `lower_training`.
    """
    generator, evaluation = recipe.generator, recipe.evaluation
    rows = evaluation.rows
    params = abstract_state(
        lambda key: generator.init(key, space),
        recipe.stages[0].optimizer.build(1),
        generator.axes(space),
        mesh,
    ).params
    everywhere, by_row = replicated(mesh), rows_sharding(mesh)
    denied = jax.ShapeDtypeStruct((rows, denied_width(evaluation.history)), jnp.int32)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return rank_batch.lower(
            params,
            _placed(tables_shape(space, items), everywhere),
            _placed(random_catalogue(space, items), everywhere),
            Filters(allowed=None, denied=_placed(denied, by_row)),
            _placed(events_shape(rows, evaluation.history), by_row),
            generator=generator,
            space=space,
            decoding=recipe.decoding,
        )


def memory_of(compiled: Any) -> dict[str, int]:
    """Bytes that a compiled program needs on each device.

    Returns:
        arguments, outputs, temporaries, code, and total; donated arguments are counted once.
    """
    found = compiled.memory_analysis()
    parts = {
        "arguments": int(found.argument_size_in_bytes),
        "outputs": int(found.output_size_in_bytes - found.alias_size_in_bytes),
        "temporaries": int(found.temp_size_in_bytes),
        "code": int(found.generated_code_size_in_bytes),
    }
    return {**parts, "total": sum(parts.values())}


def collectives_of(compiled: Any) -> dict[str, int]:
    """How often each collective stands in a compiled program's text (a loop's body counts once)."""
    found = collections.Counter(_COLLECTIVES.findall(compiled.as_text()))
    return dict(sorted(found.items()))


def events_shape(rows: int, length: int) -> PyTree:
    """Shapes of a batch: `Events` of `jax.ShapeDtypeStruct`."""

    def empty() -> Events:
        whole = jnp.zeros((rows, length), jnp.int32)
        return Events(whole, whole, whole, whole, whole, whole.astype(jnp.float32))

    return jax.eval_shape(empty)


def tables_shape(space: TokenSpace, items: int) -> PyTree:
    """Shapes of the item tables: `Tables` of `jax.ShapeDtypeStruct`."""

    def empty() -> Tables:
        counts = jnp.zeros(items, jnp.int32)
        return Tables(jnp.zeros((items, space.levels), jnp.int32), {POPULARITY: counts})

    return jax.eval_shape(empty)


def random_catalogue(space: TokenSpace, items: int) -> PyTree:
    """A catalogue of uniformly random codes, the same at every call."""
    dice = np.random.default_rng(0)
    codes = np.stack([dice.integers(0, size, items) for size in space.sizes], axis=1)
    return build_catalogue(codes.astype(np.int32), space)


def _placed(tree: PyTree, sharding: jax.sharding.Sharding) -> PyTree:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )
