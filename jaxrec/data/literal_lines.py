"""Files of Python literals, one a line, and cells that hold one: what `repr` left behind.

Amazon's 2014 metadata, P5's copies of it and the lists in MiniOneRec's tables are written so. They
are parsed with `ast.literal_eval`, which knows no names and calls nothing.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxrec.data.errors import DataError
from jaxrec.data.tables import text_lines

_SHOWN = 60


def literal(text: str, where: str) -> Any:
    """The value of a Python literal: numbers, texts, lists, dictionaries.

    Args:
        text: the literal.
        where: file and line, for the message.

    Raises:
        DataError: anything else, however deep or long.

    >>> literal("{'asin': 'B00', 'related': [1, 2.5, None]}", "line 1")
    {'asin': 'B00', 'related': [1, 2.5, None]}
    """
    try:
        with warnings.catch_warnings():
            # Titles hold backslashes; Python warns that they escape nothing, and keeps them.
            warnings.simplefilter("ignore")
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise DataError(
            f"{where} is not a Python literal (a list or dictionary as Python prints it): "
            f"{text[:_SHOWN]!r}."
        ) from None


def literal_lines(path: Path | str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The dictionaries of a file that has one a line, as JSON or as Python literals.

    Empty lines are skipped. Both kinds may be mixed: the published files come in both.

    Yields:
        Line number from 1, dictionary with text keys.

    Raises:
        DataError: as `text_lines`, or a line that is neither, or no dictionary.
    """
    for number, line in text_lines(path):
        if not line.strip():
            continue
        row = json_or_literal(line, f"{path}, line {number}")
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number} is neither a JSON object nor a Python dictionary: "
                f"{line[:_SHOWN]!r}."
            )
        yield number, {str(key): value for key, value in row.items()}


def json_or_literal(text: str, where: str) -> Any:
    """The value of a text that is JSON or a Python literal.

    Raises:
        DataError: it is neither.

    >>> json_or_literal('{"a": null}', ""), json_or_literal("{'a': None}", "")
    ({'a': None}, {'a': None})
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        # A Python literal is no JSON: its quotation marks are single ones.
        pass
    try:
        return literal(text, where)
    except DataError:
        raise DataError(
            f"{where} is neither JSON nor a Python literal: {text[:_SHOWN]!r}."
        ) from None
