"""Which exposures form a page: a rule that is declared, printed, and kept with the data.

Some logs say which items were shown together (a request id); most only say when each was shown.
What counts as a page is then a decision, so it is one string that goes into dataset.json:

    request:COLUMN     rows with the same value of COLUMN
    second             a user's rows of the same second
    gap:SECONDS        a user's consecutive rows, neighbours at most SECONDS apart
    day, day:+HOURS    a user's rows of one day, in UTC or in a zone HOURS ahead of it

and behind any of them `,max:N`, which cuts longer pages into pages of N.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from jaxrec.data.errors import DataError, reading
from jaxrec.data.tables import need_columns

KINDS = ("request", "second", "gap", "day")
ROWS_AT_ONCE = 8_000_000
"""Rows whose pages are formed in memory together; larger logs go group by group."""

Frame = Any
"""A polars frame, lazy or not. polars loads lazily, hence Any."""

_DAY = 86_400


@dataclasses.dataclass(frozen=True)
class PageRule:
    """A page rule, as `parse_page_rule` reads it.

    Raises:
        DataError: an unknown kind, a request without column, a negative gap, a time zone that is
            none, or a page of no exposures.
    """

    kind: str
    """One of `KINDS`."""
    column: str = ""
    """Of `request`: the column that names the request."""
    seconds: int = 0
    """Of `gap`: the longest time between neighbours on a page."""
    hours: float = 0.0
    """Of `day`: how far the clock that days are read from is ahead of UTC."""
    longest: int = 0
    """Most exposures of a page; longer ones are cut. 0 is no limit."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise _bad(str(self.kind), "no such rule")
        if (self.kind == "request") != bool(self.column):
            raise _bad(str(self), "a request is named by one column")
        if self.seconds < 0 or self.longest < 0:
            raise _bad(str(self), "a number is negative")
        if not -12 <= self.hours <= 14:
            raise _bad(str(self), "time zones are -12 to +14 hours from UTC")

    def __str__(self) -> str:
        """The rule as it is written in a flag; `parse_page_rule` reads it back."""
        detail = {
            "request": f":{self.column}",
            "second": "",
            "gap": f":{self.seconds}",
            "day": f":{self.hours:+g}" if self.hours else "",
        }.get(self.kind, "")
        return f"{self.kind}{detail}" + (f",max:{self.longest}" if self.longest else "")

    def describe(self, cut: int | None = None) -> str:
        """The sentence for dataset.json and for whatever prints pages.

        Args:
            cut: how many pages were longer than the limit, where that is known.
        """
        zone = f"UTC{self.hours:+g}" if self.hours else "UTC"
        sentence = {
            "request": f"pages are requests: a user's rows with the same {self.column}",
            "second": "pages are seconds: a user's exposures of the same second",
            "gap": f"pages are visits: a user's consecutive exposures, neighbours at most "
            f"{self.seconds} s apart",
            "day": f"pages are days: a user's exposures of one day ({zone})",
        }[self.kind]
        if self.longest:
            counted = "" if cut is None else f" ({cut} were longer)"
            sentence += f"; pages of more than {self.longest} are cut there{counted}"
        return sentence


def parse_page_rule(text: str) -> PageRule:
    """Reads a page rule.

    Raises:
        DataError: it is none.

    >>> parse_page_rule("gap:600,max:50")
    PageRule(kind='gap', column='', seconds=600, hours=0.0, longest=50)
    """
    body, limited, longest = text.strip().rpartition(",max:")
    if not limited:
        body, longest = longest, "0"
    elif not longest.isdecimal() or int(longest) == 0:
        raise _bad(text, "max is a number of exposures from 1 on")
    kind, colon, detail = body.partition(":")
    limit = int(longest)
    if kind == "request" and detail:
        return PageRule("request", column=detail, longest=limit)
    if kind == "second" and not colon:
        return PageRule("second", longest=limit)
    if kind == "gap" and detail.isdecimal() and detail.isascii():
        return PageRule("gap", seconds=int(detail), longest=limit)
    if kind == "day" and not (colon and not detail):
        return PageRule("day", hours=_hours(detail, text), longest=limit)
    raise _bad(text, "no such rule")


def assign_pages(
    frame: Frame, rule: PageRule | str, *, order: Sequence[str] = ("timestamp", "item")
) -> Frame:
    """Adds the columns `page` (text) and `position` (place on the page from 0) to exposures.

    A page's name is its user and its request, or its user and its first second or day, so no two
    users share one. The order of the rows stays, and does not matter, except for two things: rows
    alike in all of `order`, and pages by request, whose exposures stand in the order of an old
    column `position`, or of the rows.

    Args:
        frame: polars frame, lazy or not, with `user`, and `timestamp` in whole seconds or the
            column of the request. Rows without request get no page.
        rule: which rows form a page.
        order: columns that order a page's exposures, except for pages by request.

    Returns:
        The frame with both columns, lazy or not as it was given.

    Raises:
        DataError: not a rule, or a column that it needs is missing.
    """
    import polars as pl

    rule = parse_page_rule(rule) if isinstance(rule, str) else rule
    columns = frame.collect_schema().names()
    if rule.kind == "request":
        order = ("position",) if "position" in columns else ()
    need_columns(columns, ("user", rule.column or "timestamp", *order), f"page rule {rule}")
    rows = frame.lazy().with_row_index("\0row")
    if rule.kind == "gap":
        rows = rows.sort("user", *order, "\0row").with_columns(_starts(rule.seconds))
        # A visit is known by its first second, which the rows behind it inherit.
        rows = rows.with_columns(pl.col("\0key").forward_fill())
    else:
        rows = rows.with_columns(_key(rule)).sort("user", "\0key", *order, "\0row")
    changes = (pl.col(each).ne_missing(pl.col(each).shift()) for each in ("user", "\0key"))
    place = pl.int_range(pl.len(), dtype=pl.Int64)
    first = pl.when(pl.any_horizontal(*changes)).then(place).forward_fill().fill_null(0)
    rows = rows.with_columns((place - first).alias("\0place"))
    rows = rows.sort("\0row").select(
        *(name for name in columns if name not in ("page", "position")),
        _page(rule.longest).alias("page"),
        pl.when(pl.col("\0key").is_not_null())
        .then(pl.col("\0place") % rule.longest if rule.longest else pl.col("\0place"))
        .alias("position"),
    )
    return rows if isinstance(frame, pl.LazyFrame) else rows.collect()


