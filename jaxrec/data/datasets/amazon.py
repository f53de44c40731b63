"""Amazon's product reviews as a log, in the forms in which they were published.

    2014, 2018   one JSON object (or Python dictionary) a line: reviewerID, asin, overall,
                 unixReviewTime in seconds, ...
    2023         one JSON object a line: user_id, parent_asin, asin, rating, timestamp in
                 milliseconds, ...; the item is parent_asin, which joins colours and sizes
    ratings      the same as a table: 2023 with the columns user_id, parent_asin, rating, timestamp;
                 2014 without header as user, item, rating, time; 2018 as item, user, rating, time

Sources: jmcauley.ucsd.edu/data/amazon (2014), nijianmo.github.io/amazon (2018),
amazon-reviews-2023.github.io (2023). Metadata: see `jaxrec.data.amazon_items`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

from jaxrec.data.amazon_items import read_items
from jaxrec.data.amazon_log import KEYS, RELEASES, UNITS, open_reviews
from jaxrec.data.dataset import Frame, write_dataset
from jaxrec.data.errors import DataError, reading
from jaxrec.data.tables import fingerprint_files, need_file, to_seconds


@dataclasses.dataclass(frozen=True)
class AmazonReviews:
    """A file of reviews or ratings, and perhaps one of metadata; every review is one event.

    The rating is kept as `value`. Reviews stay in the order of the file, further reviews of one
    item by one user included. The catalogue is the items of the log; metadata may lack some.

    Raises:
        DataError: a release that does not exist.
    """

    path: str
    """Reviews: JSON lines (.json, .jsonl), or ratings (.csv); .gz too."""
    metadata: str = ""
    """Item metadata of the same release (meta_*.json.gz, meta_*.jsonl.gz); may be left out."""
    release: str = "auto"
    """`2014`, `2018` or `2023`; `auto` looks at the first lines."""
    min_rating: float = 0.0
    """Reviews with fewer stars are left out; 0 keeps all, those without a rating included."""
    item: str = ""
    """Key of the item in both files; by default `asin`, and `parent_asin` in 2023."""
    name: str = ""
    """Name of the data set; the file's by default."""
    licence: str = "unknown"
    """Terms of use, for dataset.json."""

    def __post_init__(self) -> None:
        if self.release not in ("auto", *RELEASES):
            raise DataError(
                f"release {self.release!r} is unknown: use auto, {', '.join(RELEASES)}."
            )

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes the canonical dataset folder.

        Raises:
            DataError: a file is missing or malformed, or its form is not that of the release.
        """
        path = need_file(self.path)
        if self.metadata:
            need_file(self.metadata)
        with (
            open_reviews(path, self.release, self.item) as (release, table),
            _typed(table, UNITS[release], self.min_rating, path) as log,
        ):
            items, described = self._items(log, release)
            rule = f", ratings of {self.min_rating:g} and more" if self.min_rating else ""
            write_dataset(
                folder,
                log,
                items,
                name=self.name or path.name.split(".")[0],
                source=f"Amazon reviews in the form of {release}: {path.name}{rule}{described}",
                licence=self.licence,
            )

    def fingerprint(self) -> dict[str, Any]:
        """Sizes and SHA-256 of the files that are read."""
        files = {"reviews": fingerprint_files(Path(self.path))}
        if self.metadata:
            files["metadata"] = fingerprint_files(Path(self.metadata))
        return files

    def _items(self, log: Frame, release: str) -> tuple[Frame, str]:
        """The items of the log in the order of their first event, and what is known of them."""
        ids = log.select("item").unique(maintain_order=True).drop_nulls().collect()
        if not self.metadata:
            return ids, ""
        found = read_items(self.metadata, ids["item"].to_list(), self.item or KEYS[release].item)
        return found.frame, (
            f"; {Path(self.metadata).name} describes {found.found} of {ids.height} items "
            f"({found.repeated} repeated lines left out)"
        )


@contextlib.contextmanager
def _typed(table: Frame, unit: str, min_rating: float, path: Path) -> Generator[Frame]:
    """The log with whole seconds and ratings as numbers, parsed once and kept as Parquet."""
    import polars as pl

    log = table.select(
        "user",
        "item",
        timestamp=to_seconds("timestamp", unit),
        value=pl.col("value").cast(pl.Float64),
    )
    if min_rating:
        log = log.filter(pl.col("value") >= min_rating)
    with tempfile.TemporaryDirectory(prefix="jaxrec-") as folder:
        file = Path(folder) / "log.parquet"
        with reading(path):
            log.sink_parquet(file)
        yield pl.scan_parquet(file)
