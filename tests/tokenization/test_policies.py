"""What every collision policy promises, on random catalogues, and what each does that no other."""

import collections

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.tokenization.capacity import Capacity
from jaxrec.tokenization.collisions import (
    CollisionPolicy,
    ExtraDigit,
    Keep,
    Reassign,
    Taken,
    collision_counts,
)
from jaxrec.tokenization.leaves import find_repeats, squared_distances
from jaxrec.tokenization.next_nearest import NextNearest, near_combinations, take_unused
from jaxrec.tokenization.random_last import RandomLast
from jaxrec.tokenization.sinkhorn_last import (
    SinkhornLast,
    bucket_codes,
    colliding_blocks,
    colliding_rows,
)
from jaxrec.types import TokenSpace

SIZES = (3, 4, 6)
NO_IDS = np.zeros((0, 3), np.int32)
UNIQUE = [
    Reassign(),
    Reassign("cheapest"),
    NextNearest(),
    NextNearest(2, 3),
    RandomLast(),
    Capacity(1),
]
FEWEST = [Reassign(), NextNearest(), NextNearest(2, 3), RandomLast(), Capacity(1)]
"""Policies that change no more items than there are repeats."""
QUICK = settings(max_examples=25, deadline=None, derandomize=True)


def world(seed, rows, sizes=SIZES, groups=9):
    """Residual codes of vectors in clumps, how they decode, and an order of serving."""
    draw = np.random.default_rng(seed)
    books = [draw.normal(size=(size, 3)) / 2**level for level, size in enumerate(sizes)]
    vectors = draw.normal(size=(groups, 3))[draw.integers(0, groups, rows)]
    vectors = (vectors + 0.1 * draw.normal(size=vectors.shape)).astype(np.float32)
    vectors[: rows // 5] = vectors[0]  # duplicates, which nothing tells apart

    def decode(codes):
        return sum(books[level][codes[:, level]] for level in range(codes.shape[1]))

    residual, codes = vectors.astype(np.float64), []
    for book in books:
        codes.append(squared_distances(residual, book).argmin(1))
        residual = residual - book[codes[-1]]
    return np.column_stack(codes).astype(np.int32), vectors, decode, draw.permutation(rows)


def buckets(codes):
    return collections.Counter(map(tuple, codes.tolist()))


def is_unique(codes):
    return max(buckets(codes).values()) == 1


def apply(policy, codes, vectors, decode, order, taken=None, sizes=SIZES):
    return policy(codes, sizes=sizes, order=order, vectors=vectors, decode=decode, taken=taken)


@pytest.mark.parametrize("policy", [*UNIQUE, Capacity(2, "random"), SinkhornLast()], ids=repr)
def test_they_are_policies(policy):
    codes, vectors, decode, order = world(0, 20, groups=15)
    final = apply(policy, codes, vectors, decode, order)
    assert isinstance(policy, CollisionPolicy)
    assert (final.codes.dtype, final.codes.shape, final.space) == (
        np.int32,
        (20, 3),
        TokenSpace(SIZES),
    )
    changed = np.flatnonzero((final.codes != codes).any(1))
    assert len(changed)
    assert final.report.items() >= collision_counts(codes).items()
    assert final.report["changed_rows"] == changed.tolist()
    again = apply(policy, codes, vectors, decode, order)
    np.testing.assert_array_equal(again.codes, final.codes)
    if policy.reads_vectors:
        with pytest.raises(ValueError, match="measures distances: give it vectors and decode"):
            policy(codes, sizes=SIZES)


@pytest.mark.parametrize("policy", UNIQUE, ids=repr)
@QUICK
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 60))
def test_ids_are_unique_and_unique_ones_stay(policy, seed, rows):
    codes, vectors, decode, order = world(seed, rows)
    if isinstance(policy, RandomLast) and max(buckets(codes[:, :-1]).values()) > SIZES[-1]:
        with pytest.raises(ValueError, match="more than the 6 codes of the last level"):
            apply(policy, codes, vectors, decode, order)
        return
    final = apply(policy, codes, vectors, decode, order)
    assert is_unique(final.codes)
    assert (final.codes < np.array(SIZES)).all()
    moved = (final.codes != codes).any(1)
    if policy in FEWEST:
        assert moved.sum() == rows - len(buckets(codes))
    if policy in FEWEST[:-1]:
        np.testing.assert_array_equal(
            np.sort(find_repeats(codes, order, NO_IDS)), np.flatnonzero(moved)
        )
    # A second time there is nothing to do.
    twice = apply(policy, final.codes, vectors, decode, order)
    assert twice.report["changed_rows"] == []
    np.testing.assert_array_equal(twice.codes, final.codes)


