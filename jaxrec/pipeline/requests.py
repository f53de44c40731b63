"""Requests for recommendations: one JSON value a line, read one by one and checked one by one.

    {"user": "u17"}                                  a user of the run's log
    {"history": ["i3", "i8"]}                        a raw history, oldest first
    ["i3", "i8"]                                     the same, shorter

Further keys of an object: `id` (name of the answer), `count` (items it has), `exclude` (items it
must not have). Ids are texts or whole numbers; null counts as not given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import gzip
import json
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.data.errors import DataError, reading
from jaxrec.data.histories import Histories
from jaxrec.data.tables import need_file

MAX_LINE = 1 << 20
"""Bytes of a line at most: what bounds the memory that a stream of requests needs."""

KEYS = ("user", "history", "id", "count", "exclude")
"""Keys of a request."""

STDIN = "-"
"""Name of standard input."""

_NAMED = 5
_SHOWN = 60


@dataclasses.dataclass(frozen=True)
class Request:
    """What somebody asks for: recommendations for a user of the log, or for a raw history."""

    name: str
    """What the answer is called."""
    user: str | None = None
    """A user of the log; None where `history` is given."""
    history: tuple[str, ...] = ()
    """Item ids, oldest first."""
    count: int | None = None
    """Items wanted; None takes the default of the call."""
    exclude: tuple[str, ...] = ()
    """Items that must not be answered; those that the catalogue does not have mean nothing."""


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """A request in catalogue rows."""

    name: str
    items: np.ndarray
    """int32[t]: the known items of the history, oldest first, repeats kept."""
    unknown: list[str]
    """Item ids of the history that the catalogue does not have."""
    denied: np.ndarray
    """int32[m]: what must not be answered, each once."""
    count: int


def parse_request(line: bytes | str, number: int) -> Request:
    """Reads one line.

    Args:
        line: the line; bytes are UTF-8.
        number: its number, which names the answer where the request has neither `id` nor `user`.

    Raises:
        DataError: it is no request. The message does not name the line.
    """
    content = _load(line, number)
    if isinstance(content, list):
        content = {"history": content}
    if not isinstance(content, dict):
        raise DataError(
            f'it is {_shown(content)}; a request is an object such as {{"user": "ID"}} or '
            '{"history": ["ITEM", ...]}, or a list of item ids.'
        )
    for key in content:
        if key not in KEYS:
            close = difflib.get_close_matches(key, KEYS, n=1)
            hint = f" Perhaps it is {close[0]!r}." if close else ""
            raise DataError(f"key {_shown(key)} is unknown; use {', '.join(KEYS)}.{hint}")
    given = {key: value for key, value in content.items() if value is not None}
    if ("user" in given) == ("history" in given):
        raise DataError('it needs either "user" or "history"' + (", not both." if given else "."))
    user = _id(given["user"], '"user"') if "user" in given else None
    name = _id(given["id"], '"id"') if "id" in given else user
    return Request(
        name=f"line {number}" if name is None else name,
        user=user,
        history=_ids(given.get("history", []), '"history"'),
        count=_count(given.get("count")),
        exclude=_ids(given.get("exclude", []), '"exclude"'),
    )


def resolve(
    request: Request, histories: Histories, *, count: int, most: int, keep_seen: bool
) -> Question:
    """Looks the ids of a request up.

    Args:
        request: what is asked for.
        histories: the run's log.
        count: items of an answer where the request does not say.
        most: items that the run decodes.
        keep_seen: whether items of the history may be answered.

    Raises:
        DataError: an unknown user, a history of which no item is known, or an impossible count.
    """
    wanted = count if request.count is None else request.count
    if not 1 <= wanted <= most:
        raise DataError(f"count={wanted} is not possible: this run decodes 1 to {most} items.")
    unknown: list[str] = []
    if request.user is None:
        rows = find(histories, "items", request.history)
        unknown = [item for item, row in zip(request.history, rows) if row < 0]
        items = rows[rows >= 0]
        if unknown and not len(items):
            raise DataError(
                f"the catalogue has none of the items {_list(unknown)}; it has for example "
                f"{_list(histories.items[:3].tolist())}. Item ids are those of the log."
            )
    else:
        (user,) = find(histories, "users", (request.user,))
        if user < 0:
            raise DataError(
                f"the log does not know user {_list([request.user])}; it knows for example "
                f"{_list(histories.users[:3].tolist())}. For somebody new give a history of item "
                "ids."
            )
        items = np.asarray(histories.item[histories.history(int(user))])
    excluded = find(histories, "items", request.exclude)
    seen = items[:0] if keep_seen else items
    denied = np.unique(np.concatenate([seen, excluded[excluded >= 0]])).astype(np.int32)
    return Question(request.name, items, unknown, denied, wanted)


def find(histories: Histories, kind: str, ids: Sequence[str]) -> np.ndarray:
    """Rows int32[m] of ids, -1 for an unknown one.

    Args:
        histories: the log.
        kind: `items` or `users`.
        ids: texts of any length.
    """
    names, lookup = {
        "items": (histories.items, histories.find_items),
        "users": (histories.users, histories.find_users),
    }[kind]
    # A numpy array of texts is as wide as its longest and drops NULs at the end: an id that is
    # longer than all known ones, or has a NUL, is unknown without a look.
    longest = names.dtype.itemsize // np.dtype("U1").itemsize
    possible = np.array([len(each) <= longest and "\0" not in each for each in ids], bool)
    rows = lookup(np.array([each if ok else "" for each, ok in zip(ids, possible)], np.str_))
    return np.where(possible, rows, -1).astype(np.int32)


@contextlib.contextmanager
def open_requests(source: str) -> Generator[Any]:
    """Opens a file of requests, `.gz` too, a named pipe, or standard input (`-`), as bytes.

    Raises:
        DataError: no such file, a folder, an empty file.
    """
    if source == STDIN:
        yield sys.stdin.buffer
        return
    opener: Any = gzip.open if source.lower().endswith(".gz") else open
    with opener(check_source(source), "rb") as file:
        yield file


def check_source(source: str) -> Path:
    """The path of a source of requests, checked without reading it.

    Raises:
        DataError: no such file, a folder, an empty file.
    """
    path = Path(source)
    return path if path.is_fifo() else need_file(path)


def count_lines(source: str) -> int | None:
    """Lines of a plain file, for a progress bar; None where only reading to the end would tell."""
    path = Path(source)
    if source == STDIN or not path.is_file() or path.suffix.lower() == ".gz":
        return None
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(MAX_LINE), b""))


def numbered_lines(file: Any, source: str = "requests") -> Iterator[tuple[int, bytes]]:
    """The lines of a stream that are not blank, with their numbers from 1, as soon as they come.

    Of a line longer than MAX_LINE comes the beginning, which is enough for `parse_request` to
    refuse it; the rest is passed over.

    Args:
        file: a binary stream, such as `open_requests` gives.
        source: its name, for errors.

    Raises:
        DataError: damaged compression.
    """
    number = 0
    while line := _read_line(file, source):
        number += 1
        end = line
        while len(end) > MAX_LINE and not end.endswith(b"\n"):
            end = _read_line(file, source)
        if line.strip():
            yield number, line


def _read_line(file: Any, source: str) -> bytes:
    with reading(source):
        return file.readline(MAX_LINE + 1)


def _load(line: bytes | str, number: int) -> Any:
    if len(line) > MAX_LINE:
        raise DataError(f"it is longer than {MAX_LINE:,} bytes, which is what a request may have.")
    try:
        if isinstance(line, bytes):
            line = line.decode("utf-8-sig" if number == 1 else "utf-8")
        return json.loads(line)
    except UnicodeDecodeError as error:
        raise DataError(
            f"it is not UTF-8 (byte {error.object[error.start]:#04x} at place {error.start})."
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"it is not JSON: {error}.") from None


def _id(value: Any, where: str) -> str:
    # Ids that look like numbers come out of many tools without quotation marks.
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{where} has {_shown(value)}; ids are texts or whole numbers.")
    return str(value)


def _ids(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise DataError(f"{where} is {_shown(value)}; give a list of item ids.")
    return tuple(_id(each, where) for each in value)


def _count(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise DataError(f'"count" is {_shown(value)}; give a whole number.')
    return value


def _shown(value: Any) -> str:
    return _shorten(json.dumps(value, ensure_ascii=False))


def _list(ids: Sequence[str]) -> str:
    rest = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return ", ".join(_shorten(each) for each in ids[:_NAMED]) + rest


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
