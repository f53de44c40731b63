"""A description of a log for people: lines on the terminal, and one HTML page.

Both tell the same sections. The page needs nothing from anywhere, works in light and dark, narrow
and wide, and escapes everything that comes from data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jaxrec.data.histories import Histories
from jaxrec.data.splits import Split, training_items
from jaxrec.evaluation.figures import has_matplotlib
from jaxrec.evaluation.page import PAGE, STYLE
from jaxrec.pipeline.bars import bars_svg
from jaxrec.recipe import Data

_MORE_STYLE = """
.facts { width: auto; }
.facts td, .facts th { white-space: normal; }
.facts th:first-child { width: 16rem; min-width: 9rem; font-weight: 400; color: var(--soft); }
.facts td { text-align: left; }
.advice { border-left-color: var(--undecided); }
.advice li + li { margin-top: .5rem; }
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the description."""

    title: str
    facts: dict[str, str]
    """Names and values, in order."""
    tables: tuple[tuple[str, list[str], list[list[str]]], ...] = ()
    """Tables as (caption, names of the columns, rows); the first column names the row."""
    histogram: tuple[Mapping[str, Any], ...] = ()
    """Bins, each with from, count, and perhaps to."""
    axes: tuple[str, str] = ("", "")
    """What the histogram has on its two axes."""


def recipe_numbers(data: Data, histories: Histories, split: Split) -> dict[str, Any]:
    """What a recipe's filters and split make of its log, ready for JSON.

    Returns:
        The filters, what they leave (users, items, events), the number of cases, and the share of
        the tests whose item has no training event.
    """
    trained = training_items(histories, split)
    tests = histories.item[split.test]
    return {
        "min_user": data.min_user,
        "min_item": data.min_item,
        "ties": data.ties,
        "users": histories.num_users,
        "items": histories.num_items,
        "events": histories.num_events,
        "split": split.name,
        "validation": len(split.validation),
        "test": len(split.test),
        "cold_targets": float((~trained[tests]).mean()) if len(tests) else 0.0,
    }


def description_lines(numbers: Mapping[str, Any]) -> list[str]:
    """The description for a terminal: sections, and the advice at the end.

    Args:
        numbers: what `jaxrec.data.description.describe` returns; `recipe`, from `recipe_numbers`,
            may stand beside it.
    """
    lines = [_printable(headline(numbers))]
    for section in sections(numbers):
        lines.append(section.title)
        lines += [f"  {name:<35} {_printable(value)}" for name, value in section.facts.items()]
        for caption, header, rows in section.tables:
            lines += [f"  {caption}", *_columns([header, *rows])]
    lines += [f"advice: {_printable(each)}" for each in numbers["advice"]]
    return lines


def render_description(numbers: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        numbers: as in `description_lines`.
    """
    advice = "".join(f"<li>{escape(each)}</li>" for each in numbers["advice"])
    drawn = has_matplotlib()
    note = "" if drawn else "<p class='note'>Install jaxrec[plots] for figures.</p>"
    parts = [
        f"<div class='warning advice'><h3>Advice</h3><ul>{advice}</ul></div>" if advice else "",
        note,
    ]
    parts += [_section(each, drawn=drawn) for each in sections(numbers)]
    return PAGE.format(
        title=escape(f"Data: {numbers['dataset']['name']}"),
        style=STYLE + _MORE_STYLE,
        lead=f"<p class='verdict'>{escape(headline(numbers))}</p>",
        sections="\n".join(filter(None, parts)),
    )


def headline(numbers: Mapping[str, Any]) -> str:
    """The log in one sentence."""
    counts, time = numbers["counts"], numbers["time"]
    when = f", {time['first'][:10]} to {time['last'][:10]}" if time else ", without a clock"
    return (
        f"{numbers['dataset']['name']}: {counts['events']:,} events of {counts['users']:,} users "
        f"with {counts['items_with_events']:,} items{when}"
    )


def sections(numbers: Mapping[str, Any]) -> list[Section]:
    """Everything that is told, in its order."""
    makers = (_log, _recipe, _users, _items, _time, _leave_one_out, _text, _pages)
    return [section for make in makers if (section := make(numbers)) is not None]


