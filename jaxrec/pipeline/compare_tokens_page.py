"""Tokenizers side by side for people: a table for the terminal, and one page.

The page needs nothing from anywhere, works in light and dark, narrow and wide, and escapes
everything that comes from data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from jaxrec.evaluation.compare_views import Cell, Line, Part, as_text
from jaxrec.evaluation.figures import INK, has_matplotlib, inline_svg
from jaxrec.evaluation.html import section
from jaxrec.evaluation.page import PAGE, STYLE
from jaxrec.evaluation.tables import fold, table
from jaxrec.pipeline.compare_tokens import TokenRun
from jaxrec.pipeline.compare_tokens_measures import told_value
from jaxrec.pipeline.describe import percent
from jaxrec.tokenization.figures import map_svg, top_share, usage_svg

CAUTION = (
    "No number here tells which tokenizer will recommend best: over published systems the entropy "
    "of codes hardly correlates with NDCG (arXiv:2609.24430). They find what is broken; only "
    "training a generator on each, and `jaxrec compare`, ranks what works."
)
_ARROWS = {"high": "&nbsp;&uarr;", "low": "&nbsp;&darr;", "": ""}
HEALTHY = "Nothing unhealthy was found."

_MORE_STYLE = """
h4.codes, .codes { text-transform: none; letter-spacing: 0; font-family: ui-monospace, monospace; }
article h3 small { font-weight: 400; }
article ul { padding-left: 1.1rem; }
article h4:first-child { margin-top: 0; }
article li + li { margin-top: .15rem; }
h3.run { margin: 1.25rem 0 .5rem; }
.figures figcaption { color: var(--ink); font-weight: 600; }
"""


def tokens_text(compared: Mapping[str, Any]) -> str:
    """The comparison for a terminal: what was compared, all measures, and the advice.

    Args:
        compared: of `compare_tokens`.
    """
    names = list(compared["runs"])
    lines, seen = [], ""
    for row in compared["measures"]:
        if row["section"] != seen:
            seen = row["section"]
            lines.append(Line(title=seen))
        cells = [
            Cell(told_value(value, row["style"]), best=name in row["best"])
            for name, value in row["values"].items()
        ]
        lines.append(Line((Cell(row["name"]), *cells)))
    notes = (*compared["notes"], "The best of a line has a star.", CAUTION)
    parts = [
        Part(_headline(compared), notes, header=("measure", *names), lines=tuple(lines)),
        *(
            Part(f"Advice for {name}", tuple(_advice(entry)))
            for name, entry in compared["runs"].items()
        ),
    ]
    return "".join(f"{_printable(line)}\n" for line in as_text(parts).splitlines())


def render_tokens(compared: Mapping[str, Any], runs: Sequence[TokenRun]) -> str:
    """The whole page.

    Args:
        compared: of `compare_tokens`.
        runs: what it was made of, for the pictures.
    """
    told = compared["runs"]
    sections = [
        section("Advice", _cards(told, lambda entry: _listed(_advice(entry)))),
        section("All numbers", _numbers(compared)),
        section("Level by level", _level_tables(told)),
        section("Use of the codes", _figures(runs, _usage_drawer(runs))),
        section("Where the first codes lie", _figures(runs, _map)),
        section("What the codes hold", _by_run(told, _groups, _GROUPS_NOTE)),
        section("Items with the same codes", _by_run(told, _collisions, _COLLISIONS_NOTE)),
        section("Hot spots", _by_run(told, _hot, _HOT_NOTE)),
        section("Made by", _made_by(told)),
    ]
    lead = (
        f"<p class='verdict'>{escape(_headline(compared))}</p><p class='note'>{escape(CAUTION)}</p>"
    )
    return PAGE.format(
        title=escape(f"Tokenizers: {', '.join(told)}"),
        style=STYLE + _MORE_STYLE,
        lead=lead,
        sections="\n".join(filter(None, sections)),
    )


_GROUPS_NOTE = (
    "The fullest first code, those at a third and at two thirds of the order by size, the largest "
    "second codes below each, and their most popular items. Items of one group should have "
    "something in common, and those of a longer prefix more."
)
_COLLISIONS_NOTE = (
    "The largest groups of items that the quantizer cannot tell apart. Near duplicates belong "
    "there; different things do not."
)
_HOT_NOTE = (
    "The fullest codes of each level. A code far above its even share, above all below the first "
    "level, is where a generator's probability piles up."
)


def _headline(compared: Mapping[str, Any]) -> str:
    return (
        f"{len(compared['runs'])} tokenizers of the {compared['n_items']:,} items of "
        f"{compared['dataset']}"
    )


def _advice(entry: Mapping[str, Any]) -> list[str]:
    return entry["quality"]["advice"] or [HEALTHY]


def _printable(text: str) -> str:
    """Text without control characters: data must not steer a terminal."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def _listed(texts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def _cards(told: Mapping[str, Any], body: Callable[[Mapping[str, Any]], str]) -> str:
    cards = "".join(
        f"<article><h3>{escape(name)}</h3>{body(entry)}</article>" for name, entry in told.items()
    )
    return f"<div class='users'>{cards}</div>"


