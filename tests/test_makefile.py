import shutil
import subprocess


def tools(folder, **fakes):
    """A PATH with a shell's basics and nothing else but the given scripts."""
    for name in ("sh", "touch", "rm", "test"):
        (folder / name).symlink_to(shutil.which(name))
    for name, script in fakes.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return folder


def without_venv(root, tmp_path):
    """The Makefile alone, in a folder that has no .venv."""
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(root / name, clone / name)
    return clone


def run_make(clone, path):
    return subprocess.run(
        [shutil.which("make"), ".venv/bin/python"],
        cwd=clone,
        env={"PATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_python_and_an_old_python_get_one_clear_line(root, tmp_path):
    clone = without_venv(root, tmp_path)
    for number, fakes in enumerate([{}, {"python3": "exit 1"}]):
        folder = tmp_path / f"path{number}"
        folder.mkdir()
        done = run_make(clone, tools(folder, **fakes))
        assert done.returncode == 2
        said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
        assert len(said) == 1
        assert "needs Python 3.12 or newer" in said[0]
        assert "install one" in said[0]
        assert not (clone / ".venv").exists()


def test_the_newest_fitting_python_is_used(root, tmp_path):
    clone = without_venv(root, tmp_path)
    folder = tmp_path / "path"
    folder.mkdir()
    fakes = {"python3": "exit 1", "python3.13": 'echo "$@" >> made; mkdir -p .venv/bin; exit 0'}
    (tools(folder, **fakes) / "mkdir").symlink_to(shutil.which("mkdir"))
    run_make(clone, folder)
    assert "-m venv .venv" in (clone / "made").read_text()