def _log(numbers: Mapping[str, Any]) -> Section:
    declared, counts, repeats = numbers["dataset"], numbers["counts"], numbers["repeats"]
    events = counts["events"]
    facts = {"source": declared["source"] or "-", "licence": declared["licence"] or "-"}
    if counts["rows"] != events:
        facts["rows, with other kinds"] = f"{counts['rows']:,}"
    facts |= {
        "events": f"{events:,}",
        "user-item pairs with an event": percent(counts["density"]),
        "exact duplicates": _part(repeats["exact"], events),
        "repeats of user and item": _part(repeats["pairs"], events),
        "repeats of the event before": _part(repeats["consecutive"], events),
    }
    if values := numbers["values"]:
        facts["values"] = (
            f"{values['rows']:,}, from {values['min']:g} to {values['max']:g}, mean "
            f"{values['mean']:.4g}"
        )
    kinds = [
        [
            each["event"] or "(none)",
            f"{each['rows']:,}",
            percent(each["share"]),
            "yes" if each["in_histories"] else "no",
        ]
        for each in numbers["events"] or ()
    ]
    graded = any(each["grade"] is not None for each in numbers["events"] or ())
    caption = f"Kinds of events{', weakest first' if graded else ''}"
    tables = ((caption, ["Kind", "Rows", "Share", "In histories"], kinds),) if kinds else ()
    return Section("Log", facts, tables)


def _recipe(numbers: Mapping[str, Any]) -> Section | None:
    recipe = numbers.get("recipe")
    if recipe is None:
        return None
    facts = {
        "filters": f"min_user {recipe['min_user']}, min_item {recipe['min_item']}",
        "what they leave": (
            f"{recipe['users']:,} users, {recipe['items']:,} items, {recipe['events']:,} events"
        ),
        "ties": recipe["ties"],
        "split": recipe["split"],
        "cases": f"{recipe['validation']:,} validation, {recipe['test']:,} test",
        "tests of untrained items": percent(recipe["cold_targets"]),
    }
    return Section("The recipe", facts)


def _users(numbers: Mapping[str, Any]) -> Section:
    counts, largest = numbers["counts"], numbers["largest_user"]
    facts = {"users": f"{counts['users']:,}"}
    if counts["users_without_history"]:
        facts["users without any history"] = f"{counts['users_without_history']:,}"
    facts |= spread_facts(numbers["history_length"], "events of a user")
    facts["most events"] = (
        f"user {largest['user']}, {_part(largest['events'], counts['events'])} of all"
    )
    bins = tuple(numbers["history_length"]["histogram"])
    return Section("Users", facts, histogram=bins, axes=("events of a user", "users"))


def _items(numbers: Mapping[str, Any]) -> Section:
    counts, spread = numbers["counts"], numbers["events_per_item"]
    facts = {
        "items": f"{counts['items']:,}",
        "items with events": _part(counts["items_with_events"], counts["items"]),
        "items in no row of the log": f"{numbers['cold']['never_logged']:,}",
    }
    facts |= spread_facts(spread, "events of an item")
    facts |= {
        "Gini coefficient": f"{spread['gini']:.2f}",
        "events of the top 1% of items": percent(spread["top_1_percent"]),
        "events of the top 10% of items": percent(spread["top_10_percent"]),
    }
    axes = ("events of an item", "items")
    return Section("Items", facts, histogram=tuple(spread["histogram"]), axes=axes)


def _time(numbers: Mapping[str, Any]) -> Section:
    time, ties = numbers["time"], numbers["ties"]
    facts, bins, axes = {"clock": "none: the log has only an order"}, (), ("", "")
    if time is not None:
        facts = {
            "first": f"{time['first']} UTC",
            "last": f"{time['last']} UTC",
            "span": f"{time['span_days']:,.1f} days",
            "times are whole": f"{time['resolution']}s",
        }
        bins, axes = tuple(time["histogram"]), (f"{time['period']} (UTC)", "rows")
    facts |= {
        "users with a tie at the end": percent(ties["tied"]),
        "last events that a shuffle changes": percent(ties["changed_by_shuffle"]),
        "neighbours at one time": percent(ties["consecutive"]),
        "users whose events have one time": percent(ties["one_time"]),
    }
    return Section("Time", facts, histogram=bins, axes=axes)


def _leave_one_out(numbers: Mapping[str, Any]) -> Section:
    cold, counts = numbers["cold"], numbers["counts"]
    facts = {
        "users with fewer than 3 events": _part(cold["short_users"], counts["users"]),
        "items that are only ever last": f"{cold['only_last']:,}",
        "items that never train": f"{cold['untrained']:,}",
        "tests of untrained items": percent(cold["targets"]),
        "tests of items the user had": percent(numbers["repeats"]["targets"]),
    }
    return Section("Under leave-one-out", facts)


def _text(numbers: Mapping[str, Any]) -> Section:
    text, items = numbers["text"], numbers["counts"]["items"]
    facts = {"items without any text": _part(text["items_without_text"], items)}
    if text["shared_titles"] is not None:
        facts["items with another's title"] = _part(text["shared_titles"], items)
    columns = [
        [
            each["name"],
            percent(each["filled"]),
            f"{each['median_words'] or 0:g}",
            f"{each['median_characters'] or 0:g}",
        ]
        for each in text["columns"]
    ]
    others = [
        [each["name"], percent(each["filled"]), each["type"]] for each in text["other_columns"]
    ]
    tables = []
    if columns:
        header = ["Column", "Filled", "Median words", "Median characters"]
        tables.append(("Texts of the items", header, columns))
    if others:
        tables.append(("Other columns of the items", ["Column", "Filled", "Type"], others))
    return Section("Text", facts, tuple(tables))


