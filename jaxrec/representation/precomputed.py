"""Vectors made elsewhere: any encoder and any modality, as a file of numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np

from jaxrec.files import file_hash, read_array, read_json
from jaxrec.representation.encoder import TrainingSequences
from jaxrec.representation.text import Table

_NAMED = 5


@dataclasses.dataclass(frozen=True)
class Precomputed:
    """Reads vectors from `.npy` or `.safetensors`.

    Without `ids` the rows of the file are the catalogue rows. With `ids` they are matched by item
    id; the file may then hold more items than the catalogue, never fewer.

    Raises:
        ValueError: at construction an unknown kind of file; in `encode` a missing or unreadable
            file, not a matrix, non-finite numbers, a wrong number of rows, ids that repeat or
            lack an item of the catalogue.
    """

    path: str
    """The file."""
    ids: str | tuple[str, ...] = ()
    """Item ids of the file's rows: the ids, or a `.json` list or a text file of one id a line."""
    tensor: str = ""
    """Name of the tensor in a `.safetensors` file; may be empty where there is only one."""
    skip_rows: int = 0
    """Leading rows that are no items (a padding row, for example)."""
    surrogate: bool = False
    """Declare True where the vectors stand in for those of the system being reproduced."""

    schema_version: ClassVar[int] = 1
    reads_text: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if Path(self.path).suffix not in (".npy", ".safetensors"):
            raise ValueError(
                f"Precomputed reads .npy and .safetensors, got {self.path!r}; save the matrix "
                "with numpy.save."
            )
        if self.skip_rows < 0:
            raise ValueError(f"skip_rows counts leading rows, got {self.skip_rows}.")

    def fingerprint(self) -> str:
        """SHA-256 of the file: the vectors are an input of the recipe, not a part of it.

        Raises:
            ValueError: there is no such file.
        """
        if not Path(self.path).is_file():
            raise ValueError(f"there is no file {self.path}; correct Precomputed(path=...).")
        return file_hash(self.path)

    def encode(
        self,
        texts: list[str],
        *,
        table: Table,
        fit_mask: np.ndarray,
        seed: int,
        sequences: TrainingSequences | None = None,
    ) -> np.ndarray:
        """The vectors in catalogue order, float32[n, d]."""
        del texts, seed, sequences
        vectors = self._read()[self.skip_rows :]
        if not np.isfinite(vectors).all():
            rows = np.flatnonzero(~np.isfinite(vectors).all(1))
            raise ValueError(
                f"{self.path} has non-finite numbers in {len(rows)} row(s), first in row "
                f"{rows[0] + self.skip_rows}; repair the file."
            )
        if self.ids:
            return vectors[self._rows(table, len(vectors))]
        if len(vectors) != len(fit_mask):
            raise ValueError(
                f"{self.path} has {len(vectors)} rows (after skip_rows={self.skip_rows}), but the "
                f"catalogue has {len(fit_mask)} items; give `ids` to match rows by item id."
            )
        return vectors

    def _read(self) -> np.ndarray:
        path = Path(self.path)
        if not path.is_file():
            raise ValueError(f"there is no file {path}; correct Precomputed(path=...).")
        try:
            if path.suffix == ".npy":
                matrix = read_array(path, mapped=True)
            else:
                matrix = _read_safetensors(path, self.tensor)
            if matrix.dtype.kind not in "biuf":
                raise ValueError(f"it holds {matrix.dtype}, not numbers")
            with np.errstate(over="ignore"):
                matrix = np.asarray(matrix).astype(np.float32)
        except (OSError, EOFError, ValueError, TypeError) as error:
            raise ValueError(f"{path} cannot be read as a matrix: {error}") from None
        if matrix.ndim != 2 or not matrix.shape[1]:
            raise ValueError(f"{path} must be a matrix [items, width], got shape {matrix.shape}.")
        return matrix

    def _rows(self, table: Table, rows: int) -> np.ndarray:
        ids = _read_ids(self.ids) if isinstance(self.ids, str) else list(self.ids)
        if len(ids) != rows or len(set(ids)) != len(ids):
            raise ValueError(
                f"ids must name each of the {rows} rows of {self.path} once, got {len(ids)} ids, "
                f"{len(set(ids))} of them different."
            )
        if "item" not in table:
            raise ValueError("matching rows by id needs the column 'item' in the item table.")
        row_of = {name: row for row, name in enumerate(ids)}
        items = [str(item) for item in table["item"]]
        if absent := [item for item in items if item not in row_of]:
            raise ValueError(
                f"{self.path} has no row for {len(absent)} of {len(items)} items, among them "
                f"{', '.join(absent[:_NAMED])}; add them or drop those items."
            )
        return np.array([row_of[item] for item in items], np.int64)


def _read_safetensors(path: Path, tensor: str) -> np.ndarray:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            if not tensor and len(names) == 1:
                tensor = names[0]
            if tensor not in names:
                raise ValueError(
                    f"it holds the tensors {', '.join(names)}; name one by tensor=..., "
                    f"got {tensor!r}"
                )
            return file.get_tensor(tensor)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _read_ids(path: str) -> list[str]:
    if not Path(path).is_file():
        raise ValueError(f"there is no file of ids {path}; correct Precomputed(ids=...).")
    if path.endswith(".json"):
        content = read_json(path)
        if not isinstance(content, list):
            raise ValueError(f"{path} is no JSON list of item ids; correct Precomputed(ids=...).")
        return [str(each) for each in content]
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8, and should be one item id a line.") from None
