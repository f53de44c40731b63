"""Gathers what an accelerator machine without internet needs to run a recipe: `make gpu-bundle`.

The machine is expected to have Python 3.12 and jax with its accelerator plugin (and what jax itself
needs); flax and the rest may be missing. The bundle holds wheels in order of need until the limit
is reached, jaxrec itself, and a recipe's prepared stages, so that neither the log reader nor the
text encoder has to run over there. What does not fit is left out, and said.

On the machine:

    python -m pip install --no-index --no-deps gpu-bundle/wheels/*.whl
    jaxrec run configs/quickstart.py --runs gpu-bundle/runs
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MEBIBYTE = 1 << 20

# jax, jaxlib, numpy, scipy, ml_dtypes and opt_einsum belong to the jax that is already there: a
# wheel of another version would break its plugin.
ALREADY_THERE = {"jax", "jaxlib", "numpy", "scipy", "ml-dtypes", "opt-einsum"}
# In order of need: what a run from prepared stages imports, then the conveniences.
NEEDED = [
    "flax", "optax", "orbax-checkpoint", "grain", "einops", "tqdm", "jaxtyping", "tyro",
    "safetensors", "matplotlib", "tokenizers", "polars", "wordllama",
]  # fmt: skip


def main() -> int:
    """Makes the bundle and prints what is in it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", default="configs/quickstart.py", help="whose stages to prepare")
    parser.add_argument("--out", type=Path, default=ROOT / "gpu-bundle", help="folder to make")
    parser.add_argument("--limit", type=float, default=60.0, help="size limit in MiB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        stage = Path(temporary)
        left_out = gather(stage, options.recipe, int(options.limit * MEBIBYTE))
        if options.out.exists():
            shutil.rmtree(options.out)
        shutil.copytree(stage, options.out)
    print(f"{options.out}: {folder_size(options.out) / MEBIBYTE:.1f} MiB of {options.limit:g}")
    for line in left_out:
        print(f"left out: {line}")
    return 0


def gather(folder: Path, recipe: str, limit: int) -> list[str]:
    """Fills the bundle; returns a line for everything that was left out.

    Args:
        folder: where the bundle is made.
        recipe: recipe whose stages up to the semantic IDs are prepared.
        limit: bytes the bundle may have.

    Raises:
        subprocess.CalledProcessError: a wheel or a stage could not be made.
        ValueError: not even the prepared stages and jaxrec fit.
    """
    runs, wheels, pool = folder / "runs", folder / "wheels", folder / "pool"
    run("-m", "jaxrec.cli", "tokenize", recipe, "--runs", str(runs))
    # Run folders hold copies of the cached stages; the machine makes its own.
    for path in runs.iterdir():
        if path.name != ".cache":
            shutil.rmtree(path)
    wheels.mkdir()
    run("-m", "pip", "wheel", "-q", "--no-deps", "-w", str(wheels), str(ROOT))
    if folder_size(folder) > limit:
        raise ValueError(
            f"the prepared stages of {recipe} take {folder_size(folder) / MEBIBYTE:.1f} MiB, more "
            f"than the limit of {limit / MEBIBYTE:.1f}; raise --limit or choose a smaller recipe."
        )
    left_out = [f"{name} (the jax of the machine brings it)" for name in sorted(ALREADY_THERE)]
    for name in NEEDED:
        left_out += take(name, wheels, pool, limit - folder_size(runs))
    shutil.rmtree(pool, ignore_errors=True)
    return left_out


def take(name: str, wheels: Path, pool: Path, limit: int) -> list[str]:
    """Adds a package and what it needs to the wheels, all or nothing.

    Args:
        name: the package.
        wheels: the bundle's wheels.
        pool: scratch folder.
        limit: bytes all wheels together may have.
    """
    shutil.rmtree(pool, ignore_errors=True)
    constraints = str(ROOT / "constraints.txt")
    run("-m", "pip", "download", "-q", "--only-binary", ":all:", "-c", constraints,
        "-d", str(pool), name)  # fmt: skip
    have = {path.name for path in wheels.iterdir()}
    new = [
        path
        for path in pool.iterdir()
        if path.name not in have and package_of(path) not in ALREADY_THERE
    ]
    size = sum(path.stat().st_size for path in new)
    if folder_size(wheels) + size > limit:
        return [f"{name} ({size / MEBIBYTE:.1f} MiB with what it needs, over the limit)"]
    for path in new:
        shutil.move(path, wheels / path.name)
    return []


def package_of(wheel: Path) -> str:
    """The package a wheel holds, as the index spells it.

    >>> package_of(Path("ml_dtypes-0.6.0-cp312-cp312-linux_x86_64.whl"))
    'ml-dtypes'
    """
    return wheel.name.split("-")[0].lower().replace("_", "-")


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run(*arguments: str) -> None:
    """Runs this Python with arguments, from the root of the checkout."""
    subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main())
