"""MIND: the impressions of Microsoft News, and which of the shown news were clicked.

F. Wu et al., "MIND: A Large-scale Dataset for News Recommendation", ACL 2020. A part of it
(MINDsmall_train, MINDlarge_dev, ...) is a folder with two tables without header:

    behaviors.tsv   impression id, user, 11/12/2019 2:14:46 PM, history `N1 N2`, shown `N3-1 N4-0`
    news.tsv        id, category, subcategory, title, abstract, url, entities of title and abstract
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from jaxrec.data.dataset import Frame, write_dataset
from jaxrec.data.errors import DataError, reading
from jaxrec.data.page_rules import PageRule, request_page, staged
from jaxrec.data.tables import (
    fingerprint_files,
    match_items,
    need_file,
    scan_table,
    to_seconds,
)

BEHAVIORS = "behaviors.tsv"
NEWS = "news.tsv"
GRADES = ("exposed", "click")
_BEHAVIOR_COLUMNS = ("impression", "user", "time", "history", "shown")
_NEWS_COLUMNS = (
    "item",
    "category",
    "subcategory",
    "title",
    "abstract",
    "url",
    "title_entities",
    "abstract_entities",
)
_TIME = "%m/%d/%Y %I:%M:%S %p"


@dataclasses.dataclass(frozen=True)
class Mind:
    """Pages are impressions; `value` is 1 for a click. Earlier clicks become events too.

    The column `history` has no times, and is the same in all of a user's impressions: what was
    clicked before the log begins. Those clicks are put one second apart, the last of them a second
    before the user's first impression; dataset.json says so.
    """

    path: str
    """A folder with behaviors.tsv and news.tsv, or a folder of such folders (train and dev)."""
    history: bool = True
    """Make events of the column `history`."""
    name: str = "mind"
    """Name of the data set."""
    licence: str = "unknown"
    """Terms of use, for dataset.json."""

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes the canonical dataset folder.

        Raises:
            DataError: a file is missing or malformed, or is of the test part, which has no clicks.
        """
        import polars as pl

        parts = self._parts()
        source = "MIND: " + ", ".join(part.resolve().name for part in parts)
        if self.history:
            source += "; clicks of the column history have no times: they are one second apart, "
            source += "before the user's first impression"
        frames = [self._behaviors(part, prefix=len(parts) > 1) for part in parts]
        with staged(pl.concat(frames), self.path) as impressions:
            logs = [self._exposures(impressions)]
            if self.history:
                logs.insert(0, _earlier(impressions))
            with staged(pl.concat(logs, how="diagonal"), self.path) as log:
                write_dataset(
                    folder,
                    log,
                    match_items(_news(parts), log),
                    name=self.name,
                    source=source,
                    licence=self.licence,
                    history_events=GRADES[1:],
                    grades=GRADES,
                    page_rule=PageRule("request", column="impression").describe(),
                )

    def fingerprint(self) -> dict[str, Any]:
        """Sizes and SHA-256 of the files that are read."""
        parts = self._parts()
        if len(parts) == 1:
            return fingerprint_files(parts[0] / BEHAVIORS, parts[0] / NEWS)
        return {
            f"{part.name}/{name}": known
            for part in parts
            for name, known in fingerprint_files(part / BEHAVIORS, part / NEWS).items()
        }

    def _parts(self) -> list[Path]:
        path = Path(self.path)
        if (path / BEHAVIORS).is_file():
            return [path]
        parts = sorted(file.parent for file in path.glob(f"*/{BEHAVIORS}"))
        if not parts:
            raise DataError(f"neither {path} nor a folder in it has {BEHAVIORS}. Check the path.")
        return parts

    def _behaviors(self, part: Path, *, prefix: bool) -> Frame:
        """One row an impression, lazily, lists split and times read."""
        import polars as pl

        path = part / BEHAVIORS
        with reading(path):
            frame = scan_table(path, header=False, quote=None)
            names = frame.collect_schema().names()
        if len(names) != len(_BEHAVIOR_COLUMNS):
            raise DataError(
                f"{path} has {len(names)} columns, and must have {len(_BEHAVIOR_COLUMNS)}: "
                f"{', '.join(_BEHAVIOR_COLUMNS)}, with tabs between them and no header."
            )
        frame = frame.rename(dict(zip(names, _BEHAVIOR_COLUMNS)))
        broken = frame.filter(
            ~pl.col("shown").fill_null("").str.contains(r"^\S+-[01]( \S+-[01])* ?$")
        )
        with reading(path):
            wrong = broken.select("impression", "shown").head(1).collect(engine="streaming").rows()
        if wrong:
            raise DataError(
                f"{path}: impression {wrong[0][0]!r} is {str(wrong[0][1])[:60]!r}, and must be "
                "news with -1 (clicked) or -0 behind each. The test part of MIND has no clicks: "
                "use train and dev."
            )
        # Impressions of every part are counted from 1.
        name = pl.lit(f"{part.name} " if prefix else "")
        return frame.select(
            pl.concat_str(name, "impression").alias("impression"),
            "user",
            to_seconds("time", _TIME).alias("timestamp"),
            pl.col("history").fill_null("").str.extract_all(r"\S+"),
            pl.col("shown").str.extract_all(r"\S+"),
        )

    def _exposures(self, impressions: Frame) -> Frame:
        """One row a piece of news that was shown."""
        import polars as pl

        places = pl.int_ranges(pl.col("shown").list.len(), dtype=pl.Int64)
        shown = impressions.select(
            "user",
            "timestamp",
            request_page("user", "impression").alias("page"),
            "shown",
            places.alias("position"),
        ).explode("shown", "position")
        clicked = pl.col("shown").str.ends_with("-1")
        return shown.select(
            "user",
            pl.col("shown").str.head(-2).alias("item"),
            "timestamp",
            pl.when(clicked).then(pl.lit("click")).otherwise(pl.lit("exposed")).alias("event"),
            "page",
            "position",
            clicked.cast(pl.Float64).alias("value"),
        )