@pytest.mark.parametrize("policy", UNIQUE, ids=repr)
@QUICK
@given(seed=st.integers(0, 10**6), old=st.integers(1, 30), new=st.integers(1, 30))
def test_new_items_take_free_codes_only(policy, seed, old, new):
    codes, vectors, decode, _ = world(seed, old + new)
    draw = np.random.default_rng(seed)
    first = apply(Reassign(), codes[:old], vectors[:old], decode, None).codes
    taken = Taken(first, TokenSpace(SIZES))
    below = buckets(np.concatenate([first, codes[old:]])[:, :-1])
    if isinstance(policy, RandomLast) and max(below.values()) > SIZES[-1]:
        return
    order = draw.permutation(new)
    final = apply(policy, codes[old:], vectors[old:], decode, order, taken)
    assert is_unique(np.concatenate([first, final.codes]))
    moved = np.flatnonzero((final.codes != codes[old:]).any(1))
    if policy in FEWEST:
        assert len(moved) == len(find_repeats(codes[old:], order, first))


@pytest.mark.parametrize("policy", [Reassign(), NextNearest(), Capacity(1)], ids=repr)
def test_a_space_may_be_filled_to_the_last_place(policy):
    codes, vectors, decode, order = world(1, 72)
    assert is_unique(apply(policy, codes, vectors, decode, order).codes)
    codes, vectors, decode, order = world(1, 73)
    with pytest.raises(ValueError, match=r"73 items cannot have different semantic IDs.*make 72"):
        apply(policy, codes, vectors, decode, order)
    taken = Taken(codes[:2], TokenSpace(SIZES))
    with pytest.raises(ValueError, match="73 items cannot"):
        apply(policy, codes[:71], vectors[:71], decode, None, taken)


def all_codes(sizes):
    return np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), -1).reshape(-1, len(sizes))


def test_next_nearest_takes_the_best_unused_code_in_turn():
    codes, vectors, decode, order = world(2, 40)
    final = apply(NextNearest(nearest=6, candidates=72), codes, vectors, decode, order)
    every = all_codes(SIZES)
    moving = find_repeats(codes, order, NO_IDS)
    used = set(map(tuple, np.delete(codes, moving, axis=0).tolist()))
    expected = codes.copy()
    for row in moving:
        costs = ((vectors[row] - decode(every)) ** 2).sum(1)
        row_code = next(
            tuple(every[c].tolist())
            for c in costs.argsort()
            if tuple(every[c].tolist()) not in used
        )
        expected[row] = row_code
        used.add(row_code)
    np.testing.assert_array_equal(final.codes, expected)
    assert (final.codes[:, 0] != codes[:, 0]).any()  # not the last level alone
    assert final.report["n_spilled"] == 0


def test_near_combinations_are_the_nearest_below_each_prefix():
    _, vectors, decode, _ = world(3, 5)
    near, costs = near_combinations(vectors, SIZES, decode, nearest=2, most=256)
    for row in range(5):
        prefixes = [()]
        for size in SIZES:
            longer = []
            for prefix in prefixes:
                below = np.array([[*prefix, code] for code in range(size)])
                left = ((vectors[row] - decode(below)) ** 2).sum(1)
                longer += [(*prefix, int(code)) for code in left.argsort()[:2]]
            prefixes = longer
        assert list(map(tuple, near[row].tolist())) == prefixes
        np.testing.assert_allclose(
            costs[row], ((vectors[row] - decode(near[row])) ** 2).sum(1), rtol=1e-6
        )
    few, fewer = near_combinations(vectors, SIZES, decode, nearest=2, most=3)
    assert few.shape == (5, 3, 3)
    # Of four prefixes of two levels the three go on that leave the least, then the three best.
    left = np.stack([((vectors[r] - decode(near[r, ::2, :2])) ** 2).sum(1) for r in range(5)])
    for row in range(5):
        kept = np.argsort(left[row], kind="stable")[:3]
        pool = np.concatenate([costs[row, 2 * place : 2 * place + 2] for place in kept])
        np.testing.assert_allclose(np.sort(fewer[row]), np.sort(pool)[:3], rtol=1e-6)


