"""Codes as a tree: numbers of buckets, distances below prefixes, and the search for a place."""

import numpy as np
import pytest

from jaxrec.tokenization.leaves import (
    Held,
    bucket_digits,
    bucket_numbers,
    child_distances,
    extend_prefixes,
    find_repeats,
    spill,
    squared_distances,
)


def line(codes):
    """Vectors on a line: 10 c_1 + c_2 + c_3 / 10, one number each."""
    return (codes * 10.0 ** np.array([1, 0, -1])[: codes.shape[1]]).sum(1, keepdims=True)


@pytest.mark.parametrize("span", [3, 2**30])  # rows as one number, and rows as rows
def test_bucket_numbers_are_those_of_sorted_different_rows(span):
    draw = np.random.default_rng(0)
    codes = draw.integers(0, 3, (60, 3)) * (span // 3)
    expected = np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)
    np.testing.assert_array_equal(bucket_numbers(codes), expected)
    np.testing.assert_array_equal(bucket_numbers(codes.astype(np.int32)), expected)


def test_rows_without_levels_share_a_bucket():
    assert bucket_numbers(np.zeros((3, 0), int)).tolist() == [0, 0, 0]
    assert bucket_numbers(np.zeros((0, 2), int)).tolist() == []


def test_digits_and_repeats_follow_the_order_of_serving():
    draw = np.random.default_rng(1)
    codes, taken = draw.integers(0, 3, (40, 2)), draw.integers(0, 3, (4, 2))
    order = draw.permutation(40)
    counts, digits, repeats = {}, np.zeros(40), []
    held = {tuple(row) for row in taken.tolist()}
    for row in order:
        code = tuple(codes[row].tolist())
        digits[row] = counts.get(code, 0)
        counts[code] = counts.get(code, 0) + 1
        if code in held:
            repeats.append(row)
        held.add(code)
    np.testing.assert_array_equal(bucket_digits(codes, order), digits)
    assert find_repeats(codes, order, taken).tolist() == repeats


@pytest.mark.parametrize("split", [False, True])
def test_child_distances_equal_one_by_one(split, monkeypatch):
    monkeypatch.setattr("jaxrec.tokenization.leaves._DECODED", 12)  # two prefixes at once
    monkeypatch.setattr("jaxrec.tokenization.leaves._ENTRIES", 15)  # three rows at once
    draw = np.random.default_rng(2)
    vectors = draw.normal(size=(30, 1)) * 10
    rows, prefixes = draw.integers(0, 30, 50), draw.integers(0, 3, (50, 2))
    decoded = []

    def decode(codes):
        assert codes.dtype == np.int32
        decoded.append(len(codes))
        return line(codes)

    found = np.full((50, 5), np.nan)
    groups = []
    for members, distances in child_distances(vectors, rows, prefixes, 5, decode, split=split):
        assert (np.diff(members) > 0).all()
        assert len(members) <= (3 if split else 50)
        assert np.isnan(found[members]).all()  # each once
        found[members] = distances
        groups.append(tuple(prefixes[members[0]].tolist()))
    for place in range(50):
        for code in range(5):
            there = 10 * prefixes[place, 0] + prefixes[place, 1] + code / 10
            expected = (vectors[rows[place], 0] - there) ** 2
            np.testing.assert_allclose(found[place, code], expected, rtol=1e-9, atol=1e-9)
    assert groups == sorted(groups)
    assert (len(set(groups)) == len(groups)) != split
    # Every prefix once, in calls of few different shapes.
    assert set(decoded) <= {5, 10}
    assert sum(decoded) == 5 * len(set(groups))


def test_the_empty_prefix_has_all_first_codes():
    (only,) = child_distances(
        np.array([[21.0], [3.0]]), np.arange(2), np.zeros((2, 0), int), 3, line
    )
    np.testing.assert_allclose(only[1], [[441, 121, 1], [9, 49, 289]])
    none = child_distances(np.ones((2, 1)), np.zeros(0, int), np.zeros((0, 1), int), 3, line)
    assert list(none) == []


def test_children_come_in_order():
    codes = extend_prefixes(np.array([[1, 0], [0, 2]]), 2)
    assert codes.tolist() == [[1, 0, 0], [1, 0, 1], [0, 2, 0], [0, 2, 1]]
    assert codes.dtype == np.int32


def test_what_is_held_below_a_prefix():
    codes = np.array([[0, 1, 5], [0, 1, 2], [1, 1, 2], [0, 1, 5]], np.int32)
    held = Held(codes, np.array([[1, 1], [0, 1], [2, 0]]))
    assert held.lasts(0).tolist() == [2]
    assert sorted(held.lasts(1).tolist()) == [2, 5, 5]
    assert held.lasts(2).tolist() == []


def backtrack(vector, sizes, count, limit, prefix=()):
    """The search as PSI words it: nearest first, a step back where nothing is left below."""
    level = len(prefix)
    if level == len(sizes):
        return prefix if count.get(prefix, 0) < limit else None
    below = np.array([[*prefix, code] for code in range(sizes[level])])
    for code in np.argsort(squared_distances(vector[None], line(below))[0], kind="stable"):
        if found := backtrack(vector, sizes, count, limit, (*prefix, int(code))):
            return found
    return None


@pytest.mark.parametrize("limit", [1, 3])
def test_the_spill_equals_recursive_backtracking(limit, monkeypatch):
    monkeypatch.setattr("jaxrec.tokenization.leaves._KEPT", 2)
    sizes, draw = (3, 2, 3), np.random.default_rng(3)
    codes = draw.integers(0, 2, (14 * limit, 3)).astype(np.int32)
    codes[:, 0] = draw.integers(0, 3, len(codes))
    taken = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 1]], np.int32)
    vectors = draw.normal(size=(len(codes), 1)) * 12
    homeless = draw.permutation(len(codes))[: 9 * limit]
    count = {}
    settled = np.delete(codes, homeless, axis=0).tolist()
    for row in settled + taken.tolist():
        count[tuple(row)] = count.get(tuple(row), 0) + 1
    expected = codes.copy()
    for row in homeless:
        expected[row] = found = backtrack(vectors[row], sizes, count, limit)
        count[found] = count.get(found, 0) + 1
    spill(codes, homeless, taken, sizes, vectors, line, limit=limit)
    np.testing.assert_array_equal(codes, expected)
