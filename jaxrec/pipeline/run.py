"""Runs a recipe stage by stage, as far as asked, and resumes wherever it was killed."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.data.dataset import item_table
from jaxrec.decoding.build import build_catalogue
from jaxrec.decoding.catalogue import Catalogue
from jaxrec.evaluation.protocol import Protocol
from jaxrec.files import json_hash, lock, read_json, sweep_leftovers, write_json
from jaxrec.objectives.item_sampled import POPULARITY
from jaxrec.parallel import MeshShape, make_mesh
from jaxrec.pipeline import stages
from jaxrec.pipeline.cache import keep_programs, open_artefact
from jaxrec.pipeline.checks import check_cases, check_codebooks, check_recipe
from jaxrec.pipeline.judge import judge
from jaxrec.pipeline.report import tell_data, tell_tokens, write_results
from jaxrec.pipeline.stages import Prepared, Tokens, Vectors, Workplace
from jaxrec.recipe import Recipe, load_recipe, to_json
from jaxrec.tracking import JsonLines
from jaxrec.training.book import FitResult
from jaxrec.training.ranking import Ranker
from jaxrec.training.supervised import StageContext
from jaxrec.types import PyTree, Tables, TokenSpace

TRAINING = "checkpoints"
"""Folder of the training stages inside a run."""


def run(recipe: Recipe, *, runs: Path, last: str = "report", again: bool = False) -> Path:
    """Runs a recipe as far as the stage `last`; finished stages are not run again.

    Args:
        recipe: what to run.
        runs: the folder of run folders.
        last: the stage to stop after, one of `stages.STAGES`.
        again: judge again even when the run has a report.

    Returns:
        The run's folder.

    Raises:
        ValueError: the folder belongs to another recipe, or another job runs in it.
    """
    reached = stages.STAGES.index(last)
    keep_programs()
    if reached >= stages.STAGES.index("train"):
        check_recipe(recipe)
    with open_run(recipe, runs) as place:
        data = stages.prepare_data(recipe, place)
        tell_data(data)
        if reached == 0:
            return place.folder
        if reached >= stages.STAGES.index("train"):
            check_cases(recipe, data)
        check_codebooks(recipe, data.histories.num_items)
        vectors = stages.make_vectors(recipe, place, data)
        tokens = stages.make_tokens(recipe, place, data, vectors)
        tell_tokens(tokens, vectors)
        if reached < stages.STAGES.index("train"):
            return place.folder
        model = train(recipe, place, data, tokens)
        if last == "report" and (again or not (place.folder / "report.json").is_file()):
            evaluate(recipe, place, data, vectors, tokens, model)
        if last == "report":
            print((place.folder / "report.txt").read_text(encoding="utf-8"))
            print(f"\nreport: {place.folder / 'report.html'}")
    return place.folder


@contextlib.contextmanager
def open_run(recipe: Recipe, runs: Path) -> Generator[Workplace]:
    """Makes or continues a run folder, alone in it until the block ends."""
    place = Workplace(runs, runs / recipe.name)
    _make_folder(place)
    try:
        with lock(place.folder / ".lock", wait=False):
            sweep_leftovers(place.folder)
            claim(recipe, place.folder)
            yield place
    except BlockingIOError:
        raise ValueError(
            f"another job is running in {place.folder}; wait for it, or give this run another "
            "name with --name."
        ) from None


def _make_folder(place: Workplace) -> None:
    if place.runs.exists() and not place.runs.is_dir():
        raise ValueError(
            f"{place.runs} is a file; --runs names the folder that run folders live in."
        )
    try:
        place.folder.mkdir(parents=True, exist_ok=True)
        # Found here, and not when an hour of work is to be written.
        with tempfile.TemporaryFile(dir=place.folder):
            pass
    except OSError as error:
        raise ValueError(
            f"{place.folder} cannot be written ({error.strerror}). Choose another folder with "
            "--runs, or mend this one."
        ) from None


def claim(recipe: Recipe, folder: Path) -> None:
    """Records the recipe in its folder, or checks that the folder is this recipe's.

    Raises:
        ValueError: the folder holds the run of another recipe; the message names what differs.
    """
    record, wanted = folder / "recipe.json", to_json(recipe)
    # Before training nothing in the folder is bound to the recipe: cached stages find themselves.
    if record.is_file() and (folder / TRAINING).is_dir():
        found = read_json(record)
        if found != wanted:
            raise ValueError(
                f"{folder} holds the run of another recipe ({differences(found, wanted)}). Give "
                "this run another name with --name, or delete the folder."
            )
        return
    write_json(record, wanted)


def differences(found: Any, wanted: Any, path: str = "") -> str:
    """The fields in which two JSON values differ, at most three of them, as a phrase."""
    lines = list(_differences(found, wanted, path))
    return "; ".join(lines[:3]) + ("; ..." if len(lines) > 3 else "")


def _differences(found: Any, wanted: Any, path: str) -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in [*found, *(name for name in wanted if name not in found)]:
            inside = f"{path}.{name}" if path else name
            if name not in found or name not in wanted:
                place = "there" if name in found else "here"
                yield f"{inside} exists only {place}, as {found.get(name, wanted.get(name))!r}"
            else:
                yield from _differences(found[name], wanted[name], inside)
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for index, (one, other) in enumerate(zip(found, wanted)):
            yield from _differences(one, other, f"{path}.{index}")
    elif found != wanted:
        yield f"{path} is {found!r} there and {wanted!r} here"


def index_of(data: Prepared, tokens: Tokens) -> tuple[Tables, Catalogue]:
    """What the generator reads about items, and the trie it answers from.

    Inside a collision group the popular items come first.
    """
    ids = tokens.ids
    catalogue = build_catalogue(np.asarray(ids.codes), ids.space, order=-data.popularity)
    features = {POPULARITY: jnp.asarray(data.popularity, jnp.int32)}
    return Tables(codes=jnp.asarray(ids.codes), features=features), catalogue


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained generator and what it answers with."""

    params: PyTree
    tables: Tables
    catalogue: Catalogue
    ranker: Ranker
    training: dict[str, Any]
    """What the report says about training."""


