"""The cached stages of a recipe: log, histories, item vectors, semantic IDs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrec.data.dataset import item_table, read_dataset, titles
from jaxrec.data.histories import Histories, prepare
from jaxrec.data.splits import Split, training_counts, training_items, training_positions
from jaxrec.evaluation.baselines import count_popularity
from jaxrec.files import read_json, write_json
from jaxrec.pipeline.cache import Artefact, run_stage
from jaxrec.pipeline.categories import find_categories
from jaxrec.recipe import Recipe
from jaxrec.representation.encoder import TrainingSequences
from jaxrec.tokenization.collisions import popularity_order
from jaxrec.tokenization.semantic_ids import SemanticIds

STAGES = ("data", "vectors", "tokens", "train", "report")
"""What a run consists of, in order; a run may stop after any of them."""

CACHED = ("dataset", "histories", "vectors", "tokens")
"""Stages whose output is an artefact."""


@dataclasses.dataclass(frozen=True)
class Workplace:
    """Where a run keeps its things."""

    runs: Path
    folder: Path

    @property
    def cache(self) -> Path:
        """Outputs of all runs' stages, by what they were asked to do."""
        return self.runs / ".cache"

    @property
    def artefacts(self) -> Path:
        """This run's copies of them."""
        return self.folder / "artefacts"

    def stage(self, name: str, component: Any, inputs: dict[str, Any], work: Any) -> Artefact:
        """Runs a stage, or takes its output from the cache."""
        return run_stage(name, component, inputs, work, cache=self.cache, run_folder=self.artefacts)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The log, ready for everything that follows."""

    dataset: Artefact
    artefact: Artefact
    manifest: dict[str, Any]
    """The dataset's description: name, counts, source, licence."""
    histories: Histories
    split: Split
    titles: list[str]
    """What to call each catalogue row in front of people."""
    popularity: np.ndarray
    """int64[n]: training events of each item."""


def prepare_data(recipe: Recipe, place: Workplace) -> Prepared:
    """The first two stages: the log as a canonical folder, then as ragged histories.

    The split is not stored: it follows from histories and recipe at no cost.
    """
    source = recipe.data.source
    dataset = place.stage("dataset", source, {"source": source.fingerprint()}, source.write)

    def work(folder: Path) -> None:
        data = recipe.data
        log = read_dataset(dataset.folder)
        histories = prepare(log, min_user=data.min_user, min_item=data.min_item, ties=data.ties)
        histories.save(folder)
        write_json(folder / "titles.json", titles(log, histories.items))

    inputs = {
        "dataset": dataset.content,
        "filters": [recipe.data.min_user, recipe.data.min_item, recipe.data.ties],
    }
    artefact = place.stage("histories", source, inputs, work)
    return load_prepared(recipe, dataset, artefact)


def load_prepared(recipe: Recipe, dataset: Artefact, artefact: Artefact) -> Prepared:
    """Opens the two prepared stages; needs neither the log's source nor a log reader."""
    histories = Histories.load(artefact.folder, verify=False)
    split = recipe.data.split(histories)
    return Prepared(
        dataset=dataset,
        artefact=artefact,
        manifest=read_json(dataset.folder / "dataset.json"),
        histories=histories,
        split=split,
        titles=read_json(artefact.folder / "titles.json"),
        popularity=count_popularity(
            np.asarray(histories.offsets),
            split.train_end,
            np.asarray(histories.item),
            histories.num_items,
        ),
    )


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Item vectors and how they came about."""

    artefact: Artefact
    vectors: np.ndarray
    report: dict[str, Any]


def make_vectors(recipe: Recipe, place: Workplace, data: Prepared) -> Vectors:
    """The representation stage: items to float32[n, d]."""

    def work(folder: Path) -> None:
        table = item_table(data.dataset.folder, data.histories.items)
        mask = training_items(data.histories, data.split)
        result = recipe.items(
            table, mask, recipe.seed, training_sequences(data.histories, data.split)
        )
        np.save(folder / "vectors.npy", result.vectors, allow_pickle=False)
        write_json(folder / "report.json", result.report)

    inputs = {
        "dataset": data.dataset.content,
        "histories": data.artefact.content,
        "split": data.split.name,
        "files": recipe.items.fingerprint(),
        "seed": recipe.seed,
    }
    artefact = place.stage("vectors", recipe.items, inputs, work)
    return Vectors(
        artefact,
        np.load(artefact.folder / "vectors.npy", allow_pickle=False),
        read_json(artefact.folder / "report.json"),
    )


def training_sequences(histories: Histories, split: Split) -> TrainingSequences:
    """The training events alone, which is all that an encoder of behaviour may see."""
    counts = training_counts(histories, split)
    return TrainingSequences(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        item=np.asarray(histories.item)[training_positions(histories, split)],
    )


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Semantic IDs and their quality."""

    artefact: Artefact
    ids: SemanticIds
    quality: dict[str, Any]


def make_tokens(recipe: Recipe, place: Workplace, data: Prepared, vectors: Vectors) -> Tokens:
    """The tokenization stage: vectors to semantic IDs, judged before anything is trained.

    They are judged by the categories of the items, where the data set has a column of them, and by
    the training histories.
    """

    def work(folder: Path) -> None:
        column, categories = find_categories(data.dataset.folder, data.histories.items)
        ids, quality = recipe.tokenizer(
            jax.random.key(recipe.seed),
            vectors.vectors,
            items=data.histories.items,
            order=popularity_order(data.popularity),
            train_mask=training_items(data.histories, data.split),
            fit_on=recipe.items.fit_on,
            sequences=training_sequences(data.histories, data.split),
            categories=categories,
        )
        ids.save(folder)
        if "categories" in quality.get("quality", {}):
            quality["quality"]["categories"]["column"] = column
        write_json(folder / "quality.json", quality)

    inputs = {
        "vectors": vectors.artefact.content,
        "dataset": data.dataset.content,
        "histories": data.artefact.content,
        "split": data.split.name,
        "fit_on": recipe.items.fit_on,
        "seed": recipe.seed,
    }
    read = getattr(recipe.tokenizer, "fingerprint", None)
    if read and (files := read()):
        inputs["files"] = files
    artefact = place.stage("tokens", recipe.tokenizer, inputs, work)
    return load_tokens(artefact)


def load_tokens(artefact: Artefact) -> Tokens:
    """Opens the tokenization stage."""
    ids = SemanticIds.load(artefact.folder)
    return Tokens(artefact, ids, read_json(artefact.folder / "quality.json"))
