"""Finished runs read from their folders, checked, and put side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from jaxrec.evaluation.compare import RunResult
from jaxrec.evaluation.ranks import read_ranks
from jaxrec.evaluation.report import read_report
from jaxrec.files import read_json


def open_runs(folders: Sequence[Path]) -> list[RunResult]:
    """Reads the results of runs; needs neither their checkpoints nor their artefacts.

    Args:
        folders: at least two run folders, no run twice.

    Raises:
        ValueError: fewer than two runs, a run twice, a folder that is no run or not finished, or a
            damaged report.json, recipe.json or ranks.npz. The message names the folder.
    """
    if len(folders) < 2:
        given = f"only {folders[0]}" if folders else "none"
        raise ValueError(
            f"a comparison needs at least two runs, got {given}; for example: "
            "jaxrec compare runs/quickstart runs/quickstart-wide"
        )
    found: dict[str, Path] = {}
    for folder in folders:
        here = os.path.realpath(folder)
        if here in found:
            raise ValueError(
                f"{folder} and {found[here]} are the same run; name every run once."
                if str(folder) != str(found[here])
                else f"{folder} is given twice; name every run once."
            )
        found[here] = folder
    return [open_result(folder, name) for folder, name in zip(folders, run_names(folders))]


def run_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart, one folder name at least.

    >>> run_names([Path("a/x"), Path("b/x"), Path("b/y")])
    ['a/x', 'b/x', 'y']
    """
    paths = [Path(os.path.realpath(folder)).parts for folder in folders]
    names = []
    for parts in paths:
        for length in range(1, len(parts) + 1):
            end = parts[-length:]
            if sum(other[-length:] == end for other in paths) == 1:
                break
        names.append("/".join(end))
    return names


def open_result(folder: Path, name: str) -> RunResult:
    """Reads one run.

    Raises:
        ValueError: as `open_runs`.
    """
    if not folder.exists():
        raise ValueError(f"{folder} does not exist; runs are folders such as runs/quickstart.")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; give the folder of a run, such as {folder.parent}.")
    record = folder / "recipe.json"
    if not record.is_file():
        raise ValueError(
            f"{folder} is not a run: it has no recipe.json. Runs are made by `jaxrec run RECIPE`."
        )
    if not (folder / "report.json").is_file():
        raise ValueError(
            f"{folder} is not finished: it has no report.json. `jaxrec run {record}` finishes it."
        )
    recipe = read_json(record)
    if not isinstance(recipe, dict) or "class" not in recipe:
        raise ValueError(f"{record} is no recipe: it is damaged, or of another program.")
    report = read_report(folder)
    kept = report.get("ranks")
    ranks = read_ranks(folder, kept["fingerprint"]) if kept else None
    if ranks is not None and kept and ranks.cases != kept["cases"]:
        raise ValueError(
            f"{folder}: ranks.npz and report.json speak of different test cases; `jaxrec evaluate "
            f"{folder}` writes both again."
        )
    return RunResult(name, report, recipe, ranks)
