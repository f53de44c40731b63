"""What a run tells people: lines on the terminal, report.json, report.html, recommendations."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import numpy as np

from jaxrec.data.histories import same_time_ties
from jaxrec.data.splits import case_users
from jaxrec.evaluation.figures import INK, has_matplotlib
from jaxrec.evaluation.html import render_html
from jaxrec.evaluation.protocol import Protocol
from jaxrec.evaluation.ranking import ranks_in_lists
from jaxrec.evaluation.ranks import write_ranks
from jaxrec.evaluation.recommendations import write_recommendations
from jaxrec.evaluation.report import read_report, text_table, write_report
from jaxrec.files import write_text
from jaxrec.pipeline.judge import Judgement
from jaxrec.pipeline.stages import Prepared, Tokens, Vectors, Workplace
from jaxrec.recipe import Recipe
from jaxrec.tokenization.figures import map_svg, usage_svg
from jaxrec.tracking import JsonLines

LISTED = 10
"""Items of a list that are shown with titles."""


def tell_data(data: Prepared) -> None:
    """Prints what the log is made of."""
    histories, manifest = data.histories, data.manifest
    lengths = histories.lengths
    ties = same_time_ties(histories)
    print(
        f"data: {manifest['name']}, {histories.num_users:,} users, {histories.num_items:,} items, "
        f"{histories.num_events:,} events (median history {int(np.median(lengths))}, longest "
        f"{int(lengths.max())})\n"
        f"      split {data.split.name}: {len(data.split.validation):,} validation and "
        f"{len(data.split.test):,} test cases\n"
        f"      the last event of {ties['tied']:.1%} of the users shares its time with another of "
        f"theirs; such events are ordered by {histories.ties!r}"
    )


def tell_tokens(tokens: Tokens, vectors: Vectors) -> None:
    """Prints what the semantic IDs are worth."""
    quality, report = tokens.quality, vectors.report
    if "quality" not in quality:
        print(f"items: {tokens.ids.num_items:,} ids, index {tokens.ids.assignment_id[:12]}")
        return
    surrogate = " (surrogate)" if report["surrogate"] else ""
    print(
        f"vectors: {report['encoder']}{surrogate}, {report['dimension']} numbers an item, "
        f"{report.get('n_empty', 0)} empty texts, {report['n_duplicate_rows']} duplicates\n"
        f"semantic IDs: sizes {tokens.ids.space.sizes}, space {tokens.ids.space_id[:12]}, "
        f"index {tokens.ids.assignment_id[:12]}"
    )
    for line in quality_lines(quality["quality"]):
        print(f"      {line}")


def quality_lines(quality: dict[str, Any]) -> list[str]:
    """The quality of the quantizer's own codes in a few lines, advice last."""
    collisions = quality["collisions"]
    used = ", ".join(f"{level['utilisation']:.0%}" for level in quality["levels"])
    perplexity = ", ".join(f"{level['perplexity']:.0f}" for level in quality["levels"])
    return [
        f"codes used by level {used}; perplexity {perplexity}",
        f"{collisions['n_sids']:,} distinct IDs of {quality['n_items']:,} items before the "
        f"collision policy; {collisions['items_sharing']:.1%} of the items share one, at most "
        f"{collisions['max_bucket']} the same",
        *(f"advice: {each}" for each in quality["advice"]),
    ]


def write_results(
    recipe: Recipe,
    place: Workplace,
    data: Prepared,
    vectors: Vectors,
    tokens: Tokens,
    training: dict[str, Any],
    protocol: Protocol,
    judgement: Judgement,
) -> None:
    """Writes recommendations, ranks.npz, report.html, report.txt and last report.json, each
    atomically.

    report.json comes last: where it stands, the run is finished.
    """
    ranks = judgement.ranks
    extra = {
        "recommendations": write_lists(place, data, judgement),
        "ranks": {
            "file": write_ranks(place.folder, ranks).name,
            "cases": ranks.cases,
            "fingerprint": ranks.fingerprint,
        },
        "training": training,
        "items": vectors.report,
        "semantic_ids": {
            "space_id": tokens.ids.space_id,
            "assignment_id": tokens.ids.assignment_id,
            "sizes": list(tokens.ids.space.sizes),
            "quality": tokens.quality,
        },
        "data": {key: data.manifest[key] for key in ("name", "source", "licence", "counts")},
    }
    if judgement.mix is not None:
        extra["mix"] = judgement.mix
    scratch = place.folder / ".tmp-results"  # swept at the next start if killed here
    scratch.mkdir(exist_ok=True)
    path = write_report(
        scratch,
        protocol,
        judgement.rows,
        extra,
        comparisons=judgement.comparisons,
        breakdowns=judgement.breakdowns,
    )
    report = read_report(path)
    page = render_html(
        report,
        curves=JsonLines(place.folder / "metrics.jsonl").rows(),
        sid_quality=quality_table(tokens),
        sid_figures=sid_figures(tokens, vectors),
        users=example_users(data, judgement, recipe.evaluation.examples, recipe.seed),
        title=f"jaxrec: {recipe.name}",
    )
    write_text(place.folder / "report.html", page)
    write_text(place.folder / "report.txt", text_table(report) + "\n")
    path.replace(place.folder / "report.json")
    scratch.rmdir()