def _earlier(impressions: Frame) -> Frame:
    """The clicks of the column history, of each user once, before its first impression."""
    import polars as pl

    first = impressions.group_by("user").agg(
        pl.col("timestamp").min(), pl.col("history").sort_by("timestamp").first()
    )
    count = pl.col("history").list.len().cast(pl.Int64)
    back = pl.int_ranges(count, 0, step=-1, dtype=pl.Int64).alias("back")
    events = first.filter(count > 0).sort("timestamp", "user")
    return (
        events.with_columns(back)
        .explode("history", "back")
        .select(
            "user",
            pl.col("history").alias("item"),
            pl.col("timestamp") - pl.col("back"),
            pl.lit("click").alias("event"),
        )
    )


def _news(parts: list[Path]) -> Frame:
    """The news of all parts, each once."""
    import polars as pl

    tables = []
    for part in parts:
        path = need_file(part / NEWS)
        with reading(path):
            frame = scan_table(path, header=False, quote=None).collect()
        if frame.width != len(_NEWS_COLUMNS):
            raise DataError(
                f"{path} has {frame.width} columns, and must have {len(_NEWS_COLUMNS)}: "
                f"{', '.join(_NEWS_COLUMNS)}, with tabs between them and no header."
            )
        frame = frame.rename(dict(zip(frame.columns, _NEWS_COLUMNS)))
        if doubled := frame.filter(pl.col("item").is_duplicated())["item"].head(1).to_list():
            raise DataError(f"{path}: news {doubled[0]!r} has two rows. Keep one.")
        entities = [
            _entities(path, item, *each)
            for item, *each in frame.select("item", *_NEWS_COLUMNS[-2:]).rows()
        ]
        frame = frame.drop(_NEWS_COLUMNS[-2:]).with_columns(
            pl.Series("entities", entities, dtype=pl.String)
        )
        tables.append(frame)
    return pl.concat(tables).unique("item", keep="first", maintain_order=True)


def _entities(path: Path, item: str, *cells: str | None) -> str:
    """The names of the entities of a title and an abstract, each once."""
    names: dict[str, None] = {}
    for cell in cells:
        try:
            names.update(dict.fromkeys(str(each["Label"]) for each in json.loads(cell or "[]")))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise DataError(
                f"{path}: entities of news {item!r} are not a JSON list of objects with a Label: "
                f"{str(cell)[:60]!r}."
            ) from None
    return ", ".join(names)
