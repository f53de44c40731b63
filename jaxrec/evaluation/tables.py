"""The tables of `report.html`: metrics, comparisons, breakdowns, and facts by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jaxrec.evaluation.figures import colour_of, is_number

SHOWN = ("recall@10", "ndcg@10", "recall@5", "ndcg@5", "mrr@10")
"""Metrics of the first tables, the headline first: a narrow screen shows the first columns; the
rest stands in a fold."""

_LOWER_IS_BETTER = ("gini",)
_LEVELS = {
    "item": "a hit is the item itself",
    "sid": "a hit is any item of the same semantic codes",
}
_VERDICTS = {"ahead": "ahead of", "behind": "behind", "undecided": "not told apart from"}


def table(
    caption: str,
    header: Sequence[str],
    lines: Sequence[tuple[str, Sequence[str]]],
) -> str:
    """A table that scrolls inside itself where it is wider than the page.

    Args:
        caption: printed above, as text.
        header: names of the columns, as text; the first stands above the names of the rows.
        lines: (class of the row or "", its cells as HTML; the first is the row's name).
    """
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in header)
    body = []
    for kind, (name, *cells) in lines:
        start = f"<tr class='{kind}'>" if kind else "<tr>"
        values = "".join(f"<td>{cell}</td>" for cell in cells)
        body.append(f"{start}<th scope='row'>{name}</th>{values}</tr>")
    told = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f"<figure class='table'>{told}<div class='wide'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div></figure>"
    )


def fold(summary: str, body: str) -> str:
    """Something that opens on demand (and in print)."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>" if body else ""


def metric_groups(
    report: Mapping[str, Any],
) -> list[tuple[str, bool, list[Mapping[str, Any]]]]:
    """Rows that may be ranked together: (caption, whether it is the headline's group, rows)."""
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in report["rows"]:
        key = (row["level"], row["seen_masked"], row["split"], row["tie_policy"])
        groups.setdefault(key, []).append(row)
    protocol = report["protocol"]
    found = []
    for (level, masked, split, ties), rows in groups.items():
        seeds = ", ".join(map(str, sorted({row["seed"] for row in rows})))
        caption = (
            f"Seen items {'masked' if masked else 'kept as candidates'}, {_LEVELS[level]} "
            f"({split}, ties: {ties}, seed {seeds})"
        )
        main = (level, masked) == (protocol["level"], protocol["seen_masked"])
        found.append((caption, main, rows))
    return found


def metric_table(rows: Sequence[Mapping[str, Any]], caption: str, generators: set[str]) -> str:
    """Shown metrics of comparable rows, and the others in a fold."""
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    shown = [name for name in SHOWN if name in names] or names[: len(SHOWN)]
    rest = [name for name in names if name not in shown]
    tables = _metric_table(rows, shown, caption, generators)
    return tables + (
        fold("More metrics", _metric_table(rows, rest, "", generators)) if rest else ""
    )


def _metric_table(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], caption: str, generators: set[str]
) -> str:
    best = {name: best_value(name, rows) for name in names}
    lines = []
    for row in rows:
        cells = [_cell(row, name, best[name]) for name in names]
        kind = "generator" if row["method"] in generators else ""
        lines.append((kind, [escape(row["method"]), *cells, f"{row['seconds']:,.1f}"]))
    return table(caption, ["Method", *map(metric_name, names), "Seconds"], lines)