def _pages(numbers: Mapping[str, Any]) -> Section | None:
    pages = numbers["pages"]
    if pages is None:
        return None
    if "error" in pages:
        return Section("Pages", {"none can be made": pages["error"]})
    facts = {
        "rule": pages["rule"],
        "pages": f"{pages['pages']:,}",
        "exposures": f"{pages['exposures']:,}",
        "exposures of a page": (
            f"median {pages['median_size']:g}, mean {pages['mean_size']:.1f}, at most "
            f"{pages['max_size']:,}"
        ),
        "repeats on one page": f"{pages['repeats']:,}",
        "pages of users without history": f"{pages['pages_of_unknown_users']:,}",
        "answered exposures of a page": f"{pages['positives_per_page']:.2f}",
    }
    grades = [
        [grade, f"{exposures:,}", percent(pages["strongest"][grade])]
        for grade, exposures in pages["graded"].items()
    ]
    header = ["Grade", "Exposures", "Pages whose strongest it is"]
    return Section("Pages", facts, (("Grades, weakest first", header, grades),))


def spread_facts(spread: Mapping[str, Any], name: str) -> dict[str, str]:
    """How counts are spread, in two lines."""
    points = spread["percentiles"]
    places = ", ".join(f"{place}th {point:,}" for place, point in points.items())
    return {
        name: (
            f"{spread['min']:,} to {spread['max']:,}, median {spread['median']:,g}, mean "
            f"{spread['mean']:,.1f}"
        ),
        "percentiles": places,
    }


def percent(share: float) -> str:
    """A share of 1 as a percentage; small ones keep two digits.

    >>> percent(0.4375), percent(0.000734), percent(0.0), percent(0.9999)
    ('43.8%', '0.073%', '0%', 'over 99.9%')
    """
    if share in (0, 1):
        return f"{share:.0%}"
    if share >= 0.9995:
        return "over 99.9%"
    return f"{share:.1%}" if share >= 0.001 else f"{share * 100:.2g}%"


def bin_label(entry: Mapping[str, Any]) -> str:
    """What a bin is called.

    >>> bin_label({"from": 1000, "to": 1499}), bin_label({"from": 7, "to": 7})
    ('1,000-1,499', '7')
    """
    if "to" not in entry:
        return str(entry["from"])
    ends = [f"{entry['from']:,}", f"{entry['to']:,}"]
    return "-".join(dict.fromkeys(ends))


def _part(count: int, whole: int) -> str:
    return f"{count:,} ({percent(count / whole if whole else 0.0)})" if count else "0"


def _printable(text: str) -> str:
    """Text without control characters: data must not steer a terminal."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def _drawing(section: Section) -> str:
    return f"{section.axes[1].capitalize()} by {section.axes[0]}"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as aligned lines: names to the left, values to the right."""
    printed = [[_printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*printed)]
    return [
        f"    {name:<{widths[0]}}"
        + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:]))
        for name, *cells in printed
    ]


def _section(section: Section, *, drawn: bool) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in section.facts.items()
    )
    parts = [f"<div><table class='facts'><tbody>{rows}</tbody></table></div>"]
    bins = section.histogram
    if bins and drawn:
        counts = [entry["count"] for entry in bins]
        widen = len({entry["to"] - entry["from"] for entry in bins if "to" in entry}) > 1
        x_label = f"{section.axes[0]}{' (bins widen)' if widen else ''}"
        svg = bars_svg([bin_label(entry) for entry in bins], counts, x_label, section.axes[1])
        parts.append(f"<figure aria-label='{escape(_drawing(section))}'>{svg}</figure>")
    body = f"<div class='figures'>{''.join(parts)}</div>"
    body += "".join(_table(*table) for table in section.tables)
    if bins:
        x, y = section.axes
        total = sum(entry["count"] for entry in bins) or 1
        told = [
            [bin_label(entry), f"{entry['count']:,}", percent(entry["count"] / total)]
            for entry in bins
        ]
        summary = f"{_drawing(section)}, in numbers"
        table = _table("", [x.capitalize(), y.capitalize(), "Share"], told)
        body += f"<details><summary>{escape(summary)}</summary>{table}</details>"
    return f"<section>\n<h2>{escape(section.title)}</h2>\n{body}\n</section>"


def _table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in header)
    body = "".join(
        f"<tr><th scope='row'>{escape(name)}</th>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in rows
    )
    told = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f"<figure class='table'>{told}<div class='wide'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div></figure>"
    )
