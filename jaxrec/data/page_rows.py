"""The rows of a log that stand on a page, on their way from a dataset folder to `Pages`."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxrec.data.dataset import DatasetFolder, Frame
from jaxrec.data.errors import DataError

EXPOSED = ("exposed",)
"""The only grade of a log without a column of events."""
LAST_PLACE = 2**31 - 1
"""The largest place on a page: places are kept as int32."""


def read_exposures(dataset: DatasetFolder) -> tuple[Frame, tuple[str, ...]]:
    """The rows that stand on a page, and the grades, weakest first.

    Returns:
        Columns user, item, timestamp, value; page (int32, by first rows), position (int64),
        grade (int32, index into the grades), row.

    Raises:
        DataError: a log without pages, events without declared grades, or places that are none.
    """
    import polars as pl

    log = dataset.scan()
    columns = log.collect_schema().names()
    if "page" not in columns:
        raise DataError(
            f"{dataset.path} has no pages: its log has no column 'page'. Import it with a page "
            "rule, or from a log that lists exposures."
        )
    grades = tuple(dataset.manifest.get("grades", ()))
    if "event" in columns and not grades:
        raise DataError(
            f"{dataset.path} does not declare its grades, so nobody knows which event is the "
            "stronger. Write it with grades=(weakest, ..., strongest)."
        )
    grade = pl.lit(0, pl.Int32)
    if "event" in columns:
        index = {name: number for number, name in enumerate(grades)}
        grade = pl.col("event").replace_strict(index, default=0, return_dtype=pl.Int32)
    value = pl.col("value") if "value" in columns else pl.lit(None, pl.Float64)
    place = pl.col("position") if "position" in columns else pl.lit(None, pl.Int64)
    rows = (
        log.filter(pl.col("page").is_not_null())
        .select(
            "user",
            "item",
            "timestamp",
            "page",
            place.alias("position"),
            grade.alias("grade"),
            value.alias("value"),
        )
        .collect()
        .with_row_index("row")
    )
    if not rows.height:
        raise DataError(f"{dataset.path} has no pages: the column 'page' is empty in every row.")
    if rows.filter(~pl.col("position").is_between(0, LAST_PLACE)).height:
        raise DataError(f"{dataset.path}: places on a page are counted from 0 to {LAST_PLACE}.")
    pages = rows["page"].unique(maintain_order=True)
    rows = rows.with_columns(find_rows(rows["page"], pages).alias("page"))
    if rows["position"].null_count():
        # Without places, the order of the log is the order on the page.
        counted = pl.int_range(pl.len(), dtype=pl.Int64).over("page")
        rows = rows.with_columns(pl.col("position").fill_null(counted))
    return rows, grades or EXPOSED


def find_rows(column: Any, names: Any) -> Any:
    """The index of each text in a list of names, -1 where it is not there."""
    import polars as pl

    table = pl.DataFrame({"name": pl.Series(names, dtype=pl.String)}).with_row_index("index")
    found = pl.DataFrame({"name": column}).join(table, on="name", how="left", maintain_order="left")
    return found["index"].cast(pl.Int32).fill_null(-1)


def page_table(rows: Frame, dataset: DatasetFolder) -> Frame:
    """page, time of its first exposure and owner of every page, in the order of time, then of page.

    Raises:
        DataError: a page of two users.
    """
    import polars as pl

    table = rows.group_by("page").agg(
        pl.col("timestamp").min().alias("time"),
        pl.col("owner").first(),
        pl.col("user").min().alias("a user"),
        pl.col("user").max().alias("another"),
    )
    mixed = table.filter(pl.col("a user") != pl.col("another")).sort("page")
    if mixed.height:
        users = ", ".join(map(repr, mixed.select("a user", "another").row(0)))
        raise DataError(
            f"{dataset.path}: {mixed.height} page(s) have exposures of several users, for example "
            f"one of {users}. A page belongs to one user: make the user part of its name."
        )
    return table.sort("time", "page")


def strongest_rows(rows: Frame) -> Frame:
    """One row for each item of a page, page by page in the order of position, then of the log.

    It has the item's first position, and its strongest grade (the earliest of equals) with that
    one's value.
    """
    import polars as pl

    keys = ["page", "item", "grade", "position", "row"]
    rows = rows.sort(keys, descending=[key == "grade" for key in keys])
    new = (pl.col("page") != pl.col("page").shift()) | (pl.col("item") != pl.col("item").shift())
    starts = np.flatnonzero(rows.select(new.fill_null(True)).to_series().to_numpy())
    first = np.minimum.reduceat(rows["position"].to_numpy(), starts)
    kept = rows[starts].with_columns(pl.Series("position", first))
    return kept.sort("page", "position", "row")
