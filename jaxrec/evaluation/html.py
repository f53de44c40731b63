"""`report.html`: the run for people, in one file that needs nothing from anywhere.

The verdict stands first, then what it was measured under, then the numbers, for whom they hold,
the training curves, the semantic IDs, and real lists with titles. Works in light and dark, narrow
and wide, and on paper. Everything that comes from data is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jaxrec.evaluation.figures import (
    buckets_svg,
    curve_series,
    curves_svg,
    has_matplotlib,
    inline_svg,
    intervals_svg,
)
from jaxrec.evaluation.page import PAGE, STYLE
from jaxrec.evaluation.protocol import Protocol
from jaxrec.evaluation.report import HEADLINE, headline, verdict
from jaxrec.evaluation.tables import (
    breakdown_table,
    comparison_table,
    facts,
    fold,
    legend,
    level_table,
    metric_groups,
    metric_name,
    metric_table,
)

FILE = "report.html"
HISTORY = 10
"""Events of a user's history shown, the newest ones."""

_NO_FIGURES = "<p class='note'>Install jaxrec[plots] for figures.</p>"
_IN_FOLD = ("semantic_ids", "ranks")
"""Entries of report.json that only a fold shows: they are long, or for machines."""


def render_html(
    report: Mapping[str, Any],
    *,
    curves: Sequence[Mapping[str, Any]] = (),
    sid_quality: Mapping[str, Any] | None = None,
    sid_figures: Sequence[str] = (),
    users: Sequence[Mapping[str, Any]] = (),
    title: str,
) -> str:
    """The whole page.

    Args:
        report: content of `report.json` (`report.read_report`).
        curves: metric rows of the training, each with "step" and numbers (`figures.curve_series`
            says which are drawn).
        sid_quality: numbers about the semantic IDs; values may be numbers, texts, lists of numbers
            (one a level: they become a table) or one further mapping.
        sid_figures: SVG pictures of them; lines in the colour `figures.INK` take the page's.
        users: examples, each {"user": name, "history": titles oldest first, "target": title or
            None, "recommended": [{"title": ..., "score": ...}, ...] best first, "hit": place of
            the target in the list from 1, 0 when it is missing}.
        title: of the page.

    Raises:
        ValueError: a picture that is no SVG, or the report's protocol is broken.
    """
    sections = [
        section("Protocol", _protocol(report["protocol"])),
        section("Ranking metrics", _metrics(report)),
        section("Comparisons", _comparisons(report)),
        section("For whom it works", _breakdowns(report.get("breakdowns", ()))),
        section("Training", _curves(curves)),
        section("Semantic IDs", _semantic_ids(sid_quality, sid_figures)),
        section("Ten users" if len(users) == 10 else "Users", _users(users)),
        section("Run", _extras(report)),
    ]
    return PAGE.format(
        title=escape(title),
        style=STYLE,
        lead=f"<p class='verdict {_state(report)}'>{escape(verdict(report))}</p>",
        sections="\n".join(filter(None, sections)),
    )


def section(name: str, body: str) -> str:
    """A part of the page; nothing where it has no body."""
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
    """The headline's rows as a picture and a table; the other ways of counting in a fold."""
    generators = {comparison["method"] for comparison in report.get("comparisons", ())}
    groups = metric_groups(report)
    if not any(main for _, main, _ in groups):
        groups = [(caption, True, rows) for caption, _, rows in groups]
    first = [
        _forest(rows) + metric_table(rows, caption, generators)
        for caption, main, rows in groups
        if main
    ]
    others = [metric_table(rows, caption, generators) for caption, main, rows in groups if not main]
    note = (
        "<p class='note'>Best of a column in bold; below a number its 95 % bootstrap interval over "
        "users. With one target a case, recall is the hit rate.</p>"
    )
    more = "The same with seen items kept, and counted by semantic codes"
    return "\n".join(first) + note + fold(more, "".join(others))


