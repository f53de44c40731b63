"""`jaxrec recommend`: answers of a finished run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import sys
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxrec.commands.overrides import UsageError

if TYPE_CHECKING:
    from jaxrec.pipeline.recommend import Answer, Refused
    from jaxrec.pipeline.run import Finished


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Answers from a trained run: for users of its log, for raw histories, for a file of requests.

    A file of requests has one JSON value a line: {"user": "ID"}, {"history": ["ITEM", ...]} or
    just ["ITEM", ...], oldest first; optional keys are "id", "count" and "exclude". Its answers
    are JSON lines, in its order.
    """

    user: tuple[str, ...] = ()
    """Users of the log, by the ids that the log uses."""
    history: tuple[str, ...] | None = None
    """Item ids of one raw history, oldest first; no ids at all is somebody new."""
    input: str = ""
    """File of requests, one JSON value a line (.gz too); - reads standard input."""
    output: Path | None = None
    """Write the answers to this file, which appears when all are there, instead of printing."""
    on_error: Literal["stop", "skip"] = "stop"
    """A line of --input that cannot be answered ends the command (stop), or gets an answer
    {"line": N, "error": "..."} in its place (skip)."""
    batch: int = 0
    """Lines of --input answered together; 0 is the recipe's evaluation.rows, 1 answers every line
    as it comes."""
    count: int = 10
    """Items an answer has, where a request does not say."""
    keep_seen: bool = False
    """Whether items of the history may be answered."""
    reasons: bool = True
    """Say about each item what can be said: semantic IDs shared with the history, statistics."""
    json: bool = False
    """Print one JSON object a line instead of a table. Answers to --input always are."""


def main(words: list[str]) -> int:
    """Runs the command on the words after it.

    Raises:
        UsageError: nobody to recommend to, or options that do not fit each other.
        ValueError: no finished run, or a request that cannot be answered.
    """
    import tyro

    if words[:1] in (["-h"], ["--help"]):
        words = ["RUN", "--help"]
    elif not words or words[0].startswith("-"):
        raise UsageError("`jaxrec recommend` needs a run, for example: runs/quickstart --user 196")
    options = tyro.cli(Arguments, args=words[1:], prog=f"jaxrec recommend {words[0]}")
    _check(options)
    try:
        with _sink(options.output) as file:
            _answer(Path(words[0]), options, file)
    except BrokenPipeError:
        # The reader has had enough (`| head`). Python flushes once more at its end: into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _check(options: Arguments) -> None:
    """Finds what cannot work before the run is opened, which takes seconds."""
    from jaxrec.pipeline.requests import STDIN, check_source

    somebody = bool(options.user) or options.history is not None
    if not somebody and not options.input:
        raise UsageError(
            "nobody to recommend to: give --user ID ..., --history ITEM ... or --input FILE"
        )
    if somebody and options.input:
        raise UsageError("give either --input or --user and --history, not both")
    if options.batch < 0:
        raise UsageError(f"--batch {options.batch} is no number of lines; 0 takes the recipe's")
    if options.input and options.input != STDIN:
        source = check_source(options.input)
        target = options.output
        if target is not None and target.exists() and target.samefile(source):
            raise UsageError(f"--output {target} would replace the requests")


def _answer(folder: Path, options: Arguments, file: Any) -> None:
    """Answers everything that was asked, and writes each batch of answers as it is made."""
    from jaxrec.pipeline.reasons import explainer
    from jaxrec.pipeline.recommend import recommend_histories, recommend_users
    from jaxrec.pipeline.run import open_finished

    run = open_finished(folder)
    settings: dict[str, Any] = {"count": options.count, "keep_seen": options.keep_seen}
    settings["explain"] = explainer(run.data, run.tokens.ids) if options.reasons else None
    if options.input:
        _answer_input(run, options, settings, file)
        return
    answers = recommend_users(run, options.user, **settings) if options.user else []
    if options.history is not None:
        answers += recommend_histories(run, [options.history], **settings)
    _write(file, (_as_json(each) if options.json else _answer_table(each) for each in answers))


def _answer_input(run: Finished, options: Arguments, settings: dict[str, Any], file: Any) -> None:
    from jaxrec.pipeline.recommend import Refused, recommend_lines
    from jaxrec.pipeline.requests import STDIN, count_lines, numbered_lines, open_requests

    source = "standard input" if options.input == STDIN else options.input
    done = refused = 0
    with open_requests(options.input) as requests, _progress(options, count_lines) as update:
        batches = recommend_lines(
            run,
            numbered_lines(requests, source),
            skip=options.on_error == "skip",
            rows=options.batch or None,
            source=source,
            **settings,
        )
        for answers in batches:
            _write(file, map(_as_json, answers))
            done += len(answers)
            refused += sum(isinstance(each, Refused) for each in answers)
            update(len(answers))
    if not done:
        print(f"{source} has no request.", file=sys.stderr)
    elif refused:
        print(
            f"{refused:,} of {done:,} requests could not be answered; each has its error in the "
            "place of its answer.",
            file=sys.stderr,
        )


@contextlib.contextmanager
def _progress(options: Arguments, count_lines: Any) -> Generator[Any]:
    """A progress bar on stderr, unless the answers themselves run over the terminal."""
    from jaxrec.tracking import Progress

    if options.output is None and sys.stdout.isatty():
        yield lambda amount: None
        return
    with Progress(count_lines(options.input), "recommend", unit="answers") as progress:
        yield progress.update


@contextlib.contextmanager
def _sink(path: Path | None) -> Generator[Any]:
    """Standard output as bytes, or a file that is there, and whole, only when the block ended well.

    Raises:
        UsageError: something that is no file is in its place.
    """
    if path is None:
        sys.stdout.flush()
        yield sys.stdout.buffer
        return
    if path.exists() and not path.is_file():
        raise UsageError(f"--output {path} is not a file; give the name of a file to write.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(file: Any, texts: Iterable[str]) -> None:
    """Writes lines as UTF-8 whatever the locale, and hands them to the reader at once."""
    # Half of a surrogate pair is no text; in JSON its escape is what it came as.
    file.write("".join(f"{text}\n" for text in texts).encode("utf-8", "backslashreplace"))
    file.flush()


def _as_json(answer: Answer | Refused) -> str:
    return json.dumps(answer, default=vars, ensure_ascii=False, allow_nan=False)


def _answer_table(answer: Answer) -> str:
    newest = answer.history[-5:]
    earlier = len(answer.history) - len(newest)
    lines = [
        f"{answer.name}: after {f'{earlier} earlier items and ' if earlier else ''}"
        f"{', '.join(newest) or 'nothing'}"
    ]
    if answer.history_used < len(answer.history):
        lines.append(f"  read: the newest {answer.history_used} of {len(answer.history)} items")
    if answer.unknown:
        lines.append(f"  not in the catalogue, left out: {', '.join(answer.unknown)}")
    for each in answer.recommendations:
        score = (
            f"{each.semantic_id}, log-probability {each.score:.2f}"
            if each.semantic_id
            else f"inner product {each.score:.2f}"
        )
        lines.append(f"  {each.rank:3d}. {each.title}  [item {each.item}, {score}]")
        lines += [f"         {why.text}" for why in each.reasons if why.kind != "score"]
    return "\n".join(lines)
