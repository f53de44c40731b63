"""JDsearch: what a shop listed for a query, what was done with it, and what the user did before.

J. Liu et al., "JDsearch: A Personalized Product Search Dataset with Real Queries and Full
Interactions", SIGIR 2023 (https://github.com/rucliujn/JDsearch). A folder has two tables with tabs:

    release_data.txt    (user_behavior_data*.txt) a line a user: query, candidate_wid_list,
                        candidate_label_list, history_qry_list, history_wid_list,
                        history_type_list, history_time_list
    product_data.txt    (product_meta_data*.txt) optional: wid, name, brand_id, brand_name,
                        cate_id_1, cate_name_1, ..., cate_name_4, shop_id

Entries of a list are joined by `_`, words of a text (numbers, as all is anonymised) by the control
character 0x18. Labels are 0.0 (nothing), 1.0 (click), 2.0 (cart) and 3.0 (order).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxrec.data.dataset import Frame, write_dataset
from jaxrec.data.errors import DataError, reading
from jaxrec.data.page_rules import PageRule
from jaxrec.data.tables import (
    batched,
    fingerprint_files,
    match_items,
    need_file,
    scan_table,
    spilled,
    text_lines,
)

GRADES = ("exposed", "click", "follow", "cart", "order")
LABELS = {0.0: "exposed", 1.0: "click", 2.0: "cart", 3.0: "order"}
TYPES = {"CLICK": "click", "FLW": "follow", "CART": "cart", "ORD": "order"}
BEHAVIOR_FILES = ("release_data*.txt", "user_behavior_data*.txt")
PRODUCT_FILES = ("product_data*.txt", "product_meta_data*.txt")
_COLUMNS = (
    *("query", "candidate_wid_list", "candidate_label_list"),
    *("history_qry_list", "history_wid_list", "history_type_list", "history_time_list"),
)
_PRODUCT = (
    *("wid", "name", "brand_id", "brand_name"),
    *(f"cate_{kind}_{level}" for level in range(1, 5) for kind in ("id", "name")),
    "shop_id",
)
_ROW = ("user", "item", "timestamp", "event", "page", "position", "value", "query")
_WORDS = "\x18"
_LATEST = 2**53


@dataclasses.dataclass(frozen=True)
class JdSearch:
    """One page a line: the candidates of its query. The history's events have no page.

    Lines name no user: a user is the number of the line, from 1. The log has gaps between events
    and no clock, so each user's time starts at 0 and adds them up, and dataset.json says that only
    the order counts: no two users' times compare. `value` is the label as it is given, and empty
    in a history. Following a shop (FLW) is in histories only; it is graded between click and cart.
    """

    path: str
    """The folder, or the table of behaviour."""
    name: str = "jdsearch"
    """Name of the data set."""

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes the canonical dataset folder.

        Raises:
            DataError: a file is missing or malformed.
        """
        import polars as pl

        file = self._behavior()
        schema: dict[str, Any] = dict.fromkeys(_ROW, pl.String)
        schema |= {"timestamp": pl.Int64, "position": pl.Int64, "value": pl.Float64}
        with spilled(batched(_rows(file), _ROW), schema) as log:
            write_dataset(
                folder,
                log,
                self._items(log),
                name=self.name,
                source=f"JDsearch: {file.name}; times are sums of gaps from 0 on, user by user",
                licence="CC BY-NC-SA 4.0",
                time_unit="order",
                history_events=GRADES[1:],
                grades=GRADES,
                page_rule=PageRule("request", column="line").describe()
                + " (the candidates of a query)",
            )

    def fingerprint(self) -> dict[str, Any]:
        """Sizes and SHA-256 of the files that are read."""
        products = self._products()
        return fingerprint_files(self._behavior(), *([products] if products else []))

    def _behavior(self) -> Path:
        path = Path(self.path)
        if not path.is_dir():
            return need_file(path)
        if found := _first(path, BEHAVIOR_FILES):
            return need_file(found)
        raise DataError(
            f"{path} has no {' or '.join(BEHAVIOR_FILES)}. Name the folder of JDsearch."
        )

    def _products(self) -> Path | None:
        return _first(self._behavior().parent, PRODUCT_FILES)

    def _items(self, log: Frame) -> Frame:
        """Names, brands, categories and shops of the products in the log, where they are known."""
        import polars as pl

        path = self._products()
        if path is None:
            return match_items(pl.DataFrame(schema={"item": pl.String}), log)
        with reading(path):
            frame = scan_table(path, header=False, quote=None)
            names = frame.collect_schema().names()
            if len(names) != len(_PRODUCT):
                raise DataError(
                    f"{path} has {len(names)} columns, and must have {len(_PRODUCT)}: "
                    f"{', '.join(_PRODUCT)}, with tabs between them."
                )
            levels = [_words(f"cate_name_{level}") for level in range(1, 5)]
            table = (
                frame.rename(dict(zip(names, _PRODUCT)))
                .filter(pl.col("wid") != "wid")
                .select(
                    pl.col("wid").alias("item"),
                    _words("name").alias("title"),
                    _words("brand_name").alias("brand"),
                    pl.concat_str(levels, separator=" > ", ignore_nulls=True).alias("categories"),
                    "shop_id",
                )
                .join(log.select("item").unique(), on="item", how="semi")
                .collect(engine="streaming")
            )
        if doubled := table.filter(pl.col("item").is_duplicated())["item"].head(1).to_list():
            raise DataError(f"{path}: product {doubled[0]!r} has two rows. Keep one.")
        return match_items(table, log)


