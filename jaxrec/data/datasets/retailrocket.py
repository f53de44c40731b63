"""RetailRocket: 4.5 months of a web shop's views, carts and purchases. There are no pages.

The folder of the public data set ("Retailrocket recommender system dataset", Kaggle) has

    events.csv               timestamp (ms), visitorid, event, itemid, transactionid
    item_properties*.csv     optional: timestamp, itemid, property, value

A preprocessed form is read too:

    train_events.csv         user, item, behavior, timestamp (s)
    test_buy.csv             optional: user, item; each user's held-out purchase, without a time
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from jaxrec.data.dataset import Frame, write_dataset
from jaxrec.data.errors import DataError, reading
from jaxrec.data.page_rules import staged
from jaxrec.data.tables import (
    fingerprint_files,
    match_items,
    need_columns,
    need_file,
    scan_table,
    to_seconds,
)

GRADES = ("view", "cart", "buy")
EVENTS = "events.csv"
PROPERTIES = "item_properties*.csv"
TRAIN = "train_events.csv"
TEST = "test_buy.csv"
_KINDS = {"view": "view", "addtocart": "cart", "transaction": "buy"}


@dataclasses.dataclass(frozen=True)
class RetailRocket:
    """A ladder of behaviour, view < cart < buy, as the events of one history.

    Of the items' properties the category is kept, as it was first recorded: later values know the
    future. In the preprocessed form the held-out purchases have no time; they come a second after
    the user's last event, and dataset.json says so.
    """

    path: str
    """The folder."""
    test: bool = True
    """Make the held-out purchases of test_buy.csv the last events of their users."""
    name: str = "retailrocket"
    """Name of the data set."""
    licence: str = "unknown"
    """Terms of use, for dataset.json."""

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes the canonical dataset folder.

        Raises:
            DataError: a file or column is missing or malformed.
        """
        file = self._log()
        source = f"RetailRocket: {file.name}"
        if self._test_file() is not None:
            source += f" and {TEST}, whose purchases come a second after their user's last event"
        with staged(self._events(file), file) as log:
            write_dataset(
                folder,
                self._with_test(log),
                match_items(self._categories(), self._with_test(log)),
                name=self.name,
                source=source,
                licence=self.licence,
                grades=GRADES,
            )

    def fingerprint(self) -> dict[str, Any]:
        """Sizes and SHA-256 of the files that are read."""
        test = self._test_file()
        return fingerprint_files(self._log(), *self._properties(), *([test] if test else []))

    def _log(self) -> Path:
        folder = Path(self.path)
        for name in (EVENTS, TRAIN):
            if (folder / name).is_file():
                return need_file(folder / name)
        raise DataError(f"{folder} has neither {EVENTS} nor {TRAIN}. Name the folder of the files.")

    def _test_file(self) -> Path | None:
        path = Path(self.path) / TEST
        return path if self.test and self._log().name == TRAIN and path.is_file() else None

    def _properties(self) -> list[Path]:
        return sorted(Path(self.path).glob(PROPERTIES))

    def _events(self, file: Path) -> Frame:
        """The log in canonical columns, lazily."""
        import polars as pl

        original = file.name == EVENTS
        names = ("visitorid", "itemid", "event") if original else ("user", "item", "behavior")
        kinds = _KINDS if original else {name: name for name in GRADES}
        with reading(file):
            frame = scan_table(file)
            columns = frame.collect_schema().names()
            need_columns(columns, (*names, "timestamp"), file)
            found = frame.select(pl.col(names[2]).unique()).collect(engine="streaming")
        if unknown := sorted({str(each) for each in found.to_series()} - set(kinds)):
            raise DataError(f"{file}: event {unknown[0]!r} is none of {', '.join(kinds)}.")
        columns = [
            pl.col(names[0]).alias("user"),
            pl.col(names[1]).alias("item"),
            to_seconds("timestamp", "ms" if original else "s").alias("timestamp"),
            pl.col(names[2]).replace_strict(kinds, return_dtype=pl.String).alias("event"),
        ]
        if original and "transactionid" in frame.collect_schema().names():
            columns.append(pl.col("transactionid").alias("transaction"))
        return frame.select(columns)

    def _with_test(self, log: Frame) -> Frame:
        """The log with the held-out purchases behind it."""
        import polars as pl

        path = self._test_file()
        if path is None:
            return log
        with reading(path):
            bought = scan_table(path)
            need_columns(bought.collect_schema().names(), ("user", "item"), path)
            bought = bought.select("user", "item").collect()
        last = log.group_by("user").agg(pl.col("timestamp").max() + 1).collect(engine="streaming")
        bought = bought.join(last, on="user", how="left", maintain_order="left")
        if strangers := bought.filter(pl.col("timestamp").is_null())["user"].head(1).to_list():
            raise DataError(f"{path}: user {strangers[0]!r} has no event in {TRAIN}, so no time.")
        return pl.concat([log, bought.lazy().with_columns(event=pl.lit("buy"))])

    def _categories(self) -> Frame:
        """The first category of each item."""
        import polars as pl

        tables = []
        for path in self._properties():
            with reading(path):
                table = scan_table(path)
                names = ("timestamp", "itemid", "property", "value")
                need_columns(table.collect_schema().names(), names, path)
                tables.append(
                    table.filter(pl.col("property") == "categoryid")
                    .select(
                        pl.col("itemid").alias("item"),
                        pl.col("timestamp").cast(pl.Int64),
                        pl.col("value").alias("category"),
                    )
                    .collect(engine="streaming")
                )
        if not tables:
            return pl.DataFrame(schema={"item": pl.String})
        first = pl.concat(tables).sort("timestamp", maintain_order=True)
        return first.unique("item", keep="first", maintain_order=True).drop("timestamp")
