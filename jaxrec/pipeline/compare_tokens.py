"""Tokenizers side by side: runs opened at their semantic IDs, judged alike, with examples.

All are judged by the codes that a generator would be trained on, without the extra digit, by one
set of categories and one set of training pairs.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.files import read_array, read_json
from jaxrec.pipeline import stages
from jaxrec.pipeline.cache import MANIFEST, open_artefact
from jaxrec.pipeline.categories import find_categories
from jaxrec.pipeline.compare import run_names
from jaxrec.pipeline.compare_tokens_examples import (
    collision_groups,
    example_groups,
    hot_spots,
)
from jaxrec.pipeline.compare_tokens_measures import measure_rows
from jaxrec.pipeline.run import run
from jaxrec.pipeline.stages import Prepared, Tokens, training_sequences
from jaxrec.recipe import from_json, load_recipe
from jaxrec.tokenization.item_ids import ItemIds, has_item_ids
from jaxrec.tokenization.leaves import Decode
from jaxrec.tokenization.quality import quality_report
from jaxrec.tokenization.quality_behaviour import successive_pairs


@dataclasses.dataclass(frozen=True, eq=False)
class TokenRun:
    """A run that has come to its semantic IDs."""

    name: str
    folder: Path
    data: Prepared
    vectors: np.ndarray
    """float32[n, d], what was quantized."""
    vectors_id: str
    """Hash of the vectors."""
    tokenizer: Any
    """The component that made the semantic IDs."""
    tokens: Tokens

    @property
    def codes(self) -> np.ndarray:
        """int32[n, l], the semantic levels of the IDs."""
        return np.asarray(self.tokens.ids.codes)[:, : self.tokens.ids.semantic_levels]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each semantic level."""
        return self.tokens.ids.space.sizes[: self.tokens.ids.semantic_levels]

    def decoder(self) -> Decode | None:
        """Codes to vectors; None where the IDs came without codebooks."""
        quantizer: Any = getattr(self.tokenizer, "quantizer", None)
        ids = self.tokens.ids
        if type(quantizer).__name__ != ids.quantizer:
            return None
        state = quantizer.from_arrays(ids.state)
        return lambda codes: np.asarray(quantizer.decode(state, codes))


def gather_runs(paths: Sequence[Path], runs: Path) -> list[TokenRun]:
    """Opens run folders, and runs recipe files as far as their semantic IDs first.

    Args:
        paths: at least two run folders or recipe files (.py), none twice.
        runs: the folder that the runs of recipe files live in.

    Raises:
        ValueError: fewer than two, one twice, a folder that is no run or has no semantic IDs,
            sparse item ids, or different catalogues. Nothing is fitted before all of it is known.
    """
    if len(paths) < 2:
        given = f"only {paths[0]}" if paths else "none"
        raise ValueError(
            f"a comparison needs at least two tokenizers, got {given}; for example: jaxrec "
            "tokenize --compare runs/quickstart configs/beauty_decoder.py"
        )
    recipes = {path: load_recipe(path) for path in paths if path.suffix == ".py"}
    folders = [runs / recipes[path].name if path in recipes else path for path in paths]
    _check_different(paths, folders)
    for path in paths:
        if path not in recipes:
            _check_folder(path)
        elif isinstance(recipes[path].tokenizer, ItemIds):
            raise ValueError(_item_ids_told(path))
    names = run_names(folders)
    for recipe in recipes.values():
        run(recipe, runs=runs, last="data")
    _check_catalogues(names, folders)
    for recipe in recipes.values():
        run(recipe, runs=runs, last="tokens")
    return [open_tokens(folder, name) for folder, name in zip(folders, names)]


def open_tokens(folder: Path, name: str) -> TokenRun:
    """Opens a run at its semantic IDs; needs neither checkpoints nor the cache of stages.

    Raises:
        ValueError: it is no run, has no semantic IDs or only item ids, or is damaged.
    """
    _check_folder(folder)
    recipe = load_recipe(folder / "recipe.json")
    artefacts = {each: open_artefact(folder / "artefacts" / each) for each in stages.CACHED}
    tokens = stages.load_tokens(artefacts["tokens"])
    if has_item_ids(tokens.ids):
        raise ValueError(_item_ids_told(folder))
    return TokenRun(
        name=name,
        folder=folder,
        data=stages.load_prepared(recipe, artefacts["dataset"], artefacts["histories"]),
        vectors=read_array(artefacts["vectors"].folder / "vectors.npy"),
        vectors_id=artefacts["vectors"].content,
        # Until a run trains, its recipe may be another one than made what lies here.
        tokenizer=from_json(read_json(artefacts["tokens"].folder / MANIFEST)["component"]),
        tokens=tokens,
    )


