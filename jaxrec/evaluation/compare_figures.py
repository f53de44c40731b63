"""The pictures of a comparison: methods with their intervals, and accuracy over what it cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrec.evaluation.compare_pairs import row_label
from jaxrec.evaluation.figures import COLOURS, INK, panels_of_page
from jaxrec.evaluation.tables import metric_name

KINDS = {
    "untrained": "#7d8590",
    "retriever": COLOURS[0],
    "mix": COLOURS[3],
    "generator": COLOURS[1],
}
"""Colour of each kind of method, readable on white and on near-black."""


@dataclasses.dataclass(frozen=True)
class Dot:
    """One number of one method."""

    method: str
    kind: str
    """One of `KINDS`."""
    mean: float
    low: float
    high: float
    """Ends of the interval; equal to the mean where there is none."""


@dataclasses.dataclass(frozen=True)
class Dots:
    """Methods from top to bottom, metrics side by side."""

    title: str
    panels: tuple[tuple[str, tuple[Dot, ...]], ...]
    """(what the axis shows, the dots) of each panel."""

    def svg(self) -> str:
        """The picture as an `<svg>` element for the inside of a page.

        Raises:
            ImportError: matplotlib is missing; install `jaxrec[plots]`.
        """
        names = list(dict.fromkeys(dot.method for _, dots in self.panels for dot in dots))
        size = (2.6 + 3.0 * len(self.panels), 0.9 + 0.26 * len(names))
        salt = f"dots {self.title} {' '.join(axis for axis, _ in self.panels)}"
        with panels_of_page(salt, size, len(self.panels)) as (panels, svg):
            for axes, (label, dots) in zip(panels, self.panels):
                for dot in dots:
                    ends = [[max(dot.mean - dot.low, 0.0)], [max(dot.high - dot.mean, 0.0)]]
                    axes.errorbar(
                        [dot.mean], [names.index(dot.method)], xerr=ends, color=KINDS[dot.kind],
                        fmt="o", markersize=4.5, elinewidth=1.8,
                    )  # fmt: skip
                axes.set_xlim(left=0)
                axes.set_xlabel(label, color=INK)
                axes.grid(color=INK, alpha=0.12, linewidth=0.6, axis="x")
            panels[0].set_yticks(range(len(names)), names)
            panels[0].set_ylim(len(names) - 0.5, -0.5)
            panels[0].set_title(self.title, color=INK, fontsize=9, loc="left")
        return svg()


@dataclasses.dataclass(frozen=True)
class Price:
    """One method: what it cost and what it reached."""

    method: str
    kind: str
    """One of `KINDS`."""
    cost: float
    """Positive."""
    value: float


@dataclasses.dataclass(frozen=True)
class Prices:
    """Accuracy over cost, the cost in powers of ten; a dashed line for what costs nothing."""

    title: str
    points: tuple[Price, ...]
    cost: str
    """What the horizontal axis shows."""
    metric: str
    """What the vertical axis shows."""
    free: tuple[str, float] | None = None
    """The best method without training, and what it reached."""

    def svg(self) -> str:
        """The picture as an `<svg>` element for the inside of a page.

        Raises:
            ImportError: matplotlib is missing; install `jaxrec[plots]`.
        """
        salt = f"prices {self.title} {self.cost} {self.metric}"
        with panels_of_page(salt, (6.4, max(3.0, 0.9 + 0.22 * len(self.points)))) as ((axes,), svg):
            values = [point.value for point in self.points]
            values += [self.free[1]] if self.free else []
            low, high = 0.85 * min(values), 1.08 * max(values)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e+", "e"))
            axes.xaxis.set_minor_formatter(lambda value, _: "")
            axes.set_ylim(low, high if high > low else low + 1.0)
            if self.free:
                axes.axhline(self.free[1], color=KINDS["untrained"], linewidth=1, linestyle="--")
            for point in self.points:
                axes.plot([point.cost], [point.value], "o", color=KINDS[point.kind], markersize=6)
            self._name(axes)
            axes.set_xlabel(f"{self.cost} (logarithmic)", color=INK)
            axes.set_ylabel(self.metric, color=INK)
            axes.set_title(self.title, color=INK, fontsize=9, loc="left")
            axes.grid(color=INK, alpha=0.12, linewidth=0.6)
        return svg()

    def _name(self, axes: Any) -> None:
        """Writes the methods to the right of the axes, a thin line from each to its point."""
        low, high = axes.get_ylim()
        right = axes.get_xlim()[1]
        axes.set_xlim(right=right)
        told = [(p.method, (p.cost, p.value), KINDS[p.kind]) for p in self.points]
        told += [(self.free[0], (right, self.free[1]), KINDS["untrained"])] if self.free else []
        heights = spread([(at[1] - low) / (high - low) for _, at, _ in told], 0.07)
        for (name, at, colour), height in zip(told, heights):
            axes.annotate(
                name, at, (1.03, height), "data", "axes fraction", color=colour, fontsize=8,
                va="center", annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "alpha": 0.45},
            )  # fmt: skip


def pictures_of(compared: Mapping[str, Any]) -> tuple[Dots | Prices, ...]:
    """What a page draws of a comparison: for each group the first metric and NDCG@10 by method,
    and NDCG@10 (or the first metric) over the cost of training.

    Args:
        compared: of `compare.compare_runs`. Rows are those of the protocol's own level and masking.
    """
    drawn: list[Dots | Prices] = []
    for group in compared["groups"]:
        protocol = group["protocol"]
        key = (group["name"], protocol["level"], protocol["seen_masked"])
        rows = [
            row
            for row in compared["rows"]
            if (row["group"], row["level"], row["seen_masked"]) == key and row["place"] is not None
        ]
        rows.sort(key=lambda row: row["place"])
        names = list(dict.fromkeys([compared["metrics"][0], "ndcg@10"]))
        panels = tuple((metric_name(name), _dots(rows, name, group["runs"])) for name in names)
        panels = tuple(panel for panel in panels if len(panel[1]) > 1)
        title = f"Group {group['name']}"
        drawn += [Dots(title, panels)] if panels else []
        drawn += _prices(title, rows, names, group["runs"], compared["costs"])
    return tuple(drawn)


def _dots(rows: Sequence[Mapping[str, Any]], metric: str, runs: Sequence[str]) -> tuple[Dot, ...]:
    return tuple(
        Dot(row_label(row, runs), row["kind"], row["metrics"][metric], *row["intervals"][metric])
        for row in rows
        if metric in row["intervals"]
    )


def _prices(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    metrics: Sequence[str],
    runs: Sequence[str],
    costs: Mapping[str, Mapping[str, Any]],
) -> list[Prices]:
    """Trained rows over FLOPs, or over seconds where a run does not say its FLOPs."""
    told = [each for each in metrics if any(each in row["metrics"] for row in rows)]
    metric = told[-1] if told else None
    trained = [row for row in rows if row["kind"] in ("retriever", "generator")]
    field = "flops" if all(costs[row["runs"][0]]["flops"] for row in trained) else "seconds"
    points = tuple(
        Price(row_label(row, runs), row["kind"], cost, row["metrics"][metric])
        for row in trained
        if metric in row["metrics"] and (cost := costs[row["runs"][0]][field]) > 0
    )
    free = {
        row_label(row, runs): row["metrics"][metric]
        for row in rows
        if row["kind"] == "untrained" and metric in row["metrics"]
    }
    best = max(free, key=free.__getitem__, default=None)
    name = "training FLOPs" if field == "flops" else "training seconds"
    if not points or metric is None:
        return []
    line = (best, free[best]) if best is not None else None
    return [Prices(title, points, name, metric_name(metric), line)]


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Places near the given ones, in their order, no two closer than the gap; none above the
    highest unless there is no room below.

    >>> spread([0.5, 0.5, 0.9], 0.125)
    [0.5, 0.375, 0.9]
    """
    order = sorted(range(len(places)), key=lambda i: -places[i])
    found, last = [0.0] * len(places), float("inf")
    for i in order:
        found[i] = last = min(places[i], last - gap)
    lift = max(0.0, -min(found, default=0.0))
    return [place + lift for place in found]


def legend() -> str:
    """The kinds beside their colours, as HTML."""
    entries = "".join(
        f"<li><s style='background:{colour}'></s>&#8288;{kind}</li>"
        for kind, colour in KINDS.items()
    )
    return f"<ul class='legend'>{entries}</ul>"
