"""`recommendations.parquet`: the lists themselves, one line a place: user, rank, item, score."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxrec.files import write_bytes

FILE = "recommendations.parquet"


def write_recommendations(
    folder: Path | str,
    users: Sequence[str] | np.ndarray,
    names: Sequence[str] | np.ndarray,
    items: Int[np.ndarray, "c k"],
    scores: Float[np.ndarray, "c k"],
    valid: Bool[np.ndarray, "c k"],
) -> Path:
    """Writes the lists into a folder, atomically, and returns the file's path.

    Args:
        folder: of the run.
        users: name of the user of each list.
        names: name of each catalogue row.
        items, scores, valid: the lists, best first. Places that are not valid are left out, and
            ranks count the valid places from 1.

    Raises:
        ValueError: not one user a list, or an item outside the catalogue.
    """
    import polars as pl

    if len(users) != len(items):
        raise ValueError(f"Got {len(users)} users for {len(items)} lists; give one user a list.")
    listed = items[valid]
    if len(listed) and not 0 <= listed.min() <= listed.max() < len(names):
        raise ValueError(
            f"Items are catalogue rows 0 to {len(names) - 1}, got {listed.min()} to {listed.max()}."
        )
    row = np.nonzero(valid)[0]
    table = pl.DataFrame(
        {
            "user": np.asarray(users, dtype=np.str_)[row],
            "rank": np.cumsum(valid, axis=1)[valid].astype(np.int32),
            "item": np.asarray(names, dtype=np.str_)[listed],
            "score": scores[valid].astype(np.float32),
        },
        schema={"user": pl.String, "rank": pl.Int32, "item": pl.String, "score": pl.Float32},
    )
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    path = Path(folder) / FILE
    write_bytes(path, buffer.getvalue())
    return path
