"""The comparison of runs for people: the same parts as plain text, as Markdown and as a page."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jaxrec.evaluation.compare import ANSWERING
from jaxrec.evaluation.compare_costs import budget_sentence
from jaxrec.evaluation.compare_figures import Dots, Prices, legend, pictures_of
from jaxrec.evaluation.compare_pairs import row_label
from jaxrec.evaluation.figures import has_matplotlib
from jaxrec.evaluation.page import PAGE, STYLE
from jaxrec.evaluation.tables import best_value, metric_name, plain_value

WIDTH = 96
"""Letters of a line of text; tables are as wide as they must be."""

_VERDICTS = {"ahead": "ahead", "behind": "behind", "undecided": "cannot be told apart"}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A number with its interval, or a text."""

    text: str
    interval: str = ""
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a table; a title alone spans it."""

    cells: tuple[Cell, ...] = ()
    title: str = ""
    kind: str = ""
    """Style of the line on the page: "generator", "ahead", "behind" or nothing."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A heading with sentences, perhaps a warning, perhaps a table, perhaps a picture."""

    heading: str
    sentences: tuple[str, ...] = ()
    warning: bool = False
    header: tuple[str, ...] = ()
    lines: tuple[Line, ...] = ()
    words: int = 1
    """Leading columns that hold words and stand on the left."""
    pictures: tuple[Dots | Prices, ...] = ()
    """What a page draws above the table."""


def parts_of(compared: Mapping[str, Any], *, every_row: bool = False) -> list[Part]:
    """What there is to say, in order: warnings first.

    Args:
        compared: of `compare.compare_runs`.
        every_row: also rows of the other level and masking than the protocols' own.
    """
    parts = [_warning(compared), _metrics(compared, every_row)]
    parts += [_paired(compared, entry) for entry in compared["paired"]]
    parts += [_recipes(compared["recipes"], compared["costs"]), _costs(compared["costs"])]
    return [part for part in parts if part is not None]


def _warning(compared: Mapping[str, Any]) -> Part | None:
    groups = compared["groups"]
    if len(groups) < 2:
        return None
    told = [
        f"{field}: " + ", ".join(f"{group} has {plain_value(v)}" for group, v in values.items())
        for field, values in compared["differences"].items()
    ]
    if set(compared["differences"]) <= set(ANSWERING):
        told.append(
            "They differ only in how each reads and answers; `--systems` takes that as a part of "
            "the systems and ranks them together."
        )
    return Part(
        "NOT COMPARABLE",
        (
            f"These runs were judged by {len(groups)} different sets of rules. Numbers of "
            "different groups are never ranked together; a gap between them says nothing.",
            *(f"Group {group['name']}: {', '.join(group['runs'])}." for group in groups),
            *told,
        ),
        warning=True,
    )


def _metrics(compared: Mapping[str, Any], every_row: bool) -> Part:
    names, groups = compared["metrics"], compared["groups"]
    lines: list[Line] = []
    for group in groups:
        protocol = group["protocol"]
        main = (protocol["level"], protocol["seen_masked"])
        rows = [row for row in compared["rows"] if row["group"] == group["name"]]
        if len(groups) > 1:
            lines.append(Line(title=f"Group {group['name']}: not comparable with other groups"))
        for key in sorted({(r["level"], r["seen_masked"]) for r in rows}, key=lambda k: k != main):
            if key == main or every_row:
                among = [row for row in rows if (row["level"], row["seen_masked"]) == key]
                lines += _metric_lines(among, names, group, every_row)
    words = ("#", "method", *(("hit", "seen items") if every_row else ()))
    return Part(
        "Metrics",
        (
            *(_group_sentence(group) for group in groups),
            f"Ranked by {metric_name(names[0])} inside a group; the best of a column has a "
            "star or is bold. Beside or below a number stands its 95 % bootstrap interval over "
            "users. One run is one seed: the intervals do not cover what another seed would give.",
        ),
        header=(*words, *map(metric_name, names), "seconds"),
        lines=tuple(lines),
        words=len(words),
        pictures=pictures_of(compared),
    )


def _group_sentence(group: Mapping[str, Any]) -> str:
    protocol = group["protocol"]
    seen = "masked" if protocol["seen_masked"] else "kept"
    sentence = (
        f"Group {group['name']} ({', '.join(group['runs'])}): {protocol['dataset']}, "
        f"{protocol['num_cases']:,} {protocol['part']} cases, {protocol['split']}, ties "
        f"{protocol['tie_policy']}, candidates {protocol['candidates']}, seen items {seen}, "
        f"{_answering(group)}hits by "
        f"{'item' if protocol['level'] == 'item' else 'semantic codes'}."
    )
    for field, values in group["differs"].items():
        told = ", ".join(f"{run} {plain_value(value)}" for run, value in values.items())
        sentence += f" Differs inside the group: {field} ({told})."
    return sentence


