"""Early fusion: no modality rules by its numbers, and what is missing is not looked at."""

import numpy as np
import pytest
from behaviour_logs import encode

from jaxrec.representation import L2, HashedTfidf, ItemVectors, Precomputed, Standardise
from jaxrec.representation.fused import Fused, fuse_block

RNG = np.random.default_rng(0)
ITEMS = 40
FIRST = (RNG.normal(size=(ITEMS, 6)) * [9, 3, 1, 1, 0.1, 0.1] + 5).astype(np.float32)
SECOND = (RNG.normal(size=(ITEMS, 3)) * 0.01).astype(np.float32)
ABSENT = np.arange(ITEMS) % 7 == 0


@pytest.fixture
def parts(tmp_path):
    """Two modalities; of the second some rows are missing."""
    np.save(tmp_path / "first.npy", FIRST)
    np.save(tmp_path / "second.npy", SECOND)
    np.save(tmp_path / "mask.npy", ABSENT)
    return (
        Precomputed(str(tmp_path / "first.npy")),
        Precomputed(str(tmp_path / "second.npy"), missing="mean", mask=str(tmp_path / "mask.npy")),
    )


def fused(parts, mask=None, **options):
    return encode(Fused(parts, **options), [[0]], ITEMS, mask=mask)


def test_each_part_has_its_weight_as_mean_squared_length(parts):
    found = fused(parts, weights=(2.0, 0.5))
    first, second = found.vectors[:, :6].astype(np.float64), found.vectors[~ABSENT, 6:]
    np.testing.assert_allclose((first**2).sum(1).mean(), 4, rtol=1e-5)
    np.testing.assert_allclose((second.astype(np.float64) ** 2).sum(1).mean(), 0.25, rtol=1e-5)
    np.testing.assert_allclose(first.mean(0), 0, atol=1e-6)
    # One scale for the whole part: what it says is not bent.
    before = FIRST[3].astype(np.float64) - FIRST[8]
    ratio = (first[3] - first[8]) / before
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)


def test_the_scale_of_a_modality_does_not_matter(parts):
    before = fused(parts).vectors
    np.save(parts[0].path, FIRST * 1000)
    np.testing.assert_allclose(fused(parts).vectors, before, atol=1e-5)


def test_unstandardised_scaling_by_c_and_weighing_by_its_inverse_changes_nothing(parts):
    before = fused(parts, weights=(1.0, 3.0), standardise=False).vectors
    np.testing.assert_allclose(before[:, :6], FIRST / 6**0.5, rtol=1e-6)
    np.save(parts[0].path, FIRST * 8)
    after = fused(parts, weights=(0.125, 3.0), standardise=False).vectors
    np.testing.assert_array_equal(after, before)
    assert not np.allclose(fused(parts, weights=(1.0, 3.0), standardise=False).vectors, before)


def test_missing_rows_are_not_looked_at_and_get_the_mean(parts):
    before = fused(parts)
    np.testing.assert_allclose(before.vectors[ABSENT, 6:], 0, atol=1e-6)
    assert not before.unknown.any()
    changed = SECOND.copy()
    changed[ABSENT] = 1e5
    np.save(parts[1].path, changed)
    np.testing.assert_array_equal(fused(parts).vectors, before.vectors)
    kept = SECOND[~ABSENT].astype(np.float64)
    expected = (kept - kept.mean(0)) / np.sqrt(np.mean((kept - kept.mean(0)) ** 2)) / 3**0.5
    np.testing.assert_allclose(before.vectors[~ABSENT, 6:], expected, rtol=1e-4, atol=1e-5)


