"""GRID's data as Parquet: rows of users with their histories, rows of items with their text.

    training/, evaluation/, testing/   *.parquet: user_id, sequence_data (list of item numbers)
    items/                             *.parquet: id (or item_id), text, embedding, ...

Names as in GRID's configs (github.com/snap-research/GRID: configs/experiment/tiger_train_flat.yaml,
sem_embeds_inference_flat.yaml; src/data/loading/components/iterators.py). GRID itself reads
gzipped TFRecords; the Parquet files are the same records with the same names. All Parquet files
may also lie in one folder: those with `sequence_data` are users, the others items.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxrec.data.dataset import Frame, write_dataset
from jaxrec.data.errors import DataError, reading
from jaxrec.data.tables import fingerprint_files, need_columns, scan_table

PARTS = ("training", "train", "evaluation", "validation", "testing", "test")
"""Folders of histories: as in GRID's configs, and as in its README."""
ITEM_KEYS = ("id", "item_id")


@dataclasses.dataclass(frozen=True)
class GridFiles:
    """A folder of Parquet shards. Ids are kept as text; time is an order.

    A user has one history: the longest of all rows. The shorter ones (GRID's training and
    evaluation rows lack the last events) must be beginnings of it. Embeddings are left out; give
    vectors to a recipe with Precomputed. Items come in the order of their numbers.
    """

    path: str
    """The folder."""
    part: str = ""
    """Read the histories of one folder only, for example `testing`; all by default."""
    name: str = ""
    """Name of the data set; the folder's by default."""
    licence: str = "unknown"
    """Terms of use, for dataset.json."""

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes the canonical dataset folder.

        Raises:
            DataError: no Parquet files, TFRecords, columns that are missing or of another type, or
                rows of one user that do not continue one another.
        """
        root, (users, items) = Path(self.path), self._shards()
        with reading(root):
            log = _read_log(users, root)
            catalogue = _read_items(items) if items else _number_order(log.select("item").unique())
        write_dataset(
            folder,
            log,
            catalogue,
            name=self.name or root.resolve().name,
            source=f"GRID's data as Parquet: {len(users)} file(s) of users, {len(items)} of items",
            licence=self.licence,
            time_unit="order",
        )

    def fingerprint(self) -> dict[str, Any]:
        """Sizes and SHA-256 of the files that are read."""
        root = Path(self.path)
        files = [path for paths in self._shards() for path in paths]
        return {
            path.relative_to(root).as_posix(): fingerprint_files(path)[path.name] for path in files
        }

    def _shards(self) -> tuple[list[Path], list[Path]]:
        """The files of users and those of items."""
        root = Path(self.path)
        if not root.is_dir():
            raise DataError(
                f"{root} is not a folder; name the one that holds GRID's Parquet files."
            )
        parts = (self.part,) if self.part else PARTS
        users = [path for part in parts for path in _parquet(root / part)]
        items = _parquet(root / "items")
        for path in [] if users or self.part else sorted(root.glob("*.parquet")):
            names = scan_table(path).collect_schema().names()
            (users if "sequence_data" in names else items).append(path)
        if not users:
            _refuse(root, parts)
        return users, items


def _parquet(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.parquet")) if folder.is_dir() else []


def _refuse(root: Path, parts: Sequence[str]) -> None:
    if any(root.rglob("*tfrecord*")):
        raise DataError(
            f"{root} holds TFRecords, which need TensorFlow. In GRID's own environment read them "
            "with its TFRecordIterator and write each record as a row of Parquet with the same "
            "names (user_id, sequence_data; id, text), in the same folders."
        )
    raise DataError(
        f"{root} has no Parquet file of histories (column sequence_data): looked in the folder "
        f"itself and in {', '.join(parts)}. Check the path."
    )


def _read_log(paths: Sequence[Path], root: Path) -> Frame:
    """The longest history of each user, users in the order of the files."""
    import polars as pl

    rows = pl.concat([_read_histories(path) for path in paths])
    longest = rows.group_by("user", maintain_order=True).agg(
        pl.col("items").sort_by(pl.col("items").list.len()).last().alias("longest")
    )
    joined = rows.join(longest, on="user", maintain_order="left")
    begins = pl.col("longest").list.head(pl.col("items").list.len()) == pl.col("items")
    if other := joined.filter(~begins)["user"].unique(maintain_order=True).to_list():
        raise DataError(
            f"{root}: the histories of {len(other)} user(s) do not continue one another, for "
            f"example {', '.join(map(repr, other[:3]))}. Read one folder only, with part=testing."
        )
    times = pl.int_ranges(pl.col("longest").list.len(), dtype=pl.Int64)
    return (
        longest.with_columns(timestamp=times)
        .explode("longest", "timestamp")
        .rename({"longest": "item"})
    )


def _read_histories(path: Path) -> Frame:
    import polars as pl

    table = scan_table(path)
    schema = table.collect_schema()
    need_columns(schema.names(), ("user_id", "sequence_data"), path)
    if not isinstance(schema["sequence_data"], pl.List | pl.Array):
        raise DataError(
            f"{path}: sequence_data must be a list of item numbers a row, got "
            f"{schema['sequence_data']}."
        )
    items = pl.col("sequence_data").cast(pl.List(pl.String))
    with reading(path):
        return table.select(user=_plain(schema, "user_id").cast(pl.String), items=items).collect()


def _read_items(paths: Sequence[Path]) -> Frame:
    """All items by number, with their columns; lists of fractions (embeddings) are left out."""
    import polars as pl

    frames = []
    for path in paths:
        table = scan_table(path)
        schema = table.collect_schema()
        key = next((name for name in ITEM_KEYS if name in schema), ITEM_KEYS[0])
        need_columns(schema.names(), (key,), path)
        names = [
            name for name in schema if name not in (key, "item") and not _is_vector(schema[name])
        ]
        with reading(path):
            frames.append(
                table.select(
                    _plain(schema, key).alias("item"), *(_plain(schema, name) for name in names)
                )
                .with_columns(pl.col("item").cast(pl.String))
                .collect()
            )
    return _number_order(pl.concat(frames, how="diagonal"))


def _is_vector(kind: Any) -> bool:
    import polars as pl

    return isinstance(kind, pl.List | pl.Array) and kind.inner.is_float()


def _plain(schema: Any, name: str) -> Any:
    """A column without lists: what a TFRecord holds is a list, mostly of one; bytes become text."""
    import polars as pl

    kind, column = schema[name], pl.col(name)
    if isinstance(kind, pl.List | pl.Array):
        return column.cast(pl.List(pl.String)).list.join(", ").alias(name)
    return column.cast(pl.String) if kind == pl.Binary else column


def _number_order(items: Frame) -> Frame:
    """Items by number where all ids are numbers, else by text."""
    import polars as pl

    numbers = pl.col("item").str.to_integer(strict=False)
    return items.sort(numbers.is_null(), numbers, "item", nulls_last=True)
