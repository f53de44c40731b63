"""From a log to order: number its users and items, drop the rare ones, sort by user and time."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, Int64

from jaxrec.data.dataset import DataError, DatasetFolder, Frame

ONE_ACTION = ("interaction",)
"""Name of the only action of a log without a column of events."""


def k_core(
    user: Int32[np.ndarray, " e"],
    item: Int32[np.ndarray, " e"],
    *,
    min_user: int,
    min_item: int,
) -> Bool[np.ndarray, " e"]:
    """Which events are left when rare users and items are dropped until none is rare.

    >>> user, item = np.array([0, 0, 1, 2], np.int32), np.array([0, 1, 0, 1], np.int32)
    >>> k_core(user, item, min_user=2, min_item=0)
    array([ True,  True, False, False])
    """
    keep = np.ones(len(user), bool)
    while True:
        before = int(keep.sum())
        for index, least in ((user, min_user), (item, min_item)):
            if least > 1:
                keep &= (np.bincount(index[keep], minlength=int(index.max()) + 1) >= least)[index]
                if not keep.any():
                    return keep
        if int(keep.sum()) == before:
            return keep


def order_events(
    user: Int32[np.ndarray, " e"],
    time: Int64[np.ndarray, " e"],
    item: Int32[np.ndarray, " e"],
    *,
    ties: str,
    seed: int = 0,
) -> Int64[np.ndarray, " e"]:
    """The permutation that groups events by user and orders them by time, ties by the policy.

    Args:
        user: owner of each event.
        time: its time.
        item: its catalogue row.
        ties: `file`, `item` or `shuffle`.
        seed: seed of `shuffle`.
    """
    import polars as pl

    tie = np.arange(len(user), dtype=np.int64)
    if ties == "shuffle":
        tie = np.random.default_rng(seed).permutation(tie)
    frame = pl.DataFrame({"user": user, "time": time, "tie": tie})
    keys = ["user", "time", "tie"]
    if ties == "item":
        frame = frame.with_columns(pl.Series("item", item))
        keys.insert(2, "item")
    return frame.select(pl.arg_sort_by(keys).cast(pl.Int64)).to_series().to_numpy()


def parse_ties(ties: str) -> int:
    """Checks a tie policy and gives its seed (0 where it has none).

    Raises:
        DataError: not `file`, `item` or `shuffle:SEED`.

    >>> parse_ties("shuffle:7")
    7
    """
    name, _, seed = ties.partition(":")
    if ties in ("file", "item"):
        return 0
    if name == "shuffle" and seed.isdecimal():
        return int(seed)
    raise DataError(
        f"tie policy {ties!r} is unknown: use 'file' (order of the log), 'item' (order of the "
        "items) or 'shuffle:SEED', for example 'shuffle:0'."
    )


def select_events(
    dataset: DatasetFolder, events: tuple[str, ...] | None
) -> tuple[Frame, tuple[str, ...]]:
    """The log restricted to the events of a history, with the index of each event's action."""
    import polars as pl

    frame = dataset.interactions()
    wanted = tuple(dataset.manifest.get("history_events", ())) if events is None else events
    if "event" not in frame.columns:
        if wanted:
            raise DataError(f"events {wanted} were asked for, but the log has no column 'event'.")
        return frame.with_columns(action=pl.lit(0, pl.Int32)), ONE_ACTION
    found = sorted(frame["event"].fill_null("").unique().to_list())
    # A kind that the dataset declares may be absent from a small log; one that is asked for not.
    if unknown := sorted(set(events or ()) - set(found)):
        raise DataError(f"the log has no event {unknown}; it has {found}.")
    actions = wanted or tuple(found)
    frame = frame.with_columns(pl.col("event").fill_null(""))
    frame = frame.filter(pl.col("event").is_in(list(actions)))
    return frame.with_columns(action=pl.Series(number(frame["event"], pl.Series(actions)))), actions


def number_users(column: Any) -> tuple[Int32[np.ndarray, " e"], Any]:
    """The index of each event's user, and the users in the order of their first event."""
    users = column.unique(maintain_order=True)
    return number(column, users), users


def number(column: Any, names: Any) -> Int32[np.ndarray, " e"]:
    """The index of each value in a list of names."""
    import polars as pl

    table = pl.DataFrame({"name": names, "row": np.arange(len(names), dtype=np.int32)})
    rows = pl.DataFrame({"name": column}).join(table, on="name", how="left", maintain_order="left")
    return rows["row"].to_numpy()


def renumber(keep: Bool[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
    """New index of each kept element; what is dropped gets an arbitrary one."""
    return (np.cumsum(keep) - 1).astype(np.int32)
