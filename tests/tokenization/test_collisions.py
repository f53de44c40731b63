"""Collision policies: postconditions, closed forms, and the cost against greedy choices."""

import itertools

import numpy as np
import pytest

from jaxrec.tokenization.collisions import (
    CollisionPolicy,
    ExtraDigit,
    Keep,
    Reassign,
    Taken,
    bucket_digits,
    collision_counts,
    popularity_order,
)
from jaxrec.tokenization.leaves import squared_distances
from jaxrec.types import TokenSpace

SIZES = (4, 6)
POLICIES = [ExtraDigit(), Reassign(), Reassign(moves="cheapest"), Keep()]


def world(rows=20, sizes=SIZES, width=5, seed=0):
    """Codebooks, vectors and the greedy residual codes of the vectors."""
    generator = np.random.default_rng(seed)
    books = [generator.normal(size=(size, width)) / 2**level for level, size in enumerate(sizes)]
    vectors = generator.normal(size=(rows, width)).astype(np.float32)

    def decode(codes):
        return sum(books[level][codes[:, level]] for level in range(codes.shape[1]))

    residual, codes = vectors.astype(np.float64), []
    for book in books:
        codes.append(squared_distances(residual, book).argmin(1))
        residual = residual - book[codes[-1]]
    return np.column_stack(codes).astype(np.int32), vectors, decode


def cost(codes, vectors, decode):
    return ((vectors - decode(codes)) ** 2).sum()


def is_unique(codes):
    return len(np.unique(codes, axis=0)) == len(codes)


def greedy(codes, vectors, decode, size, order, moves):
    """In serving order, each item takes the cheapest last code that is still free."""
    new = codes.copy()
    colliding = {
        tuple(prefix)
        for prefix in codes[:, :-1].tolist()
        if not is_unique(codes[(codes[:, :-1] == prefix).all(1)])
    }
    taken = {
        tuple(row)
        for row in codes.tolist()
        if moves == "fewest" or tuple(row[:-1]) not in colliding
    }
    kept = set()
    for row in order:
        code = tuple(codes[row].tolist())
        if code[:-1] not in colliding or (moves == "fewest" and code not in kept):
            kept.add(code)
            continue
        leaves = np.array([[*code[:-1], last] for last in range(size)], np.int32)
        distances = squared_distances(vectors[row : row + 1], decode(leaves))[0]
        for last in np.argsort(distances):
            if (*code[:-1], int(last)) not in taken:
                new[row, -1] = last
                taken.add((*code[:-1], int(last)))
                break
    return new


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_have_the_shape_of_policies_and_count(policy):
    codes, vectors, decode = world()
    final = policy(codes, sizes=SIZES, vectors=vectors, decode=decode)
    assert isinstance(policy, CollisionPolicy)
    assert final.codes.dtype == np.int32
    assert final.codes.shape == (20, final.space.levels)
    assert (final.codes < np.array(final.space.sizes)).all()
    buckets = {}
    for row in codes.tolist():
        buckets[tuple(row)] = buckets.get(tuple(row), 0) + 1
    assert final.report["n_items"] == 20
    assert final.report["n_sids"] == len(buckets) < 20
    assert final.report["max_bucket"] == max(buckets.values()) > 1
    changed = np.flatnonzero((final.codes[:, :2] != codes).any(1))
    assert final.report["changed_rows"] == changed.tolist()


@pytest.mark.parametrize("policy", POLICIES[:3])
def test_ids_are_unique_afterwards(policy):
    for seed in range(5):
        codes, vectors, decode = world(rows=22, seed=seed)
        assert not is_unique(codes)
        final = policy(codes, sizes=SIZES, vectors=vectors, decode=decode)
        assert is_unique(final.codes)


@pytest.mark.parametrize("policy", POLICIES)
def test_unique_codes_stay_as_they_are(policy):
    codes, vectors, decode = world()
    first = np.unique(codes, axis=0, return_index=True)[1]
    codes, vectors = codes[first], vectors[first]
    final = policy(codes, sizes=SIZES, vectors=vectors, decode=decode)
    np.testing.assert_array_equal(final.codes[:, :2], codes)
    assert final.report["changed_rows"] == []
    if isinstance(policy, ExtraDigit):
        np.testing.assert_array_equal(final.codes[:, 2], 0)


