"""Data sets x methods x seeds x orders of ties in one table, resumable row by row.

    python benchmarks/quality.py --datasets beauty sports --protocols file shuffle:0 --seeds 0 \
        --methods all --state STATE --json benchmarks/results/quality_cpu.json \
        --markdown quality.md --html quality.html

Each cell is a `jaxrec run` in a process of its own, below STATE/runs. A finished cell is never run
again, a killed one goes on where it was, a failing one is recorded with its message and tried again
by the next call. All outputs are written anew after every cell; `--only-table` writes them from
what is finished. Several calls may share a STATE: each takes cells that nobody runs. Methods,
budgets and data sets stand in `quality_cells.py`; everything after `--flags` goes to every cell.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import ALLOCATOR, parser
from quality_cells import ROOT, Cell, plan, prepare_source

from jaxrec.files import lock, read_json, write_json, write_text

CHILD = """
import ctypes, signal, sys
if sys.platform == "linux":  # killed with its parent, so that nobody else waits for its folder
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
from jaxrec.cli import main
sys.exit(main(sys.argv[1:]))
"""


def arguments() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--datasets", nargs="+", default=["beauty", "sports"])
    made.add_argument("--protocols", nargs="+", default=["file", "shuffle:0"])
    made.add_argument("--seeds", nargs="+", type=int, default=[0])
    made.add_argument("--methods", nargs="+", default=["all"], help="names, NAME=RECIPE.py, or all")
    made.add_argument("--state", type=Path, required=True, help="folder of runs and logs")
    made.add_argument("--markdown", type=Path, help="write the tables to this file")
    made.add_argument("--html", type=Path, help="write one self-contained page to this file")
    made.add_argument("--only-table", action="store_true", help="run nothing")
    made.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="for every cell; last")
    return made.parse_args()


def main() -> int:
    """Runs the benchmark; exit code 1 when a cell failed, 2 when the command line is wrong."""
    options = arguments()
    try:
        cells = plan(
            options.datasets, options.protocols, options.seeds, options.methods, options.flags
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    state = options.state.resolve()
    for folder in ("runs", "cells", "logs"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    about = {"machine": machine(), "command": command_line(sys.argv, options.state)}
    if not options.only_table:
        run_all(cells, state, about, options)
    content = write_outputs(cells, state, about, options)
    failed = [entry["run"] for entry in content["failed"]]
    print(f"{content['finished']} of {len(cells)} cells finished; failed: {failed or 'none'}")
    return 1 if failed else 0


def run_all(
    cells: Sequence[Cell], state: Path, about: dict[str, Any], options: argparse.Namespace
) -> None:
    """Runs what is not finished, cell by cell, and writes the outputs after each."""
    todo = [cell for cell in cells if not is_finished(cell, state)]
    print(f"{len(cells) - len(todo)} of {len(cells)} cells are finished already", flush=True)
    for number, cell in enumerate(todo):
        if is_finished(cell, state):  # by another call meanwhile
            continue
        try:
            with lock(state / "cells" / f"{cell.name}.lock", wait=False):
                print(f"[{number + 1}/{len(todo)}] {cell.name} ...", flush=True)
                record = run_cell(cell, state, about["machine"])
        except BlockingIOError:
            print(f"[{number + 1}/{len(todo)}] {cell.name}: another call runs it", flush=True)
            continue
        told = f"FAILED: {record['error']}" if record["error"] else "done"
        left = time_left(todo[number + 1 :], cells, state)
        print(f"    {told}, {record['seconds']:,.0f} s; {left}", flush=True)
        write_outputs(cells, state, about, options)


def is_finished(cell: Cell, state: Path) -> bool:
    """Whether a cell has its report."""
    return (state / "runs" / cell.name / "report.json").is_file()


def run_cell(cell: Cell, state: Path, machine_of: dict[str, Any]) -> dict[str, Any]:
    """Runs or continues one cell, and records how that ended.

    Returns:
        "command"; "seconds" over all calls that ended by themselves; "error", or None;
        "machine" of the last call.
    """
    path = state / "cells" / f"{cell.name}.json"
    before = read_json(path)["seconds"] if path.is_file() else 0.0
    start = time.monotonic()
    error = None
    try:
        prepare_source(cell.dataset, state)
        log = state / "logs" / f"{cell.name}.log"
        words = [word.replace("STATE", str(state)) for word in cell.words()]
        with open(log, "a", encoding="utf-8") as out:
            done = subprocess.run(
                [sys.executable, "-c", CHILD, *words],
                cwd=ROOT,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=ALLOCATOR | os.environ,
                check=False,
            )
        if done.returncode:
            error = message_of(done.returncode, log)
        elif not is_finished(cell, state):
            error = "it ended without a report"
    except (OSError, ValueError) as failure:
        error = str(failure)
    record = {
        "command": f"jaxrec {shlex.join(cell.words())}",
        "seconds": round(before + time.monotonic() - start, 1),
        "error": error and error.replace(str(state), "STATE").replace(f"{ROOT}/", ""),
        "machine": machine_of,
    }
    write_json(path, record)
    return record


def message_of(code: int, log: Path) -> str:
    """Why a cell failed: the last line that says so, else the last line."""
    if code < 0:
        return f"ended by signal {-code}"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-200:]
    told = [line for line in lines if line.strip(" │╰╭─")]
    errors = [line for line in told if "error" in line.lower()]
    return f"exit code {code}: {(errors or told or ['nothing was printed'])[-1].strip()[:500]}"


def time_left(todo: Sequence[Cell], cells: Sequence[Cell], state: Path) -> str:
    """How many cells are left and about how long they take, by those that are finished."""
    seconds: dict[str, list[float]] = {}
    for cell in cells:
        path = state / "cells" / f"{cell.name}.json"
        if is_finished(cell, state) and path.is_file():
            seconds.setdefault(cell.method, []).append(read_json(path)["seconds"])
    every = [each for times in seconds.values() for each in times]
    if not todo or not every:
        return f"{len(todo)} left"
    total = sum(statistics.mean(seconds.get(cell.method, every)) for cell in todo)
    return f"{len(todo)} left, about {total / 3600:.1f} h"


def write_outputs(
    cells: Sequence[Cell], state: Path, about: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Writes the JSON, the Markdown and the page, each atomically; returns the JSON's content."""
    from quality_rows import collect
    from quality_table import parts_of

    from jaxrec.evaluation.compare_views import as_html, as_markdown

    content = collect(cells, state) | about
    if options.json is not None:
        write_json(options.json, content)
    parts = parts_of(content) if options.markdown or options.html else []
    if options.markdown is not None:
        write_text(options.markdown, f"# Quality\n\n{as_markdown(parts)}")
    if options.html is not None:
        write_text(options.html, as_html(parts, title="jaxrec: quality of the methods"))
    return content


def machine() -> dict[str, Any]:
    """`common.machine()`, asked in a process of its own: this one must not hold the device."""
    code = "import json, common; print(json.dumps(common.machine()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def command_line(words: Sequence[str], state: Path) -> str:
    """The call as it was typed, its folder called STATE."""
    told = ["STATE" if word == str(state) else word for word in words[1:]]
    return f"python benchmarks/quality.py {shlex.join(told)}"


if __name__ == "__main__":
    sys.exit(main())
