"""What the tests of tokenizers share."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def fits_compile_fast(compile_fast):
    """Programs run for a moment; optimising them would take most of the time here."""
