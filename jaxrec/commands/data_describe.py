"""`jaxrec data describe`: what a log is made of, before anything is trained on it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

from jaxrec.commands.overrides import UsageError, parse_overrides

USAGE = """\
usage: jaxrec data describe FOLDER|RECIPE [--html FILE] [--json FILE] [--FIELD VALUE ...]

Counts, lengths of histories, popularity of items, time, same-time ties, repeats, cold items, text,
kinds of events and pages, with advice: on the terminal, as one HTML page, as JSON if asked.

FOLDER is a dataset folder (`jaxrec data import` makes one). RECIPE is a Python file, a recipe.json
or a run folder: its log is prepared as `jaxrec run` would, and what its filters and its split leave
is told too. Fields of a recipe are flags, as in `jaxrec run`.

  --html FILE   the page; by default FOLDER.description.html beside a dataset folder, and
                description.html in the run folder of a recipe
  --json FILE   all numbers, for machines
"""
PATIENCE = 2.0
"""Seconds before a note says what takes so long."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What a log is made of: on the terminal, as a page, and as JSON."""

    html: Path | None = None
    """The page; beside the dataset folder, or in the run folder of a recipe, by default."""
    json: Path | None = None
    """All numbers, for machines; not written by default."""


def main(words: list[str]) -> int:
    """Runs the command on the words after it.

    Raises:
        UsageError: nothing to describe, or a file that cannot be written there.
        DataError: the log cannot be used.
    """
    import tyro

    if words and words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if not words or words[0].startswith("-"):
        raise UsageError(
            "`jaxrec data describe` needs a dataset folder or a recipe, for example: "
            "jaxrec data describe configs/quickstart.py"
        )
    path, rest = Path(words[0]), words[1:]
    if "-h" in rest or "--help" in rest:
        print(USAGE)
        return 0
    prog = f"jaxrec data describe {words[0]}"
    if is_recipe(path):
        options, overrides = tyro.cli(Arguments, args=rest, prog=prog, return_unknown_args=True)
        _describe_recipe(words[0], overrides, options)
    else:
        _describe_folder(path, tyro.cli(Arguments, args=rest, prog=prog))
    return 0


def is_recipe(path: Path) -> bool:
    """Whether a path names a recipe or a run, and not a dataset folder.

    Raises:
        UsageError: there is nothing, or another kind of file.
    """
    if path.is_dir():
        return (path / "recipe.json").is_file() and not (path / "dataset.json").is_file()
    if path.suffix == ".py" or path.name == "recipe.json":
        return True
    if path.exists():
        raise UsageError(
            f"{path} is a file, neither a dataset folder nor a recipe (.py, recipe.json). Make a "
            f"dataset folder of a log: jaxrec data import {path} --out FOLDER"
        )
    raise UsageError(f"there is no dataset folder and no recipe at {path}.")


def page_beside(folder: Path) -> Path:
    """Where the page of a dataset folder goes: beside it, for the folder itself is checked."""
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}.description.html")


def check_outputs(options: Arguments, page: Path, dataset: Path) -> None:
    """Finds before any work what would keep the files from being written.

    Raises:
        UsageError: a path is a folder, lies in the dataset folder, cannot be written, or is named
            twice.
    """
    files = {"--html": page, **({"--json": options.json} if options.json else {})}
    if options.json is not None and options.json.resolve() == page.resolve():
        raise UsageError(f"--html and --json both name {page}. Name two files.")
    for flag, file in files.items():
        if file.is_dir():
            raise UsageError(f"{flag} {file} is a folder. Name a file in it.")
        if dataset.resolve() in file.resolve().parents:
            raise UsageError(
                f"{flag} {file} lies in the dataset folder, whose content is checked. Name a file "
                "outside of it."
            )
        above = next(parent for parent in file.resolve().parents if parent.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise UsageError(f"{flag} {file} cannot be written: {above} is not a writable folder.")


def _describe_folder(folder: Path, options: Arguments) -> None:
    from jaxrec.data.dataset import read_dataset
    from jaxrec.data.description import describe

    page = options.html or page_beside(folder)
    rows = read_dataset(folder, verify=False).manifest["counts"]["interactions"]
    check_outputs(options, page, folder)
    with patient(f"describing {rows:,} rows ..."):
        numbers = describe(read_dataset(folder))
    _tell(numbers, page, options.json)


def _describe_recipe(path: str, overrides: list[str], options: Arguments) -> None:
    from jaxrec.data.dataset import read_dataset
    from jaxrec.data.description import describe
    from jaxrec.pipeline.describe import recipe_numbers
    from jaxrec.pipeline.report import tell_data
    from jaxrec.pipeline.run import open_run
    from jaxrec.pipeline.stages import prepare_data

    recipe, runs = parse_overrides(path, overrides, "data describe")
    page = options.html or runs / recipe.name / "description.html"
    check_outputs(options, page, runs / recipe.name / "artefacts")
    with open_run(recipe, runs) as place:
        with patient(f"describing the log of {recipe.name} ..."):
            data = prepare_data(recipe, place)
            told = recipe_numbers(recipe.data, data.histories, data.split)
            # Its content was checked when the artefact was opened.
            numbers = describe(read_dataset(data.dataset.folder, verify=False))
        tell_data(data)
        _tell({**numbers, "recipe": told}, page, options.json)


def _tell(numbers: dict[str, Any], page: Path, json: Path | None) -> None:
    from jaxrec.files import write_json, write_text
    from jaxrec.pipeline.describe import description_lines, render_description

    for line in description_lines(numbers):
        print(line)
    write_text(page, render_description(numbers))
    print(f"\npage: {page}")
    if json is not None:
        write_json(json, numbers)
        print(f"numbers: {json}")


@contextlib.contextmanager
def patient(note: str) -> Generator[None]:
    """Prints a note on stderr when the block takes long; JAXREC_PROGRESS=0 silences it."""

    def tell() -> None:
        print(note, file=sys.stderr, flush=True)

    timer = threading.Timer(PATIENCE, tell)
    timer.daemon = True
    if os.environ.get("JAXREC_PROGRESS", "1") != "0":
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
