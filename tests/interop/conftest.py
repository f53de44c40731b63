"""What the tests of exchange with other programs share."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def networks_compile_fast(compile_fast):
    """Tiny networks run once or twice; optimising their programs would take longer."""
