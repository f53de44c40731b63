"""Vectors made elsewhere: any encoder and any modality, as a file of numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from jaxrec.files import file_hash, json_hash, read_array, read_json
from jaxrec.representation.encoder import Encoding, TrainingSequences
from jaxrec.representation.text import Table

Missing = Literal["refuse", "mean"]
_NAMED = 5


@dataclasses.dataclass(frozen=True)
class Precomputed:
    """Reads vectors from `.npy` or `.safetensors`.

    Without `ids` the rows of the file are the catalogue rows. With `ids` they are matched by item
    id; the file may then hold more items than the catalogue, and fewer where `missing` allows it.

    Raises:
        ValueError: at construction an unknown kind of file or `missing`, or a mask where nothing
            may be missing; in `encode` a missing or unreadable file, not a matrix, non-finite
            numbers, a wrong number of rows, ids that repeat or lack an item of the catalogue, a
            mask of another kind or length, or no item at all.
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
    missing: Missing = "refuse"
    """Items that the file has no vector of: `refuse`, or give them the `mean` of the others. The
    report counts them, and `Fused` does not look at them."""
    mask: str = ""
    """A `.npy` file of bools, one for each row of the file: True where there is nothing in it."""

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
        if self.missing not in get_args(Missing):
            raise ValueError(
                f"Precomputed.missing must be one of {get_args(Missing)}, got {self.missing!r}."
            )
        if self.mask and self.missing == "refuse":
            raise ValueError(
                f"the mask {self.mask} marks rows without a vector, and missing='refuse' allows "
                "none; set missing='mean', or leave the mask out."
            )

    def fingerprint(self) -> str:
        """SHA-256 of the file, or of that and the files of ids and mask: they are inputs of the
        recipe, not a part of it.

        Raises:
            ValueError: there is no such file.
        """
        files = {"path": self.path, "mask": self.mask}
        if isinstance(self.ids, str):
            files["ids"] = self.ids
        for field, path in files.items():
            if path and not Path(path).is_file():
                raise ValueError(f"there is no file {path}; correct Precomputed({field}=...).")
        hashes = [file_hash(path) for path in files.values() if path]
        return hashes[0] if len(hashes) == 1 else json_hash(hashes)

    def encode(self, texts: list[str], **given: Any) -> np.ndarray:
        """The vectors in catalogue order, float32[n, d]; arguments as `encode_with_facts`."""
        return self.encode_with_facts(texts, **given).vectors

    def encode_with_facts(
        self,
        texts: list[str],
        *,
        table: Table,
        fit_mask: np.ndarray,
        seed: int,
        sequences: TrainingSequences | None = None,
    ) -> Encoding:
        """The vectors in catalogue order, and which items have none."""
        del texts, seed, sequences
        vectors = self._read()[self.skip_rows :]
        absent = self._absent_rows(len(vectors))
        vectors = np.where(absent[:, None], np.float32(0.0), vectors)
        self._check_finite(vectors)
        rows = self._catalogue_rows(table, len(vectors), len(fit_mask))
        unknown = (rows < 0) | absent[rows]
        vectors = vectors[rows]
        if self.missing == "refuse":
            return Encoding(vectors, unknown, {})
        fitted = np.asarray(fit_mask, bool) & ~unknown
        if not fitted.any():
            raise ValueError(
                f"{self.path} has a vector of none of the items that may be fitted; check ids and "
                "mask."
            )
        vectors[unknown] = vectors[fitted].mean(0, dtype=np.float64)
        return Encoding(vectors, unknown, {"n_missing": int(unknown.sum())})

    def _check_finite(self, vectors: np.ndarray) -> None:
        if not np.isfinite(vectors).all():
            rows = np.flatnonzero(~np.isfinite(vectors).all(1))
            raise ValueError(
                f"{self.path} has non-finite numbers in {len(rows)} row(s), first in row "
                f"{rows[0] + self.skip_rows}; repair the file."
            )

    def _absent_rows(self, rows: int) -> np.ndarray:
        """bool[rows] of the mask, without the leading rows."""
        if not self.mask:
            return np.zeros(rows, bool)
        if not Path(self.mask).is_file():
            raise ValueError(f"there is no file {self.mask}; correct Precomputed(mask=...).")
        try:
            mask = read_array(Path(self.mask))
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(f"{self.mask} cannot be read as bools: {error}") from None
        if mask.dtype != bool or mask.shape != (rows + self.skip_rows,):
            raise ValueError(
                f"{self.mask} must hold one bool for each of the {rows + self.skip_rows} rows of "
                f"{self.path}, got {mask.dtype} {mask.shape}."
            )
        return mask[self.skip_rows :]

    def _catalogue_rows(self, table: Table, rows: int, items: int) -> np.ndarray:
        """int64[items]: row of each item, -1 for none."""
        if not rows:
            raise ValueError(f"{self.path} has no rows after skip_rows={self.skip_rows}.")
        if self.ids:
            return self._rows(table, rows)
        if rows != items:
            raise ValueError(
                f"{self.path} has {rows} rows (after skip_rows={self.skip_rows}), but the "
                f"catalogue has {items} items; give `ids` to match rows by item id."
            )
        return np.arange(items)

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
        absent = [item for item in items if item not in row_of]
        if absent and self.missing == "refuse":
            raise ValueError(
                f"{self.path} has no row for {len(absent)} of {len(items)} items, among them "
                f"{', '.join(absent[:_NAMED])}; add them, drop those items, or set "
                "missing='mean'."
            )
        return np.array([row_of.get(item, -1) for item in items], np.int64)


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