def test_missing_rows_may_become_zeros_before_the_mean_is_taken_out():
    options = {"weight": 1.0, "fit_mask": np.ones(ITEMS, bool), "unknown": ABSENT}
    for standardise in (True, False):
        found = fuse_block(FIRST, missing="zero", standardise=standardise, **options)
        zeros = np.where(ABSENT[:, None], np.float32(0), FIRST)
        kept = FIRST[~ABSENT].astype(np.float64)
        deviation = np.sqrt(np.mean((kept - kept.mean(0)) ** 2))
        expected = (zeros - kept.mean(0)) / deviation if standardise else zeros
        np.testing.assert_allclose(found, expected / 6**0.5, rtol=1e-4, atol=1e-5)


def test_items_that_may_not_be_fitted_shape_nothing(parts):
    mask = np.arange(ITEMS) < 30
    before = fused(parts, mask).vectors
    changed = FIRST.copy()
    changed[~mask] *= 100
    np.save(parts[0].path, changed)
    np.testing.assert_array_equal(fused(parts, mask).vectors[mask], before[mask])
    assert not np.allclose(fused(parts).vectors[mask], before[mask])


def test_parts_have_steps_of_their_own(parts):
    found = fused(parts, steps=((L2(),), ()), standardise=False).vectors
    np.testing.assert_allclose(np.linalg.norm(found[:, :6], axis=1), 6**-0.5, rtol=1e-5)
    np.testing.assert_array_equal(found[:, 6:], fused(parts, standardise=False).vectors[:, 6:])
    # They learn from rows that are there.
    found = fused(parts, steps=((), (Standardise(),)), standardise=False).vectors[~ABSENT, 6:]
    kept = SECOND[~ABSENT].astype(np.float64)
    expected = (kept - kept.mean(0)) / kept.std(0) / 3**0.5
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_constant_part_tells_nothing():
    constant = np.full((ITEMS, 2), 0.1, np.float32)
    everything = np.ones(ITEMS, bool)
    found = fuse_block(
        constant, ~everything, everything, weight=1.0, standardise=True, missing="mean"
    )
    np.testing.assert_array_equal(found, 0)


def test_the_report_names_the_columns_of_each_part(parts):
    stage = ItemVectors(Fused((*parts, HashedTfidf(4)), weights=(1.0, 2.0, 1.0)))
    table = {"title": [f"word{item % 5} more" if item else "" for item in range(ITEMS)]}
    vectors, report, _ = stage(table)
    assert report["surrogate"]
    assert report["text_fields"] == ["title"]
    assert [block["columns"] for block in report["blocks"]] == [[0, 6], [6, 9], [9, 13]]
    assert [block["n_unknown"] for block in report["blocks"]] == [0, ABSENT.sum(), 1]
    assert report["blocks"][1] == {
        "encoder": "Precomputed",
        "columns": [6, 9],
        "weight": 2.0,
        "n_unknown": 6,
        "n_missing": 6,
    }
    assert vectors.shape == (ITEMS, 13)
    before = stage.fingerprint()
    np.save(parts[1].path, SECOND + 1)
    assert before not in ("", stage.fingerprint())
    assert Fused((HashedTfidf(),)).fingerprint() == ""


def test_an_item_unknown_to_all_parts_is_unknown(parts):
    found = fused((parts[1], parts[1]))
    np.testing.assert_array_equal(found.unknown, ABSENT)


def test_errors_are_clear(parts):
    with pytest.raises(ValueError, match="at least one encoder"):
        Fused(())
    with pytest.raises(ValueError, match="as many weights as its 2 parts, or none, got 1"):
        Fused(parts, weights=(1.0,))
    with pytest.raises(ValueError, match="as many steps as its 2 parts"):
        Fused(parts, steps=((),))
    with pytest.raises(ValueError, match="positive weights"):
        Fused(parts, weights=(1.0, 0.0))
    with pytest.raises((ValueError, TypeError), match=r"(?s)missing.*mean"):
        Fused(parts, missing="drop")
    nobody = np.zeros(ITEMS, bool)
    with pytest.raises(ValueError, match="knows none of the items that may be fitted"):
        fused(parts[:1], nobody)
