"""What the tests of item vectors share."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def compile_fast():
    """Most of the time here would go into optimising programs that run for a moment."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
