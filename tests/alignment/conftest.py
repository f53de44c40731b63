"""What the tests of alignment share."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def policies_compile_fast(compile_fast):
    """Toy policies take a few steps; optimising their programs would take longer."""
