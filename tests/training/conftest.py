"""Meshes of the tests of training."""

import jax
import pytest

from jaxrec.parallel import MeshShape, make_mesh


@pytest.fixture(autouse=True, scope="module")
def steps_compile_fast(compile_fast):
    """A few steps of toys are taken; optimising their programs would take longer."""


@pytest.fixture(scope="session")
def one():
    """A mesh of one device."""
    return make_mesh(MeshShape(1), jax.devices()[:1])


@pytest.fixture(scope="session")
def cube():
    """A mesh of eight devices: data 2, fsdp 2, tensor 2."""
    return make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
