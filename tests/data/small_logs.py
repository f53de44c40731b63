"""Small logs and obvious references for the tests of this folder."""

import numpy as np

from jaxrec.data.dataset import write_dataset
from jaxrec.data.histories import Histories


def histories_of(lists, times=None, num_items=None, time_unit="s"):
    """Histories of lists of catalogue rows; times count 0, 1, 2, ... unless given."""
    flat = np.array([row for each in lists for row in each], np.int32)
    if times is None:
        times = [range(len(each)) for each in lists]
    items = num_items or (int(flat.max()) + 1 if len(flat) else 1)
    return Histories(
        offsets=np.cumsum([0, *map(len, lists)]).astype(np.int64),
        item=flat,
        time=np.array([time for each in times for time in each], np.int64),
        action=np.zeros(len(flat), np.int32),
        users=np.array([f"u{user}" for user in range(len(lists))]),
        items=np.array([f"i{row}" for row in range(items)]),
        time_unit=time_unit,
    )


def distinct(lengths):
    """Histories in which every event has its own item: the item is the flat position."""
    ends = np.cumsum(lengths)
    return histories_of([list(range(end - size, end)) for end, size in zip(ends, lengths)])


def log_of(rows, **columns):
    """Columns of a log of (user, item, timestamp) rows."""
    user, item, time = zip(*rows)
    return {
        "user": [str(each) for each in user],
        "item": [str(each) for each in item],
        "timestamp": list(time),
        **columns,
    }


def write_log(folder, rows, items=None, **columns):
    """Writes a dataset folder of (user, item, timestamp) rows."""
    log = log_of(rows, **columns)
    items = sorted(set(log["item"])) if items is None else [str(each) for each in items]
    return write_dataset(folder, log, {"item": items}, name="t", source="test", licence="none")


def segments_of(batch):
    """Every segment of a batch as (items, positions, weights), row by row."""
    found = []
    for row in range(batch.segment.shape[0]):
        for segment in range(1, int(batch.segment[row].max()) + 1):
            here = batch.segment[row] == segment
            found.append(
                (
                    tuple(batch.item[row][here].tolist()),
                    tuple(batch.position[row][here].tolist()),
                    tuple(batch.weight[row][here].tolist()),
                )
            )
    return found
