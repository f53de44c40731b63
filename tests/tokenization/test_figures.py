"""The picture: right numbers, a valid file, the same file each time, a clear error without it."""

import subprocess
import sys

import numpy as np
import pytest

from jaxrec.tokenization.figures import figure_bytes, plane, top_share, usage_shares, usage_svg

GENERATOR = np.random.default_rng(0)
CODES = np.column_stack([GENERATOR.integers(0, 12, 300), GENERATOR.integers(0, 5, 300)])
VECTORS = GENERATOR.normal(size=(300, 6)).astype(np.float32)


def test_shares_are_relative_to_even_use_and_sorted():
    shares = usage_shares(CODES[:, 1], 8)
    assert shares.shape == (8,)
    assert (np.diff(shares) <= 0).all()
    np.testing.assert_allclose(shares.mean(), 1)
    assert (shares[5:] == 0).all()


def test_the_plane_has_the_largest_variances():
    flat = plane(VECTORS)
    variances = np.linalg.eigvalsh(np.cov(VECTORS.T.astype(np.float64), bias=True))[::-1]
    np.testing.assert_allclose(np.cov(flat.T, bias=True), np.diag(variances[:2]), atol=1e-6)
    assert plane(VECTORS[:, :1]).shape == (300, 2)


@pytest.mark.parametrize("vectors", [None, VECTORS])
def test_svg_names_the_levels_and_repeats_itself(vectors):
    pytest.importorskip("matplotlib")
    picture = figure_bytes(CODES, (12, 8), vectors=vectors, title="small")
    text = picture.decode()
    assert text.startswith("<?xml")
    assert "12 of 12 codes used" in text
    assert "5 of 8 codes used" in text
    assert ("items, coloured by first code" in text) == (vectors is not None)
    assert picture == figure_bytes(CODES, (12, 8), vectors=vectors, title="small")


def test_png():
    pytest.importorskip("matplotlib")
    picture = figure_bytes(CODES, (12, 8), vectors=VECTORS, image_format="png")
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(ValueError, match="'svg' or 'png'"):
        figure_bytes(CODES, (12, 8), image_format="jpg")


def test_without_matplotlib_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['matplotlib'] = None; import numpy as np\n"
        "from jaxrec.tokenization import figure_bytes\n"
        "try: figure_bytes(np.zeros((3, 1), int), (2,))\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "install jaxrec[plots]" in done.stdout


def test_pictures_side_by_side_have_one_scale():
    pytest.importorskip("matplotlib")
    assert top_share(CODES, (12, 8)) == 4.0  # a floor, so that even use is not all one colour
    few = CODES * [0, 1]
    assert top_share(few, (12, 8)) == 12.0
    own = usage_svg(CODES, (12, 8))
    assert own == usage_svg(CODES, (12, 8), top=4.0)
    # The scale of the other: its ticks, and other colours for the same shares.
    assert "10x" not in own
    assert "10x" in usage_svg(CODES, (12, 8), top=12.0)
