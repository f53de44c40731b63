"""Disks that are full or read-only, jobs that are killed or meet, clocks that jump."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest
from bad_inputs import LOG

from jaxrec.checkpoint import CheckpointError, Checkpoints
from jaxrec.cli import main
from jaxrec.files import file_hash, lock, publish, write_json, write_text
from jaxrec.recipe import to_json
from jaxrec.tracking import JsonLines, Progress

HOLD = """
import sys, time
from jaxrec.files import lock
with lock(sys.argv[1], wait=False):
    print("held", flush=True)
    time.sleep(600)
"""


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def polars_without_space(*_, **__):
    # What polars 1.x says, word for word.
    raise pl.exceptions.ComputeError(
        "parquet: File out of specification: underlying IO error: No space left on device "
        "(os error 28)"
    )


def numpy_without_space(*_, **__):
    raise OSError("100000 requested and 8176 written")


def read_only(*_, **__):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def not_allowed(*_, **__):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def refused(words, capsys):
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert told.count("error: ") == 1
    return told


def everything(folder):
    return {
        path.relative_to(folder).as_posix(): path.is_dir() or file_hash(path)
        for path in folder.rglob("*")
    }


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(LOG, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("place", "failure", "message"),
    [
        ("os.fsync", no_space, "The disk is full: make room"),
        ("os.replace", no_space, "The disk is full: make room"),
        ("polars.LazyFrame.sink_parquet", polars_without_space, "The disk is full: make room"),
        ("polars.LazyFrame.sink_parquet", no_space, "The disk is full: make room"),
        ("tempfile.mkdtemp", no_space, "The disk is full: make room"),
        ("tempfile.mkdtemp", read_only, "mend the permissions, or choose another folder"),
        ("tempfile.mkdtemp", not_allowed, "mend the permissions, or choose another folder"),
        ("os.rename", not_allowed, "mend the permissions, or choose another folder"),
    ],
)
@pytest.mark.parametrize("is_new", [True, False])
def test_an_import_that_cannot_be_written(
    place, failure, message, is_new, log, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "d"
    words = ["data", "import", log, "--out", out, "--replace"]
    if not is_new:
        assert main([str(word) for word in words]) == 0
    before = everything(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(place, failure)
        told = refused(words, capsys)
    assert message in told
    assert everything(tmp_path) == before
    assert main([str(word) for word in words]) == 0


@pytest.mark.parametrize(
    ("place", "failure", "message"),
    [
        ("os.fsync", no_space, "The disk is full"),
        ("numpy.save", numpy_without_space, "The disk is full"),
        ("polars.LazyFrame.sink_parquet", polars_without_space, "The disk is full"),
        ("tempfile.TemporaryFile", read_only, "cannot be written (Read-only file system)"),
        ("tempfile.TemporaryFile", not_allowed, "cannot be written (Permission denied)"),
        ("tempfile.TemporaryFile", no_space, "cannot be written (No space left on device)"),
        ("shutil.copytree", no_space, "The disk is full"),
    ],
)
def test_a_run_that_cannot_be_written_goes_on_later(
    place, failure, message, small, tmp_path, capsys, monkeypatch
):
    write_json(tmp_path / "mine.json", to_json(small))
    words = ["run", tmp_path / "mine.json", "--runs", tmp_path / "runs"]

    def stop(*_, **__):
        raise ValueError("as far as semantic IDs")

    monkeypatch.setattr("jaxrec.pipeline.stages.make_tokens", stop)
    with monkeypatch.context() as broken:
        broken.setattr(place, failure)
        assert message in refused(words, capsys)
    assert not list(tmp_path.rglob(".tmp-*"))
    assert "as far as semantic IDs" in refused(words, capsys)


@pytest.mark.parametrize("place", ["jaxrec.checkpoint.write_text", "jaxrec.checkpoint._flush"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(place, tmp_path, monkeypatch):
    state = {"w": np.arange(4, dtype=np.float32)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, data={}, manifest={})
        checkpoints.wait()
        before = everything(tmp_path)
        monkeypatch.setattr(place, no_space)
        checkpoints.save(2, state, data={}, manifest={})
        with pytest.raises(CheckpointError, match=r"No space left on device\nEarlier .* make room"):
            checkpoints.wait()
        assert checkpoints.steps() == [1]
    assert before.items() <= everything(tmp_path).items()


def test_two_jobs_on_one_run_folder(small, tmp_path, capsys):
    write_json(tmp_path / "mine.json", to_json(small))
    holder = hold(tmp_path / "runs/small/.lock")
    try:
        told = refused(["run", tmp_path / "mine.json", "--runs", tmp_path / "runs"], capsys)
    finally:
        holder.kill()
        holder.communicate()
    assert "another job is running in" in told
    assert "give this run another name with --name" in told
    assert sorted(path.name for path in (tmp_path / "runs/small").iterdir()) == [".lock"]


def test_kill_9_frees_the_lock_at_once(tmp_path):
    path = tmp_path / "job/.lock"
    holder = hold(path)
    with pytest.raises(BlockingIOError), lock(path, wait=False):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    start = time.monotonic()
    with lock(path, wait=False):
        assert time.monotonic() - start < 1.0


def hold(path):
    """A process that holds a lock."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_clock_that_jumps_back_changes_nothing(tmp_path, monkeypatch):
    """A day back, a day on, while a checkpoint is on its way: order comes from names and steps."""
    true, shift = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: true() + shift[0])
    state = {"w": np.arange(4, dtype=np.float32)}
    template = {"w": np.zeros(4, np.float32)}
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        for step, shift[0] in ((1, -86_400.0), (2, -172_800.0), (3, 0.0)):
            checkpoints.save(step, {"w": state["w"] + step}, data={}, manifest={})
            shift[0] += 86_400 * (step - 2)
            checkpoints.wait()
            # A file system's clock may jump as well.
            os.utime(tmp_path / f"c/{step:09d}", (1e9 - step, 1e9 - step))
        assert checkpoints.steps() == [2, 3]
        restored = checkpoints.restore(3, template)[0]
    np.testing.assert_array_equal(restored["w"], state["w"] + 3)
    lines = JsonLines(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        lines.write(step, {"loss": 1.0})
    assert [row["step"] for row in lines.rows()] == [1, 2, 3]
    with lock(tmp_path / ".lock", wait=False), Progress(3, "x") as progress:
        progress.update(3)
    publish(tmp_path / "d", lambda folder: write_text(folder / "x", "new"))
    assert (tmp_path / "d/x").read_text() == "new"


def test_a_run_under_a_jumping_clock_stays_finished(small, finished, monkeypatch, capsys):
    true, looks = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: true() - 86_400 * (next(looks) % 3))
    before = {path: file_hash(path) for path in finished.rglob("*") if path.is_file()}
    assert main(["run", str(finished / "recipe.json")]) == 0
    assert {path: file_hash(path) for path in finished.rglob("*") if path.is_file()} == before
