"""A picture of semantic IDs: how codes are used, and where the first code lies in vector space."""

from __future__ import annotations

import colorsys
import contextlib
import io
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

_WIDTH = 9.0
_PANEL = 5.2
"""Width of a picture that is read beside others, or alone on a telephone."""
_MAP_POINTS = 4000
_INK = "#222222"


def figure_bytes(
    codes: np.ndarray,
    sizes: tuple[int, ...],
    *,
    vectors: np.ndarray | None = None,
    title: str = "",
    image_format: str = "svg",
) -> bytes:
    """Draws codebook usage, one strip a level, and with vectors a map coloured by first code.

    A strip shows the codes of a level from most to least used: an even strip is healthy, a white
    end is codes that nobody has. The map is the plane of largest variance; at most 4,000 items,
    evenly spaced in the catalogue, are drawn.

    Args:
        codes: int[n, l], semantic levels (an extra digit may be left in).
        sizes: codes of each level.
        vectors: float[n, d].
        title: printed above.
        image_format: `svg` or `png`.

    Returns:
        The file's content. Equal input gives equal SVG.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: another image format.
    """
    if image_format not in ("svg", "png"):
        raise ValueError(f"image_format must be 'svg' or 'png', got {image_format!r}.")
    columns = 1 if vectors is None else 2
    height = max(4.2 if vectors is not None else 0.0, 1.0 + 0.7 * len(sizes))
    with _figure((_WIDTH, height), _INK, "jaxrec") as (figure, save):
        grid = figure.add_gridspec(len(sizes), columns)
        strips = [figure.add_subplot(grid[level, 0]) for level in range(len(sizes))]
        _draw_usage(figure, strips, np.asarray(codes), sizes)
        if vectors is not None:
            _draw_map(figure.add_subplot(grid[:, 1]), np.asarray(codes), np.asarray(vectors))
        if title:
            figure.suptitle(title, fontsize=11)
    return save(image_format, "white")


def usage_svg(
    codes: np.ndarray, sizes: tuple[int, ...], *, ink: str = _INK, top: float | None = None
) -> str:
    """The heat map of codebook usage alone, level x code, on a transparent ground.

    Every level is a row as wide as the picture, however many codes it has; codes are sorted from
    most to least used, and all rows share one scale of colours.

    Args:
        codes: int[n, l]. sizes: codes of each level.
        ink: colour of lines and letters.
        top: share at the bright end of the colours, so that several pictures have one scale
            (the largest `top_share`); this picture's own by default.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with _figure((_PANEL, 0.9 + 0.62 * len(sizes)), ink, "jaxrec usage") as (figure, save):
        strips = list(figure.subplots(len(sizes), 1, squeeze=False)[:, 0])
        _draw_usage(figure, strips, np.asarray(codes), sizes, beside=False, top=top)
    return save("svg", "none").decode()


def map_svg(codes: np.ndarray, vectors: np.ndarray, *, ink: str = _INK) -> str:
    """The map of the items alone, coloured by first code, on a transparent ground.

    Args:
        codes: int[n, l]. vectors: float[n, d].
        ink: colour of lines and letters.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with _figure((_PANEL, 4.0), ink, "jaxrec map") as (figure, save):
        _draw_map(figure.add_subplot(), np.asarray(codes), np.asarray(vectors))
    return save("svg", "none").decode()