def _answering(group: Mapping[str, Any]) -> str:
    """How lists are made, where all runs of the group agree."""
    protocol, differs = group["protocol"], group["differs"]
    cap, width = protocol["history_cap"], protocol["beam_width"]
    told = ""
    if "history_cap" not in differs:
        told += f"history {f'of the last {cap}' if cap else 'whole'}, "
    if not {"decoder", "beam_width"} & set(differs):
        told += f"{protocol['decoder']}{f' of width {width}' if width else ''}, "
    return told


def _metric_lines(
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    group: Mapping[str, Any],
    several: bool,
) -> list[Line]:
    """One line a row, best place first; `several` adds the columns of level and masking."""
    best = {name: best_value(name, rows) for name in names}
    lines = []
    for row in sorted(rows, key=lambda row: (row["place"] is None, row["place"])):
        cells = [
            Cell("-" if row["place"] is None else str(row["place"])),
            Cell(row_label(row, group["runs"])),
        ]
        if several:
            cells += [Cell(row["level"]), Cell("masked" if row["seen_masked"] else "kept")]
        for name in names:
            value, ends = row["metrics"].get(name), row["intervals"].get(name)
            told = f"{ends[0]:.4f}, {ends[1]:.4f}" if ends else ""
            if value is None:
                cells.append(Cell("-"))
            else:
                cells.append(Cell(f"{value:.4f}", told, value == best[name]))
        low, high = min(row["seconds"]), max(row["seconds"])
        same = f"{low:.1f}" == f"{high:.1f}"
        cells.append(Cell(f"{low:.1f}" if same else f"{low:.1f} to {high:.1f}"))
        lines.append(Line(tuple(cells)))
    return lines


def _paired(compared: Mapping[str, Any], entry: Mapping[str, Any]) -> Part:
    several = len(compared["groups"]) > 1
    best = "best baseline" if entry["rule"] == "baseline" else "best"
    heading = f"Against the {best}" + (f" of group {entry['group']}" if several else "")
    if entry["best"] is None:
        return Part(heading, (f"Not paired: {entry['reason']}.",))
    lines = [
        Line(
            (
                Cell(each["method"]),
                Cell(f"{each['difference']:+.4f}", f"{each['low']:+.4f}, {each['high']:+.4f}"),
                Cell(f"{each['p_value']:.4f}"),
                Cell(f"{each['p_holm']:.4f}"),
                Cell(_VERDICTS[each["verdict"]]),
            ),
            kind=each["verdict"],
        )
        for each in entry["against"]
    ]
    seen = "masked" if entry["seen_masked"] else "kept"
    baseline = entry["rule"] == "baseline"
    among = " of the rows that are no trained semantic-ID generators" if baseline else ""
    return Part(
        heading,
        (
            f"{entry['best']} has the best {metric_name(entry['metric'])}{among} (seen items "
            f"{seen}, hits by {'item' if entry['level'] == 'item' else 'semantic codes'}). Paired "
            "over the same users; p by random sign flips, then corrected after Holm for the number "
            "of lines. The best was chosen by these very numbers, which flatters it.",
        ),
        header=("method", "difference", "p", "p (Holm)", "verdict"),
        lines=tuple(lines),
    )


def _recipes(recipes: Mapping[str, Any], costs: Mapping[str, Any]) -> Part:
    if not recipes:
        return Part("Recipes", ("The recipes differ in nothing but the name.",))
    lines = [
        Line((Cell(field), *(Cell(_setting(value)) for value in values.values())))
        for field, values in recipes.items()
    ]
    header = ("field", *costs)
    return Part("Recipes differ in", header=header, lines=tuple(lines), words=len(header))


def _setting(value: Any) -> str:
    """A recipe's value as it would be typed, unrounded; a dash where there is no such field."""
    if isinstance(value, list):
        return ", ".join(map(_setting, value)) or "none"
    return "-" if value is None else str(value)


def _costs(costs: Mapping[str, Any]) -> Part:
    """Parameters, steps, seconds; FLOPs and validation budgets where reports have them."""
    flops = any(cost["flops"] is not None for cost in costs.values())
    validated = any(cost["validated"] is not None for cost in costs.values())
    lines = []
    for name, cost in costs.items():
        cells = [name, plain_value(cost["parameters"]), f"{cost['steps']:,}"]
        cells.append(f"{cost['seconds']:,.1f}")
        if flops:
            cells.append("-" if cost["flops"] is None else f"{cost['flops']:.3g}")
        if validated:
            cells.append(_validations(cost))
        lines.append(Line(tuple(map(Cell, cells))))
    header = ("run", "parameters", "steps", "training seconds")
    header += ("training FLOPs",) * flops + ("validations x cases",) * validated
    sentences = (budget_sentence(costs),) if validated else ()
    return Part("Costs", sentences, header=header, lines=tuple(lines))


def _validations(cost: Mapping[str, Any]) -> str:
    if cost["validated"] is None:
        return "-"
    return f"{plain_value(cost['validations'])} x {plain_value(cost['validation_cases'])}"


