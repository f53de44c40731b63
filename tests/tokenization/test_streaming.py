"""Quantizers over rows that are read a piece at a time."""

import jax
import numpy as np
import pytest

from jaxrec.tokenization.fsq import Fsq
from jaxrec.tokenization.residual_kmeans import ResidualKMeans
from jaxrec.tokenization.streaming import Streamed

KEY = jax.random.key(0)
INNER = ResidualKMeans(2, 16, iterations=10)


class OnDisk:
    """Rows that may only be sliced; remembers the longest slice."""

    def __init__(self, rows):
        self._rows, self.shape, self.longest = rows, rows.shape, 0

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        found = self._rows[rows]
        self.longest = max(self.longest, len(found))
        return found


def clusters(rows=5000, width=6, centres=40, seed=0):
    random = np.random.default_rng(seed)
    low = random.normal(size=(centres, width)) * 3
    return (low[random.integers(0, centres, rows)] + random.normal(size=(rows, width))).astype(
        np.float32
    )


def error(quantizer, state, vectors):
    decoded = quantizer.decode(state, quantizer.encode(state, vectors))
    return float(((np.asarray(decoded) - vectors) ** 2).mean())


def test_a_sample_of_everything_is_the_fit_in_memory():
    vectors = clusters()
    streamed = Streamed(INNER, sample=10**6, passes=0, piece=700)
    found, plain = streamed.fit(KEY, OnDisk(vectors)), INNER.fit(KEY, vectors)
    for one, other in zip(found.codebooks, plain.codebooks):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(streamed.encode(found, vectors), INNER.encode(plain, vectors))


def test_passes_are_lloyd_updates_over_all_rows():
    """The reference holds everything and works in float64."""
    vectors = clusters()
    start = Streamed(INNER, sample=500, passes=0, piece=700).fit(KEY, vectors)
    found = Streamed(INNER, sample=500, passes=2, piece=700).fit(KEY, vectors)
    left = vectors.astype(np.float64) - np.asarray(start.offset, np.float64)
    for level, book in enumerate(start.codebooks):
        book = np.array(book, np.float64)
        for step in range(3):
            codes = ((left[:, None] - book[None]) ** 2).sum(-1).argmin(1)
            if step < 2:
                for code in np.unique(codes):
                    book[code] = left[codes == code].mean(0)
        np.testing.assert_allclose(found.codebooks[level], book, atol=1e-4)
        left = left - book[codes]
    assert error(INNER, found, vectors) < error(INNER, start, vectors)


def test_no_more_than_a_piece_is_read_at_once():
    rows = OnDisk(clusters())
    streamed = Streamed(INNER, sample=500, passes=1, piece=256)
    state = streamed.fit(KEY, rows)
    assert streamed.encode(state, rows).shape == (5000, 2)
    assert 0 < rows.longest <= 256


def test_a_memory_mapped_file_gives_what_an_array_gives(tmp_path):
    vectors = clusters()
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    streamed = Streamed(INNER, sample=1000, piece=1024)
    one, other = streamed.fit(KEY, mapped), streamed.fit(KEY, vectors)
    np.testing.assert_array_equal(streamed.encode(one, mapped), streamed.encode(other, vectors))


def test_normalised_residuals_stream_too():
    vectors = clusters()
    inner = ResidualKMeans(2, 16, iterations=10, normalise_residuals=True)
    state = Streamed(inner, sample=1000, passes=1).fit(KEY, vectors)
    np.testing.assert_array_equal(
        Streamed(inner, piece=333).encode(state, vectors), inner.encode(state, vectors)
    )


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="passes=0"):
        Streamed(Fsq(), passes=1)
    with pytest.raises(ValueError, match="piece >= 1"):
        Streamed(piece=0)
    with pytest.raises(ValueError, match="equal weight"):
        Streamed(INNER).fit(KEY, clusters(), {"weights": np.ones(5000)})
    vectors = clusters()
    vectors[4000, 2] = np.nan
    with pytest.raises(ValueError, match="non-finite"):
        Streamed(INNER, sample=500).fit(KEY, vectors)
