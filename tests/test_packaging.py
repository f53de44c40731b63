"""What a stranger gets: the wheel, the sdist, and a program that answers at once."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ANSWER_SECONDS = 2.0

# Commands that have nothing to compute: their words, exit code, and a part of what they say.
AT_ONCE = [
    (["--help"], 0, "usage: jaxrec"),
    (["--version"], 0, "."),
    (["data", "import", "--help"], 0, "retailrocket"),
    (["nonsense"], 2, "there is no command 'nonsense'"),
]

BUILD = """
import sys
from setuptools import build_meta
getattr(build_meta, sys.argv[1])(sys.argv[2])
"""

# Runs the program and tells on the last line which modules neither Python nor jaxrec brings.
FOREIGN = """
import sys
before = set(sys.modules)
from jaxrec.cli import main
code = main(sys.argv[1:])
tops = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(tops - set(sys.stdlib_module_names) - {"jaxrec"}))
sys.exit(code)
"""


def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def sources(root):
    """The files of the checkout, those not added yet included."""
    if not (root / ".git").exists():
        pytest.skip("not a git checkout: nothing to compare the archives with")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.split("\0") if name and (root / name).is_file()}


def build(kind, folder, out):
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD, f"build_{kind}", str(out)],
        cwd=folder,
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def sdist(root, tmp_path_factory):
    """An sdist of the checkout's files, built from a copy: nothing stale, nothing left behind."""
    copy = tmp_path_factory.mktemp("copy")
    for name in sources(root):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, copy / name)
    for cache in ("jaxrec/__pycache__", "tests/__pycache__"):
        (copy / cache).mkdir()
        (copy / cache / "left.cpython-312.pyc").write_bytes(b"")
    out = tmp_path_factory.mktemp("sdist")
    build("sdist", copy, out)
    (archive,) = out.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """A wheel built from the sdist, as a package index's user gets it."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    out = tmp_path_factory.mktemp("wheel")
    build("wheel", next(folder.iterdir()), out)
    (archive,) = out.glob("*.whl")
    return archive


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel's content as an import path, before the checkout's."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(installed, *words):
    return subprocess.run(
        [sys.executable, *words],
        cwd=installed.parent,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_sdist_is_the_checkout(root, sdist):
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    made = {name for name in names if name.startswith("jaxrec.egg-info/")}
    assert names - made - {"PKG-INFO", "setup.cfg"} == sources(root)


def test_the_wheel_is_the_package_and_nothing_else(root, wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    described = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    package = {name for name in sources(root) if name.startswith("jaxrec/")}
    assert names - described == package
    assert {"jaxrec/py.typed", "jaxrec/data/datasets/tables.py"} <= package


def test_every_package_folder_has_an_init(root):
    folders = {path.parent for path in (root / "jaxrec").rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


def test_the_wheel_describes_itself(root, wheel):
    declared = project(root)
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {n.split("/")[0] for n in archive.namelist() if ".dist-info/" in n}
        described = Parser().parsestr(archive.read(f"{folder}/METADATA").decode())
        entry_points = archive.read(f"{folder}/entry_points.txt").decode()
        licence = archive.read(f"{folder}/licenses/LICENSE").decode()
    assert described["Name"] == "jaxrec"
    assert wheel.name == f"jaxrec-{declared['version']}-py3-none-any.whl"
    assert described["Version"] == declared["version"]
    assert described["License-Expression"] == "Apache-2.0"
    assert licence == (root / "LICENSE").read_text()
    assert described["Requires-Python"] == ">=3.12"
    assert described.get_all("Classifier") == declared["classifiers"]
    assert {"Programming Language :: Python :: 3.13", "Typing :: Typed"} <= set(
        described.get_all("Classifier")
    )
    assert described.get_payload() == (root / "README.md").read_text()
    assert set(described.get_all("Provides-Extra")) == set(declared["optional-dependencies"])
    assert "jaxrec = jaxrec.cli:main" in entry_points


def test_one_version_everywhere(root, installed):
    done = run(installed, "-c", "import jaxrec; print(jaxrec.__version__, jaxrec.__file__)")
    version, path = done.stdout.split()
    assert version == project(root)["version"]
    assert Path(path).is_relative_to(installed)


@pytest.mark.parametrize(("words", "code", "part"), AT_ONCE)
def test_what_computes_nothing_imports_nothing(installed, words, code, part):
    done = run(installed, "-c", FOREIGN, *words)
    assert done.returncode == code
    assert part in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def seconds_of(*command, **options):
    """Elapsed seconds of the fastest of three: the machine may be busy with other tests."""

    def once():
        start = time.perf_counter()
        subprocess.run(command, check=False, capture_output=True, **options)
        return time.perf_counter() - start

    return min(once() for _ in range(3))


@pytest.mark.parametrize(
    "words",
    [["-c", "import jaxrec"], *(["-m", "jaxrec.cli", *words] for words, *_ in AT_ONCE)],
)
def test_what_computes_nothing_answers_at_once(installed, words):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    elapsed = seconds_of(sys.executable, *words, cwd=installed.parent, env=environment)
    assert elapsed < ANSWER_SECONDS


def imported(path):
    """The top-level names that a file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def declared_needs(root, *extras):
    """Requirements that pyproject.toml names: those of everybody, and those of some extras."""
    declared = project(root)
    groups = [declared["dependencies"], *(declared["optional-dependencies"][e] for e in extras)]
    needs = [Requirement(line) for group in groups for line in group]
    return [need for need in needs if need.name != "jaxrec"]


