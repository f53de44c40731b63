"""Steps between encoder and quantizer against their closed forms (METHODS R1)."""

import numpy as np
import pytest

from jaxrec.representation.steps import L2, PCA, Standardise, Step, Whiten, principal_axes

GENERATOR = np.random.default_rng(3)
VECTORS = (GENERATOR.normal(size=(300, 6)) @ GENERATOR.normal(size=(6, 6)) + 5).astype(np.float32)
MASK = np.arange(300) < 200


def run(step, vectors=VECTORS, mask=MASK):
    return step.apply(step.fit(vectors, mask), vectors)


def distances(vectors):
    return np.linalg.norm(vectors[:, None].astype(np.float64) - vectors[None], axis=-1)


@pytest.mark.parametrize("step", [L2(), Standardise(), PCA(4), Whiten(4)])
def test_steps_have_the_shape_of_steps(step):
    assert isinstance(step, Step)
    assert hash(step) == hash(type(step)(**vars(step)))
    assert run(step).dtype == np.float32


def test_l2_makes_unit_rows_and_leaves_zeros():
    rows = run(L2(), np.array([[3, 4], [0, 0], [1e-30, 0]], np.float32), np.ones(3, bool))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0], [1, 0]], atol=1e-7)


def test_standardised_fitted_rows_have_mean_zero_and_variance_one():
    rows = run(Standardise())[MASK].astype(np.float64)
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(rows.std(0), 1, atol=1e-5)


def test_standardise_turns_a_constant_dimension_into_zero():
    vectors = np.column_stack([np.arange(5.0), np.full(5, 0.1)]).astype(np.float32)
    rows = run(Standardise(), vectors, np.ones(5, bool))
    np.testing.assert_array_equal(rows[:, 1], 0)
    np.testing.assert_allclose(rows[:, 0].std(), 1, atol=1e-6)


def test_whitened_fitted_rows_have_identity_covariance():
    for k in (3, 6):
        rows = run(Whiten(k))[MASK].astype(np.float64)
        np.testing.assert_allclose(np.cov(rows.T, bias=True), np.eye(k), atol=1e-4)
        np.testing.assert_allclose(rows.mean(0), 0, atol=1e-5)


def test_whitening_damps_directions_below_eps():
    flat = np.column_stack([VECTORS[:, 0], np.zeros(300)]).astype(np.float32)
    rows = run(Whiten(2), flat, MASK)
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(rows[:, 1], 0, atol=1e-6)


def test_full_pca_is_an_isometry():
    np.testing.assert_allclose(distances(run(PCA(6))), distances(VECTORS), rtol=1e-5, atol=1e-5)


def test_pca_keeps_the_directions_of_largest_variance():
    rows = run(PCA(2))[MASK].astype(np.float64)
    variances = np.linalg.eigvalsh(np.cov(VECTORS[MASK].T.astype(np.float64), bias=True))[::-1]
    np.testing.assert_allclose(np.cov(rows.T, bias=True), np.diag(variances[:2]), atol=1e-4)


def test_directions_have_fixed_signs():
    _, _, directions = principal_axes(VECTORS.astype(np.float64), 6)
    largest = np.argmax(np.abs(directions), 0)
    assert (directions[largest, np.arange(6)] > 0).all()
    # Mirroring the data mirrors the coordinates, not the convention.
    np.testing.assert_allclose(principal_axes(-VECTORS.astype(np.float64), 6)[2], directions)


@pytest.mark.parametrize("step", [Standardise(), PCA(3), Whiten(3)])
def test_steps_learn_from_marked_rows_only(step):
    changed = VECTORS.copy()
    changed[~MASK] *= 7
    before, after = step.fit(VECTORS, MASK), step.fit(changed, MASK)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    everything = step.fit(changed, np.ones(300, bool))
    assert not np.allclose(everything["mean"], before["mean"])


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="use k <= 6"):
        PCA(7).fit(VECTORS, MASK)
    with pytest.raises(ValueError, match="at least one row"):
        PCA(2).fit(VECTORS, np.zeros(300, bool))
    with pytest.raises(ValueError, match="k >= 1"):
        Whiten(0)
    with pytest.raises(ValueError, match="eps > 0"):
        Whiten(3, eps=0.0)
