"""Ragged pages: what each user was shown together, and how strongly each item was answered.

Page `p` owns the flat positions `offsets[p] .. offsets[p+1]-1`. Pages stand beside `Histories`:
they name the same users and catalogue rows, and each knows the part of its user's history that is
strictly older than itself. Page-wise training, rewards and alignment read them.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, Int64

from jaxrec.data.dataset import DatasetFolder
from jaxrec.data.errors import DataError
from jaxrec.data.histories import Histories, read_column
from jaxrec.data.page_rows import (
    find_rows,
    page_table,
    read_exposures,
    strongest_rows,
)
from jaxrec.files import file_hash, publish, read_json, write_json

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_KINDS = {
    "offsets": "<i8",
    "item": "<i4",
    "grade": "<i4",
    "position": "<i4",
    "value": "<f4",
    "user": "<i4",
    "time": "<i8",
    "history_end": "<i8",
}
ARRAYS = tuple(_KINDS)
UNDECLARED = "pages are the values of the column page"


@dataclasses.dataclass(frozen=True, eq=False)
class Pages:
    """Every page, in the order of time.

    Raises:
        DataError: arrays whose lengths do not fit together, or an empty page.
    """

    offsets: Int64[np.ndarray, " boundaries"]
    """First flat position of each page, then the number of exposures: p + 1 numbers."""
    item: Int32[np.ndarray, " x"]
    """Catalogue row of each exposure; a page shows no item twice."""
    grade: Int32[np.ndarray, " x"]
    """Index into `grades` of each exposure."""
    position: Int32[np.ndarray, " x"]
    """Place on the page as the log has it, rising; gaps are left where an exposure was dropped."""
    value: Float32[np.ndarray, " x"]
    """Value of each exposure, NaN where the log has none."""
    user: Int32[np.ndarray, " p"]
    """Index into the users of the histories, -1 for a user without history."""
    time: Int64[np.ndarray, " p"]
    """Time of the page's first exposure."""
    history_end: Int64[np.ndarray, " p"]
    """Flat position in the histories: the user's events before it are older than the page, those
    from it on are not. 0 for a user without history."""
    grades: tuple[str, ...]
    """Kinds of feedback, weakest first; the weakest is none."""
    rule: str
    """The sentence that says what a page is."""
    unknown_items: int = 0
    """Exposures left out because the histories have no such item."""
    empty_pages: int = 0
    """Pages of which nothing was left."""
    repeats: int = 0
    """Exposures joined to a stronger, or earlier, one of the same item on the same page."""

    def __post_init__(self) -> None:
        exposures, pages = len(self.item), len(self.time)
        if not exposures == len(self.grade) == len(self.position) == len(self.value):
            raise DataError(
                f"{exposures} items, {len(self.grade)} grades, {len(self.position)} positions and "
                f"{len(self.value)} values are no exposures: each has one of each."
            )
        if not pages == len(self.user) == len(self.history_end):
            raise DataError(
                f"{pages} times, {len(self.user)} users and {len(self.history_end)} ends of "
                "history are no pages: each has one of each."
            )
        offsets = self.offsets
        if (
            len(offsets) != pages + 1
            or offsets[0] != 0
            or offsets[-1] != exposures
            or bool((np.diff(offsets) <= 0).any())
        ):
            raise DataError(
                f"offsets of {pages} pages and {exposures} exposures must be {pages + 1} numbers "
                f"that rise from 0 to {exposures}; no page is empty."
            )

    @property
    def num_pages(self) -> int:
        """Number of pages."""
        return len(self.time)

    @property
    def num_exposures(self) -> int:
        """Number of exposures."""
        return len(self.item)

    @functools.cached_property
    def lengths(self) -> Int64[np.ndarray, " p"]:
        """Exposures of each page."""
        return np.diff(self.offsets)

    @functools.cached_property
    def strongest(self) -> Int32[np.ndarray, " p"]:
        """The strongest grade of each page."""
        return np.maximum.reduceat(self.grade, self.offsets[:-1]).astype(np.int32)

    def page(self, page: int) -> slice:
        """The flat positions of one page's exposures."""
        return slice(int(self.offsets[page]), int(self.offsets[page + 1]))

    def history(self, page: int, histories: Histories) -> slice:
        """The flat positions, in the histories, of what the page's user had done before it."""
        user, end = int(self.user[page]), int(self.history_end[page])
        return slice(int(histories.offsets[user]) if user >= 0 else end, end)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes one .npy file a field and a manifest with checksums; whole or not at all."""

        def fill(temporary: Path) -> None:
            for name in ARRAYS:
                np.save(temporary / f"{name}.npy", getattr(self, name), allow_pickle=False)
            write_json(
                temporary / MANIFEST,
                {
                    "format_version": FORMAT_VERSION,
                    "grades": list(self.grades),
                    "rule": self.rule,
                    "counts": {
                        "pages": self.num_pages,
                        "exposures": self.num_exposures,
                        "unknown_items": self.unknown_items,
                        "empty_pages": self.empty_pages,
                        "repeats": self.repeats,
                    },
                    "sha256": {name: file_hash(temporary / f"{name}.npy") for name in ARRAYS},
                },
            )

        publish(Path(folder), fill)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, verify: bool = True) -> Pages:
        """Maps saved pages into memory, read-only.

        Args:
            folder: what `save` wrote.
            verify: compare checksums.

        Raises:
            DataError: a file is missing or was changed.
        """
        path = Path(folder)
        manifest = _read_manifest(path)
        arrays: dict[str, Any] = {}
        for name in ARRAYS:
            file = path / f"{name}.npy"
            if not file.is_file() or (verify and file_hash(file) != manifest["sha256"].get(name)):
                raise DataError(
                    f"{file} is missing, or is not the file that {MANIFEST} describes. Prepare "
                    "the pages again."
                )
            arrays[name] = read_column(file, _KINDS[name])
        left_out = {
            name: manifest["counts"][name] for name in ("unknown_items", "empty_pages", "repeats")
        }
        return cls(**arrays, grades=tuple(manifest["grades"]), rule=manifest["rule"], **left_out)


def prepare_pages(dataset: DatasetFolder, histories: Histories) -> Pages:
    """Makes pages of the rows of a log that stand on one, for histories of the same log.

    Items that the histories lack (k-core) are left out and counted, and so are pages of which
    nothing is left. An item that a page shows twice is kept once, at its first place and with its
    strongest grade (the earliest of equals), whose value it has too. Rows without event have the
    weakest grade. Pages stand in the order of time, then of the log; exposures by their position,
    then by the order of the log.

    Args:
        dataset: the dataset folder.
        histories: made of it by `prepare`.

    Raises:
        DataError: a log without pages, events without declared grades, a page of two users, or
            nothing left.
    """
    import polars as pl

    rows, grades = read_exposures(dataset)
    shown = rows.height
    rows = rows.with_columns(
        find_rows(rows["item"], histories.items).alias("item"),
        find_rows(rows["user"], histories.users).alias("owner"),
    )
    table = page_table(rows, dataset)
    rank = np.empty(table.height, np.int32)
    rank[table["page"].to_numpy()] = np.arange(table.height, dtype=np.int32)
    rows = rows.drop("user", "timestamp", "owner").filter(rows["item"] >= 0)
    rows = rows.with_columns(pl.Series("page", rank[rows["page"].to_numpy()]))
    unknown_items, known = shown - rows.height, rows.height
    if not known:
        raise DataError(
            f"not one of {shown} exposures shows an item of the histories. Make the histories of "
            "the same dataset folder, and with lower limits (min_item)."
        )
    rows = strongest_rows(rows)
    left, sizes = np.unique(rows["page"].to_numpy(), return_counts=True)
    user, time = table["owner"].to_numpy()[left], table["time"].to_numpy()[left]
    return Pages(
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)]),
        item=rows["item"].to_numpy(),
        grade=rows["grade"].to_numpy(),
        position=rows["position"].to_numpy().astype(np.int32),
        value=rows["value"].fill_null(np.nan).cast(pl.Float32).to_numpy(),
        user=user,
        time=time,
        history_end=history_ends(histories, user, time),
        grades=grades,
        rule=dataset.manifest.get("page_rule") or UNDECLARED,
        unknown_items=unknown_items,
        empty_pages=table.height - len(left),
        repeats=known - rows.height,
    )


def history_ends(
    histories: Histories, user: Int32[np.ndarray, " p"], time: Int64[np.ndarray, " p"]
) -> Int64[np.ndarray, " p"]:
    """The flat position up to which each user's events are older than a time.

    One binary search for all, each inside its user's history.

    Args:
        histories: whose events are searched.
        user: an index of a user, or -1, for which the answer is 0.
        time: a time for each.
    """
    known = user >= 0
    owner = np.where(known, user, 0)
    low = np.where(known, histories.offsets[owner], 0)
    high = np.where(known, histories.offsets[owner + 1], 0)
    while (searching := np.flatnonzero(low < high)).size:
        middle = (low[searching] + high[searching]) // 2
        older = histories.time[middle] < time[searching]
        low[searching[older]] = middle[older] + 1
        high[searching[~older]] = middle[~older]
    return low.astype(np.int64)


def check_pages(pages: Pages, histories: Histories) -> None:
    """Checks that pages belong to histories, and that no page is part of its own history.

    Raises:
        DataError: an unknown item, grade or user, or an end of history that is not where the
            user's events cease to be older than the page.
    """
    for name, values, least, limit in (
        ("item", pages.item, 0, histories.num_items),
        ("grade", pages.grade, 0, len(pages.grades)),
        ("user", pages.user, -1, histories.num_users),
    ):
        if len(values) and (values.min() < least or values.max() >= limit):
            raise DataError(
                f"pages name {name} {values.min()} or {values.max()}, but there are {limit}, "
                "numbered from 0. Prepare the pages again, with these histories."
            )
    wrong = np.flatnonzero(pages.history_end != history_ends(histories, pages.user, pages.time))
    if len(wrong):
        raise DataError(
            f"the history of {len(wrong)} page(s), first of page {wrong[0]}, does not end where "
            f"it begins. Prepare the pages again, with these histories."
        )


def page_summary(pages: Pages) -> dict[str, Any]:
    """Numbers that describe pages.

    Returns:
        Counts of pages, users (that have a history), exposures, of what was left out, and of pages
        whose user has no history; mean, median and max size; `graded`: exposures of each grade;
        `strongest`: share of pages whose strongest grade it is; `positives_per_page`: mean number
        of exposures above the weakest grade; `rule`: what a page is.
    """
    kinds = len(pages.grades)
    graded = np.bincount(pages.grade, minlength=kinds)
    strongest = np.bincount(pages.strongest, minlength=kinds) / max(pages.num_pages, 1)
    known = pages.user >= 0
    return {
        "pages": pages.num_pages,
        "users": len(np.unique(pages.user[known])),
        "exposures": pages.num_exposures,
        "unknown_items": pages.unknown_items,
        "empty_pages": pages.empty_pages,
        "repeats": pages.repeats,
        "pages_of_unknown_users": int((~known).sum()),
        "mean_size": float(pages.lengths.mean()),
        "median_size": float(np.median(pages.lengths)),
        "max_size": int(pages.lengths.max()),
        "graded": dict(zip(pages.grades, graded.tolist())),
        "strongest": dict(zip(pages.grades, strongest.tolist())),
        "positives_per_page": float(graded[1:].sum() / pages.num_pages),
        "rule": pages.rule,
    }


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = read_json(path / MANIFEST)
    except ValueError as error:
        raise DataError(str(error)) from None
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        version = manifest.get("format_version") if isinstance(manifest, dict) else None
        raise DataError(
            f"{path / MANIFEST} has format version {str(version)[:20]}; this jaxrec reads version "
            f"{FORMAT_VERSION}. Prepare the pages again."
        )
    counts, grades = manifest.get("counts"), manifest.get("grades")
    if (
        not isinstance(manifest.get("sha256"), dict)
        or not isinstance(manifest.get("rule"), str)
        or not isinstance(grades, list)
        or not all(isinstance(grade, str) for grade in grades)
        or not isinstance(counts, dict)
        or not all(
            type(counts.get(name)) is int for name in ("unknown_items", "empty_pages", "repeats")
        )
    ):
        raise DataError(f"{path / MANIFEST} is damaged. Prepare the pages again.")
    return manifest