def test_every_import_is_declared(root):
    """A dependency's dependency may go away; what jaxrec imports, jaxrec names."""
    needs = declared_needs(root, "plots", "tensorboard", "wandb")
    modules = {"orbax-checkpoint": "orbax"}
    allowed = {modules.get(need.name, need.name) for need in needs} | {"jaxrec"}
    for path in (root / "jaxrec").rglob("*.py"):
        assert set(imported(path)) - set(sys.stdlib_module_names) <= allowed, path


def pins(path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return {name.lower(): version for name, version in (line.split("==") for line in lines)}


def test_the_lowest_constraints_are_the_floors(root):
    """0.23 may mean 0.23.1, where that is the first of its series that an index has."""
    lowest = pins(root / "constraints-lowest.txt")
    needs = declared_needs(root, "plots", "tensorboard", "dev")
    assert set(lowest) == {need.name.lower() for need in needs}
    for need in needs:
        (floor,) = need.specifier
        pinned = lowest[need.name.lower()]
        assert need.specifier.contains(pinned), need
        assert re.fullmatch(rf"{re.escape(floor.version)}(\.\w+)*", pinned), need


def test_the_pinned_versions_satisfy_the_project(root):
    tested = pins(root / "constraints.txt")
    for need in declared_needs(root, "plots", "tensorboard", "dev"):
        assert need.specifier.contains(tested[need.name.lower()]), need
    assert "://" not in (root / "constraints.txt").read_text()


def test_the_matrix_says_which_interpreter_is_missing(root, tmp_path):
    (tmp_path / ".ci").mkdir()
    shutil.copy(root / ".ci/matrix", tmp_path / ".ci/matrix")
    done = subprocess.run(
        [tmp_path / ".ci/matrix"],
        env={**os.environ, "CELLS": "3.99-lowest 3.12-oldest"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    header, first, second = done.stdout.splitlines()
    assert header.split()[:3] == ["cell", "python", "jax"]
    assert first.startswith("3.99-lowest")
    assert "FAILED: no Python 3.99 on the PATH or in pyenv" in first
    assert "FAILED: no such cell" in second


@pytest.mark.slow
def test_a_fresh_environment(root, wheel, tmp_path):
    """Installs the wheel and the pinned versions from the package index, and nothing else."""
    folder = tmp_path / "fresh"
    venv.create(folder, with_pip=True)
    binaries = folder / "bin"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    subprocess.run(
        [binaries / "python", "-m", "pip", "install", "-q", "-c", root / "constraints.txt", wheel],
        check=True,
        env=clean,
    )
    for words, code, part in AT_ONCE:
        done = subprocess.run(
            [binaries / "jaxrec", *words],
            cwd=tmp_path,
            env=clean,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code
        assert part in done.stdout + done.stderr
        elapsed = seconds_of(binaries / "jaxrec", *words, cwd=tmp_path, env=clean)
        print(f"jaxrec {' '.join(words)}: {elapsed:.2f} s")
        assert elapsed < ANSWER_SECONDS
    everything = (
        "import importlib, pkgutil, json, jaxrec\n"
        "names = [m.name for m in pkgutil.walk_packages(jaxrec.__path__, 'jaxrec.')]\n"
        "[importlib.import_module(name) for name in names]\n"
        "print(json.dumps(names))"
    )
    done = subprocess.run(
        [binaries / "python", "-c", everything],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "jaxrec.backbones.decoder" in json.loads(done.stdout)
