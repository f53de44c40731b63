"""Lists that become one, against dictionaries."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.decoding import fuse
from jaxrec.types import Ranked


def draw(random, length):
    """Three rows of distinct items, some of them cut short."""
    items = np.stack([random.permutation(12)[:length] for _ in range(3)])
    scores = -np.sort(random.integers(0, 9, (3, length)), axis=1).astype(np.float32)
    valid = np.arange(length) < random.integers(0, length + 1, (3, 1))
    return Ranked(
        jnp.asarray(np.where(valid, items, -1), jnp.int32),
        jnp.asarray(np.where(valid, scores, -np.inf)),
        jnp.asarray(valid),
    )


def reference(lists, row, fusion):
    tables = [
        [(int(i), float(s)) for i, s, ok in zip(each.items[row], each.scores[row], each.valid[row])
         if ok]
        for each in lists
    ]  # fmt: skip
    union = {item for table in tables for item, _ in table}
    total = {}
    for item in union:
        points = []
        for table in tables:
            names = [name for name, _ in table]
            if fusion == "reciprocal_rank":
                points.append(1 / (61 + names.index(item)) if item in names else 0.0)
            elif item in names:
                points.append(dict(table)[item])
            else:
                points.append(table[-1][1] if table else 0.0)
        total[item] = sum(points) / (len(lists) if fusion == "mean" else 1)
    return sorted(total.items(), key=lambda pair: (-round(pair[1], 6), pair[0]))


@pytest.mark.parametrize("fusion", ["sum", "mean", "reciprocal_rank"])
@pytest.mark.parametrize("k", [4, 30])
def test_equals_dictionaries(fusion, k):
    for seed in range(20):
        random = np.random.default_rng(seed)
        lists = [draw(random, length) for length in (4, 6, 3)]
        fused = fuse(lists, k=k, fusion=fusion)
        for row in range(3):
            expected = reference(lists, row, fusion)[:k]
            count = len(expected)
            assert np.asarray(fused.valid[row]).tolist() == [i < count for i in range(k)]
            np.testing.assert_allclose(
                fused.scores[row, :count], [score for _, score in expected], rtol=1e-6
            )
            assert fused.items[row, :count].tolist() == [item for item, _ in expected]
            assert (fused.items[row, count:] == -1).all()


def test_one_list_is_itself():
    ranked = draw(np.random.default_rng(3), 5)
    fused = fuse([ranked], k=5, fusion="reciprocal_rank")
    np.testing.assert_array_equal(fused.items, ranked.items)


def test_bad_arguments():
    ranked = draw(np.random.default_rng(0), 3)
    # The type checker of the tests may come first where the argument is a Literal.
    with pytest.raises((ValueError, TypeError), match=r"(?s)sum.*mean"):
        fuse([ranked], fusion="max")  # ty: ignore[invalid-argument-type]
    with pytest.raises(ValueError, match="at least one list"):
        fuse([])
