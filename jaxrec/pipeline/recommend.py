"""Answers from a finished run: for users of its log, for raw histories, for streams of requests.

    run = open_finished(Path("runs/quickstart"))
    (answer,) = recommend_histories(run, [["50", "181", "172"]], count=10)
    print([each.title for each in answer.recommendations])

Give `explain=explainer(run.data, run.tokens.ids)` (jaxrec.pipeline.reasons), made once, for what
can honestly be said about each recommendation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxrec.data.cases import history_batches
from jaxrec.data.errors import DataError
from jaxrec.decoding.counts import count_answers
from jaxrec.decoding.filters import Filters
from jaxrec.parallel import shard_rows
from jaxrec.pipeline.reasons import Explainer, Reason, semantic_text, title_of
from jaxrec.pipeline.requests import Question, Request, parse_request, resolve
from jaxrec.pipeline.run import Finished
from jaxrec.tokenization.item_ids import has_item_ids
from jaxrec.tracking import Progress
from jaxrec.training.ranking import denied_width, pad_denied, rank_batch

_count = jax.jit(count_answers)

WIDEST = 2048
"""Width of deny-lists from which on a batch has fewer rows, or they would take the memory."""


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """One item of an answer."""

    rank: int
    item: str
    title: str
    score: float
    """Log-probability of the item's semantic ID given the history; a retriever's inner product."""
    semantic_id: str
    """Empty where the system knows items by their ids alone."""
    reasons: list[Reason] = dataclasses.field(default_factory=list)
    """What can be said about it; empty where nobody asked."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one history gets."""

    name: str
    """The request's id, the user's id, "history N" or "line N"."""
    history: list[str]
    """Titles of the history, oldest first, as far as the catalogue has its items."""
    history_used: int
    """How many of them the generator read: the newest ones, at most the recipe's
    evaluation.history."""
    unknown: list[str]
    """Items of the history that the catalogue does not have; they were left out."""
    candidates: dict[str, int]
    """Items that the decoder found (`valid`), that it could have found (`allowed`), that the
    history or the request keep back (`filtered`), and found ones that share a semantic ID with
    another item (`grouped`). See `jaxrec.decoding.count_answers`."""
    recommendations: list[Recommendation]
    """Best first; fewer than asked for where nothing else is left to answer."""


class _Found(NamedTuple):
    """What the decoder says to one question."""

    items: np.ndarray
    """Best first, as many as the question asks for."""
    scores: np.ndarray
    candidates: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Refused:
    """A line that could not be answered, in the place of its answer."""

    line: int
    """Its number, from 1."""
    error: str


def recommend_users(
    run: Finished,
    users: Sequence[str],
    *,
    count: int,
    keep_seen: bool = False,
    explain: Explainer | None = None,
) -> list[Answer]:
    """Answers for users of the run's log, from everything that the log knows of them.

    Args:
        run: an opened run.
        users: user ids as the log spells them.
        count: items an answer has.
        keep_seen: whether items of the history may be answered.
        explain: what finds the reasons; none without it.

    Raises:
        DataError: a user that the log does not know, or an impossible count.
    """
    requests = [Request(name=str(user), user=str(user)) for user in users]
    return _answer_all(run, requests, count, keep_seen, explain)


def recommend_histories(
    run: Finished,
    histories: Sequence[Sequence[str]],
    *,
    count: int,
    keep_seen: bool = False,
    explain: Explainer | None = None,
) -> list[Answer]:
    """Answers for raw histories of item ids, oldest first. An empty history is welcome.

    Items that the catalogue does not have are left out and named in the answer.

    Args: as `recommend_users`.

    Raises:
        DataError: a history of which no item is known, or an impossible count.
    """
    requests = [
        Request(name=f"history {number}", history=tuple(map(str, history)))
        for number, history in enumerate(histories, start=1)
    ]
    return _answer_all(run, requests, count, keep_seen, explain)


def recommend_lines(
    run: Finished,
    lines: Iterable[tuple[int, bytes | str]],
    *,
    count: int,
    keep_seen: bool = False,
    explain: Explainer | None = None,
    skip: bool = False,
    rows: int | None = None,
    source: str = "requests",
) -> Iterator[list[Answer | Refused]]:
    """Answers a stream of requests (see `jaxrec.pipeline.requests`) in their order, batch by batch.

    Holds one batch in memory. All batches have the same shape, so nothing is compiled anew.

    Args:
        run, count, keep_seen, explain: as `recommend_users`; a request may have its own count.
        lines: numbers and lines, such as `numbered_lines(file)` gives.
        skip: whether a line that cannot be answered gives a `Refused` in its place, or ends the
            stream.
        rows: requests answered together; the recipe's evaluation.rows where None.
        source: what the lines come from, for the error.

    Yields:
        The answers to each batch of requests.

    Raises:
        DataError: with `skip=False` a line that cannot be answered, named by its number, after the
            answers to all lines before it.
    """
    rows = rows or run.recipe.evaluation.rows
    asked: list[Question | Refused] = []
    prepare = _resolver(run, count, keep_seen)

    def answers() -> list[Answer | Refused]:
        questions = [each for each in asked if isinstance(each, Question)]
        found = iter(_answer(run, questions, rows, explain))
        return [each if isinstance(each, Refused) else next(found) for each in asked]

    try:
        for number, line in lines:
            try:
                asked.append(prepare(parse_request(line, number)))
            except DataError as error:
                if not skip:
                    raise DataError(f"{source}, line {number}: {error}") from None
                asked.append(Refused(number, str(error)))
            if len(asked) == rows:
                yield answers()
                asked.clear()
    except DataError:
        # What came before the bad line has its answers.
        if asked:
            yield answers()
        raise
    if asked:
        yield answers()


