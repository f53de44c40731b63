"""Checkpoints: saved in the background, published whole, checked before they are believed.

This is the only file that imports orbax (its V1 interface). Orbax writes and reads the sharded
arrays; what stands around it is jaxrec's, so that errors are readable and a kill is harmless:

    folder/
      000000200/            one checkpoint, named by its step; present means complete
        checkpoint.json     paths, shapes and dtypes; data position; manifest; size and CRC of files
        state/              the arrays, written by orbax
      .tmp-000000300/       being written; whoever saves next sweeps what a killed run left

A checkpoint is written below a hidden name, flushed to the disk, and renamed when it is complete;
an old one is renamed away before it is deleted. So a kill at any moment leaves complete
checkpoints only. The folder must be a file system with atomic rename (local, NFS, Filestore, or a
mounted bucket).
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jaxrec.files import sweep_leftovers, write_text
from jaxrec.types import PyTree

FORMAT = 1
"""Version of the layout; a reader refuses others."""

_RECORD = "checkpoint.json"
_STATE = "state"
_TEN_YEARS = 10 * 365 * 86_400
_HOLDS = {"format": int, "step": int, "leaves": dict, "data": list, "manifest": dict, "files": dict}
"""What a record holds, beside its checksum."""


class CheckpointError(ValueError):
    """A checkpoint that is absent, damaged, or of another model; says what to do in line two."""


class Checkpoints:
    """The checkpoints of one run in one folder.

    Reading never changes the folder, so a running job's checkpoints may be read by others; only one
    process group may save into it. On several hosts all of them call the same methods in the same
    order, and the folder is shared.
    """

    def __init__(self, folder: Path | str, keep: int | None = 2) -> None:
        """
        Args:
            folder: where they are; made by the first save.
            keep: how many of the newest to keep; None keeps all (see `discard`).

        Raises:
            ValueError: `keep` is less than 1.
        """
        if keep is not None and keep < 1:
            raise ValueError(f"keep must be at least 1, or None to keep all, got {keep}.")
        self.folder = Path(folder).absolute()
        self.keep = keep
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None
        self._swept = False

    def save(
        self,
        step: int,
        state: PyTree,
        *,
        data: dict[str, Any],
        manifest: dict[str, Any],
        after: Checkpoints | None = None,
    ) -> None:
        """Starts a save and returns when the state may be donated or changed.

        A save that is still under way is waited for first.

        Args:
            step: name of the checkpoint; must not exist.
            state: pytree of arrays, sharded or not.
            data: JSON-able, this host's; typically the position of its batches.
            manifest: JSON-able, equal on all hosts; what a reader must agree with.
            after: publish only when the save of these checkpoints that is now under way is
                published, for a state that refers to it.

        Raises:
            CheckpointError: the step exists, or the save before this one failed.
        """
        self.wait()
        target, partial = self._path(step), self.folder / f".tmp-{step:09d}"
        if target.exists():
            raise CheckpointError(
                f"checkpoint {target} exists already.\n"
                "Resume from it, or discard it before saving that step again."
            )
        if jax.process_index() == 0:
            self._sweep(partial)
        flat = _flatten(state)
        record = {
            "format": FORMAT,
            "step": int(step),
            "leaves": {path: _describe(leaf) for path, leaf in flat.items()},
            "data": _gather(data),
            "manifest": manifest,
        }
        # What is not JSON must fail here, not in the background.
        record = json.loads(json.dumps(record))
        with _context():
            response = ocp.save_checkpointables_async(str(partial), {_STATE: flat})
        before = after._saving if after is not None else None
        self._saving = self._worker.submit(self._publish, response, before, record, partial)

    def wait(self) -> None:
        """Blocks until the save under way, if any, is published.

        Raises:
            CheckpointError: it failed. Earlier checkpoints are intact.
        """
        if self._saving is None:
            return
        saving, self._saving = self._saving, None
        try:
            saving.result()
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"a checkpoint could not be written to {self.folder}: {_first_line(error)}\n"
                "Earlier checkpoints are intact; make room or mend the folder, then run again."
            ) from error
        if jax.process_count() > 1:
            # Only process 0 publishes; the others may not look before it has.
            multihost_utils.sync_global_devices(f"jaxrec.checkpoint:{self.folder}")

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        steps = self.steps()
        return steps[-1] if steps else None

    def manifest(self, step: int) -> dict[str, Any]:
        """The manifest that was saved with a step.

        Raises:
            CheckpointError: no such step, or its record is damaged.
        """
        return self._record(step)["manifest"]

    def restore(self, step: int, template: PyTree) -> tuple[PyTree, dict[str, Any], dict[str, Any]]:
        """Reads a checkpoint.

        Args:
            step: which.
            template: the state as `jax.ShapeDtypeStruct`s; their shardings say where the arrays
                go, which may be another mesh than the one they came from. A leaf without a
                sharding goes to the default device.

        Returns:
            The state, this host's data and the manifest, as given to `save`.

        Raises:
            CheckpointError: no such step; a path, shape or dtype differs; a file is truncated or
                corrupted; or the checkpoint was written by another number of hosts.
        """
        record = self._record(step)
        hosts = record["data"]
        if len(hosts) != jax.process_count():
            raise CheckpointError(
                f"checkpoint {self._path(step)} holds the data position of {len(hosts)} host(s), "
                f"this run has {jax.process_count()}.\n"
                "Resume on as many hosts, or start from its parameters alone (restore_params)."
            )
        state = self._load(step, record, template, "")
        return state, hosts[jax.process_index()], record["manifest"]

    def restore_params(self, step: int, template: PyTree, prefix: str = "params") -> PyTree:
        """Reads one part of a checkpoint, the parameters unless told, and nothing else.

        Args:
            step: which.
            template: that part as `jax.ShapeDtypeStruct`s, as in `restore`.
            prefix: name of the part in the saved state.

        Raises:
            CheckpointError: as in `restore`, the hosts excepted.
        """
        return self._load(step, self._record(step), template, f"{prefix}/")

    def discard(self, step: int) -> None:
        """Deletes a step; a kill leaves it whole or gone. Does nothing when it is not there."""
        path = self._path(step)
        if jax.process_index() == 0 and path.exists():
            trash = self.folder / f".tmp-discarded-{path.name}"
            shutil.rmtree(trash, ignore_errors=True)
            os.rename(path, trash)
            shutil.rmtree(trash)

    def tidy(self) -> None:
        """Deletes what killed runs left, and steps beyond `keep`. Only for the one who saves."""
        self.wait()
        if jax.process_index() == 0 and self.folder.is_dir():
            sweep_leftovers(self.folder)
            self._prune()

    def close(self) -> None:
        """Waits for the save under way and ends the background thread.

        Raises:
            CheckpointError: that save failed.
        """
        try:
            self.wait()
        finally:
            self._worker.shutdown()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:09d}"

    def _sweep(self, partial: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._swept:
            sweep_leftovers(self.folder)
            self._swept = True
        shutil.rmtree(partial, ignore_errors=True)

    def _publish(self, response: Any, before: Future | None, record: dict, partial: Path) -> None:
        response.result()
        if before is not None:
            before.result()
        if jax.process_index() != 0:
            return
        # A checksum costs a reading of everything; a pod's checkpoint is checked by size alone.
        record["files"] = _inventory(partial, checksums=jax.process_count() == 1)
        write_text(partial / _RECORD, json.dumps({**record, "checksum": _seal(record)}))
        for path in [*partial.rglob("*"), partial]:
            _flush(path)
        os.rename(partial, self._path(record["step"]))
        _flush(self.folder)
        self._prune()

    def _prune(self) -> None:
        for step in self.steps()[: -self.keep] if self.keep else []:
            self.discard(step)

    def _record(self, step: int) -> dict[str, Any]:
        path = self._path(step)
        if not path.is_dir():
            there = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(
                f"there is no checkpoint of step {step} in {self.folder}; there are: {there}.\n"
                "Choose one of these, or start the run again."
            )
        try:
            record = json.loads((path / _RECORD).read_text(encoding="utf-8"))
            if record.pop("checksum") != _seal(record):
                raise ValueError("its checksum differs")
            if strange := [name for name, kind in _HOLDS.items() if type(record[name]) is not kind]:
                raise ValueError(f"its {strange[0]} is {type(record[strange[0]]).__name__}")
            for path_of_leaf, (shape, dtype) in record["leaves"].items():
                if not all(type(size) is int for size in shape) or not isinstance(dtype, str):
                    raise ValueError(f"its leaf {path_of_leaf[:80]!r} is no array")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._damaged(step, f"{_RECORD} is corrupted: {_first_line(error)}") from None
        if record.get("format") != FORMAT:
            raise CheckpointError(
                f"checkpoint {path} has format {record.get('format')}, this is for {FORMAT}.\n"
                "Use the version of jaxrec that wrote it."
            )
        return record

    def _load(self, step: int, record: dict[str, Any], template: PyTree, prefix: str) -> PyTree:
        wanted = {prefix + path: _target(leaf) for path, leaf in _flatten(template).items()}
        saved = {
            path: (tuple(shape), dtype)
            for path, (shape, dtype) in record["leaves"].items()
            if path.startswith(prefix)
        }
        here = {path: (leaf.shape, leaf.dtype.name) for path, leaf in wanted.items()}
        if differences := _differences(saved, here):
            more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
            raise CheckpointError(
                f"checkpoint {self._path(step)} is of another model: {differences[0]}{more}.\n"
                "Use the recipe that wrote it, or start in another folder."
            )
        if damage := _damage(self._path(step), record["files"]):
            raise self._damaged(step, damage)
        try:
            with _context():
                loaded: Any = ocp.load_checkpointables(str(self._path(step)), {_STATE: wanted})
        except Exception as error:
            reason = _first_line(error.__cause__ or error)
            raise self._damaged(step, f"its arrays cannot be read ({reason})") from error
        return jax.tree.unflatten(
            jax.tree.structure(template), [loaded[_STATE][path] for path in wanted]
        )

    def _damaged(self, step: int, what: str) -> CheckpointError:
        others = [other for other in self.steps() if other != step]
        advice = f"; the run then goes on from step {others[-1]}" if others else " and start again"
        return CheckpointError(
            f"checkpoint {self._path(step)} is damaged: {what}.\nDelete that folder{advice}."
        )


def _context() -> ocp.Context:
    context = ocp.Context()
    # Random-looking mantissas barely compress, and two cores have better things to do.
    context.array.saving.use_compression = False
    # Shapes, dtypes and checksums are in our record, and shardings come from the reader.
    context.array.saving.array_metadata_store = None
    context.array.saving.enable_write_sharding_file = False
    context.array.saving.enable_post_merge_validation = False
    # Orbax looks at the wall clock for this, which may jump.
    context.asynchronous.timeout_secs = _TEN_YEARS
    # A template may name a part of the state: restore_params.
    context.pytree.loading.partial_load = True
    return context


def _flatten(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    flat = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(flat) != len(leaves):
        raise ValueError("two leaves of the state have the same path; avoid '/' in its keys.")
    return flat


def _describe(leaf: Any) -> tuple[list[int], str]:
    return list(leaf.shape), np.dtype(leaf.dtype).name


def _target(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, np.dtype(leaf.dtype), sharding=sharding)


def _differences(saved: dict[str, tuple], here: dict[str, tuple]) -> list[str]:
    def shown(what: tuple) -> str:
        return f"{what[1][:20]}{list(what[0])}"[:100]

    return [
        *(
            f"{path!r} is {shown(saved[path])} there and {shown(what)} here"
            for path, what in here.items()
            if path in saved and saved[path] != what
        ),
        *(f"{path!r} is missing there" for path in here if path not in saved),
        *(f"{path!r} is there and not here" for path in saved if path not in here),
    ]


def _inventory(folder: Path, *, checksums: bool) -> dict[str, tuple[int, int | None]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _RECORD)
    return {
        path.relative_to(folder).as_posix(): (
            path.stat().st_size,
            _checksum(path) if checksums else None,
        )
        for path in files
    }


def _damage(folder: Path, files: dict[str, list[int | None]]) -> str:
    for name, (size, checksum) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} is truncated, {path.stat().st_size} bytes of {size}"
        if checksum is not None and _checksum(path) != checksum:
            return f"{name} is corrupted, its checksum differs"
    return ""


def _checksum(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def _seal(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode("utf-8"))


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _gather(data: dict[str, Any]) -> list[dict[str, Any]]:
    # Every host's data, in the order of the hosts.
    if jax.process_count() == 1:
        return [data]
    content = np.frombuffer(json.dumps(data).encode("utf-8"), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray([content.size], np.int32)).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: content.size] = content
    every = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    return [
        json.loads(np.asarray(row[:size], np.uint8).tobytes()) for row, size in zip(every, sizes)
    ]


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