def train(
    recipe: Recipe,
    place: Workplace,
    data: Prepared,
    tokens: Tokens,
    shape: MeshShape | None = None,
) -> Model:
    """Runs the training stages in order; each starts from the parameters of the one before.

    Finished stages only hand over their parameters.
    """
    mesh = make_mesh(shape or recipe.mesh)
    ids = tokens.ids
    tables, catalogue = index_of(data, tokens)
    ranker = Ranker(recipe.generator, ids.space, recipe.decoding, mesh)
    params, summary = None, []
    for number, stage in enumerate(recipe.stages):
        context = StageContext(
            generator=recipe.generator,
            space=ids.space,
            tables=tables,
            catalogue=catalogue,
            ranker=ranker,
            histories=data.histories,
            split=data.split,
            history=recipe.evaluation.history,
            rows=recipe.evaluation.rows,
            mesh=mesh,
            folder=stage_folder(place.folder, number, stage),
            writers=(JsonLines(place.folder / "metrics.jsonl", stage=number),),
            seed=recipe.seed,
            manifest={
                "space_id": ids.space_id,
                "assignment_id": ids.assignment_id,
                "histories": data.artefact.content,
                "generator": json_hash(to_json(recipe.generator, only_changed=True)),
                "stage": json_hash(to_json(stage, only_changed=True)),
            },
            params=params,
            texts=partial(item_table, data.dataset.folder, data.histories.items),
            shared=place.cache,
        )
        result = stage.run(context)
        params = result.params
        summary.append(stage_summary(recipe, stage, result, ids.space, data))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    training = {"parameters": parameters, "stages": summary}
    return Model(params, tables, catalogue, ranker, training)


