"""The toy training job, once left alone and once killed again and again. Run by test_resume.py.

    python kill_job.py FOLDER SEED

Writes FOLDER/calm and FOLDER/killed and prints how often the second was killed. One process imports
jax and forks a child for each attempt, since importing costs more than the job. A child arms a
bomb: after so many file operations in its folder (opening, renaming, deleting, making a folder) it
kills itself with signal 9, in whatever thread and in the middle of whatever it does.
"""

import os
import signal
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAXREC_PROGRESS"] = "0"

import jax
import numpy as np

from jaxrec.parallel import MeshShape, make_mesh
from training.toys import run

WATCHED = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}
ATTEMPTS = 40


def arm(folder: Path, operations: int) -> None:
    """Kills this process at the given file operation below the folder."""
    left = [operations]

    def hook(event, arguments):
        if event in WATCHED and str(arguments[0]).startswith(str(folder)):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def job(folder: Path) -> None:
    run(folder, make_mesh(MeshShape(1), jax.devices()[:1]))


def attempt(folder: Path, operations: int) -> bool:
    """Whether an attempt came to its end; 0 operations arm no bomb."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if operations:
                arm(folder, operations)
            job(folder)
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0, "the job failed by itself"
    return True


def main(folder: str, seed: str) -> None:
    # Nothing runs yet but the interpreter: no backend was touched, so forking is safe.
    warnings.filterwarnings("ignore", message=".*fork.*")
    assert attempt(Path(folder) / "calm", 0)
    generator = np.random.default_rng(int(seed))
    for kills in range(ATTEMPTS):
        if attempt(Path(folder) / "killed", int(generator.integers(20, 200))):
            print(f"killed {kills} times", flush=True)
            return
    raise SystemExit(f"not finished after {ATTEMPTS} attempts")


if __name__ == "__main__":
    main(*sys.argv[1:])
