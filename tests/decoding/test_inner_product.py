"""Retrieval by inner product: equal to sorting all scores, filtered or not, in blocks or whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.decoding import (
    Filters,
    InnerProduct,
    UserItemVectors,
    build_catalogue,
    retrieve,
)
from jaxrec.parallel import MeshShape, make_mesh, shard_rows
from jaxrec.types import TokenSpace

ROWS, ITEMS, WIDTH = 4, 23, 3


def draw(seed=0):
    # Small whole numbers: many scores are equal, so ties matter.
    random = np.random.default_rng(seed)
    user = random.integers(-2, 3, (ROWS, WIDTH)).astype(np.float32)
    item = random.integers(-2, 3, (ITEMS, WIDTH)).astype(np.float32)
    return UserItemVectors(jnp.asarray(user), jnp.asarray(item))


def reference(vectors, k, allowed=None, denied=None, listed=None):
    """Sorts every row by (-score, item) in Python."""
    lists = []
    for row in range(ROWS):
        scores = np.asarray(vectors.user[row]) @ np.asarray(vectors.item).T
        open_to = [
            item for item in range(ITEMS)
            if (allowed is None or allowed[row][item])
            and (denied is None or item not in denied[row])
            and (listed is None or item in listed[row])
        ]  # fmt: skip
        best = sorted(open_to, key=lambda item: (-scores[item], item))[:k]
        lists.append(best + [-1] * (k - len(best)))
    return lists


@pytest.mark.parametrize("block", [1, 5, 23, 100])
@pytest.mark.parametrize("k", [1, 6, 30])
def test_equals_sorting_everything(k, block):
    vectors = draw()
    allowed = np.arange(ITEMS) % 5 != 0
    masks, domain = np.random.default_rng(0).random((2, ITEMS)) < 0.6, np.array([1, 0, 1, 2])
    by_domain = np.append(masks, np.zeros((1, ITEMS), bool), axis=0)[domain]
    listed = np.array([[3, 8, 3, 99], [-1, -1, -1, -1], [0, 22, 7, 21], [5, 6, 1, 2]], np.int32)
    denied = np.array([[3, -1, -1], [4, 7, 4], [99, 22, 0], [-1, -1, -1]], np.int32)
    for filters, arguments in (
        (None, {}),
        (Filters(denied=jnp.asarray(denied)), {"denied": denied}),
        (
            Filters(allowed=jnp.asarray(allowed), denied=jnp.asarray(denied)),
            {"allowed": [allowed] * ROWS, "denied": denied},
        ),
        (
            Filters(jnp.asarray(masks), jnp.asarray(denied), domain=jnp.asarray(domain)),
            {"allowed": by_domain, "denied": denied},
        ),
        (
            Filters(denied=jnp.asarray(denied), listed=jnp.asarray(listed)),
            {"denied": denied, "listed": listed},
        ),
    ):
        ranked = retrieve(vectors, filters, k=k, block=block)
        np.testing.assert_array_equal(ranked.items, reference(vectors, k, **arguments))
        np.testing.assert_array_equal(ranked.valid, ranked.items >= 0)
        assert np.all(np.asarray(ranked.scores)[~np.asarray(ranked.valid)] == -np.inf)


def test_scores_are_the_inner_products():
    vectors = draw(1)
    items = build_catalogue(np.arange(ITEMS, dtype=np.int32)[:, None], TokenSpace((ITEMS,)))
    ranked = InnerProduct(k=5)(vectors, items)
    for row in range(ROWS):
        products = np.asarray(vectors.item)[ranked.items[row]] @ np.asarray(vectors.user[row])
        np.testing.assert_allclose(ranked.scores[row], products)


def test_sharded_equals_single():
    vectors = draw(2)
    single = retrieve(vectors, k=7, block=9)
    mesh = make_mesh(MeshShape(data=4, tensor=2))
    with jax.set_mesh(mesh):
        user = shard_rows(np.asarray(vectors.user), mesh)
        sharded = jax.jit(lambda user: retrieve(vectors._replace(user=user), k=7, block=9))(user)
    np.testing.assert_array_equal(single.items, sharded.items)
    np.testing.assert_array_equal(single.scores, sharded.scores)


def test_filters_of_another_catalogue_are_refused():
    with pytest.raises(ValueError, match="one flag per item"):
        retrieve(draw(), Filters(allowed=jnp.ones(5, bool)), k=2)
    with pytest.raises(ValueError, match="one list per request"):
        retrieve(draw(), Filters(denied=jnp.zeros((9, 1), jnp.int32)), k=2)
    with pytest.raises(ValueError, match="k=0"):
        InnerProduct(k=0)
