"""The drift report: closed forms on a line of codes, and advice where there is drift alone."""

import json

import jax
import numpy as np
import pytest

from jaxrec.tokenization import ResidualKMeans
from jaxrec.tokenization.drift import advice, collision_change, drift_report, prefix_distances
from jaxrec.tokenization.residual_kmeans import ResidualState

QUANTIZER = ResidualKMeans(levels=2, codes=(4, 2))
# Four codes at 0, 10, 20, 30, and two below each at -1 and +1.
STATE = ResidualState(
    jax.numpy.zeros(1),
    (jax.numpy.arange(4.0)[:, None] * 10, jax.numpy.array([[-1.0], [1.0]])),
    jax.numpy.ones(2),
)


def column(*values):
    return np.array(values, np.float32)[:, None]


def test_distances_use_and_collisions_by_hand():
    old = column(0.5, 2.0, 9.5, 10.5, 21.0)  # codes 01 01 10 11 21
    new = column(2.0, 31.0, 31.2, 31.4)  # codes 01 31 31 31
    report = drift_report(QUANTIZER, STATE, old, new)
    first, second = report["levels"]
    np.testing.assert_allclose(first["old"], np.quantile([0.5, 2, 0.5, 0.5, 1], [0.5, 0.9, 0.99]))
    np.testing.assert_allclose(
        first["new"], np.quantile([2, 1, 1.2, 1.4], [0.5, 0.9, 0.99]), rtol=1e-5
    )
    np.testing.assert_allclose(second["old"], np.quantile([0.5, 1, 0.5, 0.5, 0], [0.5, 0.9, 0.99]))
    np.testing.assert_allclose(
        second["new"], np.quantile([1, 0, 0.2, 0.4], [0.5, 0.9, 0.99]), rtol=1e-5
    )
    # The 99 % edges of the old ones are 1.96 and .98: one of four new items is beyond each.
    assert (first["beyond"], second["beyond"]) == (0.25, 0.25)
    assert (first["used_old"], first["used_new"], first["opened"]) == (0.75, 0.5, 1)
    assert (second["used_old"], second["used_new"], second["opened"]) == (1.0, 0.5, 0)
    assert (first["focus"], second["focus"]) == (0.75, 1.0)
    assert report["collisions"] == {"old": 0.4, "new": 0.75, "new_on_old": 0.25}
    assert (report["n_old"], report["n_new"]) == (5, 4)
    assert json.loads(json.dumps(report)) == report
    distances = prefix_distances(
        old, np.array([[0, 1]] * 5), lambda codes: QUANTIZER.decode(STATE, codes)
    )
    np.testing.assert_allclose(distances[:, 0], old[:, 0])
    np.testing.assert_allclose(distances[:, 1], np.abs(old[:, 0] - 1))


def test_collisions_equal_counting():
    draw = np.random.default_rng(0)
    old, new = draw.integers(0, 5, (30, 2)), draw.integers(0, 6, (20, 2))
    sides = [list(map(tuple, side.tolist())) for side in (old, new)]
    meets = [sum(side.count(code) > 1 for code in side) / len(side) for side in sides]
    on_old = sum(code in sides[0] for code in sides[1]) / 20
    assert collision_change(old, new) == {"old": meets[0], "new": meets[1], "new_on_old": on_old}


@pytest.fixture(scope="module")
def fitted():
    draw = np.random.default_rng(1)
    centres = 3 * draw.normal(size=(12, 6))

    def items(count):
        return (centres[draw.integers(0, 12, count)] + draw.normal(size=(count, 6))).astype(
            np.float32
        )

    old = items(600)
    quantizer = ResidualKMeans(levels=3, codes=24, iterations=10)
    return quantizer, quantizer.fit(jax.random.key(0), old), old, items(300)


def test_items_of_the_same_kind_cause_no_advice(fitted):
    report = drift_report(*fitted)
    assert report["advice"] == []
    # Codes lie nearest to what shaped them, and the more so the later the level.
    assert 0 <= report["levels"][0]["beyond"] < 0.1
    assert report["levels"][0]["beyond"] < report["levels"][2]["beyond"] < 0.5
    itself = drift_report(*fitted[:3], fitted[2])
    assert all(level["beyond"] == 0.01 for level in itself["levels"])
    assert all(level["old"] == level["new"] for level in itself["levels"])


def test_items_of_another_kind_ask_for_a_new_fit(fitted):
    quantizer, state, old, new = fitted
    (said,) = drift_report(quantizer, state, old, new + 4)["advice"]
    assert said.startswith("Level 0: ")
    assert "fit them again" in said


def test_items_on_codes_of_others_are_told(fitted):
    quantizer, state, old, _ = fitted
    (said,) = drift_report(quantizer, state, old, old[:200])["advice"]
    assert said.startswith("100% of the new items have the codes of an old one")


def level(beyond):
    return {"beyond": beyond}


@pytest.mark.parametrize(
    ("count", "beyonds", "met", "expected"),
    [
        (1000, (0.11, 0.11), 0.0, ["Level 0"]),
        (1000, (0.09, 0.45), 0.0, []),
        (1000, (0.09, 0.55), 0.0, ["Level 1"]),
        (4, (0.15, 0.0), 0.0, []),  # of four items one beyond the edge is chance
        (1000, (0.0, 0.0), 0.04, []),
        (1000, (0.0, 0.0), 0.06, ["6% of"]),
        (10, (0.0, 0.0), 0.2, []),
    ],
)
def test_advice_needs_a_large_share_that_chance_does_not_make(count, beyonds, met, expected):
    report = {
        "n_new": count,
        "levels": [level(beyond) for beyond in beyonds],
        "collisions": {"old": 0.01, "new_on_old": met},
    }
    said = advice(report)
    assert len(said) == len(expected)
    assert all(each.startswith(start) for each, start in zip(said, expected))


def test_bad_vectors(fitted):
    quantizer, state, old, new = fitted
    with pytest.raises(ValueError, match="width 5 do not fit a quantizer of width 6"):
        drift_report(quantizer, state, old, new[:, :5])
    with pytest.raises(ValueError, match="non-finite"):
        drift_report(quantizer, state, old, new * np.nan)
