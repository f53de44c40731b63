"""report.html: well formed, self-contained, escaped, and it says the numbers."""

import html.parser
import re
import sys

import numpy as np
import pytest

from jaxrec.evaluation.breakdown import breakdown_entry
from jaxrec.evaluation.figures import (
    buckets_svg,
    curve_series,
    curves_svg,
    inline_svg,
    intervals_svg,
)
from jaxrec.evaluation.html import render_html
from jaxrec.evaluation.report import read_report, verdict, write_report

VOID = {"meta", "img", "br"}
CURVES = [
    *({"step": step, "loss": 5.0 / step, "rate/events": 1e4} for step in range(1, 40)),
    {"step": 20, "validation/ndcg@10": 0.02, "validation/recall@10": 0.05},
    {"step": 39, "validation/ndcg@10": 0.03, "validation/recall@10": float("nan")},
]
EVIL = "<script>alert('x')</script> & \"Co\""
USERS = [
    {
        "user": EVIL,
        "history": [f"{EVIL} {i}" for i in range(14)],
        "target": "Twin",
        "recommended": [
            {"title": "Twin", "score": -1.25},
            {"title": "Twin", "score": -2.5},
            {"title": EVIL, "score": -30.0},
        ],
        "hit": 2,
    },
    {"user": "u2", "history": [], "target": "Lost", "recommended": [], "hit": 0},
]


