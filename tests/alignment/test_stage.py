"""What an alignment stage refuses before any work."""

import dataclasses

import jax
import pytest
from table_policy import TablePolicy
from toy_stage import toy_context

from jaxrec.alignment.stage import check_start
from jaxrec.backbones.sasrec import SasRec
from jaxrec.parallel import MeshShape, make_mesh
from jaxrec.types import TokenSpace


@pytest.fixture
def context(tmp_path):
    mesh = make_mesh(MeshShape(1), jax.devices()[:1])
    return toy_context(tmp_path, mesh, items=8, sizes=(2, 2, 2), features={})


def test_parameters_of_this_network_and_space_are_taken(context):
    check_start(context, "Align")


def test_nothing_to_start_from_is_refused(context):
    with pytest.raises(ValueError, match="put a Supervised stage before it"):
        check_start(dataclasses.replace(context, params=None), "Align")


def test_a_retriever_is_refused(context):
    with pytest.raises(ValueError, match="SasRec compares users with items"):
        check_start(dataclasses.replace(context, generator=SasRec()), "Prefer")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((3, 2, 2), r"level_0.* is \(1, 3\) there and \(1, 2\) here"), ((2, 2), "level_2.* missing")],
)
def test_a_reference_of_another_space_is_refused_by_name(context, sizes, message):
    params = TablePolicy().init(jax.random.key(0), TokenSpace(sizes))
    with pytest.raises(ValueError, match=message):
        check_start(dataclasses.replace(context, params=params), "Align")