def _numbers(compared: Mapping[str, Any]) -> str:
    names, lines, seen = list(compared["runs"]), [], ""
    for row in compared["measures"]:
        if row["section"] != seen:
            seen = row["section"]
            lines.append(("head", [seen, *[""] * len(names)]))
        cells = [
            f"<b>{told_value(value, row['style'])}</b>"
            if name in row["best"]
            else told_value(value, row["style"])
            for name, value in row["values"].items()
        ]
        lines.append(("", [escape(row["name"]) + _ARROWS[row["better"]], *cells]))
    note = (
        "Best of a line in bold; an arrow tells which end is better, and where there is none "
        "neither is. Tokenizers with more codes or levels have it easier with collisions and "
        "reconstruction, and harder with what a first code has in common."
    )
    told = table("", ["Measure", *names], lines)
    return f"{_listed(compared['notes'])}<p class='note'>{note}</p>{told}"


def level_rows(quality: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """What a report says about each level, or about the prefix that ends there: (name, texts)."""
    levels = quality["levels"]
    rows = [
        ("codes", [f"{level['size']:,}" for level in levels]),
        ("codes used", [f"{level['used']:,}" for level in levels]),
        ("perplexity", [f"{level['perplexity']:,.1f}" for level in levels]),
        ("entropy given the prefix, nats", [f"{e['conditional_entropy']:.3f}" for e in levels]),
        ("Gini of use", [f"{level['gini_all']:.3f}" for level in levels]),
    ]
    if "reconstruction" in quality:
        explained = [row["explained"] for row in quality["reconstruction"]]
        rows.append(("variance explained so far", list(map(_share, explained))))
    if "alignment" in quality:
        # Row p holds the pairs that share p codes and no more.
        cosines = [f"{row['cosine']:.3f}" for row in quality["alignment"][1:]]
        rows.append(("cosine of items that part after it", cosines))
    for part, names in _PREFIX_ROWS.items():
        for key, name in names.items() if part in quality else ():
            entries = [row for row in quality[part]["prefixes"] if row["levels"]]
            rows.append((name, [_share(row[key]) for row in entries]))
    return rows


def _share(share: float) -> str:
    return percent(share) if share <= 0 or share >= 1e-4 else "under 0.01%"


_PREFIX_ROWS = {
    "categories": {
        "purity": "purity of the prefix",
        "purity_chance": "the same by chance",
        "alone": "items alone in their prefix",
    },
    "behaviour": {
        "pairs": "pairs that share the prefix",
        "chance": "any two items that share it",
    },
}


def _level_tables(told: Mapping[str, Any]) -> str:
    parts = []
    for name, entry in told.items():
        header = ["By level", *(f"level {level}" for level in range(len(entry["sizes"])))]
        lines = [("", [escape(row), *cells]) for row, cells in level_rows(entry["quality"])]
        parts.append(f"<h3 class='run'>{escape(name)}</h3>{table('', header, lines)}")
    return "".join(parts)


def _figures(runs: Sequence[TokenRun], draw: Callable[[TokenRun], str]) -> str:
    if not has_matplotlib():
        return "<p class='note'>Install jaxrec[plots] for figures.</p>"
    drawn = "".join(
        f"<figure><figcaption>{escape(each.name)}</figcaption>{inline_svg(draw(each))}</figure>"
        for each in runs
    )
    return f"<div class='figures'>{drawn}</div>"


def _usage_drawer(runs: Sequence[TokenRun]) -> Callable[[TokenRun], str]:
    """Draws the use of a tokenizer's codes, all of them in one scale of colours."""
    top = max(top_share(each.codes, each.sizes) for each in runs)
    return lambda each: usage_svg(each.codes, each.sizes, ink=INK, top=top)


def _map(each: TokenRun) -> str:
    return map_svg(each.codes, each.vectors, ink=INK)


def _by_run(told: Mapping[str, Any], body: Callable[[Mapping[str, Any]], str], note: str) -> str:
    parts = "".join(
        f"<h3 class='run'>{escape(name)}</h3>{body(entry)}" for name, entry in told.items()
    )
    return f"<p class='note'>{escape(note)}</p>{parts}"


def _groups(entry: Mapping[str, Any]) -> str:
    return f"<div class='users'>{''.join(map(_group, entry['groups']))}</div>"


def _group(group: Mapping[str, Any]) -> str:
    told = f"{group['items']:,} items"
    if "category" in group:
        told += f", {group['category_share']:.0%} {group['category'] or 'without a category'}"
    parts = "".join(map(_items, group["parts"]))
    return (
        f"<article><h3><span class='codes'>{escape(group['prefix'])}</span> "
        f"<small>{escape(told)}</small></h3>{parts}</article>"
    )


def _items(part: Mapping[str, Any]) -> str:
    """The items of a prefix, and how many there are beside those that are named."""
    more = part["items"] - len(part["titles"])
    rest = f"<li class='note'>and {more:,} more</li>" if more else ""
    titles = "".join(f"<li>{escape(title)}</li>" for title in part["titles"])
    return f"<h4 class='codes'>{escape(part['prefix'])}</h4><ul>{titles}{rest}</ul>"


def _collisions(entry: Mapping[str, Any]) -> str:
    if not entry["collisions"]:
        return "<p class='note'>No two items have the same codes.</p>"
    cards = "".join(f"<article>{_items(part)}</article>" for part in entry["collisions"])
    return f"<div class='users'>{cards}</div>"


def _hot(entry: Mapping[str, Any]) -> str:
    lines = [
        (
            "",
            [
                f"level {spot['level']}, code {spot['code']}",
                f"{spot['items']:,}",
                f"{spot['times_even']:.1f}",
                f"{spot['events']:.1%}",
                escape(spot["title"]),
            ],
        )
        for spot in entry["hot_spots"]
    ]
    header = ["Code", "Items", "Times its even share", "Training events", "Most popular item"]
    return table("", header, lines)


def _made_by(told: Mapping[str, Any]) -> str:
    lines = [
        (
            "",
            [
                escape(name),
                escape(entry["quantizer"]),
                escape(" x ".join(map(str, entry["sizes"]))),
                escape(entry["collision_policy"]),
                escape(entry["assignment_id"][:12]),
            ],
        )
        for name, entry in told.items()
    ]
    header = ["Tokenizer", "Quantizer", "Codes", "Collision policy", "Index"]
    folders = "".join(
        f"<li>{escape(name)}: {escape(entry['folder'])}</li>" for name, entry in told.items()
    )
    return table("", header, lines) + fold("Folders", f"<ul>{folders}</ul>")
