"""Amazon's item metadata in the forms of 2014, 2018 and 2023, as one set of columns.

    2014   one Python dictionary a line: asin, title, brand, categories [[...]], description, price
    2018   one JSON object a line: asin, title, brand, category [...], description [...], feature
    2023   one JSON object a line: parent_asin, title, store, main_category, categories [...],
           description [...], features [...], price, details {...}

Sources: jmcauley.ucsd.edu/data/amazon (2014), nijianmo.github.io/amazon (2018),
amazon-reviews-2023.github.io (2023).
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxrec.data.dataset import Frame, as_text
from jaxrec.data.errors import DataError
from jaxrec.data.id_sequences import as_unicode, id_of
from jaxrec.data.literal_lines import literal_lines

COLUMNS = ("title", "brand", "categories", "description", "features", "price")
"""Columns that items get: texts, and the price as float64 in dollars."""


class AmazonItems(NamedTuple):
    """Metadata of a catalogue."""

    frame: Frame
    """polars: `item` and `COLUMNS`, rows in the order of the ids asked for; nulls where nothing is
    known."""
    found: int
    """Items that the file describes."""
    repeated: int
    """Further lines of an item that was described before; the first line counts."""


def read_items(path: Path | str, ids: Sequence[str], key: str) -> AmazonItems:
    """Streams a metadata file, keeping what belongs to the ids asked for.

    The published files of 2018 describe some items twice; the first line is kept.

    Args:
        path: of the file, .gz or not.
        ids: item ids.
        key: of the id, `asin` or `parent_asin`.

    Raises:
        DataError: as `literal_lines`, or a line without the key.
    """
    import polars as pl

    known: dict[str, dict[str, Any] | None] = dict.fromkeys(ids)
    found = repeated = 0
    for number, row in literal_lines(path):
        if row.get(key) is None:
            raise DataError(
                f"{path}, line {number}: no {key!r} among {', '.join(sorted(row)[:20]) or 'none'}. "
                "Is this the metadata of the same release as the reviews?"
            )
        item = id_of(row[key], f"{path}, line {number}")
        if item not in known:
            continue
        if known[item] is None:
            try:
                known[item] = item_fields(row)
            except RecursionError:
                raise DataError(f"{path}, line {number} holds lists in lists, too deep.") from None
            found += 1
        else:
            repeated += 1
    rows = [known[item] or {} for item in ids]
    frame = pl.DataFrame(
        {"item": list(ids), **{name: [row.get(name) for row in rows] for name in COLUMNS}},
        schema={"item": pl.String, **dict.fromkeys(COLUMNS, pl.String), "price": pl.Float64},
    )
    return AmazonItems(frame, found, repeated)


def item_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """One item of any release under the names of `COLUMNS`; empty texts where it says nothing.

    Texts lose their HTML entities (`&amp;`). Categories are paths (`Beauty > Nails`), several
    joined by `; `. The brand of 2023 is `store`, or `Brand` of the details.

    >>> item_fields({"title": "A &amp; B", "category": ["Beauty", "Nails"], "price": "$1,024.50"})
    ... # doctest: +NORMALIZE_WHITESPACE
    {'title': 'A & B', 'brand': '', 'categories': 'Beauty > Nails', 'description': '',
     'features': '', 'price': 1024.5}
    """
    details = row.get("details")
    brand = row.get("brand") or row.get("store")
    if not brand and isinstance(details, Mapping):
        brand = details.get("Brand")
    category = _first(row, "categories", "category", "main_category", "main_cat")
    if isinstance(category, list) and not any(isinstance(each, list) for each in category):
        category = [category]
    return {
        "title": _text(row.get("title")),
        "brand": _text(brand),
        "categories": _text(category),
        "description": _joined(row.get("description")),
        "features": _joined(_first(row, "features", "feature")),
        "price": price_of(row.get("price")),
    }


def price_of(value: Any) -> float | None:
    """A price in dollars: a number, `$1,024.50`, `19.99`; None for anything else.

    >>> price_of("$1,024.50"), price_of(3.17), price_of("from 12.99"), price_of("None")
    (1024.5, 3.17, None, None)
    """
    if isinstance(value, str) and re.fullmatch(
        r"\$? ?[0-9][0-9,]{,12}(\.[0-9]{,6})?", value.strip()
    ):
        return float(value.strip().lstrip("$ ").replace(",", ""))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) < 1e12 and not math.isnan(value) else None
    return None


def _first(row: Mapping[str, Any], *names: str) -> Any:
    return next((row[name] for name in names if row.get(name)), None)


def _joined(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(text for each in value if (text := _text(each)))
    return _text(value)


def _text(value: Any) -> str:
    return as_unicode(" ".join(html.unescape(as_text(value)).split()))