@contextlib.contextmanager
def _figure(
    size: tuple[float, float], ink: str, salt: str
) -> Generator[tuple[Any, Callable[[str, str], bytes]]]:
    """A matplotlib figure, and a function (format, ground) -> bytes that saves it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "pictures need matplotlib: install jaxrec[plots] (pip install 'jaxrec[plots]')."
        ) from error
    settings: Any = {
        "svg.hashsalt": salt,
        "font.size": 9,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": ink,
        "axes.facecolor": "none",
        "xtick.color": ink,
        "ytick.color": ink,
        # Letters stay letters: they can be searched and read aloud, and take the page's font.
        "svg.fonttype": "none",
        "font.family": "sans-serif",
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")

        def save(image_format: str, ground: str) -> bytes:
            buffer = io.BytesIO()
            metadata = {"Date": None} if image_format == "svg" else None
            with mpl.rc_context(settings):
                figure.savefig(
                    buffer, format=image_format, dpi=200, metadata=metadata, facecolor=ground
                )
            return buffer.getvalue()

        yield figure, save


def usage_shares(codes: np.ndarray, size: int) -> np.ndarray:
    """Counts of a level relative to an even use of all codes, most used first, float64[size].

    >>> usage_shares(np.array([2, 2, 2, 0]), 4).tolist()
    [3.0, 1.0, 0.0, 0.0]
    """
    return np.sort(np.bincount(codes, minlength=size))[::-1] * size / len(codes)


def top_share(codes: np.ndarray, sizes: tuple[int, ...]) -> float:
    """The largest of all levels' shares, and 4 at least: what a scale of colours ends with.

    >>> top_share(np.array([[0, 0], [0, 1]]), (8, 2))
    8.0
    """
    shares = (usage_shares(codes[:, level], size)[0] for level, size in enumerate(sizes))
    return max(4.0, *map(float, shares))


def plane(vectors: np.ndarray) -> np.ndarray:
    """The two directions of largest variance, float64[n, 2]; signs are fixed."""
    centred = vectors - vectors.mean(0, dtype=np.float64)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.argmax(np.abs(axes), 0), np.arange(axes.shape[1])])
    flat = centred @ axes
    return np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))


def code_hues(codes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A hue in [0, 1) for each code: the direction in which the middle of its items lies.

    Codes that hold a region then show as a patch of one colour, codes that are strewn do not.

    Args:
        codes: int[n]. points: float[n, 2], mean 0.

    >>> code_hues(np.array([0, 1]), np.array([[-1.0, 0.0], [0.0, 1.0]])).tolist()
    [0.0, 0.75]
    """
    counts = np.maximum(np.bincount(codes), 1)
    middle = [np.bincount(codes, points[:, axis]) / counts for axis in (0, 1)]
    return (np.arctan2(middle[1], middle[0]) / (2 * np.pi) + 0.5) % 1.0


def _draw_usage(
    figure: Any,
    strips: list[Any],
    codes: np.ndarray,
    sizes: tuple[int, ...],
    *,
    beside: bool = True,
    top: float | None = None,
) -> None:
    """Rows of the heat map; the colour bar stands beside them, or below."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    shares = [usage_shares(codes[:, level], size) for level, size in enumerate(sizes)]
    # Unused codes are left empty: the ground shows, and the frame tells that they belong.
    colours = colormaps["viridis"].with_extremes(bad=(0, 0, 0, 0))
    top = top_share(codes, sizes) if top is None else top
    norm = LogNorm(1 / 16, top)
    for level, (axes, share) in enumerate(zip(strips, shares)):
        strip = np.ma.masked_equal(share[None], 0)
        image = axes.imshow(
            strip,
            aspect="auto",
            cmap=colours,
            norm=norm,
            extent=(0, sizes[level], 0, 1),
            interpolation="nearest",
        )
        used = int((share > 0).sum())
        axes.set_yticks([])
        axes.set_xticks([0, sizes[level]])
        axes.set_ylabel(f"level {level}", rotation=0, ha="right", va="center")
        axes.set_title(
            f"{used:,} of {sizes[level]:,} codes used, the top one {share[0]:.1f}x its even share",
            fontsize=8,
            loc="left",
            pad=3,
        )
    strips[-1].set_xlabel("codes, most used first", labelpad=-6)
    where = {"location": "right", "pad": 0.02} if beside else {"location": "bottom", "pad": 0.04}
    bar = figure.colorbar(image, ax=strips, fraction=0.06, aspect=40, **where)
    bar.set_label("items a code holds, relative to even use; empty: none")
    ticks = [tick for tick in (0.1, 1, 10, 100, 1000) if tick <= top]
    bar.set_ticks(ticks, labels=[f"{tick:g}x" for tick in ticks], minor=False)
    bar.minorticks_off()


def _draw_map(axes: Any, codes: np.ndarray, vectors: np.ndarray) -> None:
    shown = np.unique(np.linspace(0, len(codes) - 1, min(len(codes), _MAP_POINTS)).astype(int))
    points = plane(vectors)
    hue = code_hues(codes[:, 0], points)[codes[shown, 0]]
    points = points[shown]
    # One circle of even lightness, readable on white and on black.
    colours = [colorsys.hls_to_rgb(float(each), 0.5, 0.62) for each in hue]
    # Thousands of points as one picture inside the SVG; the axes stay lines and letters.
    axes.scatter(points[:, 0], points[:, 1], c=colours, s=5, linewidths=0, rasterized=True)
    axes.set_title("items, coloured by first code", fontsize=9)
    axes.set_xlabel("first principal component")
    axes.set_ylabel("second principal component")
    axes.spines[["top", "right"]].set_visible(False)