def test_equally_near_codes_go_to_the_lowest():
    # Codes 0, 1 and 2 of the second level are one point: the items of a bucket take them in turn.
    def decode(codes):
        return np.array([[0.0], [5.0]])[codes[:, 0]] + (codes[:, 1:] // 3).sum(1, keepdims=True)

    codes, vectors = np.zeros((3, 2), int), np.zeros((3, 1), np.float32)
    final = NextNearest(nearest=3)(codes, sizes=(2, 6), vectors=vectors, decode=decode)
    assert final.codes.tolist() == [[0, 0], [0, 1], [0, 2]]
    near = np.array([[[0, 1], [0, 0]], [[0, 1], [0, 0]], [[0, 0], [0, 1]]], np.int32)
    assert take_unused(NO_IDS[:, :2], near, np.ones((3, 2))).tolist() == [1, 0, -1]


def test_next_nearest_spills_where_its_combinations_are_taken():
    codes, vectors, decode, order = world(4, 60)
    final = apply(NextNearest(nearest=1), codes, vectors, decode, order)
    moving = find_repeats(codes, order, NO_IDS)
    assert final.report["n_spilled"] == len(moving) > 0
    assert is_unique(final.codes)


def test_random_codes_are_even_over_the_free_ones():
    codes = np.array([[0, 2], [0, 2], [0, 2], [0, 5], [1, 0]])
    seen = collections.Counter()
    for seed in range(600):
        final = RandomLast(seed)(codes, sizes=(2, 6))
        assert final.codes[[0, 3, 4]].tolist() == [[0, 2], [0, 5], [1, 0]]
        first, second = final.codes[[1, 2], 1].tolist()
        assert first != second
        seen[first, second] += 1
    # 12 ordered pairs of the codes 0, 1, 3, 4: 50 each, within four standard deviations.
    assert set(seen) == {(a, b) for a in (0, 1, 3, 4) for b in (0, 1, 3, 4) if a != b}
    assert all(abs(count - 50) < 4 * 50**0.5 for count in seen.values())
    with pytest.raises(ValueError, match=r"the prefix \(0,\) holds 7 items, more than the 6 codes"):
        RandomLast()(np.zeros((7, 2), int), sizes=(2, 6))


@pytest.mark.parametrize(
    "policy", [Capacity(3), Capacity(3, "random"), Capacity(1, "random")], ids=repr
)
@QUICK
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 70))
def test_buckets_hold_their_nearest_items_and_no_more(policy, seed, rows):
    codes, vectors, decode, order = world(seed, rows)
    final = apply(policy, codes, vectors, decode, order)
    assert max(buckets(final.codes).values()) <= policy.limit
    moved = (final.codes != codes).any(1)
    before = buckets(codes)
    assert moved.sum() == sum(max(count - policy.limit, 0) for count in before.values())
    distance = ((vectors - decode(codes)) ** 2).sum(1)
    for code in before:
        here = (codes == code).all(1)
        if (here & moved).any():
            assert distance[here & moved].min() >= distance[here & ~moved].max() - 1e-9
    if before and max(buckets(codes[:, :-1]).values()) <= policy.limit * SIZES[-1]:
        np.testing.assert_array_equal(final.codes[:, :-1], codes[:, :-1])
        assert final.report["n_spilled"] == 0


