"""Amazon's reviews in the forms of 2014, 2018 and 2023, as one table of text columns.

The forms are described in `jaxrec.data.datasets.amazon`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxrec.data.dataset import Frame
from jaxrec.data.errors import DataError, reading
from jaxrec.data.id_sequences import id_of
from jaxrec.data.literal_lines import literal_lines
from jaxrec.data.tables import (
    JSON_LINES,
    batched,
    need_columns,
    scan_table,
    spilled,
    table_kind,
    text_lines,
)

RELEASES = ("2014", "2018", "2023")
TABLE = ("user", "item", "value", "timestamp")
_ONLY_2018 = {"verified", "vote", "style", "image"}
_CODE_LENGTH = 10
"""Characters of a product code (ASIN). Reviewers' ids are longer, all but very few."""
_LOOKED_AT = 1000


class ReviewKeys(NamedTuple):
    """What a release calls the columns of `TABLE`."""

    user: str
    item: str
    value: str
    timestamp: str


_OLDER = ReviewKeys("reviewerID", "asin", "overall", "unixReviewTime")
KEYS = {
    "2014": _OLDER,
    "2018": _OLDER,
    "2023": ReviewKeys("user_id", "parent_asin", "rating", "timestamp"),
}
UNITS = {"2014": "s", "2018": "s", "2023": "ms"}
_HEADERLESS = {"2014": TABLE, "2018": ("item", "user", "value", "timestamp")}


@contextlib.contextmanager
def open_reviews(path: Path, release: str, item: str = "") -> Generator[tuple[str, Frame]]:
    """Opens a file of reviews or ratings, whatever its form.

    Args:
        path: the file.
        release: one of `RELEASES`, or `auto` to look at the first lines.
        item: key of the item, where it is not the release's own.

    Yields:
        The release, and a lazy frame with the columns of `TABLE` as text (Parquet keeps its types),
        valid inside the block.

    Raises:
        DataError: a file that is missing, malformed, or of another form than the release's.
    """
    is_lines = table_kind(path) in JSON_LINES
    is_literal, names = _first_keys(path) if is_lines else (False, _first_cells(path))
    if not is_lines and not _is_header(names, item):
        release = _headerless_release(path, release)
        yield release, _headerless(path, release)
        return
    release = _release_of(names) if release == "auto" else release
    keys = KEYS[release]._replace(**({"item": item} if item else {}))
    need_columns(names, (keys.user, keys.item, keys.timestamp), path)
    if is_literal:
        rows = batched(_literal_rows(path, keys), TABLE)
        with spilled(rows, dict.fromkeys(TABLE, _text_type())) as table:
            yield release, table
    elif is_lines:
        yield release, _named(scan_table(path, dict.fromkeys(keys, _text_type())), keys, keys)
    else:
        yield release, _named(scan_table(path), keys, names)


def _release_of(names: Sequence[str]) -> str:
    """The release whose keys these are; 2023, whose names are then missed, for all others."""
    if "reviewerID" not in names:
        return "2023"
    return "2018" if _ONLY_2018 & set(names) else "2014"


def _first_keys(path: Path) -> tuple[bool, list[str]]:
    """Whether the first line is a Python literal rather than JSON, and its keys."""
    line = next((text for _, text in text_lines(path) if text.strip()), "")
    _, row = next(literal_lines(path), (0, {}))
    try:
        json.loads(line)
        return False, list(row)
    except ValueError:
        return True, list(row)


def _first_cells(path: Path) -> list[str]:
    with reading(path):
        if table_kind(path) == ".parquet":
            return scan_table(path).collect_schema().names()
        first = scan_table(path, header=False).head(1).collect()
    return [str(cell) for cell in (first.row(0) if first.height else ())]


def _is_header(cells: Sequence[str], item: str) -> bool:
    return not set(cells).isdisjoint({item, "asin", *_OLDER, *KEYS["2023"]} - {""})


def _headerless_release(path: Path, release: str) -> str:
    """2014 or 2018 by which of the first two columns holds product codes.

    A wrong guess would exchange users and items without a trace, hence the check.
    """
    with reading(path):
        sample = scan_table(path, header=False).head(_LOOKED_AT).collect()
    if sample.width < len(TABLE):
        raise DataError(
            f"{path} has {sample.width} column(s) and no known column name in its first line. "
            "Ratings are user, item, rating, time (2014), or item, user, rating, time (2018); "
            f"2023 names them {', '.join(KEYS['2023'])}."
        )
    codes = [
        bool((sample.to_series(place).str.len_chars() == _CODE_LENGTH).all()) for place in (0, 1)
    ]
    seen = {(False, True): "2014", (True, False): "2018"}.get((codes[0], codes[1]))
    if release == "auto" and seen is None:
        raise DataError(
            f"{path} has no header, and its first two columns do not tell which holds product "
            "codes. Say release=2014 (user, item, rating, time) or 2018 (item, user, rating, time)."
        )
    if release == "2023" or (seen and release not in ("auto", seen)):
        raise DataError(
            f"{path} has no header and does not look like ratings of {release}"
            + (f": its columns are those of {seen}. Say release={seen}." if seen else ".")
        )
    return seen if release == "auto" and seen else release


def _headerless(path: Path, release: str) -> Frame:
    table = scan_table(path, header=False)
    # How polars calls the columns of a table without header differs between its versions.
    names = dict(zip(table.collect_schema().names(), _HEADERLESS[release]))
    return table.select(*names).rename(names).select(TABLE)


def _named(table: Frame, keys: ReviewKeys, names: Sequence[str]) -> Frame:
    """Columns of `TABLE` out of a table with the release's; ratings may be missing."""
    import polars as pl

    columns = {ours: theirs for ours, theirs in zip(TABLE, keys) if theirs in names}
    table = table.select(**{ours: pl.col(theirs) for ours, theirs in columns.items()})
    if "value" not in columns:
        table = table.with_columns(value=pl.lit(None, pl.String))
    return table.with_columns(pl.col("user", "item").cast(pl.String))


def _literal_rows(path: Path, keys: ReviewKeys) -> Iterator[list[str | None]]:
    for number, row in literal_lines(path):
        cells: list[Any] = [row.get(key) for key in keys]
        where = f"{path}, line {number}"
        yield [
            None if cell is None else id_of(cell, where) if place < 2 else str(cell)
            for place, cell in enumerate(cells)
        ]


def _text_type() -> Any:
    import polars as pl

    return pl.String
