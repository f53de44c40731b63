"""`jaxrec compare`: finished runs side by side."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from jaxrec.commands.overrides import UsageError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Runs side by side: metrics with intervals, paired differences, recipes, costs.

    Runs that were judged by different rules are shown, and never ranked together.
    """

    runs: tuple[Path, ...]
    """Folders of finished runs, at least two."""
    metrics: tuple[str, ...] = ("recall@10", "ndcg@10")
    """What is compared; the first ranks the methods, and is recall@K, ndcg@K or mrr@K."""
    against: Literal["baseline", "best"] = "baseline"
    """Inside a group every method is paired with this one: the best baseline (of all rows that are
    no trained semantic-ID generators), or the best of all."""
    systems: bool = False
    """History cap, decoder and beam belong to the systems and are no rules: retrievers and
    generators on the same cases are then ranked together, and the differences printed."""
    every_row: bool = False
    """Also rows with seen items kept, and hits by semantic codes."""
    markdown: bool = False
    """Print Markdown instead of plain text."""
    html: Path | None = None
    """Write one self-contained page to this file."""
    json: Path | None = None
    """Write the numbers to this file."""


def main(words: list[str]) -> int:
    """Runs the command on the words after it.

    Raises:
        UsageError: no run was named, or an output file cannot be one.
    """
    import tyro

    from jaxrec.evaluation.compare import BINDING, TASK, compare_runs
    from jaxrec.evaluation.compare_views import as_html, as_markdown, as_text, parts_of
    from jaxrec.files import write_json, write_text
    from jaxrec.pipeline.compare import open_runs

    if not words:
        raise UsageError("`jaxrec compare` needs runs, for example: runs/quickstart runs/other")
    options = tyro.cli(
        Arguments, args=words, prog="jaxrec compare", config=(tyro.conf.PositionalRequiredArgs,)
    )
    for path in (options.html, options.json):
        if path is not None and path.is_dir():
            raise UsageError(f"{path} is a folder; give the name of a file to write.")
    compared = compare_runs(
        open_runs(options.runs),
        metrics=options.metrics,
        against=options.against,
        binding=TASK if options.systems else BINDING,
    )
    parts = parts_of(compared, every_row=options.every_row)
    if options.json is not None:
        write_json(options.json, compared)
    if options.html is not None:
        title = f"jaxrec: {', '.join(compared['costs'])}"
        write_text(options.html, as_html(parts, title=title))
    print(as_markdown(parts) if options.markdown else as_text(parts), end="")
    return 0
