"""Small logs of graded feedback for the tests of this folder."""

import dataclasses

import numpy as np

from jaxrec.data.histories import Histories
from jaxrec.data.splits import LeaveOneOut

LADDER = ("exposed", "click", "like")


def graded_log(lengths, *, distinct=True, items=12, seed=0, actions=LADDER):
    """Histories of random grades; with `distinct` the item of an event is its flat position."""
    random, events = np.random.default_rng(seed), sum(lengths)
    item = np.arange(events) if distinct else random.integers(0, items, events)
    return Histories(
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        item=item.astype(np.int32),
        time=np.concatenate([7 * np.arange(size) for size in lengths]).astype(np.int64),
        action=random.integers(0, len(actions), events).astype(np.int32),
        users=np.array([f"u{user}" for user in range(len(lengths))]),
        items=np.array([f"i{row}" for row in range(events if distinct else items)]),
        actions=actions,
    )


def poisoned(histories, split=None):
    """The same training events, with other items and grades where events are held out."""
    split = split or LeaveOneOut()(histories)
    owner = histories.user_of(np.arange(histories.num_events))
    held = np.arange(histories.num_events) >= split.train_end[owner]
    assert held.any()
    item = np.where(held, (histories.item + 5) % histories.num_items, histories.item)
    action = np.where(held, (histories.action + 1) % len(histories.actions), histories.action)
    return dataclasses.replace(
        histories, item=item.astype(np.int32), action=action.astype(np.int32)
    )
