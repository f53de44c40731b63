"""A small RQ-VAE, what it makes of clustered vectors, and what tests measure of it."""

import functools

import jax
import numpy as np

from jaxrec.tokenization import RqVae
from jaxrec.training import AdamW
from tests.tokenization.test_residual_kmeans import clustered

KEY = jax.random.key(0)
FAST = AdamW(learning_rate=1e-2, warmup_steps=5)
SMALL = RqVae(levels=2, codes=16, hidden=(24,), latent=6, steps=100, batch=128, optimizer=FAST)
VECTORS = clustered(rows=400)
KNOWN = np.arange(400) % 3 > 0
BEHAVIOUR = np.where(KNOWN[:, None], clustered(rows=400, width=8, seed=7), np.nan)


@functools.cache
def fitted(quantizer):
    """Its state after VECTORS, fitted when a test first asks for it."""
    return quantizer.fit(KEY, VECTORS)


@functools.cache
def coded(quantizer):
    """Its codes of VECTORS."""
    return np.asarray(quantizer.encode(fitted(quantizer), VECTORS))


def assert_equal_states(left, right):
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(one, other)


def explained(quantizer, state, vectors, levels=None):
    codes = np.asarray(quantizer.encode(state, vectors))[:, :levels]
    errors = (vectors - np.asarray(quantizer.decode(state, codes))) ** 2
    return 1 - errors.sum() / ((vectors - vectors.mean(0)) ** 2).sum()
