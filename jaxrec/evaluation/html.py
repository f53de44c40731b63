"""`report.html`: the run for people, in one file that needs nothing from anywhere.

The verdict stands first, then what it was measured under, then the numbers, the training curves,
the semantic IDs, and real lists with titles. Works in light and dark, narrow and wide. Everything
that comes from data is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jaxrec.evaluation.figures import curve_series, curves_svg, has_matplotlib, is_number
from jaxrec.evaluation.page import PAGE, STYLE
from jaxrec.evaluation.protocol import Protocol
from jaxrec.evaluation.report import headline, verdict

FILE = "report.html"
SHOWN = ("recall@5", "ndcg@5", "recall@10", "ndcg@10", "mrr@10")
"""Metrics of the first tables; the rest stands in a fold."""
HISTORY = 10
"""Events of a user's history shown, the newest ones."""

_LOWER_IS_BETTER = ("gini",)
_LEVELS = {"item": "Items", "sid": "Semantic IDs"}


def render_html(
    report: Mapping[str, Any],
    *,
    curves: Sequence[Mapping[str, Any]] = (),
    sid_quality: Mapping[str, Any] | None = None,
    sid_figure: bytes | None = None,
    users: Sequence[Mapping[str, Any]] = (),
    title: str,
) -> str:
    """The whole page.

    Args:
        report: content of `report.json` (`report.read_report`).
        curves: metric rows of the training, each with "step" and numbers (`figures.curve_series`
            says which are drawn).
        sid_quality: numbers about the semantic IDs; values may be numbers, texts, lists of numbers
            (one a level) or one further mapping.
        sid_figure: a picture of them, SVG or PNG.
        users: examples, each {"user": name, "history": titles oldest first, "target": title or
            None, "recommended": [{"title": ..., "score": ...}, ...] best first, "hit": place of
            the target in the list from 1, 0 when it is missing}.
        title: of the page.

    Raises:
        ValueError: `sid_figure` is neither SVG nor PNG, or the report's protocol is broken.
    """
    sections = [
        _section("Protocol", _protocol(report["protocol"])),
        _section("Ranking metrics", _metrics(report)),
        _section("Comparisons", _comparisons(report.get("comparisons", ()))),
        _section("Training", _curves(curves)),
        _section("Semantic IDs", _semantic_ids(sid_quality, sid_figure)),
        _section("Ten users" if len(users) == 10 else "Users", _users(users)),
        _section("Run", _extras(report)),
    ]
    return PAGE.format(
        title=escape(title),
        style=STYLE,
        verdict=escape(verdict(report)),
        state=_state(report),
        sections="\n".join(filter(None, sections)),
    )


def _section(name: str, body: str) -> str:
    return f"<section>\n<h2>{name}</h2>\n{body}\n</section>" if body else ""


def _state(report: Mapping[str, Any]) -> str:
    """Colour of the verdict: green only where the generator is behind nothing."""
    verdicts = {comparison["verdict"] for comparison in headline(report)}
    if "behind" in verdicts:
        return "behind"
    return "ahead" if verdicts == {"ahead"} else "undecided"


def _protocol(fields: Mapping[str, Any]) -> str:
    sentences = Protocol.from_dict(fields).describe()
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def _metrics(report: Mapping[str, Any]) -> str:
    """One table a group of comparable rows, shown metrics first and the others in a fold."""
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in report["rows"]:
        key = (row["level"], row["seen_masked"], row["split"], row["tie_policy"])
        groups.setdefault(key, []).append(row)
    generators = {comparison["method"] for comparison in report.get("comparisons", ())}
    tables = []
    for (level, masked, split, ties), rows in groups.items():
        seeds = ", ".join(map(str, sorted({row["seed"] for row in rows})))
        caption = (
            f"{_LEVELS[level]}, items of the history {'masked' if masked else 'kept'} "
            f"({split}, ties: {ties}, seed {seeds})"
        )
        names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
        shown = [name for name in SHOWN if name in names] or names[: len(SHOWN)]
        rest = [name for name in names if name not in shown]
        tables.append(_table(rows, shown, caption, generators))
        if rest:
            fold = _table(rows, rest, caption, generators)
            tables.append(f"<details><summary>More metrics</summary>{fold}</details>")
    note = (
        "<p class='note'>Best of a column in bold; below a number its 95 % bootstrap interval over "
        "users. With one target a case, recall is the hit rate.</p>"
    )
    return "\n".join(tables) + note


