"""What the rows of a report are called, and what kind of method a row's name says it is."""

from __future__ import annotations

import re
from collections.abc import Collection

GENERATOR = "generator"
"""A trained generator of semantic IDs; every other row is a baseline of it."""
RETRIEVER = "retriever"
"""A trained network that scores every item."""
MIXED = f"{RETRIEVER} + transitions"
"""Its convex mix with counted transitions."""


def is_generator(method: str) -> bool:
    """Whether a method is a trained generator of semantic IDs, or a mix with one.

    >>> [is_generator(name) for name in ("generator", "retriever", "transitions + validation")]
    [True, False, False]
    """
    return GENERATOR in re.findall(r"\w+", method)


def is_trained(method: str, generators: Collection[str] = ()) -> bool:
    """Whether a row belongs to the run that trained it; the others are counters, the same in all.

    Args:
        method: name of the row.
        generators: what the run itself calls its trained methods.

    >>> [is_trained(name) for name in ("retriever", "mix", "popularity")]
    [True, True, False]
    """
    words = set(re.findall(r"\w+", method))
    return method in generators or bool(words & {GENERATOR, RETRIEVER, "mix"})


def kind_of(method: str, generators: Collection[str] = ()) -> str:
    """One of untrained, retriever, mix and generator.

    >>> [kind_of(name) for name in ("popularity", "retriever", "retriever + transitions")]
    ['untrained', 'retriever', 'mix']
    """
    if not is_trained(method, generators):
        return "untrained"
    if is_generator(method):
        return GENERATOR
    return "mix" if re.search(r"\+|\bmix\b", method) else RETRIEVER