def write_lists(place: Workplace, data: Prepared, judgement: Judgement) -> str:
    """Writes recommendations.parquet; says why not on a machine that has no polars."""
    if importlib.util.find_spec("polars") is None:
        reason = "not written: polars is not installed"
        print(f"recommendations.parquet {reason}", file=sys.stderr)
        return reason
    histories, answers = data.histories, judgement.answers
    users = case_users(histories, judgement.positions)
    # A user with several cases gets the list of the last one, which knows the most.
    last = np.flatnonzero(np.append(users[1:] != users[:-1], True))
    path = write_recommendations(
        place.folder,
        histories.users[users[last]],
        np.asarray(histories.items),
        answers.items[last],
        answers.scores[last],
        answers.valid[last],
    )
    return path.name


def quality_table(tokens: Tokens) -> dict[str, Any]:
    """What the page says about the semantic IDs; report.json holds all of it. Empty for sparse
    item ids."""
    if "quality" not in tokens.quality:
        return {}
    quality, collisions = tokens.quality["quality"], tokens.quality["quality"]["collisions"]
    levels, semantic = quality["levels"], tokens.ids.semantic_levels
    sizes = tokens.ids.space.sizes
    table: dict[str, Any] = {
        "codes": list(sizes[:semantic]),
        "codes used": [level["used"] for level in levels],
        "perplexity": [level["perplexity"] for level in levels],
        "entropy given the prefix, nats": [level["conditional_entropy"] for level in levels],
        "Gini of use": [level["gini_all"] for level in levels],
    }
    if "reconstruction" in quality:
        explained = [level["explained"] for level in quality["reconstruction"]]
        table["variance explained so far"] = explained
    table |= {
        "advice": " ".join(quality["advice"]) or "none",
        "collision policy": tokens.quality["collisions"]["policy"],
        "IDs lost to collisions": f"{collisions['lost_ids']:.1%}",
        "items that share an ID": f"{collisions['items_sharing']:.1%}",
        "the same with random codes": f"{quality['random_floor']:.1%}",
        "IDs that are shared": f"{collisions['ids_shared']:.1%}",
        "largest group of one ID": collisions["max_bucket"],
    }
    if len(sizes) > semantic:
        table["codes of the extra digit"] = sizes[semantic]
    return table


def sid_figures(tokens: Tokens, vectors: Vectors) -> tuple[str, ...]:
    """Pictures of the semantic levels, in the page's colours; none without matplotlib (the page
    then says so)."""
    if not has_matplotlib() or "quality" not in tokens.quality:
        return ()
    space, levels = tokens.ids.space, tokens.ids.semantic_levels
    codes = np.asarray(tokens.ids.codes)
    return (
        usage_svg(codes[:, :levels], space.sizes[:levels], ink=INK),
        map_svg(codes, vectors.vectors, ink=INK),
    )


def example_users(
    data: Prepared, judgement: Judgement, count: int, seed: int
) -> list[dict[str, Any]]:
    """Test cases with titles: what was known, what came next, what was recommended."""
    histories, answers, titles = data.histories, judgement.answers, data.titles
    positions = judgement.positions
    draw = np.random.default_rng(seed).permutation(len(positions))[:count]
    targets = np.asarray(histories.item)[positions]
    places = ranks_in_lists(answers.items, answers.valid, targets)
    users = case_users(histories, positions)
    examples = []
    for case in np.sort(draw).tolist():
        user, position = int(users[case]), int(positions[case])
        known = np.asarray(histories.item[int(histories.offsets[user]) : position])
        listed = answers.items[case][answers.valid[case]][:LISTED]
        examples.append(
            {
                "user": str(histories.users[user]),
                "history": [titles[item] for item in known],
                "target": titles[int(targets[case])],
                "hit": int(places[case]),
                "recommended": [
                    {"title": titles[item], "score": float(score)}
                    for item, score in zip(listed, answers.scores[case])
                ],
            }
        )
    return examples
