"""A recipe on the command line: every field is a flag, typed by the recipe itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any


class UsageError(ValueError):
    """The command line cannot be understood."""


def parse_overrides(path: str, words: Sequence[str], command: str = "run") -> tuple[Any, Path]:
    """Reads a recipe and applies `--field value` overrides, typed by the recipe's own fields.

    Args:
        path: a recipe file, a recipe.json, or a run folder.
        words: the rest of the command line.

    Returns:
        The recipe and the folder that runs live in.

    Raises:
        SystemExit: with code 2 for a misspelt flag or a bad value (the message names the nearest
            flag), 0 for --help.
        ValueError: there is no recipe at `path`.
    """
    from jaxrec.recipe import load_recipe

    location = Path(path)
    runs = Path("runs")
    if (location / "recipe.json").is_file():
        location, runs = location / "recipe.json", location.resolve().parent
    elif location.name == "recipe.json":
        runs = location.resolve().parent.parent
    return override(load_recipe(location), runs, words, f"jaxrec {command} {path}")


def override(recipe: Any, runs: Path, words: Sequence[str], program: str) -> tuple[Any, Path]:
    """Applies `--field value` overrides, typed by the recipe's own fields.

    Args:
        recipe: what is changed.
        runs: the folder that runs live in, unless `--runs` names another.
        words: the rest of the command line.
        program: what the usage calls the command.

    Raises:
        SystemExit: as `parse_overrides`.
    """
    import tyro

    from jaxrec.recipe import Recipe

    # The recipe's fields stand beside --runs without a prefix of their own.
    arguments = dataclasses.make_dataclass(
        "Arguments",
        [
            ("recipe", Annotated[Recipe, tyro.conf.arg(name="")], recipe),
            (
                "runs",
                Annotated[Path, tyro.conf.arg(help="Folder that run folders live in.")],
                runs,
            ),
        ],
        frozen=True,
    )
    parsed: Any = tyro.cli(
        arguments,
        args=list(words),
        prog=program,
        description=f"Recipe {recipe.name}. Every field can be overridden.",
        config=(tyro.conf.AvoidSubcommands,),
    )
    return parsed.recipe, parsed.runs
