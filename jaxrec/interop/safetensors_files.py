"""Safetensors on disk, in one file or in many: checked first, then read a slice at a time.

A file is eight bytes (the length of the header), a header of JSON (type, shape and place of every
tensor) and the numbers, without holes. Several files have an index beside them that says which
tensor is where (https://huggingface.co/docs/safetensors). Headers are read and checked before any
number is; numbers are read from the file, not mapped, because mapped pages count as memory of the
process, and files of 10 GB are read on machines of 16. The `safetensors` library would read the
whole of a tensor to give a slice of it, and hold all tensors of a file to write one.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrec.files import read_json, write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
"""Types that weights may have, by their names in a header."""
FILE_BYTES = 5_000_000_000
"""Largest file that is written, unless one tensor alone is larger (Hugging Face's custom)."""

_HEADER_BYTES = 100_000_000
_BLOCK_BYTES = 1 << 24
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Stored(NamedTuple):
    """Where a tensor lies."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    """First byte in the file."""


class Entry(NamedTuple):
    """A tensor that is to be written."""

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype


def open_tensors(folder: Path | str) -> dict[str, Stored]:
    """The tensors of a folder by their keys; reads headers and no numbers.

    Args:
        folder: holds `model.safetensors`, or `model.safetensors.index.json` and what it names.

    Raises:
        ValueError: there is no such file; a file is truncated, damaged, or missing; a tensor is of
            a type other than F32, F16, BF16; the index and the files disagree.
    """
    folder = Path(folder)
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if not (folder / INDEX).is_file():
        other = sorted(path.name for path in folder.glob("*.bin"))
        hint = f" {other[0]} is a pickle, which jaxrec does not open;" if other else ""
        raise ValueError(
            f"{folder} has neither {SINGLE} nor {INDEX}.{hint} Save the model with safetensors."
        )
    return _read_indexed(folder)


def _read_indexed(folder: Path) -> dict[str, Stored]:
    """The tensors of many files, each in the file that the index names."""
    index = read_json(folder / INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{folder / INDEX} has no weight_map of keys to files; fetch it again.")
    found: dict[str, Stored] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or not (folder / name).is_file():
            raise ValueError(
                f"{folder / INDEX} names the file {name[:80]!r}, which is not in that folder; "
                "fetch it."
            )
        for key, stored in read_header(folder / name).items():
            if places.get(key) != name:
                raise ValueError(
                    f"{key} is in {name}, and {INDEX} says {places.get(key, 'nothing of it')}; "
                    "fetch the folder again."
                )
            found[key] = stored
    if lacking := [key for key in places if key not in found]:
        raise ValueError(
            f"{lacking[0]} is not in {places[lacking[0]]}, where {INDEX} has it; fetch the folder "
            "again."
        )
    return found


def read_header(path: Path | str) -> dict[str, Stored]:
    """The tensors of one file.

    Raises:
        ValueError: as in `open_tensors`.
    """
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8 or length > _HEADER_BYTES:
            raise ValueError(
                f"{path} is truncated or no safetensors file: its header should take {length} "
                f"bytes, the file has {size}. Fetch it again."
            )
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        entries = {key: _entry(key, value) for key, value in header.items()}
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"the header of {path} is damaged ({str(error)[:200]}); fetch the file again."
        ) from None
    _check_places(path, entries, size - 8 - length)
    found = {}
    for key, (dtype, shape, begin, _) in entries.items():
        if dtype not in DTYPES:
            raise ValueError(
                f"{key} in {path} is {dtype}; weights are {', '.join(DTYPES)}. Quantised weights "
                "and other types are not read: save the model in one of these."
            )
        found[key] = Stored(path, DTYPES[dtype], shape, 8 + length + begin)
    return found


def _entry(key: str, value: dict[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape and first and last byte of one tensor of a header."""
    dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    if not all(type(each) is int and each >= 0 for each in (*shape, begin, end)):
        raise ValueError(f"{key} has shape {list(shape)} and offsets {[begin, end]}")
    if dtype in DTYPES and end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"{key}, {dtype}{list(shape)}, takes {end - begin} bytes")
    return str(dtype), shape, begin, end


