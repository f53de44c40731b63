"""Pairs that were made beforehand: preferences of people, of a larger model, of an earlier policy.

One npz file: `position` int64[p], the flat position of the event whose history was asked about;
`chosen` int32[p]; `rejected` int32[p, n], -1 where there are fewer; `gap` float32[p, n], by how
much the chosen item was worth more.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int32, Int64

from jaxrec.alignment.contexts import lay_contexts
from jaxrec.data.errors import DataError
from jaxrec.data.histories import Histories
from jaxrec.data.packing import flat_events
from jaxrec.data.pipeline import BatchStream, Take, fingerprint_of, rows_of_host, stream
from jaxrec.data.splits import Split, training_positions
from jaxrec.files import file_hash, write_bytes
from jaxrec.types import Events, Leaf


class PairContext(NamedTuple):
    """A batch of histories with what came next and a pair each."""

    events: Events
    target: Int32[Leaf, " b"]
    chosen: Int32[Leaf, " b"]
    rejected: Int32[Leaf, "b n"]
    gap: Float[Leaf, "b n"]


class PairTable(NamedTuple):
    """The content of a file."""

    position: Int64[np.ndarray, " p"]
    chosen: Int32[np.ndarray, " p"]
    rejected: Int32[np.ndarray, "p n"]
    gap: Float[np.ndarray, "p n"]


def save_pairs(path: Path | str, table: PairTable) -> None:
    """Writes pairs as npz, all or nothing."""
    buffer = io.BytesIO()
    np.savez(buffer, **table._asdict())
    write_bytes(path, buffer.getvalue())


def load_pairs(path: Path | str, histories: Histories, split: Split) -> PairTable:
    """Reads pairs and holds them against the log.

    Raises:
        DataError: no such file or not such a file, numbers that are no item, positions that are no
            training event, gaps that are not finite, or pairs whose two sides are one item.
    """
    table, items = _read(path), histories.num_items
    _check_arrays(path, table)
    lowest, highest = table.rejected.min(), max(table.chosen.max(), table.rejected.max())
    if table.chosen.min() < 0 or lowest < -1 or highest >= items:
        raise DataError(f"{path}: an item is not a row of the catalogue, 0..{items - 1}.")
    if not np.isfinite(table.gap).all():
        raise DataError(f"{path}: a gap is not finite; write 1 where nothing was rewarded.")
    if not np.isin(table.position, training_positions(histories, split)).all():
        raise DataError(
            f"{path}: a position is no training event of this log and split; pairs of held-out "
            "events may not train."
        )
    same = int((table.rejected == table.chosen[:, None]).sum())
    if same:
        raise DataError(
            f"{path}: in {same} pair(s) both sides are one item; leave them out, or write -1."
        )
    kinds = (np.int64, np.int32, np.int32, np.float32)
    return PairTable(*(array.astype(kind) for array, kind in zip(table, kinds)))


def _read(path: Path | str) -> PairTable:
    try:
        # From memory: numpy leaves a damaged file open.
        file = np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is one array")
        return PairTable(*(file[name] for name in PairTable._fields))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} holds no pairs ({error}); it is an npz file with position, chosen, rejected "
            "and gap (jaxrec.alignment.pair_file)."
        ) from None


def _check_arrays(path: Path | str, table: PairTable) -> None:
    count = table.position.shape
    if len(count) != 1 or not count[0] or table.chosen.shape != count:
        raise DataError(
            f"{path}: position and chosen need one number a pair, at least one pair, got shapes "
            f"{count} and {table.chosen.shape}."
        )
    shape = table.rejected.shape
    if len(shape) != 2 or shape[0] != count[0] or not shape[1] or table.gap.shape != shape:
        raise DataError(
            f"{path}: rejected and gap need one shape [pairs, n] with n >= 1, got {shape} and "
            f"{table.gap.shape} for {count[0]} pairs."
        )
    if any(array.dtype.kind not in "iu" for array in table[:3]) or table.gap.dtype.kind != "f":
        raise DataError(
            f"{path}: position, chosen and rejected are whole numbers and gap is not, got "
            f"{', '.join(str(array.dtype) for array in table)}."
        )


@dataclasses.dataclass(frozen=True)
class PairFile:
    """Batches of pairs from a file, in an endless order that follows from the seed.

    Raises:
        ValueError: a size that is not positive.
    """

    path: str
    """See `jaxrec.alignment.pair_file`."""
    length: int = 50
    """Events of a history, the newest ones."""
    rows: int = 32
    """Pairs of a batch over all hosts."""

    def __post_init__(self) -> None:
        if self.length < 1 or self.rows < 1:
            raise ValueError(
                f"PairFile needs length >= 1 and rows >= 1, got {self.length} and {self.rows}."
            )

    @property
    def batch_shape(self) -> tuple[int, int]:
        """Rows and events of a batch over all hosts."""
        return self.rows, self.length

    def __call__(
        self, histories: Histories, split: Split, *, seed: int, host: int = 0, hosts: int = 1
    ) -> BatchStream:
        """The stream of batches of one host.

        Raises:
            DataError: as `load_pairs`, or fewer pairs than hosts.
        """
        table, flat = load_pairs(self.path, histories, split), flat_events(histories)
        rows = rows_of_host(self.rows, seed, host, hosts)

        def draw(take: Take, first: int) -> tuple[PairContext, int]:
            chosen = take(first, rows)
            asked = lay_contexts(histories, flat, table.position[chosen], self.length)
            pairs = (column[chosen] for column in table[1:])
            return PairContext(asked.events, asked.target, *pairs), rows

        fingerprint = fingerprint_of(self, histories, split, seed, host, hosts)
        fingerprint |= {"pairs": file_hash(self.path)}
        return stream(draw, len(table.position), fingerprint)
