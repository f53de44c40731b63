"""The category of each item, out of the columns that a data set happens to have.

By it the quality report of a run and the comparison of tokenizers judge what codes mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxrec.data.dataset import DatasetFolder, item_table
from jaxrec.tokenization.quality_categories import category_labels

COLUMNS = ("categories", "category", "genres", "genre")
"""Columns of the items that are taken for their categories, the first that tells items apart."""


def find_categories(
    folder: Path, items: Sequence[str] | Any, *, column: str = "", take: str = "first"
) -> tuple[str, list[str] | None]:
    """The column that is used, and a label of each item; no column and None where there is none.

    Args:
        folder: the dataset folder.
        items: item ids in catalogue order.
        column: the column to use; by default the first of `COLUMNS` that tells items apart.
        take: which of an item's labels counts, the `first` or the `deepest`.

    Raises:
        ValueError: the named column is not there, or has fewer than two different labels; another
            `take`.
    """
    there = DatasetFolder(str(folder)).items().columns
    names = (column,) if column else tuple(name for name in COLUMNS if name in there)
    if not names:
        return "", None
    table = item_table(folder, items, names)
    for name in names:
        labels = category_labels([parse_labels(text) for text in table[name]], take)
        if len(set(labels) - {""}) > 1:
            return name, labels
    if column:
        raise ValueError(
            f"the column {column!r} has fewer than two different labels; name one that tells "
            "items apart."
        )
    return "", None


def parse_labels(text: str) -> list[str]:
    """The labels of an item, from broad to narrow, out of a column's text (`dataset.as_text`): the
    first path where there are several, else the entries of a list.

    >>> parse_labels("Beauty > Nails > Tips, Polish; Gifts"), parse_labels("Action, War")
    (['Beauty', 'Nails', 'Tips, Polish'], ['Action', 'War'])
    """
    path = text.split("; ")[0]
    labels = path.split(" > ") if " > " in path else path.split(", ")
    return [label.strip() for label in labels if label.strip()]