def test_capacity_moves_to_the_nearest_code_with_room():
    def decode(codes):  # last codes at 0, 1, 2, 3; prefixes 10 apart
        return codes @ np.array([[10.0], [1.0]])[: codes.shape[1]]

    vectors = np.array([[0.1], [0.0], [0.4], [0.3], [1.0], [0.2]], np.float32)
    codes = np.array([[0, 0], [0, 0], [0, 0], [0, 0], [0, 1], [0, 0]])
    final = Capacity(2)(codes, sizes=(2, 4), vectors=vectors, decode=decode)
    # 0.0 and 0.1 stay; 0.4 is served before 0.3 and takes the last place at 1; the others go to 2.
    assert final.codes[:, 1].tolist() == [0, 0, 1, 2, 1, 2]
    old = Taken(np.array([[0, 1], [0, 1], [0, 1], [0, 0]]), TokenSpace((2, 4)))
    final = Capacity(2)(codes, sizes=(2, 4), vectors=vectors, decode=decode, taken=old)
    # One place is left at 0, none at 1, where an old bucket is over the limit already.
    assert final.codes.tolist() == [[0, 2], [0, 0], [0, 2], [0, 3], [0, 3], [1, 0]]
    assert final.report["n_spilled"] == 1
    # Not the lowest code with room, and two to a code beyond the full prefix as well.
    codes, vectors = np.zeros((4, 2), int), np.array([[0.0], [0.1], [2.6], [-5.0]], np.float32)
    final = Capacity(2)(codes, sizes=(2, 4), vectors=vectors, decode=decode)
    assert final.codes[:, 1].tolist() == [0, 0, 3, 1]
    vectors = np.array([[0], [0], [1], [1], [2], [3]], np.float32)
    final = Capacity(2)(np.zeros((6, 2), int), sizes=(2, 2), vectors=vectors, decode=decode)
    assert final.codes.tolist() == [[0, 0], [0, 0], [0, 1], [0, 1], [1, 0], [1, 0]]
    with pytest.raises(ValueError, match="17 items cannot share IDs 2 on each"):
        Capacity(2)(np.zeros((17, 2), int), sizes=(2, 4), vectors=np.zeros((17, 1)), decode=decode)


def even_plan(costs, epsilon, iterations):
    """The transport plan in float64, as one writes it down: rows and columns scaled in turn."""
    half = (costs.max() - costs.min()) / 2
    plan = np.exp(-(costs - costs.min() - half) / half / epsilon)
    for _ in range(iterations):
        plan = plan / plan.sum(0, keepdims=True) / costs.shape[1]
        plan = plan / plan.sum(1, keepdims=True) / costs.shape[0]
    return plan


def test_sinkhorn_shares_the_last_codes_of_each_bucket():
    codes, vectors, decode, _ = world(5, 30)
    vectors[:6] += np.random.default_rng(6).normal(size=(6, 3)).astype(np.float32) / 10
    final = apply(SinkhornLast(rounds=1), codes, vectors, decode, None)
    expected = codes.copy()
    for code, count in buckets(codes).items():
        if count > 1:
            (rows,) = np.nonzero((codes == code).all(1))
            leaves = np.array([[*code[:-1], last] for last in range(SIZES[-1])])
            costs = squared_distances(vectors[rows], decode(leaves))
            plan = even_plan(costs, epsilon=0.003, iterations=50)
            for row, parts, cost in zip(rows, plan, costs):
                (best,) = np.nonzero(parts >= 0.999 * parts.max())
                expected[row, -1] = best[cost[best].argmin()]
    np.testing.assert_array_equal(final.codes, expected)
    assert final.report["rounds"] == 1
    np.testing.assert_array_equal(final.codes[:, :-1], codes[:, :-1])


def test_rows_of_a_bucket_take_the_nearest_code_of_their_share():
    # Both lie nearest to code 1, the second much nearer; each owns some codes. Padding counts for
    # nothing, wherever it lies.
    costs = jnp.array([[1.0, 0.5, 4.0, 9.0], [5.0, 0.1, 2.0, 3.0], [0.0, 0.0, 7.0, 0.0]])
    codes = bucket_codes(costs, jnp.array([1.0, 1.0, 0.0]), epsilon=0.003, iterations=50)
    assert codes[:2].tolist() == [0, 2]