def stage_summary(
    recipe: Recipe, stage: Any, result: FitResult, space: TokenSpace, data: Prepared
) -> dict[str, Any]:
    """What a training stage took: steps, seconds, FLOPs by formula, and what chose its result.

    FLOPs count the whole batch shape, padding included, forward and backward.
    """
    steps, available = int(result.state.step), len(data.split.validation)
    asked = getattr(stage, "validation_cases", 0) or available
    validations = sum("seconds_validation" in row for row in result.history)
    return {
        "stage": type(stage).__name__,
        "best_step": result.best_step,
        "last_step": steps,
        "stopped": result.stopped,
        "seconds": round(result.seconds, 1),
        "flops": steps * stage.flops(recipe.generator, space),
        "validations": validations,
        "validation_cases": min(asked, available) if validations else 0,
    }


def stage_folder(folder: Path, number: int, stage: Any) -> Path:
    """Where a training stage keeps its checkpoints."""
    return folder / TRAINING / f"{number}-{type(stage).__name__.lower()}"


@dataclasses.dataclass(frozen=True)
class Finished:
    """A trained run, opened for answering."""

    recipe: Recipe
    data: Prepared
    tokens: Tokens
    model: Model


def open_finished(folder: Path) -> Finished:
    """Opens a run folder for answering, on all devices of this machine.

    Needs the folder alone: not the log's source, not the cache of stages.

    Raises:
        ValueError: it is no run, it is not trained yet, or a file is damaged.
    """
    if not (folder / "recipe.json").is_file():
        raise ValueError(
            f"{folder} is not a run: it has no recipe.json. Runs are made by `jaxrec run RECIPE`."
        )
    keep_programs()
    recipe = load_recipe(folder / "recipe.json")
    parts = [stage_folder(folder, number, stage) for number, stage in enumerate(recipe.stages)]
    if not all((part / "finished.json").is_file() for part in parts):
        raise ValueError(
            f"{folder} is not trained yet; run `jaxrec run {folder / 'recipe.json'}` to the end."
        )
    place = Workplace(folder.parent, folder)
    artefacts = {name: open_artefact(place.artefacts / name) for name in stages.CACHED}
    data = stages.load_prepared(recipe, artefacts["dataset"], artefacts["histories"])
    tokens = stages.load_tokens(artefacts["tokens"])
    model = train(recipe, place, data, tokens, MeshShape())
    return Finished(recipe, data, tokens, model)


def evaluate(
    recipe: Recipe,
    place: Workplace,
    data: Prepared,
    vectors: Vectors,
    tokens: Tokens,
    model: Model,
) -> None:
    """Judges the trained generator on the test cases and writes the run's results."""
    start = time.perf_counter()
    protocol = protocol_of(recipe, data, vectors)
    judgement = judge(
        model.params,
        model.tables,
        model.catalogue,
        model.ranker,
        data.histories,
        data.split,
        protocol,
        recipe.evaluation,
        data.popularity,
        temperature=getattr(recipe.stages[-1].objective, "temperature", 1.0),
    )
    write_results(recipe, place, data, vectors, tokens, model.training, protocol, judgement)
    print(f"judged in {time.perf_counter() - start:.1f} s", file=sys.stderr)


def protocol_of(recipe: Recipe, data: Prepared, vectors: Vectors) -> Protocol:
    """Everything that a number of this run depends on."""
    cases = len(data.split.test)
    if recipe.evaluation.max_cases:
        cases = min(cases, recipe.evaluation.max_cases)
    encoder = vectors.report["encoder"]
    return Protocol(
        dataset=data.manifest["name"],
        num_users=data.histories.num_users,
        num_items=data.histories.num_items,
        num_events=data.histories.num_events,
        num_cases=cases,
        min_user=recipe.data.min_user,
        min_item=recipe.data.min_item,
        split=data.split.name,
        tie_policy=recipe.data.ties,
        history_cap=recipe.evaluation.history,
        decoder=type(recipe.decoding).__name__,
        beam_width=getattr(recipe.decoding, "width", None),
        selected_on=getattr(recipe.stages[-1], "selected_on", "the last step"),
        seed=recipe.seed,
        surrogate=f"{encoder} for the text encoder" if vectors.report["surrogate"] else None,
    )