def _rows(file: Path) -> Iterator[tuple[Any, ...]]:
    """The events of each line: its history, then its page."""
    user = 0
    for number, line in text_lines(file):
        cells = line.split("\t")
        if not line.strip() or (number == 1 and cells[0] == _COLUMNS[0]):
            continue
        where = f"{file}, line {number}"
        if len(cells) != len(_COLUMNS):
            raise DataError(
                f"{where} has {len(cells)} cells, and must have {len(_COLUMNS)}: "
                f"{', '.join(_COLUMNS)}, with tabs between them."
            )
        user += 1
        shown, labels = _split(cells[1]), _split(cells[2])
        queries, items, types, gaps = map(_split, cells[3:])
        if len(labels) != len(shown) or not len(queries) == len(items) == len(types):
            raise DataError(
                f"{where}: lists that belong together have different lengths: {len(shown)} "
                f"candidates and {len(labels)} labels; {len(queries)} queries, {len(items)} "
                f"products and {len(types)} types of the history."
            )
        times = _times(gaps, len(items), where)
        for query, item, kind, time in zip(queries, items, types, times):
            yield str(user), item, time, _known(TYPES, kind, where), None, None, None, _text(query)
        for place, (item, label) in enumerate(zip(shown, labels)):
            event = _known(LABELS, _number(label, where), where)
            graded = (event, f"{user}:{user}", place, float(label))
            yield str(user), item, times[-1], *graded, _text(cells[0])


def _times(gaps: list[str], events: int, where: str) -> list[int]:
    """The time of each event of a history and, last, of the page."""
    if len(gaps) != events + 1:
        raise DataError(
            f"{where}: {len(gaps)} gaps of time for {events} events of the history and the query, "
            "which need one each."
        )
    times, time = [], 0
    for gap in gaps:
        if not (gap.isdecimal() and gap.isascii()) or len(gap) > 16:
            raise DataError(
                f"{where}: a gap of time is a whole number from 0 on, not {gap[:40]!r}."
            )
        time += int(gap)
        times.append(time)
    if time > _LATEST:
        raise DataError(f"{where}: the gaps of time add up to {time}, which is no time of a log.")
    return times


def _split(cell: str) -> list[str]:
    return cell.split("_") if cell else []


def _number(label: str, where: str) -> float:
    try:
        return float(label)
    except ValueError:
        raise DataError(f"{where}: label {label[:40]!r} is not a number.") from None


def _known(names: dict[Any, str], key: Any, where: str) -> str:
    if key not in names:
        raise DataError(f"{where}: {key!r} is none of {', '.join(map(str, names))}.")
    return names[key]


def _text(words: str) -> str | None:
    """The words of a query; None for what was done without one."""
    return None if words in ("", "-1") else words.replace(_WORDS, " ")


def _words(column: str) -> Any:
    import polars as pl

    return pl.col(column).str.replace_all(_WORDS, " ", literal=True)


def _first(folder: Path, patterns: tuple[str, ...]) -> Path | None:
    return next((file for each in patterns for file in sorted(folder.glob(each))), None)
