"""A histogram as SVG for the inside of a page, in the page's colours."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from jaxrec.evaluation.figures import COLOURS, INK, inline_svg

_MOST_LABELS = 12
_MOST_LETTERS = 48
"""What fits side by side below the bars; beyond, labels are slanted."""


def bars_svg(labels: Sequence[str], counts: Sequence[int], x_label: str, y_label: str) -> str:
    """One bar a bin as an `<svg>` element; equal input gives equal text.

    Args:
        labels: of the bins; evenly spaced ones are printed where all do not fit.
        counts: heights of the bars.
        x_label: what the bins are of.
        y_label: what is counted.

    Raises:
        ImportError: matplotlib is missing; install `jaxrec[plots]`.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    # Any: the stubs of matplotlib want each key as a literal.
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"jaxrec {y_label} {x_label}",
        "text.parse_math": False,
        "font.size": 9,
        "font.family": "sans-serif",
    }
    with rc_context(settings):
        figure = Figure(figsize=(5.2, 3.0), layout="constrained")
        axes = figure.add_subplot()
        axes.bar(range(len(counts)), counts, width=0.86, color=COLOURS[0])
        shown = range(0, len(labels), -(-len(labels) // _MOST_LABELS))
        crowded = max(len(labels[place]) for place in shown) * len(shown) > _MOST_LETTERS
        axes.set_xticks(
            shown,
            [labels[place] for place in shown],
            rotation=40 if crowded else 0,
            ha="right" if crowded else "center",
            rotation_mode="anchor" if crowded else "default",
        )
        axes.margins(x=0.02)
        axes.set_xlabel(x_label, color=INK)
        axes.set_ylabel(y_label, color=INK)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.grid(color=INK, alpha=0.12, linewidth=0.6, axis="y")
        axes.set_axisbelow(True)
        axes.tick_params(colors=INK)
        for side, spine in axes.spines.items():
            spine.set_color(INK)
            spine.set_visible(side in ("left", "bottom"))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return inline_svg(buffer.getvalue())