def test_the_extra_digit_numbers_a_bucket_in_serving_order():
    codes = np.array([[0, 1], [2, 2], [0, 1], [0, 1]])
    order = popularity_order(np.array([5, 1, 9, 5]))
    assert order.tolist() == [2, 0, 3, 1]
    final = ExtraDigit()(codes, sizes=SIZES, order=order)
    assert final.codes.tolist() == [[0, 1, 1], [2, 2, 0], [0, 1, 0], [0, 1, 2]]
    assert final.space.sizes == (4, 6, 8)
    assert final.space.has_extra_digit
    assert final.space.semantic_levels == 2


@pytest.mark.parametrize(
    ("largest", "headroom", "capacity"),
    [
        (1, 1.0, 1),
        (1, 1.5, 2),
        (2, 1.5, 4),
        (3, 1.5, 8),
        (8, 1.0, 8),
        (9, 1.0, 16),
        (170, 1.5, 256),
    ],
)
def test_capacity_is_a_power_of_two_with_reserve(largest, headroom, capacity):
    final = ExtraDigit(headroom=headroom)(np.zeros((largest, 1), int), sizes=(3,))
    assert final.report["capacity"] == final.space.sizes[-1] == capacity


def test_overflow_names_the_bucket():
    codes = np.array([[1, 2], [3, 3], [1, 2], [1, 2]])
    assert ExtraDigit(capacity=3)(codes, sizes=SIZES).codes[:, 2].tolist() == [0, 0, 1, 2]
    with pytest.raises(
        ValueError, match=r"\(1, 2\) holds 3 items but the extra digit has capacity 2"
    ):
        ExtraDigit(capacity=2)(codes, sizes=SIZES)


@pytest.mark.parametrize("moves", ["fewest", "cheapest"])
def test_reassignment_costs_no_more_than_greedy(moves):
    cheaper = 0
    for seed in range(12):
        codes, vectors, decode = world(rows=16, sizes=(3, 8), seed=seed)
        if max(np.bincount(codes[:, 0])) > 8:
            continue
        order = np.random.default_rng(seed).permutation(16)
        ours = Reassign(moves)(codes, sizes=(3, 8), order=order, vectors=vectors, decode=decode)
        theirs = greedy(codes, vectors, decode, 8, order, moves)
        assert is_unique(theirs)
        assert cost(ours.codes, vectors, decode) <= cost(theirs, vectors, decode) + 1e-6
        cheaper += cost(ours.codes, vectors, decode) < cost(theirs, vectors, decode) - 1e-6
    assert cheaper > 0  # otherwise the comparison would be empty


def test_cheapest_is_the_optimum_over_all_permutations():
    codes, vectors, decode = world(rows=5, sizes=(1, 6), seed=2)
    assert not is_unique(codes)
    final = Reassign(moves="cheapest")(codes, sizes=(1, 6), vectors=vectors, decode=decode)
    best = min(
        cost(np.array([[0, last] for last in lasts]), vectors, decode)
        for lasts in itertools.permutations(range(6), 5)
    )
    np.testing.assert_allclose(cost(final.codes, vectors, decode), best, rtol=1e-9)


def test_fewest_moves_all_but_one_item_of_each_bucket():
    for seed in range(5):
        codes, vectors, decode = world(rows=16, sizes=(3, 12), seed=seed)
        order = np.random.default_rng(seed).permutation(16)
        final = Reassign()(codes, sizes=(3, 12), order=order, vectors=vectors, decode=decode)
        changed = final.report["changed_rows"]
        assert len(changed) == 16 - collision_counts(codes)["n_sids"]
        digits = bucket_digits(codes, order)
        assert (digits[changed] > 0).all()  # the item served first keeps its code
        np.testing.assert_array_equal(final.codes[:, 0], codes[:, 0])


@pytest.mark.parametrize("moves", ["fewest", "cheapest"])
def test_a_full_prefix_spills_to_the_nearest_with_room(moves):
    # On a line: prefixes at 0, 10, 20 with two last codes each, -1 and +1.
    first, second = np.array([0.0, 10.0, 20.0]), np.array([-1.0, 1.0])

    def decode(codes):
        value = first[codes[:, 0]]
        return (value + second[codes[:, 1]] if codes.shape[1] == 2 else value)[:, None]

    vectors = np.array([[1.0], [0.9], [1.1], [1.2], [9.0]], np.float32)
    codes = np.array([[0, 1], [0, 1], [0, 1], [0, 1], [1, 0]])
    final = Reassign(moves)(codes, sizes=(3, 2), vectors=vectors, decode=decode)
    assert is_unique(final.codes)
    assert final.report["n_spilled"] == 2
    # Rows 0 and 1 are served first and stay; row 2 takes what is left at 10, row 3 goes on to 20.
    assert final.codes[:2, 0].tolist() == [0, 0]
    assert final.codes[2:].tolist() == [[1, 1], [2, 0], [1, 0]]