def _check_places(path: Path, entries: dict[str, tuple], size: int) -> None:
    """Tensors must follow each other and fill the file."""
    at = 0
    for key, (_, _, begin, end) in sorted(entries.items(), key=lambda each: each[1][2:]):
        if end > size:
            raise ValueError(
                f"{path} is truncated: {key} ends at byte {end} of the numbers, and there are "
                f"{size}. Fetch the file again."
            )
        if begin != at:
            raise ValueError(
                f"the header of {path} is damaged ({key} begins at byte {begin} of the numbers, "
                f"the tensor before it ends at {at}); fetch the file again."
            )
        at = end
    if at != size:
        raise ValueError(
            f"{path} has {size - at} bytes that belong to no tensor; fetch the file again."
        )


def read_tensor(stored: Stored, index: Sequence[slice] | None = None) -> np.ndarray:
    """A tensor, or a part of it, as an array of its own.

    Of a part that does not span the later axes, rows are read in blocks and cut, so that little
    more than the part is ever held.

    Args:
        stored: from `open_tensors`.
        index: a slice for each axis, with start and stop inside it; all of it by default.

    Raises:
        ValueError: the file has become shorter since.
    """
    whole = tuple(slice(0, size) for size in stored.shape)
    index = whole if index is None else tuple(index)
    part = np.empty([each.stop - each.start for each in index], stored.dtype)
    row_bytes = math.prod(stored.shape[1:]) * stored.dtype.itemsize
    with open(stored.path, "rb", buffering=0) as file:
        first = index[0].start if index else 0
        file.seek(stored.start + first * row_bytes)
        if index[1:] == whole[1:]:
            _fill(file, part, stored)
            return part
        step = max(1, _BLOCK_BYTES // row_bytes)
        for at in range(0, len(part), step):
            rows = np.empty((min(step, len(part) - at), *stored.shape[1:]), stored.dtype)
            _fill(file, rows, stored)
            part[at : at + len(rows)] = rows[(slice(None), *index[1:])]
    return part


def _fill(file: io.FileIO, array: np.ndarray, stored: Stored) -> None:
    """Reads as many bytes as the array has; one call of the system gives 2 GB at most."""
    left = memoryview(array.reshape(-1).view(np.uint8))
    while left:
        count = file.readinto(left)
        if not count:
            raise ValueError(f"{stored.path} has become shorter while it was read; read it again.")
        left = left[count:]


def write_tensors(
    folder: Path,
    entries: Sequence[Entry],
    tensors: Iterable[np.ndarray],
    *,
    file_bytes: int = FILE_BYTES,
) -> None:
    """Writes tensors one after another; only one of them is held.

    One file where they fit; else several, filled in order, and the index.

    Args:
        folder: where; exists.
        entries: what is coming, in the order in which it comes.
        tensors: the arrays.
        file_bytes: most bytes of numbers in a file.

    Raises:
        ValueError: `file_bytes` is less than 1.
    """
    if file_bytes < 1:
        raise ValueError(f"file_bytes={file_bytes} must be at least 1.")
    files = _split(entries, file_bytes)
    names = [SINGLE]
    if len(files) > 1:
        names = [f"model-{at:05}-of-{len(files):05}.safetensors" for at in range(1, len(files) + 1)]
        places = {entry.key: name for name, part in zip(names, files) for entry in part}
        total = sum(map(_bytes, entries))
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    coming = iter(tensors)
    for name, part in zip(names, files):
        with open(folder / name, "wb") as file:
            file.write(_header(part))
            for entry in part:
                array = np.ascontiguousarray(next(coming))
                assert (array.shape, array.dtype) == (entry.shape, entry.dtype), entry.key
                file.write(array.reshape(-1).view(np.uint8))
            file.flush()
            os.fsync(file.fileno())


def _bytes(entry: Entry) -> int:
    return math.prod(entry.shape) * entry.dtype.itemsize


def _split(entries: Sequence[Entry], file_bytes: int) -> list[list[Entry]]:
    """Entries by files: a new one begins where the next tensor would not fit."""
    files: list[list[Entry]] = [[]]
    held = 0
    for entry in entries:
        if files[-1] and held + _bytes(entry) > file_bytes:
            files.append([])
            held = 0
        files[-1].append(entry)
        held += _bytes(entry)
    return files


def _header(entries: Sequence[Entry]) -> bytes:
    """The first bytes of a file; padded, so that the numbers begin at a multiple of eight."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    at = 0
    for entry in entries:
        end = at + _bytes(entry)
        header[entry.key] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
