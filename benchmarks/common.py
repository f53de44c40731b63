"""What every benchmark shares: the description of the machine, and the JSON it writes."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxrec.files import write_json

QUIET = 0.1
"""Share of the machine that other processes may take in a round that counts."""
THREADS = 2
"""Of each side of a comparison."""
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_ARENA_MAX": "1",
}
"""As in the Makefile: without it both sides pay page faults for every large array. One arena, since
those of threads give every array above 64 MB back, whatever the other numbers say."""
PACKAGES = ("jaxrec", "jax", "jaxlib", "flax", "optax", "numpy", "polars")


def parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with `--json FILE`, which every benchmark takes."""
    made = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    made.add_argument("--json", type=Path, help="write rows, ratios and machine to this file")
    return made


def machine() -> dict[str, Any]:
    """Processor, memory and versions that a result belongs to."""
    import jax

    device = jax.devices()[0]
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := version(name))},
    }


def version(package: str) -> str | None:
    """Version of a package; None where it is not installed (on a machine that was lent, say)."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def median_seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """Median wall-clock seconds of a call, after one call that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def run(command: list[str], passive: bool = False) -> dict[str, Any]:
    """What a process prints as its last line, and how much of the machine others took meanwhile.

    `passive` lets its threads sleep while they wait.
    """
    environment = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": str(THREADS)}
    if passive:
        environment |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    start, all_before, own_before = time.perf_counter(), _busy_seconds(), _child_seconds()
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    elapsed = time.perf_counter() - start
    others = _busy_seconds() - all_before - (_child_seconds() - own_before)
    share = max(0.0, others / elapsed / (os.cpu_count() or 1))
    return {**json.loads(result.stdout.splitlines()[-1]), "others": share}


def _busy_seconds() -> float:
    """Processor seconds that the machine has worked since it started."""
    counts = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    user, nice, system, _, _, interrupt, soft = map(int, counts[:7])
    return (user + nice + system + interrupt + soft) / os.sysconf("SC_CLK_TCK")


def _child_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def finish(path: Path | None, rows: list[dict[str, Any]], ratios: dict[str, float]) -> None:
    """Prints the rows, and writes them where `--json` says.

    Args:
        path: the file, or None.
        rows: one dictionary a measurement.
        ratios: name -> speed-up of ours over the peer measured in the same run.
    """
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f} x")
    if path is not None:
        write_json(path, {"rows": rows, "ratios": ratios, "machine": machine()})
