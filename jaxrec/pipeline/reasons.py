"""What can honestly be said about a recommendation, beside that the model made it.

The score is the model's. All else are facts about the item, the history and the training log that
stand beside the recommendation: nobody knows whether the model used them, so no text says
"because".
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import numpy as np

from jaxrec.evaluation.baselines import count_transitions
from jaxrec.pipeline.stages import Prepared
from jaxrec.tokenization.item_ids import has_item_ids
from jaxrec.tokenization.semantic_ids import SemanticIds, codes_as_text

MOST_SHARED = 3
"""Items of a history that are named for sharing a prefix."""

LAST = 3
"""Newest items of a history whose successors in training are looked at."""


@dataclasses.dataclass(frozen=True)
class Reason:
    """One fact beside a recommendation."""

    kind: str
    """`score`, `seen`, `shared_prefix`, `transition`, `popularity` or `cold`."""
    text: str
    """The fact in words."""
    facts: dict[str, Any]
    """The fact in numbers and ids, by name."""


@dataclasses.dataclass(frozen=True, eq=False)
class Explainer:
    """Looks facts up. Made once a run by `explainer`; `n` items, `s` semantic levels."""

    items: np.ndarray
    """Item ids (numpy text)."""
    titles: list[str]
    codes: np.ndarray
    """int32[n, s]: codes without the extra digit, which means nothing."""
    under: np.ndarray
    """int64[n, s]: items of the catalogue that share the first 1 .. s codes with each item."""
    popularity: np.ndarray
    """int64[n]: training events of each item."""
    place: np.ndarray
    """int64[n]: 1 + the number of items with more training events."""
    pair: np.ndarray
    """int64[z], ascending: `a * n + b` for each item b that directly followed a in training."""
    pair_count: np.ndarray
    """int64[z]: how often it did."""
    is_retriever: bool = False
    """Whether scores are inner products; there are no semantic IDs then."""

    def __call__(
        self, history: np.ndarray, items: np.ndarray, scores: np.ndarray
    ) -> list[list[Reason]]:
        """The reasons of each item of an answer.

        In this order: the score; whether the history has the item itself; up to MOST_SHARED items
        of the history that share the first codes of the semantic ID, the longest prefix first and
        then the newest; which of the LAST newest items it followed most often in training; its
        popularity in training, or that nobody had it.

        Args:
            history: int[t], what the generator read, oldest first.
            items: int[r], the items of the answer.
            scores: float[r], their log-probabilities, or a retriever's inner products.
        """
        distinct = dict.fromkeys(history[::-1].tolist())
        newest = np.array(list(distinct), np.int64)
        shared = self._shared(newest, items)
        nearest = np.argsort(-shared, axis=1, kind="stable")[:, :MOST_SHARED]
        counts = self._followed(newest[:LAST], items)
        found = []
        for row, (item, score) in enumerate(zip(items.tolist(), scores.tolist())):
            reasons = [_score(score, self.is_retriever)]
            if item in distinct:
                reasons.append(Reason("seen", "is in the history itself", {}))
            for place in nearest[row].tolist():
                if levels := int(shared[row, place]):
                    reasons.append(self._prefix(item, int(newest[place]), levels))
            if counts.shape[1] and (most := int(counts[row].max())):
                source = int(newest[counts[row].argmax()])
                reasons.append(self._transition(source, most))
            found.append([*reasons, self._fame(item)])
        return found

    def _shared(self, newest: np.ndarray, items: np.ndarray) -> np.ndarray:
        """int64[r, t]: first codes that each item shares with each other item of a history."""
        equal = self.codes[items][:, None] == self.codes[newest][None]
        shared = np.cumprod(equal, axis=-1, dtype=np.int64).sum(-1)
        return np.where(items[:, None] == newest[None], 0, shared)

    def _followed(self, newest: np.ndarray, items: np.ndarray) -> np.ndarray:
        """int64[r, t]: how often each item directly followed each other item in training."""
        keys = newest[None] * len(self.items) + items[:, None]
        if not len(self.pair):
            return np.zeros(keys.shape, np.int64)
        place = np.minimum(np.searchsorted(self.pair, keys), len(self.pair) - 1)
        return np.where(self.pair[place] == keys, self.pair_count[place], 0)

    def _prefix(self, item: int, other: int, levels: int) -> Reason:
        prefix = semantic_text(tuple(self.codes[item, :levels].tolist()))
        under = int(self.under[item, levels - 1])
        name = title_of(self.titles, other)
        facts = {"prefix": prefix, "levels": levels, **self._named(other), "items_under": under}
        text = f"shares {prefix} with {name}; {under} of {len(self.items)} items are under it"
        return Reason("shared_prefix", text, facts)

    def _transition(self, source: int, count: int) -> Reason:
        name, times = title_of(self.titles, source), "time" if count == 1 else "times"
        text = (
            f"statistic, not the model's reason: {count} {times} in training it came directly after"
        )
        return Reason("transition", f"{text} {name}", {**self._named(source), "count": count})

    def _fame(self, item: int) -> Reason:
        events, place = int(self.popularity[item]), int(self.place[item])
        if not events:
            return Reason("cold", "nobody in training had this item", {})
        text = f"statistic: number {place} of {len(self.items)} by training events ({events})"
        facts = {"place": place, "of": len(self.items), "events": events}
        return Reason("popularity", text, facts)

    def _named(self, item: int) -> dict[str, str]:
        return {"item": str(self.items[item]), "title": title_of(self.titles, item)}


def explainer(data: Prepared, ids: SemanticIds) -> Explainer:
    """Counts what reasons are made of: one pass over the training events.

    Args:
        data: the run's log (`Finished.data`).
        ids: the run's semantic IDs (`Finished.tokens.ids`).
    """
    histories = data.histories
    codes = np.asarray(ids.codes)[:, : ids.semantic_levels]
    counted = count_transitions(
        np.asarray(histories.offsets),
        data.split.train_end,
        np.asarray(histories.item),
        histories.num_items,
    )
    sources = np.repeat(np.arange(counted.num_items), np.diff(counted.offsets))
    ascending = np.sort(data.popularity)
    more = len(ascending) - np.searchsorted(ascending, data.popularity, side="right")
    return Explainer(
        # A view that is no memmap, whose elements are slow to read one by one.
        items=np.asarray(histories.items),
        titles=data.titles,
        codes=codes,
        under=items_under(codes),
        popularity=data.popularity,
        place=more + 1,
        pair=sources * counted.num_items + counted.successor,
        pair_count=counted.count,
        is_retriever=has_item_ids(ids),
    )


def items_under(codes: np.ndarray) -> np.ndarray:
    """How many rows share the first 1, 2, .. s codes with each row, itself included: int64[n, s].

    >>> items_under(np.array([[0, 1], [0, 2], [0, 1], [3, 1]])).tolist()
    [[3, 2], [3, 1], [3, 2], [1, 1]]
    """
    group = np.zeros(len(codes), np.int64)
    counts = np.zeros(codes.shape, np.int64)
    for level in range(codes.shape[1]):
        wide = group * (int(codes[:, level].max(initial=0)) + 1) + codes[:, level]
        _, group, size = np.unique(wide, return_inverse=True, return_counts=True)
        counts[:, level] = size[group]
    return counts


def title_of(titles: list[str], item: int) -> str:
    """The title of an item as one line, without control characters (a terminal obeys those)."""
    title = titles[item]
    if title.isprintable():
        return title
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", title).split())


@functools.lru_cache(maxsize=1 << 16)
def semantic_text(codes: tuple[int, ...]) -> str:
    """`codes_as_text` for codes that come again and again."""
    return codes_as_text(codes)


def _score(score: float, is_retriever: bool) -> Reason:
    if is_retriever:
        text = f"inner product {score:.2f} of its vector with this history's"
        return Reason("score", text, {"inner_product": score})
    text = f"log-probability {score:.2f} of its semantic ID after this history"
    return Reason("score", text, {"log_probability": score})
