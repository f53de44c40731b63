"""Figures as SVG that lives inside a page: no file, no address, colours of the page."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from numbers import Real
from typing import Any

INK = "#010203"
"""Drawn in this colour, then replaced by the page's text colour, so that dark pages work."""

COLOURS = ("#3d85c6", "#d97b29", "#3f9b6c", "#a368c0", "#c2504f", "#8a8d3a")
"""Readable on white and on near-black."""


def has_matplotlib() -> bool:
    """Whether figures can be drawn (`jaxrec[plots]`)."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def is_number(value: Any) -> bool:
    """Whether a value of a metric row can be drawn or printed as a number."""
    return isinstance(value, Real) and not isinstance(value, bool)


def curve_series(
    rows: Sequence[Mapping[str, Any]], x: str = "step"
) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Sorts metric rows into the report's panels: {panel: {metric: (steps, values)}}.

    A metric is whatever number stands beside `step`. Names that hold "loss" go to "Loss"; names
    that start with "validation" or "valid", or hold "@", go to "Validation"; the rest is left out.

    >>> curve_series([{"step": 1, "loss": 2.0, "seconds": 3.0}])
    {'Loss': {'loss': ([1.0], [2.0])}}
    """
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for row in rows:
        if not is_number(row.get(x)):
            continue
        for name, value in row.items():
            panel = _panel(name)
            if panel is None or name == x or not is_number(value):
                continue
            steps, values = panels.setdefault(panel, {}).setdefault(name, ([], []))
            steps.append(float(row[x]))
            values.append(float(value))
    return {name: panels[name] for name in ("Loss", "Validation") if name in panels}


def _panel(name: str) -> str | None:
    if "loss" in name:
        return "Loss"
    return "Validation" if name.startswith("valid") or "@" in name else None


def curves_svg(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], label: str) -> str:
    """One panel of curves as an `<svg>` element for the inside of a page.

    Curve i has colour i of `COLOURS`; the page names them, so that no legend covers a curve.

    Args:
        series: (steps, values) of each curve; values that are not finite leave a gap.
        label: what the vertical axis shows.

    Raises:
        ImportError: matplotlib is missing; install `jaxrec[plots]`.
    """
    with _panel_of_page(label, (5.2, 3.0)) as (axes, svg):
        for i, (steps, values) in enumerate(series.values()):
            marker = "o" if len(steps) < 30 else None
            axes.plot(steps, values, color=colour_of(i), marker=marker, markersize=3)
        axes.set_xlabel("step", color=INK)
        axes.set_ylabel(label, color=INK)
        axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    return svg()


def buckets_svg(
    series: Mapping[str, Sequence[tuple[float, float, float] | None]],
    buckets: Sequence[str],
    label: str,
    x_label: str,
) -> str:
    """Means with intervals, bucket by bucket, one colour a method, as an `<svg>` element.

    Args:
        series: (mean, low, high) of each method in each bucket; None leaves a gap.
        buckets: names of the buckets, printed below.
        label: what the vertical axis shows.
        x_label: what the buckets count.

    Raises:
        ImportError: matplotlib is missing; install `jaxrec[plots]`.
    """
    with _panel_of_page(f"{label} {x_label}", (5.2, 3.0)) as (axes, svg):
        for i, values in enumerate(series.values()):
            # Methods of one bucket stand side by side: their intervals would cover each other.
            shift = (i - (len(series) - 1) / 2) * min(0.14, 0.6 / max(len(series), 1))
            told = [(place, value) for place, value in enumerate(values) if value is not None]
            at = [place + shift for place, _ in told]
            means = [mean for _, (mean, _, _) in told]
            below = [max(mean - low, 0.0) for _, (mean, low, _) in told]
            above = [max(high - mean, 0.0) for _, (mean, _, high) in told]
            colour = colour_of(i)
            axes.plot(at, means, color=colour, linewidth=0.8, alpha=0.5)
            axes.errorbar(
                at, means, [below, above], color=colour, fmt="o", markersize=4, elinewidth=1.4
            )
        crowded = sum(map(len, buckets)) > 48
        axes.set_xticks(
            range(len(buckets)),
            list(buckets),
            rotation=30 if crowded else 0,
            ha="right" if crowded else "center",
        )
        axes.set_xlim(-0.5, len(buckets) - 0.5)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(x_label, color=INK)
        axes.set_ylabel(label, color=INK)
        axes.grid(color=INK, alpha=0.12, linewidth=0.6, axis="y")
    return svg()


