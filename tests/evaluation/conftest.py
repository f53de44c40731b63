"""A small report that the file tests share."""

import numpy as np
import pytest

from jaxrec.evaluation.protocol import Protocol
from jaxrec.evaluation.report import compare_ranks, row_from_ranks


@pytest.fixture(scope="session")
def protocol():
    return Protocol(
        dataset="toy <log> & co",
        num_users=200,
        num_items=90,
        num_events=4100,
        num_cases=200,
        min_user=5,
        min_item=5,
        history_cap=50,
        decoder="beam search",
        beam_width=20,
        selected_on="validation ndcg@10",
        seed=3,
    )


@pytest.fixture
def make_log():
    """Makes small logs (offsets, count_end, item) with many ties, repeats and unused items."""

    def make(seed, items=25, users=60):
        generator = np.random.default_rng(seed)
        lengths = generator.integers(0, 12, users)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        item = (generator.random(offsets[-1]) ** 2 * (items - 3)).astype(np.int32)
        return offsets, offsets[:-1] + generator.integers(0, lengths + 1), item

    return make


@pytest.fixture(scope="session")
def parts(protocol):
    """Rows and comparisons: ahead of popularity, behind the counter."""
    generator = np.random.default_rng(0)
    ranks = {
        "popularity": generator.integers(0, 90, 200),
        "transitions": generator.integers(1, 9, 200),
        "generator": generator.integers(1, 20, 200),
    }
    rows = [
        row_from_ranks(
            name,
            values,
            protocol,
            seen_masked=masked,
            seconds=1.5,
            draws=200,
            more_metrics={"gini@10": 0.5 + masked / 10},
        )
        for masked in (True, False)
        for name, values in ranks.items()
    ]
    comparisons = [
        compare_ranks("generator", ranks["generator"], name, ranks[name], seen_masked=True, seed=3)
        for name in ("popularity", "transitions")
    ]
    return rows, comparisons