def _forest(rows: Sequence[Mapping[str, Any]]) -> str:
    told = [
        (row["method"], row["metrics"][HEADLINE], *row["intervals"][HEADLINE])
        for row in rows
        if HEADLINE in row.get("intervals", {})
    ]
    if len(told) < 2:
        return ""
    if not has_matplotlib():
        return _NO_FIGURES
    return f"<figure class='picture'>{intervals_svg(told, metric_name(HEADLINE))}</figure>"


def _comparisons(report: Mapping[str, Any]) -> str:
    """Those of the verdict, and the others in a fold."""
    comparisons = list(report.get("comparisons", ()))
    told = headline(report)
    first, rest = told or comparisons, [c for c in comparisons if told and c not in told]
    shown = comparison_table(first, "Paired over the same users")
    return shown + fold("Other metrics, and seen items kept", comparison_table(rest, ""))


def _breakdowns(entries: Sequence[Mapping[str, Any]]) -> str:
    entries = [entry for entry in entries if entry["rows"]]
    if not entries:
        return ""
    drawn = _NO_FIGURES
    if has_matplotlib():
        pictures = "".join(f"<figure>{_bucket_picture(entry)}</figure>" for entry in entries)
        drawn = f"<div class='figures'>{pictures}</div>"
    parts = []
    for entry in entries:
        first, *others = entry["rows"][0]["metrics"]
        masked = "masked" if entry["seen_masked"] else "kept"
        caption = f"{metric_name(first)} by {entry['by']} (seen items {masked})"
        more = "".join(breakdown_table(entry, name, metric_name(name)) for name in others)
        parts.append(breakdown_table(entry, first, caption))
        parts.append(fold(", ".join(map(metric_name, others)), more))
    note = (
        "<p class='note'>History length counts all events of the user before the target; target "
        "popularity counts the target's training events, and cold items have none. Intervals are "
        "95 % bootstrap intervals over the users of a bucket. Where no case is a hit they have no "
        "width, which is no certainty; buckets marked as few are too small to say much.</p>"
    )
    return drawn + "".join(parts) + note


def _bucket_picture(entry: Mapping[str, Any]) -> str:
    """The first metric of a breakdown, drawn."""
    metric = next(iter(entry["rows"][0]["metrics"]))
    series = {
        row["method"]: [
            None if mean is None else (mean, ends[0], ends[1])
            for mean, ends in zip(row["metrics"][metric], row["intervals"][metric])
        ]
        for row in entry["rows"]
    }
    labels = [bucket["label"] for bucket in entry["buckets"]]
    drawn = buckets_svg(series, labels, metric_name(metric), entry["by"])
    return drawn + legend(list(series))


def _curves(curves: Sequence[Mapping[str, Any]]) -> str:
    panels = curve_series(curves)
    if not panels:
        return ""
    if not has_matplotlib():
        return _NO_FIGURES
    figures = "".join(
        f"<figure>{curves_svg(series, label)}{legend([_curve_name(n) for n in series])}</figure>"
        for label, series in panels.items()
    )
    return f"<div class='figures'>{figures}</div>"


def _curve_name(name: str) -> str:
    return name.removeprefix("validation/").replace("_", " ")


def _semantic_ids(quality: Mapping[str, Any] | None, figures: Sequence[str]) -> str:
    parts = []
    if figures:
        drawn = "".join(f"<figure>{_picture(figure)}</figure>" for figure in figures)
        parts.append(f"<div class='figures'>{drawn}</div>")
    elif quality and not has_matplotlib():
        parts.append(_NO_FIGURES)
    if quality:
        levels, others = level_table(quality)
        parts += [levels, facts(others)]
    return "\n".join(parts)


def _picture(figure: str) -> str:
    if "<svg" not in figure[:2000]:
        raise ValueError(f"A figure of the page is SVG text, got {figure[:20]!r}.")
    return inline_svg(figure)


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
        f"<small>{entry['score']:#.3g}</small></li>"
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
    contract = ("protocol", "rows", "comparisons", "breakdowns")
    extras = {name: value for name, value in report.items() if name not in contract}
    folded = {name: extras.pop(name) for name in _IN_FOLD if name in extras}
    return facts(extras) + fold("Everything else in report.json", facts(folded))
