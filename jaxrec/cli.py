"""The `jaxrec` command.

Bad input ends in one clear message and exit code 2, never in a traceback; JAXREC_TRACEBACK=1 shows
the traceback all the same.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

USAGE = """\
jaxrec: generative recommendation in JAX, from an interaction log to valid recommendations.

usage: jaxrec COMMAND ...

  run RECIPE [--FIELD VALUE ...]       everything: data, semantic IDs, training, evaluation, report
  data RECIPE                          prepare the log and describe it
  tokenize RECIPE                      go as far as semantic IDs and judge their quality
  train RECIPE                         go as far as a trained generator
  evaluate RECIPE|RUN                  judge a trained run again and rewrite its report
  recommend RUN --user ID | --history ITEM ...
                                       answer for known users or for raw histories
  doctor [--recipe RECIPE]             devices, versions, memory; what a recipe will cost

RECIPE is a Python file such as configs/quickstart.py, or the recipe.json of a run. Every field of
a recipe is a flag: `jaxrec run configs/quickstart.py --generator.layers 6 --seed 1`;
`jaxrec run configs/quickstart.py --help` lists them. RUN is a folder below runs/.
"""


class UsageError(ValueError):
    """The command line cannot be understood."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except (ValueError, OSError) as error:
        if os.environ.get("JAXREC_TRACEBACK") == "1":
            raise
        print(f"error: {_first_words(error)}", file=sys.stderr)
        return 2


def _first_words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _dispatch(words: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "run": lambda rest: _until(rest, "run", "report"),
        "data": lambda rest: _until(rest, "data", "data"),
        "tokenize": lambda rest: _until(rest, "tokenize", "tokens"),
        "train": lambda rest: _until(rest, "train", "train"),
        "evaluate": lambda rest: _until(rest, "evaluate", "report"),
        "recommend": _recommend,
        "doctor": _doctor,
    }
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if words else 2
    if words[0] == "--version":
        from jaxrec import __version__

        print(__version__)
        return 0
    if words[0] not in commands:
        close = difflib.get_close_matches(words[0], commands, n=1)
        hint = f" Perhaps you meant `jaxrec {close[0]}`." if close else ""
        raise UsageError(
            f"there is no command {words[0]!r}; choose from {', '.join(commands)}.{hint}"
        )
    return commands[words[0]](words[1:])


def _until(words: list[str], command: str, last: str) -> int:
    from jaxrec.pipeline.run import run

    if not words or words[0].startswith("-"):
        if words[:1] in (["-h"], ["--help"]):
            print(USAGE)
            return 0
        raise UsageError(
            f"`jaxrec {command}` needs a recipe, for example: jaxrec {command} "
            "configs/quickstart.py"
        )
    recipe, runs = parse_overrides(words[0], words[1:], command)
    run(recipe, runs=runs, last=last, again=command == "evaluate")
    return 0


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
    import tyro

    from jaxrec.recipe import Recipe, load_recipe

    location = Path(path)
    runs = Path("runs")
    if (location / "recipe.json").is_file():
        location, runs = location / "recipe.json", location.resolve().parent
    elif location.name == "recipe.json":
        runs = location.resolve().parent.parent
    recipe = load_recipe(location)
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
        prog=f"jaxrec {command} {path}",
        description=f"Recipe {recipe.name}. Every field can be overridden.",
        config=(tyro.conf.AvoidSubcommands,),
    )
    return parsed.recipe, parsed.runs


@dataclasses.dataclass(frozen=True)
class _RecommendArguments:
    """Answers from a trained run: for users of its log, or for raw histories of item ids."""

    user: tuple[str, ...] = ()
    """Users of the log, by the ids that the log uses."""
    history: tuple[str, ...] | None = None
    """Item ids of one raw history, oldest first; no ids at all is somebody new."""
    count: int = 10
    """Items an answer has."""
    keep_seen: bool = False
    """Whether items of the history may be answered."""
    json: bool = False
    """Print one JSON object a line instead of a table."""


def _recommend(words: list[str]) -> int:
    import tyro

    if words[:1] in (["-h"], ["--help"]):
        words = ["RUN", "--help"]
    elif not words or words[0].startswith("-"):
        raise UsageError("`jaxrec recommend` needs a run, for example: runs/quickstart --user 196")
    options = tyro.cli(_RecommendArguments, args=words[1:], prog=f"jaxrec recommend {words[0]}")
    if not options.user and options.history is None:
        raise UsageError("nobody to recommend to: give --user ID ... or --history ITEM ...")
    from jaxrec.pipeline.recommend import recommend_histories, recommend_users
    from jaxrec.pipeline.run import open_finished

    run = open_finished(Path(words[0]))
    settings = {"count": options.count, "keep_seen": options.keep_seen}
    answers = recommend_users(run, options.user, **settings) if options.user else []
    if options.history is not None:
        answers += recommend_histories(run, [options.history], **settings)
    for answer in answers:
        print(json.dumps(dataclasses.asdict(answer)) if options.json else _answer_table(answer))
    return 0


def _answer_table(answer: Any) -> str:
    newest = answer.history[-5:]
    earlier = len(answer.history) - len(newest)
    lines = [
        f"{answer.name}: after {f'{earlier} earlier items and ' if earlier else ''}"
        f"{', '.join(newest) or 'nothing'}"
    ]
    if answer.unknown:
        lines.append(f"  not in the catalogue, left out: {', '.join(answer.unknown)}")
    for each in answer.recommendations:
        lines.append(
            f"  {each.rank:3d}. {each.title}  [item {each.item}, {each.semantic_id}, "
            f"log-probability {each.score:.2f}]"
        )
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class _DoctorArguments:
    """Devices, versions and memory of this machine; with a recipe, what it will cost."""

    recipe: Path | None = None
    """Recipe whose parameters, FLOPs and memory are foretold."""
    items: int = 10_000
    """Items of the catalogue that is assumed for the forecast."""


def _doctor(words: list[str]) -> int:
    import tyro

    from jaxrec.scaling.doctor import machine_lines, recipe_lines

    options = tyro.cli(_DoctorArguments, args=words, prog="jaxrec doctor")
    for line in machine_lines():
        print(line)
    if options.recipe is not None:
        for line in recipe_lines(parse_overrides(str(options.recipe), [])[0], options.items):
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
