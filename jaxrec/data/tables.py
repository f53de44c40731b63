"""Reading other people's tables: CSV, TSV, JSON lines and Parquet, without a traceback.

Large files are scanned lazily (polars streams them); text formats that polars does not know are
parsed line by line and spilled to Parquet. Whatever is wrong with a file is a `DataError` that
names it.
"""

from __future__ import annotations

import contextlib
import difflib
import gzip
import json
import os
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrec.data.dataset import Frame, as_text
from jaxrec.data.errors import DataError, reading
from jaxrec.files import file_hash

SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
JSON_LINES = (".jsonl", ".ndjson", ".json")
COMPRESSED = (".gz", ".zst")
LAST_SECOND = 253_402_300_799
"""The last second of the year 9999; what lies beyond is not in seconds."""

_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_BATCH = 50_000


def need_file(path: Path | str) -> Path:
    """Returns the path of a regular file that is not empty.

    Raises:
        DataError: nothing there, a folder, or no byte in it.
    """
    path = Path(path)
    if _is_file(path):
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty (0 bytes). Was a download or an export cut off?")
        return path
    if os.path.isdir(path):
        raise DataError(f"{path} is a folder; name the file inside it.")
    raise DataError(f"{path} does not exist.{_neighbour(path)}")


def table_kind(path: Path | str) -> str:
    """The suffix that says how a table is read, compression left out.

    Raises:
        DataError: no known suffix.

    >>> table_kind("log.csv.gz"), table_kind("a.b.JSONL")
    ('.csv', '.jsonl')
    """
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    kinds = (*SEPARATORS, *JSON_LINES, ".parquet")
    if not suffixes or suffixes[-1] not in kinds:
        raise DataError(
            f"{path}: the name does not say what kind of table this is. Use one of "
            f"{', '.join(kinds)} (text also with {' or '.join(COMPRESSED)}), or rename the file."
        )
    return suffixes[-1]


def scan_table(
    path: Path | str,
    schema: Mapping[str, Any] | None = None,
    *,
    separator: str | None = None,
    header: bool = True,
    names: Sequence[str] | None = None,
    quote: str | None = '"',
) -> Frame:
    """A lazy polars frame over a table, whose kind its suffix tells.

    Args:
        path: of the file.
        schema: polars type of each column wanted; needed for JSON lines, where other keys are
            ignored. Columns of CSV are text whatever it says.
        separator: of a text table; by suffix where None.
        header: whether the first line of a text table names its columns.
        names: column names of a table without header.
        quote: quotation mark of a text table, None where quotation marks mean nothing.

    Raises:
        DataError: what `need_file` and `table_kind` say, or JSON lines without a schema. Errors
            inside the file come when the frame is collected; see `reading`.
    """
    import polars as pl

    path, kind = need_file(path), table_kind(path)
    if kind == ".parquet":
        with reading(path):
            frame = pl.scan_parquet(path)
            frame.collect_schema()
            return frame
    if kind in JSON_LINES:
        if schema is None:
            raise DataError(f"{path}: JSON lines are read by naming the keys that are wanted.")
        return pl.scan_ndjson(path, schema=dict(schema))
    cut = separator or SEPARATORS[kind]
    if len(cut.encode("utf-8", "replace")) != 1:
        raise DataError(
            f"separator {cut[:20]!r} must be one ASCII character, such as ',' or ';' or a tab."
        )
    with reading(path):
        frame = pl.scan_csv(
            path,
            separator=cut,
            has_header=header,
            new_columns=None if names is None else list(names),
            quote_char=quote,
            infer_schema=False,
        )
        frame.collect_schema()
        return frame


def need_columns(columns: Iterable[str], names: Iterable[str], path: Path | str) -> None:
    """Checks that a table has the columns that are asked for.

    Raises:
        DataError: one is missing; the message names the nearest and all that there are.
    """
    columns = list(columns)
    missing = [name for name in names if name not in columns]
    if missing:
        close = difflib.get_close_matches(missing[0], columns, n=1)
        hint = f" Perhaps {missing[0]!r} is {close[0]!r} there." if close else ""
        raise DataError(
            f"{path} has no column {', '.join(map(repr, missing))}; it has "
            f"{', '.join(map(repr, columns[:40])) or 'none'}.{hint}"
        )


def to_seconds(column: str, unit: str) -> Any:
    """An expression of whole Unix seconds (int64), fractions dropped.

    Args:
        column: numbers, texts of numbers, texts of dates, or dates.
        unit: `s`, `ms`, `us` or `ns` since 1970; `iso` for 2018-11-07T09:59:19Z and its relatives;
            or a format of strptime such as `%m/%d/%Y %I:%M:%S %p`. Times without a zone are UTC.

    Raises:
        DataError: a unit that is none of these.
    """
    import polars as pl

    if unit in _PER_SECOND:
        # Times in whole numbers stay exact; only fractions go through float64.
        text = pl.col(column).cast(pl.String).str.strip_chars()
        whole = text.cast(pl.Int64, strict=False)
        number = pl.coalesce(whole, text.cast(pl.Float64).floor().cast(pl.Int64))
        return number.floordiv(_PER_SECOND[unit]) if unit != "s" else number
    if unit == "iso":
        return pl.col(column).str.to_datetime(time_zone="UTC").dt.epoch("s")
    if "%" in unit:
        return pl.col(column).str.to_datetime(unit, time_unit="us").dt.epoch("s")
    raise DataError(
        f"time unit {unit!r} is unknown: use {', '.join(_PER_SECOND)}, iso, or a strptime format "
        "such as '%Y-%m-%d %H:%M:%S'."
    )