def request_page(user: str, request: str) -> Any:
    """The name of a page by request, as an expression: what `assign_pages` calls it too."""
    import polars as pl

    return pl.concat_str(pl.col(user), pl.lit(":"), _escaped(request))


def count_cut(frame: Frame, rule: PageRule) -> int:
    """How many pages of a frame were longer than the rule's limit."""
    import polars as pl

    if not rule.longest:
        return 0
    second = pl.col("page").str.ends_with("+1") & (pl.col("position") == 0)
    return frame.lazy().select(second.sum()).collect(engine="streaming").item()


@contextlib.contextmanager
def paged(
    frame: Frame,
    rule: PageRule,
    path: Path | str,
    *,
    order: Sequence[str] = ("timestamp", "item"),
    rows: int = ROWS_AT_ONCE,
) -> Generator[Frame]:
    """`assign_pages` for logs of any size: in a temporary folder, some users after others.

    Args:
        frame: lazy polars frame of exposures.
        rule, order: as in `assign_pages`.
        path: what the frame is read from, for messages.
        rows: how many rows fit in memory.

    Yields:
        A lazy frame over all exposures with their pages, valid inside the block. Its rows are
        ordered by `order` inside each group of users.

    Raises:
        DataError: as `assign_pages`, or whatever is wrong with the frame's file.
    """
    import polars as pl

    with staged(frame, path) as staging, tempfile.TemporaryDirectory(prefix="jaxrec-") as folder:
        count = staging.select(pl.len()).collect().item()
        groups = max(1, math.ceil(count / rows))
        for group in range(groups):
            chosen = staging
            if groups > 1:
                chosen = staging.filter(pl.col("user").hash() % groups == group)
            part = chosen.collect(engine="streaming").sort(order, maintain_order=True)
            with reading(path):
                part = assign_pages(part, rule, order=order)
            part.write_parquet(Path(folder) / f"{group:06d}.parquet")
        yield pl.scan_parquet(Path(folder) / "*.parquet", glob=True)


@contextlib.contextmanager
def staged(frame: Frame, path: Path | str) -> Generator[Frame]:
    """Streams a lazy frame into a temporary Parquet file, so that a text is parsed only once.

    Args:
        frame: lazy polars frame.
        path: what it is read from, for messages.

    Yields:
        A lazy frame over the same rows, valid inside the block.

    Raises:
        DataError: whatever is wrong with the frame's file.
    """
    import polars as pl

    with tempfile.TemporaryDirectory(prefix="jaxrec-") as folder:
        file = Path(folder) / "staged.parquet"
        with reading(path):
            frame.sink_parquet(file)
        yield pl.scan_parquet(file)


def _key(rule: PageRule) -> Any:
    """What a user's page is known by, except for a gap: an expression named `\0key`."""
    import polars as pl

    if rule.kind == "request":
        return _escaped(rule.column).alias("\0key")
    if rule.kind == "second":
        return pl.col("timestamp").alias("\0key")
    days = (pl.col("timestamp") + round(rule.hours * 3600)).floordiv(_DAY)
    return pl.from_epoch(days, time_unit="d").dt.strftime("%Y-%m-%d").alias("\0key")


def _page(longest: int) -> Any:
    """The name of the page: user, key, and the part where the page was cut."""
    import polars as pl

    name = pl.concat_str(pl.col("user"), pl.lit(":"), pl.col("\0key").cast(pl.String))
    if not longest:
        return name
    part = pl.col("\0place") // longest
    suffix = pl.when(part > 0).then(pl.concat_str(pl.lit("+"), part.cast(pl.String)))
    return pl.concat_str(name, suffix.fill_null(""))


def _starts(seconds: int) -> Any:
    """The time of rows that begin a visit, null elsewhere; rows stand by user and time."""
    import polars as pl

    changes = pl.col("user").ne_missing(pl.col("user").shift())
    late = pl.col("timestamp").diff() > seconds
    return pl.when(changes | late.fill_null(True)).then("timestamp").alias("\0key")


def _escaped(column: str) -> Any:
    """A request as text, without the signs that page names are put together with."""
    import polars as pl

    text = pl.col(column).cast(pl.String)
    for sign, code in (("%", "%25"), (":", "%3A"), ("+", "%2B")):
        text = text.str.replace_all(sign, code, literal=True)
    return pl.when(text != "").then(text)


def _hours(detail: str, text: str) -> float:
    try:
        return float(detail or 0)
    except ValueError:
        raise _bad(text, "HOURS is a number such as +8 or -4.5") from None


def _bad(text: str, reason: str) -> DataError:
    return DataError(
        f"page rule {text!r}: {reason}. Use request:COLUMN, second, gap:SECONDS, day or "
        "day:+HOURS, each perhaps with ,max:N behind it; for example gap:600 or day:+8,max:50."
    )
