"""Holding a log and its items to the canonical schema, streaming, whatever their size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxrec.data.errors import DataError

INTERACTIONS = "interactions.parquet"
ITEMS = "items.parquet"
LATEST = 4_102_444_800
"""Unix seconds of the year 2100: what lies beyond is another unit of time, or a mistake."""

REQUIRED = {"user": "String", "item": "String", "timestamp": "Int64"}
OPTIONAL = {"event": "String", "page": "String", "position": "Int64", "value": "Float64"}

Frame = Any
"""A `polars.DataFrame`, or a mapping of columns that makes one. polars loads lazily, hence Any."""


def check_tables(interactions: Frame, items: Frame, *, time_unit: str = "s") -> dict[str, int]:
    """Checks the rows of both tables: two streaming passes over the log, one over the items.

    Args:
        interactions, items: polars frames, lazy or not.
        time_unit: of the timestamps; an order has no latest moment.

    Returns:
        How many interactions, users and items there are.

    Raises:
        DataError: no interactions, an empty cell, a negative or far-future time, a value that is
            not finite, an item that occurs twice in the items or is missing there.
    """
    log = interactions.lazy()
    facts = _facts(log, REQUIRED)
    if not facts["rows"]:
        raise DataError("the log is empty: there is not one interaction. Check the reader's path.")
    _check_cells(facts, INTERACTIONS, REQUIRED)
    _check_times(facts["earliest"], facts["latest"], time_unit)
    if count := facts.get("not finite"):
        raise DataError(
            f"{INTERACTIONS}: {count} row(s) have a 'value' that is not finite (NaN or infinite). "
            "Leave such cells empty, or drop the rows."
        )
    catalogue = items.lazy().select("item").collect(engine="streaming")
    _check_cells(_facts(catalogue.lazy(), {"item": "String"}), ITEMS, {"item": "String"})
    _check_items(log, catalogue)
    return {
        "interactions": facts["rows"],
        "users": facts["users"],
        "items": catalogue.height,
    }


def check_events(interactions: Frame, history_events: Sequence[str], grades: Sequence[str]) -> None:
    """Checks what dataset.json says about the column `event`.

    Raises:
        DataError: history events that the log does not have, grades named twice, or an event that
            is no grade.
    """
    if not history_events and not grades:
        return
    found: set[str] = set()
    if "event" in interactions.lazy().collect_schema().names():
        found = set(_strings(interactions.lazy().select("event").unique()).drop_nulls())
    if history_events and not set(history_events) & found:
        raise DataError(
            f"history_events {tuple(history_events)} name no event of the log, which has "
            f"{sorted(found) or 'no column event'}. Name events of the log."
        )
    if grades and (len(set(grades)) < len(grades) or found - set(grades)):
        raise DataError(
            f"grades {tuple(grades)} must name every event of the log once, weakest first; the log "
            f"has {sorted(found) or 'no column event'}."
        )


def with_schema(frame: Frame, types: Mapping[str, str], name: str) -> Frame:
    """Casts numbers to the schema's width (int32 -> int64); texts must be texts already."""
    import polars as pl

    casts = []
    schema = frame.collect_schema()
    for column, expected in types.items():
        if column not in schema or str(schema[column]) == expected:
            continue
        given = schema[column]
        if (expected == "Int64" and given.is_integer()) or (
            expected == "Float64" and given.is_numeric()
        ):
            casts.append(pl.col(column).cast(getattr(pl, expected)))
    frame = frame.with_columns(casts)
    check_columns(frame.collect_schema(), types, name)
    return frame


def check_columns(schema: Mapping[str, Any], types: Mapping[str, str], name: str) -> None:
    for column, expected in types.items():
        if column not in schema:
            if column in OPTIONAL:
                continue
            raise DataError(
                f"{name} has no column {column!r}; it has "
                f"{', '.join(map(repr, schema)) or 'none'}. Rename or add the column."
            )
        if (given := str(schema[column])) != expected:
            raise DataError(
                f"{name}: column {column!r} is {given}, and must be {expected}. Cast it first "
                "(ids are texts, times are whole seconds)."
            )


def examples(values: Any, count: int = 3) -> str:
    return ", ".join(map(repr, values.unique(maintain_order=True).head(count).to_list()))


def _strings(frame: Frame) -> Any:
    """The only column of a lazy frame, collected."""
    return frame.collect(engine="streaming").to_series()


def _facts(frame: Frame, columns: Mapping[str, str]) -> dict[str, Any]:
    """Everything that one pass over a table can tell about these columns."""
    import polars as pl

    found = [pl.len().alias("rows")]
    for column, kind in columns.items():
        cell = pl.col(column)
        empty = cell.is_null() | (cell == "") if kind == "String" else cell.is_null()
        found.append(empty.sum().alias(f"{column} empty"))
        if kind == "String":
            # numpy's texts end at their last character that is not NUL: two ids would become one.
            found.append(cell.str.ends_with("\0").sum().alias(f"{column} cut"))
    if "user" in columns:
        time = pl.col("timestamp")
        found += [time.min().alias("earliest"), time.max().alias("latest")]
        found.append(pl.col("user").n_unique().alias("users"))
    if "value" in frame.collect_schema().names():
        found.append((~pl.col("value").is_finite()).sum().alias("not finite"))
    return frame.select(found).collect(engine="streaming").row(0, named=True)


def _check_cells(facts: Mapping[str, Any], name: str, columns: Mapping[str, str]) -> None:
    for column in columns:
        if missing := facts[f"{column} empty"]:
            raise DataError(
                f"{name}: {missing} row(s) have no {column!r}. Drop or fill them first."
            )
        if broken := facts.get(f"{column} cut"):
            raise DataError(
                f"{name}: {broken} row(s) have a {column!r} that ends in a NUL character. Is this "
                "a damaged or a binary file? Remove those characters."
            )


def _check_times(earliest: int, latest: int, time_unit: str) -> None:
    if earliest < 0:
        raise DataError(
            f"{INTERACTIONS}: the earliest timestamp is {earliest}; times are seconds from 0 on. "
            "Shift the times, or drop those rows."
        )
    if time_unit == "s" and latest > LATEST:
        raise DataError(
            f"{INTERACTIONS}: the latest timestamp is {latest}, and times are Unix seconds up to "
            f"{LATEST} (the year 2100). If these are milliseconds, divide by 1000 (--time-unit ms)."
        )


def _check_items(log: Frame, catalogue: Frame) -> None:
    ids = catalogue["item"]
    doubled = ids.filter(ids.is_duplicated())
    if len(doubled):
        raise DataError(
            f"{ITEMS}: {doubled.n_unique()} item id(s) occur more than once, for example "
            f"{examples(doubled)}. Keep one row per item."
        )
    seen = log.select("item").unique(maintain_order=True)
    unknown = _strings(seen.join(catalogue.lazy(), on="item", how="anti", maintain_order="left"))
    if len(unknown):
        raise DataError(
            f"{len(unknown)} item(s) of the log are not in {ITEMS}, for example "
            f"{examples(unknown)}. Add them there (a row with the id is enough), or drop their "
            "interactions."
        )
