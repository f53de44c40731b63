"""Diverse beams against groups with Python lists."""

import jax.numpy as jnp
import numpy as np
import pytest
from decoding_toys import (
    check_ranked,
    decode,
    example,
    reference_beam,
    reference_step,
    reference_trie,
)

from jaxrec.decoding import BeamSearch, DiverseBeams, Filters

ROWS = (3, 17)


def reference_groups(model, row, codes, live, mask, width, groups, penalty):
    """(item, score), best first, of all groups, each item once."""
    trie = reference_trie(codes, live)
    beams = [[(0.0, ())] for _ in range(groups)]
    for _ in range(codes.shape[1]):
        taken: dict[int, int] = {}
        for group in range(groups):
            grown = []
            for rank, (score, prefix) in enumerate(beams[group]):
                for code, gain in reference_step(model, row, prefix, trie, mask).items():
                    steered = score + gain - penalty * taken.get(code, 0)
                    grown.append((-steered, rank, code, score + gain, (*prefix, code)))
            best = sorted(grown)[:width]
            beams[group] = [(score, prefix) for *_, score, prefix in best]
            for _, _, code, _, _ in best:
                taken[code] = taken.get(code, 0) + 1
    found = {prefix: score for group in beams for score, prefix in group}
    answer = []
    for prefix, score in sorted(found.items(), key=lambda pair: -pair[1]):
        group = [i for i in live if tuple(int(c) for c in codes[i]) == prefix]
        answer += [(item, score) for item in sorted(group)]
    return answer


@pytest.mark.parametrize("mask", ["after_softmax", "before_softmax"])
@pytest.mark.parametrize(("width", "groups", "penalty"), [(3, 4, 0.7), (2, 3, 50.0), (4, 1, 1.0)])
def test_equals_groups_with_lists(width, groups, penalty, mask):
    catalogue, codes, model = example(items=120)
    decoder = DiverseBeams(width, groups, penalty, k=30, mask=mask)
    random = np.random.default_rng(0)
    denied = random.integers(0, 120, (2, 40))
    allowed = random.random(120) < 0.7
    filters = Filters(jnp.asarray(allowed), jnp.asarray(denied, jnp.int32))
    live = [{i for i in range(120) if allowed[i] and i not in denied[row]} for row in range(2)]
    for given, sets in ((None, [set(range(120))] * 2), (filters, live)):
        ranked = decode(decoder, model, ROWS, catalogue, given)
        for row in range(2):
            expected = reference_groups(
                model, ROWS[row], codes, sets[row], mask, width, groups, penalty
            )
            check_ranked(ranked, row, expected, 30)


def test_without_a_penalty_all_groups_are_one_search():
    catalogue, codes, model = example(items=120)
    plain = decode(BeamSearch(5, 30), model, ROWS, catalogue)
    alike = decode(DiverseBeams(5, 3, 0.0, 30), model, ROWS, catalogue)
    np.testing.assert_array_equal(plain.items, alike.items)
    for row in range(2):
        expected = reference_beam(model, ROWS[row], codes, set(range(120)), "after_softmax", 5)
        check_ranked(alike, row, expected, 30)


def test_a_penalty_widens_the_first_level():
    catalogue, codes, model = example(items=120)

    def first_codes(penalty):
        ranked = decode(DiverseBeams(1, 4, penalty, 99), model, ROWS, catalogue)
        return [len(set(codes[items[ok], 0])) for items, ok in
                zip(np.asarray(ranked.items), np.asarray(ranked.valid))]  # fmt: skip

    assert first_codes(0.0) == [1, 1]
    assert first_codes(100.0) == [4, 4]


def test_bad_arguments():
    with pytest.raises(ValueError, match="penalty=-1"):
        DiverseBeams(penalty=-1.0)
    with pytest.raises(ValueError, match="groups=0"):
        DiverseBeams(groups=0)
