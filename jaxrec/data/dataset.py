"""The canonical dataset folder: one layout that every reader writes and everything else reads.

    interactions.parquet   user, item: text; timestamp: whole seconds (int64);
                           optional event, page: text; position: int64; value: float64
    items.parquet          item: text; any text or feature columns
    dataset.json           schema version, name, counts, source, licence, SHA-256, unit of time

A folder is written whole or not at all, and is checked when it is opened.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrec.data.checks import (
    INTERACTIONS,
    ITEMS,
    OPTIONAL,
    REQUIRED,
    Frame,
    check_columns,
    check_events,
    check_tables,
    examples,
    with_schema,
)
from jaxrec.data.errors import DataError, reading
from jaxrec.files import file_hash, publish, read_json, write_json

SCHEMA_VERSION = 1
MANIFEST = "dataset.json"
TIME_UNITS = ("s", "order")
"""`s`: Unix seconds. `order`: the log has no clock; times are 0, 1, 2, ... for each user."""


@dataclasses.dataclass(frozen=True)
class DatasetFolder:
    """A dataset folder that was opened by `read_dataset` or made by `write_dataset`."""

    path: str
    """The folder."""

    @property
    def manifest(self) -> dict[str, Any]:
        """The content of dataset.json."""
        return read_json(Path(self.path) / MANIFEST)

    def interactions(self, columns: Sequence[str] | None = None) -> Frame:
        """The log as a polars frame; all columns unless some are named."""
        import polars as pl

        path = Path(self.path) / INTERACTIONS
        with reading(path):
            return pl.read_parquet(path, columns=_as_list(columns))

    def scan(self) -> Frame:
        """The log as a lazy polars frame, for logs that do not fit in memory."""
        import polars as pl

        return pl.scan_parquet(Path(self.path) / INTERACTIONS)

    def items(self, columns: Sequence[str] | None = None) -> Frame:
        """The items as a polars frame; all columns unless some are named."""
        import polars as pl

        path = Path(self.path) / ITEMS
        with reading(path):
            return pl.read_parquet(path, columns=_as_list(columns))


def write_dataset(
    folder: str | os.PathLike[str],
    interactions: Frame,
    items: Frame,
    *,
    name: str,
    source: str,
    licence: str,
    time_unit: str = "s",
    history_events: Sequence[str] = (),
    grades: Sequence[str] = (),
    page_rule: str = "",
) -> DatasetFolder:
    """Writes a dataset folder, whole or not at all; a folder that is there is replaced.

    Args:
        folder: the folder to make.
        interactions: the log, in its own order: a polars frame or a mapping of columns. A
            LazyFrame is streamed and never held whole.
        items: one row per item; its order is the order of catalogue rows.
        name: short name of the data set.
        source: where it comes from.
        licence: under what terms it may be used.
        time_unit: `s` for seconds, `order` where the log has only an order.
        history_events: values of `event` that belong to a history; empty means all. A log of
            pages also holds exposures, which are not a user's doing.
        grades: values of `event` from the weakest feedback to the strongest, where they are a
            ladder: ("exposed", "click", "order").
        page_rule: the sentence that says how pages were formed, for a log with a column `page`.

    Raises:
        DataError: the tables break the schema; nothing is written.
    """
    import polars as pl

    if time_unit not in TIME_UNITS:
        raise DataError(f"time_unit {time_unit!r} is not one of {', '.join(TIME_UNITS)}.")
    log = with_schema(_lazy(interactions), {**REQUIRED, **OPTIONAL}, INTERACTIONS)
    catalogue = with_schema(_lazy(items), {"item": "String"}, ITEMS)
    if page_rule and "page" not in log.collect_schema().names():
        raise DataError(f"page_rule {page_rule!r} was given, but the log has no column 'page'.")

    def fill(temporary: Path) -> None:
        with reading(source):
            log.sink_parquet(temporary / INTERACTIONS)
            catalogue.sink_parquet(temporary / ITEMS)
        written = [pl.scan_parquet(temporary / each) for each in (INTERACTIONS, ITEMS)]
        counts = check_tables(*written, time_unit=time_unit)
        check_events(written[0], history_events, grades)
        write_json(
            temporary / MANIFEST,
            {
                "schema_version": SCHEMA_VERSION,
                "name": name,
                "source": source,
                "licence": licence,
                "time_unit": time_unit,
                "history_events": list(history_events),
                **({"grades": list(grades)} if grades else {}),
                **({"page_rule": page_rule} if page_rule else {}),
                "counts": counts,
                "sha256": {each: file_hash(temporary / each) for each in (INTERACTIONS, ITEMS)},
            },
        )

    publish(Path(folder), fill)
    return DatasetFolder(str(folder))


def read_dataset(folder: str | os.PathLike[str], *, verify: bool = True) -> DatasetFolder:
    """Opens a dataset folder.

    Args:
        folder: the folder.
        verify: compare checksums and check every row; False checks the manifest and file names.

    Raises:
        DataError: something is missing, was changed, or breaks the schema.
    """
    import polars as pl

    path = Path(folder)
    for name in (MANIFEST, INTERACTIONS, ITEMS):
        if not (path / name).is_file():
            raise DataError(
                f"{path} is not a dataset folder: {name} is missing. Make it with "
                "`write_dataset`, or with the reader of the log's format."
            )
    dataset = DatasetFolder(str(path))
    manifest = _read_manifest(path)
    if verify:
        for name, expected in manifest["sha256"].items():
            if file_hash(path / name) != expected:
                raise DataError(
                    f"{path / name} is not the file that {MANIFEST} describes (its SHA-256 "
                    "differs): it was changed or truncated. Write the dataset folder again."
                )
        with reading(path):
            log, items = dataset.scan(), pl.scan_parquet(path / ITEMS)
            check_columns(log.collect_schema(), {**REQUIRED, **OPTIONAL}, INTERACTIONS)
            check_columns(items.collect_schema(), {"item": "String"}, ITEMS)
            found = check_tables(log, items, time_unit=manifest["time_unit"])
            check_events(log, manifest.get("history_events", ()), manifest.get("grades", ()))
        if found != manifest["counts"]:
            raise DataError(
                f"{path} holds {found}, but {MANIFEST} says {manifest['counts']}. "
                "Write the dataset folder again."
            )
    return dataset


def item_table(
    folder: str | os.PathLike[str] | DatasetFolder,
    item_ids: Sequence[str] | Any,
    columns: Sequence[str] | None = None,
) -> dict[str, list[str]]:
    """Columns of the items as text, in the order asked for: what text encoders read.

    Lists are joined (`a, b`; nested lists `a > b; c > d`), missing values are empty texts.

    Args:
        folder: the dataset folder.
        item_ids: item ids in the wanted order, usually `Histories.items`.
        columns: columns to give; all by default. `item` is always there.

    Raises:
        DataError: an unknown item id or column.
    """
    import polars as pl

    dataset = folder if isinstance(folder, DatasetFolder) else DatasetFolder(str(folder))
    items = dataset.items()
    wanted = [name for name in (columns or items.columns) if name != "item"]
    if unknown := [name for name in wanted if name not in items.columns]:
        raise DataError(
            f"the items have no column {', '.join(map(repr, unknown))}; they have "
            f"{', '.join(map(repr, items.columns))}."
        )
    order = pl.DataFrame({"item": [str(each) for each in item_ids]}, schema={"item": pl.String})
    found = order.join(
        items.with_columns(pl.lit(True).alias("\0found")),
        on="item",
        how="left",
        maintain_order="left",
    )
    missing = found.filter(pl.col("\0found").is_null())["item"]
    if len(missing):
        raise DataError(f"{ITEMS} does not have {len(missing)} item(s): {examples(missing)}.")
    table = {"item": found["item"].to_list()}
    for name in wanted:
        table[name] = [as_text(value) for value in found[name].to_list()]
    return table


def titles(
    folder: str | os.PathLike[str] | DatasetFolder, item_ids: Sequence[str] | Any
) -> list[str]:
    """What to call items in front of people: the column `title`, or the id where it has none."""
    dataset = folder if isinstance(folder, DatasetFolder) else DatasetFolder(str(folder))
    has_title = "title" in dataset.items().columns
    table = item_table(dataset, item_ids, ("title",) if has_title else ("item",))
    return [title or item for title, item in zip(table.get("title", table["item"]), table["item"])]


def as_text(value: Any) -> str:
    """One value as a line of text.

    >>> as_text([["Beauty", "Nails"], ["Gifts"]])
    'Beauty > Nails; Gifts'
    >>> as_text(["Action", "War"]), as_text(None), as_text(1995.0)
    ('Action, War', '', '1995')
    """
    if isinstance(value, str):
        return " ".join(value.split())
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {as_text(each)}" for key, each in value.items() if each)
    if isinstance(value, list | tuple):
        nested = any(isinstance(each, list | tuple) for each in value)
        parts = [
            " > ".join(map(as_text, each)) if isinstance(each, list | tuple) else as_text(each)
            for each in value
        ]
        return ("; " if nested else ", ").join(part for part in parts if part)
    return str(value)


def _lazy(table: Frame) -> Frame:
    import polars as pl

    if isinstance(table, pl.LazyFrame):
        return table
    return (table if isinstance(table, pl.DataFrame) else pl.DataFrame(table)).lazy()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = read_json(path / MANIFEST)
    except ValueError as error:
        raise DataError(str(error)) from None
    needed = ("schema_version", "name", "counts", "sha256", "time_unit")
    missing = [key for key in needed if not isinstance(manifest, dict) or key not in manifest]
    if missing:
        raise DataError(f"{path / MANIFEST} lacks {', '.join(missing)}. Write the folder again.")
    if manifest["schema_version"] != SCHEMA_VERSION:
        raise DataError(
            f"{path / MANIFEST} has schema version {manifest['schema_version']}; this jaxrec "
            f"reads version {SCHEMA_VERSION}. Write the folder again with this version."
        )
    wrong = [name for name, is_right in _RIGHT.items() if not is_right(manifest.get(name))]
    if wrong:
        raise DataError(
            f"{path / MANIFEST}: {wrong[0]} is {str(manifest.get(wrong[0]))[:60]!r}, which it "
            "cannot be. Write the folder again."
        )
    return manifest


def _is_names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(v, str) for v in value))


_RIGHT = {
    "name": lambda value: isinstance(value, str),
    "source": lambda value: value is None or isinstance(value, str),
    "page_rule": lambda value: value is None or isinstance(value, str),
    "time_unit": lambda value: isinstance(value, str) and value in TIME_UNITS,
    "counts": lambda value: (
        isinstance(value, dict)
        and {"interactions", "users", "items"} == set(value)
        and all(type(each) is int for each in value.values())
    ),
    "sha256": lambda value: isinstance(value, dict) and set(value) == {INTERACTIONS, ITEMS},
    "history_events": _is_names,
    "grades": _is_names,
}
"""What dataset.json may hold."""


def _as_list(columns: Sequence[str] | None) -> list[str] | None:
    return None if columns is None else list(columns)