def test_in_a_full_prefix_no_code_moves_that_could_stay():
    # Two places below prefix 0, three items: the one that is unique keeps its code although the
    # second of the bucket is served before it.
    codes = np.array([[0, 0], [0, 0], [0, 1], [1, 0]])
    vectors = np.array([[0.0], [0.0], [1.0], [10.0]])
    final = Reassign()(
        codes, sizes=(2, 2), vectors=vectors, decode=lambda c: c @ [[10.0], [1.0]][: c.shape[1]]
    )
    assert final.codes.tolist() == [[0, 0], [1, 1], [0, 1], [1, 0]]
    assert final.report["changed_rows"] == [1]
    assert final.report["n_spilled"] == 1


def test_new_items_take_the_lowest_free_digits_of_their_buckets():
    space = TokenSpace((4, 6, 4), has_extra_digit=True)
    # Digit 1 of bucket (0, 1) is free again; (2, 2) is new.
    taken = Taken(np.array([[0, 1, 0], [0, 1, 2], [3, 3, 0]]), space)
    codes = np.array([[0, 1], [2, 2], [3, 3], [0, 1]])
    final = ExtraDigit()(codes, sizes=SIZES, order=np.array([3, 2, 1, 0]), taken=taken)
    assert final.codes.tolist() == [[0, 1, 3], [2, 2, 0], [3, 3, 1], [0, 1, 1]]
    assert final.space == space
    message = r"\(0, 1\) holds 2 items and would get 3 more, but its extra digit has capacity 4"
    with pytest.raises(ValueError, match=f"{message}.*tokenize again"):
        ExtraDigit(capacity=64)(np.array([[0, 1]] * 3), sizes=SIZES, taken=taken)
    with pytest.raises(ValueError, match=r"cannot join an index of levels \(4, 6\) \(without an"):
        ExtraDigit()(codes, sizes=SIZES, taken=Taken(codes, TokenSpace(SIZES)))
    for policy in (Keep(), Reassign()):
        with pytest.raises(ValueError, match="the last an extra digit; give the policy"):
            policy(codes, sizes=SIZES, vectors=np.zeros((4, 1)), decode=np.asarray, taken=taken)


def test_three_levels_fill_to_the_last_place():
    codes = np.zeros((8, 3), int)
    generator = np.random.default_rng(0)
    books = [generator.normal(size=(2, 3)) for _ in range(3)]

    def decode(some):
        return sum(books[level][some[:, level]] for level in range(some.shape[1]))

    vectors = generator.normal(size=(8, 3))
    final = Reassign()(codes, sizes=(2, 2, 2), vectors=vectors, decode=decode)
    assert is_unique(final.codes)
    with pytest.raises(ValueError, match=r"9 items cannot have different semantic IDs.*make 8"):
        Reassign()(np.zeros((9, 3), int), sizes=(2, 2, 2), vectors=np.zeros((9, 3)), decode=decode)


def test_bad_input():
    with pytest.raises(ValueError, match="moves must be"):
        Reassign(moves="all")
    with pytest.raises(ValueError, match="Reassign measures distances: give it vectors and decode"):
        Reassign()(np.zeros((2, 2), int), sizes=SIZES)
    with pytest.raises(ValueError, match=r"vectors must be \[2, width\], got \(3, 1\)"):
        Reassign()(np.zeros((2, 2), int), sizes=SIZES, vectors=np.zeros((3, 1)), decode=np.asarray)
    with pytest.raises(ValueError, match="headroom >= 1"):
        ExtraDigit(headroom=0.5)
    with pytest.raises(ValueError, match=r"levels have \(4, 6\) codes"):
        Keep()(np.array([[0, 6]]), sizes=SIZES)
    with pytest.raises(ValueError, match="each of the 2 rows once"):
        Keep()(np.zeros((2, 2), int), sizes=SIZES, order=np.array([0, 0]))
    with pytest.raises(ValueError, match=r"must be \[items, 2\]"):
        Keep()(np.zeros((2, 3), int), sizes=SIZES)
