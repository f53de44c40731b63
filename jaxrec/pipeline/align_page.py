"""`alignment.html`: what alignment did, in one file that needs nothing from anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jaxrec.evaluation.figures import curves_svg, has_matplotlib, is_number
from jaxrec.evaluation.html import section
from jaxrec.evaluation.page import PAGE, STYLE
from jaxrec.evaluation.tables import facts, legend, metric_name, number_cell, table

PANELS: dict[str, tuple[str, ...]] = {
    "Reward": ("reward", "validation/reward"),
    "Spread of rewards in a group": ("reward_std",),
    "Groups that teach nothing": ("zero_advantage_groups", "gated_groups"),
    "Divergence from the reference, nats a code": ("kl",),
    "Log-probability of what is written": ("log_prob", "logp_chosen", "logp_rejected"),
    "Legality without the catalogue": ("legality",),
    "Clipped ratios": ("clipped",),
    "Pairs in the right order": ("accuracy",),
    "Likelihood of what the user did, nats": ("nll_target",),
    "Ranking on validation": ("validation/ndcg@10", "validation/recall@10"),
}
"""Panels of the page and the metrics that they show, as far as the objective reports them."""
LISTED = 10
"""Items of a list that are shown."""


def render_alignment(
    result: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    examples: Sequence[Mapping[str, Any]],
) -> str:
    """The whole page.

    Args:
        result: content of `alignment.json`.
        rows: metric rows of the stage, each with "step".
        examples: test cases, each {"target": title, "before": titles, "after": titles}.
    """
    sections = [
        section("Rewards", rewards_table(result["rewards"])),
        section("Rankings on the test cases", ranking_table(result["ranking"])),
        section("On the way", curves(rows)),
        section("Reward model", reward_model(result.get("reward_model"))),
        section("How lists changed", "".join(map(example, examples))),
    ]
    found = result["rewards"]["test"]
    low, high = found["difference_interval"]
    state = "ahead" if low > 0 else "behind" if high < 0 else "undecided"
    words = {"ahead": "rose", "behind": "fell", "undecided": "did not move for certain"}
    lead = (
        f"The mean reward {words[state]}: {found['before']:.4f} before, {found['after']:.4f} "
        f"afterwards, on {found['cases']:,} test cases (difference {found['difference']:+.4f}, "
        f"95 % interval {low:+.4f} to {high:+.4f})."
    )
    return PAGE.format(
        title=escape(f"{result['run']}, aligned: {result['aligned']}"),
        style=STYLE,
        lead=f"<p class='verdict {state}'>{escape(lead)}</p>",
        sections="\n".join(filter(None, sections)),
    )


def rewards_table(rewards: Mapping[str, Mapping[str, Any]]) -> str:
    """Mean rewards of validation and test cases, before and afterwards."""
    lines = [
        (
            "",
            [
                escape(part),
                number_cell(found["before"], found["before_interval"]),
                number_cell(found["after"], found["after_interval"]),
                number_cell(found["difference"], found["difference_interval"]),
                f"{found['cases']:,}",
            ],
        )
        for part, found in rewards.items()
    ]
    caption = "Mean reward of a group of rollouts, with 95 % intervals; the same cases and draws."
    return table(caption, ["Cases", "Before", "Afterwards", "Difference", "Number"], lines)


def ranking_table(ranking: Mapping[str, Mapping[str, float]]) -> str:
    """Metrics of the generator in both runs."""
    before, after = ranking["before"], ranking["after"]
    lines = [
        ("", [escape(metric_name(name)), f"{before[name]:.4f}", f"{after[name]:.4f}"])
        for name in before
        if name in after
    ]
    return table("Items, seen ones masked.", ["Metric", "Before", "Afterwards"], lines)


def curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """A panel for each group of metrics that there are."""
    if not has_matplotlib():
        return "<p class='note'>Install jaxrec[plots] for figures.</p>"
    figures = []
    for label, names in PANELS.items():
        series: dict[str, tuple[list[float], list[float]]] = {}
        for name in names:
            points = [
                (float(row["step"]), float(row[name])) for row in rows if is_number(row.get(name))
            ]
            if points:
                steps, values = map(list, zip(*points))
                series[name] = steps, values
        if series:
            drawn = curves_svg(series, label)
            figures.append(f"<figure>{drawn}{legend(list(series))}</figure>")
    return f"<div class='figures'>{''.join(figures)}</div>" if figures else ""


def reward_model(report: Mapping[str, Any] | None) -> str:
    """How good the reward model is, on users that it was only measured on."""
    if report is None:
        return ""
    told = {name: value for name, value in report.items() if name != "tasks"}
    for task, numbers in report["tasks"].items():
        told |= {f"{task}, {name}": value for name, value in numbers.items()}
    return facts(told)


def example(case: Mapping[str, Any]) -> str:
    """Two lists beside each other; what is new stands out."""

    def shown(titles: Sequence[str], others: Sequence[str]) -> str:
        entries = []
        for title in titles[:LISTED]:
            name = escape(title)
            marked = name if title in others[:LISTED] else f"<b>{name}</b>"
            hit = " class=hit" if title == case["target"] else ""
            entries.append(f"<li{hit}><span>{marked}</span></li>")
        return f"<ol class='list'>{''.join(entries)}</ol>"

    return (
        f"<article><p>Next came <b>{escape(case['target'])}</b>.</p><h4>Before</h4>"
        f"{shown(case['before'], case['after'])}<h4>Afterwards; new ones bold</h4>"
        f"{shown(case['after'], case['before'])}</article>"
    )
