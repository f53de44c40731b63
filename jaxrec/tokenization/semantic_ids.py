"""The SemanticIds artefact: item <-> codes, both ways, with the two hashes that bind it.

`space_id` names the token space (levels, sizes, quantizer): a checkpoint is bound to it.
`assignment_id` names one index over that space (which item has which codes, and its parent):
indexes may be exchanged under a checkpoint. `extend.py` makes one from another.

The artefact holds the quantizer's arrays and its class name, which is enough to tell spaces apart.
The settings of quantizer and collision policy are in the recipe of the run that made it; encoding
new items needs them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.files import file_hash, json_hash, read_json, write_bytes, write_json
from jaxrec.tokenization.leaves import bucket_numbers
from jaxrec.types import TokenSpace

SCHEMA_VERSION = 1
MANIFEST = "semantic_ids.json"
ARRAYS = "semantic_ids.npz"
_NAMED = 5
_STATE = "state/"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(type(each) is kind for each in value)


_KINDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("quantizer", "space_id", "assignment_id", "parent", "sha256"), _is_text),
    "sizes": _is_list_of(int),
    "has_extra_digit": lambda value: type(value) is bool,
    "specials": _is_list_of(str),
}
"""What the manifest says, and of what kind it is."""


@dataclasses.dataclass(frozen=True, eq=False)
class SemanticIds:
    """Which item has which codes, over which token space.

    Raises:
        ValueError: codes that do not fit the space, as many ids as there are items missing, an item
            named twice.
    """

    codes: np.ndarray
    """int32[n, l], row = catalogue row; the extra digit, where there is one, is last."""
    space: TokenSpace
    items: np.ndarray
    """str[n], item ids."""
    quantizer: str
    """Name of the quantizer's class."""
    state: Mapping[str, np.ndarray]
    """The quantizer's arrays (`quantizer.to_arrays`): what encodes new items."""
    parent: str = ""
    """`assignment_id` of the index this one was derived from; empty for a first one."""

    def __post_init__(self) -> None:
        codes, items = np.asarray(self.codes), np.asarray(self.items)
        if codes.ndim != 2 or codes.dtype.kind not in "iu" or items.shape != (len(codes),):
            raise ValueError(
                f"SemanticIds needs integer codes [n, l] and n item ids, got {codes.dtype} "
                f"{codes.shape} and {items.shape}."
            )
        if not len(codes) or codes.shape[1] != self.space.levels:
            raise ValueError(
                f"codes of shape {codes.shape} do not fit a space of {self.space.levels} levels; "
                "there must be at least one item."
            )
        bad = ((codes < 0) | (codes >= np.asarray(self.space.sizes))).any(1)
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(
                f"{int(bad.sum())} items have codes out of range, first {str(items[row])!r} with "
                f"{codes[row].tolist()}; the levels have {self.space.sizes} codes."
            )
        names, counts = np.unique(items.astype(str), return_counts=True)
        if (counts > 1).any():
            raise ValueError(
                f"{int((counts > 1).sum())} items are named more than once, among them "
                f"{', '.join(names[counts > 1][:_NAMED])}."
            )
        object.__setattr__(self, "codes", np.ascontiguousarray(codes, np.int32))
        object.__setattr__(self, "items", items.astype(str))
        object.__setattr__(
            self, "state", {name: np.asarray(self.state[name]) for name in sorted(self.state)}
        )

    @property
    def num_items(self) -> int:
        """Items of the catalogue."""
        return len(self.items)

    @property
    def semantic_levels(self) -> int:
        """Levels that come from the quantizer."""
        return self.space.semantic_levels

    @cached_property
    def space_id(self) -> str:
        """Hash of levels, sizes and the quantizer's state, 64 hexadecimal digits."""
        return json_hash(
            {
                "sizes": list(self.space.sizes),
                "has_extra_digit": self.space.has_extra_digit,
                "specials": list(self.space.specials),
                "quantizer": self.quantizer,
                "state": {name: _array_hash(array) for name, array in self.state.items()},
            }
        )

    @cached_property
    def assignment_id(self) -> str:
        """Hash of the rows (item, codes) in catalogue order, the space and the parent."""
        return json_hash(
            {
                "space_id": self.space_id,
                "items": json_hash(self.items.tolist()),
                "codes": _array_hash(self.codes),
                "parent": self.parent,
            }
        )

    def rows_of(self, items: Sequence[str]) -> np.ndarray:
        """Catalogue rows of items, int64[m].

        Raises:
            ValueError: an item the catalogue does not have.
        """
        if unknown := [item for item in items if item not in self._row_of]:
            raise ValueError(
                f"{len(unknown)} of {len(items)} items have no semantic ID, among them "
                f"{', '.join(map(repr, unknown[:_NAMED]))}."
            )
        return np.array([self._row_of[item] for item in items], np.int64)

    def codes_of(self, items: Sequence[str]) -> np.ndarray:
        """Codes of items, int32[m, l].

        Raises:
            ValueError: an item the catalogue does not have.
        """
        return self.codes[self.rows_of(items)]

    def items_of(self, codes: Any) -> list[list[str]]:
        """Items with these codes, in catalogue order; an empty list where there is none.

        Args:
            codes: int[m, p]; with p below the number of levels, the items below a prefix.

        Raises:
            ValueError: not integers of that shape.
        """
        array = np.asarray(codes)
        if array.ndim != 2 or array.shape[1] > self.space.levels or array.dtype.kind not in "iu":
            raise ValueError(
                f"items_of takes integer codes [m, up to {self.space.levels}], got {array.dtype} "
                f"{array.shape}; write one ID as [[1, 2, 3]]."
            )
        order, sorted_codes = self._sorted
        found = []
        for prefix in array:
            low, high = 0, len(order)
            for level, code in enumerate(prefix):
                column = sorted_codes[low:high, level]
                low, high = low + np.searchsorted(column, [code, code + 1])
            found.append(self.items[np.sort(order[low:high])].tolist())
        return found

    def summary(self) -> dict[str, Any]:
        """What is used in the end, JSON-ready: sizes, uniqueness and the two hashes."""
        return {
            "sizes": list(self.space.sizes),
            "has_extra_digit": self.space.has_extra_digit,
            "is_unique": int(bucket_numbers(self.codes).max()) + 1 == self.num_items,
            "space_id": self.space_id,
            "assignment_id": self.assignment_id,
        }

    def as_text(self, item: str) -> str:
        """The ID as people write it: `<a_12><b_7><c_201><d_0>`."""
        return codes_as_text(self.codes_of([item])[0])

    def save(self, folder: Path | str) -> None:
        """Writes `semantic_ids.npz`, then its manifest `semantic_ids.json`; each atomically."""
        buffer = io.BytesIO()
        arrays = {"codes": self.codes, "items": self.items}
        arrays |= {_STATE + name: array for name, array in self.state.items()}
        np.savez(buffer, allow_pickle=False, **arrays)
        content = buffer.getvalue()
        write_bytes(Path(folder) / ARRAYS, content)
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "quantizer": self.quantizer,
            "sizes": list(self.space.sizes),
            "has_extra_digit": self.space.has_extra_digit,
            "specials": list(self.space.specials),
            "semantic_levels": self.semantic_levels,
            "num_items": self.num_items,
            "space_id": self.space_id,
            "assignment_id": self.assignment_id,
            "parent": self.parent,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        write_json(Path(folder) / MANIFEST, manifest)

    @classmethod
    def load(cls, folder: Path | str) -> SemanticIds:
        """Reads what `save` wrote, and checks everything.

        Raises:
            ValueError: a file is missing, truncated or changed, another schema version, codes out
                of range, or hashes that do not match.
        """
        folder = Path(folder)
        manifest = read_json(folder / MANIFEST)
        version = manifest.get("schema_version") if isinstance(manifest, dict) else None
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"{folder / MANIFEST} has schema version {str(version)[:20]}, this jaxrec reads "
                f"{SCHEMA_VERSION}; make the semantic IDs again."
            )
        if absent := [name for name in _KINDS if name not in manifest]:
            raise ValueError(f"{folder / MANIFEST} lacks {', '.join(absent)}; make it again.")
        arrays = _read_arrays(folder / ARRAYS, manifest)
        if strange := [name for name, kind in _KINDS.items() if not kind(manifest[name])]:
            raise ValueError(
                f"{folder / MANIFEST}: {strange[0]} is {str(manifest[strange[0]])[:60]!r}, which "
                "it cannot be; make the semantic IDs again."
            )
        found = cls(
            codes=arrays["codes"],
            space=TokenSpace(
                tuple(manifest["sizes"]),
                manifest["has_extra_digit"],
                tuple(manifest["specials"]),
            ),
            items=arrays["items"],
            quantizer=manifest["quantizer"],
            state={
                name.removeprefix(_STATE): array
                for name, array in arrays.items()
                if name.startswith(_STATE)
            },
            parent=manifest["parent"],
        )
        for name in ("space_id", "assignment_id"):
            if getattr(found, name) != manifest[name]:
                raise ValueError(
                    f"{folder / MANIFEST} says {name} {manifest[name][:12]}..., its content has "
                    f"{getattr(found, name)[:12]}...: a file was edited. Make them again."
                )
        return found

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {item: row for row, item in enumerate(self.items.tolist())}

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.lexsort(self.codes.T[::-1])
        return order, self.codes[order]