def compare_tokens(
    runs: Sequence[TokenRun], *, column: str = "", take: str = "first"
) -> dict[str, Any]:
    """Everything that is told about tokenizers of one catalogue, JSON-ready.

    Args:
        runs: of `gather_runs`.
        column: column of the items with their categories; by default the first of `COLUMNS`
            (`categories.py`) that tells items apart, if there is one.
        take: which of an item's labels counts, the `first` or the `deepest`.

    Returns:
        `dataset`, `n_items`, `categories` (the column and which label, or None), `notes`
        (sentences), `measures` (`measure_rows`), and `runs`: by name what a run is, its `quality`
        (`quality_report`) and the examples `groups`, `collisions`, `hot_spots`.

    Raises:
        ValueError: no such column.
    """
    data = runs[0].data
    column, labels = find_categories(
        data.dataset.folder, data.histories.items, column=column, take=take
    )
    pairs = successive_pairs(training_sequences(data.histories, data.split))
    told = {
        each.name: _describe(each, labels, pairs if len(pairs) else None, data.popularity)
        for each in runs
    }
    same_vectors = len({each.vectors_id for each in runs}) == 1
    qualities = {name: entry["quality"] for name, entry in told.items()}
    return {
        "dataset": data.manifest["name"],
        "n_items": data.histories.num_items,
        "categories": {"column": column, "take": take} if column else None,
        "notes": _notes(runs, column, take, same_vectors=same_vectors),
        "measures": measure_rows(qualities, same_vectors=same_vectors),
        "runs": told,
    }


def _describe(
    each: TokenRun, labels: list[str] | None, pairs: np.ndarray | None, popularity: np.ndarray
) -> dict[str, Any]:
    codes, titles = each.codes, each.data.titles
    quality = quality_report(
        codes,
        each.sizes,
        vectors=each.vectors,
        decode=each.decoder(),
        categories=labels,
        pairs=pairs,
    )
    ids = each.tokens.ids
    return {
        "folder": str(each.folder),
        "quantizer": ids.quantizer,
        "collision_policy": each.tokens.quality["collisions"]["policy"],
        "sizes": list(each.sizes),
        "space_id": ids.space_id,
        "assignment_id": ids.assignment_id,
        "quality": quality,
        "groups": example_groups(codes, titles, popularity, labels),
        "collisions": collision_groups(codes, titles, popularity),
        "hot_spots": hot_spots(codes, each.sizes, titles, popularity),
    }


def _notes(runs: Sequence[TokenRun], column: str, take: str, *, same_vectors: bool) -> list[str]:
    first, notes = runs[0], []
    if column:
        label = "first label that tells items apart" if take == "first" else "deepest label"
        notes.append(
            f"The category of an item is the {label} of its column {column!r}. Where vectors were "
            "made of a text that names it, purity says only that the codes kept it."
        )
    else:
        notes.append("The items have no column of categories; purity is left out.")
    notes.append(
        f"Pairs are the successive items of the training histories of {first.name} (split "
        f"{first.data.split.name}); nothing held out is among them."
    )
    key = (first.data.artefact.content, first.data.split.name)
    others = [r.name for r in runs if (r.data.artefact.content, r.data.split.name) != key]
    if others:
        notes.append(
            f"{', '.join(others)}: made with other histories or another split than {first.name}. "
            "A quantizer that reads behaviour may know pairs here that are held out there."
        )
    if not same_vectors:
        notes.append(
            "These tokenizers quantized different vectors: reconstruction and cosines are not "
            "compared, and no best one is marked."
        )
    if without := [each.name for each in runs if each.decoder() is None]:
        notes.append(
            f"{', '.join(without)}: came without codebooks, so nothing can be decoded, and "
            "reconstruction and neighbourhoods are left out."
        )
    return notes


def _check_different(paths: Sequence[Path], folders: Sequence[Path]) -> None:
    found: dict[str, Path] = {}
    for path, folder in zip(paths, folders):
        here = os.path.realpath(folder)
        if here in found:
            told = (
                f"{path} is given twice"
                if path == found[here]
                else (f"{found[here]} and {path} are the same run, {folder}")
            )
            raise ValueError(f"{told}; name every tokenizer once, and every recipe differently.")
        found[here] = path


def _item_ids_told(path: Path) -> str:
    return (
        f"{path} has sparse item ids, which have no codes to compare; give runs with semantic IDs "
        "(tokenizer=Tokenizer(...) or PublishedIds(...))."
    )


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise ValueError(
            f"{folder} does not exist; give folders of runs such as runs/quickstart, or recipe "
            "files such as configs/quickstart.py."
        )
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file and no recipe (.py); give the folder of a run.")
    if not (folder / "recipe.json").is_file():
        raise ValueError(
            f"{folder} is not a run: it has no recipe.json. Runs are made by `jaxrec run RECIPE`."
        )
    if not (folder / "artefacts" / "tokens" / MANIFEST).is_file():
        raise ValueError(
            f"{folder} has no semantic IDs yet: `jaxrec tokenize {folder}` makes them."
        )


def _check_catalogues(names: Sequence[str], folders: Sequence[Path]) -> None:
    items = [read_array(folder / "artefacts/histories/items.npy") for folder in folders]
    for name, other in zip(names[1:], items[1:]):
        if np.array_equal(items[0], other):
            continue
        common = len(np.intersect1d(items[0], other))
        both = (
            "the same items in another order"
            if common == len(items[0]) == len(other)
            else (f"{len(items[0]):,} and {len(other):,} items, {common:,} in common")
        )
        raise ValueError(
            f"{names[0]} and {name} have different catalogues ({both}); only tokenizers of the "
            "same items in the same order can be compared. Give both the same data and filters."
        )
