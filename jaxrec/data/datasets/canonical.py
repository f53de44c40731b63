"""A dataset folder that already has the canonical layout, as a source of a recipe."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

from jaxrec.data.dataset import INTERACTIONS, ITEMS, MANIFEST, read_dataset
from jaxrec.files import publish


@dataclasses.dataclass(frozen=True)
class CanonicalFolder:
    """A folder in the layout of `jaxrec.data.dataset`; it is checked, then copied."""

    path: str
    """The folder."""

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Copies the dataset folder.

        Raises:
            DataError: it is not a dataset folder, or was changed since it was written.
        """
        dataset = read_dataset(self.path)

        def fill(temporary: Path) -> None:
            for name in (INTERACTIONS, ITEMS, MANIFEST):
                shutil.copyfile(Path(dataset.path) / name, temporary / name)

        publish(Path(folder), fill)

    def fingerprint(self) -> dict[str, Any]:
        """What the content is known by: the checksums of its manifest.

        Raises:
            DataError: it is not a dataset folder.
        """
        return dict(read_dataset(self.path, verify=False).manifest["sha256"])
