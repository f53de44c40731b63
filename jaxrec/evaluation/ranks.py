"""`ranks.npz`: the rank of every test case under every method, so that runs can be paired.

Arrays: `method` and `level` (text), `seen_masked` (bool), one entry a row; `rank` int32[rows, c],
1 for the best place and 0 for not found; `user` int32[c], equal where cases belong to one user;
`cases`, one text: the fingerprint of the test cases. Equal fingerprints, equal cases in equal
order. `report.json` holds the fingerprint of the whole content.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from jaxrec.evaluation.protocol import LEVELS
from jaxrec.files import json_hash, write_bytes

FILE = "ranks.npz"


@dataclasses.dataclass(frozen=True, eq=False)
class CaseRanks:
    """The ranks of a run, one row a method, level and masking.

    Raises:
        ValueError: arrays that do not fit together, an unknown level, or a negative rank.
    """

    cases: str
    """`fingerprint_cases` of the test cases."""
    user: Int32[np.ndarray, "c"]
    """Equal numbers, one user."""
    rows: tuple[tuple[str, str, bool], ...]
    """(method, level, seen_masked) of each row of `rank`."""
    rank: Int32[np.ndarray, "r c"]

    def __post_init__(self) -> None:
        if self.rank.shape != (len(self.rows), len(self.user)):
            raise ValueError(
                f"Ranks of {len(self.rows)} rows and {len(self.user)} cases have the shape "
                f"{(len(self.rows), len(self.user))}, got {self.rank.shape}."
            )
        if self.rank.size and self.rank.min() < 0:
            raise ValueError(f"Ranks are 0 for not found, or from 1; got {self.rank.min()}.")
        if len(set(self.rows)) < len(self.rows):
            raise ValueError("A method, level and masking stands there twice.")
        if wrong := {level for _, level, _ in self.rows} - set(LEVELS):
            raise ValueError(f"Unknown level {sorted(wrong)}; choose from {LEVELS}.")

    def of(self, method: str, level: str, seen_masked: bool) -> Int[np.ndarray, "c"] | None:
        """The ranks of one row; None where there is none such."""
        key = (method, level, seen_masked)
        return self.rank[self.rows.index(key)] if key in self.rows else None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content, the same on every machine."""
        arrays = [np.ascontiguousarray(array, "<i4") for array in (self.user, self.rank)]
        parts = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
        return json_hash([self.cases, [list(row) for row in self.rows], parts])


def fingerprint_cases(cases: Iterable[tuple[str, str, int]]) -> str:
    """SHA-256 of test cases in order, each (user id, target item id, events known before it).

    >>> fingerprint_cases([("u", "a", 2)])[:8]
    '2e11347a'
    """
    digest = hashlib.sha256()
    for user, item, known in cases:
        digest.update(f"{user}\x1f{item}\x1f{known}\x1e".encode())
    return digest.hexdigest()


def write_ranks(folder: Path | str, ranks: CaseRanks) -> Path:
    """Writes `ranks.npz` into a folder, atomically, and returns its path."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        cases=np.array(ranks.cases),
        user=ranks.user,
        method=np.array([row[0] for row in ranks.rows], np.str_),
        level=np.array([row[1] for row in ranks.rows], np.str_),
        seen_masked=np.array([row[2] for row in ranks.rows], bool),
        rank=ranks.rank,
    )
    path = Path(folder) / FILE
    write_bytes(path, buffer.getvalue())
    return path


def read_ranks(folder: Path | str, fingerprint: str | None = None) -> CaseRanks:
    """Reads and checks the `ranks.npz` of a folder.

    Args:
        folder: of the run.
        fingerprint: what the content must have; None: whatever it has.

    Raises:
        ValueError: it is missing, damaged, or of another judgement; the message names it.
    """
    path = Path(folder) / FILE
    again = f"`jaxrec evaluate {folder}` writes it again."
    try:
        # From memory: numpy leaves a damaged file open.
        ranks = _from_arrays(np.load(io.BytesIO(path.read_bytes()), allow_pickle=False))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; {again}") from None
    except (ValueError, TypeError, KeyError, OSError, EOFError, IndexError) as error:
        raise ValueError(f"{path} is damaged ({_short(error)}); {again}") from None
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, MemoryError) as error:
        raise ValueError(f"{path} is damaged ({_short(error)}); {again}") from None
    if fingerprint is not None and ranks.fingerprint != fingerprint:
        raise ValueError(f"{path} is not the one that report.json was written with; {again}")
    return ranks


def _from_arrays(arrays: Any) -> CaseRanks:
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise ValueError("it is no npz archive")
    wanted = {
        "cases": ("U", 0),
        "user": ("i", 1),
        "method": ("U", 1),
        "level": ("U", 1),
        "seen_masked": ("b", 1),
        "rank": ("i", 2),
    }
    found = {}
    for name, (kind, axes) in wanted.items():
        array = found[name] = arrays[name]
        if array.dtype.kind != kind or array.ndim != axes or array.dtype.itemsize > 2**20:
            raise ValueError(f"{name} is {array.dtype}{list(array.shape)}")
    methods, levels = found["method"].tolist(), found["level"].tolist()
    masked = found["seen_masked"].tolist()
    return CaseRanks(
        str(found["cases"]),
        found["user"].astype(np.int32),
        tuple(zip(methods, levels, masked, strict=True)),
        found["rank"].astype(np.int32),
    )


def _short(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]
