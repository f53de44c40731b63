"""Two processes train as one does, stop at one step when either is told to, and go on."""

import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrec.parallel import MeshShape, make_mesh
from jaxrec.tracking import JsonLines
from training.toys import run


def launch(folder, *stop):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    script = Path(__file__).with_name("two_hosts.py")
    processes = [
        subprocess.Popen(
            [sys.executable, script, number, port, folder, *stop],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in "01"
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return outputs


@pytest.mark.slow
def test_two_hosts(tmp_path):
    outputs = launch(tmp_path / "two", "13")
    assert "is saved" in outputs[0][1], "SIGTERM reached process 1 only, and process 0 stopped too"
    assert not (tmp_path / "two" / "finished.json").exists()
    ends = [output.splitlines()[-1] for output, _ in launch(tmp_path / "two")]
    assert ends[0].startswith("30 6 ")
    mesh = make_mesh(MeshShape(data=2, fsdp=2), jax.devices()[:4])
    validate = lambda params, step: {"ndcg@10": float(np.sin(step))}  # noqa: E731
    whole = run(tmp_path / "one", mesh, validate=validate)
    rows = JsonLines(tmp_path / "two" / "metrics.jsonl").rows()
    for mine, theirs in zip(rows, whole.history, strict=True):
        assert mine["step"] == theirs["step"]
        assert mine.get("loss", 0) == pytest.approx(theirs.get("loss", 0), abs=1e-5)
