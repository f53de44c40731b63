"""Damages small files of every format again and again, and checks that every reader stays upright.

    python benchmarks/fuzz.py --cases 100000 --reader all --seed 0 --resume \
        --json benchmarks/results/fuzz.json

What must hold is in tests/armour/fuzz_targets.py: a valid result, or one refusal with a short
message; no other exception, nothing written elsewhere, memory bounded by the size of the input.
Every target runs in a process of its own, so that even a crash of the interpreter is a finding.
Coverage guides the search: damage that reaches a line of jaxrec that no case has reached yet is
kept, and damaged further. Findings are saved below STATE/crashes; `--replay FOLDER` runs one again.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from common import finish, parser

from jaxrec.files import read_json, write_bytes, write_json
from jaxrec.tracking import Progress

# Both are looked at when the library is first imported, which is later.
os.environ.setdefault("POLARS_MAX_THREADS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "armour"))
fuzz_targets: Any = importlib.import_module("fuzz_targets")
Seed = fuzz_targets.Seed

SAVE_SECONDS = 20.0
CORPUS = 400
"""Seeds kept for a target."""
LARGEST = 30_000
"""Bytes of a seed that is kept: seeds grow when they are damaged again and again."""
MEMORY = 512 * 2**20, 100
"""Bytes that one case may add to the process's peak: a constant, and so many times its files."""
SAME = 3
"""Findings of one kind that are saved."""
TOOL = sys.monitoring.COVERAGE_ID


class Coverage:
    """Lines of jaxrec that ran at least once; a line that was seen costs nothing afterwards."""

    def __init__(self) -> None:
        self.lines = 0
        self._home = str(ROOT / "jaxrec") + os.sep
        sys.monitoring.use_tool_id(TOOL, "jaxrec-fuzz")
        sys.monitoring.register_callback(TOOL, sys.monitoring.events.LINE, self._line)
        sys.monitoring.set_events(TOOL, sys.monitoring.events.LINE)

    def _line(self, code: Any, number: int) -> Any:
        del number
        self.lines += code.co_filename.startswith(self._home)
        return sys.monitoring.DISABLE


class State:
    """How far a target has come; written now and then, so that a run can go on later."""

    def __init__(self, folder: Path, name: str, seed: int, *, resume: bool) -> None:
        self.path = folder / f"{name}.json"
        self.content: dict[str, Any] = {
            "seed": seed,
            "done": 0,
            "read": 0,
            "refused": 0,
            "broken": 0,
            "seconds": 0.0,
            "peak_mib": 0,
            "lines": 0,
            "kinds": {},
            "corpus": [],
        }
        if resume and self.path.is_file():
            found = read_json(self.path)
            if found["seed"] != seed:
                raise ValueError(f"{self.path} is of seed {found['seed']}; give --seed of it.")
            self.content = found

    def save(self) -> None:
        write_json(self.path, self.content)


def worker(name: str, options: argparse.Namespace, box: str) -> None:
    """Runs the cases of one target until there are enough."""
    target = fuzz_targets.targets()[name]
    state = State(options.state, name, options.seed, resume=True)
    content = state.content
    tree = fuzz_targets.Box(Path(box))
    marker = Path(box).with_suffix(".case")
    for each in target.seeds:
        tree.run(target, each)
    corpus = [*target.seeds, *(_unpacked(each) for each in content["corpus"])]
    covered = Coverage()
    for each in corpus:
        _told(tree, target, each)
    covered.lines = 0
    before, began, saved = content["seconds"], time.monotonic(), time.monotonic()
    with Progress(options.cases, name, initial=content["done"], unit="cases") as progress:
        while content["done"] < options.cases:
            number = content["done"]
            marker.write_text(str(number), encoding="utf-8")
            dice = random.Random(f"{options.seed}/{name}/{number}")
            # What is kept is mostly broken already; valid files lead to the lines behind checks.
            pool = corpus if dice.random() < 0.5 else target.seeds
            case = fuzz_targets.damaged(target, dice.choice(pool), dice)
            lines, peak = covered.lines, _peak()
            kind = _told(tree, target, case)
            grown = _peak() - peak
            size = sum(map(len, case.files.values()))
            if grown > MEMORY[0] + MEMORY[1] * size:
                kind = f"BROKEN memory: {grown >> 20} MiB for {size} bytes"
            _count(content, kind, case, options.state / "crashes" / f"{name}-{number}")
            is_new = covered.lines > lines and size <= LARGEST and not kind.startswith("BROKEN")
            if is_new and len(corpus) < CORPUS:
                corpus.append(case)
                content["corpus"].append(_packed(case))
            content["done"] += 1
            content["lines"] += covered.lines - lines
            content["seconds"] = before + time.monotonic() - began
            content["peak_mib"] = max(content["peak_mib"], _peak() >> 20)
            progress.update(1, broken=content["broken"])
            if time.monotonic() - saved > SAVE_SECONDS:
                state.save()
                saved = time.monotonic()
    state.save()


