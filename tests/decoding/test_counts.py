"""What a response says of itself, against counting."""

import collections

import numpy as np
import pytest
from decoding_toys import TableModel, decode, random_codes, roomy
from test_filters import KINDS, random_filters

from jaxrec.decoding import BeamSearch, count_answers
from jaxrec.types import TokenSpace

SIZES, ITEMS = (2, 4, 4), 24


def answer(functions, catalogue, filters):
    ranked = BeamSearch(6, 10)(functions, catalogue, filters)
    return ranked, count_answers(catalogue, ranked, filters)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_the_lists(kind, seed):
    random = np.random.default_rng(seed)
    codes = random_codes(random, SIZES, ITEMS, "uniform")
    filters, live = random_filters(random, ITEMS, kind)
    catalogue = roomy(codes, TokenSpace(SIZES))
    ranked, counts = decode(answer, TableModel(TokenSpace(SIZES)), (3, 17), catalogue, filters)
    members = collections.Counter(map(tuple, codes.tolist()))
    assert max(members.values()) > 1
    for row in range(2):
        items = [int(item) for item in ranked.items[row] if item >= 0]
        assert counts.valid[row] == len(items)
        assert counts.allowed[row] == len(live[row])
        assert counts.filtered[row] == ITEMS - len(live[row])
        grouped = [item for item in items if members[tuple(codes[item].tolist())] > 1]
        assert counts.grouped[row] == len(grouped)
