"""Overlap and neighbourhoods of pairs against slow loops, and closed forms for ties and chance."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from jaxrec.tokenization import quality_behaviour
from jaxrec.tokenization.quality_behaviour import (
    chance_hits,
    check_pairs,
    forge_like,
    prefix_overlap,
    successive_pairs,
    thin_pairs,
    vector_hits,
)

GENERATOR = np.random.default_rng(0)
CODES = GENERATOR.integers(0, 4, (90, 3)).astype(np.int32)
BOOKS = GENERATOR.normal(size=(3, 4, 6))
PAIRS = GENERATOR.integers(0, 90, (400, 2))
PAIRS = PAIRS[PAIRS[:, 0] != PAIRS[:, 1]]


def decode(codes):
    return sum(BOOKS[level][codes[:, level]] for level in range(codes.shape[1]))


def test_successive_items_of_one_user():
    offsets = np.array([0, 3, 3, 4, 8])
    item = np.array([5, 6, 7, 1, 2, 2, 3, 2], np.int32)
    found = successive_pairs(SimpleNamespace(offsets=offsets, item=item))
    assert found.dtype == np.int32
    # No pair crosses users, and no item is paired with itself.
    assert found.tolist() == [[5, 6], [6, 7], [2, 3], [3, 2]]
    nobody = SimpleNamespace(offsets=np.array([0, 0]), item=np.zeros(0, np.int32))
    assert successive_pairs(nobody).shape == (0, 2)
    assert thin_pairs(found, 9) is found
    assert thin_pairs(found, 2).tolist() == [[5, 6], [3, 2]]


def test_overlap_follows_its_definition():
    def shared(a, b):
        same = CODES[a] == CODES[b]
        return 3 if same.all() else int(same.argmin())

    ours = np.array([shared(a, b) for a, b in PAIRS])
    every = np.array([shared(a, b) for a in range(90) for b in range(90) if a != b])
    found = prefix_overlap(CODES, PAIRS)
    assert found["n_pairs"] == len(PAIRS)
    assert found["overlap"] == pytest.approx(ours.mean() / 3)
    assert found["overlap_chance"] == pytest.approx(every.mean() / 3)
    for row in found["prefixes"]:
        assert row["pairs"] == pytest.approx((ours >= row["levels"]).mean())
        assert row["chance"] == pytest.approx((every >= row["levels"]).mean())


def slow_hits(points, pairs, k):
    """Places one by one; items at equal distance share theirs."""
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    hits = []
    for query, partner in pairs:
        near = unit @ unit[query]
        others = [row for row in range(len(points)) if row != query]
        above = sum(near[row] > near[partner] + 1e-9 for row in others)
        equal = sum(abs(near[row] - near[partner]) <= 1e-9 for row in others)
        hits.append(min(max((k - above) / equal, 0.0), 1.0))
    return np.mean(hits)


@pytest.mark.parametrize("block", [2**23, 90 * 4])
def test_neighbourhoods_follow_their_definition(monkeypatch, block):
    monkeypatch.setattr(quality_behaviour, "_BLOCK", block)
    cutoffs = (1, 5, 20, 89)
    found = forge_like(CODES, decode, PAIRS, cutoffs=cutoffs)
    points = decode(CODES)
    assert list(found) == ["hr@1", "hr@5", "hr@20", "hr@89"]
    for k in cutoffs:
        assert found[f"hr@{k}"] == pytest.approx(slow_hits(points, PAIRS, k), abs=1e-9)
    assert found["hr@89"] == 1.0
    vectors = np.concatenate([points[:60], points[:30]])  # every third row is a duplicate
    hits = vector_hits(vectors.astype(np.float32), PAIRS, cutoffs=cutoffs)
    for k in cutoffs:
        assert hits[f"hr@{k}"] == pytest.approx(slow_hits(vectors, PAIRS, k), abs=1e-9)


def test_a_collapsed_index_hits_by_chance():
    """Every item at one point: K of the 89 others, whatever their ids."""
    same = np.zeros_like(CODES)
    assert forge_like(same, decode, PAIRS) == pytest.approx(chance_hits(90))
    assert chance_hits(90) == {"hr@10": 10 / 89, "hr@100": 1.0}
    # Items without a vector are as near as a right angle, and no number is lost to 0 / 0.
    assert vector_hits(np.zeros((90, 4), np.float32), PAIRS) == pytest.approx(chance_hits(90))


def test_pairs_that_the_codes_know_are_found():
    codes = np.repeat(np.arange(30), 2)[:, None]
    points = GENERATOR.normal(size=(30, 8))
    partners = np.arange(60).reshape(30, 2)
    found = forge_like(codes, lambda some: points[some[:, 0]], partners, cutoffs=(1,))
    assert found == {"hr@1": 1.0}
    others = (partners + np.array([0, 2])) % 60
    assert forge_like(codes, lambda some: points[some[:, 0]], others, cutoffs=(1,))["hr@1"] < 1


def test_a_frequent_pair_counts_often():
    twice = np.concatenate([PAIRS, PAIRS[:1], PAIRS[:1]])
    assert forge_like(CODES, decode, np.concatenate([PAIRS, PAIRS])) == pytest.approx(
        forge_like(CODES, decode, PAIRS)
    )
    one, all_ = (forge_like(CODES, decode, some)["hr@10"] for some in (PAIRS[:1], PAIRS))
    weighted = (one * 2 + all_ * len(PAIRS)) / (len(PAIRS) + 2)
    assert forge_like(CODES, decode, twice)["hr@10"] == pytest.approx(weighted)
    itself = np.concatenate([PAIRS, [[3, 3]]])
    assert forge_like(CODES, decode, itself) == forge_like(CODES, decode, PAIRS)


def test_a_catalogue_of_thousands_is_quick():
    codes = GENERATOR.integers(0, 64, (12_000, 3))
    books = GENERATOR.normal(size=(3, 64, 32)).astype(np.float32)
    pairs = GENERATOR.integers(0, 12_000, (5_000, 2))
    start = time.process_time()
    found = forge_like(
        codes, lambda some: sum(books[level][some[:, level]] for level in range(3)), pairs
    )
    # A tenth of a second in truth; pairs in a slow loop over items would take minutes.
    assert time.process_time() - start < 10
    assert found["hr@100"] == pytest.approx(chance_hits(12_000)["hr@100"], abs=0.006)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (np.zeros((3, 3), int), r"pairs must be integers \[m, 2\], got int64 \(3, 3\)"),
        (np.zeros((3, 2)), r"pairs must be integers \[m, 2\], got float64"),
        (np.array([[0, 90]]), r"pairs name items 0\.\.90, outside the catalogue, 0\.\.89"),
        (np.array([[-1, 2]]), r"pairs name items -1\.\.2, outside"),
        (np.array([[4, 4]]), "no pair of two different items"),
        (np.zeros((0, 2), int), "no pair of two different items"),
    ],
)
def test_wrong_pairs_are_clear_errors(pairs, message):
    for check in (prefix_overlap, lambda codes, some: check_pairs(some, len(codes))):
        with pytest.raises(ValueError, match=message):
            check(CODES, pairs)
