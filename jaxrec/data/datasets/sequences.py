"""The layout of many semantic-ID papers: one line a user in sequences.txt, one JSON a line an item.

sequences.txt    user item item ...      oldest first
timestamps.txt   user time time ...      optional, aligned with the sequences, Unix seconds
items.jsonl      {"item_id": ..., "title": ..., "categories": [[...]], ...}
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from jaxrec.data.dataset import DataError, Frame, write_dataset
from jaxrec.data.tables import columns_of, fingerprint_files, json_lines, text_lines

SEQUENCES = "sequences.txt"
TIMESTAMPS = "timestamps.txt"
ITEM_LINES = "items.jsonl"


@dataclasses.dataclass(frozen=True)
class SequenceFiles:
    """A folder with sequences.txt, items.jsonl and perhaps timestamps.txt. Ids are kept.

    Without timestamps an event's time is its index in the history, and dataset.json says that
    time is order only.
    """

    path: str
    """The folder."""
    name: str = ""
    """Name of the data set; the folder's by default."""
    item_key: str = "item_id"
    """Key of the item's id in items.jsonl."""
    source: str = ""
    """Where the files come from, for dataset.json."""
    licence: str = "unknown"
    """Terms of use, for dataset.json."""

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes the canonical dataset folder.

        Raises:
            DataError: a file is missing or malformed, or the two files of lines disagree.
        """
        path = Path(self.path)
        has_time = (path / TIMESTAMPS).is_file()
        log = _read_log(path, has_time)
        write_dataset(
            folder,
            log,
            read_item_lines(path / ITEM_LINES, self.item_key),
            name=self.name or path.resolve().name,
            source=self.source or f"{SEQUENCES} and {ITEM_LINES} of {path.resolve().name}",
            licence=self.licence,
            time_unit="s" if has_time else "order",
        )

    def fingerprint(self) -> dict[str, Any]:
        """Sizes and SHA-256 of the files that are read."""
        path = Path(self.path)
        return fingerprint_files(
            path / SEQUENCES, path / ITEM_LINES, path / TIMESTAMPS, optional=(TIMESTAMPS,)
        )


def read_item_lines(path: str | os.PathLike[str], item_key: str = "item_id") -> Frame:
    """Reads a file of JSON objects, one an item, into columns with the id as text in `item`.

    A column whose values are all numbers stays one of numbers; all others become text: lists
    joined by `, `, nested lists `a > b; c > d`, missing values empty.

    Raises:
        DataError: no such file, a line that is no JSON object, or an object without the key.
    """
    rows = []
    for number, row in json_lines(Path(path)):
        if row.get(item_key) is None:
            raise DataError(
                f"{path}, line {number}: no {item_key!r} among {sorted(row)}. Name the key of the "
                "id with item_key."
            )
        rows.append(row)
    return columns_of(rows, item_key)


def _read_log(path: Path, has_time: bool) -> Frame:
    import polars as pl

    log = _read_lines(path / SEQUENCES)
    if log["user"].is_duplicated().any():
        doubled = log.filter(pl.col("user").is_duplicated())["user"][0]
        raise DataError(f"{path / SEQUENCES}: user {doubled!r} has two lines. Join them.")
    if not has_time:
        log = log.with_columns(timestamp=pl.int_ranges(pl.col("values").list.len()))
        return log.rename({"values": "item"}).explode("item", "timestamp")
    times = _read_lines(path / TIMESTAMPS)
    if times.height != log.height or (times["user"] != log["user"]).any():
        raise DataError(
            f"{path / TIMESTAMPS} does not list the users of {SEQUENCES} in the same order. "
            "Align the two files line by line, or remove the times."
        )
    uneven = log.filter(log["values"].list.len() != times["values"].list.len())["user"]
    if len(uneven):
        raise DataError(
            f"{path / TIMESTAMPS}: {len(uneven)} user(s) have another number of times than items, "
            f"for example {uneven[0]!r}. Align the two files, or remove the times."
        )
    try:
        stamps = times["values"].cast(pl.List(pl.Int64))
    except pl.exceptions.InvalidOperationError as error:
        raise DataError(f"{path / TIMESTAMPS}: times are whole seconds: {error}") from None
    log = log.with_columns(timestamp=stamps).rename({"values": "item"})
    return log.explode("item", "timestamp")


def _read_lines(path: Path) -> Frame:
    """Columns user (text) and values (list of texts) of a file of lines `user value value ...`."""
    import polars as pl

    lines = pl.Series("line", [line for _, line in text_lines(path)], dtype=pl.String)
    words = lines.filter(lines.str.strip_chars() != "").str.extract_all(r"\S+")
    frame = pl.DataFrame({"user": words.list.first(), "values": words.list.slice(1)})
    empty = frame.filter(frame["values"].list.len() == 0)["user"]
    if len(empty):
        raise DataError(
            f"{path}: the line of user {empty[0]!r} names no item. Remove the line or complete it."
        )
    return frame
