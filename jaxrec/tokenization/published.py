"""Semantic IDs that others published, in the place of a tokenizer; and ours, written for others.

The file is one JSON object from item to ID. Three spellings are read:

    {"0": ["<a_183>", "<b_70>", "<c_232>"]}          LC-Rec, LETTER, MiniOneRec: *.index.json
    {"0": "<a_183><b_70><c_232>"}
    {"B08": {"sid": "SID_005_003_000", ...}}         or the text itself
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import PRNGKeyArray

from jaxrec.data.tables import fingerprint_files, json_object
from jaxrec.files import file_hash, write_text
from jaxrec.tokenization.collisions import ExtraDigit
from jaxrec.tokenization.quality_categories import Categories
from jaxrec.tokenization.quantizer import check_vectors
from jaxrec.tokenization.semantic_ids import SemanticIds, codes_as_text, codes_from_text
from jaxrec.tokenization.tokenizer import finish

_LARGEST_CODE = 2**20 - 1
"""Bounds the vocabulary by the file's good sense: one absurd code would ask for it all."""
_NAMED = 3
_SHOWN = 60


@dataclasses.dataclass(frozen=True)
class PublishedIds:
    """Reads an index file; stands where `Tokenizer` stands in a recipe.

    Every item of the catalogue needs an ID; items that only the file has are left out and counted.
    Published IDs collide (LETTER's for Beauty: 12,088 IDs for 12,101 items), and the policy decides
    what becomes of that. The token space is bound to the content of the file, whatever part of it
    the catalogue uses.

    Raises:
        ValueError: a policy that needs codebooks, or sizes that are not positive.
    """

    path: str
    """The index file (.json, .json.gz)."""
    shift: int = 0
    """An item's key in the file is its id minus this: 1 where ids count from 1 and keys from 0."""
    levels: int = 0
    """Levels that are read, from the first; 0 reads all. Leaves out a number that a publisher
    appended to colliding IDs only."""
    sizes: tuple[int, ...] = ()
    """Codes of each level; by default the largest code in the file plus one."""
    collisions: Any = ExtraDigit()
    """ExtraDigit(), RandomLast() or Keep()."""

    schema_version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.collisions.reads_vectors:
            raise ValueError(
                "published semantic IDs come without codebooks, which "
                f"{type(self.collisions).__name__} measures distances with; use ExtraDigit(), "
                "RandomLast() or Keep()."
            )
        if self.levels < 0 or any(size < 1 for size in self.sizes):
            raise ValueError(
                f"levels and sizes must be positive, got {self.levels} and {self.sizes}; 0 and () "
                "take the file's."
            )

    def fingerprint(self) -> dict[str, Any]:
        """Size and SHA-256 of the file: it is an input of the stage, not a part of the recipe.

        Raises:
            ValueError: there is no such file.
        """
        return fingerprint_files(Path(self.path))

    def __call__(
        self,
        key: PRNGKeyArray | None = None,
        vectors: Any = None,
        *,
        items: Sequence[str] | np.ndarray,
        order: np.ndarray | None = None,
        train_mask: np.ndarray | None = None,
        fit_on: str = "all_items",
        sequences: Any = None,
        categories: Categories | None = None,
    ) -> tuple[SemanticIds, dict[str, Any]]:
        """Semantic IDs of a catalogue. Nothing is fitted: `key`, `train_mask` and `fit_on` are
        unused.

        Args:
            vectors: Float[n, d], row = catalogue row: for the quality report only, may be None.
            items: n item ids.
            order: rows from first served to last; catalogue order by default.
            sequences: the training events, for the quality report only.
            categories: of the n items, likewise.

        Returns:
            The artefact, and the report of `Tokenizer`; `fit` says what was read.

        Raises:
            ValueError: the file is missing or malformed, lacks an item of the catalogue, or holds
                codes beyond `sizes`; bad vectors.
        """
        del key, train_mask, fit_on
        names = [str(item) for item in items]
        points = None if vectors is None else np.asarray(check_vectors(vectors))
        if points is not None and len(names) != len(points):
            raise ValueError(f"{len(names)} item ids for {len(points)} vectors; give one each.")
        index, table = read_index(self.path, self.levels)
        rows = self._rows(index, names)
        ids, report = finish(
            self.collisions,
            table[rows],
            self._sizes(table),
            items=names,
            order=order,
            vectors=points,
            quantizer=type(self).__name__,
            # Published codes of equal sizes mean different things: the content names the space.
            state={"index": np.frombuffer(_content(index, table), np.uint8)},
            fit={
                "index": Path(self.path).name,
                "sha256": file_hash(self.path),
                "shift": self.shift,
                "n_index_items": len(index),
                "n_unused_items": len(index) - len(set(rows.tolist())),
                "fit_on": "published",
            },
            sequences=sequences,
            categories=categories,
        )
        report["quality"]["advice"] += self._doubts(index, names)
        return ids, report

    def _rows(self, index: dict[str, int], names: Sequence[str]) -> np.ndarray:
        """Rows of the file's table for the items of the catalogue."""
        keys = [_key(name, self.shift) for name in names]
        missing = [name for name, key in zip(names, keys) if key not in index]
        if missing:
            found = {
                shift: sum(_key(name, shift) in index for name in names) for shift in (-1, 0, 1)
            }
            best = max(found, key=lambda shift: found[shift])
            keys_shown = [repr(key[:_SHOWN]) for key in list(index)[:_NAMED]]
            hint = (
                f" With shift={best} it would have {found[best]}."
                if found[best] > len(names) - len(missing)
                else f" Its keys look like {', '.join(keys_shown)}."
            )
            raise ValueError(
                f"{self.path} has no semantic ID for {len(missing)} of {len(names)} items (shift "
                f"{self.shift}), among them {', '.join(map(repr, missing[:_NAMED]))}.{hint}"
            )
        return np.array([index[key] for key in keys], np.int64)

    def _doubts(self, index: dict[str, int], names: Sequence[str]) -> list[str]:
        """Ids from 1 and keys from 0 fit but for the last item, and each item gets another's ID."""
        if self.shift or "0" not in index or "0" in names or not all(map(str.isdigit, names)):
            return []
        return [
            "The index has an item '0' and the catalogue has none: if ids count from 1 and the "
            "index from 0, set shift=1."
        ]

    def _sizes(self, table: np.ndarray) -> tuple[int, ...]:
        needed = tuple(int(size) + 1 for size in table.max(0))
        if not self.sizes:
            return needed
        if len(self.sizes) != len(needed) or any(
            size < least for size, least in zip(self.sizes, needed)
        ):
            raise ValueError(
                f"{self.path} needs levels of at least {needed} codes, got sizes {self.sizes}."
            )
        return self.sizes


