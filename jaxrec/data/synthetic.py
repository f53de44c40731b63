"""A synthetic world whose best possible recommender is known.

Items hang in a tree (category, subcategory, brand), and their titles are written from it, so that
text tells what users will do. Users are Markov chains with a known transition matrix, so that the
hit rate of the best ranking, given the last event, is a number and not an estimate.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32, Int64

from jaxrec.data.dataset import Frame, write_dataset

EXPOSED, CLICKED, ORDERED = "exposed", "clicked", "ordered"
"""What became of an item of a page; an ordered item was clicked too."""
EVENTS = (EXPOSED, CLICKED, ORDERED)

_START = 1_600_000_000  # an arbitrary second of 2020
_GAP_SECONDS = 6 * 3600
_WORDS = (
    ("kitchen", "kettle", "pan", "knife", "toaster", "bowl", "grater"),
    ("garden", "spade", "hose", "rake", "planter", "shears", "trellis"),
    ("beauty", "lipstick", "shampoo", "perfume", "lotion", "mascara", "soap"),
    ("sports", "racket", "dumbbell", "helmet", "ball", "paddle", "skates"),
    ("music", "guitar", "drum", "violin", "flute", "piano", "trumpet"),
    ("office", "stapler", "notebook", "pencil", "binder", "lamp", "envelope"),
    ("toys", "puzzle", "doll", "kite", "robot", "marbles", "puppet"),
    ("clothing", "jacket", "scarf", "boots", "sweater", "gloves", "hat"),
)
"""Names of categories and their first subcategories; larger worlds get invented words."""
_STYLES = ("classic", "light", "deep", "soft", "bright", "dry", "pure", "bold", "calm", "fresh")
_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "st")
_VOWELS = ("a", "e", "i", "o", "u")
_BLOCK = 1024  # rows of the transition matrix held at once


@dataclasses.dataclass(frozen=True)
class Hierarchy:
    """The tree of the items, and how they are liked. One row an item."""

    category: np.ndarray
    """int32[n]."""
    subcategory: np.ndarray
    """int32[n], rising; numbered over all categories."""
    brand: np.ndarray
    """int32[n], numbered over all categories; a brand stays in its category."""
    style: np.ndarray
    """int32[n]."""
    popularity: np.ndarray
    """float64[n], sums to 1."""
    successor: np.ndarray
    """int32[n], the item that tends to follow."""


@dataclasses.dataclass(frozen=True)
class SyntheticWorld:
    """Markov users over a tree of items.

    The first event is drawn by popularity (a Zipf law over randomly ordered items). After item `i`
    comes, with probability `successor`, the one fixed successor of `i` (of the same category);
    with probability `stay`, an item of the subcategory of `i` by popularity; else any item by
    popularity. Repeats are allowed. Lengths do not depend on the items, so held-out targets follow
    the same law, and `bayes_hit_rate` is exact for any case whose history is not empty. Two items
    of equal probability rank by lower row.

    With `page_size > 0` every event is also shown as a page: the chosen item (clicked, or ordered
    with probability `order_rate`) among others that were only exposed, with `page` and `position`.
    Histories then consist of clicked and ordered events, which dataset.json declares.

    Raises:
        ValueError: numbers that make no world.
    """

    items: int = 500
    """Size of the catalogue."""
    users: int = 2000
    """Number of users."""
    categories: int = 5
    """Roots of the tree."""
    subcategories: int = 4
    """Subcategories of each category."""
    brands: int = 3
    """Brands of each category."""
    min_events: int = 5
    """Events of a user at least."""
    mean_events: float = 12.0
    """Mean events of a user; the excess over the least is geometric."""
    successor: float = 0.35
    """Probability of the fixed successor."""
    stay: float = 0.45
    """Probability of staying in the subcategory."""
    zipf: float = 0.8
    """Exponent of popularity."""
    page_size: int = 0
    """Items of a page at most; 0 writes no pages."""
    order_rate: float = 0.3
    """Share of clicked items that are ordered."""
    seed: int = 0
    """Everything random follows from it."""

    def __post_init__(self) -> None:
        leaves = self.categories * self.subcategories
        if min(self.categories, self.subcategories, self.brands, self.users) < 1:
            raise ValueError("SyntheticWorld: categories, subcategories, brands, users start at 1.")
        if self.items < 2 * leaves:
            raise ValueError(
                f"SyntheticWorld: {self.items} items for {leaves} subcategories; every one needs "
                f"two. Use at least {2 * leaves} items."
            )
        if not (self.successor >= 0 and self.stay >= 0 and self.successor + self.stay <= 1):
            raise ValueError(
                f"SyntheticWorld: successor={self.successor} and stay={self.stay} are "
                "probabilities that together are at most 1."
            )
        if self.min_events < 1 or self.mean_events < self.min_events:
            raise ValueError(
                f"SyntheticWorld: mean_events={self.mean_events} must be at least "
                f"min_events={self.min_events}, and that at least 1."
            )
        if not 0 <= self.page_size <= self.items or not 0 <= self.order_rate <= 1:
            raise ValueError(
                f"SyntheticWorld: page_size={self.page_size} must be in 0..{self.items}, and "
                f"order_rate={self.order_rate} in 0..1."
            )

    @functools.cached_property
    def hierarchy(self) -> Hierarchy:
        """The tree, popularity and successors."""
        generator = self._generator("hierarchy")
        leaves = self.categories * self.subcategories
        subcategory = np.arange(self.items, dtype=np.int32) * leaves // self.items
        category = subcategory // self.subcategories
        brand = category * self.brands + generator.integers(self.brands, size=self.items)
        weight = (1.0 + generator.permutation(self.items)) ** -self.zipf
        return Hierarchy(
            category=category.astype(np.int32),
            subcategory=subcategory.astype(np.int32),
            brand=brand.astype(np.int32),
            style=generator.integers(len(_STYLES), size=self.items).astype(np.int32),
            popularity=weight / weight.sum(),
            successor=_successors(category, generator),
        )

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes the canonical dataset folder; items are in the order of catalogue rows."""
        import polars as pl

        sequences, lengths = self.sequences()
        user = np.repeat(np.arange(self.users), lengths)
        log = {"user": user, "row": sequences, "timestamp": self._times(lengths)}
        if self.page_size:
            log = self._pages(log)
        columns: list[Any] = [pl.format("u{}", "user").alias("user")]
        if self.page_size:
            kinds = pl.Series("kind", EVENTS)
            columns += [pl.format("p{}", "page").alias("page")]
            columns += [kinds.gather(log.pop("kind")).alias("event")]
        columns += [pl.Series("item", self.item_ids()).gather(log.pop("row"))]
        write_dataset(
            folder,
            pl.DataFrame(log).with_columns(columns),
            self.item_frame(),
            name=f"synthetic-{self.items}x{self.users}",
            source=f"jaxrec.data.synthetic.SyntheticWorld, seed {self.seed}",
            licence="Apache-2.0",
            history_events=(CLICKED, ORDERED) if self.page_size else (),
        )

    def fingerprint(self) -> dict[str, Any]:
        """The fields: equal worlds write equal folders."""
        return dataclasses.asdict(self)

    def item_ids(self) -> list[str]:
        """Item ids in the order of catalogue rows."""
        return [f"i{row:05d}" for row in range(self.items)]

    def item_frame(self) -> Frame:
        """The columns of items.parquet: id, title, category, subcategory, brand."""
        tree = self.hierarchy
        categories = [_name(index, 0) for index in range(self.categories)]
        leaves = [
            _name(index, 1 + inner)
            for index in range(self.categories)
            for inner in range(self.subcategories)
        ]
        brands = [_word(3, index).title() for index in range(self.categories * self.brands)]
        number = np.arange(self.items) - np.searchsorted(tree.subcategory, tree.subcategory)
        titles = [
            f"{brands[brand]} {_STYLES[style]} {leaves[leaf]} No. {index + 1}"
            for brand, style, leaf, index in zip(tree.brand, tree.style, tree.subcategory, number)
        ]
        return {
            "item": self.item_ids(),
            "title": titles,
            "category": [categories[each] for each in tree.category],
            "subcategory": [leaves[each] for each in tree.subcategory],
            "brand": [brands[each] for each in tree.brand],
        }

    def sequences(self) -> tuple[Int32[np.ndarray, " e"], Int64[np.ndarray, " u"]]:
        """The items of all users' events, one user after the other, and each user's number."""
        generator = self._generator("users")
        lengths = np.full(self.users, self.min_events, np.int64)
        excess = self.mean_events - self.min_events
        if excess > 0:
            lengths += generator.geometric(1.0 / (1.0 + excess), self.users) - 1
        tree = self.hierarchy
        cumulative, first, mass = self._subcategory_cumulative()
        begin = np.cumsum(lengths) - lengths
        flat = np.zeros(int(lengths.sum()), np.int32)
        # Longest histories first: those that go on are always the first ones of this order.
        order = np.argsort(-lengths, kind="stable")
        going_on = np.cumsum(np.bincount(lengths)[::-1])[::-1]
        for step in range(int(lengths.max())):
            users = order[: going_on[step + 1]]
            branch, draw = generator.random((2, len(users)))
            item = _invert(cumulative, draw)
            if step:
                last = flat[begin[users] + step - 1]
                leaf = tree.subcategory[last]
                stayed = _invert(cumulative, first[leaf] + draw * mass[leaf])
                stayed = self._inside(stayed, leaf)
                item = np.where(branch < self.successor + self.stay, stayed, item)
                item = np.where(branch < self.successor, tree.successor[last], item)
            flat[begin[users] + step] = item
        return flat, lengths

    def transition(self, last: Int32[np.ndarray, " b"]) -> Float64[np.ndarray, "b n"]:
        """Probability of every item after each last item."""
        tree = self.hierarchy
        _, _, mass = self._subcategory_cumulative()
        same = tree.subcategory[last][:, None] == tree.subcategory[None, :]
        rest = 1.0 - self.successor - self.stay
        within = np.where(same, tree.popularity / mass[tree.subcategory], 0.0)
        probability = self.stay * within + rest * tree.popularity
        probability[np.arange(len(last)), tree.successor[last]] += self.successor
        return probability

    def bayes_ranking(self, last: Int32[np.ndarray, " b"], k: int) -> Int32[np.ndarray, "b k"]:
        """The `k` likeliest next items after each last item, best first: no ranking that knows
        the last item only, or all history, hits more often."""
        return self._by_last(last, lambda row: np.argsort(-row, axis=1, kind="stable")[:, :k])

    def bayes_hit_rate(
        self, last: Int32[np.ndarray, " b"], ks: Sequence[int] = (1, 5, 10, 50)
    ) -> dict[int, float]:
        """Expected HR@K of the Bayes ranking on cases with these last items, for each K.

        The mean over cases of the probability that the K likeliest items hold.
        """
        columns = [min(k, self.items) - 1 for k in ks]
        held = self._by_last(
            last, lambda row: np.cumsum(-np.sort(-row, axis=1), axis=1)[:, columns]
        )
        return {k: float(value) for k, value in zip(ks, held.mean(axis=0))}

    def _by_last(self, last: np.ndarray, compute: Any) -> np.ndarray:
        """compute(rows of the transition matrix) for each case; equal last items share a row."""
        unique, inverse = np.unique(np.asarray(last, np.int32), return_inverse=True)
        blocks = [
            compute(self.transition(unique[start : start + _BLOCK]))
            for start in range(0, len(unique), _BLOCK)
        ]
        found = np.concatenate(blocks)
        return (found.astype(np.int32) if found.dtype.kind == "i" else found)[inverse]

    def _subcategory_cumulative(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cumulative popularity (items are sorted by subcategory), where each subcategory begins
        in it, and its mass."""
        tree = self.hierarchy
        mass = np.bincount(tree.subcategory, weights=tree.popularity)
        return np.cumsum(tree.popularity), np.cumsum(mass) - mass, mass

    def _inside(self, item: np.ndarray, leaf: np.ndarray) -> np.ndarray:
        """Items moved into their subcategory: rounding at its ends may have left it."""
        bounds = np.searchsorted(self.hierarchy.subcategory, np.arange(leaf.max() + 2))
        return np.clip(item, bounds[leaf], bounds[leaf + 1] - 1).astype(np.int32)

    def _times(self, lengths: np.ndarray) -> np.ndarray:
        """Seconds of all events: a start for each user, then gaps of at least one second."""
        generator = self._generator("times")
        gap = 1 + generator.exponential(_GAP_SECONDS, int(lengths.sum())).astype(np.int64)
        first = np.cumsum(lengths) - lengths
        gap[first] += generator.integers(0, 90 * 86400, len(lengths))
        total = np.cumsum(gap)
        before = np.where(first > 0, total[first - 1], 0)
        return _START + total - np.repeat(before, lengths)

    def _pages(self, log: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One page an event: the chosen item at a random position among exposed ones.

        The others are drawn by popularity, half of them from the subcategory of the chosen item;
        one that comes twice is shown once, so pages differ in size.
        """
        generator = self._generator("pages")
        chosen, pages, size = log["row"], len(log["row"]), self.page_size
        tree = self.hierarchy
        cumulative, first, mass = self._subcategory_cumulative()
        leaf = tree.subcategory[chosen][:, None]
        draw = generator.random((pages, size))
        near = self._inside(_invert(cumulative, first[leaf] + draw * mass[leaf]), leaf)
        shown = np.where(np.arange(size) % 2 == 0, near, _invert(cumulative, draw))
        place = generator.integers(0, size, pages)
        shown[np.arange(pages), place] = chosen
        is_chosen = np.arange(size) == place[:, None]
        is_new = _first_of_each(shown, is_chosen)
        kind = np.where(generator.random(pages) < self.order_rate, 2, 1)
        event = np.where(is_chosen, kind[:, None], 0)
        page = np.broadcast_to(np.arange(pages)[:, None], shown.shape)[is_new]
        return {
            "user": log["user"][page],
            "row": shown[is_new],
            "timestamp": log["timestamp"][page],
            "kind": event[is_new],
            "page": page,
            "position": (np.cumsum(is_new, axis=1) - 1)[is_new],
        }

    def _generator(self, purpose: str) -> np.random.Generator:
        # A stream for each purpose: adding pages does not change the users.
        return np.random.default_rng([self.seed, *purpose.encode()])


def _successors(category: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random cycle through each category: nobody is its own successor."""
    successor = np.zeros(len(category), np.int32)
    for each in np.unique(category):
        members = generator.permutation(np.flatnonzero(category == each))
        successor[members] = np.roll(members, -1)
    return successor


def _invert(cumulative: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The item whose stretch of a cumulative distribution holds each value."""
    item = np.searchsorted(cumulative, value, side="right")
    return np.minimum(item, len(cumulative) - 1).astype(np.int32)


def _first_of_each(shown: np.ndarray, is_chosen: np.ndarray) -> np.ndarray:
    """Which items of each page are kept: the chosen one, and the first of every other."""
    # Sorting by item, the chosen one first, puts repeats behind the one that is kept.
    order = np.lexsort((~is_chosen, shown), axis=1)
    ordered = np.take_along_axis(shown, order, axis=1)
    is_first = np.ones(shown.shape, bool)
    is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    kept = np.zeros(shown.shape, bool)
    np.put_along_axis(kept, order, is_first, axis=1)
    return kept


def _name(category: int, inner: int) -> str:
    """The name of a category (inner 0) or of its subcategory `inner`: known, else invented."""
    if category < len(_WORDS) and inner < len(_WORDS[category]):
        return _WORDS[category][inner]
    return _word(5, category * 1009 + inner)


def _word(syllables: int, index: int) -> str:
    """A pronounceable word; different indices below 80**syllables give different words."""
    letters = []
    # 80 = 2**4 * 5: an odd multiplier that 5 does not divide visits every word once.
    index = index * 2654435761 % 80**syllables
    for _ in range(syllables):
        index, syllable = divmod(index, 80)
        letters.append(_ONSETS[syllable // 5] + _VOWELS[syllable % 5])
    return "".join(reversed(letters))
