"""P5's text files, the source of most semantic-ID papers' Beauty, Sports and Toys.

    sequential_data.txt   user item item ...     oldest first; numbers as text
    datamaps.json         {"user2id": ..., "item2id": {asin: number}, "id2item": {number: asin}}
    meta.json.gz          one Python dictionary a line, key `asin`   (or meta_data.json.gz)
    negative_samples.txt  99 sampled items a user: not read, jaxrec ranks the whole catalogue

Source: github.com/jeykigung/P5 (preprocess/data_preprocess_amazon.ipynb, src/pretrain_data.py).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxrec.data.amazon_items import read_items
from jaxrec.data.dataset import Frame, write_dataset
from jaxrec.data.errors import DataError
from jaxrec.data.id_sequences import bare_items, id_of, order_log
from jaxrec.data.tables import fingerprint_files, json_object, text_lines

SEQUENCES = "sequential_data.txt"
MAPS = "datamaps.json"
METADATA = ("meta.json.gz", "meta_data.json.gz", "meta.json", "meta_data.json")


@dataclasses.dataclass(frozen=True)
class P5Files:
    """A folder with sequential_data.txt, and perhaps datamaps.json and metadata.

    Users and items keep P5's numbers; the product code of an item is its column `asin`. Time is
    an order, and within one day that order is the raw file's, not that of the clicks.

    A known leak: items are numbered in the order in which the histories first name them, held-out
    events included, so that the last item of a history often is the number after the largest one
    before it (jeykigung/P5#3). It hurts models that read the numbers as text; semantic IDs from
    item text or vectors do not see them.
    """

    path: str
    """The folder."""
    name: str = ""
    """Name of the data set; the folder's by default."""
    source: str = ""
    """Where the files come from, for dataset.json."""
    licence: str = "unknown"
    """Terms of use, for dataset.json."""

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes the canonical dataset folder.

        Raises:
            DataError: a file is missing or malformed, metadata without datamaps.json, or an item
                that datamaps.json does not know.
        """
        path = Path(self.path)
        log = order_log(_histories(path / SEQUENCES), path / SEQUENCES)
        items, described = self._items(bare_items(log))
        write_dataset(
            folder,
            log,
            items,
            name=self.name or path.resolve().name,
            source=self.source or f"P5's {SEQUENCES}{described}",
            licence=self.licence,
            time_unit="order",
        )

    def fingerprint(self) -> dict[str, Any]:
        """Sizes and SHA-256 of the files that are read."""
        path = Path(self.path)
        metadata = self._metadata()
        names = (MAPS, metadata.name) if metadata else (MAPS,)
        return fingerprint_files(
            path / SEQUENCES, *(path / name for name in names), optional=(MAPS,)
        )

    def _metadata(self) -> Path | None:
        paths = (Path(self.path) / name for name in METADATA)
        return next((path for path in paths if path.is_file()), None)

    def _items(self, items: dict[str, list[str]]) -> tuple[Frame, str]:
        """The item table, and what to say about it in `source`."""
        import polars as pl

        maps, metadata = Path(self.path) / MAPS, self._metadata()
        if not maps.is_file():
            if metadata:
                raise DataError(
                    f"{metadata} describes product codes, and {MAPS}, which tells which item has "
                    "which, is missing. Put it beside, or take the metadata away."
                )
            return items, ""
        codes = _product_codes(maps, items["item"])
        if not metadata:
            return {**items, "asin": codes}, f" and {MAPS}"
        found = read_items(metadata, codes, "asin")
        frame = found.frame.rename({"item": "asin"}).insert_column(
            0, pl.Series("item", items["item"], dtype=pl.String)
        )
        return frame, (
            f", {MAPS} and {metadata.name}, which describes {found.found} of "
            f"{len(codes)} items ({found.repeated} repeated lines left out)"
        )


def _histories(path: Path) -> Iterator[tuple[str, list[str]]]:
    for _, line in text_lines(path):
        if words := line.split():
            yield words[0], words[1:]


def _product_codes(path: Path, items: list[str]) -> list[str]:
    """The product code of each item, by `item2id` or `id2item`."""
    maps = json_object(path)
    codes = maps.get("id2item")
    if codes is None and isinstance(maps.get("item2id"), dict):
        codes = {str(number): code for code, number in maps["item2id"].items()}
    if not isinstance(codes, dict):
        raise DataError(f"{path} has neither 'id2item' nor 'item2id', but {sorted(maps)[:20]}.")
    if missing := [item for item in items if item not in codes]:
        raise DataError(
            f"{path} does not know {len(missing)} item(s) of {SEQUENCES}, for example "
            f"{', '.join(map(repr, missing[:3]))}. Are the two files of one data set?"
        )
    return [id_of(codes[item], f"{path}, item {item}") for item in items]