def read_index(path: Path | str, levels: int = 0) -> tuple[dict[str, int], np.ndarray]:
    """Reads an index file.

    Args:
        path: of the file.
        levels: how many are read, 0 for all.

    Returns:
        Row of each item, and codes int32[n, l] in the order of the file.

    Raises:
        ValueError: no such file, not JSON, a value that is no semantic ID, levels out of order
            (`<b_7>` first), or items with different numbers of levels.
    """
    content = json_object(path)
    if not content:
        raise ValueError(f"{path} holds not one semantic ID.")
    rows = [_codes(value, f"{path}, item {item[:_SHOWN]!r}") for item, value in content.items()]
    lengths = sorted({len(row) for row in rows})
    if lengths[0] < levels or (not levels and len(lengths) > 1):
        examples = (
            f"{item[:_SHOWN]!r} has {length}"
            for length in lengths[:_NAMED]
            for item in [next(item for item, row in zip(content, rows) if len(row) == length)]
        )
        raise ValueError(
            f"{path}: all items need equally many levels (levels={levels}), but "
            f"{', '.join(examples)}. Where a number was appended to colliding IDs only, leave it "
            f"out with levels={lengths[0]} and let the collision policy decide."
        )
    rows = [row[: levels or None] for row in rows]
    return {item: row for row, item in enumerate(content)}, np.array(rows, np.int32)


def write_index(ids: SemanticIds, path: Path | str, *, extra_digit: bool = True) -> None:
    """Writes semantic IDs as others read them: {"item": ["<a_12>", "<b_7>", ...], ...}.

    Args:
        ids: the artefact.
        path: the file to write, atomically.
        extra_digit: write the digit that tells colliding items apart as a last level; without it
            the file says what the quantizer said, and items may share an ID.
    """
    levels = ids.space.levels if extra_digit else ids.semantic_levels
    index = {
        str(item): re.findall("<[^>]*>", codes_as_text(row[:levels]))
        for item, row in zip(ids.items, ids.codes)
    }
    write_text(path, json.dumps(index, ensure_ascii=False) + "\n")


def _key(item: str, shift: int) -> str:
    """The item's key in the file; an id that is no number cannot be shifted, and stays as it is."""
    if not shift or not re.fullmatch("-?[0-9]{1,18}", item):
        return item
    return str(int(item) - shift)


def _codes(value: Any, where: str) -> list[int]:
    if isinstance(value, dict):
        value = value.get("sid")
    text = "".join(value) if _is_texts(value) else value
    if not isinstance(text, str):
        raise ValueError(
            f"{where}: {str(value)[:_SHOWN]!r} is no semantic ID; it looks like "
            '["<a_12>", "<b_7>"] or "SID_012_007".'
        )
    if re.fullmatch("SID(_[0-9]{1,9})+", text):
        codes = [int(code) for code in text.split("_")[1:]]
    else:
        try:
            codes = codes_from_text(text).tolist()
        except (ValueError, OverflowError):
            raise ValueError(
                f"{where}: {text[:_SHOWN]!r} is no semantic ID; its levels must be lettered in "
                "order, as in <a_12><b_7><c_201>."
            ) from None
    if max(codes) > _LARGEST_CODE:
        raise ValueError(f"{where}: code {max(codes)} is larger than {_LARGEST_CODE}.")
    return codes


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _content(index: dict[str, int], table: np.ndarray) -> bytes:
    """SHA-256 of the items and their codes, in the order of the items' names."""
    lines = (f"{item}\t{codes_as_text(table[index[item]])}" for item in sorted(index))
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).digest()