def intervals_svg(series: Sequence[tuple[str, float, float, float]], label: str) -> str:
    """Means with intervals on one line each, the first on top, as an `<svg>` element.

    Args:
        series: (name, mean, low, high). Entry i has colour i of `COLOURS`.
        label: what the horizontal axis shows.

    Raises:
        ImportError: matplotlib is missing; install `jaxrec[plots]`.
    """
    with _panel_of_page(f"{label} intervals", (5.2, 0.75 + 0.3 * len(series))) as (axes, svg):
        for i, (_, mean, low, high) in enumerate(series):
            ends = [[max(mean - low, 0.0)], [max(high - mean, 0.0)]]
            axes.errorbar(
                [mean], [i], xerr=ends, color=colour_of(i), fmt="o", markersize=5, elinewidth=2
            )
        axes.set_yticks(range(len(series)), [name for name, *_ in series])
        axes.set_ylim(len(series) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel(label, color=INK)
        axes.grid(color=INK, alpha=0.12, linewidth=0.6, axis="x")
    return svg()


def colour_of(number: int) -> str:
    """The colour of curve or method `number`; they repeat after the last."""
    return COLOURS[number % len(COLOURS)]


@contextlib.contextmanager
def _panel_of_page(salt: str, size: tuple[float, float]) -> Generator[tuple[Any, Callable]]:
    """One of `panels_of_page`."""
    with panels_of_page(salt, size) as ((axes,), svg):
        yield axes, svg


@contextlib.contextmanager
def panels_of_page(
    salt: str, size: tuple[float, float], columns: int = 1
) -> Generator[tuple[list[Any], Callable[[], str]]]:
    """Axes in the page's colours, side by side, and a function that gives them as one `<svg>`.

    Equal drawings give equal text: the salt names what is drawn, and no date is written.

    Args:
        salt: of the drawing's internal names; they are shared by everything on one page.
        size: width and height in inches.
        columns: panels; they share the vertical axis.

    Raises:
        ImportError: matplotlib is missing; install `jaxrec[plots]`.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Any: the stubs of matplotlib want each key as a literal.
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"jaxrec {salt}",
        "text.parse_math": False,
        "font.size": 9,
        "font.family": "sans-serif",
        "lines.linewidth": 1.6,
    }
    with rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        panels = list(figure.subplots(1, columns, squeeze=False, sharey=True)[0])
        for axes in panels:
            axes.tick_params(colors=INK, which="both")
            for side, spine in axes.spines.items():
                spine.set_color(INK)
                spine.set_visible(side in ("left", "bottom"))

        def svg() -> str:
            buffer = io.StringIO()
            with rc_context(settings):
                figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
            return inline_svg(buffer.getvalue())

        yield panels, svg


def inline_svg(document: str) -> str:
    """An SVG document as an element of an HTML page: no prologue, no metadata, no addresses.

    HTML knows the namespaces of SVG, so declaring them (which looks like an address) is needless.
    """
    element = document[document.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r"<!--.*?-->", "", element, flags=re.DOTALL)
    element = re.sub(r"""\sxmlns(:\w+)?=("[^"]*"|'[^']*')""", "", element)
    # The page sets the size; the view box keeps the proportions.
    element = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", element, count=1)
    return element.replace(INK, "currentColor").strip()
