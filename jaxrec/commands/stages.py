"""`jaxrec run`, `tokenize`, `train` and `evaluate`: a recipe, as far as asked."""

from __future__ import annotations

from jaxrec.commands.overrides import UsageError, parse_overrides


def main(words: list[str], command: str, last: str) -> int:
    """Runs a recipe as far as the stage `last` (one of `jaxrec.pipeline.stages.STAGES`).

    Raises:
        UsageError: no recipe was named.
    """
    from jaxrec.pipeline.run import run

    if not words or words[0].startswith("-"):
        raise UsageError(
            f"`jaxrec {command}` needs a recipe, for example: jaxrec {command} "
            "configs/quickstart.py"
        )
    recipe, runs = parse_overrides(words[0], words[1:], command)
    run(recipe, runs=runs, last=last, again=command == "evaluate")
    return 0
