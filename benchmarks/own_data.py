"""A stranger's path, timed: a CSV of one million events to a report in three commands.

    python benchmarks/own_data.py --json benchmarks/results/own_data.json

The CSV has users, items and times of `SyntheticWorld` (a toy world: its accuracy says nothing about
real data, its cost does), written under the names a stranger would use. Every command runs as a
user types it, in a process of its own, in an empty folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import finish, parser

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    "data import log.csv --out data/mine",
    "data describe data/mine",
    f"run {ROOT}/configs/own_data.py --data.source.path data/mine --name mine",
)


def generate(path: Path, events: int) -> None:
    """Writes the log of a world of 5,000 items, 16 events a user on average."""
    from jaxrec.data.dataset import DatasetFolder
    from jaxrec.data.synthetic import SyntheticWorld

    with tempfile.TemporaryDirectory() as folder:
        world = SyntheticWorld(items=5000, users=events // 16 + 200, mean_events=16.0)
        world.write(Path(folder) / "world")
        log = DatasetFolder(str(Path(folder) / "world")).interactions()
    log = log.head(events).rename({"user": "user_id", "item": "product_id"})
    log.select("user_id", "product_id", "timestamp").write_csv(path)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--events", type=int, default=1_000_000)
    options: argparse.Namespace = arguments.parse_args()
    rows, together = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder) / "log.csv", options.events)
        for command in COMMANDS:
            start = time.perf_counter()
            words = [sys.executable, "-m", "jaxrec.cli", *command.split()]
            subprocess.run(words, cwd=folder, check=True)
            seconds = round(time.perf_counter() - start, 1)
            together += seconds
            shown = command.replace(f"{ROOT}/", "")
            rows.append({"command": f"jaxrec {shown}", "seconds": seconds})
        report = json.loads((Path(folder) / "runs/mine/report.json").read_text())
    rows.append({"what": "together", "seconds": round(together, 1)})
    for row in report["rows"]:
        if row["level"] == "item" and row["seen_masked"]:
            numbers = {name: round(row["metrics"][name], 4) for name in ("recall@10", "ndcg@10")}
            rows.append({"method": row["method"], **numbers})
    finish(options.json, rows, {})


if __name__ == "__main__":
    main()
