"""A trained run as a program: StableHLO that answers histories, with the index as an argument.

The program is serialised by `jax.export`, which keeps it loadable by later versions of jax
(https://docs.jax.dev/en/latest/export/export.html). Its batch is symbolic, so any number of
histories is served; the trie is an argument with room to grow, so that items come and go without a
new export. `jaxrec.interop.exported`, which is copied beside it, needs jax and numpy alone.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from jaxrec.decoding import Catalogue, Filters, build_catalogue, shape_for
from jaxrec.decoding.catalogue import Kind, TrieShape
from jaxrec.files import publish, read_json, write_json
from jaxrec.interop import exported
from jaxrec.training.ranking import bind, is_retriever
from jaxrec.types import Events, PyTree, Ranked, Tables, TokenSpace

PLATFORMS = ("cpu", "cuda", "tpu")


@dataclasses.dataclass(frozen=True)
class Index:
    """What a program reads about items."""

    tables: Tables
    catalogue: Catalogue
    names: np.ndarray
    """Item ids, by item number."""
    space_id: str
    """Which semantic IDs the codes are."""

    @property
    def arrays(self) -> list[jax.Array]:
        """All arrays, in the order in which the program takes them."""
        return jax.tree.leaves((self.tables, self.catalogue))


def build_index(
    codes: np.ndarray,
    space: TokenSpace,
    order: np.ndarray,
    features: dict[str, np.ndarray],
    names: np.ndarray,
    space_id: str,
    *,
    shape: TrieShape,
    places: int,
) -> Index:
    """An index of a shape, with unused places for items at its end.

    Args:
        codes: integers `[n, l]`.
        space: their token space.
        order: numbers `[n]`; lower ones come first inside a collision group.
        features: arrays `[n, ...]` that the generator reads.
        names: item ids `[n]`.
        space_id: which semantic IDs the codes are.
        shape: of the trie, from `shape_for` or another index.
        places: items that there is place for.

    Raises:
        ValueError: it does not fit.
    """
    catalogue = build_catalogue(codes, space, order, shape=shape, items=places)
    missing = places - len(codes)

    def pad(values: np.ndarray) -> jax.Array:
        values = np.asarray(values)
        return jnp.asarray(np.pad(values, ((0, missing), *((0, 0),) * (values.ndim - 1))))

    tables = Tables(pad(codes), {name: pad(values) for name, values in features.items()})
    return Index(tables, catalogue, np.asarray(names, str), space_id)


def room_for(
    codes: np.ndarray, space: TokenSpace, generator: Any, room: float
) -> tuple[TrieShape, int]:
    """The shape of an index that may grow by a share, and its places for items.

    A retriever has a vector for every item of its training and cannot take others: no room.

    Raises:
        ValueError: a negative `room`.
    """
    share = 0.0 if is_retriever(generator) else room
    return shape_for(codes, space, room=room), int(len(codes) * (1 + share))


def export_program(
    generator: Any,
    space: TokenSpace,
    decoding: Any,
    params: PyTree,
    index: Index,
    *,
    history: int,
    denied: int,
    platforms: Sequence[str] = PLATFORMS,
) -> jax.export.Exported:
    """`(parameters, index, history [b t], denied [b m]) -> (items, scores, valid) [b k]`.

    Args:
        generator: the network, a component.
        space: its token space.
        decoding: how answers are written.
        params: the network's parameters; their values are not in the program.
        index: any index; its values are not in the program, its shapes are.
        history: events that are read.
        denied: items that can be excluded a row.
        platforms: what the program shall run on.
    """
    tree = jax.tree.structure(params)
    index_tree = jax.tree.structure((index.tables, index.catalogue))

    def answer(params: list, index: list, item: jax.Array, denied: jax.Array) -> tuple:
        tables, catalogue = jax.tree.unflatten(index_tree, index)
        events = _events(item)
        functions = bind(generator, jax.tree.unflatten(tree, params), tables, events, space)
        ranked: Ranked = decoding(functions, catalogue, Filters(denied=denied))
        return ranked.items, ranked.scores, ranked.valid

    (batch,) = jax.export.symbolic_shape("b")
    rows = [jax.ShapeDtypeStruct((batch, width), jnp.int32) for width in (history, denied)]
    # Shapes alone: where the arrays lie here, on how many devices, is not the program's.
    given = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        (jax.tree.leaves(params), index.arrays),
    )
    return jax.export.export(jax.jit(answer), platforms=list(platforms))(*given, *rows)


def _events(item: jax.Array) -> Events:
    """Histories from rows of items that are padded with -1."""
    there = item >= 0
    segment = there.astype(jnp.int32)
    place = jnp.arange(item.shape[1], dtype=jnp.int32) * segment
    nothing = jnp.zeros_like(item)
    item = jnp.maximum(item, 0)
    return Events(item, segment, place, nothing, nothing, jnp.zeros(item.shape, jnp.float32))


def write_export(
    folder: Path,
    program: jax.export.Exported,
    params: PyTree,
    index: Index,
    about: dict[str, Any],
) -> None:
    """Writes an export, all of it or nothing.

    Args:
        folder: where; must not exist.
        program: from `export_program`.
        params: the network's parameters.
        index: the first index.
        about: "k", "history", "denied", and whatever else shall be known.
    """

    def fill(made: Path) -> None:
        (made / exported.PROGRAM).write_bytes(program.serialize())
        leaves = jax.tree.leaves(params)
        np.savez(made / exported.PARAMETERS, **_named(leaves))
        shutil.copyfile(exported.__file__, made / "exported.py")
        _write_index(made, index, about)

    publish(folder, fill)


def write_index(folder: Path, index: Index, about: dict[str, Any]) -> None:
    """Writes an index alone, for `Exported.swap`; `about` as in `write_export`."""
    publish(folder, lambda made: _write_index(made, index, about))


def _write_index(folder: Path, index: Index, about: dict[str, Any]) -> None:
    arrays = _named(index.arrays)
    np.savez(folder / exported.INDEX, **arrays, **{exported.ITEMS: index.names})
    shape = dataclasses.asdict(index.catalogue.shape)
    told = {
        "space_id": index.space_id,
        "shape": shape,
        "places": index.catalogue.items,
        "index": [[list(each.shape), str(each.dtype)] for each in arrays.values()],
    }
    write_json(folder / exported.MANIFEST, about | told)


def _named(leaves: Sequence[Any]) -> dict[str, Any]:
    return {f"array_{number:05}": np.asarray(leaf) for number, leaf in enumerate(leaves)}


def shape_of_export(folder: Path) -> tuple[TrieShape, int]:
    """The shape and the places of the index that an export was made with.

    Raises:
        ValueError: the folder is no export.
    """
    if not (folder / exported.MANIFEST).is_file():
        raise ValueError(
            f"{folder} is no export: it has no {exported.MANIFEST}. `jaxrec export` makes one."
        )
    manifest = read_json(folder / exported.MANIFEST)
    shape = manifest["shape"]
    kinds: tuple[Kind, ...] = tuple(shape["kinds"])
    crowd = tuple(map(tuple, shape["crowd"]))
    nodes, fanout = tuple(shape["nodes"]), tuple(shape["fanout"])
    return TrieShape(nodes, kinds, fanout, shape["max_group"], crowd), manifest["places"]
