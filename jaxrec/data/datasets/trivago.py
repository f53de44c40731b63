"""trivago: lists of hotels, and which of them was looked at and clicked out to.

The data of the RecSys Challenge 2019 (J. Adamczak et al., "Session-based Hotel Recommendations
Dataset", ACM TIST 12(1), 2020). Two forms are read:

    train.csv           one row an action: user_id, session_id, timestamp (s), step, action_type,
                        reference, platform, city, device, impressions `id|id`, prices `price|price`
    item_metadata.csv   optional beside it: item_id, properties `a|b`
    *.jsonl, .jsonl.gz  one object a clickout: user, session, timestamp, step, exposed, prices,
                        engaged_since_last_clickout {item: {action: count}}, clicked
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from jaxrec.data.dataset import Frame, write_dataset
from jaxrec.data.errors import DataError, reading
from jaxrec.data.page_rules import PageRule, request_page, staged
from jaxrec.data.tables import (
    JSON_LINES,
    batched,
    fingerprint_files,
    json_lines,
    match_items,
    need_columns,
    need_file,
    scan_table,
    spilled,
    table_kind,
    to_seconds,
)

GRADES = ("exposed", "engaged", "clickout")
CLICKOUT = "clickout item"
ENGAGED = (
    "interaction item image",
    "interaction item info",
    "interaction item rating",
    "interaction item deals",
    "search for item",
)
"""Actions on one hotel that are weaker than a clickout."""
LOG = "train.csv"
METADATA = "item_metadata.csv"
_CONTEXT = ("platform", "city", "device")
_COLUMNS = (
    *("user_id", "session_id", "timestamp", "step", "action_type", "reference"),
    *_CONTEXT,
    *("impressions", "prices"),
)
_JSON_ROW = (
    *("user", "item", "timestamp", "session", "step"),
    *("position", "price", "clicked", "did"),
    *_CONTEXT,
)


@dataclasses.dataclass(frozen=True)
class Trivago:
    """A page is the list of one clickout; the same list is a page again at the next clickout.

    A hotel of the list is graded `engaged` when the user did something with it since the last
    clickout of the session. Hotels that were engaged with, or clicked, but are not on the list are
    events without page; in the JSON form, which has no time for them, at the time of the clickout.
    `value` is the number of the grade, 0 to 2; `price` is kept. Clickouts without a reference (the
    challenge's test items) are left out.
    """

    path: str
    """train.csv, its folder, or a file of JSON lines."""
    name: str = "trivago"
    """Name of the data set."""
    licence: str = "unknown"
    """Terms of use, for dataset.json."""

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes the canonical dataset folder.

        Raises:
            DataError: a file or column is missing or malformed.
        """
        file = self._log()
        with contextlib.ExitStack() as stack:
            form = _from_json if table_kind(file) in JSON_LINES else _from_actions
            log = stack.enter_context(form(file))
            write_dataset(
                folder,
                log,
                self._items(log),
                name=self.name,
                source=f"trivago, RecSys Challenge 2019: {file.name}",
                licence=self.licence,
                history_events=GRADES[1:],
                grades=GRADES,
                page_rule=PageRule("request", column="session and step").describe()
                + " (the list of a clickout)",
            )

    def fingerprint(self) -> dict[str, Any]:
        """Sizes and SHA-256 of the files that are read."""
        file = self._log()
        return fingerprint_files(file, file.parent / METADATA, optional=(METADATA,))

    def _log(self) -> Path:
        path = Path(self.path)
        return need_file(path / LOG if path.is_dir() else path)

    def _items(self, log: Frame) -> Frame:
        import polars as pl

        path = self._log().parent / METADATA
        if not path.is_file():
            return match_items(pl.DataFrame(schema={"item": pl.String}), log)
        with reading(path):
            table = scan_table(path)
            need_columns(table.collect_schema().names(), ("item_id", "properties"), path)
            properties = pl.col("properties").str.replace_all("|", ", ", literal=True)
            table = table.select(pl.col("item_id").alias("item"), properties).collect()
        if doubled := table.filter(pl.col("item").is_duplicated())["item"].head(1).to_list():
            raise DataError(f"{path}: item {doubled[0]!r} has two rows. Keep one.")
        return match_items(table, log)


@contextlib.contextmanager
def _from_actions(file: Path) -> Generator[Frame]:
    """The log out of train.csv, streaming."""
    import polars as pl

    with reading(file):
        frame = scan_table(file)
        need_columns(frame.collect_schema().names(), _COLUMNS, file)
    frame = frame.select(
        # Joins are by a number: sessions are long texts, and there are millions of rows.
        pl.struct("user_id", "session_id").hash().alias("key"),
        pl.col("user_id").alias("user"),
        pl.col("session_id").alias("session"),
        pl.col("step").cast(pl.Int64),
        to_seconds("timestamp", "s"),
        pl.col("reference").alias("item"),
        "action_type",
        *_CONTEXT,
        "impressions",
        "prices",
    ).filter(pl.col("action_type").is_in([CLICKOUT, *ENGAGED]))
    with staged(frame, file) as actions:
        clicked = (pl.col("action_type") == CLICKOUT) & pl.col("item").is_not_null()
        clicks = actions.filter(clicked, pl.col("impressions").is_not_null()).collect()
        uneven = clicks.filter(_count("impressions") != _count("prices").fill_null(0))
        if uneven.height:
            session, step = uneven.select("session", "step").row(0)
            raise DataError(
                f"{file}: step {step} of session {session!r} has another number of prices than "
                "of impressions. Drop the row."
            )
        engaged = _engaged(actions, clicks)
        columns = ("user", "item", "timestamp")
        missed = clicks.filter(~_is_listed()).select(*columns, event=pl.lit("clickout"))
        loose = engaged.filter(~pl.col("listed")).select(*columns, event=pl.lit("engaged"))
        on_page = engaged.filter("listed").select("key", "step", "item", did=True)
        alone = pl.concat([loose, missed]).lazy()
        log = pl.concat([alone, _exposures(clicks, on_page)], how="diagonal")
        with staged(log, file) as found:
            yield found


def _engaged(actions: Frame, clicks: Frame) -> Frame:
    """Each hotel of a session once before each clickout: `step` of that clickout, and whether its
    list has the hotel (`listed`)."""
    import polars as pl

    engaged = (
        actions.filter(pl.col("action_type").is_in(ENGAGED), pl.col("item").str.contains(r"^\d+$"))
        .select("key", "user", "item", "timestamp", pl.col("step").alias("at"))
        .collect()
        .sort("at", maintain_order=True)
    )
    lists = clicks.select("key", "step", "impressions").sort("step", maintain_order=True)
    return (
        engaged.join_asof(
            lists,
            left_on="at",
            right_on="step",
            by="key",
            strategy="forward",
            check_sortedness=False,
        )
        .with_columns(_is_listed().alias("listed"))
        .unique(["key", "step", "item"], keep="first", maintain_order=True)
    )


def _exposures(clicks: Frame, on_page: Frame) -> Frame:
    """One row a hotel of a list, lazily."""
    import polars as pl

    places = pl.int_ranges(_count("impressions"), dtype=pl.Int64)
    rows = clicks.lazy().select(
        "key",
        "step",
        "user",
        "timestamp",
        *_CONTEXT,
        "session",
        pl.col("item").alias("clicked"),
        pl.col("impressions").str.split("|").alias("item"),
        pl.col("prices").str.split("|").alias("price"),
        places.alias("position"),
    )
    rows = rows.explode("item", "price", "position").join(
        on_page.lazy(), on=["key", "step", "item"], how="left", maintain_order="left"
    )
    # A hotel may have no price.
    rows = rows.with_columns(pl.when(pl.col("price") != "").then("price").alias("price"))
    return _graded(rows, pl.col("item") == pl.col("clicked"), pl.col("did").is_not_null())


def _graded(rows: Frame, clicked: Any, engaged: Any) -> Frame:
    """Exposures in canonical columns."""
    import polars as pl

    grade = pl.when(clicked).then(2).when(engaged).then(1).otherwise(0)
    request = pl.concat_str("session", pl.lit(" "), pl.col("step").cast(pl.String))
    return rows.with_columns(request.alias("request")).select(
        "user",
        "item",
        "timestamp",
        grade.replace_strict([0, 1, 2], GRADES, return_dtype=pl.String).alias("event"),
        request_page("user", "request").alias("page"),
        "position",
        grade.cast(pl.Float64).alias("value"),
        pl.col("price").cast(pl.Float64),
        "session",
        *_CONTEXT,
    )


def _is_listed() -> Any:
    """An expression: whether a hotel is on the list of impressions beside it."""
    import polars as pl

    listed = pl.concat_str(pl.lit("|"), "impressions", pl.lit("|"))
    sought = pl.concat_str(pl.lit("|"), "item", pl.lit("|"))
    return listed.str.contains(sought, literal=True).fill_null(False)


def _count(column: str) -> Any:
    """An expression: how many entries a list in text has."""
    import polars as pl

    return pl.col(column).str.count_matches("|", literal=True) + 1


@contextlib.contextmanager
def _from_json(file: Path) -> Generator[Frame]:
    """The log out of JSON lines: one object a clickout."""
    import polars as pl

    schema: dict[str, Any] = dict.fromkeys(("user", "item", "session", *_CONTEXT), pl.String)
    schema |= dict.fromkeys(("timestamp", "step", "position"), pl.Int64)
    schema |= {"price": pl.Float64, "clicked": pl.Boolean, "did": pl.Boolean}
    with spilled(batched(_json_rows(file), _JSON_ROW), schema) as rows:
        shown = rows.filter(pl.col("position").is_not_null())
        loose = rows.filter(pl.col("position").is_null()).select(
            "user",
            "item",
            "timestamp",
            pl.when("clicked").then(pl.lit("clickout")).otherwise(pl.lit("engaged")).alias("event"),
        )
        graded = _graded(shown, pl.col("clicked"), pl.col("did"))
        with staged(pl.concat([loose, graded], how="diagonal"), file) as log:
            yield log


def _json_rows(file: Path) -> Iterator[tuple[Any, ...]]:
    """The rows of each page; hotels that are not on it have no position."""
    for number, page in json_lines(file):
        head, shown, prices, engaged, clicked, context = _checked(page, f"{file}, line {number}")
        user, session, timestamp, step = head
        others = [item for item in engaged if item not in shown]
        if clicked is not None and clicked not in shown:
            others = [*(item for item in others if item != clicked), clicked]
        for item in others:
            yield user, item, timestamp, session, step, None, None, item == clicked, True, *context
        for position, (item, price) in enumerate(zip(shown, prices)):
            own = (position, price, item == clicked, item in engaged)
            yield user, item, timestamp, session, step, *own, *context


def _checked(page: dict[str, Any], where: str) -> tuple[Any, ...]:
    """The parts of one page of JSON, of the right types."""
    needed = ("user", "session", "timestamp", "step", "exposed")
    if missing := [key for key in needed if page.get(key) is None]:
        raise DataError(f"{where}: the page has no {', '.join(map(repr, missing))}.")
    head = (str(page["user"]), str(page["session"]), page["timestamp"], page["step"])
    shown, engaged = page["exposed"], page.get("engaged_since_last_clickout") or {}
    prices, clicked = page.get("prices"), page.get("clicked")
    if not all(type(value) is int and abs(value) < 2**63 for value in head[2:]):
        raise DataError(f"{where}: timestamp and step must be whole numbers, and are {head[2:]}.")
    if not isinstance(shown, list) or not shown or not all(_is_id(item) for item in shown):
        raise DataError(f"{where}: exposed must be a list of ids, and is {str(shown)[:60]}.")
    if not isinstance(engaged, dict) or not (clicked is None or _is_id(clicked)):
        raise DataError(f"{where}: engaged_since_last_clickout must be an object, clicked an id.")
    if prices is None:
        prices = [None] * len(shown)
    if not isinstance(prices, list) or len(prices) != len(shown) or not all(map(_is_price, prices)):
        raise DataError(f"{where}: prices must be a list of {len(shown)} numbers, one a hotel.")
    context = tuple(None if page.get(key) is None else str(page[key]) for key in _CONTEXT)
    known = None if clicked is None else str(clicked)
    return head, [str(item) for item in shown], prices, engaged, known, context


def _is_id(value: Any) -> bool:
    return type(value) is int or (isinstance(value, str) and bool(value))


def _is_price(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and abs(value) < 1e300)
