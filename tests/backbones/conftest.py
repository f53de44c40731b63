"""What the tests of decoders share."""

import jax.numpy as jnp
import pytest
from decoder_world import SPACE, World, make_codes

from jaxrec.types import Tables


@pytest.fixture(scope="session")
def world() -> World:
    """A catalogue of 40 items over levels of 7, 5 and 3 codes."""
    codes = make_codes()
    return World(SPACE, Tables(jnp.asarray(codes)), codes)


@pytest.fixture(autouse=True, scope="module")
def networks_compile_fast(compile_fast):
    """Networks run once; optimising their programs would take most of the time here."""
