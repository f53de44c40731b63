"""From a log to order: number its users and items, drop the rare ones, sort by user and time."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64

from jaxrec.data.dataset import DataError, DatasetFolder

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
    order: Int64[np.ndarray, " e"] | None = None
    if ties == "shuffle":
        order = _sort_by(np.random.default_rng(seed).permutation(np.arange(len(user))), order)
    if ties == "item":
        order = _sort_by(item, order)
    return _group_by_user(user, time, order)


def _group_by_user(
    user: np.ndarray, time: np.ndarray, order: np.ndarray | None
) -> Int64[np.ndarray, " e"]:
    """Sorts an order (None: 0, 1, 2, ...) by user, then time, keeping ties in place.

    User, time and place are packed into one 64-bit number. Where they do not fit, the last bits of
    the time are left out, and the few events of a user that are alike in the rest are sorted apart.
    """
    if not len(user):
        return np.arange(0, dtype=np.int64)
    places = (len(user) - 1).bit_length()
    low, high = int(time.min()), int(time.max())
    room = 63 - places - int(user.max()).bit_length()
    left_out = max(0, (high - low).bit_length() - room)
    if room < 1:
        return _sort_by(user, _sort_by(time, order))
    near = time if order is None else time[order]
    packed = (user if order is None else user[order]).astype(np.int64)
    packed <<= (high - low).bit_length() - left_out
    packed |= (near - low) >> left_out
    packed <<= places
    packed |= np.arange(len(user), dtype=np.int64)
    packed.sort()
    place = packed & ((1 << places) - 1)
    if left_out:
        packed >>= places
        alike = packed[1:] == packed[:-1]
        tied = np.flatnonzero(np.append(alike, False) | np.append(False, alike))
        if 2 * len(tied) > len(user):
            return _sort_by(user, _sort_by(time, order))
        held = place[tied]
        place[tied] = held[np.lexsort((held, near[held], packed[tied]))]
    return place if order is None else order[place]


def _sort_by(values: np.ndarray, order: np.ndarray | None) -> Int64[np.ndarray, " e"]:
    """Sorts an order (None: 0, 1, 2, ...) by the values of its elements, keeping ties in place.

    Value and place are packed into one 64-bit number and sorted as such, which is several times
    faster than an indirect stable sort.
    """
    picked = values if order is None else values[order]
    places = np.arange(len(values), dtype=np.int64) if order is None else order
    if not len(values) or bool((picked[1:] >= picked[:-1]).all()):
        return places
    bits = (len(values) - 1).bit_length()
    low, high = int(picked.min()), int(picked.max())
    if (high - low).bit_length() + bits > 63:
        return places[np.argsort(picked, kind="stable")]
    packed = picked.astype(np.int64)
    packed -= low
    packed <<= bits
    packed |= np.arange(len(values), dtype=np.int64)
    packed.sort()
    packed &= (1 << bits) - 1
    return packed if order is None else order[packed]


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


class NumberedLog(NamedTuple):
    """The events of a log as numbers, in the order of the log."""

    user: Int32[np.ndarray, " e"]
    """Index into `users`."""
    item: Int32[np.ndarray, " e"]
    """Index into `items`."""
    time: Int64[np.ndarray, " e"]
    """Seconds."""
    action: Int32[np.ndarray, " e"]
    """Index into `actions`."""
    users: Any
    """User ids (polars texts) in the order of their first event."""
    items: Any
    """Item ids (polars texts) in the order of items.parquet."""
    actions: tuple[str, ...]
    """Names of the kinds of events."""


def number_log(dataset: DatasetFolder, events: tuple[str, ...] | None = None) -> NumberedLog:
    """Replaces ids by numbers, streaming; only the numbers of a log are ever held whole.

    Args:
        dataset: the dataset folder.
        events: as in `histories.prepare`.

    Raises:
        DataError: events that the log does not have.
    """
    import polars as pl

    log = dataset.scan()
    wanted, actions = _history_events(dataset, events)
    if wanted:
        log = log.with_columns(pl.col("event").fill_null("")).filter(pl.col("event").is_in(wanted))
    users = log.select("user").unique(maintain_order=True).collect(engine="streaming")["user"]
    items = dataset.items(["item"])["item"]
    names = {"user": users, "item": items}
    if wanted:
        names["event"] = pl.Series(wanted)
    seeds = {column: _seed_without_collision(ids) for column, ids in names.items()}
    hashed = [pl.col(column).hash(seed) for column, seed in seeds.items()]
    numbered = log.select(*hashed, "timestamp")
    for column, ids in names.items():
        rows = np.arange(len(ids), dtype=np.int32)
        table = pl.LazyFrame({column: ids.hash(seeds[column]), f"{column} row": rows})
        numbered = numbered.join(table, on=column, how="left", maintain_order="left").drop(column)
    frame = numbered.collect(engine="streaming")
    action = frame["event row"].to_numpy() if wanted else np.zeros(frame.height, np.int32)
    return NumberedLog(
        user=frame["user row"].to_numpy(),
        item=frame["item row"].to_numpy(),
        time=frame["timestamp"].to_numpy(),
        action=action,
        users=users,
        items=items,
        actions=actions,
    )


def _seed_without_collision(ids: Any) -> int:
    """A seed of the hash under which these ids differ: then hashes can stand for the texts.

    Every id of the log is among them, so the numbers are exact, and joins are twice as fast.
    """
    return next(seed for seed in itertools.count() if ids.hash(seed).n_unique() == len(ids))


def _history_events(
    dataset: DatasetFolder, events: tuple[str, ...] | None
) -> tuple[list[str], tuple[str, ...]]:
    """The events that are kept (empty: there is no such column), and the names of all actions."""
    import polars as pl

    wanted = tuple(dataset.manifest.get("history_events", ())) if events is None else events
    if "event" not in dataset.scan().collect_schema().names():
        if wanted:
            raise DataError(f"events {wanted} were asked for, but the log has no column 'event'.")
        return [], ONE_ACTION
    kinds = dataset.scan().select(pl.col("event").fill_null("").unique())
    found = sorted(kinds.collect(engine="streaming").to_series())
    # A kind that the dataset declares may be absent from a small log; one that is asked for not.
    if unknown := sorted(set(events or ()) - set(found)):
        raise DataError(f"the log has no event {unknown}; it has {found}.")
    actions = wanted or tuple(found)
    return list(actions), actions


def renumber(keep: Bool[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
    """New index of each kept element; what is dropped gets an arbitrary one."""
    return (np.cumsum(keep) - 1).astype(np.int32)
