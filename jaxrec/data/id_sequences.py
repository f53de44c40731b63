"""Logs that are lists of item ids, one list a user, and the items of such data sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxrec.data.dataset import Frame
from jaxrec.data.errors import DataError, reading
from jaxrec.data.tables import columns_of, json_object

_SHOWN = 60


def id_of(value: Any, where: str) -> str:
    """An id as text.

    Raises:
        DataError: neither a text nor a whole number, or empty, or not Unicode.

    >>> id_of(7, "users"), id_of("B00", "users")
    ('7', 'B00')
    """
    text = str(value)
    if not isinstance(value, str | int) or isinstance(value, bool) or not text:
        raise DataError(f"{where}: {value!r} is no id; ids are texts or whole numbers.")
    if as_unicode(text) != text:
        raise DataError(f"{where}: {value!r} holds half a surrogate pair, which is no text.")
    return text


def order_log(sequences: Iterable[tuple[Any, Any]], where: Path | str) -> Frame:
    """A log whose time is an order, from the item ids of each user, oldest first.

    Args:
        sequences: pairs (user, list of items).
        where: the file, for messages.

    Returns:
        polars frame with user, item (text) and timestamp (int64: 0, 1, 2, ... for each user).

    Raises:
        DataError: no user, something that is no id or no list, a user without items or with two
            lists.
    """
    import polars as pl

    known: dict[str, list[str]] = {}
    for user, items in sequences:
        name = id_of(user, f"{where}, user")
        if name in known:
            raise DataError(f"{where}: user {name!r} has two histories. Join them.")
        if not isinstance(items, list) or not items:
            raise DataError(
                f"{where}: the history of user {name!r} must be a list of at least one item, got "
                f"{str(items)[:_SHOWN]!r}."
            )
        known[name] = [id_of(item, f"{where}, item of user {name!r}") for item in items]
    if not known:
        raise DataError(f"{where} holds not one history. Check the file.")
    log = pl.DataFrame(
        {"user": list(known), "item": list(known.values())},
        schema={"user": pl.String, "item": pl.List(pl.String)},
    )
    times = pl.int_ranges(pl.col("item").list.len(), dtype=pl.Int64)
    return log.with_columns(timestamp=times).explode("item", "timestamp")


def read_item_objects(path: Path | str) -> dict[str, list[Any]]:
    """Items of a file that is one JSON object: {item id: {title, brand, ...}}.

    Raises:
        DataError: as `json_object`, or an item that is no object.
    """
    rows = []
    for item, fields in json_object(path).items():
        if not isinstance(fields, Mapping):
            raise DataError(
                f"{path}: item {item!r} must be an object of fields such as title, got "
                f"{str(fields)[:_SHOWN]!r}."
            )
        rows.append({**fields, "item": id_of(item, f"{path}, item")})
    if not rows:
        raise DataError(f"{path} describes not one item.")
    try:
        with reading(path):
            return columns_of(rows, "item")
    except RecursionError:
        raise DataError(f"{path}: an item holds lists in lists, too deep to be text.") from None


def as_unicode(value: Any) -> Any:
    """A text without halves of surrogate pairs, which JSON can spell and no file can hold.

    >>> as_unicode("a\\ud800b"), as_unicode(3)
    ('a?b', 3)
    """
    if not isinstance(value, str) or value.isascii():
        return value
    return value.encode("utf-8", "replace").decode("utf-8")


def bare_items(log: Frame) -> dict[str, list[str]]:
    """The ids of a log as an item table without text: by number where all are numbers."""
    ids = log["item"].unique(maintain_order=True).to_list()
    numbered = all(item.isascii() and item.isdigit() for item in ids)
    # Longer numbers are larger ones; comparing them as text needs no integers of any size.
    return {"item": sorted(ids, key=lambda item: (len(item), item)) if numbered else ids}


def only_name(folder: Path, ending: str, flag: str) -> str:
    """The stem of the one file of a folder that has this ending.

    Args:
        folder: where to look.
        ending: for example `.inter.json`.
        flag: the field to set where there are several.

    Raises:
        DataError: no folder, no such file, or several.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; name the one that holds *{ending}.")
    names = sorted(path.name.removesuffix(ending) for path in folder.glob(f"*{ending}"))
    if not names:
        raise DataError(f"{folder} has no file *{ending}. Check the path.")
    if len(names) > 1:
        raise DataError(f"{folder} has *{ending} of {', '.join(names)}; choose one with {flag}.")
    return names[0]
