"""Anybody's log: a CSV, TSV, JSON-lines or Parquet table of events, and perhaps one of items.

Columns are named by flags, or found by their usual names; what was found is printed and recorded
in dataset.json. Large files are streamed and never held whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

from jaxrec.data.dataset import Frame, write_dataset
from jaxrec.data.errors import DataError, reading
from jaxrec.data.page_rules import count_cut, paged, parse_page_rule
from jaxrec.data.tables import (
    JSON_LINES,
    fingerprint_files,
    match_items,
    need_columns,
    need_file,
    scan_table,
    table_kind,
    to_seconds,
)

USUAL = {
    "user": ("user", "user_id", "userid", "uid", "visitorid", "customer_id", "customer"),
    "item": ("item", "item_id", "itemid", "iid", "product_id", "movie_id", "video_id", "asin"),
    "time": ("timestamp", "time", "ts", "time_ms", "datetime", "date", "created_at"),
}
"""Usual names of the columns, the likeliest first; capitals do not matter."""
_PEEK = 1000
"""Rows that are looked at to tell the unit of time."""


@dataclasses.dataclass(frozen=True)
class TableFiles:
    """A table of events: one row an event, with a user, an item, and usually a time.

    Without a column of times the order of the rows counts, and dataset.json says so.
    """

    path: str
    """The log: .csv, .tsv, .jsonl or .parquet, also .gz; a pattern such as `log-*.csv` joins files
    in the order of their names."""
    user: str = ""
    """Column of users; by default one with a usual name (user, user_id, ...)."""
    item: str = ""
    """Column of items, in both tables; by default one with a usual name (item, item_id, ...)."""
    time: str = ""
    """Column of times; by default one with a usual name (timestamp, time, ...). `none` reads the
    order of the rows instead."""
    time_unit: str = "auto"
    """Unit of numeric times, s, ms, us or ns; `iso` for dates; a strptime format such as
    `%d.%m.%Y %H:%M`; `auto` looks at the first rows. Times without a zone are UTC."""
    event: str = ""
    """Column of kinds of events (view, buy, ...), where there is one."""
    value: str = ""
    """Column of numbers such as ratings, where there is one."""
    page: str = ""
    """What a page is, where the log lists exposures: request:COLUMN, second, gap:SECONDS, day or
    day:+HOURS; with ,max:N behind it no page is longer than N."""
    position: str = ""
    """Column of places on the page, counted from 0."""
    grades: tuple[str, ...] = ()
    """Kinds of events from the weakest feedback to the strongest, where they are a ladder."""
    history_events: tuple[str, ...] = ()
    """Kinds of events that make up a history; all by default."""
    items: str = ""
    """A table of items: .csv, .tsv, .jsonl or .parquet."""
    title: str = ""
    """Column of the items that people read; `title` by default."""
    all_items: bool = False
    """Keep items of the table of items that occur in no event."""
    separator: str = ""
    """Of text tables; by the name's ending otherwise (, for .csv and a tab for .tsv)."""
    names: tuple[str, ...] = ()
    """Column names of a log without a first line that names them."""
    name: str = ""
    """Name of the data set; the file's by default."""
    licence: str = "unknown"
    """Terms of use, for dataset.json."""

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes the canonical dataset folder.

        Raises:
            DataError: a file or column is missing or malformed.
        """
        log, found = self._log()
        columns = ", ".join(f"{ours}: {theirs}" for ours, theirs in found.items())
        with reading(self.path), self._paged(log) as (rows, page_rule):
            write_dataset(
                folder,
                rows,
                self._items(rows),
                name=self.name or Path(self.path).name.split(".")[0].strip("*-_") or "table",
                source=f"{Path(self.path).name} ({columns})",
                licence=self.licence,
                time_unit="s" if found["time"] != "order of the rows" else "order",
                history_events=self.history_events,
                grades=self.grades,
                page_rule=page_rule,
            )

    def fingerprint(self) -> dict[str, Any]:
        """Sizes and SHA-256 of the files that are read."""
        return fingerprint_files(*self._files(), *([Path(self.items)] if self.items else []))

    def _files(self) -> list[Path]:
        if Path(self.path).exists() or not glob.has_magic(self.path):
            return [need_file(self.path)]
        files = [need_file(each) for each in sorted(glob.glob(self.path))]
        if not files:
            raise DataError(f"no file matches {self.path!r}. Check the pattern.")
        return files

    def _log(self) -> tuple[Frame, dict[str, str]]:
        """The log in canonical columns, lazily, and the columns it was made of."""
        import polars as pl

        files = self._files()
        names = list(self.names) or _column_names(files[0], self.separator)
        user = _find(self.user, "user", names, files[0])
        item = _find(self.item, "item", names, files[0])
        time = _find(self.time, "time", names, files[0], optional=True)
        others = {k: getattr(self, k) for k in ("event", "value", "position")}
        others = {k: v for k, v in others.items() if v}
        if self.page and (request := parse_page_rule(self.page).column):
            others["page"] = request
        need_columns(names, others.values(), files[0])
        wanted = [user, item, *([time] if time else []), *others.values()]
        table = pl.concat([self._scan(file, wanted) for file in files])
        columns = [pl.col(user).cast(pl.String).alias("user")]
        columns.append(pl.col(item).cast(pl.String).alias("item"))
        found = {"user": user, "item": item, "time": "order of the rows", **others}
        if time:
            unit = self.time_unit if self.time_unit != "auto" else _guess_unit(table, time, files)
            columns.append(_seconds(table, time, unit).alias("timestamp"))
            found["time"] = f"{time} in {unit}"
        else:
            columns.append(pl.int_range(pl.len(), dtype=pl.Int64).over(user).alias("timestamp"))
        types = {"event": pl.String, "value": pl.Float64, "page": pl.String, "position": pl.Int64}
        columns += [pl.col(name).cast(types[ours]).alias(ours) for ours, name in others.items()]
        return table.select(columns), found

    @contextlib.contextmanager
    def _paged(self, log: Frame) -> Generator[tuple[Frame, str]]:
        """The log with its pages, and the sentence that says how they were formed."""
        if not self.page:
            yield log, ""
            return
        rule = parse_page_rule(self.page)
        # The request's column is called `page` by now.
        near = dataclasses.replace(rule, column="page") if rule.column else rule
        with paged(log, near, self.path) as rows:
            yield rows, rule.describe(count_cut(rows, rule))

    def _scan(self, file: Path, wanted: list[str]) -> Frame:
        import polars as pl

        frame = scan_table(
            file,
            dict.fromkeys(wanted, pl.String),
            separator=self.separator or None,
            header=not self.names,
            names=self.names or None,
        )
        need_columns(frame.collect_schema().names(), wanted, file)
        return frame.select(list(dict.fromkeys(wanted)))

    def _items(self, log: Frame) -> Frame:
        import polars as pl

        if not self.items:
            return log.select("item").unique(maintain_order=True)
        names = _column_names(Path(self.items), self.separator)
        item = _find(self.item if self.item in names else "", "item", names, Path(self.items))
        if self.title:
            need_columns(names, [self.title], self.items)
        with reading(self.items):
            table = _whole(Path(self.items), self.separator)
            renames = {item: "item", **({self.title: "title"} if self.title else {})}
            clash = [new for old, new in renames.items() if new != old and new in table.columns]
            table = table.drop(clash).rename(renames)
            table = table.with_columns(pl.col("item").cast(pl.String))
            return table if self.all_items else match_items(table, log)


def _column_names(path: Path, separator: str) -> list[str]:
    """The columns of a table; of JSON lines, the keys of the first object."""
    import polars as pl

    need_file(path)
    with reading(path):
        if table_kind(path) in JSON_LINES:
            return pl.read_ndjson(path, n_rows=1, infer_schema_length=1).columns
        return scan_table(path, separator=separator or None).collect_schema().names()


def _whole(path: Path, separator: str) -> Frame:
    import polars as pl

    if table_kind(path) in JSON_LINES:
        return pl.read_ndjson(path, infer_schema_length=None)
    return scan_table(path, separator=separator or None).collect()


def _find(given: str, what: str, names: list[str], path: Path, *, optional: bool = False) -> str:
    """The column that is meant, empty where there is none and none is needed."""
    if optional and given == "none":
        return ""
    if given:
        need_columns(names, [given], path)
        return given
    usual = {name.lower(): name for name in reversed(names)}
    found = [usual[name] for name in USUAL[what] if name in usual]
    if found or optional:
        return found[0] if found else ""
    raise DataError(
        f"{path}: none of its columns ({', '.join(map(repr, names[:40]))}) has a usual name for "
        f"{what}s. Name the column with --{what} COLUMN."
    )


def _guess_unit(table: Frame, time: str, files: list[Path]) -> str:
    """The unit of times by their size: seconds have ten digits now, milliseconds thirteen."""
    import polars as pl

    if table.collect_schema()[time].is_temporal():
        return "iso"
    with reading(files[0]):
        peek = table.select(pl.col(time).cast(pl.String)).head(_PEEK).collect().to_series()
    numbers = peek.cast(pl.Float64, strict=False)
    if numbers.null_count() > peek.null_count():
        return "iso"
    largest = numbers.abs().max() or 0
    for unit, digits in (("s", 11), ("ms", 14), ("us", 17)):
        if largest < 10**digits:
            return unit
    return "ns"


def _seconds(table: Frame, time: str, unit: str) -> Any:
    import polars as pl

    if table.collect_schema()[time].is_temporal():
        return pl.col(time).dt.epoch("s")
    return to_seconds(time, unit)
