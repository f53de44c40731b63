"""New items in the index of a run, with the codebooks that its generator was trained on.

version = extend_run(Path("runs/quickstart"), Path("new.npy"), ["4711", "4712"])
version.save(Path("runs/quickstart-index-2"))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.files import publish, read_array, read_json, write_json
from jaxrec.pipeline.cache import open_artefact
from jaxrec.recipe import Recipe, load_recipe
from jaxrec.representation.precomputed import Precomputed
from jaxrec.tokenization.drift import drift_report
from jaxrec.tokenization.extend import extend, open_quantizer
from jaxrec.tokenization.semantic_ids import SemanticIds
from jaxrec.tokenization.tokenizer import Tokenizer

_MOST_DIFFERENT = 0.01
"""Share of old items that another machine's rounding may move to other codes."""


@dataclasses.dataclass(frozen=True)
class Version:
    """An index with new items, and what can be said about them."""

    ids: SemanticIds
    report: dict[str, Any]
    """Of `extend`."""
    drift: dict[str, Any]
    """Of `drift_report`."""

    def save(self, folder: Path) -> None:
        """Writes the index, `extended.json` and `drift.json` into a folder that appears whole."""

        def fill(target: Path) -> None:
            self.ids.save(target)
            write_json(target / "extended.json", self.report)
            write_json(target / "drift.json", self.drift)

        publish(folder, fill)


def extend_run(
    run: Path, vectors: Path, items: Sequence[str], *, index: Path | None = None
) -> Version:
    """Gives new items semantic IDs in the token space of a run.

    Needs the run's recipe and its stages `vectors` and `tokens`; it need not be trained.

    Args:
        run: the run's folder.
        vectors: file of one vector per new item (.npy, .safetensors), as the run's representation
            makes them, its steps included.
        items: ids of the new items, in the order of the file, which is that of serving.
        index: folder of an earlier version that the new one descends from; the run's own index by
            default.

    Raises:
        ValueError: no run with semantic IDs, IDs that no codebooks made, an index of another token
            space, a recipe that did not make these IDs, bad vectors, items that the index has, or
            no place for an item.
    """
    recipe, tokenizer = _open_recipe(run)
    tokens = open_artefact(run / "artefacts" / "tokens").folder
    own = SemanticIds.load(tokens)
    fitted = read_array(open_artefact(run / "artefacts" / "vectors").folder / "vectors.npy")
    parent = own if index is None else SemanticIds.load(index)
    if parent.space_id != own.space_id:
        raise ValueError(
            f"{index} is no version of the index of {run}: its token space is "
            f"{parent.space_id[:12]}..., the run's is {own.space_id[:12]}...."
        )
    state, _ = open_quantizer(own, tokenizer.quantizer)
    changed = read_json(tokens / "quality.json")["collisions"]["changed_rows"]
    codes = np.asarray(tokenizer.quantizer.encode(state, fitted))
    check_agreement(codes, own, changed, run)
    new = read_vectors(vectors, items)
    if new.shape[1] != fitted.shape[1]:
        raise ValueError(
            f"{vectors} has vectors of width {new.shape[1]}, and those of {run} have "
            f"{fitted.shape[1]}; make them with its representation "
            f"({type(recipe.items.encoder).__name__}, then "
            f"{', '.join(type(step).__name__ for step in recipe.items.steps) or 'no step'})."
        )
    ids, report = extend(parent, tokenizer.quantizer, tokenizer.collisions, new, items)
    return Version(ids, report, drift_report(tokenizer.quantizer, state, fitted, new))


def read_vectors(path: Path, items: Sequence[str]) -> np.ndarray:
    """Vectors of new items from a file of one row each, float32[m, d].

    Raises:
        ValueError: as `Precomputed`: no readable matrix, or ids that do not name each row once.
    """
    reader = Precomputed(str(path), ids=tuple(items))
    table: dict[str, Any] = {"item": list(items)}
    return reader.encode([], table=table, fit_mask=np.ones(len(items), bool), seed=0)


def read_items(path: Path) -> list[str]:
    """Item ids from a text file, one a line.

    Raises:
        ValueError: no such file, not UTF-8, an empty line, or no line at all.
    """
    if not path.is_file():
        raise ValueError(f"there is no file of ids {path}; it holds one item id a line.")
    try:
        items = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8, and should be one item id a line.") from None
    blank = [number for number, item in enumerate(items, start=1) if not item.strip()]
    if blank or not items:
        place = f"line {blank[0]} is empty" if blank else "it is empty"
        raise ValueError(f"{path} must hold one item id a line, and {place}.")
    return items


def _open_recipe(run: Path) -> tuple[Recipe, Tokenizer]:
    """The recipe of a run whose semantic IDs a quantizer made, and its tokenizer."""
    if not (run / "recipe.json").is_file():
        raise ValueError(
            f"{run} is not a run: it has no recipe.json. Runs are made by `jaxrec run RECIPE`."
        )
    recipe = load_recipe(run / "recipe.json")
    if not isinstance(recipe.tokenizer, Tokenizer):
        raise ValueError(
            f"the semantic IDs of {run} come from {type(recipe.tokenizer).__name__}, which has no "
            "codebooks to encode new items with; make its IDs anew with the new items in, and "
            "train again."
        )
    return recipe, recipe.tokenizer


def check_agreement(codes: np.ndarray, ids: SemanticIds, changed: list[int], run: Path) -> None:
    """Finds settings that encode otherwise than when the index was made: equal arrays do not tell
    all settings apart.

    Args:
        codes: int[n, l], what the old vectors are encoded to now.
        ids: the index.
        changed: rows whose codes the collision policy changed; they say nothing.
        run: whose recipe it is, for the error.

    Raises:
        ValueError: more than 1 % of the other rows have other codes than in the index.
    """
    untouched = np.delete(np.arange(ids.num_items), changed)
    differs = (codes != ids.codes[:, : ids.semantic_levels]).any(1)[untouched]
    if len(untouched) and differs.mean() > _MOST_DIFFERENT:
        raise ValueError(
            f"{run}/recipe.json gives {differs.mean():.0%} of the old items other codes than they "
            "have: it was edited after the semantic IDs were made. Run it again."
        )
