"""Purity and mutual information against their definitions, counted slowly."""

import math
from collections import Counter

import numpy as np
import pytest

from jaxrec.tokenization.quality_categories import (
    above_chance,
    category_labels,
    entropy_of,
    prefix_purity,
)

GENERATOR = np.random.default_rng(0)
CODES = GENERATOR.integers(0, 4, (150, 3))
LABELS = ["red", "green", "blue", "grey"]
OF_ITEMS = [
    LABELS[code if draw < 0.6 else draw_label]
    for code, draw, draw_label in zip(
        CODES[:, 0], GENERATOR.random(150), GENERATOR.integers(0, 4, 150)
    )
]


def slow_purity(codes, labels):
    groups = {}
    for row, label in zip(map(tuple, codes), labels):
        groups.setdefault(row, []).append(label)
    return sum(Counter(group).most_common(1)[0][1] for group in groups.values()) / len(labels)


def slow_nmi(codes, labels):
    rows, n = list(map(tuple, codes)), len(labels)
    left, right, both = Counter(rows), Counter(labels), Counter(zip(rows, labels))
    information = sum(
        count / n * math.log(count * n / (left[row] * right[label]))
        for (row, label), count in both.items()
    )
    entropies = [
        -sum(count / n * math.log(count / n) for count in each.values()) for each in (left, right)
    ]
    return 2 * information / sum(entropies)


def test_purity_and_information_follow_their_definitions():
    found = prefix_purity(CODES, OF_ITEMS)
    assert (found["n_labelled"], found["n_categories"]) == (150, 4)
    assert [row["levels"] for row in found["prefixes"]] == [0, 1, 2, 3]
    for row in found["prefixes"][1:]:
        prefix = CODES[:, : row["levels"]]
        counts = Counter(map(tuple, prefix.tolist()))
        assert row["groups"] == len(counts)
        assert row["alone"] == sum(count == 1 for count in counts.values()) / 150
        assert row["purity"] == pytest.approx(slow_purity(prefix, OF_ITEMS))
        assert row["nmi"] == pytest.approx(slow_nmi(prefix, OF_ITEMS))
    whole = found["prefixes"][0]
    assert whole["purity"] == Counter(OF_ITEMS).most_common(1)[0][1] / 150
    assert (whole["groups"], whole["alone"], whole["nmi"]) == (1, 0.0, 0.0)


def test_closed_forms():
    codes = np.array([[0], [0], [1], [1]])
    same = prefix_purity(codes, ["a", "a", "b", "b"])["prefixes"][1]
    assert (same["purity"], same["nmi"]) == (1.0, pytest.approx(1.0))
    crossed = prefix_purity(codes, ["a", "b", "a", "b"])["prefixes"][1]
    assert (crossed["purity"], crossed["nmi"]) == (0.5, pytest.approx(0.0))
    alone = prefix_purity(np.arange(4)[:, None], ["a", "b", "a", "b"])["prefixes"][1]
    # Every item is a group: pure whatever the labels, and ln 2 of ln 4 nats are about them.
    assert (alone["purity"], alone["purity_chance"], alone["alone"]) == (1.0, 1.0, 1.0)
    assert alone["nmi"] == pytest.approx(2 * math.log(2) / (math.log(4) + math.log(2)))


def test_chance_is_what_random_codes_reach():
    codes = GENERATOR.integers(0, 40, (4000, 1))
    labels = [LABELS[each] for each in GENERATOR.integers(0, 4, 4000)]
    row = prefix_purity(codes, labels)["prefixes"][1]
    assert row["purity"] == pytest.approx(row["purity_chance"], abs=0.01)
    assert row["nmi"] == pytest.approx(row["nmi_chance"], abs=0.005)
    assert row["purity_chance"] > 0.27  # a quarter, and what small groups add
    followed = prefix_purity(
        np.repeat(np.arange(4), 1000)[:, None], np.repeat(LABELS, 1000).tolist()
    )
    assert followed["prefixes"][1]["purity"] == 1.0
    assert followed["prefixes"][1]["purity_chance"] == pytest.approx(0.25, abs=0.03)
    assert prefix_purity(codes, labels) == prefix_purity(codes, labels)
    assert prefix_purity(codes, labels, seed=1) != prefix_purity(codes, labels)


def test_items_without_a_label_do_not_matter():
    labels = [label if row % 3 else "" for row, label in enumerate(OF_ITEMS)]
    kept = np.array([bool(label) for label in labels])
    some = prefix_purity(CODES[kept], [label for label in labels if label])
    assert prefix_purity(CODES, labels) == some


def test_labels_are_picked():
    paths = [["Shop", "Nails", "Polish"], ["Shop", "Hair"], ["Shop"], [], ["Shop", "", "Hair"]]
    assert category_labels(paths) == ["Nails", "Hair", "Shop", "", "Hair"]
    assert category_labels(paths, "deepest") == ["Polish", "Hair", "Shop", "", "Hair"]
    assert category_labels(["a", "", "b"]) == ["a", "", "b"]
    # A root that is not common to all tells items apart.
    assert category_labels([["Shop", "x"], ["Other", "x"]]) == ["Shop", "Other"]
    # Two common roots are passed over, one common label without any below stays.
    assert category_labels([["A", "B", "c"], ["A", "B", "d"]]) == ["c", "d"]
    assert category_labels([["A"], ["A"]]) == ["A", "A"]


def test_wrong_labels_are_clear_errors():
    with pytest.raises(ValueError, match="3 labels for 150 items"):
        prefix_purity(CODES, ["a"] * 3)
    with pytest.raises(ValueError, match="no item has a category"):
        prefix_purity(CODES, [""] * 150)
    with pytest.raises(ValueError, match="take must be one of"):
        category_labels(["a"], "last")


def test_small_numbers():
    assert entropy_of(np.array([5, 0, 0])) == 0.0
    assert entropy_of(np.array([3, 3, 3])) == pytest.approx(math.log(3))
    assert above_chance(0.25, 0.5) == -0.5
