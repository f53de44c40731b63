"""How much text the items have: what text encoders will find, and where they will find nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.data.checks import ITEMS, Frame
from jaxrec.data.dataset import DatasetFolder


def text_coverage(dataset: DatasetFolder) -> dict[str, Any]:
    """Describes every column of items.parquet; one column at a time is held in memory.

    Lists of texts count as text. Columns of one word each that all differ do not: ids and
    addresses tell an encoder nothing (a title always counts).

    Returns:
        columns: of each column of texts, the share of the items that have any (`filled`), median
            words and characters of those, and how many share their text with another item.
        other_columns: name, type (`ids` for ids) and share of the items that have a value.
        items_without_text: items that have no text in any column.
        shared_titles: items whose title another item has, None without titles.
    """
    import polars as pl

    texts, others = [], []
    has_text = np.zeros(dataset.manifest["counts"]["items"], bool)
    for name, kind in pl.read_parquet_schema(Path(dataset.path) / ITEMS).items():
        if name == "item":
            continue
        column = dataset.items([name])
        text = _as_text(pl.col(name), kind)
        if text is None:
            filled = column.height - column[name].null_count()
            others.append({"name": name, "type": str(kind), "filled": _share(filled, column)})
            continue
        sizes = _sizes(column, text)
        filled = sizes.filter(pl.col("words") > 0)
        if name != "title" and _are_ids(filled):
            others.append({"name": name, "type": "ids", "filled": _share(filled.height, column)})
            continue
        has_text |= (sizes["words"] > 0).to_numpy()
        texts.append(
            {
                "name": name,
                "filled": _share(filled.height, column),
                "median_words": filled["words"].median(),
                "median_characters": filled["characters"].median(),
                "shared": int(filled["shared"].sum()),
            }
        )
    return {
        "columns": texts,
        "other_columns": others,
        "items_without_text": int((~has_text).sum()),
        "shared_titles": next((each["shared"] for each in texts if each["name"] == "title"), None),
    }


def _as_text(column: Any, kind: Any) -> Any:
    """The text of a column of texts, or of lists of texts, as an expression; else None."""
    import polars as pl

    if kind == pl.String:
        return column
    if isinstance(kind, pl.Categorical | pl.Enum):
        return column.cast(pl.String)
    if isinstance(kind, pl.List) and (inner := _as_text(pl.element(), kind.inner)) is not None:
        return column.list.eval(inner).list.join(" ")
    return None


def _sizes(column: Frame, text: Any) -> Frame:
    """words, characters, and whether another item has the same text, of each item."""
    return column.select(
        text.str.count_matches(r"\S+").fill_null(0).alias("words"),
        text.str.len_chars().alias("characters"),
        text.is_duplicated().alias("shared"),
    )


def _are_ids(filled: Frame) -> bool:
    return filled.height > 1 and filled["words"].max() == 1 and not filled["shared"].any()


def _share(filled: int, column: Frame) -> float:
    return filled / column.height if column.height else 0.0