def _table(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], caption: str, generators: set[str]
) -> str:
    best = {name: _best(name, rows) for name in names}
    head = "".join(f"<th scope='col'>{escape(_metric_name(name))}</th>" for name in names)
    lines = []
    for row in rows:
        cells = "".join(_cell(row, name, best[name]) for name in names)
        kind = " class='generator'" if row["method"] in generators else ""
        lines.append(
            f"<tr{kind}><th scope='row'>{escape(row['method'])}</th>{cells}"
            f"<td>{row['seconds']:,.1f}</td></tr>"
        )
    return (
        f"<div class='wide'><table><caption>{escape(caption)}</caption><thead><tr>"
        f"<th scope='col'>Method</th>{head}<th scope='col'>Seconds</th></tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _best(name: str, rows: Sequence[Mapping[str, Any]]) -> float | None:
    values = [row["metrics"][name] for row in rows if name in row["metrics"]]
    if len(values) < 2 or name.startswith("novelty"):
        return None  # More novelty is not better by itself.
    return min(values) if name.startswith(_LOWER_IS_BETTER) else max(values)


def _cell(row: Mapping[str, Any], name: str, best: float | None) -> str:
    value = row["metrics"].get(name)
    if value is None:
        return "<td>-</td>"
    number = f"{value:.4f}"
    number = f"<b>{number}</b>" if value == best else number
    ends = row.get("intervals", {}).get(name)
    interval = f"<small>{ends[0]:.4f} to {ends[1]:.4f}</small>" if ends else ""
    return f"<td>{number}{interval}</td>"


def _metric_name(name: str) -> str:
    kind, at, cutoff = name.partition("@")
    words = {"recall": "Recall", "ndcg": "NDCG", "mrr": "MRR", "gini": "Gini"}
    return f"{words.get(kind, kind.capitalize())}{at}{cutoff}"


def _comparisons(comparisons: Sequence[Mapping[str, Any]]) -> str:
    if not comparisons:
        return ""
    words = {"ahead": "ahead of", "behind": "behind", "undecided": "not told apart from"}
    lines = [
        f"<tr class='{escape(c['verdict'])}'><th scope='row'>{escape(c['method'])} "
        f"<i>{words[c['verdict']]}</i> {escape(c['baseline'])}</th>"
        f"<td>{escape(_metric_name(c['metric']))}</td>"
        f"<td>{escape(c['level'])}</td><td>{'masked' if c['seen_masked'] else 'kept'}</td>"
        f"<td>{c['difference']:+.4f}<small>{c['low']:+.4f} to {c['high']:+.4f}</small></td>"
        f"<td>{c['p_value']:.4f}</td></tr>"
        for c in comparisons
    ]
    return (
        "<div class='wide'><table><caption>Paired over the same users</caption><thead><tr>"
        "<th scope='col'>Comparison</th><th scope='col'>Metric</th><th scope='col'>Level</th>"
        "<th scope='col'>Seen items</th><th scope='col'>Difference</th>"
        "<th scope='col'>p (sign flips)</th></tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _curves(curves: Sequence[Mapping[str, Any]]) -> str:
    panels = curve_series(curves)
    if not panels:
        return ""
    if not has_matplotlib():
        return "<p class='note'>Install jaxrec[plots] for figures.</p>"
    figures = "".join(
        f"<figure>{curves_svg(series, label)}</figure>" for label, series in panels.items()
    )
    return f"<div class='figures'>{figures}</div>"


def _semantic_ids(quality: Mapping[str, Any] | None, figure: bytes | None) -> str:
    parts = []
    if figure is not None:
        picture = base64.b64encode(figure).decode("ascii")
        parts.append(
            f"<figure class='paper'><img alt='Quality of the semantic IDs' "
            f"src='data:{_media_type(figure)};base64,{picture}'></figure>"
        )
    elif quality and not has_matplotlib():
        parts.append("<p class='note'>Install jaxrec[plots] for figures.</p>")
    if quality:
        parts.append(_facts(quality))
    return "\n".join(parts)


def _media_type(picture: bytes) -> str:
    if picture.startswith(b"\x89PNG\r\n"):
        return "image/png"
    if b"<svg" in picture[:2000]:
        return "image/svg+xml"
    raise ValueError(
        f"The figure must be SVG or PNG bytes, got {len(picture)} bytes starting {picture[:8]!r}."
    )


def _facts(facts: Mapping[str, Any]) -> str:
    """A list of names and values; a mapping inside becomes a list of its own."""
    lines = []
    for name, value in facts.items():
        told = _facts(value) if isinstance(value, Mapping) else escape(_value(value))
        lines.append(f"<dt>{escape(str(name).replace('_', ' '))}</dt><dd>{told}</dd>")
    return f"<dl>{''.join(lines)}</dl>"


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(entry) for entry in value)
    if is_number(value):
        return f"{int(value):,}" if float(value).is_integer() else f"{value:.4g}"
    return "-" if value is None else str(value)


def _users(users: Sequence[Mapping[str, Any]]) -> str:
    return f"<div class='users'>{''.join(map(_user, users))}</div>" if users else ""


def _user(user: Mapping[str, Any]) -> str:
    history = list(user["history"])
    earlier = len(history) - HISTORY
    more = f"<li class='note'>and {earlier} earlier</li>" if earlier > 0 else ""
    events = "".join(f"<li>{escape(title)}</li>" for title in history[-HISTORY:])
    hit = user.get("hit", 0)
    entries = "".join(
        f"<li{' class=hit' if place == hit else ''}><span>{escape(entry['title'])}</span> "
        f"<small>{entry['score']:.3g}</small></li>"
        for place, entry in enumerate(user["recommended"], start=1)
    )
    target = user.get("target")
    came = ""
    if target is not None:
        found = f"found at place {hit}" if hit else "not in the list"
        came = f"<p>Next came <b>{escape(target)}</b>: {found}.</p>"
    return (
        f"<article><h3>User {escape(str(user['user']))}</h3>"
        f"<h4>History, oldest first</h4><ol>{more}{events}</ol>{came}"
        f"<h4>Recommended</h4><ol class='list'>{entries}</ol></article>"
    )


def _extras(report: Mapping[str, Any]) -> str:
    extras = {k: v for k, v in report.items() if k not in ("protocol", "rows", "comparisons")}
    return _facts(extras) if extras else ""