def as_text(parts: Sequence[Part]) -> str:
    """The parts for a terminal; a warning has a mark on every line."""
    told = []
    for part in parts:
        mark = "!!! " if part.warning else "  "
        told.append(f"{mark.strip()} {part.heading}".strip())
        for sentence in part.sentences:
            wrapped = textwrap.wrap(sentence, WIDTH, break_long_words=False, break_on_hyphens=False)
            told += [f"{mark}{line}" for line in wrapped]
        if part.header:
            told += [f"  {line}" for line in _text_table(part)]
        told.append("")
    return "\n".join(told).rstrip() + "\n"


def _text_table(part: Part) -> list[str]:
    lines = [[_plain(cell) for cell in line.cells] for line in part.lines if line.cells]
    widths = [
        max(len(row[i]) for row in [list(part.header), *lines]) for i in range(len(part.header))
    ]

    def aligned(cells: Sequence[str]) -> str:
        return "  ".join(
            cell.ljust(width) if i < part.words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths))
        ).rstrip()

    body = [
        aligned([_plain(cell) for cell in line.cells]) if line.cells else f"-- {line.title} --"
        for line in part.lines
    ]
    return [aligned(part.header), *body]


def _plain(cell: Cell) -> str:
    star = "*" if cell.best else ""
    return f"{cell.text}{star} [{cell.interval}]" if cell.interval else f"{cell.text}{star}"


def as_markdown(parts: Sequence[Part]) -> str:
    """The parts as Markdown with pipe tables."""
    told = []
    for part in parts:
        told.append(f"## {part.heading}\n")
        if part.warning:
            told += [f"> **{_mark(sentence)}**\n>" for sentence in part.sentences]
        else:
            told += [f"{_mark(sentence)}\n" for sentence in part.sentences]
        if part.header:
            told.append(f"| {' | '.join(map(_mark, part.header))} |")
            sides = [":--" if i < part.words else "--:" for i in range(len(part.header))]
            told.append(f"| {' | '.join(sides)} |")
            told += [_markdown_line(line, len(part.header)) for line in part.lines]
        told.append("")
    return "\n".join(told).rstrip() + "\n"


def _markdown_line(line: Line, columns: int) -> str:
    if not line.cells:
        cells = ["", f"**{_mark(line.title)}**", *[""] * (columns - 2)]
        return f"| {' | '.join(cells)} |"
    told = []
    for cell in line.cells:
        text = f"**{_mark(cell.text)}**" if cell.best else _mark(cell.text)
        told.append(f"{text} [{cell.interval}]" if cell.interval else text)
    return f"| {' | '.join(told)} |"


def _mark(text: str) -> str:
    """Text that Markdown takes as it stands, on one line."""
    for special in ("\\", "|", "*", "_", "`", "<"):
        text = text.replace(special, f"\\{special}")
    return " ".join(text.split())


def as_html(parts: Sequence[Part], *, title: str) -> str:
    """The parts as one page that needs nothing from anywhere."""
    lead = "".join(
        f"<div class='warning'><b>{escape(part.heading)}</b>{_sentences(part)}</div>"
        for part in parts
        if part.warning
    )
    sections = [
        f"<section><h2>{escape(part.heading)}</h2>{_sentences(part)}{_pictures(part)}"
        f"{_html_table(part)}</section>"
        for part in parts
        if not part.warning
    ]
    return PAGE.format(title=escape(title), style=STYLE, lead=lead, sections="\n".join(sections))


def _sentences(part: Part) -> str:
    told = "".join(f"<li>{escape(sentence)}</li>" for sentence in part.sentences)
    return f"<ul>{told}</ul>" if told else ""


def _pictures(part: Part) -> str:
    if not part.pictures:
        return ""
    if not has_matplotlib():
        return "<p class='note'>Install jaxrec[plots] for figures.</p>"
    drawn = "".join(f"<figure class='picture'>{each.svg()}</figure>" for each in part.pictures)
    return drawn + legend()


def _html_table(part: Part) -> str:
    if not part.header:
        return ""
    sides = [" class='text'" if i < part.words else "" for i in range(len(part.header))]
    head = "".join(
        f"<th scope='col'{side}>{escape(name)}</th>" for name, side in zip(part.header, sides)
    )
    body = []
    for line in part.lines:
        kind = f" class='{line.kind}'" if line.kind else ""
        if line.cells:
            cells = "".join(f"<td{s}>{_rich(cell)}</td>" for cell, s in zip(line.cells, sides))
            body.append(f"<tr{kind}>{cells}</tr>")
        else:
            wide = len(part.header)
            body.append(
                f"<tr class='head'><td class='text' colspan='{wide}'>{escape(line.title)}</td></tr>"
            )
    return (
        f"<div class='wide'><table class='plain'><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _rich(cell: Cell) -> str:
    text = f"<b>{escape(cell.text)}</b>" if cell.best else escape(cell.text)
    return f"{text}<small>{escape(cell.interval)}</small>" if cell.interval else text