def text_lines(path: Path | str) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 text file with their numbers from 1, line ends removed.

    Raises:
        DataError: as `need_file`; a truncated .gz; a line that is not UTF-8.
    """
    path = need_file(path)
    if path.suffix.lower() == ".zst":
        raise DataError(f"{path}: this format is read as text or .gz; decompress it with `unzstd`.")
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with reading(path), opener(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, line {number} is not UTF-8 (byte {line[error.start]:#04x} at place "
                    f"{error.start}). Convert it, for example with `iconv -f LATIN1 -t UTF-8`."
                ) from None
            yield number, text.rstrip("\r\n")


def json_lines(path: Path | str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file that has one a line, with line numbers; empty lines are skipped.

    Raises:
        DataError: as `text_lines`, or a line that is not a JSON object.
    """
    for number, line in text_lines(path):
        if not line.strip():
            continue
        row = _json(line, f"{path}, line {number}")
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} is not a JSON object: {line[:60]!r}.")
        yield number, row


def json_object(path: Path | str) -> dict[str, Any]:
    """A file that is one JSON object (.gz too).

    Raises:
        DataError: as `text_lines`, or something other than one object.
    """
    content = _json("\n".join(line for _, line in text_lines(path)), str(path))
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a JSON object but {type(content).__name__}.")
    return content


def columns_of(rows: Iterable[Mapping[str, Any]], key: str) -> dict[str, list[Any]]:
    """Items as JSON objects to columns, the id as text in `item`.

    A column whose values are all numbers stays one of numbers; all others become text: lists
    joined by `, `, nested lists `a > b; c > d`, missing values empty.

    Args:
        rows: one object an item; each has `key`.
        key: of the id.
    """
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row if name not in (key, "item"))
    columns: dict[str, list[Any]] = {"item": [str(row[key]) for row in rows]}
    for name in names:
        values = [row.get(name) for row in rows]
        if all(_is_number(value) for value in values if value is not None):
            columns[name] = [None if value is None else float(value) for value in values]
        else:
            columns[name] = [as_text(value) for value in values]
    return columns


@contextlib.contextmanager
def spilled(
    batches: Iterable[Mapping[str, Sequence[Any]]], schema: Mapping[str, Any]
) -> Generator[Frame]:
    """Streams batches of parsed rows through a temporary folder of Parquet parts.

    Args:
        batches: columns of a few ten thousand rows each.
        schema: polars type of each column.

    Yields:
        A lazy frame over all rows, valid inside the block.
    """
    import polars as pl

    with tempfile.TemporaryDirectory(prefix="jaxrec-") as folder:
        parts = 0
        for parts, batch in enumerate(batches, start=1):
            with reading("a row of the log"):
                frame = pl.DataFrame(dict(batch), schema=dict(schema))
            frame.write_parquet(Path(folder) / f"{parts:06d}.parquet")
        if not parts:
            pl.DataFrame(schema=dict(schema)).write_parquet(Path(folder) / "000000.parquet")
        yield pl.scan_parquet(Path(folder) / "*.parquet", glob=True)


def batched(
    rows: Iterable[Sequence[Any]], names: Sequence[str], size: int = _BATCH
) -> Iterator[dict[str, list[Any]]]:
    """Rows to batches of columns, for `spilled`."""
    batch: list[Sequence[Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield dict(zip(names, map(list, zip(*batch))))
            batch = []
    if batch:
        yield dict(zip(names, map(list, zip(*batch))))


def match_items(items: Frame, log: Frame) -> Frame:
    """Item rows for exactly the items of a log, in the order of their first event.

    Items without metadata get a row of nulls; metadata of items that never occur is left out.

    Args:
        items: polars frame with a column `item`; ids occur once.
        log: polars frame, eager or lazy, with a column `item`.
    """
    import polars as pl

    ids = log.lazy().select("item").unique(maintain_order=True).collect(engine="streaming")
    return ids.join(pl.DataFrame(items), on="item", how="left", maintain_order="left")


def fingerprint_files(*paths: Path, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """Size and SHA-256 of files by name, so that a changed input is noticed.

    Args:
        paths: the files.
        optional: names that may be absent.

    Raises:
        DataError: a file does not exist.
    """
    known = {}
    for path in paths:
        if _is_file(path):
            known[path.name] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
        elif path.name not in optional:
            raise DataError(f"{path} does not exist.{_neighbour(path)}")
    return known


def _is_number(value: Any) -> bool:
    # Whole numbers beyond float64 stay the texts that they were written as.
    return type(value) is float or (type(value) is int and abs(value) < 2**53)


def _json(text: str, where: str) -> Any:
    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            keys = [key for key, _ in pairs]
            doubled = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{where} names {doubled!r} twice in one object. Keep one of them.")
        return content

    try:
        value = json.loads(text, object_pairs_hook=object_of)
        if "\\ud" in text.lower():
            # Half a surrogate pair can be escaped in JSON, and is no text.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except DataError:
        raise
    except UnicodeEncodeError:
        raise DataError(
            f"{where} holds half a surrogate pair (\\ud...), which is no text."
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}.") from None


def _is_file(path: Path) -> bool:
    # pathlib's own question fails for a name that is too long for the file system.
    return os.path.isfile(path)


def _neighbour(path: Path) -> str:
    names = [each.name for each in path.parent.iterdir()] if os.path.isdir(path.parent) else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f" Perhaps you meant {path.parent / close[0]}." if close else " Check the path."
