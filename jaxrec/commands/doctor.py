"""`jaxrec doctor`: what this machine has, and what a recipe will cost on it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jaxrec.commands.overrides import parse_overrides


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Devices, versions and memory of this machine; with a recipe, what it will cost."""

    recipe: Path | None = None
    """Recipe whose parameters, FLOPs and memory are foretold."""
    items: int = 10_000
    """Items of the catalogue that is assumed for the forecast."""


def main(words: list[str]) -> int:
    """Runs the command on the words after it."""
    import tyro

    from jaxrec.scaling.doctor import machine_lines, recipe_lines

    options = tyro.cli(Arguments, args=words, prog="jaxrec doctor")
    for line in machine_lines():
        print(line)
    if options.recipe is not None:
        for line in recipe_lines(parse_overrides(str(options.recipe), [])[0], options.items):
            print(line)
    return 0
