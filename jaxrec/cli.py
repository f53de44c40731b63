"""The `jaxrec` program: finds the command and keeps its failures short.

Bad input ends in one clear message and exit code 2, never in a traceback; JAXREC_TRACEBACK=1 shows
the traceback all the same.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import re
import sys
from collections.abc import Sequence

USAGE = """\
jaxrec: generative recommendation in JAX, from an interaction log to valid recommendations.

usage: jaxrec COMMAND ...

  data import [FORMAT] PATH --out FOLDER
                                       anybody's log as a dataset folder
  data describe FOLDER|RECIPE          counts, histories, ties, text, pages; one HTML page
  data fetch [NAME]                    fetch a public data set, or list them
  run RECIPE [--FIELD VALUE ...]       everything: data, semantic IDs, training, evaluation, report
  tokenize RECIPE                      go as far as semantic IDs and judge their quality
  tokenize --compare RUN|RECIPE ...    tokenizers side by side: a table and one HTML page
  extend RUN --vectors FILE --ids FILE --out FOLDER
                                       semantic IDs for new items; none of the old ones moves
  train RECIPE                         go as far as a trained generator
  evaluate RECIPE|RUN                  judge a trained run again and rewrite its report
  align RUN --objective NAME           move a trained generator by preferences or rewards: a new run
                                       beside it, and a page of what changed
  recommend RUN --user ID | --history ITEM ... | --input FILE
                                       answer for known users or for raw histories
  compare RUN ...                      runs side by side
  import hf PATH [--out FOLDER]        a Hugging Face model: checked, and to start from
  export RUN --out FOLDER              a program that answers with jax and numpy alone
  doctor [--recipe RECIPE]             devices, versions, memory; what a recipe will cost

RECIPE is a Python file such as configs/quickstart.py, or the recipe.json of a run. Every field of
a recipe is a flag: `jaxrec run configs/quickstart.py --generator.layers 6 --seed 1`;
`jaxrec run configs/quickstart.py --help` lists them. RUN is a folder below runs/.
`jaxrec COMMAND --help` explains a command.
"""

STAGES = {"run": "report", "tokenize": "tokens", "train": "train", "evaluate": "report"}
"""Commands that run a recipe, and the stage each stops after."""

COMMANDS = {
    "data import": "data_import",
    "data describe": "data_describe",
    "data fetch": "data_fetch",
    **dict.fromkeys(STAGES, "stages"),
    "align": "align",
    "recommend": "recommend",
    "compare": "compare",
    "import hf": "import_hf",
    "export": "export",
    "extend": "tokenize_extend",
    "doctor": "doctor",
}
"""Every command and its module in jaxrec.commands."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except BrokenPipeError:
        # Whoever read our output (`| head`) has seen enough; Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError) as error:
        if os.environ.get("JAXREC_TRACEBACK") == "1":
            raise
        print(f"error: {str(error) or type(error).__name__}{_advice(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if os.environ.get("JAXREC_TRACEBACK") == "1":
            raise
        print("interrupted; what is finished is kept, the same command goes on.", file=sys.stderr)
        return 130


def _advice(error: Exception) -> str:
    """What to do about an error of the system, which does not say it."""
    number = getattr(error, "errno", None)
    # numpy says only how much it could not write.
    is_short = isinstance(error, OSError) and re.fullmatch(
        r"\d+ requested and \d+ written", str(error)
    )
    if is_short or number in (errno.ENOSPC, errno.EDQUOT):
        return ". The disk is full: make room; what is finished is kept, the same command goes on."
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ". Nothing can be written there: mend the permissions, or choose another folder."
    return ""


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if words else 2
    if words[0] == "--version":
        from jaxrec import __version__

        print(__version__)
        return 0
    command, rest = _command(words)
    if command == "tokenize" and "--compare" in rest:
        return importlib.import_module("jaxrec.commands.tokenize_compare").main(rest)
    module = importlib.import_module(f"jaxrec.commands.{COMMANDS[command]}")
    if command in STAGES:
        if rest[:1] in (["-h"], ["--help"]):
            print(USAGE)
            return 0
        return module.main(rest, command, STAGES[command])
    return module.main(rest)


def _command(words: list[str]) -> tuple[str, list[str]]:
    """The command that the first one or two words name, and the words after it."""
    for length in (1, 2):
        if (name := " ".join(words[:length])) in COMMANDS:
            return name, words[length:]
    first = words[0]
    family = [name for name in COMMANDS if name.startswith(f"{first} ")]
    if family and words[1:2] in ([], ["-h"], ["--help"]):
        raise ValueError(f"`jaxrec {first}` needs one of: {', '.join(family)}.")
    given = " ".join(words[: 2 if family else 1])
    close = difflib.get_close_matches(given, COMMANDS, n=1)
    hint = f" Perhaps you meant `jaxrec {close[0]}`." if close else ""
    choices = ", ".join(family or COMMANDS)
    raise ValueError(f"there is no command {given!r}; choose from {choices}.{hint}")


if __name__ == "__main__":
    sys.exit(main())
