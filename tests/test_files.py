import os
import signal
import subprocess
import sys
import time

import pytest

from jaxrec import files


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    files.write_json(path, {"a": 1})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        files.write_json(path, {"a": 2})
    assert files.read_json(path) == {"a": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        files.write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_truncated_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"x\.json is not readable as JSON"):
        files.read_json(tmp_path / "x.json")


def test_json_hash_ignores_the_order_of_keys():
    assert files.json_hash({"a": 1, "b": [2]}) == files.json_hash({"b": [2], "a": 1})
    assert files.json_hash({"a": 1}) != files.json_hash({"a": 2})


def test_publish_is_whole_or_absent(tmp_path):
    def fail(folder):
        (folder / "half").write_text("x")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        files.publish(tmp_path / "out", fail)
    assert list(tmp_path.iterdir()) == []
    files.publish(tmp_path / "out", lambda folder: (folder / "one").write_text("1"))
    before = files.folder_hash(tmp_path / "out")
    with pytest.raises(RuntimeError, match="killed"):
        files.publish(tmp_path / "out", fail)
    assert files.folder_hash(tmp_path / "out") == before
    files.publish(tmp_path / "out", lambda folder: (folder / "two").write_text("2"))
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["two"]
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_folder_hash_sees_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    first = files.folder_hash(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert files.folder_hash(tmp_path) != first
    assert files.folder_hash(tmp_path, leave_out=("b",)) == files.folder_hash(tmp_path / "none")


def test_sweeping_touches_nothing_but_leftovers(tmp_path):
    (tmp_path / ".tmp-out.x1").mkdir()
    (tmp_path / ".tmp-a.json.x2").write_text("")
    (tmp_path / ".gitignore").write_text("*")
    files.sweep_leftovers(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == [".gitignore"]


def test_a_lock_is_exclusive_and_dies_with_its_holder(tmp_path):
    path = tmp_path / ".lock"
    code = (
        "import sys, time; from jaxrec.files import lock\n"
        f"with lock({str(path)!r}, wait=True): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError), files.lock(path, wait=False):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    start = time.monotonic()
    with files.lock(path, wait=True):
        assert time.monotonic() - start < 5
