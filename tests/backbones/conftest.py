"""What the tests of decoders share."""

import jax
import jax.numpy as jnp
import pytest
from decoder_world import SPACE, World, make_codes

from jaxrec.types import Tables


@pytest.fixture(scope="session")
def world() -> World:
    """A catalogue of 40 items over levels of 7, 5 and 3 codes."""
    codes = make_codes()
    return World(SPACE, Tables(jnp.asarray(codes)), codes)


@pytest.fixture(autouse=True)
def compile_fast():
    """Most of the time here would go into optimising programs that run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
