"""The stage cache: a stage whose component, version, fields and inputs are known is not run again.

Cached stages live in `<runs>/.cache/<stage>-<key>/`, published by an atomic rename; a lock makes
concurrent workers wait for the one that computes. A run folder gets its own (hard-linked) copy, so
that it can be moved or sent whole.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxrec.files import cache_folder, folder_hash, json_hash, lock, publish, read_json, write_json
from jaxrec.recipe import component_hash, to_json

MANIFEST = "stage.json"
_KEY_LENGTH = 16


@dataclasses.dataclass(frozen=True)
class Artefact:
    """The output of a stage: a folder, and what it is."""

    folder: Path
    key: str
    """Hash of what the stage was asked to do."""
    content: str
    """Hash of what it wrote; the input hash of the next stage."""
    was_cached: bool = False


def run_stage(
    name: str,
    component: Any,
    inputs: dict[str, Any],
    work: Callable[[Path], None],
    *,
    cache: Path,
    run_folder: Path,
) -> Artefact:
    """Runs a stage once per (component, inputs), and copies its output into the run folder.

    Args:
        name: the stage's name, also its folder's.
        component: what does the work; its class, schema version and non-default fields count.
        inputs: JSON values the output depends on: content hashes of other stages, the seed.
        work: writes the output below the folder it is given.
        cache: the folder of all cached stages.
        run_folder: the folder of this run's artefacts.

    Raises:
        ValueError: a cached output no longer has the content it was published with.
    """
    key = component_hash(component, stage=name, **inputs)
    cached = cache / f"{name}-{key[:_KEY_LENGTH]}"
    with lock(cache / f".lock-{name}-{key[:_KEY_LENGTH]}", wait=True):
        was_cached = cached.is_dir()
        if not was_cached:
            publish(cached, lambda folder: _fill(folder, work, name, key, component, inputs))
    content = _manifest(cached)["content"]
    _copy(cached, run_folder / name, content)
    return Artefact(run_folder / name, key, content, was_cached)


def open_artefact(folder: Path) -> Artefact:
    """Opens the output of a stage and checks it against its manifest.

    Raises:
        ValueError: it is missing, or its files are not those that were published.
    """
    if not (folder / MANIFEST).is_file():
        raise ValueError(
            f"{folder} is not the output of a stage: {MANIFEST} is missing. Run `jaxrec run` on "
            "the run's recipe to make it."
        )
    manifest = _manifest(folder)
    if _content_hash(folder) != manifest["content"]:
        raise ValueError(
            f"{folder} does not hold what was published: a file is missing, truncated or changed. "
            "Delete the folder (and its namesake below .cache) and run the recipe again."
        )
    return Artefact(folder, manifest["key"], manifest["content"], was_cached=True)


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not all(
        isinstance(manifest.get(name), str) for name in ("key", "content")
    ):
        raise ValueError(
            f"{folder / MANIFEST} does not say what the folder holds: it is damaged. Delete the "
            "folder and run the recipe again."
        )
    return manifest


def keep_programs() -> None:
    """Keeps compiled programs between processes, so that a restart does not compile again.

    They go below the user's cache, by processor (a program compiled for another one may not run),
    unless `JAX_COMPILATION_CACHE_DIR` says otherwise.
    """
    if jax.config.jax_compilation_cache_dir is None:
        name = f"programs-{json_hash(_processor())[:8]}"
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / name))


def _processor() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return [platform.machine(), platform.processor()]
    return sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})


def _fill(
    folder: Path,
    work: Callable[[Path], None],
    name: str,
    key: str,
    component: Any,
    inputs: dict[str, Any],
) -> None:
    work(folder)
    write_json(
        folder / MANIFEST,
        {
            "stage": name,
            "key": key,
            "component": to_json(component),
            "inputs": inputs,
            "content": folder_hash(folder),
        },
    )


def _content_hash(folder: Path) -> str:
    return folder_hash(folder, leave_out=(MANIFEST,))


def _copy(source: Path, target: Path, content: str) -> None:
    if target.is_dir():
        try:
            if open_artefact(target).content == content:
                return
        except ValueError:
            pass  # a damaged copy is replaced from the cache

    def fill(folder: Path) -> None:
        shutil.copytree(source, folder, copy_function=_link, dirs_exist_ok=True)

    open_artefact(source)
    publish(target, fill)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
