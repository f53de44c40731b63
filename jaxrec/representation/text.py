"""Items as text: which fields, in which order, written how. The choice is part of the recipe.

It moves results by several percent (METHODS R1), so it is a component, not a script before the run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Table = Mapping[str, Sequence[Any]]
"""Columns of the item table, one value per catalogue row."""


@dataclasses.dataclass(frozen=True)
class TextFields:
    """Writes each item as lines of "name: value".

    Values that are lists (also nested ones) are joined by `joiner`; missing values (None, NaN,
    blank text, an empty list) are skipped, so an item without any value has the empty text.

    Raises:
        ValueError: no field, a field named twice, or a template without `{value}`.

    >>> TextFields(("title", "tags")).write({"title": ["Up", None], "tags": [["a", "b"], []]})
    ['title: Up\\ntags: a, b', '']
    """

    fields: tuple[str, ...] = ("title",)
    """Columns of the item table, in the order of writing."""
    template: str = "{name}: {value}"
    """How one field is written; `{name}` may be left out, `{value}` may not."""
    separator: str = "\n"
    """What stands between two fields."""
    joiner: str = ", "
    """What stands between the values of one field."""

    def __post_init__(self) -> None:
        if not self.fields or len(set(self.fields)) != len(self.fields):
            raise ValueError(
                f"TextFields needs one or more different columns, got fields={self.fields}."
            )
        try:
            probe = self.template.format(name="", value="\0")
        except (KeyError, IndexError, ValueError) as error:
            probe, reason = "", f" ({type(error).__name__}: {error})"
        else:
            reason = ""
        if "\0" not in probe:
            raise ValueError(
                f"template {self.template!r} must hold {{value}} and may hold {{name}}, nothing "
                f"else in braces{reason}; for example '{{name}}: {{value}}'."
            )

    def write(self, table: Table) -> list[str]:
        """The text of every item.

        Raises:
            ValueError: a field is no column of the table, or the columns differ in length.
        """
        if absent := [name for name in self.fields if name not in table]:
            raise ValueError(
                f"the item table has no column {', '.join(map(repr, absent))}; it has "
                f"{', '.join(map(repr, sorted(table)))}. Change TextFields(fields=...)."
            )
        lengths = {name: len(table[name]) for name in self.fields}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of the item table differ in length: {lengths}.")
        columns = [[self._line(name, value) for value in table[name]] for name in self.fields]
        return [self.separator.join(line for line in lines if line) for lines in zip(*columns)]

    def _line(self, name: str, value: Any) -> str:
        text = self.joiner.join(_flatten(value))
        return self.template.format(name=name, value=text) if text else ""


def text_report(texts: Sequence[str]) -> dict[str, int]:
    """Counts what no encoder can mend.

    Returns:
        n_empty: items without text. n_duplicate_texts: items whose text an earlier item has.

    >>> text_report(["a", "", "a", ""])
    {'n_empty': 2, 'n_duplicate_texts': 2}
    """
    return {
        "n_empty": sum(not text for text in texts),
        "n_duplicate_texts": len(texts) - len(set(texts)),
    }


def _flatten(value: Any) -> Iterable[str]:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return
    if isinstance(value, str):
        # Line breaks inside a value would look like another field.
        if text := " ".join(value.split()):
            yield text
    elif isinstance(value, Iterable):
        for each in value:
            yield from _flatten(each)
    else:
        yield str(value)
