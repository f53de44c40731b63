"""Instructions that teach a language model items, histories and their semantic IDs (METHODS O8).

A task is a template with fields in braces; what the fields stand for is read from the log and from
the item table, so a task is data and a new one needs no code:

    {history}         semantic IDs of the events before the target
    {item}            semantic ID of the target (or of the item that the task is about)
    {history:title}   a column of the item table, of the events before the target
    {item:title}      a column of the item table, of the target

LC-Rec (Zheng et al., arXiv:2311.09049) aligns with six tasks, MiniOneRec (Kong et al.,
arXiv:2510.24431) with four. The wording here is this project's own. LC-Rec's search intentions and
preferences were written by a language model, which logs do not have: `item_search` and `preference`
use categories instead, a surrogate by name.
"""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

FIELDS = re.compile(r"\{(history|item)(?::(\w+))?\}")


class Piece(NamedTuple):
    """A part of a template: a text, or a field."""

    text: str
    """What is written, for a text; empty for a field."""
    of: str = ""
    """`history` or `item`; empty for a text."""
    column: str = ""
    """Column of the item table; empty for semantic IDs."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One kind of example.

    Raises:
        ValueError: an empty template, braces around something unknown, or a weight that is not
            positive.
    """

    name: str
    prompts: tuple[str, ...]
    """Templates of the question, one of which is drawn for an example."""
    response: str
    """Template of the answer, the only part that is learnt."""
    weight: float = 1.0
    """Share of the examples, in proportion to the other tasks' weights."""

    def __post_init__(self) -> None:
        if not self.prompts or not all(self.prompts) or not self.response:
            raise ValueError(f"task {self.name!r} needs at least one prompt and a response.")
        if not self.weight > 0:
            raise ValueError(f"task {self.name!r}: weight={self.weight} must be positive.")
        for template in (*self.prompts, self.response):
            if wrong := re.findall(r"\{[^{}]*\}?", FIELDS.sub("", template)):
                raise ValueError(
                    f"task {self.name!r} has the unknown field {wrong[0]}; fields are {{history}}, "
                    "{item}, {history:COLUMN} and {item:COLUMN}."
                )

    @property
    def reads_history(self) -> bool:
        """Whether its examples are training events; otherwise they are items."""
        return any("{history" in template for template in (*self.prompts, self.response))

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the item table that it reads."""
        templates = (*self.prompts, self.response)
        found = {piece.column for each in templates for piece in split_template(each)}
        return tuple(sorted(found - {""}))


def split_template(template: str) -> list[Piece]:
    """The parts of a template, in order.

    >>> [piece.of or piece.text for piece in split_template("Buy {item}, called {item:title}!")]
    ['Buy ', 'item', ', called ', 'item', '!']
    """
    pieces, at = [], 0
    for match in FIELDS.finditer(template):
        if match.start() > at:
            pieces.append(Piece(template[at : match.start()]))
        pieces.append(Piece("", match[1], match[2] or ""))
        at = match.end()
    if at < len(template):
        pieces.append(Piece(template[at:]))
    return pieces


SEQUENTIAL = Task(
    "sequential",
    ("A user bought: {history}. The next item is ", "After {history} the user will want "),
    "{item}",
)
TITLE_TO_ITEM = Task(
    "title_to_item", ("The item called {item:title} is ", "Find {item:title}: "), "{item}"
)
ITEM_TO_TITLE = Task(
    "item_to_title", ("The title of {item} is ", "What is {item}? It is "), "{item:title}"
)
FUSION = Task(
    "fusion", ("A user bought: {history}. The title of the next item is ",), "{item:title}"
)
TITLES_TO_ITEM = Task(
    "titles_to_item", ("A user bought: {history:title}. The next item is ",), "{item}"
)
ITEM_SEARCH = Task(
    "item_search",
    ("A user who bought {history} looks for {item:categories}. A fitting item is ",),
    "{item}",
)
PREFERENCE = Task(
    "preference", ("A user bought: {history}. The user's taste is ",), "{history:categories}"
)

LC_REC = (SEQUENTIAL, TITLE_TO_ITEM, ITEM_TO_TITLE, FUSION, ITEM_SEARCH, PREFERENCE)
"""The six tasks of LC-Rec, equally often."""
MINI_ONEREC = (SEQUENTIAL, TITLE_TO_ITEM, ITEM_TO_TITLE, FUSION, TITLES_TO_ITEM)
"""The tasks of MiniOneRec's supervised stage; titles to IDs and back count as one there."""


def schedule(tasks: tuple[Task, ...], places: int = 1000) -> tuple[int, ...]:
    """Which task stands at each of so many places in turn.

    Each place goes to the task that is furthest behind its share, so every stretch holds the tasks
    in proportion to their weights, to one example.

    >>> schedule((Task("a", ("x",), "y", weight=3.0), Task("b", ("x",), "y")), 8)
    (0, 0, 1, 0, 0, 0, 1, 0)
    """
    total = sum(task.weight for task in tasks)
    shares, counts, order = [task.weight / total for task in tasks], [0] * len(tasks), []
    for place in range(1, places + 1):
        behind = [share * place - count for share, count in zip(shares, counts)]
        chosen = max(range(len(tasks)), key=lambda task: (round(behind[task], 9), -task))
        counts[chosen] += 1
        order.append(chosen)
    return tuple(order)