def _told(tree: Any, target: Any, case: Any) -> str:
    try:
        return tree.run(target, case)
    except fuzz_targets.Broken as error:
        return f"BROKEN {error}"


def _count(content: dict[str, Any], kind: str, case: Any, folder: Path) -> None:
    if not kind.startswith("BROKEN"):
        content["read" if kind == "read" else "refused"] += 1
        return
    content["broken"] += 1
    known = kind[:100]
    content["kinds"][known] = content["kinds"].get(known, 0) + 1
    if content["kinds"][known] <= SAME:
        keep(folder, case, kind)


def keep(folder: Path, case: Any, kind: str) -> None:
    """Saves a finding, and says how to run it again."""
    write_json(folder / "case.json", {**_packed(case), "kind": kind})
    for name, data in case.files.items():
        write_bytes(folder / "files" / name, data)
    print(f"{kind[:200]}\n  python benchmarks/fuzz.py --replay {folder}", file=sys.stderr)


def replay(folder: Path) -> int:
    """Runs a finding again, with the traceback of what went wrong."""
    case, name = _unpacked(read_json(folder / "case.json")), folder.name.rpartition("-")[0]
    with tempfile.TemporaryDirectory() as place:
        print(fuzz_targets.Box(Path(place)).run(fuzz_targets.targets()[name], case))
    return 0


def run_target(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Runs a target in its own process, again after every crash of that process."""
    context = multiprocessing.get_context("spawn")
    if not options.resume:
        (options.state / f"{name}.json").unlink(missing_ok=True)
    State(options.state, name, options.seed, resume=options.resume).save()
    base = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    while True:
        with tempfile.TemporaryDirectory(dir=base) as place:
            box = Path(place) / "root"
            box.mkdir()
            process = context.Process(target=worker, args=(name, options, str(box)))
            process.start()
            process.join()
            state = State(options.state, name, options.seed, resume=True)
            if process.exitcode == 0:
                return state.content
            if process.exitcode == 1 or not box.with_suffix(".case").is_file():
                raise SystemExit(f"{name}: the worker failed by itself; see above.")
            number = int(box.with_suffix(".case").read_text(encoding="utf-8"))
            files = box / "box" / "in"
            case = Seed({str(p.relative_to(files)): p.read_bytes() for p in _files(files)})
            kind = f"BROKEN the process died of signal {-(process.exitcode or 0)}"
            _count(state.content, kind, case, options.state / "crashes" / f"{name}-{number}")
            state.content["done"] = number + 1
            state.save()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _packed(case: Any) -> dict[str, Any]:
    files = {name: base64.b64encode(data).decode() for name, data in case.files.items()}
    return {"files": files, "entry": case.entry, "flags": dict(case.flags)}


def _unpacked(content: dict[str, Any]) -> Any:
    files = {name: base64.b64decode(data) for name, data in content["files"].items()}
    flags = {name: _tuples(value) for name, value in content["flags"].items()}
    return Seed(files, content["entry"], flags)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    """Runs the benchmark; exit code 1 when something was found."""
    arguments = parser(__doc__)
    arguments.add_argument("--cases", type=int, default=2_000, help="of every target")
    arguments.add_argument("--reader", default="all", help="a name, several with commas, or all")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument(
        "--state", type=Path, default=Path(tempfile.gettempdir()) / "jaxrec-fuzz"
    )
    arguments.add_argument("--resume", action="store_true", help="go on where STATE stands")
    arguments.add_argument("--replay", type=Path, help="run one finding again")
    options = arguments.parse_args()
    if options.replay:
        return replay(options.replay)
    options.state = options.state.absolute()
    known = list(fuzz_targets.targets())
    names = known if options.reader == "all" else options.reader.split(",")
    if unknown := set(names) - set(known):
        raise SystemExit(f"no reader {', '.join(unknown)}; choose from {', '.join(known)}.")
    rows, kinds = [], Counter[str]()
    for name in names:
        found = run_target(name, options)
        kinds.update({f"{name}: {kind}": count for kind, count in found["kinds"].items()})
        rows.append(
            {
                "reader": name,
                "cases": found["done"],
                "broken": found["broken"],
                "read": found["read"],
                "refused": found["refused"],
                "seeds_kept": len(found["corpus"]),
                "new_lines": found["lines"],
                "cases_a_second": round(found["done"] / max(found["seconds"], 1e-9)),
                "peak_mib": found["peak_mib"],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    finish(options.json, rows, {})
    for kind, count in kinds.most_common():
        print(f"{count:6d} {kind}")
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
