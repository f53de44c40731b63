"""New rows of a token table lie where the old ones do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.backbones.vocabulary import new_rows

KEY = jax.random.key(0)
SCALE = np.linspace(0.1, 2.0, 8)
TABLE = jnp.asarray(np.random.default_rng(0).normal(size=(5000, 8)) * SCALE + 3.0, jnp.float32)


def test_rows_have_the_mean_and_the_spread_of_the_table():
    rows = np.asarray(new_rows(KEY, TABLE, 20000))
    np.testing.assert_allclose(rows.mean(0), TABLE.mean(0), atol=0.06)  # 4 standard errors
    np.testing.assert_allclose(rows.std(0), TABLE.std(0), rtol=0.03)
    alike = np.asarray(new_rows(KEY, TABLE, 20000, start="mean"))
    np.testing.assert_allclose(alike.std(0), TABLE.std(0) / 100, rtol=0.03)
    np.testing.assert_array_equal(rows, new_rows(KEY, TABLE, 20000))


@pytest.mark.parametrize("width", [5, 8])
def test_rows_of_codes_lie_to_each_other_as_the_codes_do(width):
    vectors = jax.random.normal(jax.random.key(1), (30, width)) + 7.0
    rows = np.asarray(new_rows(KEY, TABLE, 30, start="codebook", vectors=vectors))

    def distances(points):
        return np.linalg.norm(points[:, None] - points[None], axis=-1)

    ratio = (
        distances(rows)[np.triu_indices(30, 1)]
        / distances(np.asarray(vectors))[np.triu_indices(30, 1)]
    )
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
    np.testing.assert_allclose(rows.mean(0), TABLE.mean(0), atol=1e-4)
    spread = np.square(rows - rows.mean(0)).sum(1).mean()
    np.testing.assert_allclose(spread, np.square(np.asarray(TABLE).std(0)).sum(), rtol=1e-3)


def test_wider_vectors_are_carried_over_too():
    vectors = jax.random.normal(jax.random.key(1), (30, 20))
    rows = new_rows(KEY, TABLE, 30, start="codebook", vectors=vectors)
    assert rows.shape == (30, 8)
    assert np.isfinite(rows).all()


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="choose one of mean, spread, codebook"):
        new_rows(KEY, TABLE, 3, start="zero")
    with pytest.raises(ValueError, match="vectors of 3 codes, got none"):
        new_rows(KEY, TABLE, 3, start="codebook")
    with pytest.raises(ValueError, match="vectors of 3 codes, got 2"):
        new_rows(KEY, TABLE, 3, start="codebook", vectors=jnp.ones((2, 4)))
