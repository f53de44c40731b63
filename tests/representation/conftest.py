"""What the tests of item vectors share."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def encoders_compile_fast(compile_fast):
    """Programs run for a moment; optimising them would take most of the time here."""