def codes_as_text(codes: Sequence[int] | np.ndarray) -> str:
    """Codes as text, one letter a level; after z come aa, ab, ...

    >>> codes_as_text([12, 7, 0])
    '<a_12><b_7><c_0>'
    """
    return "".join(f"<{_letters(level)}_{int(code)}>" for level, code in enumerate(codes))


def codes_from_text(text: str) -> np.ndarray:
    """Codes int32[p] from text that `codes_as_text` wrote; the first levels are enough.

    Raises:
        ValueError: not of that form, or levels out of order.

    >>> codes_from_text("<a_12><b_7>").tolist()
    [12, 7]
    """
    parts = re.findall(r"<([a-z]+)_(\d+)>", text)
    codes = [int(code) for _, code in parts]
    if not parts or codes_as_text(codes) != text:
        raise ValueError(f"{text!r} is no semantic ID; it looks like <a_12><b_7><c_201>.")
    return np.array(codes, np.int32)


def _letters(level: int) -> str:
    letters, level = "", level + 1
    while level:
        level, digit = divmod(level - 1, 26)
        letters = chr(ord("a") + digit) + letters
    return letters


def _array_hash(array: np.ndarray) -> str:
    head = f"{array.dtype.str} {array.shape}|".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def _read_arrays(path: Path, manifest: dict[str, Any]) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; make the semantic IDs again.")
    if file_hash(path) != manifest["sha256"]:
        raise ValueError(
            f"{path} is not the file its manifest describes: it is truncated, corrupted or of "
            "another run. Delete its folder and make the semantic IDs again."
        )
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    # numpy evaluates a damaged header as Python, which fails in every way that Python can.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ValueError(
            f"{path} cannot be read ({reason}); make the semantic IDs again."
        ) from None
    if absent := {"codes", "items"} - set(arrays):
        raise ValueError(f"{path} lacks {', '.join(sorted(absent))}; make the semantic IDs again.")
    return arrays
