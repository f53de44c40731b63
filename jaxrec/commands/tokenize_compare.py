"""`jaxrec tokenize --compare`: tokenizers side by side, before any generator is trained."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Literal

from jaxrec.commands.overrides import UsageError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Tokenizers of one catalogue side by side: a table here, and a page with pictures and titles.

    Recipe files are run as far as their semantic IDs first.
    """

    compare: tuple[Path, ...]
    """Folders of runs, or recipe files (.py); at least two, of the same items."""
    out: Path | None = None
    """The page; `tokens.html` in the runs folder by default. All numbers go to a .json beside."""
    runs: Path = Path("runs")
    """Folder that the runs of recipe files live in."""
    categories: str = ""
    """Column of the items with their categories; by default the first of categories, category,
    genres and genre that tells items apart."""
    category: Literal["first", "deepest"] = "first"
    """Which of an item's labels counts: the first that tells items apart, or the deepest."""


def main(words: list[str]) -> int:
    """Runs the command on the words after `tokenize`, `--compare` among them.

    Raises:
        UsageError: no tokenizer was named, or the page cannot be written there.
        ValueError: what `gather_runs` refuses.
    """
    import tyro

    from jaxrec.files import write_json, write_text
    from jaxrec.pipeline.compare_tokens import compare_tokens, gather_runs
    from jaxrec.pipeline.compare_tokens_page import render_tokens, tokens_text

    options = tyro.cli(Arguments, args=words, prog="jaxrec tokenize")
    page = options.out or options.runs / "tokens.html"
    numbers = page.with_suffix(".json")
    _check_output(page, numbers)
    runs = gather_runs(options.compare, options.runs)
    compared = compare_tokens(runs, column=options.categories, take=options.category)
    drawn = render_tokens(compared, runs)
    print(tokens_text(compared), end="")
    write_text(page, drawn)
    write_json(numbers, compared)
    print(f"\npage: {page}\nnumbers: {numbers}")
    return 0


def _check_output(page: Path, numbers: Path) -> None:
    """Finds before any work what would keep the files from being written."""
    if numbers == page:
        raise UsageError(f"--out {page} is the page, and its numbers go to a .json beside it.")
    for path in (page, numbers):
        if path.is_dir():
            raise UsageError(f"{path} is a folder; give --out the name of a file to write.")
    above = next(each for each in page.resolve().parents if each.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UsageError(f"--out {page} cannot be written: {above} is not a writable folder.")
