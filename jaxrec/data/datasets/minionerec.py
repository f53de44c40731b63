"""MiniOneRec's files: sliding windows of histories as tables, items and semantic IDs as JSON.

    train/CATEGORY_*.csv, valid/..., test/...   or CATEGORY.train.csv, ... (.gz too): columns
        user_id, history_item_title, item_title, history_item_id, item_id, history_item_sid,
        item_sid; lists as Python prints them
    CATEGORY.item.json, or index/CATEGORY.item.json    {"0": {title, description, brand, ...}, ...}
    CATEGORY.index.json    {"0": ["<a_12>", ...]}      see tokenization.PublishedIds
    CATEGORY.sequences.jsonl    {"user": ..., "items": [...]}: histories joined already

Source: github.com/AkaliKong/MiniOneRec (data/amazon18_data_process.py, convert_dataset.py).
"""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxrec.data.dataset import write_dataset
from jaxrec.data.errors import DataError, reading
from jaxrec.data.id_sequences import id_of, only_name, order_log, read_item_objects
from jaxrec.data.literal_lines import literal
from jaxrec.data.tables import fingerprint_files, json_lines, need_columns, scan_table

SPLITS = ("train", "valid", "test")
ITEM = ".item.json"
COLUMNS = ("user_id", "history_item_id", "item_id")

Window = tuple[list[str], str]
"""A history and the item that followed it."""


