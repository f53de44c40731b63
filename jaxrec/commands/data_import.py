"""`jaxrec data import`: anybody's log as a dataset folder."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import pkgutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import jaxrec
from jaxrec.commands.overrides import UsageError

DEFAULT = "tables"
"""The format of a path that stands without one."""

USAGE = """\
usage: jaxrec data import [FORMAT] PATH --out FOLDER [--FLAG VALUE ...]

Reads somebody's files and writes a dataset folder, which every recipe can read:
CanonicalFolder("FOLDER"). FORMAT is `tables` (CSV, TSV, JSON lines, Parquet, any columns) unless
one of these is named:

{formats}

`jaxrec data import FORMAT --help` lists the flags of a format.
"""


def main(words: list[str]) -> int:
    """Runs the command on the words after it.

    Raises:
        UsageError: no path, or a format that there is not.
        DataError: the files cannot be used; nothing is written.
    """
    if not words or words[0] in ("-h", "--help"):
        print(USAGE.format(formats=_listing()))
        return 0 if words else 2
    import tyro

    name, rest = _format(words)
    if rest and not rest[0].startswith("-"):
        rest = ["--path", *rest]
    component: Any = reader(name)
    arguments = dataclasses.make_dataclass(
        "Arguments",
        [
            ("reader", Annotated[component, tyro.conf.arg(name="")]),
            ("out", Annotated[Path, tyro.conf.arg(help="Dataset folder to write.")]),
            (
                "replace",
                Annotated[bool, tyro.conf.arg(help="Replace a dataset folder that is there.")],
                False,
            ),
        ],
        frozen=True,
    )
    options: Any = tyro.cli(arguments, args=rest, prog=f"jaxrec data import {name}")
    check_target(options.out, replace=options.replace)
    start = time.perf_counter()
    options.reader.write(options.out)
    _tell(options.out, time.perf_counter() - start)
    return 0


def formats() -> list[str]:
    """Names of all formats: the modules of jaxrec.data.datasets, none of them imported."""
    return sorted(module.name for module in pkgutil.iter_modules([str(_folder())]))


def reader(name: str) -> Any:
    """The component that reads a format: the one class with `write` that its module defines."""
    module = importlib.import_module(f"jaxrec.data.datasets.{name}")
    (found,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and hasattr(value, "write")
    )
    return found


def check_target(folder: Path, *, replace: bool) -> None:
    """Finds before any work what would keep a dataset folder from being written.

    Raises:
        UsageError: something else is there, or the folder cannot be made.
    """
    if folder.exists():
        dataset = (folder / "dataset.json").is_file()
        if not folder.is_dir() or (not dataset and any(folder.iterdir())):
            raise UsageError(
                f"{folder} is there and is not a dataset folder; it is left as it is. Choose "
                "another --out."
            )
        if dataset and not replace:
            raise UsageError(
                f"{folder} already holds a dataset. Choose another --out, or replace it with "
                "--replace."
            )
    folder.resolve().parent.mkdir(parents=True, exist_ok=True)


def _format(words: list[str]) -> tuple[str, list[str]]:
    """The format and the words after it; a path may stand without one."""
    known = formats()
    if words[0] in known:
        return words[0], words[1:]
    if words[0].startswith("-") or Path(words[0]).exists() or any(c in words[0] for c in "./*"):
        return DEFAULT, words
    close = difflib.get_close_matches(words[0], known, n=1)
    hint = f" Perhaps you meant {close[0]!r}." if close else ""
    raise UsageError(f"{words[0]!r} is neither a format ({', '.join(known)}) nor a file.{hint}")


def _folder() -> Path:
    """The folder of jaxrec.data.datasets, found without importing jaxrec.data, which needs jax."""
    return Path(jaxrec.__path__[0], "data", "datasets")


def _listing() -> str:
    """Every format and its module's first line, read from the source: help must not wait."""
    lines = []
    for name in formats():
        source = (_folder() / f"{name}.py").read_text(encoding="utf-8")
        first = (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]
        lines.append(f"  {name:<14}{first}")
    return "\n".join(lines)


def _tell(folder: Path, seconds: float) -> None:
    from jaxrec.data.dataset import read_dataset

    manifest = read_dataset(folder, verify=False).manifest
    counts = manifest["counts"]
    print(
        f"{folder}: {counts['interactions']:,} events of {counts['users']:,} users with "
        f"{counts['items']:,} items, from {manifest['source']} ({seconds:.1f} s)"
    )
    if manifest["time_unit"] == "order":
        print("      the log has no clock: the order of its rows is its time")
    if rule := manifest.get("page_rule"):
        print(f"      {rule}; grades: {' < '.join(manifest.get('grades', []))}")
    print(f"next: jaxrec data describe {folder}", file=sys.stderr)
