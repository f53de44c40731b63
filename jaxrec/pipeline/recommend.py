"""Answers from a finished run: for users of its log, or for raw histories of item ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxrec.data.cases import Cases, history_batches
from jaxrec.pipeline.run import Finished
from jaxrec.training.ranking import denied_width, pad_denied
from jaxrec.types import Events


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """One item of an answer."""

    rank: int
    item: str
    title: str
    score: float
    """Log-probability of the item's semantic ID given the history."""
    semantic_id: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one history gets."""

    name: str
    """The user's id, or "history N"."""
    history: list[str]
    """Titles of the history, oldest first."""
    unknown: list[str]
    """Items of the history that the catalogue does not have; they were left out."""
    recommendations: list[Recommendation]


def recommend_users(
    run: Finished, users: Sequence[str], *, count: int, keep_seen: bool = False
) -> list[Answer]:
    """Answers for users of the run's log, from everything that the log knows of them.

    Args:
        run: an opened run.
        users: user ids as the log spells them.
        count: items an answer has.
        keep_seen: whether items of the history may be answered.

    Raises:
        ValueError: a user that the log does not know.
    """
    histories = run.data.histories
    rows = histories.find_users(np.asarray(list(users), np.str_))
    if unknown := [user for user, row in zip(users, rows) if row < 0]:
        known = ", ".join(map(str, histories.users[:3]))
        raise ValueError(
            f"the log does not know user(s) {', '.join(unknown)}; it knows for example {known}. "
            "For somebody new use --history with item ids."
        )
    items = [np.asarray(histories.item[histories.history(int(row))]) for row in rows]
    return _answer(run, list(users), items, [[] for _ in users], count, keep_seen)


def recommend_histories(
    run: Finished, histories: Sequence[Sequence[str]], *, count: int, keep_seen: bool = False
) -> list[Answer]:
    """Answers for raw histories of item ids, oldest first. An empty history is welcome.

    Items that the catalogue does not have are left out and named in the answer.

    Args: as `recommend_users`.

    Raises:
        ValueError: a history of which no item is known.
    """
    items, unknown = [], []
    for history in histories:
        rows = run.data.histories.find_items(np.asarray(list(history), np.str_))
        items.append(rows[rows >= 0])
        unknown.append([item for item, row in zip(history, rows) if row < 0])
        if len(history) and not len(items[-1]):
            known = ", ".join(map(str, run.data.histories.items[:3]))
            raise ValueError(
                f"the catalogue has none of the items {', '.join(history)}; it has for example "
                f"{known}. Item ids are those of the log."
            )
    names = [f"history {number}" for number in range(1, len(items) + 1)]
    return _answer(run, names, items, unknown, count, keep_seen)


def _answer(
    run: Finished,
    names: list[str],
    items: list[np.ndarray],
    unknown: list[list[str]],
    count: int,
    keep_seen: bool,
) -> list[Answer]:
    model, titles = run.model, run.data.titles
    k = model.ranker.decoding.k
    if not 1 <= count <= k:
        raise ValueError(f"count={count} is not possible: this run decodes 1 to {k} items.")
    evaluation = run.recipe.evaluation
    rows = min(evaluation.rows, max(8, 1 << (len(items) - 1).bit_length()))
    width = denied_width(max(len(each) for each in items))
    batches = history_batches(
        items, num_items=run.data.histories.num_items, length=evaluation.history, rows=rows
    )
    answers = model.ranker(
        model.params,
        model.tables,
        model.catalogue,
        (_deny(cases, items, width, keep_seen=keep_seen) for cases in batches),
        cases=len(items),
    )
    result = []
    for case, name in enumerate(names):
        listed = answers.items[case][answers.valid[case]][:count]
        recommendations = [
            Recommendation(
                rank=rank,
                item=str(run.data.histories.items[item]),
                title=titles[item],
                score=float(answers.scores[case][rank - 1]),
                semantic_id=run.tokens.ids.as_text(str(run.data.histories.items[item])),
            )
            for rank, item in enumerate(listed.tolist(), start=1)
        ]
        history = [titles[item] for item in items[case].tolist()]
        result.append(Answer(name, history, unknown[case], recommendations))
    return result


def _deny(
    cases: Cases, items: list[np.ndarray], width: int, *, keep_seen: bool
) -> tuple[Events, np.ndarray, np.ndarray]:
    denied = []
    if not keep_seen:
        denied = [np.unique(items[case]) for case in cases.case[cases.live]]
    return cases.events, pad_denied(denied, len(cases.case), width), cases.case
