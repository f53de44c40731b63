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


def check_tables(interactions: Frame, items: Frame, *, time_unit: str = "s") -> None:
    """Checks the rows of both tables, streaming.

    Args:
        interactions, items: polars frames, lazy or not.
        time_unit: of the timestamps; an order has no latest moment.

    Raises:
        DataError: no interactions, an empty cell, a negative or far-future time, a value that is
            not finite, an item that occurs twice in the items or is missing there.
    """
    interactions, items = interactions.lazy(), items.lazy()
    for frame, name, columns in (
        (interactions, INTERACTIONS, REQUIRED),
        (items, ITEMS, {"item": "String"}),
    ):
        _check_cells(frame, name, columns)
    _check_times(interactions, time_unit)
    _check_values(interactions)
    doubled = _strings(items.select("item").filter(_is_doubled()))
    if len(doubled):
        raise DataError(
            f"{ITEMS}: {doubled.n_unique()} item id(s) occur more than once, for example "
            f"{examples(doubled)}. Keep one row per item."
        )
    seen = interactions.select("item").unique(maintain_order=True)
    unknown = _strings(
        seen.join(items.select("item"), on="item", how="anti", maintain_order="left")
    )
    if len(unknown):
        raise DataError(
            f"{len(unknown)} item(s) of the log are not in {ITEMS}, for example "
            f"{examples(unknown)}. Add them there (a row with the id is enough), or drop their "
            "interactions."
        )


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


def counts(interactions: Frame, items: Frame) -> dict[str, int]:
    import polars as pl

    log = interactions.lazy()
    events = log.select(pl.len()).collect(engine="streaming").item()
    users = log.select("user").unique().select(pl.len()).collect(engine="streaming").item()
    catalogue = items.lazy().select(pl.len()).collect().item()
    return {"interactions": events, "users": users, "items": catalogue}


def examples(values: Any, count: int = 3) -> str:
    return ", ".join(map(repr, values.unique(maintain_order=True).head(count).to_list()))


def _strings(frame: Frame) -> Any:
    """The only column of a lazy frame, collected."""
    return frame.collect(engine="streaming").to_series()


def _is_doubled() -> Any:
    """An expression: whether the row's item occurs in another row too."""
    import polars as pl

    return pl.col("item").is_duplicated()


def _check_cells(frame: Frame, name: str, columns: Mapping[str, str]) -> None:
    import polars as pl

    empty = [
        (pl.col(column).is_null() | (pl.col(column) == "" if kind == "String" else pl.lit(False)))
        .sum()
        .alias(column)
        for column, kind in columns.items()
    ]
    # numpy's texts end at their last character that is not NUL: two ids would become one.
    texts = [column for column, kind in columns.items() if kind == "String"]
    cut = [pl.col(column).str.ends_with("\0").sum().alias(f"\0{column}") for column in texts]
    row = frame.select(pl.len().alias("\0rows"), *empty, *cut).collect(engine="streaming").row(0)
    if row[0] == 0 and name == INTERACTIONS:
        raise DataError("the log is empty: there is not one interaction. Check the reader's path.")
    for column, missing in zip(columns, row[1 : 1 + len(columns)]):
        if missing:
            raise DataError(
                f"{name}: {missing} row(s) have no {column!r}. Drop or fill them first."
            )
    for column, broken in zip(texts, row[1 + len(columns) :]):
        if broken:
            raise DataError(
                f"{name}: {broken} row(s) have a {column!r} that ends in a NUL character. Is this "
                "a damaged or a binary file? Remove those characters."
            )


def _check_times(interactions: Frame, time_unit: str) -> None:
    import polars as pl

    time = pl.col("timestamp")
    earliest, latest = (
        interactions.select(time.min().alias("a"), time.max().alias("b"))
        .collect(engine="streaming")
        .row(0)
    )
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


def _check_values(interactions: Frame) -> None:
    import polars as pl

    if "value" not in interactions.collect_schema().names():
        return
    broken = interactions.select((~pl.col("value").is_finite()).sum()).collect(engine="streaming")
    if count := broken.item():
        raise DataError(
            f"{INTERACTIONS}: {count} row(s) have a 'value' that is not finite (NaN or infinite). "
            "Leave such cells empty, or drop the rows."
        )
