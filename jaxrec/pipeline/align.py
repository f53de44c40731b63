"""Alignment of a finished run: a new run that goes on where it ended, and a page of both."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.evaluation.significance import bootstrap_mean, paired_difference
from jaxrec.files import read_json, write_json, write_text
from jaxrec.pipeline.align_page import render_alignment
from jaxrec.pipeline.cache import open_artefact
from jaxrec.pipeline.run import open_finished, open_run, run, stage_folder
from jaxrec.recipe import Recipe
from jaxrec.tracking import JsonLines

RESULT, PAGE = "alignment.json", "alignment.html"


def align(source: Path, recipe: Recipe, *, runs: Path) -> Path:
    """Runs the recipe of a finished run with one more stage, in a folder beside it.

    The stages that the run has finished are taken over and not trained again. Killed, it goes on
    with the same call.

    Args:
        source: folder of the finished run.
        recipe: its recipe, with a new name and an alignment stage at the end.
        runs: the folder of run folders.

    Returns:
        The new run's folder, with `alignment.json` and `alignment.html` beside the usual report.

    Raises:
        ValueError: the run is not finished, the folder is another run's, or what the stage refuses.
    """
    if not (source / "report.json").is_file():
        raise ValueError(
            f"{source} has no report.json: alignment starts from a finished run. Run "
            f"`jaxrec run {source / 'recipe.json'}` to the end first."
        )
    number, stage = len(recipe.stages) - 1, recipe.stages[-1]
    if not getattr(stage, "aligns", False):
        raise ValueError(f"the last stage is {type(stage).__name__}, which does not align.")
    with open_run(recipe, runs) as place:
        for each, before in enumerate(recipe.stages[:-1]):
            take_over(stage_folder(source, each, before), stage_folder(place.folder, each, before))
    folder = run(recipe, runs=runs)
    kept = stage_folder(folder, number, stage)
    result = summarise(kept, source, folder, recipe.seed)
    write_json(folder / RESULT, result)
    titles = read_json(open_artefact(folder / "artefacts" / "histories").folder / "titles.json")
    rows = [row for row in JsonLines(kept / "metrics.jsonl").rows() if "step" in row]
    write_text(folder / PAGE, render_alignment(result, rows, examples(kept, titles, folder)))
    print(told(result))
    print(f"\nalignment: {folder / PAGE}")
    return folder


def take_over(source: Path, target: Path) -> None:
    """Makes a finished stage of another run that of this one; its files are shared, not copied.

    Files of a finished stage are never written again, so links are safe.

    Raises:
        ValueError: the stage is not finished.
    """
    if not (source / "finished.json").is_file():
        raise ValueError(f"{source} is not finished; end that run before aligning it.")
    if (target / "finished.json").is_file():
        return
    shutil.rmtree(target, ignore_errors=True)
    temporary = target.with_name(f".tmp-{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(source, temporary, copy_function=os.link)
    except OSError:  # another file system, or one without links
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary)
    temporary.rename(target)


def summarise(kept: Path, source: Path, folder: Path, seed: int) -> dict[str, Any]:
    """What alignment changed: rewards with intervals, and the ranking metrics of both runs.

    Args:
        kept: the alignment stage's folder.
        source: the run that it started from.
        folder: the aligned run.
        seed: of the intervals.
    """
    before, after = (read_json(kept / f"{name}.json") for name in ("before", "after"))
    rewards = {}
    for part in before["rewards"]:
        old, new = (np.asarray(side["rewards"][part]) for side in (before, after))
        gap = paired_difference(new, old, seed=seed)
        told = [bootstrap_mean(side, seed=seed) for side in (old, new)]
        rewards[part] = {
            "before": told[0].mean,
            "before_interval": [told[0].low, told[0].high],
            "after": told[1].mean,
            "after_interval": [told[1].low, told[1].high],
            "difference": gap.difference,
            "difference_interval": [gap.low, gap.high],
            "cases": len(old),
        }
    ranking = {
        name: _ranking(read_json(path / "report.json"))
        for name, path in (("before", source), ("after", folder))
    }
    reward_model = kept / "reward" / "reward.json"
    return {
        "run": source.name,
        "aligned": folder.name,
        "rewards": rewards,
        "ranking": ranking,
        "reward_model": read_json(reward_model) if reward_model.is_file() else None,
    }


def _ranking(report: dict[str, Any]) -> dict[str, float]:
    """Metrics of the generator, items, seen ones masked."""
    (row,) = [
        row
        for row in report["rows"]
        if row["method"] == "generator" and row["level"] == "item" and row["seen_masked"]
    ]
    return dict(row["metrics"])


def examples(kept: Path, titles: list[str], folder: Path) -> list[dict[str, Any]]:
    """Lists of some test cases before and afterwards, by title."""
    before, after = (read_json(kept / f"{name}.json") for name in ("before", "after"))
    items = open_finished_items(folder)
    found = []
    for position, old, new in zip(before["positions"], before["lists"], after["lists"]):
        found.append(
            {
                "target": titles[int(items[position])],
                "before": [titles[item] for item in old if item >= 0],
                "after": [titles[item] for item in new if item >= 0],
            }
        )
    return found


def open_finished_items(folder: Path) -> np.ndarray:
    """Items of the run's flat events."""
    return np.asarray(open_finished(folder).data.histories.item)


def told(result: dict[str, Any]) -> str:
    """The result in a few lines."""
    lines = []
    for part, found in result["rewards"].items():
        low, high = found["difference_interval"]
        lines.append(
            f"mean reward, {found['cases']} {part} cases: {found['before']:.4f} before, "
            f"{found['after']:.4f} afterwards ({found['difference']:+.4f}, 95 % interval "
            f"{low:+.4f} to {high:+.4f})"
        )
    before, after = result["ranking"]["before"], result["ranking"]["after"]
    for name in (name for name in ("recall@10", "ndcg@10", "coverage@10") if name in before):
        lines.append(f"test {name}: {before[name]:.4f} before, {after[name]:.4f} afterwards")
    return "\n".join(lines)