@dataclasses.dataclass(frozen=True)
class MiniOneRecFiles:
    """One category of a MiniOneRec data folder. Ids are kept; time is an order.

    A row holds up to ten items of a history and the next one. A user's rows are put in the order of
    their histories' lengths, then of the files (train, valid, test) and lines, and laid over one
    another: each adds what the sequence so far does not have. What the rows do not hold is lost:
    the start of a history whose first row is full already (where train rows are missing), and what
    lies between two rows that share nothing. Both are counted, in dataset.json, under `source`.

    The catalogue is all items of CATEGORY.item.json.
    """

    path: str
    """The folder."""
    category: str = ""
    """CATEGORY, for example `Office_Products`; may be empty where there is only one."""
    name: str = ""
    """Name of the data set; the category by default."""
    licence: str = "unknown"
    """Terms of use, for dataset.json."""

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes the canonical dataset folder.

        Raises:
            DataError: a file is missing or malformed, or a row names an item that the item file
                lacks.
        """
        category, item, rows = self._files()
        if len(rows) == 1 and rows[0].suffix == ".jsonl":
            sequences, described = _read_sequences(rows[0]), rows[0].name
        else:
            sequences, described = _join_tables(rows)
        write_dataset(
            folder,
            order_log(sequences, self.path),
            _read_items(item),
            name=self.name or category,
            source=f"MiniOneRec's {category}: {described}; items of {item.name}",
            licence=self.licence,
            time_unit="order",
        )

    def fingerprint(self) -> dict[str, Any]:
        """Sizes and SHA-256 of the files that are read."""
        _, item, rows = self._files()
        return {"items": fingerprint_files(item)} | {
            f"log {number}": fingerprint_files(path) for number, path in enumerate(rows)
        }

    def _files(self) -> tuple[str, Path, list[Path]]:
        """The category, its item file, and the files of its log."""
        root = Path(self.path)
        inner = root / "index" if any((root / "index").glob(f"*{ITEM}")) else root
        category = self.category or only_name(inner, ITEM, "category")
        tables = {split: _table(root, split, category) for split in SPLITS}
        sequences = root / f"{category}.sequences.jsonl"
        if not tables["train"] and sequences.is_file():
            return category, inner / f"{category}{ITEM}", [sequences]
        found = [path for path in tables.values() if path]
        if not found:
            raise DataError(
                f"{root} has no log of {category!r}: expected train/{category}*.csv, "
                f"{category}.train.csv or {category}.sequences.jsonl. Check path and category."
            )
        return category, inner / f"{category}{ITEM}", found


def join_windows(windows: Iterable[Window]) -> tuple[list[str], int, int]:
    """Lays the rows of one user over one another.

    Args:
        windows: the rows, shorter histories first, later rows later.

    Returns:
        The sequence; gaps = rows that share nothing with what came before, behind which events may
        be missing; repeats = rows that say nothing new.

    >>> join_windows([(["a"], "b"), (["a", "b"], "c"), (["b", "c"], "d")])
    (['a', 'b', 'c', 'd'], 0, 0)
    >>> join_windows([(["a"], "b"), (["b", "x"], "c"), (["y"], "z"), (["b", "x"], "c")])
    (['a', 'b', 'x', 'c', 'y', 'z'], 1, 1)
    """
    sequence: list[str] = []
    gaps = repeats = 0
    for history, target in windows:
        row = [*history, target]
        shared = _overlap(sequence, history)
        if shared < len(history) and _contains(sequence, row):
            repeats += 1
            continue
        gaps += bool(sequence) and not shared
        sequence += row[shared:]
    return sequence, gaps, repeats


def _overlap(sequence: Sequence[str], history: Sequence[str]) -> int:
    """Items at the end of the sequence with which the history begins, as many as possible."""
    longest = min(len(sequence), len(history))
    ends = (count for count in range(longest, 0, -1) if sequence[-count:] == history[:count])
    return next(ends, 0)


def _contains(sequence: Sequence[str], row: Sequence[str]) -> bool:
    last = len(sequence) - len(row)
    return any(sequence[start : start + len(row)] == row for start in range(last + 1))


def _table(root: Path, split: str, category: str) -> Path | None:
    """The table of a split: beside the others, or in a folder of its own."""
    near = (root / f"{category}.{split}.csv{end}" for end in ("", ".gz"))
    inner = sorted((root / split).glob(f"{category}*.csv*"))
    if len(inner) > 1:
        raise DataError(
            f"{root / split} has {len(inner)} tables of {category!r}: "
            f"{', '.join(path.name for path in inner)}. Keep one."
        )
    return next((path for path in (*near, *inner) if path.is_file()), None)


def _join_tables(paths: Sequence[Path]) -> tuple[list[tuple[str, list[str]]], str]:
    """Sequences of the users in the order of their first rows, and what to say about them."""
    windows: dict[str, list[Window]] = defaultdict(list)
    for path in paths:
        for user, window in _read_table(path):
            windows[user].append(window)
    widest = max(len(history) for rows in windows.values() for history, _ in rows)
    sequences, gaps, repeats, cut = [], 0, 0, 0
    for user, rows in windows.items():
        rows.sort(key=lambda row: len(row[0]))
        sequence, more_gaps, more_repeats = join_windows(rows)
        sequences.append((user, sequence))
        gaps, repeats = gaps + more_gaps, repeats + more_repeats
        cut += len(rows[0][0]) == widest
    return sequences, (
        f"{', '.join(path.name for path in paths)}, joined ({cut} histories may lack their start, "
        f"{gaps} gaps, {repeats} repeated rows)"
    )


def _read_table(path: Path) -> Iterable[tuple[str, Window]]:
    need_columns(scan_table(path).collect_schema().names(), COLUMNS, path)
    with reading(path):
        rows = scan_table(path).select(COLUMNS).collect().rows()
    if not rows:
        raise DataError(f"{path} has a header and no rows.")
    for number, (user, history, item) in enumerate(rows, start=1):
        where = f"{path}, row {number}"
        items = literal(history or "", where)
        if not isinstance(items, list):
            raise DataError(f"{where}: history_item_id must be a list, got {history[:60]!r}.")
        yield id_of(user, where), ([id_of(each, where) for each in items], id_of(item, where))


def _read_items(path: Path) -> dict[str, list[Any]]:
    """Items, with descriptions that are a printed Python list turned into their text."""
    items = read_item_objects(path)
    if "description" in items:
        items["description"] = [_unwrap(text, str(path)) for text in items["description"]]
    return items


def _unwrap(text: Any, where: str) -> Any:
    if not isinstance(text, str) or not text.startswith("["):
        return text
    try:
        parts = literal(text, where)
    except DataError:
        # A description that begins with a bracket and is no list stays as it is.
        return text
    return " ".join(map(str, parts)) if isinstance(parts, list) else text


def _read_sequences(path: Path) -> Iterable[tuple[Any, Any]]:
    for number, row in json_lines(path):
        if missing := {"user", "items"} - set(row):
            raise DataError(f"{path}, line {number}: no {' and no '.join(sorted(missing))}.")
        yield row["user"], row["items"]
