"""Implicit ALS against its normal equations, written out."""

import numpy as np
from behaviour_logs import encode, random_lists, sequences_of
from scipy import sparse

from jaxrec.representation import als
from jaxrec.representation.als import Als, als_objective, fit_als, solve_rows
from jaxrec.representation.encoder import interactions

RNG = np.random.default_rng(0)
COUNTS = interactions(sequences_of([*random_lists(users=40), []]), 12)
OPTIONS = {"alpha": 3.0, "regularisation": 0.5}


def dense_objective(counts, users, items, alpha, regularisation):
    r = counts.toarray()
    error = (1 + alpha * r) * ((r > 0) - users @ items.T) ** 2
    return error.sum() + regularisation * ((users**2).sum() + (items**2).sum())


def dense_solution(counts, fixed, alpha, regularisation):
    """w_u = (V^T V + V^T (C^u - I) V + lambda I)^(-1) V^T C^u p_u, user by user."""
    found = []
    for r in counts.toarray():
        confidence = np.diag(1 + alpha * r)
        left = fixed.T @ fixed + fixed.T @ (confidence - np.eye(len(r))) @ fixed
        left += regularisation * np.eye(fixed.shape[1])
        found.append(np.linalg.solve(left, fixed.T @ confidence @ (r > 0)))
    return np.array(found)


def test_the_solution_is_the_formula_however_rows_are_blocked(monkeypatch):
    fixed = RNG.normal(size=(12, 4))
    expected = dense_solution(COUNTS, fixed, **OPTIONS)
    for numbers in (1, 200, 2**22):
        monkeypatch.setattr(als, "_BLOCK_NUMBERS", numbers)
        np.testing.assert_allclose(solve_rows(COUNTS, fixed, **OPTIONS), expected, atol=1e-12)
    assert (COUNTS.toarray() > 1).any(), "an item that was had twice counts twice"
    np.testing.assert_array_equal(expected[-1], 0)


def test_the_gradient_at_the_solution_is_zero():
    """Of a problem as badly scaled as real ones: confidences of thousands."""
    counts = sparse.csr_matrix(RNG.poisson(0.3, (60, 50)) * RNG.integers(1, 100, (60, 50)))
    counts = counts.astype(np.float64)
    fixed, alpha, ridge = RNG.normal(size=(50, 16)), 40.0, 0.1
    users = solve_rows(counts, fixed, alpha, ridge)
    r = counts.toarray()
    error = (1 + alpha * r) * (users @ fixed.T - (r > 0))
    gradient = 2 * (error @ fixed + ridge * users)
    assert np.abs(gradient).max() < 1e-5
    # And not where the vectors are only rounded to float32: the bound can fail.
    users = users.astype(np.float32)
    error = (1 + alpha * r) * (users @ fixed.T - (r > 0))
    assert np.abs(2 * (error @ fixed + ridge * users)).max() > 1e-5


def test_the_objective_is_the_sum_over_all_pairs():
    users, items = RNG.normal(size=(41, 3)), RNG.normal(size=(12, 3))
    found = als_objective(COUNTS, users, items, **OPTIONS)
    np.testing.assert_allclose(found, dense_objective(COUNTS, users, items, **OPTIONS), rtol=1e-12)


def test_no_half_of_a_round_raises_the_objective():
    found = fit_als(COUNTS, dimension=4, iterations=8, seed=1, **OPTIONS)
    assert len(found.objectives) == 16
    assert (np.diff(found.objectives) <= 1e-9 * found.objectives[0]).all()
    assert found.objectives[-1] < 0.9 * found.objectives[0]
    last = dense_objective(COUNTS, found.users, found.items, **OPTIONS)
    np.testing.assert_allclose(found.objectives[-1], last, rtol=1e-12)
    # The items are the best for these users: what is exported is a solution.
    expected = dense_solution(COUNTS.T, found.users, **OPTIONS)
    np.testing.assert_allclose(found.items, expected, atol=1e-10)


def test_the_encoder_exports_the_items():
    lists = random_lists(users=40)
    found = encode(Als(dimension=4, alpha=3.0, regularisation=0.5, iterations=3), lists, 12, seed=1)
    counts = interactions(sequences_of(lists), 12)
    expected = fit_als(counts, dimension=4, iterations=3, seed=1, **OPTIONS)
    np.testing.assert_allclose(found.vectors, expected.items, atol=1e-6)
    assert found.facts["fit_objective"] == expected.objectives[1::2]
