"""LC-Rec's files, which LETTER and others share: histories, items and published semantic IDs.

    NAME.inter.json    {"user": [item, item, ...], ...}      oldest first
    NAME.item.json     {"item": {"title": ..., "description": ..., "brand": ...}, ...}   optional
    NAME.index.json    {"item": ["<a_12>", "<b_7>", ...], ...}   see tokenization.PublishedIds

Sources: github.com/RUCAIBox/LC-Rec; github.com/HonghuiBao2000/LETTER (folder `data`).
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from jaxrec.data.dataset import write_dataset
from jaxrec.data.id_sequences import bare_items, only_name, order_log, read_item_objects
from jaxrec.data.tables import fingerprint_files, json_object

INTER = ".inter.json"
ITEM = ".item.json"


@dataclasses.dataclass(frozen=True)
class LcRecFiles:
    """A folder with NAME.inter.json and perhaps NAME.item.json. Ids are kept; time is an order.

    With NAME.item.json the catalogue is all of its items, in its order; without, the items of the
    log, by number.
    """

    path: str
    """The folder."""
    name: str = ""
    """NAME of the files, for example `Instruments`; may be empty where there is only one."""
    source: str = ""
    """Where the files come from, for dataset.json."""
    licence: str = "unknown"
    """Terms of use, for dataset.json."""

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes the canonical dataset folder.

        Raises:
            DataError: a file is missing or malformed, or the log names an item that
                NAME.item.json lacks.
        """
        inter, item = self._files()
        log = order_log(json_object(inter).items(), inter)
        has_items = item.is_file()
        names = f"{inter.name} and {item.name}" if has_items else inter.name
        write_dataset(
            folder,
            log,
            read_item_objects(item) if has_items else bare_items(log),
            name=inter.name.removesuffix(INTER),
            source=self.source or f"LC-Rec's {names}",
            licence=self.licence,
            time_unit="order",
        )

    def fingerprint(self) -> dict[str, Any]:
        """Sizes and SHA-256 of the files that are read."""
        inter, item = self._files()
        return fingerprint_files(inter, item, optional=(item.name,))

    def _files(self) -> tuple[Path, Path]:
        folder = Path(self.path)
        name = self.name or only_name(folder, INTER, "name")
        return folder / f"{name}{INTER}", folder / f"{name}{ITEM}"
