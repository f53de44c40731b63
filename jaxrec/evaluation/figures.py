"""Training curves as SVG that lives inside a page: no file, no address, colours of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
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

    Args:
        series: (steps, values) of each curve; values that are not finite leave a gap.
        label: what the vertical axis shows.

    Raises:
        ImportError: matplotlib is missing; install `jaxrec[plots]`.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Any: the stubs of matplotlib want each key as a literal.
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"jaxrec {label}",
        "text.parse_math": False,
        "font.size": 9,
        "font.family": "sans-serif",
        "lines.linewidth": 1.6,
    }
    with rc_context(settings):
        figure = Figure(figsize=(5.2, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for i, (name, (steps, values)) in enumerate(series.items()):
            marker = "o" if len(steps) < 30 else None
            colour = COLOURS[i % len(COLOURS)]
            axes.plot(steps, values, color=colour, label=name, marker=marker, markersize=3)
        axes.set_xlabel("step", color=INK)
        axes.set_ylabel(label, color=INK)
        axes.tick_params(colors=INK)
        for side, spine in axes.spines.items():
            spine.set_color(INK)
            spine.set_visible(side in ("left", "bottom"))
        axes.grid(color=INK, alpha=0.12, linewidth=0.6)
        axes.legend(frameon=False, labelcolor=INK)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return inline_svg(buffer.getvalue())


def inline_svg(document: str) -> str:
    """An SVG document as an element of an HTML page: no prologue, no metadata, no addresses.

    HTML knows the namespaces of SVG, so declaring them (which looks like an address) is needless.
    """
    element = document[document.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", element)
    # The page sets the size; the view box keeps the proportions.
    element = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", element, count=1)
    return element.replace(INK, "currentColor").strip()
