"""Runs the stage of test_loop.py and kills itself with signal 9 when the n-th batch is laid out.

python kill_align.py FOLDER N
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAXREC_PROGRESS"] = "0"

import test_loop

from jaxrec.alignment import contexts


def main(folder: str, number: str) -> None:
    plain, left = contexts.lay_contexts, [int(number)]

    def lay(*arguments):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*arguments)

    contexts.lay_contexts = lay
    test_loop.STAGE.run(test_loop.context_of(Path(folder)))


if __name__ == "__main__":
    main(*sys.argv[1:])