def best_value(name: str, rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The best value of a metric, None where fewer than two rows have it or no end is better."""
    values = [row["metrics"][name] for row in rows if name in row["metrics"]]
    if len(values) < 2 or name.startswith("novelty"):
        return None  # More novelty is not better by itself.
    return min(values) if name.startswith(_LOWER_IS_BETTER) else max(values)


def _cell(row: Mapping[str, Any], name: str, best: float | None) -> str:
    value = row["metrics"].get(name)
    if value is None:
        return "-"
    return number_cell(value, row.get("intervals", {}).get(name), best=value == best)


def number_cell(value: float, ends: Sequence[float] | None, *, best: bool = False) -> str:
    """A metric with its interval below it, bold where it is the best."""
    number = f"<b>{value:.4f}</b>" if best else f"{value:.4f}"
    interval = f"<small>{ends[0]:.4f} to {ends[1]:.4f}</small>" if ends else ""
    return f"{number}{interval}"


def metric_name(name: str) -> str:
    """A metric's name for people.

    >>> metric_name("ndcg@10")
    'NDCG@10'
    """
    kind, at, cutoff = name.partition("@")
    words = {"recall": "Recall", "ndcg": "NDCG", "mrr": "MRR", "gini": "Gini"}
    return f"{words.get(kind, kind.capitalize())}{at}{cutoff}"


def comparison_table(comparisons: Sequence[Mapping[str, Any]], caption: str) -> str:
    """Paired comparisons, one a line."""
    lines = [
        (
            escape(c["verdict"]),
            [
                f"{escape(c['method'])} <i>{_VERDICTS[c['verdict']]}</i> {escape(c['baseline'])}",
                f"{c['difference']:+.4f}<small>{c['low']:+.4f} to {c['high']:+.4f}</small>",
                f"{c['p_value']:.4f}",
                escape(metric_name(c["metric"])),
                escape(c["level"]),
                "masked" if c["seen_masked"] else "kept",
            ],
        )
        for c in comparisons
    ]
    header = ["Comparison", "Difference", "p (sign flips)", "Metric", "Level", "Seen items"]
    return table(caption, header, lines) if lines else ""


def breakdown_table(entry: Mapping[str, Any], metric: str, caption: str) -> str:
    """One metric of a breakdown: methods down, buckets across, the best of a bucket in bold."""
    rows, buckets = entry["rows"], entry["buckets"]
    best = [_best_mean([row["metrics"][metric][i] for row in rows]) for i in range(len(buckets))]
    lines = []
    for number, row in enumerate(rows):
        cells = [
            "-" if mean is None else number_cell(mean, ends, best=mean == best[i])
            for i, (mean, ends) in enumerate(zip(row["metrics"][metric], row["intervals"][metric]))
        ]
        lines.append(("", [f"{_swatch(number)}{escape(row['method'])}", *cells]))
    sizes = [f"{b['cases']:,}{' (few)' if b['few'] else ''}" for b in buckets]
    lines.append(("soft", ["cases", *sizes]))
    return table(caption, ["Method", *(bucket["label"] for bucket in buckets)], lines)


def _best_mean(means: Sequence[float | None]) -> float | None:
    told = [mean for mean in means if mean is not None]
    # Nothing is best where all are equal, such as four zeros for cold items.
    return max(told) if len(set(told)) > 1 else None


def legend(names: Sequence[str]) -> str:
    """Names beside their colours: entry i has the colour of curve i."""
    entries = "".join(f"<li>{_swatch(i)}{escape(name)}</li>" for i, name in enumerate(names))
    return f"<ul class='legend'>{entries}</ul>"


def _swatch(number: int) -> str:
    # A word joiner keeps the colour and its name on one line.
    return f"<s style='background:{colour_of(number)}'></s>&#8288;"


def facts(entries: Mapping[str, Any]) -> str:
    """A list of names and values; a mapping inside becomes a list of its own."""
    lines = []
    for name, value in entries.items():
        told = _told(value)
        kind = " class='nested'" if told.startswith("<dl") else ""
        lines.append(f"<dt>{escape(str(name).replace('_', ' '))}</dt><dd{kind}>{told}</dd>")
    return f"<dl>{''.join(lines)}</dl>" if lines else ""


def _told(value: Any) -> str:
    if isinstance(value, Mapping) and value:
        return facts(value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, Mapping) for v in value):
        return "".join(facts(each) for each in value)
    return escape(plain_value(value))


def plain_value(value: Any) -> str:
    """A number, text or list as text: whole numbers with commas, others with four digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain_value(entry) for entry in value) or "none"
    if is_number(value):
        return f"{int(value):,}" if float(value).is_integer() else f"{value:#.4g}"
    return "-" if value is None or value == {} else str(value)


def level_table(quality: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The entries that are lists of numbers as a table, one column a level; and all others."""
    lists = {
        name: value
        for name, value in quality.items()
        if isinstance(value, (list, tuple)) and value and all(is_number(each) for each in value)
    }
    others = {name: value for name, value in quality.items() if name not in lists}
    if not lists:
        return "", others
    levels = max(len(value) for value in lists.values())
    lines = []
    for name, value in lists.items():
        cells = [escape(plain_value(each)) for each in value] + ["-"] * (levels - len(value))
        lines.append(("", [escape(str(name).replace("_", " ")), *cells]))
    header = ["By level", *(f"level {level}" for level in range(levels))]
    return table("", header, lines), others