def test_sinkhorn_goes_on_until_nothing_collides_and_reports_what_is_left():
    draw = np.random.default_rng(7)
    sizes, codes = (2, 32), np.zeros((12, 2), int)
    codes[6:, 0] = 1
    points = draw.normal(size=(2, 32, 3))

    def decode(codes):
        return points[codes[:, 0], codes[:, 1]] if codes.shape[1] == 2 else points[codes[:, 0], 0]

    vectors = draw.normal(size=(12, 3)).astype(np.float32)
    final = apply(SinkhornLast(), codes, vectors, decode, None, sizes=sizes)
    assert is_unique(final.codes)
    assert final.report["n_left"] == 0
    assert final.report["rounds"] < 20
    # Equal vectors never part, and are left to the policy that is named.
    vectors[3] = vectors[4]
    kept = apply(SinkhornLast(), codes, vectors, decode, None, sizes=sizes)
    assert kept.codes[3].tolist() == kept.codes[4].tolist()
    assert kept.report["n_left"] == 2
    assert kept.report["leftovers"]["policy"] == "Keep"
    parted = apply(SinkhornLast(leftovers=Reassign()), codes, vectors, decode, None, sizes=sizes)
    assert is_unique(parted.codes)
    assert (parted.codes != kept.codes).any(1).sum() == 1
    digits = apply(SinkhornLast(leftovers=ExtraDigit()), codes, vectors, decode, None, sizes=sizes)
    assert digits.space.has_extra_digit
    np.testing.assert_array_equal(digits.codes[:, :2], kept.codes)
    changed = np.flatnonzero((kept.codes != codes).any(1)).tolist()
    assert digits.report["changed_rows"] == kept.report["changed_rows"] == changed


def test_sinkhorn_leaves_joining_items_to_the_leftovers():
    codes, vectors, decode, _ = world(8, 20)
    taken = Taken(apply(Reassign(), codes[:9], vectors[:9], decode, None).codes, TokenSpace(SIZES))
    for leftovers in (Reassign(), NextNearest(), Keep()):
        ours = apply(SinkhornLast(leftovers=leftovers), codes[9:], vectors[9:], decode, None, taken)
        theirs = apply(leftovers, codes[9:], vectors[9:], decode, None, taken)
        np.testing.assert_array_equal(ours.codes, theirs.codes)
        assert ours.report["rounds"] == 0


def test_blocks_hold_every_colliding_row_once(monkeypatch):
    monkeypatch.setattr("jaxrec.tokenization.sinkhorn_last._ENTRIES", 40)
    codes = np.random.default_rng(9).integers(0, 4, (40, 2))
    found = []
    for rows, is_row in colliding_blocks(codes, 5):
        assert rows.shape == is_row.shape
        assert rows.size * 5 <= 40 or len(rows) == 1
        for members, live in zip(rows, is_row):
            assert live.sum() > rows.shape[1] / 2
            assert len({tuple(codes[row]) for row in members}) == 1
            assert len(members[live]) == (codes == codes[members[0]]).all(1).sum()
            found += members[live].tolist()
    assert sorted(found) == colliding_rows(codes).tolist()
    shared = buckets(codes)
    assert sorted(found) == [row for row in range(40) if shared[tuple(codes[row].tolist())] > 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NextNearest(nearest=0), "nearest >= 1 and candidates >= 1, got 0 and 256"),
        (lambda: Capacity(0), "limit >= 1 and spill one of"),
        (lambda: Capacity(5, "far"), "got 5 and 'far'"),
        (lambda: SinkhornLast(rounds=0), "rounds >= 1"),
        (lambda: SinkhornLast(epsilon=0.0), "epsilon > 0"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("policy", [Reassign(), Reassign("cheapest"), Capacity(1)], ids=repr)
def test_who_is_served_first_chooses_first_among_spilled_items_of_all_prefixes(policy):
    def decode(codes):  # prefixes 10 apart, last codes 1 apart
        return codes @ np.array([[10.0], [1.0]])[: codes.shape[1]]

    codes = np.array([[0, 0]] * 3 + [[1, 0]] * 3)
    vectors = np.array([[0.0], [1.0], [9.0], [10.0], [11.0], [19.0]], np.float32)
    order = np.array([0, 3, 1, 4, 5, 2])
    final = policy(codes, sizes=(3, 2), order=order, vectors=vectors, decode=decode)
    # Rows 5 and 2 find their prefixes full, and code (2, 0) is the nearest to both.
    assert final.codes.tolist() == [[0, 0], [0, 1], [2, 1], [1, 0], [1, 1], [2, 0]]
    assert final.report["n_spilled"] == 2
