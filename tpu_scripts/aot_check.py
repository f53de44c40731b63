"""Compiles a recipe for a TPU topology on a machine without any TPU.

    python tpu_scripts/aot_check.py configs/quickstart.py --topology v5e:2x4

Prints, for the training step and for answering a batch, the memory that each chip needs, whether it
fits, and the collectives in the program. Overrides of recipe fields work as in `jaxrec run`; the
mesh is the recipe's (`--mesh.fsdp 4`), over all chips of the topology.

The compiler comes with libtpu, which is fetched from the package index into a folder of its own
(`--libtpu`, by default in the cache) and is seen by a subprocess only: an installed libtpu would
make every other JAX program here look for a TPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from jaxrec.files import cache_folder, write_json

# GiB of high-bandwidth memory that each JAX device of a generation has. A TPU7x chip is two.
MEMORY = {"v4": 32.0, "v5e": 15.75, "v5p": 95.0, "v6e": 31.25, "tpu7x": 96.0}
GIBIBYTE = 1 << 30


def main() -> int:
    """Checks a recipe; exit code 1 when a program does not fit, 2 for bad input."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recipe", help="recipe file; further --field value pairs override it")
    parser.add_argument("--topology", default="v5e:2x4", help="generation:AxB[xC]")
    parser.add_argument("--items", type=int, default=10_000, help="size of the catalogue")
    parser.add_argument("--libtpu", type=Path, default=cache_folder() / "libtpu")
    parser.add_argument("--json", type=Path, help="write the findings to this file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options, overrides = parser.parse_known_args()
    generation = options.topology.split(":")[0]
    if generation not in MEMORY or ":" not in options.topology:
        print(
            f"error: topology {options.topology!r} is unknown: give one of {', '.join(MEMORY)} and "
            "a shape, for example v5e:2x4 or v5p:2x2x1.",
            file=sys.stderr,
        )
        return 2
    if options.worker:
        found = check(options.recipe, overrides, options.topology, options.items)
        print("FOUND " + json.dumps(found))
        return 0
    fetch_libtpu(options.libtpu)
    rows = run_worker(options.libtpu, sys.argv[1:])
    fits = tell(rows, options.topology, MEMORY[generation])
    if options.json is not None:
        write_json(options.json, {"topology": options.topology, "rows": rows, "fits": fits})
    return 0 if fits else 1


def fetch_libtpu(folder: Path) -> None:
    """Installs the libtpu that the installed jax asks for into a folder of its own."""
    needs = importlib.metadata.requires("jax") or []
    wanted = next(need.split(";")[0].strip() for need in needs if need.startswith("libtpu"))
    marker = folder / ".version"
    if marker.is_file() and marker.read_text(encoding="utf-8") == wanted:
        return
    print(f"fetching {wanted} into {folder}", file=sys.stderr)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade",
         "--target", str(folder), wanted],
        check=True,
    )  # fmt: skip
    marker.write_text(wanted, encoding="utf-8")


def run_worker(libtpu: Path, arguments: list[str]) -> list[dict[str, Any]]:
    """Compiles in a subprocess that sees libtpu.

    Raises:
        SystemExit: the subprocess failed; what it said is printed.
    """
    environment = {
        **os.environ,
        # Without this jax would try the TPU backend itself and log errors.
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "PYTHONPATH": os.pathsep.join([str(libtpu), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, __file__, *arguments, "--worker"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    if done.returncode or not lines:
        # The compiler warns about the missing TPU even when all is well; shown only on failure.
        print(done.stderr, file=sys.stderr)
        raise SystemExit(done.returncode or 1)
    return json.loads(lines[-1].removeprefix("FOUND "))


def check(recipe: str, overrides: list[str], topology: str, items: int) -> list[dict[str, Any]]:
    """Lowers and compiles both programs for the topology."""
    from jax.experimental import topologies

    from jaxrec.commands.overrides import parse_overrides
    from jaxrec.parallel import make_mesh
    from jaxrec.scaling.forecast import (
        collectives_of,
        expected_space,
        lower_decoding,
        lower_training,
        memory_of,
    )

    parsed, _ = parse_overrides(recipe, overrides, "aot_check")
    # A single chip is one host of one chip, which the description has to be told.
    single = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith("1x1") else {}
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology, **single).devices
    mesh = make_mesh(parsed.mesh, devices)
    space = expected_space(parsed, items)
    rows = []
    for program, lower in (("training step", lower_training), ("answer", lower_decoding)):
        start = time.perf_counter()
        compiled = lower(parsed, space, items, mesh).compile()
        rows.append(
            {
                "program": program,
                "devices": len(devices),
                "mesh": dict(mesh.shape),
                "memory": memory_of(compiled),
                "collectives": collectives_of(compiled),
                "host_callbacks": compiled.as_text().count("xla_python_cpu_callback"),
                "compile_seconds": round(time.perf_counter() - start, 1),
            }
        )
    return rows


def tell(rows: list[dict[str, Any]], topology: str, memory: float) -> bool:
    """Prints the findings; returns whether every program fits."""
    fits = True
    for row in rows:
        total = row["memory"]["total"] / GIBIBYTE
        row["fits"] = total <= memory
        fits &= row["fits"]
        parts = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in row["memory"].items())
        collectives = ", ".join(f"{count} {name}" for name, count in row["collectives"].items())
        print(
            f"{row['program']} on {topology} ({row['devices']} devices): "
            f"{'fits' if row['fits'] else 'DOES NOT FIT'}, {total:.3f} of {memory:g} GiB a chip\n"
            f"  MiB: {parts}\n  collectives: {collectives or 'none'}\n"
            f"  compiled in {row['compile_seconds']} s"
        )
    return fits


if __name__ == "__main__":
    sys.exit(main())
