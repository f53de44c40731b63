"""`jaxrec align`: moves a finished run's generator by preferences or rewards."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable
from pathlib import Path

from jaxrec.commands.overrides import UsageError, override

USAGE = """\
usage: jaxrec align RUN --objective NAME [--reward NAME] [--pairs FILE] [--FIELD VALUE ...]

Goes on training a finished run's generator, in a new run beside it named RUN-NAME, and says what
happened to rewards and rankings: alignment.html, beside the usual report.

  RUN            folder of a finished run
  --objective    {objectives}
  --reward       {rewards}; the one the objective was published with by default:
                 model learns what users take, on training events, and is calibrated and frozen;
                 signed is +1 and -1 for the ends of its scores; gated is its score, 0 below one
                 half, and the best of the group for what the user did; exact is an exact match with
                 a rank penalty
  --pairs FILE   pairs that were made beforehand (npz), for objectives that compare items
  --name NAME    of the new run

Every field of the new recipe is a flag; the alignment stage is the last one:
`jaxrec align runs/quickstart --objective grpo --stages.1.fit.steps 100 --stages.1.nll 0.1`.
The same command goes on where a killed one stopped.
"""


ROWS = 32
"""Histories of a step unless a flag says otherwise."""


def main(words: list[str]) -> int:
    """Runs the command on the words after it.

    Raises:
        UsageError: no run or no objective was named.
        ValueError: whatever does not fit; see `jaxrec.pipeline.align`.
    """
    from jaxrec.alignment.defaults import OBJECTIVES, REWARDS, stage_of

    if not words or words[0] in ("-h", "--help"):
        print(USAGE.format(objectives=listed(OBJECTIVES), rewards=listed(REWARDS)))
        if words:
            return 0
    if not words or words[0].startswith("-"):
        raise UsageError(
            "`jaxrec align` needs a run, for example: jaxrec align runs/quickstart --objective grpo"
        )
    from jaxrec.alignment.pair_file import PairFile
    from jaxrec.alignment.prefer import Prefer
    from jaxrec.pipeline.align import align
    from jaxrec.recipe import load_recipe

    source, rest = Path(words[0]), list(words[1:])
    objective = take_option(rest, "--objective")
    if objective is None:
        raise UsageError(f"name an --objective: one of {', '.join(OBJECTIVES)}.")
    reward, pairs = take_option(rest, "--reward"), take_option(rest, "--pairs")
    if not (source / "recipe.json").is_file():
        raise ValueError(
            f"{source} is not a run: it has no recipe.json. Runs are made by `jaxrec run RECIPE`."
        )
    recipe = load_recipe(source / "recipe.json")
    stage = stage_of(objective, reward, length=recipe.evaluation.history, rows=ROWS)
    if pairs is not None:
        if not isinstance(stage, Prefer):
            raise UsageError(f"--pairs are for objectives that compare items, {objective} is not.")
        if not Path(pairs).is_file():
            raise ValueError(f"--pairs {pairs} is no file; jaxrec.alignment.pair_file writes one.")
        feed = PairFile(pairs, length=recipe.evaluation.history, rows=ROWS)
        stage = dataclasses.replace(stage, feed=feed)
    longer = dataclasses.replace(
        recipe, name=f"{recipe.name}-{objective}", stages=(*recipe.stages, stage)
    )
    program = f"jaxrec align {words[0]} --objective {objective}"
    chosen, runs = override(longer, source.resolve().parent, rest, program)
    align(source, chosen, runs=runs)
    return 0


def listed(names: Iterable[str]) -> str:
    """Names for the usage, below each other where they are many."""
    return "\n".join(textwrap.wrap(", ".join(names), 82, break_on_hyphens=False)).replace(
        "\n", "\n" + " " * 17
    )


def take_option(words: list[str], name: str) -> str | None:
    """Takes an option with its value out of the words.

    Raises:
        UsageError: it comes twice or without a value.

    >>> words = ["--seed", "1", "--reward", "exact"]
    >>> take_option(words, "--reward"), words
    ('exact', ['--seed', '1'])
    """
    for index, word in enumerate(words):
        key, equals, value = word.partition("=")
        if key != name:
            continue
        if not equals and index + 1 == len(words):
            raise UsageError(f"{name} needs a value.")
        taken = value if equals else words[index + 1]
        del words[index : index + (1 if equals else 2)]
        if take_option(list(words), name) is not None:
            raise UsageError(f"{name} was given twice.")
        return taken
    return None
