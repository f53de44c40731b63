"""Kills a job with SIGKILL again and again, and checks that nothing was lost.

    python benchmarks/kill_resume.py --json benchmarks/results/kill_resume.json

The recipe runs once undisturbed. Then it is started, killed with -9 at a random moment and started
again, until it has been killed `--kills` times and is left to finish. Whenever a killed job happens
to finish before that, its result is compared and a new folder is begun. Every finished folder must
hold the same report, the same metrics and the same recommendations as the undisturbed one, times
aside.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import finish, parser

from jaxrec.files import file_hash, json_hash, read_json

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Runs the benchmark; exit code 1 when a killed job ended differently."""
    options_parser = parser(__doc__)
    options_parser.add_argument("--recipe", default="configs/quickstart.py")
    options_parser.add_argument("--kills", type=int, default=20)
    options_parser.add_argument("--seed", type=int, default=0)
    options_parser.add_argument(
        "--longest", type=float, default=0.0, help="latest kill, in seconds after the start; "
        "0 spreads the kills over the undisturbed run"
    )  # fmt: skip
    options, overrides = options_parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        runs = Path(temporary)
        start = time.monotonic()
        subprocess.run(command(options.recipe, runs / "calm", overrides), check=True, cwd=ROOT)
        calm_seconds = time.monotonic() - start
        want = fingerprint(runs / "calm")
        # A restart repeats imports and compilations, so kills come at most this long after it.
        longest = options.longest or max(30.0, 2.0 * calm_seconds / options.kills + 25.0)
        kills, finished, same = harass(options, overrides, runs, longest, want)
    rows = [
        {
            "recipe": options.recipe,
            "overrides": " ".join(overrides),
            "kills": kills,
            "finished_jobs": finished,
            "same_result": same,
            "undisturbed_seconds": round(calm_seconds, 1),
            "latest_kill_seconds": round(longest, 1),
            "seed": options.seed,
        }
    ]
    finish(options.json, rows, {})
    print(f"killed {kills} times, {finished} finished jobs, {same} ended in the same report")
    return 0 if same == finished and finished > 0 else 1


def harass(
    options: Any, overrides: list[str], runs: Path, longest: float, want: dict[str, str]
) -> tuple[int, int, int]:
    """Kills and restarts until the number of kills is reached.

    Returns:
        (kills, finished jobs, finished jobs whose result equals the undisturbed one).
    """
    dice = random.Random(options.seed)
    kills = finished = same = 0
    while True:
        folder = runs / f"harassed-{finished}"
        job = subprocess.Popen(
            command(options.recipe, folder, overrides),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait = dice.uniform(0.0, longest) if kills < options.kills else None
            code = job.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
            kills += 1
            print(f"kill {kills} after {wait:.1f} s", flush=True)
            continue
        if code != 0:
            raise SystemExit(f"the job failed by itself with exit code {code}")
        finished += 1
        got = fingerprint(folder)
        same += got == want
        for name in want:
            if got.get(name) != want[name]:
                print(f"DIFFERENT: {name}", flush=True)
        if kills >= options.kills:
            return kills, finished, same
        shutil.rmtree(folder)


def command(recipe: str, runs: Path, overrides: list[str]) -> list[str]:
    """The command line of the job."""
    return [sys.executable, "-m", "jaxrec.cli", "run", recipe, "--runs", str(runs), *overrides]


def fingerprint(runs: Path) -> dict[str, str]:
    """Hashes of a finished job's results with every time removed."""
    (folder,) = [path.parent for path in runs.glob("*/recipe.json")]
    metrics = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "report.json": json_hash(timeless(read_json(folder / "report.json"))),
        "metrics.jsonl": json_hash([timeless(json.loads(line)) for line in metrics]),
        "recommendations.parquet": file_hash(folder / "recommendations.parquet"),
    }


def timeless(value: Any) -> Any:
    """The value without the fields that hold times and speeds."""
    if isinstance(value, dict):
        return {
            name: timeless(each)
            for name, each in value.items()
            if not name.startswith(("seconds", "rate")) and not name.endswith("seconds")
        }
    if isinstance(value, list):
        return [timeless(each) for each in value]
    return value


if __name__ == "__main__":
    sys.exit(main())
