"""Do the codes follow the categories of the items: purity and mutual information by prefix.

METHODS T23. Small groups are pure whatever is in them, and many groups share information with any
labels; so each number stands beside its chance, the same with the labels dealt out at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrec.tokenization.leaves import bucket_numbers

TAKE = ("first", "deepest")
"""Which of an item's labels counts: the first that tells items apart, or the last."""

Categories = Sequence[str | Sequence[str]]
"""Of each item a label, or its labels from broad to narrow; an empty one is none."""


def category_labels(categories: Categories, take: str = "first") -> list[str]:
    """One label an item; "" where it has none.

    A broadest label that all labelled items have in common (the root of a tree, such as the shop's
    department) is passed over where any item has a further one.

    Args:
        categories: of each item a label, or its labels from broad to narrow.
        take: `first` or `deepest`.

    Raises:
        ValueError: another `take`.

    >>> category_labels([["Beauty", "Nails", "Polish"], ["Beauty", "Hair"], []])
    ['Nails', 'Hair', '']
    >>> category_labels([["Beauty", "Nails", "Polish"], ["Beauty", "Hair"], []], "deepest")
    ['Polish', 'Hair', '']
    """
    if take not in TAKE:
        raise ValueError(f"take must be one of {TAKE}, got {take!r}.")
    paths = [[each] if isinstance(each, str) else list(each) for each in categories]
    paths = [[label for label in path if label] for path in paths]
    while len({path[0] for path in paths if path}) == 1 and any(len(path) > 1 for path in paths):
        # What has no further label keeps the root, which then is a label like others.
        paths = [path[1:] or path for path in paths]
    place = 0 if take == "first" else -1
    return [path[place] if path else "" for path in paths]


def prefix_purity(codes: np.ndarray, labels: Sequence[str], *, seed: int = 0) -> dict[str, Any]:
    """How far the groups that share a prefix are of one category, for every length of prefix.

    purity = sum_g max_c n_gc / n: share of items whose label is their group's most frequent one.
    nmi = 2 I(group; label) / (H(group) + H(label)), 0 where either is the same for all items.

    Args:
        codes: int[n, l].
        labels: of the n items, for example of `category_labels`; items without one are left out.
        seed: of the random deal behind the chances.

    Returns:
        `n_labelled`, `n_categories`, and `prefixes`, for p = 0 .. l: `levels` = p, `groups`,
        `alone` = share of the items that are their whole group, `purity`, `nmi`, and
        `purity_chance`, `nmi_chance` with the labels dealt out at random. Row 0 is the whole
        catalogue as one group: its purity is the share of the largest category.

    Raises:
        ValueError: as many labels as items missing, or no label at all.

    >>> rows = prefix_purity(np.array([[0], [0], [1], [1]]), ["a", "a", "b", "a"])["prefixes"]
    >>> [row["purity"] for row in rows]
    [0.75, 0.75]
    """
    if len(labels) != len(codes):
        raise ValueError(f"{len(labels)} labels for {len(codes)} items; give one each, or ''.")
    names = np.asarray(labels, str)
    labelled = names != ""
    if not labelled.any():
        raise ValueError("no item has a category; leave categories out, or name another column.")
    label = np.unique(names[labelled], return_inverse=True)[1]
    dealt = np.random.default_rng(seed).permutation(label)
    rows = []
    for levels in range(codes.shape[1] + 1):
        group = bucket_numbers(codes[labelled][:, :levels])
        sizes = np.bincount(group)
        purity, nmi = _agreement(group, label)
        purity_chance, nmi_chance = _agreement(group, dealt)
        rows.append(
            {
                "levels": levels,
                "groups": len(sizes),
                "alone": float((sizes == 1).sum() / len(group)),
                "purity": purity,
                "purity_chance": purity_chance,
                "nmi": nmi,
                "nmi_chance": nmi_chance,
            }
        )
    counts = {"n_labelled": len(label), "n_categories": int(label.max()) + 1}
    return {**counts, "prefixes": rows}


def above_chance(value: float, chance: float) -> float:
    """A share on the scale where chance is 0 and the best possible 1.

    >>> above_chance(0.75, 0.5), above_chance(1.0, 1.0)
    (0.5, 0.0)
    """
    return (value - chance) / (1.0 - chance) if chance < 1.0 else 0.0


def _agreement(group: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """Purity and normalised mutual information of two int[n], each numbered from 0."""
    cells, counts = np.unique(
        group.astype(np.int64) * (label.max() + 1) + label, return_counts=True
    )
    starts = np.searchsorted(cells // (label.max() + 1), np.arange(group.max() + 1))
    purity = float(np.maximum.reduceat(counts, starts).sum() / len(group))
    alone = [entropy_of(np.bincount(each)) for each in (group, label)]
    if min(alone) == 0.0:
        return purity, 0.0
    return purity, max(0.0, 2.0 * (sum(alone) - entropy_of(counts)) / sum(alone))


def entropy_of(counts: np.ndarray) -> float:
    """Entropy of counts in nats; zeros count for nothing.

    >>> round(entropy_of(np.array([2, 2, 0])), 4)
    0.6931
    """
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum()) + 0.0
