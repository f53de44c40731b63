"""Weights of Hugging Face models in and out, one tensor at a time.

    component = read_config("Qwen2.5-0.5B")
    params = import_weights("Qwen2.5-0.5B", component, dtype="float32")
    export_weights(params, component, "out")

Importing never holds more than the result and the part that is being read: every device's shard is
filled layer by layer from the bytes of the files that it is made of, so a host of a pod reads its
own shards and no more. Exporting gathers one parameter at a time.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from jaxrec.backbones.language_model import LanguageModel
from jaxrec.backbones.layers import DTYPES
from jaxrec.backbones.t5 import T5
from jaxrec.files import publish, write_json
from jaxrec.interop import safetensors_files
from jaxrec.interop.huggingface_config import (
    CONFIG,
    family_of,
    fields_of,
    read_settings,
    settings_of,
)
from jaxrec.interop.safetensors_files import Entry, Stored, open_tensors, read_tensor, write_tensors
from jaxrec.interop.weight_names import COPIES, HARMLESS, Sizes, Weight, sizes_of, weights_of
from jaxrec.types import PyTree

_NAMED = 4
"""Keys that an error names."""
_ALIGNMENT = 64
"""Bytes: arrays that begin at a multiple are not copied where the device is the CPU."""


def import_weights(
    folder: Path | str,
    component: LanguageModel | T5,
    shardings: PyTree | None = None,
    dtype: str | None = None,
) -> PyTree:
    """The parameters that a folder in Hugging Face's layout holds.

    The token table has the rows of the files; those of semantic IDs are for the caller to add.

    Args:
        folder: `config.json` and safetensors.
        component: from `read_config`, perhaps with another dropout, dtype and the like.
        shardings: the tree of the parameters with a `jax.sharding.Sharding` at each leaf (see
            `jaxrec.parallel.shardings`); the default device without.
        dtype: "float32" or "bfloat16"; as in the files by default.

    Raises:
        ValueError: keys that are missing, unexpected, or of another shape; a damaged file; or a
            component that is not what the configuration describes.
    """
    _check_dtype(dtype)
    weights, tensors, sizes = check_weights(folder, component)
    placed = place_all([weight.path for weight in weights], shardings)
    kept = None if dtype is None else np.dtype(dtype)
    flat = {
        weight.path: load_array(weight, tensors, sizes, placed[weight.path], kept)
        for weight in weights
    }
    return nest(flat)


def check_weights(
    folder: Path | str, component: LanguageModel | T5
) -> tuple[tuple[Weight, ...], dict[str, Stored], Sizes]:
    """Compares a folder with a component without reading numbers; see `import_weights`.

    Returns:
        The lines of the table that apply, where every tensor lies, and the length of every axis.

    Raises:
        ValueError: as in `import_weights`.
    """
    settings = read_settings(folder)
    for field, value in fields_of(folder, settings).items():
        if getattr(component, field, None) != value:
            raise ValueError(
                f"{Path(folder) / CONFIG} describes a network with {field}={value!r}, this one has "
                f"{field}={getattr(component, field, None)!r}; take that of read_config."
            )
    family, tensors = settings["model_type"], open_tensors(folder)
    vocabulary = settings.get("vocab_size")
    if type(vocabulary) is not int or vocabulary < 1:
        raise ValueError(f"{Path(folder) / CONFIG}: vocab_size={vocabulary!r} must be positive.")
    weights, sizes = weights_of(family, component), sizes_of(component, vocabulary)
    wanted = {key: weight.key_shape(sizes) for weight in weights for key in weight.keys(sizes)}
    copies = {key: of for key, of in COPIES[family].items() if key not in wanted}
    _check_keys(folder, tensors, wanted, copies)
    for key, original in copies.items():
        if key in tensors and not _are_equal(tensors[key], tensors[original]):
            raise ValueError(
                f"{key} in {folder} differs from {original}, and {CONFIG} says that they are tied."
            )
    return weights, tensors, sizes


def _check_keys(
    folder: Path | str,
    tensors: Mapping[str, Stored],
    wanted: Mapping[str, tuple[int, ...]],
    copies: Mapping[str, str],
) -> None:
    """Refuses keys that are missing, unexpected, or of another shape, by name."""
    missing = [key for key in wanted if key not in tensors]
    unexpected = [
        key
        for key in tensors
        if key not in wanted and key not in copies and not HARMLESS.search(key)
    ]
    shapes = [
        f"{key} is {list(tensors[key].shape)} there and {list(shape)} by {CONFIG}"
        for key, shape in wanted.items()
        if key in tensors and tensors[key].shape != shape
    ]
    said = [
        f"{kind}: {', '.join(keys[:_NAMED])}" + (f" (and {len(keys) - _NAMED} more)" * more)
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("shapes", shapes))
        if keys
        for more in [len(keys) > _NAMED]
    ]
    if said:
        raise ValueError(
            f"the weights in {folder} are not those of its {CONFIG}; {'; '.join(said)}. Fetch both "
            "from one place; adapters and other heads are merged or removed first."
        )


def _are_equal(one: Stored, other: Stored) -> bool:
    """Whether two tensors hold the same numbers; read in blocks of rows."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    rows, width = one.shape
    step = max(1, (1 << 22) // width)
    parts = ((slice(at, min(at + step, rows)), slice(0, width)) for at in range(0, rows, step))
    return all(
        np.array_equal(
            read_tensor(one, part).view(np.uint8), read_tensor(other, part).view(np.uint8)
        )
        for part in parts
    )


def load_array(
    weight: Weight,
    tensors: Mapping[str, Stored],
    sizes: Sizes,
    sharding: Sharding,
    dtype: np.dtype | None = None,
) -> jax.Array:
    """One parameter, straight to its sharding: every distinct shard is read once.

    Args:
        weight: its line of the table.
        tensors: where everything lies.
        sizes: length of every axis.
        sharding: where it goes.
        dtype: that of the result; the widest of its tensors by default.
    """
    shape = weight.shape(sizes)
    if dtype is None:
        dtypes = [tensors[key].dtype for key in weight.keys(sizes)]
        dtype = np.dtype(functools.reduce(jnp.promote_types, dtypes))
    places: dict[tuple, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        limits = [each.indices(size)[:2] for each, size in zip(index or (), shape)]
        places.setdefault(tuple(limits), []).append(device)
    shards = []
    for limits, devices in places.items():
        part = _read_shard(weight, tensors, sizes, [slice(*each) for each in limits], dtype)
        shards += [jax.device_put(part, device) for device in devices]
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _read_shard(
    weight: Weight,
    tensors: Mapping[str, Stored],
    sizes: Sizes,
    index: Sequence[slice],
    dtype: np.dtype,
) -> np.ndarray:
    """A part of a parameter, filled layer by layer."""
    part = _empty([each.stop - each.start for each in index], dtype)
    if not weight.stack:
        part[...] = _read_layer(weight, tensors[weight.key], sizes, index)
        return part
    for row, layer in enumerate(range(index[0].start, index[0].stop)):
        stored = tensors[weight.key.format(layer)]
        part[row] = _read_layer(weight, stored, sizes, index[1:])
    return part


def _read_layer(weight: Weight, stored: Stored, sizes: Sizes, index: Sequence[slice]) -> np.ndarray:
    return weight.to_ours(read_tensor(stored, weight.key_index(index, sizes)), index, sizes)


def _empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An array that jax takes without a copy."""
    count = int(np.prod(shape)) * dtype.itemsize
    room = np.empty(count + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + count].view(dtype).reshape(shape)


def export_weights(
    params: PyTree,
    component: LanguageModel | T5,
    folder: Path | str,
    *,
    tokenizer_files: Sequence[Path | str] = (),
    settings: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    file_bytes: int = safetensors_files.FILE_BYTES,
) -> None:
    """Writes parameters in Hugging Face's layout: `config.json` and safetensors, all or nothing.

    Rows of semantic IDs stand behind those of the text, as the token table has them; a tied output
    is written once.

    Args:
        params: of the component; every shard on this host.
        component: the network.
        folder: where; must not exist.
        tokenizer_files: copied beside the weights.
        settings: more of `config.json` that the arithmetic does not depend on:
            max_position_embeddings, ids of special tokens.
        dtype: "float32" or "bfloat16"; that of the parameters by default.
        file_bytes: most bytes of numbers in a file.

    Raises:
        ValueError: the folder exists; no family has such a network; parameters of another network;
            or a setting that the component decides.
    """
    _check_dtype(dtype)
    folder, flat = Path(folder), flatten(params)
    if folder.exists():
        raise ValueError(f"{folder} exists; name a folder that does not.")
    table = flat.get("tokens/table")
    rows = 0 if table is None else table.shape[0]
    config, weights = settings_of(component, rows), weights_of(family_of(component), component)
    if double := sorted(config.keys() & (settings or {}).keys()):
        raise ValueError(f"{double[0]} follows from the component; leave it out of settings.")
    sizes = sizes_of(component, rows)
    _check_params(flat, {weight.path: weight.shape(sizes) for weight in weights})
    types = {path: np.dtype(dtype or leaf.dtype) for path, leaf in flat.items()}
    config["torch_dtype"] = dtype or str(functools.reduce(jnp.promote_types, types.values()))
    entries = [
        Entry(key, weight.key_shape(sizes), types[weight.path])
        for weight in weights
        for key in weight.keys(sizes)
    ]

    def fill(made: Path) -> None:
        write_json(made / CONFIG, config | dict(settings or {}))
        for path in map(Path, tokenizer_files):
            shutil.copyfile(path, made / path.name)
        write_tensors(made, entries, _tensors(weights, flat, types), file_bytes=file_bytes)

    publish(folder, fill)


def _tensors(
    weights: Sequence[Weight], flat: Mapping[str, jax.Array], types: Mapping[str, np.dtype]
) -> Iterator[np.ndarray]:
    """Every tensor of the files in the order of the table; one parameter is gathered at a time."""
    for weight in weights:
        whole = _gather(flat[weight.path])
        for layer in whole if weight.stack else [whole]:
            yield weight.to_theirs(layer).astype(types[weight.path])


def _gather(array: jax.Array) -> np.ndarray:
    """A whole array on the host. `np.asarray(array)` would keep a copy for as long as the array."""
    shards = [shard for shard in array.addressable_shards if shard.replica_id == 0]
    if len(shards) == 1:
        return np.asarray(shards[0].data)
    whole = np.empty(array.shape, array.dtype)
    for shard in shards:
        whole[shard.index] = np.asarray(shard.data)
    return whole


def _check_params(flat: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses parameters of another network, and those that are partly elsewhere."""
    differing = sorted(flat.keys() ^ wanted.keys()) or [
        path for path, shape in wanted.items() if flat[path].shape != shape
    ]
    if differing:
        path = differing[0]
        here = list(flat[path].shape) if path in flat else "absent"
        there = list(wanted[path]) if path in wanted else "absent"
        raise ValueError(
            f"these are not the parameters of the component: {path} is {here}, expected {there}."
        )
    if far := [path for path, leaf in flat.items() if not leaf.is_fully_addressable]:
        raise ValueError(f"{far[0]} is partly on other hosts; restore a checkpoint on one host.")


def _check_dtype(dtype: str | None) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is unknown; choose one of {', '.join(DTYPES)}.")


def place_all(paths: Iterable[str], shardings: PyTree | None) -> dict[str, Sharding]:
    """The sharding of every path: as in a tree of them, or the default device.

    Raises:
        ValueError: the tree has other paths.
    """
    paths = set(paths)
    if shardings is None:
        return dict.fromkeys(paths, SingleDeviceSharding(jax.local_devices()[0]))
    placed = flatten(shardings)
    if differing := sorted(placed.keys() ^ paths):
        raise ValueError(
            f"shardings is not the tree of the parameters, {differing[0]} is in one of them alone; "
            "make it of component.axes(space)."
        )
    return placed


def flatten(tree: PyTree) -> dict[str, Any]:
    """Leaves by their paths, names joined with `/`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nest(flat: Mapping[str, Any]) -> PyTree:
    """The nested dictionaries that `flatten` flattened."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *folders, name = path.split("/")
        inside = tree
        for each in folders:
            inside = inside.setdefault(each, {})
        inside[name] = leaf
    return tree
