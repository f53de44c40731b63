"""RecBole atomic files: tab-separated tables whose header names each column and its type.

`NAME.inter` holds the log, `NAME.item` the items (optional). A header cell reads `name:type` with
the types token, token_seq, float and float_seq (https://recbole.io/docs, "Atomic files").
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from jaxrec.data.dataset import DataError, Frame, write_dataset
from jaxrec.data.tables import fingerprint_files, need_columns, need_file, reading


@dataclasses.dataclass(frozen=True)
class RecBoleFiles:
    """The files `PATH/NAME.inter` and, where it exists, `PATH/NAME.item`.

    Times are whole seconds; fractions are dropped. Without a column of times the order of the log
    counts, and dataset.json says so.
    """

    path: str
    """Folder of the files."""
    name: str
    """Their common stem, for example `ml-100k`."""
    item_columns: tuple[tuple[str, str], ...] = ()
    """Renamed columns of the items, as (theirs, ours) pairs: `(("movie_title", "title"),)`."""
    user: str = "user_id"
    """Column of users."""
    item: str = "item_id"
    """Column of items, in both files."""
    time: str = "timestamp"
    """Column of times."""
    value: str = "rating"
    """Column of values (ratings); ignored where the log has none."""
    source: str = ""
    """Where the files come from, for dataset.json."""
    licence: str = "unknown"
    """Terms of use, for dataset.json."""

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes the canonical dataset folder.

        Raises:
            DataError: a file or column is missing or malformed.
        """
        import polars as pl

        log = read_atomic_file(Path(self.path) / f"{self.name}.inter")
        need_columns(log.columns, (self.user, self.item), f"{self.name}.inter")
        has_time = self.time in log.columns
        if has_time:
            time = _to_seconds(log[self.time], f"{self.name}.inter")
        else:
            time = log.select(pl.int_range(pl.len()).over(self.user)).to_series()
        columns = {"user": log[self.user], "item": log[self.item], "timestamp": time}
        if self.value in log.columns:
            with reading(f"{self.name}.inter"):
                columns["value"] = log[self.value].cast(pl.Float64)
        write_dataset(
            folder,
            columns,
            self._items(log),
            name=self.name,
            source=self.source or f"RecBole atomic files {self.name}.inter and {self.name}.item",
            licence=self.licence,
            time_unit="s" if has_time else "order",
        )

    def fingerprint(self) -> dict[str, Any]:
        """Sizes and SHA-256 of the files that are read."""
        return fingerprint_files(
            Path(self.path) / f"{self.name}.inter",
            Path(self.path) / f"{self.name}.item",
            optional=(f"{self.name}.item",),
        )

    def _items(self, log: Frame) -> Frame:
        path = Path(self.path) / f"{self.name}.item"
        if not path.is_file():
            return log.select(item=self.item).unique(maintain_order=True)
        items = read_atomic_file(path)
        names = dict(self.item_columns)
        need_columns(items.columns, (self.item, *names), path.name)
        with reading(path):
            return items.rename({self.item: "item", **names})


def read_atomic_file(path: str | os.PathLike[str]) -> Frame:
    """Reads one atomic file into a polars frame: float columns as numbers, all others as text.

    Raises:
        DataError: no such file, a header without types, or rows of another width.
    """
    import polars as pl

    path = need_file(Path(path))
    with reading(path):
        frame = pl.read_csv(path, separator="\t", quote_char=None, infer_schema=False)
    types = dict(column.rpartition(":")[::2] for column in frame.columns)
    if bad := [column for column in frame.columns if ":" not in column]:
        raise DataError(
            f"{path}: header cell(s) {bad} have no type; write `name:type`, with the type one of "
            "token, token_seq, float, float_seq."
        )
    names = [column.rpartition(":")[0] for column in frame.columns]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{path}: column {doubled[0]!r} is there twice. Keep one.")
    frame = frame.rename(dict(zip(frame.columns, names)))
    floats = [name for name, kind in types.items() if kind == "float"]
    try:
        return frame.with_columns(pl.col(floats).cast(pl.Float64)) if floats else frame
    except pl.exceptions.InvalidOperationError as error:
        raise DataError(f"{path}: a float column holds text: {error}") from None


def _to_seconds(times: Any, name: str) -> Any:
    import polars as pl

    try:
        return times.cast(pl.Float64).floor().cast(pl.Int64)
    except pl.exceptions.InvalidOperationError as error:
        raise DataError(f"{name}: a time is not a number: {error}") from None
