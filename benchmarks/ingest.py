"""A log of 20 million events from CSV to ragged histories: seconds and memory, beside pandas.

    python benchmarks/ingest.py --json benchmarks/results/ingest.json [--pandas PYTHON]

Ours is `jaxrec data import` (CSV to a checked, hashed dataset folder) and then `prepare` (folder
to histories). The peer is pandas doing the same grouping: `read_csv`, ids to numbers in the order
of their first event, a stable sort by user and time, offsets. pandas is no dependency of jaxrec:
`--pandas` names an interpreter that has it. Every part runs in a process of its own, the best of
`--repeats`; both sides' offsets and items are compared by checksum.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import finish, parser

SETUP = """
import hashlib, json, resource, sys, time
def digest(*arrays):
    found = hashlib.sha256()
    for array in arrays:
        found.update(memoryview(array).cast("B"))
    return found.hexdigest()
start = time.perf_counter()
def told(**more):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": time.perf_counter() - start, "peak_gib": peak, **more}))
"""
IMPORT = """
from jaxrec.data.datasets.tables import TableFiles
start = time.perf_counter()
TableFiles(sys.argv[1]).write(sys.argv[2])
told()
"""
PREPARE = """
import numpy as np
from jaxrec.data.dataset import DatasetFolder
from jaxrec.data.histories import prepare
start = time.perf_counter()
found = prepare(DatasetFolder(sys.argv[2]))
told()
print(digest(found.offsets, found.item.astype("int64"), found.time))
"""
PANDAS = """
import numpy as np, pandas as pd
start = time.perf_counter()
log = pd.read_csv(sys.argv[1])
read = time.perf_counter() - start
user, users = pd.factorize(log["user_id"])
item, items = pd.factorize(log["item_id"])
log = pd.DataFrame({"user": user, "item": item, "time": log["timestamp"]})
log = log.sort_values(["user", "time"], kind="stable")
sizes = log.groupby("user", sort=False).size().to_numpy()
offsets = np.concatenate([[0], np.cumsum(sizes)])
told(read=read, version=pd.__version__)
arrays = (offsets, log["item"].to_numpy(), log["time"].to_numpy())
print(digest(*(np.ascontiguousarray(each, "int64") for each in arrays)))
"""


def generate(path: Path, events: int) -> None:
    """Writes events/50 users and events/100 items, a power law of items, times in no order."""
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "user_id": rng.integers(0, events // 50, events),
            "item_id": (events // 100 * rng.random(events) ** 2.5).astype(np.int64),
            "timestamp": 1_500_000_000 + rng.integers(0, 10**8, events),
        }
    )
    frame = frame.with_columns(
        user_id=pl.format("user{}", "user_id"), item_id=pl.format("item{}", "item_id")
    )
    frame.write_csv(path)


def measure(code: str, python: str, repeats: int, *words: str) -> tuple[dict, str]:
    """The fastest of several runs in fresh processes, and what it printed last."""
    runs = []
    for _ in range(repeats):
        command = [python, "-c", SETUP + code, *words]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        text = " ".join(lines)
        content, _, digest = text.rpartition("}")
        runs.append((json.loads(content + "}"), digest.strip()))
    return min(runs, key=lambda each: each[0]["seconds"])


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--events", type=int, default=20_000_000)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--pandas", default=sys.executable, help="an interpreter with pandas")
    options: argparse.Namespace = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log, dataset = Path(folder) / "log.csv", Path(folder) / "dataset"
        generate(log, options.events)
        words = (str(log), str(dataset))
        imported, _ = measure(IMPORT, sys.executable, options.repeats, *words)
        prepared, ours = measure(PREPARE, sys.executable, options.repeats, *words)
        peer, theirs = measure(PANDAS, options.pandas, options.repeats, *words)
        if ours != theirs:
            raise SystemExit("the two sides grouped the log differently")
        size = log.stat().st_size
    grouping = peer["seconds"] - peer["read"]
    rows = [
        {"what": "events", "count": options.events, "csv_mib": round(size / 2**20)},
        {"what": "jaxrec: CSV to a checked dataset folder", **_rounded(imported)},
        {"what": "jaxrec: dataset folder to histories", **_rounded(prepared)},
        {"what": f"pandas {peer.pop('version')}: CSV to histories", **_rounded(peer)},
    ]
    finish(
        options.json,
        rows,
        {
            "grouping, pandas without reading / jaxrec with reading": grouping
            / prepared["seconds"],
            "CSV to histories, pandas / jaxrec with the checked folder": peer["seconds"]
            / (imported["seconds"] + prepared["seconds"]),
        },
    )


def _rounded(numbers: dict) -> dict:
    return {name: round(value, 2) for name, value in numbers.items()}


if __name__ == "__main__":
    main()