class Page(html.parser.HTMLParser):
    """Checks nesting and gathers tags, attributes and texts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self):
        return " ".join(data for tag, data in self.texts if tag != "style")


@pytest.fixture(scope="module")
def report(tmp_path_factory, protocol, parts):
    folder = tmp_path_factory.mktemp("report")
    extra = {
        "training": {"parameters": 1234, "stages": [{"stage": "Supervised", "seconds": 1.25}]},
        "semantic_ids": {"space_id": "abc"},
    }
    ranks, keys = np.arange(200) % 30, np.arange(200) % 90
    breakdowns = [
        breakdown_entry(
            by, {"popularity": ranks, EVIL: ranks // 2}, keys, seen_masked=True, draws=20, seed=0
        )
        for by in ("history length", "target popularity")
    ]
    write_report(folder, protocol, parts[0], extra, comparisons=parts[1], breakdowns=breakdowns)
    return read_report(folder)


@pytest.fixture(scope="module")
def page(report):
    return render_html(
        report,
        curves=CURVES,
        sid_quality={
            "collision_rate": 0.0125,
            "utilisation": [1.0, 0.5],
            "levels": 3,
            "by <level>": {"perplexity": 17.25},
        },
        sid_figures=("<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'></svg>",),
        users=USERS,
        title=f"Run {EVIL}",
    )


def test_page_is_well_formed_and_says_what_was_measured(page, report, protocol):
    parsed = Page(page)
    text = parsed.text()
    assert verdict(report) in text
    assert text.index(verdict(report)) < text.index("Protocol")
    for sentence in protocol.describe():
        assert sentence in text
    for row in report["rows"]:
        for name in ("recall@5", "ndcg@10", "mrr@50"):
            assert f"{row['metrics'][name]:.4f}" in text
        low, high = row["intervals"]["recall@10"]
        assert f"{low:.4f} to {high:.4f}" in text
    for comparison in report["comparisons"]:
        assert f"{comparison['difference']:+.4f}" in text
    assert "loses to transitions" in text
    assert ("class", "verdict behind") in parsed.attributes
    assert "collision rate 0.0125" in text.replace("  ", " ")
    assert "utilisation 1 0.5000" in text
    assert "17.25" in text
    assert "1,234" in text
    assert "stage Supervised seconds 1.250" in text
    assert text.index("Everything else in report.json") < text.index("abc")


def test_breakdowns_show_every_bucket_of_every_method(page, report):
    text = Page(page).text()
    for entry in report["breakdowns"]:
        assert f"Recall@10 by {entry['by']} (seen items masked)" in text
        for row in entry["rows"]:
            for name in ("recall@10", "ndcg@10"):
                assert all(f"{mean:.4f}" in text for mean in row["metrics"][name])
            low, high = row["intervals"]["recall@10"][1]
            assert f"{low:.4f} to {high:.4f}" in text
        sizes = " ".join(f"{b['cases']}{' (few)' if b['few'] else ''}" for b in entry["buckets"])
        assert f"cases {sizes}" in text
    # 90 keys, two or three cases each: the zeros are few, and flagged.
    assert "0 (cold)" in text
    assert "3 (few)" in text
    assert page.count("<svg") == 1 + 2 + 2 + 1  # metrics, breakdowns, curves, semantic IDs


def test_the_headline_stands_first_and_the_rest_in_a_fold(page, report):
    first, rest = page.split("The same with seen items kept", maxsplit=1)
    masked, kept = (
        next(r for r in report["rows"] if r["method"] == "generator" and r["seen_masked"] is m)
        for m in (True, False)
    )
    assert f"{masked['intervals']['recall@10'][0]:.4f} to" in first
    assert "Seen items masked, a hit is the item itself" in first
    assert "Seen items kept as candidates, a hit is the item itself" in rest
    assert "Seen items kept" not in first
    assert f"{kept['metrics']['ndcg@5']:.4f}" in rest


def test_nothing_comes_from_outside(page):
    parsed = Page(page)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", page.replace("</", "<"))
    assert not {"script", "link", "iframe", "object"} & set(parsed.tags)
    for name, value in parsed.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("data:", "#")), value
        assert not name.startswith("on")


def test_everything_from_data_is_escaped(page):
    parsed = Page(page)
    assert "<script" not in page
    assert parsed.text().count("alert('x')") == 2 + 10 + 1 + 1 + 2 * 3
    # titles, history, list, user; per breakdown the legend and two tables


def test_best_of_a_column_is_bold(page, report):
    masked = [row for row in report["rows"] if row["seen_masked"]]
    best = max(row["metrics"]["ndcg@10"] for row in masked)
    worst = min(row["metrics"]["ndcg@10"] for row in masked)
    assert f"<td><b>{best:.4f}</b>" in page
    assert f"<b>{worst:.4f}</b>" not in page
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_examples_mark_the_hit_by_place_not_by_title(page):
    assert page.count("class=hit") == 1
    start = page.index("<ol class='list'>")
    entries = page[start : page.index("</ol>", start)].split("<li")
    assert ["class=hit" in entry for entry in entries[1:]] == [False, True, False]
    text = Page(page).text()
    assert "found at place 2" in text
    assert "not in the list" in text
    assert "and 4 earlier" in text


def test_without_matplotlib_the_page_says_what_to_install(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = render_html(report, curves=CURVES, sid_quality={"levels": 3}, title="t")
    assert page.count("Install jaxrec[plots] for figures.") == 4  # metrics, groups, curves, IDs
    assert "<svg" not in page
    Page(page)


def test_a_bare_report_is_enough(report):
    report = {name: report[name] for name in ("protocol", "rows")}
    page = render_html(report, title="t")
    text = Page(page).text()
    assert "No generator was compared" in text
    assert "Training" not in text
    assert "For whom it works" not in text
    assert ("class", "verdict undecided") in Page(page).attributes


def test_what_is_no_svg_is_refused(report):
    with pytest.raises(ValueError, match="is SVG text"):
        render_html(report, sid_figures=("GIF89a",), title="t")


def test_every_style_of_a_class_exists_and_tables_scroll_in_themselves(page):
    classes = {
        name for key, value in Page(page).attributes if key == "class" for name in value.split()
    }
    style = page[page.index("<style>") : page.index("</style>")]
    assert {name for name in classes if f".{name}" not in style} <= {"table"}
    assert page.count("<table") == page.count("<div class='wide'><table")
    assert "@media print" in style


def test_curves_are_sorted_into_panels():
    panels = curve_series(CURVES)
    assert list(panels) == ["Loss", "Validation"]
    assert list(panels["Loss"]) == ["loss"]
    steps, values = panels["Validation"]["validation/ndcg@10"]
    assert (steps, values) == ([20.0, 39.0], [0.02, 0.03])
    assert curve_series([{"epoch": 1, "loss": 2.0}, {"step": 1, "loss": None}]) == {}


def test_curves_hold_their_points_and_take_the_page_colours():
    svg = curves_svg({"a": ([0.0, 10.0], [1.0, 3.0])}, "Lo$s <c>")
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert "Lo$s &lt;c&gt;" in svg
    assert "http" not in svg
    assert svg == curves_svg({"a": ([0.0, 10.0], [1.0, 3.0])}, "Lo$s <c>")
    assert svg != curves_svg({"a": ([0.0, 10.0], [3.0, 1.0])}, "Lo$s <c>")


def test_bucket_pictures_name_buckets_and_leave_gaps():
    series = {"a <b>": [(0.5, 0.25, 0.75), None], "c": [(0.0, 0.0, 0.0), (1.0, 0.5, 1.0)]}
    svg = buckets_svg(series, ["0 (cold)", "1-5"], "Recall@10", "target popularity")
    assert all(each in svg for each in ("0 (cold)", "1-5", "Recall@10", "target popularity"))
    assert "currentColor" in svg
    assert svg == buckets_svg(series, ["0 (cold)", "1-5"], "Recall@10", "target popularity")
    other = buckets_svg({**series, "c": [None, None]}, ["0 (cold)", "1-5"], "Recall@10", "x")
    assert other != svg


def test_interval_pictures_name_the_methods():
    series = [("a <b>", 0.5, 0.25, 0.75), ("c", 0.25, 0.125, 0.5)]
    svg = intervals_svg(series, "Recall@10")
    assert svg.startswith("<svg")
    assert "a &lt;b&gt;" in svg
    assert svg == intervals_svg(series, "Recall@10")
    assert svg != intervals_svg(series[::-1], "Recall@10")


def test_inline_svg_keeps_the_drawing():
    document = (
        '<?xml version=\'1.0\'?><!DOCTYPE svg><svg width="4pt" height="2pt" viewBox="0 0 4 2" '
        'xmlns="http://www.w3.org/2000/svg"><metadata>when</metadata><!-- p -->'
        '<g width="3"/></svg>\n'
    )
    assert inline_svg(document) == '<svg viewBox="0 0 4 2"><g width="3"/></svg>'
