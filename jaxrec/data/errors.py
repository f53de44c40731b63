"""What is wrong with a log or a dataset, as one error that says what to do."""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import re
import zlib
from collections.abc import Generator
from pathlib import Path

_LONGEST = 1500
"""Characters of a message: names of columns and ids may be of any length."""


class DataError(ValueError):
    """A log or a dataset folder that cannot be used. The message says what to do."""

    def __init__(self, message: str) -> None:
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST - 500]} ... {message[-490:]}"
        super().__init__(message)


@contextlib.contextmanager
def reading(path: Path | str) -> Generator[None]:
    """Turns what goes wrong while a file is read into a DataError that names it."""
    import polars as pl

    try:
        yield
    except DataError:
        raise
    except (
        pl.exceptions.PolarsError,
        pl.exceptions.PanicException,
        UnicodeError,
        EOFError,
        gzip.BadGzipFile,
        zlib.error,
        OverflowError,
    ) as error:
        _raise_unwritable(error)
        raise DataError(f"{path} cannot be read: {_plain(error)}") from None
    except OSError as error:
        # polars reports damaged compressed text as an error of the system, without a number.
        if error.errno is not None:
            raise
        _raise_unwritable(error)
        raise DataError(f"{path} cannot be read: {_plain(error)}") from None


def _raise_unwritable(error: BaseException) -> None:
    """A disk that cannot take more is not the fault of the file that is read."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    number = int(found.group(1)) if found else 0
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        raise OSError(number, os.strerror(number)) from None


_IN_PLAIN_WORDS = {
    "found more fields than defined in 'Schema'": (
        "a row has more cells than the first line names. Is the separator right, are cells that "
        "hold it quoted?"
    ),
    "could not find an appropriate format to parse dates, please define a format": (
        "a time is not a date such as 2018-11-07T09:59:19. Name its format with --time-unit, for "
        "example --time-unit '%d.%m.%Y %H:%M'."
    ),
    "invalid utf-8 sequence": (
        "its text is not UTF-8. Convert it, for example with `iconv -f LATIN1 -t UTF-8`."
    ),
}


def _plain(error: BaseException) -> str:
    """The first paragraph of a library's message, without its advice to programmers."""
    text = re.split(r"\n\s*\n|\nConsider|\nResolved plan", str(error).strip())[0]
    text = " ".join(text.split()) or type(error).__name__
    return _IN_PLAIN_WORDS.get(text, text)
