"""Quantizers fitted on rows that are sharded over eight devices, beside one device.

Those of residual k-means, balanced k-means and RQ-VAE stand with their other tests.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.parallel import make_mesh, rows_sharding
from jaxrec.tokenization import Fsq, KMeansTree, ProductKMeans

VECTORS = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32)
QUANTIZERS = (
    ProductKMeans(4, 16, rotation="learnt", iterations=4),
    KMeansTree(branches=4),
    Fsq(grid=((5, 4),) * 2, steps=40),
)


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda each: type(each).__name__)
def test_a_fit_on_sharded_rows_gives_the_codes_of_one_device(quantizer):
    sharded = jax.device_put(jnp.asarray(VECTORS), rows_sharding(make_mesh()))
    assert len(sharded.sharding.device_set) == 8
    one = quantizer.fit(jax.random.key(0), VECTORS)
    eight = quantizer.fit(jax.random.key(0), sharded)
    codes = np.asarray(quantizer.encode(one, VECTORS))
    np.testing.assert_array_equal(quantizer.encode(eight, sharded), codes)
    assert len(np.unique(codes, axis=0)) > 50