def _answer_all(
    run: Finished,
    requests: list[Request],
    count: int,
    keep_seen: bool,
    explain: Explainer | None,
) -> list[Answer]:
    prepare = _resolver(run, count, keep_seen)
    questions = [prepare(request) for request in requests]
    # Few questions make a small batch, of few different shapes: each is a program to compile.
    rows = min(run.recipe.evaluation.rows, max(8, 1 << max(0, len(questions) - 1).bit_length()))
    found: list[Answer] = []
    with Progress(len(questions), "recommend", unit="answers") as progress:
        for first in range(0, len(questions), rows):
            found += _answer(run, questions[first : first + rows], rows, explain)
            progress.update(len(found) - first)
    return found


def _resolver(run: Finished, count: int, keep_seen: bool) -> Callable[[Request], Question]:
    histories, most = run.data.histories, run.model.ranker.decoding.k
    return lambda each: resolve(each, histories, count=count, most=most, keep_seen=keep_seen)


def _answer(
    run: Finished, questions: list[Question], rows: int, explain: Explainer | None
) -> list[Answer]:
    """Answers of at most `rows` questions, in their order."""
    ranked: dict[int, _Found] = {}
    length = run.recipe.evaluation.history
    widths = np.array([denied_room(len(each.denied), length) for each in questions], np.int64)
    for width in np.unique(widths).tolist():
        members = np.flatnonzero(widths == width)
        some = [questions[index] for index in members]
        ranked |= zip(members.tolist(), _rank(run, some, rows, width))
    return [_tell(run, each, ranked[index], explain) for index, each in enumerate(questions)]


def denied_room(denied: int, length: int) -> int:
    """Width of the deny-lists of the batch that a request belongs to.

    Every width is a program of its own to compile: the first has room for twice the history that
    the generator reads, and from there they grow eightfold, so that there are few.

    Args:
        denied: items that the request must not get.
        length: events of a history that the generator reads.

    >>> [denied_room(denied, 50) for denied in (0, 128, 129, 1025)]
    [128, 128, 1024, 8192]
    """
    width = denied_width(max(2 * length, 32))
    while width < denied:
        width *= 8
    return width


def _rank(run: Finished, questions: list[Question], rows: int, width: int) -> list[_Found]:
    """What is found for each question."""
    model = run.model
    ranker = model.ranker
    parts = ranker.mesh.shape["data"] * ranker.mesh.shape["fsdp"]
    rows = -(-max(1, rows * min(width, WIDEST) // width) // parts) * parts
    batches = history_batches(
        [each.items for each in questions],
        num_items=run.data.histories.num_items,
        length=run.recipe.evaluation.history,
        rows=rows,
    )
    found = []
    with jax.set_mesh(ranker.mesh):
        for cases in batches:
            here = [questions[case] for case in cases.case[cases.live]]
            padded = pad_denied([each.denied for each in here], rows, width)
            events, denied = shard_rows((cases.events, padded), ranker.mesh)
            filters = Filters(denied=denied)
            answer = rank_batch(
                model.params,
                model.tables,
                model.catalogue,
                filters,
                events,
                generator=ranker.generator,
                space=ranker.space,
                decoding=ranker.decoding,
            )
            counts = jax.device_get(_count(model.catalogue, answer, filters))._asdict()
            items, scores, valid = map(np.asarray, (answer.items, answer.scores, answer.valid))
            for row, each in enumerate(here):
                listed = valid[row].nonzero()[0][: each.count]
                candidates = {name: int(count[row]) for name, count in counts.items()}
                found.append(_Found(items[row, listed], scores[row, listed], candidates))
    return found


def _tell(
    run: Finished,
    question: Question,
    found: _Found,
    explain: Explainer | None,
) -> Answer:
    items, scores, candidates = found
    titles, codes = run.data.titles, run.tokens.ids.codes
    names = np.asarray(run.data.histories.items)
    used = question.items[-run.recipe.evaluation.history :]
    sparse = has_item_ids(run.tokens.ids)
    reasons = explain(used, items, scores) if explain else [[] for _ in items]
    recommendations = [
        Recommendation(
            rank=rank,
            item=str(names[item]),
            title=title_of(titles, item),
            score=score,
            semantic_id="" if sparse else semantic_text(tuple(codes[item].tolist())),
            reasons=why,
        )
        for rank, (item, score, why) in enumerate(
            zip(items.tolist(), scores.tolist(), reasons), start=1
        )
    ]
    history = [title_of(titles, item) for item in question.items.tolist()]
    return Answer(question.name, history, len(used), question.unknown, candidates, recommendations)
