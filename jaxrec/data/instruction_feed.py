"""Batches of instructions for language models: tasks, the log and the item table, packed in rows.

Texts are split into tokens once, at the start; an example then is a concatenation of arrays. The
order of examples is endless, shuffled and resumable like that of histories
(`jaxrec.data.pipeline`), and tasks come in the proportion of their weights in every stretch of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxrec.data.dataset import DataError
from jaxrec.data.histories import Histories
from jaxrec.data.instructions import LC_REC, Piece, Task, schedule, split_template
from jaxrec.data.packing import pack_prefix
from jaxrec.data.pipeline import BatchStream, Take, fingerprint_of, rows_of_host, stream
from jaxrec.data.splits import Split, training_positions
from jaxrec.data.text_tokenizer import TextTokenizer
from jaxrec.types import TextBatch


class Tokens(NamedTuple):
    """A stretch of an example: `token` and `item` as in `TextBatch`, int32."""

    token: np.ndarray
    item: np.ndarray

    @classmethod
    def of_text(cls, token: np.ndarray) -> Tokens:
        """Text, which belongs to no item."""
        return cls(token, np.full(len(token), -1, np.int32))


class ItemTexts(NamedTuple):
    """What a feed of instructions is told about items."""

    table: Mapping[str, Sequence[str]]
    """Columns of the item table as text, one value a catalogue row."""
    levels: int
    """Codes of an item."""


@dataclasses.dataclass(frozen=True)
class Instructions:
    """Examples of tasks, several to a row, each a segment of its own.

    An example about a history reads the newest events that fit; one about an item whose text lacks
    a column that the task reads is left out. Only training events are targets. Any item may be
    told of by its text, also one that nobody bought yet: that is how it can be recommended.

    Raises:
        ValueError: no task, or a size that is not positive.
    """

    tasks: tuple[Task, ...] = LC_REC
    length: int = 512
    """Tokens of a row."""
    rows: int = 32
    """Rows of the batch over all hosts; each host makes its equal part."""
    history: int = 20
    """Events of a history at most, the newest ones."""
    between: str = ", "
    """What stands between two events."""
    end: str = "\n"
    """What ends an answer; it is learnt like the answer."""
    text_tokens: int = 32
    """Tokens of one value of a column at most; the rest of it is cut off."""
    tokenizer: TextTokenizer = TextTokenizer()

    reads_items: ClassVar[bool] = True
    """It is told the texts of items (`ItemTexts`)."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("Instructions needs at least one task, for example LC_REC.")
        for name in ("length", "rows", "history", "text_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"Instructions: {name}={getattr(self, name)} must be positive.")

    @property
    def batch_shape(self) -> tuple[int, int]:
        """Rows and tokens of a batch over all hosts."""
        return self.rows, self.length

    def __call__(
        self,
        histories: Histories,
        split: Split,
        *,
        seed: int,
        host: int = 0,
        hosts: int = 1,
        items: ItemTexts,
    ) -> BatchStream:
        """The stream of batches of one host, `TextBatch` of [rows / hosts, length].

        Raises:
            DataError: a column that items do not have, or a task without any example.
            ValueError: rows that do not divide over the hosts, or a row too short for an example.
        """
        rows = rows_of_host(self.rows, seed, host, hosts)
        examples = Examples.prepare(self, histories, split, items)
        turn = schedule(self.tasks)

        def draw(take: Take, first: int) -> tuple[TextBatch, int]:
            drawn: list[Tokens] = []
            sizes: list[int] = []
            prompts: list[int] = []
            while sum(sizes) < rows * self.length:
                place = first + len(drawn)
                for offset, number in enumerate(take(place, 4 * rows).tolist()):
                    prompt, answer = examples.example(turn[(place + offset) % len(turn)], number)
                    drawn.append(_join([prompt, answer]))
                    prompts.append(len(prompt.token))
                    sizes.append(len(drawn[-1].token))
            places = pack_prefix(np.array(sizes), rows=rows, length=self.length)
            batch = _lay(drawn, prompts, places, rows, self.length)
            return batch, len(places.row)

        mark = fingerprint_of(self, histories, split, seed, host, hosts)
        mark["tokenizer_file"] = self.tokenizer.fingerprint()
        return stream(draw, max(len(pool) for pool in examples.pools), mark)


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Everything that examples are put together from."""

    feed: Instructions
    histories: Histories
    levels: int
    pools: tuple[np.ndarray, ...]
    """Of every task: flat positions of training events, or catalogue rows, int64."""
    texts: dict[str, list[np.ndarray]]
    """Tokens of every column that is read, of every item; no token where the value is missing."""
    pieces: dict[str, np.ndarray]
    """Tokens of the fixed texts."""

    @classmethod
    def prepare(
        cls, feed: Instructions, histories: Histories, split: Split, items: ItemTexts
    ) -> Examples:
        """Splits all texts into tokens, and finds the examples of every task."""
        columns = sorted({column for task in feed.tasks for column in task.columns})
        if unknown := [column for column in columns if column not in items.table]:
            raise DataError(
                f"the tasks read the item column {unknown[0]!r}, and items have "
                f"{', '.join(sorted(items.table)) or 'none'}. Choose other tasks or columns."
            )
        texts = {
            column: [
                np.array(tokens[: feed.text_tokens], np.int32)
                for tokens in feed.tokenizer.encode([text or "" for text in items.table[column]])
            ]
            for column in columns
        }
        events = training_positions(histories, split)
        starts = histories.offsets[histories.user_of(events)]
        pools = tuple(_pool(task, histories, events, starts, texts) for task in feed.tasks)
        templates = [each for task in feed.tasks for each in (*task.prompts, task.response)]
        fixed = {piece.text for each in templates for piece in split_template(each)}
        fixed |= {feed.between, feed.end}
        encoded = feed.tokenizer.encode(sorted(fixed))
        pieces = {text: np.array(ids, np.int32) for text, ids in zip(sorted(fixed), encoded)}
        return cls(feed, histories, items.levels, pools, texts, pieces)

    def example(self, task_number: int, number: int) -> tuple[Tokens, Tokens]:
        """Prompt and answer of an example of a task; `number` may exceed its examples.

        Raises:
            ValueError: it does not fit a row, not even with one event of history.
        """
        task, pool = self.feed.tasks[task_number], self.pools[task_number]
        number, phrase = number % len(pool), number % len(task.prompts)
        place = target = int(pool[number])
        events = np.zeros(0, np.int32)
        if task.reads_history:
            start = self.histories.offsets[self.histories.user_of(pool[number : number + 1])[0]]
            events = self.histories.item[max(start, place - self.feed.history) : place]
            target = int(self.histories.item[place])
        first, last = 0, max(len(events), 1)
        while True:
            prompt = self._write(task.prompts[phrase], events[first:], target)
            answer = self._write(task.response + self.feed.end, events[first:], target)
            if len(prompt.token) + len(answer.token) <= self.feed.length:
                return prompt, answer
            first += 1
            if first >= last:
                raise ValueError(
                    f"Instructions: an example of task {task.name!r} takes "
                    f"{len(prompt.token) + len(answer.token)} tokens with a single event, and a "
                    f"row has length={self.feed.length}; make rows longer or texts shorter."
                )

    def _write(self, template: str, events: np.ndarray, target: int) -> Tokens:
        return _join([self._field(piece, events, target) for piece in split_template(template)])

    def _field(self, piece: Piece, events: np.ndarray, target: int) -> Tokens:
        if not piece.of:
            return Tokens.of_text(self._text(piece.text))
        if piece.of == "item":
            return self._item(piece.column, target)
        between, parts = Tokens.of_text(self._text(self.feed.between)), []
        for event in events:
            part = self._item(piece.column, int(event))
            parts += [between, part] if parts and len(part.token) else [part]
        return _join(parts)

    def _text(self, text: str) -> np.ndarray:
        if text not in self.pieces:  # the end of an answer joins the text before it
            self.pieces[text] = np.array(self.feed.tokenizer.encode([text])[0], np.int32)
        return self.pieces[text]

    def _item(self, column: str, item: int) -> Tokens:
        if column:
            return Tokens.of_text(self.texts[column][item])
        levels = np.arange(self.levels, dtype=np.int32)
        return Tokens(levels, np.full(self.levels, item, np.int32))


def _pool(
    task: Task,
    histories: Histories,
    events: np.ndarray,
    starts: np.ndarray,
    texts: dict[str, list[np.ndarray]],
) -> np.ndarray:
    """The examples of a task: events with a history, or items, whose texts are all there."""
    pool = events[events > starts] if task.reads_history else np.arange(histories.num_items)
    items = histories.item[pool] if task.reads_history else pool
    for template in (*task.prompts, task.response):
        for piece in split_template(template):
            if piece.of == "item" and piece.column:
                known = np.array([len(tokens) > 0 for tokens in texts[piece.column]], bool)
                pool, items = pool[known[items]], items[known[items]]
    if not len(pool):
        raise DataError(
            f"task {task.name!r} has no example: no training event or item has all of "
            f"{', '.join(task.columns) or 'what it reads'}. Leave it out."
        )
    return pool.astype(np.int64)


def _join(parts: list[Tokens]) -> Tokens:
    if not parts:
        return Tokens(np.zeros(0, np.int32), np.zeros(0, np.int32))
    return Tokens(*(np.concatenate(arrays) for arrays in zip(*parts)))


def _lay(drawn: list[Tokens], prompts: list[int], places: Any, rows: int, length: int) -> TextBatch:
    """Copies examples into their places; all else is padding."""
    token, segment, position = np.zeros((3, rows, length), np.int32)
    item, weight = np.full((rows, length), -1, np.int32), np.zeros((rows, length), np.float32)
    for index, (row, column, number) in enumerate(zip(*places)):
        example = drawn[index]
        span = slice(column, column + len(example.token))
        token[row, span], item[row, span] = example
        segment[row, span], position[row, span] = number, np.arange(len(example.token))
        weight[row, span][max(prompts[index], 1) :] = 1.0
    return TextBatch(token, item, segment, position, weight)
