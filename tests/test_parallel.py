"""The mesh and the table of axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxrec.parallel import (
    MESH_AXES,
    RULES,
    MeshShape,
    constrain,
    make_mesh,
    partition_spec,
    replicated,
    rows_sharding,
    shard_rows,
    shardings,
)


@pytest.fixture(scope="module")
def cube():
    return make_mesh(MeshShape(data=2, fsdp=2, tensor=2))


def test_shape_resolves_the_rest():
    assert MeshShape().resolve(8) == (8, 1, 1, 1)
    assert MeshShape(data=2, fsdp=-1).resolve(8) == (2, 4, 1, 1)
    assert MeshShape(2, 2, 2, 1).resolve(8) == (2, 2, 2, 1)


@pytest.mark.parametrize("sizes", [(-1, -1), (0,), (-2,)])
def test_impossible_shapes(sizes):
    with pytest.raises(ValueError, match="impossible"):
        MeshShape(*sizes)


@pytest.mark.parametrize("shape", [MeshShape(3), MeshShape(data=-1, fsdp=3), MeshShape(2, 2, 1)])
def test_shapes_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"does not fit 8 device\(s\)"):
        shape.resolve(8)


def test_mesh_has_all_axes_and_is_auto(cube):
    assert cube.axis_names == MESH_AXES
    assert dict(cube.shape) == {"data": 2, "fsdp": 2, "tensor": 2, "expert": 1}
    assert set(cube.axis_types) == {jax.sharding.AxisType.Auto}
    assert make_mesh(devices=jax.devices()[:1]).size == 1


def test_rules_name_mesh_axes_only():
    assert {axis for axes in RULES.values() for axis in axes} <= set(MESH_AXES)


def test_specs_follow_the_table(cube):
    assert partition_spec(("vocab", "embed"), (6, 4), cube) == P("tensor", "fsdp")
    assert partition_spec(("batch", None), (8, 3), cube) == P(("data", "fsdp"), None)
    assert partition_spec(("unheard-of", "mlp"), (2, 2), cube) == P(None, "tensor")
    # Three heads do not divide over two devices; one expert axis is no axis.
    assert partition_spec(("kv_heads", "embed"), (3, 4), cube) == P(None, "fsdp")
    assert partition_spec(("experts",), (4,), cube) == P(None)
    one = make_mesh(devices=jax.devices()[:1])
    assert partition_spec(("vocab", "embed"), (6, 4), one) == P(None, None)


def test_specs_refuse_collisions_and_wrong_ranks(cube):
    with pytest.raises(ValueError, match=r"two axes of one array on mesh axis \['tensor'\]"):
        partition_spec(("vocab", "mlp"), (4, 4), cube)
    with pytest.raises(ValueError, match="name 1 axes"):
        partition_spec(("vocab",), (4, 4), cube)


def test_shardings_of_a_tree(cube):
    tree = {"a": np.ones((4, 2)), "b": {"c": np.ones(2)}}
    result = shardings({"a": ("embed", "heads"), "b": {"c": (None,)}}, tree, cube)
    assert result["a"].spec == P("fsdp", "tensor")
    assert result["b"]["c"].spec == P(None)
    assert result["a"].mesh == cube
    assert replicated(cube).spec == P()


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_are_split(cube, axis):
    shape = (8, 3) if axis == 0 else (3, 8)
    batch = {"x": np.arange(24, dtype=np.int32).reshape(shape), "y": np.ones(shape, bool)}
    placed = shard_rows(batch, cube, axis)
    np.testing.assert_array_equal(placed["x"], batch["x"])
    assert placed["y"].dtype == bool
    assert placed["x"].sharding.is_equivalent_to(rows_sharding(cube, axis), 2)
    part = placed["x"].addressable_shards[0].data.shape
    assert part == ((2, 3) if axis == 0 else (3, 2))


def test_rows_must_divide(cube):
    with pytest.raises(ValueError, match=r"batch of 6 rows .* = 4 devices"):
        shard_rows(np.ones((6, 2)), cube)


def test_constrain_is_nothing_without_a_mesh(cube):
    x = jnp.ones((8, 4))
    assert constrain(x, "batch", "mlp") is x
    with jax.set_mesh(cube):
        placed = jax.jit(lambda x: constrain(x * 2, "batch", "mlp"))(x)
        # Rows that do not divide are replicated, not refused.
        odd = jax.jit(lambda x: constrain(x * 2, "batch", None))(jnp.ones((3, 4)))
    assert placed.sharding.spec == P(("data", "fsdp"), "tensor")
    assert odd.sharding.is_fully_replicated
    np.testing.assert_array_equal(placed, 2.0)
