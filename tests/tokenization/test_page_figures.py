"""The pictures of the report's page: the heat map of usage and the map of items, one by one."""

import re

import numpy as np
import pytest

from jaxrec.tokenization.figures import map_svg, usage_svg

pytest.importorskip("matplotlib")
GENERATOR = np.random.default_rng(0)
CODES = np.column_stack([GENERATOR.integers(0, 5, 300), GENERATOR.integers(0, 200, 300)])
VECTORS = GENERATOR.normal(size=(300, 6)).astype(np.float32)


def test_the_heat_map_tells_each_level_also_where_sizes_differ():
    svg = usage_svg(CODES, (8, 250), ink="#010203")
    used = len(set(CODES[:, 1].tolist()))
    top = np.bincount(CODES[:, 0]).max() * 8 / 300
    assert f"5 of 8 codes used, the top one {top:.1f}x its even share" in svg
    assert f"{used} of 250 codes used" in svg
    # Every level's row is as wide as the others: one frame each, between the same edges.
    frames = re.findall(r'id="patch_2">\s*<path d="([^"]*)"', svg)
    edges = [sorted(float(x) for x in re.findall(r"[ML] ([\d.]+) ", frame)) for frame in frames]
    assert len(frames) >= 1
    assert all((edge[0], edge[-1]) == (edges[0][0], edges[0][-1]) for edge in edges)
    assert svg == usage_svg(CODES, (8, 250), ink="#010203")
    assert "#010203" in svg
    assert "#ffffff" not in svg  # no ground of its own: the page's shows, light or dark


def test_the_map_is_one_picture_inside_an_svg():
    svg = map_svg(CODES, VECTORS, ink="#010203")
    assert svg == map_svg(CODES, VECTORS, ink="#010203")
    assert svg.count("data:image/png;base64") == 1
    assert "items, coloured by first code" in svg
    assert svg != map_svg(CODES[::-1], VECTORS, ink="#010203")
