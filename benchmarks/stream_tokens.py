"""Semantic IDs of ten million vectors that are never in memory, and what a billion would take.

    python benchmarks/stream_tokens.py --scratch FOLDER --json benchmarks/results/stream_tokens.json

`mixture.py`'s vectors, 256 wide, are written to a file in FOLDER (10 GB at the default size) and
read from it through a memory map: a fit of 3 x 256 codes on 262,144 of them, one update of each
level over all, and the codes of all. `peak_gib` is memory that the process holds itself; pages of
the file that the system keeps are not counted, since it takes them back when others need them.

The plan for a billion items is arithmetic, not a measurement: the same passes at the measured rows
a second, on as many machines as asked, which share nothing but sums of k x d numbers a pass.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, parser
from mixture import mixture

WIDTH, LEVELS, CODES = 256, 3, 256
PIECE = 2**17
BILLION = 10**9
MACHINES = (1, 16, 64)


def write_vectors(path: Path, rows: int) -> None:
    """The vectors as one `.npy`, piece by piece; an existing file of that size is kept."""
    if path.is_file() and np.load(path, mmap_mode="r").shape == (rows, WIDTH):
        return
    file = np.lib.format.open_memmap(path, "w+", np.float32, (rows, WIDTH))
    for start in range(0, rows, PIECE):
        some = min(PIECE, rows - start)
        file[start : start + some] = mixture(some, WIDTH, seed=start // PIECE % 8)
    file.flush()


def own_gib() -> float:
    """Memory of this process without pages of files, now."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 2**20


class Watched:
    """The file's rows; remembers the most memory held at any slice."""

    def __init__(self, path: Path) -> None:
        self.rows, self.peak = np.load(path, mmap_mode="r"), 0.0
        self.shape = self.rows.shape

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.peak = max(self.peak, own_gib())
        return self.rows[rows]


def measure(path: Path, rows: int) -> list[dict[str, Any]]:
    """Seconds of fit and codes, the error on a sample, and the plan."""
    import jax

    from jaxrec.tokenization import ResidualKMeans, Streamed

    vectors = Watched(path)
    quantizer = Streamed(ResidualKMeans(LEVELS, CODES, iterations=25, tolerance=1e-3))
    start = time.perf_counter()
    state = jax.block_until_ready(quantizer.fit(jax.random.key(0), vectors))
    fitted = time.perf_counter()
    codes = quantizer.encode(state, vectors)
    encoded = time.perf_counter()
    some = np.arange(0, rows, max(1, rows // 100_000))
    decoded = np.asarray(quantizer.decode(state, codes[some]))
    row = {
        "rows": rows,
        "fit_seconds": round(fitted - start, 1),
        "encode_seconds": round(encoded - fitted, 1),
        "encode_rows_a_second": round(rows / (encoded - fitted)),
        "mse": float(((vectors.rows[some] - decoded) ** 2).mean()),
        "peak_gib": round(vectors.peak, 2),
        "file_gib": round(path.stat().st_size / 2**30, 2),
    }
    a_row = (encoded - start) / rows
    plan = [
        {
            "plan": "arithmetic, not a measurement",
            "rows": BILLION,
            "machines": machines,
            "hours": round(BILLION * a_row / machines / 3600, 1),
        }
        for machines in MACHINES
    ]
    return [row, *plan]


def main() -> None:
    """Writes the file, streams it, tells."""
    made = parser(__doc__)
    made.add_argument("--rows", type=int, default=10_000_000)
    made.add_argument("--scratch", type=Path, required=True, help="folder with room for the file")
    options: argparse.Namespace = made.parse_args()
    path = options.scratch / f"vectors-{options.rows}.npy"
    write_vectors(path, options.rows)
    finish(options.json, measure(path, options.rows), {})


if __name__ == "__main__":
    main()
