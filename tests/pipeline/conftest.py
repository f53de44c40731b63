"""What the tests of runs share."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def runs_compile_fast(compile_fast):
    """A run here takes a few steps; most of its time would go into optimising its programs."""
