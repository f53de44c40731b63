"""`jaxrec export`: a trained run as a program that needs jax and numpy alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from jaxrec.commands.overrides import UsageError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Writes a trained run as StableHLO with its parameters and its index of items.

    The folder answers without jaxrec: `python -c "from exported import Exported; ..."`, see
    exported.py in it. The index is an argument of the program: with --like an index alone is
    written, which a loaded program takes between two requests.
    """

    out: Path
    """Folder to make; it must not exist."""
    room: float = 0.25
    """Share by which the catalogue may grow before a new program is needed."""
    platforms: tuple[Literal["cpu", "cuda", "tpu"], ...] = ("cpu", "cuda", "tpu")
    """What the program shall run on."""
    like: Path | None = None
    """Write only this run's index, in the shapes of an earlier export, for `Exported.swap`."""


def main(words: list[str]) -> int:
    """Runs the command on the words after it.

    Raises:
        UsageError: no run, or a folder that exists.
        ValueError: no finished run, or an index that does not fit.
    """
    import tyro

    if words[:1] in (["-h"], ["--help"]):
        words = ["RUN", "--help"]
    elif not words or words[0].startswith("-"):
        raise UsageError("`jaxrec export` needs a run, for example: runs/quickstart --out exported")
    options = tyro.cli(Arguments, args=words[1:], prog=f"jaxrec export {words[0]}")
    if options.out.exists():
        raise UsageError(f"--out {options.out} exists; name a folder that does not")
    if options.room < 0:
        raise UsageError(f"--room {options.room} must not be negative")
    _export(Path(words[0]), options)
    return 0


def _export(folder: Path, options: Arguments) -> None:
    import numpy as np

    from jaxrec.interop.export import shape_of_export

    like = None if options.like is None else shape_of_export(options.like)

    from jaxrec.interop.export import build_index, export_program, room_for, write_export
    from jaxrec.interop.export import write_index as write_index_alone
    from jaxrec.pipeline.recommend import denied_room
    from jaxrec.pipeline.run import open_finished

    run = open_finished(folder)
    recipe, ids, model = run.recipe, run.tokens.ids, run.model
    shape, places = like or room_for(ids.codes, ids.space, recipe.generator, options.room)
    index = build_index(
        ids.codes,
        ids.space,
        -run.data.popularity,
        {name: np.asarray(each) for name, each in model.tables.features.items()},
        run.data.histories.items,
        ids.space_id,
        shape=shape,
        places=places,
    )
    length = recipe.evaluation.history
    about: dict[str, Any] = {
        "run": recipe.name,
        "k": recipe.decoding.k,
        "history": length,
        "denied": denied_room(0, length),
        "assignment_id": ids.assignment_id,
    }
    if options.like is not None:
        write_index_alone(options.out, index, about)
        print(f"{len(index.names):,} items, place for {places:,}: {options.out}")
        return
    program = export_program(
        recipe.generator,
        ids.space,
        recipe.decoding,
        model.params,
        index,
        history=length,
        denied=about["denied"],
        platforms=options.platforms,
    )
    write_export(options.out, program, model.params, index, about)
    print(
        f"{len(index.names):,} items, place for {places:,}; answers with {options.out}/exported.py"
    )
