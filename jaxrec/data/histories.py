"""Ragged histories: the events of every user, oldest first, in flat arrays that can be mapped.

User `u` owns the flat positions `offsets[u] .. offsets[u+1]-1`. Nothing here copies a history:
splits and batches are made of positions.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, Shaped

from jaxrec.data.dataset import DataError, DatasetFolder
from jaxrec.data.grouping import (
    ONE_ACTION,
    k_core,
    number_log,
    order_events,
    parse_ties,
    renumber,
)
from jaxrec.files import file_hash, publish, read_array, read_json, write_json

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_KINDS = {
    "offsets": "<i8",
    "item": "<i4",
    "time": "<i8",
    "action": "<i4",
    "users": "U",
    "items": "U",
}
ARRAYS = tuple(_KINDS)


@dataclasses.dataclass(frozen=True, eq=False)
class Histories:
    """Every user's events, oldest first.

    Raises:
        DataError: arrays whose lengths do not fit together.
    """

    offsets: Int64[np.ndarray, " boundaries"]
    """First flat position of each user, then the number of events: u + 1 numbers."""
    item: Int32[np.ndarray, " e"]
    """Catalogue row of each event."""
    time: Int64[np.ndarray, " e"]
    """Time of each event in seconds, never decreasing inside a history."""
    action: Int32[np.ndarray, " e"]
    """Index into `actions` of each event."""
    users: Shaped[np.ndarray, " u"]
    """User ids (numpy text)."""
    items: Shaped[np.ndarray, " n"]
    """Item ids (numpy text); the index is the catalogue row."""
    actions: tuple[str, ...] = ONE_ACTION
    """Names of the kinds of events."""
    ties: str = "file"
    """The tie policy that ordered events of equal time."""
    time_unit: str = "s"
    """`s`, or `order` where the log has no clock and times are indices."""

    def __post_init__(self) -> None:
        offsets = self.offsets
        if not len(self.item) == len(self.time) == len(self.action):
            raise DataError(
                f"{len(self.item)} items, {len(self.time)} times and {len(self.action)} actions "
                "are no events: every event has one of each."
            )
        if (
            len(offsets) != len(self.users) + 1
            or offsets[0] != 0
            or offsets[-1] != len(self.item)
            or bool((np.diff(offsets) < 0).any())
        ):
            raise DataError(
                f"offsets of {len(self.users)} users and {len(self.item)} events must be "
                f"{len(self.users) + 1} numbers that rise from 0 to {len(self.item)}."
            )

    @property
    def num_users(self) -> int:
        """Number of users."""
        return len(self.users)

    @property
    def num_items(self) -> int:
        """Number of catalogue rows, items without events included."""
        return len(self.items)

    @property
    def num_events(self) -> int:
        """Number of events."""
        return len(self.item)

    @functools.cached_property
    def lengths(self) -> Int64[np.ndarray, " u"]:
        """Events of each user."""
        return np.diff(self.offsets)

    @functools.cached_property
    def time_origin(self) -> int:
        """Time of the earliest event: what batches count their seconds from."""
        return int(self.time.min()) if self.num_events else 0

    def history(self, user: int) -> slice:
        """The flat positions of one user's events."""
        return slice(int(self.offsets[user]), int(self.offsets[user + 1]))

    def user_of(self, positions: Int64[np.ndarray, " c"]) -> Int32[np.ndarray, " c"]:
        """The user who owns each flat position."""
        return (np.searchsorted(self.offsets, positions, side="right") - 1).astype(np.int32)

    def find_items(self, ids: Any) -> Int32[np.ndarray, " _"]:
        """Catalogue rows of item ids; -1 for an id that is not in the catalogue."""
        return _find(ids, self.items, self._item_order)

    def find_users(self, ids: Any) -> Int32[np.ndarray, " _"]:
        """Indices of user ids; -1 for an id that is not in the log."""
        return _find(ids, self.users, self._user_order)

    @functools.cached_property
    def _item_order(self) -> np.ndarray:
        return np.argsort(self.items, kind="stable")

    @functools.cached_property
    def _user_order(self) -> np.ndarray:
        return np.argsort(self.users, kind="stable")

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes one .npy file a field and a manifest with checksums; whole or not at all."""

        def fill(temporary: Path) -> None:
            for name in ARRAYS:
                np.save(temporary / f"{name}.npy", getattr(self, name), allow_pickle=False)
            write_json(
                temporary / MANIFEST,
                {
                    "format_version": FORMAT_VERSION,
                    "actions": list(self.actions),
                    "ties": self.ties,
                    "time_unit": self.time_unit,
                    "counts": {
                        "users": self.num_users,
                        "items": self.num_items,
                        "events": self.num_events,
                    },
                    "same_time_ties": same_time_ties(self),
                    "sha256": {name: file_hash(temporary / f"{name}.npy") for name in ARRAYS},
                },
            )

        publish(Path(folder), fill)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, verify: bool = True) -> Histories:
        """Maps saved histories into memory, read-only.

        Args:
            folder: what `save` wrote.
            verify: compare checksums and check that every item and action is known.

        Raises:
            DataError: a file is missing or was changed.
        """
        path = Path(folder)
        manifest = _read_manifest(path)
        arrays = {}
        for name in ARRAYS:
            file = path / f"{name}.npy"
            if not file.is_file() or (verify and file_hash(file) != manifest["sha256"].get(name)):
                raise DataError(
                    f"{file} is missing, or is not the file that {MANIFEST} describes. Prepare "
                    "the data again."
                )
            arrays[name] = read_column(file, _KINDS[name])
        histories = cls(
            **arrays,
            actions=tuple(manifest["actions"]),
            ties=manifest["ties"],
            time_unit=manifest["time_unit"],
        )
        if verify:
            check_rows(histories)
        return histories


def prepare(
    dataset: DatasetFolder,
    *,
    min_user: int = 0,
    min_item: int = 0,
    ties: str = "file",
    events: tuple[str, ...] | None = None,
) -> Histories:
    """Groups a log by user and orders every history by time.

    Users are numbered in the order of their first event in the log; items in the order of
    items.parquet. With `min_item=0` items without a single event stay in the catalogue.

    Args:
        dataset: the dataset folder.
        min_user: users with fewer events are dropped, 0 keeps all.
        min_item: items with fewer events are dropped, 0 keeps all. Both limits are applied until
            neither drops anything (k-core).
        ties: order of one user's events of equal time: `file` (the order of the log), `item` (the
            order of items.parquet, then of the log), `shuffle:SEED`.
        events: values of `event` that make up a history. By default what dataset.json declares,
            all where it declares nothing.

    Raises:
        DataError: an unknown tie policy, unknown events, or nothing left after filtering.
    """
    _check_limits(min_user, min_item)
    seed = parse_ties(ties)
    log = number_log(dataset, events)
    if not len(log.user):
        raise DataError("no event of the log belongs to a history. See history_events.")
    keep = k_core(log.user, log.item, min_user=min_user, min_item=min_item)
    if not keep.any():
        raise DataError(
            f"no event is left after min_user={min_user} and min_item={min_item}: no group of "
            "users and items is that dense. Lower the limits."
        )
    kept_users = np.ones(len(log.users), bool)
    kept_items = np.ones(len(log.items), bool)
    user, item, time, action = log.user, log.item, log.time, log.action
    if not keep.all():
        user, item, time, action = user[keep], item[keep], time[keep], action[keep]
        kept_users = np.bincount(user, minlength=len(log.users)) > 0
        user = renumber(kept_users)[user]
    if min_item:
        kept_items = np.bincount(item, minlength=len(log.items)) > 0
        item = renumber(kept_items)[item]
    order = order_events(user, time, item, ties=ties.partition(":")[0], seed=seed)
    offsets = np.zeros(int(kept_users.sum()) + 1, np.int64)
    np.cumsum(np.bincount(user, minlength=len(offsets) - 1), out=offsets[1:])
    return Histories(
        offsets=offsets,
        item=item[order],
        time=time[order],
        action=action[order] if len(log.actions) > 1 else action,
        users=log.users.filter(kept_users).to_numpy().astype(np.str_),
        items=log.items.filter(kept_items).to_numpy().astype(np.str_),
        actions=log.actions,
        ties=ties,
        time_unit=dataset.manifest["time_unit"],
    )


def same_time_ties(histories: Histories) -> dict[str, float]:
    """How far the tie policy, and not the data, says which event comes last.

    The last event of a history is what leave-one-out tests, so this belongs in every report.

    Returns:
        tied: share of users whose last event shares its time with another of theirs.
        changed_by_shuffle: share of users whose last event a random order of ties replaces, in
            expectation: 1 - 1/g for g events at the last time.
    """
    starts = histories.offsets[:-1][histories.lengths > 0]
    if not len(starts):
        return {"tied": 0.0, "changed_by_shuffle": 0.0}
    lengths = histories.lengths[histories.lengths > 0]
    at_end = histories.time == np.repeat(histories.time[starts + lengths - 1], lengths)
    group = np.add.reduceat(at_end, starts, dtype=np.int64)
    return {
        "tied": float((group > 1).mean()),
        "changed_by_shuffle": float((1.0 - 1.0 / group).mean()),
    }


def check_rows(histories: Histories) -> None:
    """Checks every event: known item, known action, times that do not fall inside a history.

    Raises:
        DataError: an event breaks one of them.
    """
    for name, values, limit in (
        ("item", histories.item, histories.num_items),
        ("action", histories.action, len(histories.actions)),
    ):
        if len(values) and (values.min() < 0 or values.max() >= limit):
            raise DataError(
                f"histories name {name} {values.min()} or {values.max()}, but there are {limit}, "
                "numbered from 0. Prepare the data again."
            )
    falls = np.diff(histories.time) < 0
    starts = histories.offsets[1:-1]
    falls[starts[(starts > 0) & (starts < histories.num_events)] - 1] = False
    if falls.any():
        raise DataError("events of a history are not in the order of time. Prepare the data again.")


def _check_limits(min_user: int, min_item: int) -> None:
    if min_user < 0 or min_item < 0:
        raise DataError(
            f"min_user={min_user} and min_item={min_item} are numbers of events; use 0 to keep all."
        )


def _find(ids: Any, names: np.ndarray, order: np.ndarray) -> Int32[np.ndarray, " _"]:
    ids = np.asarray(ids, dtype=np.str_).reshape(-1)
    if not len(names):
        return np.full(len(ids), -1, np.int32)
    place = np.minimum(np.searchsorted(names, ids, sorter=order), len(names) - 1)
    rows = order[place]
    return np.where(names[rows] == ids, rows, -1).astype(np.int32)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = read_json(path / MANIFEST)
    except ValueError as error:
        raise DataError(str(error)) from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path / MANIFEST} has format version {str(version)[:20]}; this jaxrec "
            f"reads version {FORMAT_VERSION}. Prepare the data again."
        )
    kinds = {"actions": list, "ties": str, "time_unit": str, "sha256": dict}
    for name, kind in kinds.items():
        if not isinstance(manifest.get(name), kind):
            raise DataError(f"{path / MANIFEST} lacks {name!r}. Prepare the data again.")
    if not all(isinstance(action, str) for action in manifest["actions"]):
        raise DataError(f"{path / MANIFEST}: actions are names. Prepare the data again.")
    return manifest


def read_column(file: Path, kind: str) -> np.ndarray:
    """Maps a saved array of one axis into memory.

    Args:
        file: a .npy file.
        kind: what it must hold: a type of numpy such as `<i8`, or U for texts of any length.

    Raises:
        DataError: the file is damaged, or holds something else.
    """
    try:
        array = read_array(file, mapped=True)
    except ValueError as error:
        raise DataError(str(error)) from None
    given = array.dtype.kind if kind == "U" else array.dtype.str
    if array.ndim != 1 or given != kind:
        raise DataError(
            f"{file} holds {array.dtype}{list(array.shape)}, and must be a list of "
            f"{'texts' if kind == 'U' else np.dtype(kind)}. Prepare the data again."
        )
    return array
